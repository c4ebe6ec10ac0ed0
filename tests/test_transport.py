"""The operators of transport compute what they are defined to, and what others compute who solve the same problem."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from prosma_ops import Potentials, apply_plan, sinkhorn, transport_align, transport_plan
from prosma_ops.reference import transport as definition
from prosma_ops.testing import compare, parity
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.transport import MASSES, eager_plan, example

SCORES = ("dot", "negative_squared_distance")
GRADIENTS = ("unrolled", "implicit")
F64 = torch.float64


def given(operator: str, size: tuple[int, int, int], **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs and settings of an example in float64."""
    problem = example(operator, size, F64, **changes)
    return dict(problem.inputs), dict(problem.settings)


def plan_by_loops(
    scores: Tensor, a: list[float], b: list[float], epsilon: float, iterations: int, tolerance: float
) -> tuple[np.ndarray, list[float], list[float]]:
    """One item, one sum of exponentials at a time, in Python's floats."""
    rows = [i for i in range(len(a)) if a[i] > 0]
    columns = [j for j in range(len(b)) if b[j] > 0]
    s = scores.tolist()
    f, g = [0.0] * len(a), [0.0] * len(b)
    plan = np.zeros((len(a), len(b)))
    for _ in range(iterations):
        for i in rows:
            f[i] = epsilon * (math.log(a[i]) - math.log(sum(math.exp((s[i][j] + g[j]) / epsilon) for j in columns)))
        for j in columns:
            g[j] = epsilon * (math.log(b[j]) - math.log(sum(math.exp((s[i][j] + f[i]) / epsilon) for i in rows)))
        for i in rows:
            for j in columns:
                plan[i, j] = math.exp((s[i][j] + f[i] + g[j]) / epsilon)
        if max(abs(plan[i].sum() - a[i]) / a[i] for i in rows) < tolerance:
            break
    for i in set(range(len(a))) - set(rows):
        f[i] = -math.inf
    for j in set(range(len(b))) - set(columns):
        g[j] = -math.inf
    return plan, f, g


LOOPS = [
    {},
    {"iterations": 1},
    {"masses": "item", "epsilon": 0.3},
    {"masses": "zeros", "mask": "ragged"},
    {"mask": "ragged", "stops": True, "iterations": 20},
]


@pytest.mark.parametrize("changes", LOOPS, ids=str)
def test_it_is_its_definition(implementation: Implementation, changes: dict[str, Any]) -> None:
    inputs, settings = given("transport_plan", (3, 6, 5), **changes)
    del settings["gradient"]
    plan, potentials = transport_plan(**inputs, **settings), sinkhorn(**inputs, **settings)
    row_mass, column_mass, mask = (inputs[name] for name in MASSES)
    for item in range(3):
        taking_part = torch.ones(6, dtype=F64) if mask is None else mask[item].double()
        a = taking_part / taking_part.sum() if row_mass is None else row_mass[item] * taking_part
        b = torch.full((5,), 0.2, dtype=F64) if column_mass is None else column_mass[item]
        numbers = (settings["epsilon"], settings["iterations"], settings["tolerance"])
        expected, f, g = plan_by_loops(inputs["scores"][item], a.tolist(), b.tolist(), *numbers)
        torch.testing.assert_close(plan[item], torch.from_numpy(expected), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(potentials.row[item], torch.tensor(f, dtype=F64), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(potentials.column[item], torch.tensor(g, dtype=F64), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("heads", [0, 1, 3])
def test_aligning_is_scores_plan_and_product(implementation: Implementation, heads: int, score: str) -> None:
    inputs, settings = given("transport_align", (2, 7, 4), heads=heads, score=score, epsilon=2.0, mask="ragged")
    tokens, reference = inputs.pop("tokens"), inputs.pop("reference")
    aligned, potentials = transport_align(tokens, reference, **inputs, **settings, return_potentials=True)
    assert aligned.shape == ((2, 4, 5) if heads == 0 else (2, heads, 4, 5))
    assert potentials.row.shape == ((2, 7) if heads == 0 else (2, heads, 7))
    assert potentials.column.shape == aligned.shape[:-1]
    del settings["score"]
    for head, supports in enumerate(reference.reshape(-1, 4, 5)):
        pairs = tokens[:, :, None] - supports
        scores = -pairs.square().sum(-1) if score != "dot" else (tokens[:, :, None] * supports).sum(-1)
        plan = transport_plan(scores, **inputs, **settings)
        found = aligned.reshape(2, -1, 4, 5)[:, head]
        torch.testing.assert_close(found, plan.mT @ tokens, rtol=1e-11, atol=1e-12)
        expected = sinkhorn(scores, **inputs, **{k: v for k, v in settings.items() if k != "gradient"})
        torch.testing.assert_close(potentials.row.reshape(2, -1, 7)[:, head], expected.row, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("heads", [0, 2])
def test_a_plan_is_applied_from_both_sides(implementation: Implementation, heads: int, score: str) -> None:
    inputs, settings = given("transport_align", (2, 7, 4), heads=heads, score=score, epsilon=2.0, masses="item")
    aligned, potentials = transport_align(**inputs, **settings, return_potentials=True)
    tokens, reference = inputs["tokens"], inputs["reference"]
    shared = {"score": score, "epsilon": 2.0}
    back = apply_plan(tokens, reference, potentials, tokens, side="columns", **shared)
    torch.testing.assert_close(back, aligned, rtol=1e-10, atol=1e-12)
    eye = torch.eye(7, dtype=F64).expand(2, 7, 7)
    plan = apply_plan(tokens, reference, potentials, eye, side="columns", **shared).mT
    torch.testing.assert_close(
        plan.sum(dim=-2), (inputs["column_mass"] if heads == 0 else inputs["column_mass"][:, None].expand(2, 2, 4))
    )
    values = torch.randn(*plan.shape[:-2], 4, 3, dtype=F64)
    expected = plan @ values if heads == 0 else (plan @ values).sum(dim=1)
    found = apply_plan(tokens, reference, potentials, values, side="rows", **shared)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("changes", [{}, {"masses": "item"}, {"masses": "zeros", "mask": "ragged"}], ids=str)
def test_marginals_after_convergence(
    implementation: Implementation, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    problem = example("transport_plan", (3, 13, 11), dtype, iterations=200, **changes)
    plan = transport_plan(**problem.inputs, **problem.settings).double()
    row_mass, column_mass, mask = (problem.inputs[name] for name in MASSES)
    a = torch.full((3, 13), 1 / 13, dtype=F64) if row_mass is None else row_mass
    a = a if mask is None else a * mask
    b = torch.full((3, 11), 1 / 11, dtype=F64) if column_mass is None else column_mass
    torch.testing.assert_close(plan.sum(dim=2), a, rtol=1e-5, atol=0)
    torch.testing.assert_close(plan.sum(dim=1), b, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-5])
def test_tolerance_is_kept_and_costs_no_more_iterations(implementation: Implementation, tolerance: float) -> None:
    scores = 2 * torch.randn(4, 9, 8, dtype=F64)
    plan = transport_plan(scores, iterations=500, tolerance=tolerance)
    assert ((plan.sum(dim=2) - 1 / 9).abs() * 9).max() < tolerance
    counts = []
    for item in range(4):
        count = 1
        while ((transport_plan(scores[item : item + 1], iterations=count).sum(dim=2) * 9 - 1).abs().max()) >= tolerance:
            count += 1
        counts.append(count)
        expected = transport_plan(scores[item : item + 1], iterations=count)[0]
        torch.testing.assert_close(plan[item], expected, rtol=1e-12, atol=1e-14)
    assert len(set(counts)) > 1


# Gradients.


@pytest.mark.parametrize("iterations", [1, 2, 5, 50])
@pytest.mark.parametrize("changes", [{}, {"masses": "zeros", "mask": "ragged"}, {"epsilon": 0.1}], ids=str)
def test_unrolled_is_autograd_through_the_loop(
    implementation: Implementation, changes: dict[str, Any], iterations: int
) -> None:
    for operator in ("sinkhorn", "transport_plan", "transport_align"):
        heads = {"heads": 2} if operator == "transport_align" else {}
        problem = example(operator, (2, 6, 7), F64, iterations=iterations, **changes, **heads)
        found = parity.evaluate(problem, problem.function)
        for name, expected in parity.evaluate(problem, problem.definition).items():
            torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("changes", [{}, {"masses": "zeros", "mask": "ragged"}], ids=str)
@pytest.mark.parametrize("size", [(2, 6, 7), (1, 21, 5), (1, 8, 17)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_implicit_is_unrolled_at_convergence(
    implementation: Implementation, dtype: torch.dtype, size: tuple[int, int, int], changes: dict[str, Any]
) -> None:
    for operator in ("transport_plan", "transport_align"):
        problem = example(operator, size, dtype, gradient="implicit", epsilon=1.5, iterations=200, **changes)
        found = parity.evaluate(problem, problem.function)
        settings = dict(problem.settings) | {"gradient": "unrolled"}
        unrolled = parity.evaluate(problem, lambda settings=settings, run=problem.function, **k: run(**(k | settings)))
        for name, expected in unrolled.items():
            scale = float(expected[expected.isfinite()].abs().max())
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5 * scale)


def test_implicit_takes_what_asks_for_the_constant_to_be_halfway(implementation: Implementation) -> None:
    """Rows alone have no gradient at the fixed point: half of it is asked of the rows, half of the columns."""
    inputs, settings = given("transport_align", (2, 5, 4), iterations=200, gradient="implicit")
    tokens = inputs.pop("tokens").requires_grad_()
    (row, column) = transport_align(tokens, **inputs, **settings, return_potentials=True)[1]
    by_rows = torch.autograd.grad(row.mean(dim=1).sum(), tokens, retain_graph=True)[0]
    halfway = torch.autograd.grad((row.mean(dim=1) + column.mean(dim=1)).sum() / 2, tokens)[0]
    torch.testing.assert_close(by_rows, halfway, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_first_derivative(implementation: Implementation, gradient: str) -> None:
    iterations = 4 if gradient == "unrolled" else 150
    scores = torch.randn(2, 4, 3, dtype=F64, requires_grad=True)
    mask = torch.tensor([[True] * 4, [True, False, True, True]])
    settings = {"mask": mask, "iterations": iterations, "epsilon": 0.8, "gradient": gradient}
    assert gradcheck(lambda s: transport_plan(s, **settings), (scores,), atol=1e-5)


def potentials_of(found: Potentials) -> tuple[Tensor, ...]:
    """Finite, for finite differences."""
    return tuple(potential.clamp(min=-1e6) for potential in found)


def test_first_derivative_of_potentials(implementation: Implementation) -> None:
    scores = torch.randn(2, 4, 3, dtype=F64, requires_grad=True)
    mask = torch.tensor([[True] * 4, [True, False, True, True]])
    assert gradcheck(lambda s: potentials_of(sinkhorn(s, mask=mask, iterations=3)), (scores,))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("heads", [0, 2])
def test_first_derivative_of_aligning(implementation: Implementation, heads: int, score: str) -> None:
    inputs, settings = given("transport_align", (2, 4, 3), features=2, heads=heads, score=score, epsilon=2.0)
    leaves = tuple(inputs[name].requires_grad_() for name in ("tokens", "reference"))

    def run(tokens: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        aligned, potentials = transport_align(tokens, reference, **settings, return_potentials=True)
        return aligned, *potentials

    assert gradcheck(run, leaves)


@pytest.mark.parametrize("side", ["columns", "rows"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("heads", [0, 2])
def test_first_derivative_of_applying(implementation: Implementation, heads: int, score: str, side: str) -> None:
    problem = example("apply_plan", (2, 4, 3), F64, features=2, heads=heads, score=score, side=side, epsilon=2.0)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in problem.inputs.values())
    assert gradcheck(lambda *tensors: problem.function(*tensors, **problem.settings), leaves)


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_second_derivatives(backend: str, tolerance: float) -> None:
    scores = torch.randn(2, 4, 3, dtype=F64, requires_grad=True)
    settings = {"iterations": 3, "tolerance": tolerance, "mask": torch.tensor([[True] * 4, [True, False, True, True]])}
    assert gradgradcheck(lambda s: transport_plan(s, **settings), (scores,))
    assert gradgradcheck(lambda s: potentials_of(sinkhorn(s, **settings)), (scores,))


@pytest.mark.parametrize("heads", [0, 2])
def test_second_derivatives_of_tokens(backend: str, heads: int) -> None:
    tokens = torch.randn(1, 3, 2, dtype=F64, requires_grad=True)
    reference = torch.randn((2, 2) if heads == 0 else (heads, 2, 2), dtype=F64, requires_grad=True)

    def aligned(tokens: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        found, potentials = transport_align(tokens, reference, iterations=2, return_potentials=True)
        return found, *potentials

    assert gradgradcheck(aligned, (tokens, reference))


@pytest.mark.parametrize("side", ["columns", "rows"])
@pytest.mark.parametrize("heads", [0, 2])
def test_second_derivatives_of_applying(backend: str, heads: int, side: str) -> None:
    problem = example("apply_plan", (1, 3, 2), F64, features=2, heads=heads, side=side)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in problem.inputs.values())
    assert gradgradcheck(lambda *tensors: problem.function(*tensors, **problem.settings), leaves)


def test_the_implicit_gradient_has_no_second_derivative_and_says_so(backend: str) -> None:
    scores = torch.randn(1, 3, 2, dtype=F64, requires_grad=True)
    plan = transport_plan(scores, gradient="implicit")
    (slope,) = torch.autograd.grad(plan.square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match=r"implicit.*no second derivative"):
        slope.sum().backward()


def test_the_unrolled_gradient_without_its_history_says_so(backend: str) -> None:
    scores = torch.randn(1, 3, 2, requires_grad=True)
    plan = torch.ops.prosma_ops.transport_plan(scores, None, None, None, 1.0, 5, 0.0, 1, True)[0]
    with pytest.raises(RuntimeError, match="keep = iterations"):
        plan.sum().backward()


@pytest.mark.parametrize("wanted", ["tokens", "reference"])
def test_one_gradient_alone_is_the_same_as_among_all(implementation: Implementation, wanted: str) -> None:
    for operator in ("transport_align", "apply_plan"):
        problem = example(operator, (2, 7, 5), heads=2)
        every = parity.evaluate(problem, problem.function)
        inputs = {name: t if t is None else t.detach() for name, t in problem.inputs.items()}
        inputs[wanted] = inputs[wanted].requires_grad_()
        outputs = parity.name_outputs(problem.function(**inputs, **problem.settings))
        (alone,) = torch.autograd.grad(list(outputs.values()), inputs[wanted], problem.grads)
        assert torch.equal(alone, every[f"gradient of {wanted}"])


def test_masses_and_mask_have_no_gradient_and_what_has_no_mass_has_none(implementation: Implementation) -> None:
    problem = example("transport_align", (3, 8, 7), masses="zeros", mask="ragged")
    found = parity.evaluate(problem, problem.function)
    rows = (problem.inputs["row_mass"] > 0) & problem.inputs["mask"]
    assert not found["gradient of tokens"][~rows].any()
    assert found["gradient of tokens"][rows].any()
    assert (found["row"][~rows] == -math.inf).all()
    assert found["row"][rows].isfinite().all()


# What does not depend on how a problem is put.


def results(
    operator: str, inputs: dict[str, Tensor | None], settings: dict[str, Any], grads: list[Tensor]
) -> list[Tensor]:
    problem = example(operator, (1, 2, 2))
    leaves = {
        name: t.detach().requires_grad_() if t is not None and name not in MASSES else t for name, t in inputs.items()
    }
    outputs = parity.name_outputs(problem.function(**leaves, **settings))
    wanted = [t for t in leaves.values() if t is not None and t.requires_grad]
    return [*(t.detach() for t in outputs.values()), *torch.autograd.grad(list(outputs.values()), wanted, grads)]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_masked_batch_is_the_unmasked_problem_on_what_is_kept(implementation: Implementation, gradient: str) -> None:
    for masses in ("", "item"):
        problem = example(
            "transport_plan", (4, 9, 6), F64, mask="ragged", masses=masses, gradient=gradient, iterations=40
        )
        row_mass, column_mass, mask = (problem.inputs[name] for name in MASSES)
        plan, slope = results("transport_plan", problem.inputs, problem.settings, list(problem.grads))
        for item in range(4):
            kept = mask[item]
            alone = {
                "scores": problem.inputs["scores"][item : item + 1, kept],
                "row_mass": None if row_mass is None else row_mass[item : item + 1, kept],
                "column_mass": None if column_mass is None else column_mass[item : item + 1],
            }
            grads = [problem.grads[0][item : item + 1, kept]]
            expected, expected_slope = results("transport_plan", alone, problem.settings, grads)
            torch.testing.assert_close(plan[item, kept], expected[0], rtol=1e-12, atol=1e-15)
            torch.testing.assert_close(slope[item, kept], expected_slope[0], rtol=1e-5, atol=1e-9)
            assert not plan[item, ~kept].any()
            assert not slope[item, ~kept].any()


def test_permuting_tokens_permutes_the_plan(implementation: Implementation) -> None:
    problem = example("transport_plan", (2, 9, 6), F64, masses="item", mask="ragged")
    rows, columns = torch.randperm(9), torch.randperm(6)
    plan, slope = results("transport_plan", problem.inputs, problem.settings, list(problem.grads))
    row_mass, column_mass, mask = (problem.inputs[name] for name in MASSES)
    permuted = {
        "scores": problem.inputs["scores"][:, rows][:, :, columns],
        "row_mass": row_mass[:, rows],
        "column_mass": column_mass[:, columns],
        "mask": mask[:, rows],
    }
    grads = [problem.grads[0][:, rows][:, :, columns]]
    found = results("transport_plan", permuted, problem.settings, grads)
    for one, other in zip(found, (plan, slope), strict=True):
        torch.testing.assert_close(one, other[:, rows][:, :, columns], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("operator", ["sinkhorn", "transport_plan", "transport_align", "apply_plan"])
@pytest.mark.parametrize("size", [(3, 7, 6), (3, 33, 40)], ids=str)
def test_a_batch_gives_bitwise_what_its_items_give_alone(level: str, operator: str, size: tuple[int, int, int]) -> None:
    heads = {"heads": 2} if operator in ("transport_align", "apply_plan") else {}
    for changes in ({"mask": "ragged", "masses": "item"}, {"stops": True, "iterations": 12}):
        if operator == "apply_plan" and "stops" in changes:
            continue
        problem = example(operator, size, **changes, **heads)
        together = parity.evaluate(problem, problem.function)
        for item in range(3):
            one = {
                name: t if t is None or name == "reference" else t[item : item + 1]
                for name, t in problem.inputs.items()
            }
            grads = [grad[item : item + 1] for grad in problem.grads]
            alone = parity.evaluate(replace(problem, inputs=one, grads=grads), problem.function)
            for name, found in alone.items():
                if name != "gradient of reference":
                    assert torch.equal(found[0], together[name][item]), name


def test_scores_that_differ_by_constants_give_the_same_plan(implementation: Implementation) -> None:
    scores = torch.randn(2, 6, 5, dtype=F64)
    shifted = scores + 3 * torch.randn(2, 6, 1, dtype=F64)
    plan, other = transport_plan(scores, iterations=5), transport_plan(shifted, iterations=5)
    torch.testing.assert_close(other, plan, rtol=1e-11, atol=1e-14)


# What others compute, who update in another order: the same at convergence.

OTHERS = range(12)


def random_problem(number: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """scores (n, p), masses and epsilon."""
    random = torch.Generator().manual_seed(number)
    n, p = (int(torch.randint(2, 20, (), generator=random)) for _ in range(2))
    scores = torch.randn(n, p, generator=random, dtype=F64)
    a, b = (torch.rand(count, generator=random, dtype=F64) + 0.1 for count in (n, p))
    return scores, a / a.sum(), b / b.sum(), (0.5, 1.0, 2.0)[number % 3]


@pytest.mark.parametrize("number", OTHERS)
def test_pot_agrees(implementation: Implementation, number: int) -> None:
    ot = pytest.importorskip("ot")
    scores, a, b, epsilon = random_problem(number)
    expected = ot.sinkhorn(
        a.numpy(), b.numpy(), -scores.numpy(), epsilon, method="sinkhorn_log", numItermax=1000, stopThr=1e-12
    )
    found = transport_plan(scores[None], epsilon=epsilon, iterations=400, row_mass=a, column_mass=b)[0]
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("number", OTHERS)
def test_geomloss_agrees(implementation: Implementation, number: int) -> None:
    """It cools down to epsilon from the range of the costs, and gets there in its last iteration: here it starts there.

    Entropy it measures against the product of the masses, which only moves constants into the potentials.
    """
    geomloss = pytest.importorskip("geomloss.ot")
    scores, a, b, _ = random_problem(number)
    epsilon = float(scores.max() - scores.min())
    expected = geomloss.solve(-scores, reg=epsilon, a=a, b=b, max_iter=200).plan
    found = transport_plan(scores[None], epsilon=epsilon, iterations=100, row_mass=a, column_mass=b)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_pot_batched_agrees_after_any_number_of_iterations(implementation: Implementation) -> None:
    """Its batched solver updates in our order; so it is a rival in the benchmarks."""
    solve = pytest.importorskip("ot.batch").solve_batch
    scores = torch.randn(3, 7, 9, dtype=F64)
    for iterations in (1, 4):
        theirs = solve(-scores, 0.5, max_iter=iterations, tol=-1.0, method="log_sinkhorn", grad="autodiff").plan
        torch.testing.assert_close(transport_plan(scores, epsilon=0.5, iterations=iterations), theirs)


def test_the_loop_as_a_user_writes_it_agrees(implementation: Implementation) -> None:
    scores = torch.randn(3, 7, 9)
    found = transport_plan(scores, epsilon=0.5)
    assert compare(found, eager_plan(scores.double(), epsilon=0.5, iterations=20)).ok


def test_the_written_gradient_solves_the_equations_of_the_fixed_point() -> None:
    """Of the reference's solver, on plans that fall apart into parts that are not connected too."""
    for plan in (torch.rand(2, 5, 7, dtype=F64), torch.block_diag(*torch.rand(3, 2, 3, dtype=F64))[None]):
        alpha, beta = torch.randn(plan.shape[:2], dtype=F64), torch.randn(plan.shape[0], plan.shape[2], dtype=F64)
        phi = plan.sum(-1) * alpha + (plan @ beta[..., None])[..., 0]
        gamma = (plan.mT @ alpha[..., None])[..., 0] + plan.sum(-2) * beta
        found_alpha, found_beta = definition.solve(plan, phi, gamma)
        expected = plan * (alpha[..., None] + beta[:, None])
        torch.testing.assert_close(plan * (found_alpha[..., None] + found_beta[:, None]), expected)

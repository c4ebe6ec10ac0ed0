"""The edges of transport: |S| / epsilon far from 1, no mass, NaN where nothing looks, memory, threads, any shape."""

from __future__ import annotations

import importlib.util
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prosma_ops import apply_plan, backends, sinkhorn, transport_align, transport_plan
from prosma_ops.testing import Problem, compare, parity
from prosma_ops.testing.case import DTYPES
from prosma_ops.testing.layouts import LAYOUTS
from prosma_ops.testing.memory import guarded_memory
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.transport import MASSES, OPERATORS, eager_plan, example

F64 = torch.float64


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# How right it is, as |S| / epsilon grows.


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Of the entries that are not lost beside the largest."""
    large = expected > 1e-8 * expected.max()
    return float(((found.double() - expected).abs() / expected)[large].max())


PROMISED = [(m, e) for m in (1e-2, 1.0, 10.0, 1e2, 1e4) for e in (1e-4, 1e-2, 0.1, 1.0, 10.0) if m / e < 1.01e5]


@pytest.mark.parametrize(("magnitude", "epsilon"), PROMISED)
@pytest.mark.parametrize("zeros", [False, True], ids=["", "zero masses"])
def test_accuracy(implementation: Implementation, zeros: bool, magnitude: float, epsilon: float) -> None:
    """Up to |S| / epsilon = 1e5 within max(2e-5, twice the error of the loop in float32), relative to every entry."""
    scores = magnitude * (2 * torch.rand(2, 24, 19) - 1)
    row_mass, column_mass = torch.rand(2, 24, dtype=F64) + 0.1, torch.rand(19, dtype=F64) + 0.1
    if zeros:
        row_mass[:, ::5] = 0
        column_mass[3] = 0
    row_mass, column_mass = row_mass / row_mass.sum(dim=1, keepdim=True), column_mass / column_mass.sum()
    chosen: dict[str, Any] = {"epsilon": epsilon, "iterations": 12, "row_mass": row_mass, "column_mass": column_mass}
    found = transport_plan(scores, **chosen)
    expected = eager_plan(scores.double(), **chosen)
    single = eager_plan(scores, **(chosen | {"row_mass": row_mass.float(), "column_mass": column_mass.float()}))
    assert relative_error(found, expected) <= max(2e-5, 2 * relative_error(single, expected))
    assert not found[expected == 0].any()


FAR = [(1e4, 1e-4), (1e6, 1e-4), (1e4, 1e-8), (1.0, 1e-12), (1e10, 1e-10), (1e20, 1e-10), (1e30, 1.0), (1.0, 1e-30)]


@pytest.mark.parametrize(("magnitude", "epsilon"), FAR)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_far_out(implementation: Implementation, dtype: torch.dtype, magnitude: float, epsilon: float) -> None:
    """Finite, not negative, columns exact; and gradients that are not NaN."""
    scores = (magnitude * (2 * torch.rand(2, 9, 7) - 1)).to(dtype).requires_grad_()
    column_mass = torch.rand(7, dtype=F64)
    column_mass[2] = 0
    column_mass /= column_mass.sum()
    for iterations in (1, 10):
        plan = transport_plan(scores, epsilon=epsilon, iterations=iterations, column_mass=column_mass)
        assert plan.isfinite().all()
        assert (plan >= 0).all()
        torch.testing.assert_close(plan.double().sum(dim=1), column_mass.expand(2, 7), rtol=1e-5, atol=0)
        potentials = sinkhorn(scores, epsilon=epsilon, iterations=iterations, column_mass=column_mass)
        assert potentials.row.isfinite().all()
        assert (potentials.column.isfinite() == (column_mass > 0)).all()
        (slope,) = torch.autograd.grad(plan.sum() + potentials.row.sum(), scores)
        assert not slope.isnan().any()


@pytest.mark.parametrize("score", ["dot", "negative_squared_distance"])
@pytest.mark.parametrize("epsilon", [1e-4, 1e-2])
def test_tokens_far_out(implementation: Implementation, epsilon: float, score: str) -> None:
    tokens, reference = torch.randn(2, 9, 3, requires_grad=True), (3 * torch.randn(2, 7, 3)).requires_grad_()
    aligned = transport_align(tokens, reference, score=score, epsilon=epsilon)
    gradients = torch.autograd.grad(aligned.sum(), (tokens, reference))
    assert aligned.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    total = torch.einsum("bmpd->bmd", aligned)
    assert (total.abs() <= tokens.abs().amax(dim=1)[:, None] * 1.001).all()


@pytest.mark.parametrize("iterations", [5, 60])
def test_where_a_kernel_matrix_would_vanish(implementation: Implementation, iterations: int) -> None:
    """Rows whose every exp(S / epsilon) underflows, and potentials that travel far: absorption at work."""
    scores = torch.randn(1, 30, 20) + torch.linspace(-3000, 3000, 30)[:, None]
    scores += torch.linspace(500, -500, 20)
    chosen = {"epsilon": 0.1, "iterations": iterations}
    expected = eager_plan(scores.double(), **chosen)
    assert relative_error(transport_plan(scores, **chosen), expected) <= max(
        2e-5, 2 * relative_error(eager_plan(scores, **chosen), expected)
    )


# Nothing there.


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_empty_batch(implementation: Implementation, operator: str) -> None:
    problem = example(operator, (1, 5, 4), **({"heads": 2} if operator in OPERATORS[2:] else {}))
    inputs = {name: t if t is None or name == "reference" else t[:0].detach() for name, t in problem.inputs.items()}
    empty = replace(problem, inputs=inputs, grads=[grad[:0] for grad in problem.grads])
    for name, found in parity.evaluate(empty, problem.function).items():
        assert not found.any(), name
        if name.startswith("gradient of"):
            assert found.shape == inputs[name.removeprefix("gradient of ")].shape


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("size", [(3, 1, 9), (3, 9, 1), (3, 1, 1)], ids=str)
def test_one_row_and_one_column(implementation: Implementation, size: tuple[int, int, int], gradient: str) -> None:
    """The masses decide the plan alone, and no score has a gradient, but for rounding."""
    scores = torch.randn(size, requires_grad=True)
    plan = transport_plan(scores, gradient=gradient, iterations=3)
    torch.testing.assert_close(plan, torch.full(size, 1 / (size[1] * size[2])))
    (slope,) = torch.autograd.grad(plan, scores, torch.randn(size))
    torch.testing.assert_close(slope, torch.zeros(size), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_items_without_a_token(implementation: Implementation, gradient: str) -> None:
    """A plan of zeros, potentials of -inf, gradients of zero: no NaN, and none at the others."""
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1] = False
    tokens, reference = torch.randn(3, 6, 4, requires_grad=True), torch.randn(2, 5, 4, requires_grad=True)
    aligned, potentials = transport_align(
        tokens, reference, mask=mask, gradient=gradient, iterations=30, tolerance=1e-3, return_potentials=True
    )
    assert not aligned[1].any()
    assert (potentials.row[1] == -math.inf).all()
    assert (potentials.column[1] == -math.inf).all()
    back = apply_plan(tokens, reference, potentials, aligned, side="rows")
    assert not back[1].any()
    gradients = torch.autograd.grad(back.square().sum() + aligned.sum(), (tokens, reference))
    assert all(found.isfinite().all() for found in gradients)
    assert not gradients[0][1].any()
    assert gradients[0][0].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("operator", OPERATORS)
def test_what_takes_no_part_is_never_looked_at(implementation: Implementation, operator: str, value: float) -> None:
    heads = {"heads": 2} if operator in OPERATORS[2:] else {}
    problem = example(operator, (3, 8, 6), masses="zeros", mask="ragged", **heads)
    if operator == "apply_plan":
        rows = problem.inputs["row"][:, 0] != -math.inf
        columns = problem.inputs["column"][:, 0] != -math.inf
    else:
        rows = (problem.inputs["row_mass"] > 0) & problem.inputs["mask"]
        columns = problem.inputs["column_mass"] > 0
    spoiled = {name: None if t is None else t.clone() for name, t in problem.inputs.items()}
    for name, values in spoiled.items():
        if name == "scores":
            values[~(rows[:, :, None] & columns[:, None])] = value
        elif name in ("tokens", "values"):
            values[~rows] = value
        elif name == "reference":
            values[:, ~columns.any(dim=0)] = value
    grads = [grad.clone() for grad in problem.grads]
    if operator in ("sinkhorn", "transport_align"):
        for grad, taking_part in zip(grads[-2:], (rows, columns), strict=True):
            grad.masked_fill_(~(taking_part if grad.dim() == 2 else taking_part[:, None]), value)
    if operator == "transport_plan":
        grads[0].masked_fill_(~(rows[:, :, None] & columns[:, None]), value)
    clean = parity.evaluate(problem, problem.function)
    found = parity.evaluate(replace(problem, inputs=spoiled, grads=grads), problem.function)
    for name, expected in clean.items():
        assert torch.equal(found[name], expected), name


def test_values_of_supports_without_mass_are_never_looked_at(implementation: Implementation) -> None:
    problem = example("apply_plan", (3, 8, 6), masses="zeros", side="rows", heads=2)
    values = problem.inputs["values"].clone()
    values[problem.inputs["column"] == -math.inf] = math.nan
    assert values.isnan().any()
    clean = parity.evaluate(problem, problem.function)
    found = parity.evaluate(replace(problem, inputs=dict(problem.inputs) | {"values": values}), problem.function)
    for name, expected in clean.items():
        assert torch.equal(found[name], expected), name


def test_a_nan_stays_in_its_item(implementation: Implementation) -> None:
    scores = torch.randn(3, 6, 5)
    scores[1, 2, 3] = math.nan
    scores.requires_grad_()
    plan = transport_plan(scores)
    (slope,) = torch.autograd.grad(plan.square().sum(), scores)
    for found in (plan, slope):
        assert found[1].isnan().any()
        assert found[[0, 2]].isfinite().all()


def test_a_mask_that_hides_nothing_changes_nothing(implementation: Implementation) -> None:
    scores = torch.randn(2, 6, 5)
    found = transport_plan(scores, mask=torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(found, transport_plan(scores), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mass_dtype", DTYPES, ids=str)
def test_masses_of_any_float_dtype(implementation: Implementation, mass_dtype: torch.dtype) -> None:
    """Powers of two, the same in each."""
    scores = torch.randn(2, 8, 4)
    row_mass, column_mass = torch.full((8,), 1 / 8, dtype=mass_dtype), torch.full((2, 4), 1 / 4, dtype=mass_dtype)
    assert torch.equal(transport_plan(scores, row_mass=row_mass, column_mass=column_mass), transport_plan(scores))


def test_masses_of_any_strides(implementation: Implementation) -> None:
    problem = example("transport_plan", (3, 8, 6), masses="item", mask="ragged")
    expected = problem.function(**problem.inputs, **problem.settings)
    strided = {name: problem.inputs[name].mT.contiguous().mT for name in MASSES}
    assert torch.equal(problem.function(**(dict(problem.inputs) | strided), **problem.settings), expected)
    wide = {name: problem.inputs[name].repeat_interleave(3, dim=1)[:, ::3] for name in MASSES}
    assert torch.equal(problem.function(**(dict(problem.inputs) | wide), **problem.settings), expected)


# Memory and threads.


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("size", [(2, 5, 33), (1, 19, 7)], ids=str)
def test_every_element_is_written_and_nothing_beside(
    implementation: Implementation, size: tuple[int, int, int], operator: str, shift: int
) -> None:
    for dtype in DTYPES:
        problem = example(operator, size, dtype, "sliced", **({"heads": 2} if operator in OPERATORS[2:] else {}))
        with guarded_memory(shift) as guard:
            found = parity.evaluate(problem, problem.function)
        assert guard.damaged() == 0
        assert all(tensor.isfinite().all() for tensor in found.values())


def awkward(like: Tensor) -> dict[str, Tensor]:
    """Gradients as they arrive: of sums, of slices, transposed."""
    size = like.shape
    larger = torch.randn([2 * n for n in size]).to(like.dtype)
    return {
        "of a sum": torch.tensor(0.5, dtype=like.dtype).expand(size),
        "of a sum over items": torch.randn(size[1:]).to(like.dtype).expand(size),
        "of a sum over the last axis": torch.randn(*size[:-1], 1).to(like.dtype).expand(size),
        "strided in every dimension": larger[tuple(slice(None, None, 2) for _ in size)],
        "cropped": larger[tuple(slice(n - 1, 2 * n - 1) for n in size)],
        "reversed dimensions": torch.randn(size[::-1]).to(like.dtype).permute(*reversed(range(len(size)))),
    }


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_incoming_gradient(implementation: Implementation, dtype: torch.dtype, operator: str) -> None:
    problem = example(operator, (2, 9, 7), dtype, **({"heads": 2} if operator in OPERATORS[2:] else {}))
    for name in awkward(problem.grads[0]):
        grads = [awkward(grad)[name] for grad in problem.grads]
        found = parity.evaluate(replace(problem, grads=grads), problem.function)
        plain = parity.evaluate(replace(problem, grads=[grad.contiguous() for grad in grads]), problem.function)
        for key, expected in plain.items():
            torch.testing.assert_close(found[key], expected, msg=lambda m, n=name, k=key: f"{n}, {k}: {m}")


@pytest.mark.parametrize("operator", OPERATORS)
def test_results_are_contiguous_whatever_the_layout(implementation: Implementation, operator: str) -> None:
    for layout in LAYOUTS:
        problem = example(operator, (2, 5, 7), layout=layout, **({"heads": 2} if operator in OPERATORS[2:] else {}))
        assert all(found.is_contiguous() for found in parity.evaluate(problem, problem.function).values())


SIZES = [(4, 61, 83), (1, 203, 150), (9, 17, 19)]


def with_threads(threads: int, problem: Problem) -> dict[str, Tensor | None]:
    torch.set_num_threads(threads)
    return parity.evaluate(problem, problem.function)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_number_of_threads_changes_no_bit(level: str, size: tuple[int, int, int], operator: str) -> None:
    for changes in ({}, {"mask": "ragged", "stops": True, "iterations": 12}, {"gradient": "implicit"}):
        if (operator == "apply_plan" and changes) or (operator == "sinkhorn" and "gradient" in changes):
            continue
        problem = example(operator, size, features=9, **changes)
        one = with_threads(1, problem)
        for threads in (2, 3, 2):
            for name, found in with_threads(threads, problem).items():
                assert torch.equal(found, one[name]), f"{name} with {threads} threads"


@pytest.mark.parametrize("operator", OPERATORS)
def test_under_deterministic_algorithms(backend: str, operator: str) -> None:
    problem = example(operator, (2, 33, 35))
    torch.use_deterministic_algorithms(True)
    try:
        found = [with_threads(2, problem) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# Half precision, subclasses, random problems.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_no_number(backend: str, dtype: torch.dtype) -> None:
    for operator in OPERATORS:
        changes = {"heads": 2, "parameters": torch.float32} if operator in OPERATORS[2:] else {}
        problem = example(operator, (2, 7, 6), dtype, **changes)
        plain = parity.evaluate(problem, problem.function)
        with torch.autocast("cpu", dtype=dtype):
            found = parity.evaluate(problem, problem.function)
        for name, expected in plain.items():
            assert found[name].dtype is expected.dtype
            assert torch.equal(found[name], expected), name


def test_after_an_autocast_layer(backend: str) -> None:
    """A linear layer makes the tokens bfloat16; the reference and the potentials stay float32."""
    layer, reference = torch.nn.Linear(6, 4), torch.randn(5, 4, requires_grad=True)
    inputs = torch.randn(2, 9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = layer(inputs)
        aligned, potentials = transport_align(tokens, reference, return_potentials=True)
        back = apply_plan(tokens, reference, potentials, aligned, side="rows")
    back.float().square().sum().backward()
    assert (tokens.dtype, aligned.dtype, potentials.row.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    for parameter in (layer.weight, reference):
        assert parameter.grad.dtype is torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


class Annotated(Tensor):
    """A subclass that carries nothing but its type, as MetaTensor carries more."""


@pytest.mark.parametrize("operator", OPERATORS)
def test_subclasses_are_unwrapped(backend: str, operator: str) -> None:
    problem = example(operator, (2, 7, 6), **({"masses": "item", "mask": "ragged"} if operator != "apply_plan" else {}))
    dressed = {name: None if t is None else t.as_subclass(Annotated) for name, t in problem.inputs.items()}
    plain = parity.name_outputs(problem.function(**problem.inputs, **problem.settings))
    for name, found in parity.name_outputs(problem.function(**dressed, **problem.settings)).items():
        assert type(found) is Tensor
        assert torch.equal(found, plain[name])


@pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="MONAI is not installed")
def test_monai_metatensor(backend: str) -> None:
    from monai.data import MetaTensor

    tokens, reference = torch.randn(2, 7, 4), torch.randn(5, 4)
    found = transport_align(MetaTensor(tokens), reference)
    assert type(found) is Tensor
    assert torch.equal(found, transport_align(tokens, reference))


RANDOM = settings(
    deadline=None,
    max_examples=int(os.environ.get("PROSMA_EXAMPLES", "25")),
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Of three rows and columns at least: of one, gradients are 0 but for rounding, with no scale to be judged by."""
    operator = draw(st.sampled_from(OPERATORS))
    changes = {
        "size": (draw(st.integers(1, 4)), draw(st.integers(3, 40)), draw(st.integers(3, 40))),
        "features": draw(st.integers(1, 20)),
        "heads": draw(st.integers(0, 3)),
        "epsilon": draw(st.sampled_from([0.3, 1.0, 4.0])),
        "iterations": draw(st.integers(1, 9)),
        "masses": draw(st.sampled_from(["", "shared", "item", "zeros"])),
        "mask": draw(st.sampled_from(["", "ragged"])),
        "score": draw(st.sampled_from(["dot", "negative_squared_distance"])),
        "side": draw(st.sampled_from(["columns", "rows"])),
        "layout": draw(st.sampled_from(LAYOUTS)),
        # float64 is left to the suites: in small random problems its reference rounds as much as what it judges.
        "dtype": draw(st.sampled_from([dtype for dtype in DTYPES if dtype is not torch.float64])),
    }
    return operator, changes


@given(drawn=problems(), shift=st.integers(0, 3))
@RANDOM
def test_random_problems(implementation: Implementation, drawn: tuple[str, dict[str, Any]], shift: int) -> None:
    operator, changes = drawn
    problem = example(operator, **changes)
    expected = parity.expectation(problem)
    with guarded_memory(shift) as guard:
        found = parity.evaluate(problem, problem.function)
    assert guard.damaged() == 0
    for name, reference in expected.reference.items():
        verdict = compare(found[name], reference, expected.eager(name), parity.expected_dtype(problem, name))
        # Random problems show wrong places, not rounding: a gradient that cancels to 0 has no scale.
        loose = torch.finfo(found[name].dtype).eps ** 0.5 * max(1.0, float(reference.abs().nan_to_num(0, 0, 0).max()))
        assert verdict.ok or verdict.error <= loose, f"{name}: {verdict.reason}"


def test_the_automatic_choice_is_told(native_library: object) -> None:
    found = backends.explain("transport_plan", torch.zeros(1, 2, 3))
    assert found.chosen == "cpu"
    assert set(found) == set(backends.BACKENDS)


def test_without_the_functions_it_needs_a_library_is_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        cuda = False

    monkeypatch.setattr(backends.native, "load", lambda: backends.native.Library(Old, "compiled long ago"))
    for operator in OPERATORS:
        verdict = backends.explain(operator, torch.zeros(1, 2, 3))["cpu"]
        assert not verdict.can_run
        assert "another version" in verdict.reason


def test_one_call_after_another_in_threads(backend: str) -> None:
    """Calls from several Python threads share no scratch memory."""
    chosen = [example("transport_align", (2, 11 + i, 7), heads=2) for i in range(4)]
    expected = [parity.evaluate(problem, problem.function) for problem in chosen]
    wrong: list[str] = []

    def work(first: int, run: Callable[..., Any] = parity.evaluate) -> None:
        for number in range(20):
            index = (first + number) % 4
            for name, value in run(chosen[index], chosen[index].function).items():
                if not torch.equal(value, expected[index][name]):
                    wrong.append(name)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong

"""The Triton kernels of transport under the interpreter, each way through them, against the float64 reference.

Shapes are tiny, and the tiles smaller still, so that an item has several in each direction. Every way is taken in a
child process, where TRITON_INTERPRET is set before Triton is imported.
"""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# What decides about the way: tiles of 4 rows in one launch; no item in one launch; scores of one item at a time; none.
WAYS = {
    "one launch": {"WHOLE_NUMBERS": 128, "WHOLE_NUMBERS_EXACT": 128},
    "one item at a time": {
        "WHOLE_NUMBERS": 128,
        "WHOLE_NUMBERS_EXACT": 128,
        "MOST_SCRATCH": 2 * (17 * 9 + 2 * (3 * 17 + 9)) * 8,
    },
    "halves": {"LARGEST_WHOLE": 0},
    "recomputed": {"LARGEST_WHOLE": 0, "MOST_SCRATCH": 0},
}
SETTING = """
    import sys

    import torch

    from prosma_ops.reference import transport as reference
    from prosma_ops.triton_kernels import transport as kernels
    from prosma_ops.triton_kernels import transport_problem

    torch.manual_seed(0)
    torch.set_num_threads(1)
    transport_problem.SIDE = 16
    for name, value in %r.items():
        setattr(transport_problem, name, value)
    FLOOR = {torch.float64: 1e-9, torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


    def drawn(*shape, dtype=torch.float64):
        return torch.randn(shape, dtype=torch.float64).mul(0.5).to(dtype)


    def exact(values):
        return [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values]


    def compare(function, *arguments):
        # Within the accuracy of the dtype, with the same infinities, and no NaN; the reference sees float64.
        found = getattr(kernels, function)(*arguments)
        expected = getattr(reference, function)(*exact(arguments))
        single = isinstance(found, torch.Tensor)
        for i, (x, y) in enumerate(zip(*([found], [expected]) if single else (found, expected), strict=True)):
            assert x.shape == y.shape, (function, i, x.shape, y.shape)
            assert torch.equal(x.isinf(), y.isinf()) and not x.isnan().any(), (function, i)
            x, y = (t.double().nan_to_num(neginf=0.0) for t in (x, y))
            difference = ((x - y).norm() / y.norm().clamp(min=1e-30)).item()
            dtype = found.dtype if single else found[i].dtype
            dtype = dtype if dtype in FLOOR else torch.float64
            floor = FLOOR[torch.float32 if dtype is torch.float64 and arguments_are_less(arguments) else dtype]
            assert difference < floor, (function, i, difference)
        return expected


    def arguments_are_less(arguments):
        # Potentials in float64 that were made of float32 scores.
        return any(isinstance(a, torch.Tensor) and a.dtype.itemsize < 8 and a.is_floating_point() for a in arguments)


    def some_masses(batch, rows, columns):
        # Zeros in the first item, no row in the second, no column in the third.
        masses = []
        for dead, size in ((1, rows), (2, columns)):
            mass = torch.rand(batch, size, dtype=torch.float64) + 0.1
            mass[0, 1] = 0
            mass[dead:dead + 1] = 0
            masses.append(mass / mass.sum(dim=1, keepdim=True).clamp(min=1e-9))
        return masses
"""
PLAN = """
    for dtype, epsilon, scale, tolerance in CASES:
        batch, n, p, iterations = 3, 17, 9, 2
        a, b = some_masses(batch, n, p)
        scores = (drawn(n, batch, p) * scale).to(dtype).transpose(0, 1)
        scores[0, 1], scores[0, :, 1] = float("nan"), float("inf")
        incoming = drawn(1, n, p, dtype=dtype).expand(batch, -1, -1)
        grads = [g.to(torch.promote_types(dtype, torch.float32)) for g in (drawn(batch, n), drawn(batch, p))]
        found = compare("plan_forward", scores, a, b, epsilon, iterations, tolerance, iterations, True)
        saved = (scores, a, b, found[3], found[4], epsilon)
        compare("plan_backward", incoming, *grads, *saved, True)
        if epsilon == 0.5:
            # A gradient of the potentials alone has no solution: it has to be one of the plan.
            saved = (scores, a, b, found[3][:, -1:], found[4], epsilon)
            compare("plan_backward", incoming, None, None, *saved, False)
    print("done")
"""
# dtype, epsilon, the scores' scale, tolerance
CASES = "[(torch.float32, 0.5, 1.0, 0.2), (torch.float64, 0.02, 3.0, 0.0)]"
ALIGN = """
    for dtype, score, unrolled in CASES:
        batch, heads, n, p, depth, iterations = 2, 2, 17, 9, 17, 2
        a, b = some_masses(batch, n, p)
        tokens, supports = drawn(batch, n, depth, dtype=dtype), drawn(heads, depth, p, dtype=dtype).mT
        tokens[0, 1], supports[:, 1:1] = float("nan"), 0
        incoming = drawn(1, 1, p, depth, dtype=dtype).expand(batch, heads, -1, -1)
        keep = iterations if unrolled else 1
        found = compare("align_forward", tokens, supports, a, b, score, 1.0, iterations, 0.0, keep)
        arguments = (tokens, supports, a, b, found[3], found[4], score, 1.0, unrolled, [True, True])
        compare("align_backward", incoming, None, None, *arguments)
    print("done")
"""


@pytest.mark.parametrize("way", ["one launch", pytest.param("halves", marks=pytest.mark.slow)])
def test_plan(python: Run, way: str) -> None:
    cases = f"    CASES = {CASES}\n"
    done = python(SETTING % (WAYS[way],) + cases + PLAN, TRITON_INTERPRET="1")
    assert done.stdout == "done\n", done.stdout + done.stderr


@pytest.mark.parametrize("way", ["one launch", *(pytest.param(way, marks=pytest.mark.slow) for way in [*WAYS][1:])])
def test_align(python: Run, way: str) -> None:
    cases = "    CASES = [(torch.float32, 1, True), (torch.float64, 0, False)]\n"
    done = python(SETTING % (WAYS[way],) + cases + ALIGN, TRITON_INTERPRET="1")
    assert done.stdout == "done\n", done.stdout + done.stderr


@pytest.mark.slow
def test_half_tokens(python: Run) -> None:
    cases = "    CASES = [(torch.bfloat16, 0, True), (torch.float16, 1, True)]\n"
    done = python(SETTING % (WAYS["one launch"],) + cases + ALIGN, TRITON_INTERPRET="1")
    assert done.stdout == "done\n", done.stdout + done.stderr


def test_apply(python: Run) -> None:
    code = """
    for dtype, score, columns_side in ((torch.float32, 0, True), (torch.float64, 1, False), (torch.bfloat16, 1, True)):
        batch, heads, n, p, depth, width = 2, 2, 17, 9, 17, 9
        a, b = some_masses(batch, n, p)
        tokens, supports = drawn(batch, n, depth, dtype=dtype), drawn(heads, p, depth, dtype=dtype)
        found = reference.align_forward(tokens.double(), supports.double(), a, b, score, 1.0, 3, 0.0, 1)
        potentials = [part.to(torch.promote_types(dtype, torch.float32)) for part in found[1:3]]
        tokens[0, 1] = float("nan")
        rows, columns = drawn(batch, n, width, dtype=dtype), drawn(batch, heads, p, width, dtype=dtype)
        values, incoming = (rows, columns) if columns_side else (columns, rows)
        setting = (columns_side, score, 1.0)
        compare("apply_forward", tokens, supports, *potentials, values, *setting)
        compare("apply_backward", incoming, tokens, supports, *potentials, values, *setting, [True] * 5)
    print("done")
    """
    done = python(SETTING % (WAYS["one launch"],) + code, TRITON_INTERPRET="1")
    assert done.stdout == "done\n", done.stdout + done.stderr


def test_extremes_are_finite_and_columns_exact(python: Run) -> None:
    """Where float64 potentials are no better than noise, and where whole columns underflow in the first sweep."""
    code = """
    for scale, epsilon in ((1e4, 1e-4), (1e30, 1.0), (10.0, 1e-4)):
        a, b = some_masses(1, 9, 7)
        scores = (drawn(1, 9, 7) * scale).float()
        plan, row, column, history, count = kernels.plan_forward(scores, a, b, epsilon, 2, 0.0, 2, True)
        assert plan.isfinite().all() and (plan >= 0).all() and history.isfinite().all()
        assert torch.allclose(plan.double().sum(dim=1), b, rtol=1e-5, atol=0.0), (scale, epsilon)
        for unrolled in (True, False):
            saved = history if unrolled else history[:, -1:]
            incoming = drawn(1, 9, 7).float()
            slope = kernels.plan_backward(incoming, None, None, scores, a, b, saved, count, epsilon, unrolled)
            assert slope.isfinite().all(), (scale, epsilon, unrolled)
    print("done")
    """
    done = python(SETTING % (WAYS["one launch"],) + code, TRITON_INTERPRET="1")
    assert done.stdout == "done\n", done.stdout + done.stderr


def test_an_item_is_what_it_is_alone(python: Run) -> None:
    code = """
    a, b = some_masses(2, 9, 7)
    scores = drawn(2, 9, 7).float()
    together = kernels.plan_forward(scores, a, b, 0.1, 4, 0.1, 4, True)
    for i in range(2):
        alone = kernels.plan_forward(scores[i:i + 1], a[i : i + 1], b[i : i + 1], 0.1, 4, 0.1, 4, True)
        assert all(torch.equal(x[i:i + 1], y) for x, y in zip(together, alone, strict=True))
    print("done")
    """
    for way in ("one launch", "halves"):
        done = python(SETTING % (WAYS[way],) + code, TRITON_INTERPRET="1")
        assert done.stdout == "done\n", done.stdout + done.stderr


@pytest.mark.parametrize("way", ["one launch", pytest.param("halves", marks=pytest.mark.slow)])
def test_parts_that_are_hardly_connected(python: Run, way: str) -> None:
    """What moves potentials between them passes through the little that they share, or has no gradient."""
    code = """
    import math

    # dtype, the share of the mass that moves between the parts, the error allowed
    for dtype, share, allowed in ((torch.float32, 1e-6, 3e-7), (torch.float64, 1e-12, 3e-5)):
        scores = torch.full((1, 4, 4), math.log(share), dtype=torch.float64)
        scores[:, :2, :2] = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64)
        scores[:, 2:, 2:] = torch.tensor([[-0.3, 0.2], [0.2, 0.5]], dtype=torch.float64)
        scores, mass = scores.to(dtype), torch.full((1, 4), 0.25, dtype=torch.float64)
        found = reference.plan_forward(scores.double(), mass, mass, 1.0, 50, 0.0, 1, False)
        of_rows = torch.tensor([[1.0, 0.5, -0.25, 0.0]], dtype=torch.float64)
        of_columns = torch.tensor([[0.0, 0.25, 0.5, 0.5]], dtype=torch.float64)
        saved = (mass, mass, found[3], found[4], 1.0, False)
        slope = kernels.plan_backward(None, of_rows.to(dtype), of_columns.to(dtype), scores, *saved).double()
        exact = reference.plan_backward(None, of_rows, of_columns, scores.double(), *saved)
        assert (slope - exact).abs().max() < allowed, (dtype, share, slope - exact)
        through = float(slope[0, :2, 2:].sum() - slope[0, 2:, :2].sum())
        assert abs(through - (-1.25 if share > 1e-9 else 0.0)) < 1e-4, (dtype, share, through)
    print("done")
    """
    done = python(SETTING % (WAYS[way],) + code, TRITON_INTERPRET="1")
    assert done.stdout == "done\n", done.stdout + done.stderr

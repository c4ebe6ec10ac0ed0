"""Random shapes, kernels, dilations, layouts and dtypes against the float64 reference."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prosma_ops import soft_threshold
from prosma_ops.testing import compare, parity
from prosma_ops.testing.case import DTYPES
from prosma_ops.testing.layouts import LAYOUTS
from prosma_ops.testing.memory import guarded_memory
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.proximal_gate import OPTIONAL, example

# The same examples everywhere in CI; new ones at every run elsewhere.
RANDOM = settings(
    deadline=None,
    max_examples=int(os.environ.get("PROSMA_EXAMPLES", "60")),
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def gates(draw: st.DrawFn) -> dict[str, object]:
    """Everything on a grid on which float32 sums are exact: a single sum may cancel, and has no scale then."""
    spatial = draw(st.integers(2, 3))
    largest = 40 if spatial == 2 else 11
    kernels = draw(st.integers(1, 4))
    size = (draw(st.integers(1, 3)), draw(st.integers(1, 20)), *(draw(st.integers(1, largest)) for _ in range(spatial)))
    while torch.Size(size).numel() > 12000:
        size = (*size[:2], *(max(1, n // 2) for n in size[2:]))
    return {
        "size": size,
        "dilations": tuple(draw(st.integers(1, 12)) for _ in range(kernels)),
        "kernel_size": draw(st.sampled_from([1, 3, 3, 3, 5, 7] if spatial == 2 else [1, 3, 3, 5])),
        "activation": draw(st.sampled_from(["identity", "relu"])),
        "missing": tuple(name for name in OPTIONAL if draw(st.booleans())),
        "negative": draw(st.booleans()),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "dtype": draw(st.sampled_from(DTYPES)),
    }


@given(gate=gates(), shift=st.integers(0, 3))
@RANDOM
def test_proximal_gate(implementation: Implementation, gate: dict[str, object], shift: int) -> None:
    problem = example(drawn="exact", **gate)
    expected = parity.expectation(problem)
    with guarded_memory(shift) as guard:
        found = parity.evaluate(problem, problem.function)
    assert guard.damaged() == 0
    for name, reference in expected.reference.items():
        verdict = compare(found[name], reference, expected.eager(name), parity.expected_dtype(problem, name))
        assert verdict.ok, f"{name}: {verdict.reason}"


@given(
    size=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    dtype=st.sampled_from(DTYPES),
    permutation=st.permutations(range(5)),
    step=st.integers(1, 3),
)
@RANDOM
def test_soft_threshold_of_any_strides(
    implementation: Implementation, size: list[int], dtype: torch.dtype, permutation: list[int], step: int
) -> None:
    order = [axis for axis in permutation if axis < len(size)]
    stored = torch.randn([size[axis] * step for axis in order])[tuple(slice(None, None, step) for _ in order)]
    x = stored.permute(*(order.index(axis) for axis in range(len(size)))).to(dtype)
    threshold = torch.rand(size[1])
    found = soft_threshold(x, threshold)
    exact = x.double().sign() * (x.double().abs() - threshold.double().view(1, -1, *[1] * (len(size) - 2))).clamp(min=0)
    assert found.shape == x.shape
    assert compare(found, exact).ok


@pytest.mark.slow
@given(gate=gates(), threads=st.integers(1, 3))
@RANDOM
def test_threads_change_no_bit(level: str, gate: dict[str, object], threads: int) -> None:
    size = (2, 9, 61, 67) if len(gate["size"]) == 4 else (1, 9, 13, 17, 23)
    layout = "contiguous" if gate["layout"] == "expanded" else gate["layout"]
    problem = example(drawn="normal", **(gate | {"size": size, "layout": layout}))
    torch.set_num_threads(1)
    one = parity.evaluate(problem, problem.function)
    torch.set_num_threads(threads)
    other = parity.evaluate(problem, problem.function)
    assert all(torch.equal(one[name], other[name]) for name in one)

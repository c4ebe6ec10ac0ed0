"""The operators compute what they are defined to: by loops over pixels, and every implementation by the cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from prosma_ops import proximal_gate, reference, soft_threshold, testing
from prosma_ops.reference import proximal_gate as definition
from prosma_ops.testing import parity
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.proximal_gate import example

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "identity": lambda u: u,
    "tanh": math.tanh,
    "relu": lambda u: max(u, 0.0),
}


def gate_by_loops(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: tuple[int, ...],
    activation: str,
) -> Tensor:
    """One output at a time, from the formula, in Python's floats."""
    q, w = field.numpy(), weight.numpy()
    y = np.zeros(q.shape)
    reach = w.shape[-1] // 2
    for b, c, *place in np.ndindex(*q.shape):
        z = 0.0 if bias is None else float(bias[c])
        for m, dilation in enumerate(dilations):
            for tap in itertools.product(range(-reach, reach + 1), repeat=len(place)):
                source = [p + dilation * offset for p, offset in zip(place, tap, strict=True)]
                if all(0 <= s < size for s, size in zip(source, q.shape[2:], strict=True)):
                    z += q[(b, c, *source)] * w[(m, c, *(offset + reach for offset in tap))]
        u = math.copysign(max(abs(z) - max(float(threshold[c]), 0.0), 0.0), z)
        factor = 1.0 if skip is None else float(skip[(b, c, *place)])
        gate = 1.0 if channel_gate is None else float(channel_gate[b, c])
        y[(b, c, *place)] = factor * ACTIVATIONS[activation](u) * gate
    return torch.from_numpy(y)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("missing", [(), ("skip",), ("channel_gate",), ("bias",), ("skip", "channel_gate", "bias")])
def test_it_is_its_definition_in_2d(implementation: Implementation, activation: str, missing: tuple[str, ...]) -> None:
    problem = example((2, 2, 5, 4), torch.float64, activation=activation, missing=missing)
    expected = gate_by_loops(*problem.inputs.values(), **problem.settings)
    torch.testing.assert_close(problem.function(**problem.inputs, **problem.settings), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("size", "kernel_size", "dilations"),
    [((1, 2, 3, 4, 5), 3, (1, 2, 3)), ((1, 1, 6, 3, 2), 5, (1, 2)), ((1, 2, 2, 2, 2), 1, (3,))],
)
def test_it_is_its_definition_in_3d(
    implementation: Implementation, size: tuple[int, ...], kernel_size: int, dilations: tuple[int, ...]
) -> None:
    problem = example(size, torch.float64, kernel_size=kernel_size, dilations=dilations, activation="tanh")
    expected = gate_by_loops(*problem.inputs.values(), **problem.settings)
    torch.testing.assert_close(problem.function(**problem.inputs, **problem.settings), expected, rtol=1e-14, atol=1e-14)


def test_soft_threshold_is_its_definition(implementation: Implementation) -> None:
    x = torch.tensor([[-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]]).T[:, None]
    expected = torch.tensor([[-2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]]).T[:, None]
    assert torch.equal(soft_threshold(x, torch.tensor([1.0])), expected)
    assert torch.equal(soft_threshold(x, torch.tensor([-1.0])), x)


@pytest.mark.parametrize("operator", parity.operators())
def test_every_implementation_agrees_with_float64(
    implementation: Implementation, operator: str, dtype: torch.dtype, cases: Callable
) -> None:
    """Forward and every gradient of every case, in memory that shows unwritten elements and stray writes."""
    records = []
    for case, problem, expected in cases(operator, "full", dtype):
        records += parity.judge(case, problem, expected, implementation)
    wrong = [f"{r.case}, {r.layout}: {r.tensor}: {r.reason}" for r in records if not r.ok]
    assert not wrong, "\n".join(wrong)
    assert len(records) >= 50


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_round_once(implementation: Implementation, dtype: torch.dtype) -> None:
    """float32 inside: each element is the float64 result rounded, give or take the rounding of float32 before that."""
    problem = example((2, 3, 17, 19), dtype, activation="tanh")
    exact = parity.evaluate(problem, problem.definition, lambda tensor: tensor.double())
    found = parity.evaluate(problem, problem.function)
    unit = torch.finfo(dtype).eps / 2
    for name, expected in exact.items():
        allowed = 1.01 * unit * expected.abs() + 64 * torch.finfo(torch.float32).eps * testing.tolerance.scale(expected)
        assert ((found[name].double() - expected).abs() <= allowed).all(), name


def test_the_written_gradient_is_that_of_autograd() -> None:
    """The reference's gradient formulas against autograd through the reference's forward, to float64 rounding."""
    for activation, size in itertools.product(ACTIVATIONS, [(2, 3, 7, 6), (1, 2, 4, 5, 3)]):
        problem = example(size, torch.float64, activation=activation, negative=True)
        grad = problem.grads[0]
        written = definition.proximal_gate_backward(grad, *problem.inputs.values(), **problem.settings)
        found = parity.evaluate(problem, problem.definition)
        for name, gradient in zip(problem.inputs, written, strict=True):
            torch.testing.assert_close(gradient, found[f"gradient of {name}"], rtol=1e-12, atol=1e-12)


def test_the_result_is_zero_where_the_response_is_below_the_threshold(implementation: Implementation) -> None:
    problem = example((2, 3, 9, 8), torch.float32)
    inputs = dict(problem.inputs)
    z = definition.convolve(inputs["field"], inputs["weight"], inputs["bias"], problem.settings["dilations"])
    silent = z.abs() <= inputs["threshold"].view(1, -1, 1, 1)
    y = proximal_gate(**inputs, **problem.settings)
    assert (y[silent] == 0).all()
    assert (y[~silent] != 0).all()
    assert 0.2 < silent.float().mean() < 0.9


def test_the_reference_is_public() -> None:
    assert callable(reference.proximal_gate.proximal_gate)

"""First and second derivatives are right, by finite differences; so a gradient penalty is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from prosma_ops import proximal_gate, soft_threshold
from prosma_ops.testing import Problem
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.proximal_gate import OPTIONAL, eager, example

SHAPES = [
    pytest.param({"size": (2, 2, 4, 3), "dilations": (1, 2)}, id="2-D"),
    pytest.param({"size": (1, 2, 3, 2, 3), "dilations": (1, 2)}, id="3-D"),
    pytest.param({"size": (2, 2, 3, 4), "dilations": (2,), "missing": OPTIONAL}, id="nothing optional"),
]


def call(problem: Problem, *tensors: Tensor) -> Tensor:
    given = [name for name, tensor in problem.inputs.items() if tensor is not None]
    return proximal_gate(**dict(zip(given, tensors, strict=True)), **problem.settings)


def leaves(problem: Problem) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in problem.inputs.values() if tensor is not None]


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_first_derivative(implementation: Implementation, shape: dict, activation: str) -> None:
    problem = example(dtype=torch.float64, activation=activation, drawn="normal", **shape)
    assert gradcheck(lambda *tensors: call(problem, *tensors), leaves(problem))


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_second_derivative(backend: str, shape: dict, activation: str) -> None:
    problem = example(dtype=torch.float64, activation=activation, drawn="normal", **shape)
    assert gradgradcheck(lambda *tensors: call(problem, *tensors), leaves(problem))


@pytest.mark.parametrize("size", [(4, 3), (2, 3, 4), (2, 2, 3, 4), (1, 2, 2, 3, 2)])
def test_soft_threshold(implementation: Implementation, size: tuple[int, ...]) -> None:
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    threshold = torch.full((size[1],), 0.3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(soft_threshold, (x, threshold))
    assert gradgradcheck(soft_threshold, (x, threshold))


def penalty(function: object, problem: Problem) -> list[Tensor]:
    """The gradients of |dy/dfield|^2, as a Wasserstein critic is trained with."""
    inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.inputs.items()}
    y = function(**inputs, **problem.settings)  # type: ignore[operator]
    (slope,) = torch.autograd.grad(y.square().sum(), inputs["field"], create_graph=True)
    return list(torch.autograd.grad(slope.square().sum(), list(inputs.values()), allow_unused=True))


def test_gradient_penalty(backend: str) -> None:
    problem = example((2, 3, 6, 5), torch.float64, activation="tanh", drawn="normal")
    for found, expected in zip(penalty(proximal_gate, problem), penalty(eager, problem), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_third_derivative_is_right(backend: str) -> None:
    x = torch.tensor([[0.9, -1.7]], dtype=torch.float64)[..., None, None].requires_grad_()
    weight, threshold = torch.ones(1, 2, 1, 1, dtype=torch.float64), torch.full((2,), 0.2, dtype=torch.float64)
    y = proximal_gate(x, weight, threshold, dilations=(1,), activation="tanh")
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    u = x.detach().abs() - 0.2
    expected = (1 - u.tanh() ** 2) * (6 * u.tanh() ** 2 - 2)
    torch.testing.assert_close(y.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wanted", ["field", "weight", "threshold", "skip", "channel_gate", "bias"])
def test_one_gradient_alone_is_the_same_as_among_all(implementation: Implementation, wanted: str) -> None:
    problem = example((2, 3, 7, 9), torch.float32, activation="tanh")
    every = {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.inputs.items()}
    proximal_gate(**every, **problem.settings).backward(problem.grads[0])
    alone = {name: tensor.detach().clone() for name, tensor in problem.inputs.items()}
    alone[wanted].requires_grad_()
    proximal_gate(**alone, **problem.settings).backward(problem.grads[0])
    assert torch.equal(alone[wanted].grad, every[wanted].grad)
    assert all(tensor.grad is None for name, tensor in alone.items() if name != wanted)


@pytest.mark.parametrize("z", [0.5, -0.5, 0.0])
def test_at_the_threshold_and_at_zero_the_gradient_is_zero(implementation: Implementation, z: float) -> None:
    field = torch.full((1, 1, 1, 1), z, requires_grad=True)
    threshold = torch.tensor([abs(z)], requires_grad=True)
    y = proximal_gate(field, torch.ones(1, 1, 1, 1), threshold, dilations=(1,))
    y.sum().backward()
    assert y.item() == 0
    assert field.grad.item() == 0
    assert threshold.grad.item() == 0


def test_a_negative_threshold_counts_as_zero_and_has_no_gradient(implementation: Implementation) -> None:
    field = torch.randn(2, 2, 4, 5, requires_grad=True)
    threshold = torch.tensor([-0.5, 0.0], requires_grad=True)
    y = proximal_gate(field, torch.ones(1, 2, 1, 1), threshold, dilations=(1,))
    y.sum().backward()
    assert torch.equal(y, field)
    assert threshold.grad[0] == 0
    assert threshold.grad[1] == -field.detach()[:, 1].sign().sum()

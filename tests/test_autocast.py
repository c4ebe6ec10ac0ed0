"""Under autocast: half-precision fields beside float32 parameters, each gradient in its input's dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prosma_ops import proximal_gate, soft_threshold
from prosma_ops.testing.proximal_gate import example

HALF = (torch.bfloat16, torch.float16)


def gradients(dtype: torch.dtype, autocast: bool) -> tuple[Tensor, list[Tensor]]:
    problem = example((2, 3, 7, 6), dtype, parameters=torch.float32, activation="tanh")
    inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.inputs.items()}
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        y = proximal_gate(**inputs, **problem.settings)
    y.backward(problem.grads[0])
    assert [tensor.grad.dtype for tensor in inputs.values()] == [tensor.dtype for tensor in inputs.values()]
    return y.detach(), [tensor.grad for tensor in inputs.values()]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_changes_no_number(backend: str, dtype: torch.dtype) -> None:
    """The sums inside stay float32: autocast must not turn the reference's convolutions to half precision."""
    (found, found_gradients), (plain, plain_gradients) = gradients(dtype, True), gradients(dtype, False)
    assert found.dtype is dtype
    assert torch.equal(found, plain)
    for a, b in zip(found_gradients, plain_gradients, strict=True):
        assert torch.equal(a, b)


def test_after_an_autocast_layer(backend: str) -> None:
    """A convolution makes the field bfloat16 while the skip and all parameters stay float32."""
    layer = torch.nn.Conv2d(4, 3, 1)
    inputs, skip = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8, requires_grad=True)
    weight, threshold = torch.randn(3, 3, 3, 3, requires_grad=True), torch.full((3,), 0.1, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = proximal_gate(layer(inputs), weight, threshold, skip, torch.rand(2, 3), dilations=(1, 2, 3))
        loss = y.float().square().mean()
    loss.backward()
    assert y.dtype is torch.bfloat16
    for tensor in (skip, weight, threshold, layer.weight):
        assert tensor.grad.dtype is torch.float32
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


def test_a_float32_field_stays_float32(backend: str) -> None:
    problem = example((1, 2, 5, 5))
    plain = proximal_gate(**problem.inputs, **problem.settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = proximal_gate(**problem.inputs, **problem.settings)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_soft_threshold(backend: str, dtype: torch.dtype) -> None:
    x, threshold = torch.randn(2, 3, 4).to(dtype).requires_grad_(), torch.full((3,), 0.3, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = soft_threshold(x, threshold)
    y.float().sum().backward()
    assert (y.dtype, x.grad.dtype, threshold.grad.dtype) == (dtype, dtype, torch.float32)


@pytest.mark.parametrize("skip_dtype", [torch.float16, torch.float64, torch.bfloat16], ids=str)
def test_a_skip_of_another_dtype_is_cast(backend: str, skip_dtype: torch.dtype) -> None:
    problem = example((1, 2, 5, 5))
    skip = problem.inputs["skip"].to(skip_dtype).requires_grad_()
    y = proximal_gate(**(dict(problem.inputs) | {"skip": skip}), **problem.settings)
    expected = proximal_gate(**(dict(problem.inputs) | {"skip": skip.detach().float()}), **problem.settings)
    y.sum().backward()
    assert torch.equal(y, expected)
    assert skip.grad.dtype is skip_dtype

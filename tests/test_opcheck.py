"""torch.library.opcheck, all utilities: schema, fake kernel, autograd registration, tracing with dynamic shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from prosma_ops.testing.proximal_gate import OPTIONAL, example
from tests.conftest import REFERENCE_IS_SLOW

ops = torch.ops.prosma_ops
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
COMBINATIONS = [c for count in range(4) for c in itertools.combinations(OPTIONAL, count)]


def names(missing: tuple[str, ...]) -> str:
    return "without " + (", ".join(missing) or "nothing")


def check(operator: object, arguments: tuple) -> None:
    result = opcheck(operator, arguments, test_utils=UTILITIES)
    assert result == dict.fromkeys(UTILITIES, "SUCCESS")


def forward_arguments(size: tuple[int, ...], dtype: torch.dtype, layout: str, grad: bool, **changes: object) -> tuple:
    problem = example(size, dtype, layout, drawn="normal", **changes)
    tensors = [t if t is None else t.detach().requires_grad_(grad) for t in problem.inputs.values()]
    return (*tensors, list(problem.settings["dilations"]), problem.settings["activation"])


def backward_arguments(
    size: tuple[int, ...], dtype: torch.dtype, layout: str, needed: list[bool], **changes: object
) -> tuple:
    arguments = forward_arguments(size, dtype, layout, True, **changes)
    present = [wanted and tensor is not None for wanted, tensor in zip(needed, arguments, strict=False)]
    return (torch.randn(size).to(dtype).requires_grad_(), *arguments, present)


@pytest.mark.parametrize("missing", COMBINATIONS, ids=names)
def test_forward_with_every_combination_of_optional_tensors(backend: str, missing: tuple[str, ...]) -> None:
    arguments = forward_arguments((2, 3, 5, 6), torch.float32, "contiguous", True, missing=missing)
    check(ops.proximal_gate.default, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("missing", COMBINATIONS, ids=names)
def test_backward_with_every_combination_of_optional_tensors(backend: str, missing: tuple[str, ...]) -> None:
    arguments = backward_arguments((2, 3, 5, 6), torch.float64, "contiguous", [True] * 6, missing=missing)
    check(ops.proximal_gate_backward.default, arguments)


def test_forward_in_every_dtype(backend: str, dtype: torch.dtype) -> None:
    check(ops.proximal_gate.default, forward_arguments((2, 3, 5, 6), dtype, "contiguous", True, activation="tanh"))


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_forward_in_every_layout(backend: str, layout: str) -> None:
    check(ops.proximal_gate.default, forward_arguments((2, 3, 5, 6), torch.float32, layout, True))


def test_forward_with_float32_parameters(backend: str) -> None:
    arguments = forward_arguments((2, 3, 5, 6), torch.bfloat16, "contiguous", True, parameters=torch.float32)
    check(ops.proximal_gate.default, arguments)


def test_forward_in_3d(backend: str) -> None:
    check(ops.proximal_gate.default, forward_arguments((1, 2, 3, 4, 5), torch.float32, "channels_last", True))


def test_forward_without_gradient(backend: str) -> None:
    check(ops.proximal_gate.default, forward_arguments((2, 3, 5, 6), torch.float32, "contiguous", False))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(6))
def test_backward_of_one_gradient_alone(backend: str, index: int) -> None:
    needed = [position == index for position in range(6)]
    check(ops.proximal_gate_backward.default, backward_arguments((1, 2, 4, 5), torch.float32, "channels_last", needed))


@REFERENCE_IS_SLOW
def test_backward_of_all_gradients(backend: str) -> None:
    check(
        ops.proximal_gate_backward.default,
        backward_arguments((2, 3, 5, 6), torch.float32, "contiguous", [True] * 6, activation="tanh"),
    )


@REFERENCE_IS_SLOW
def test_backward_in_3d(backend: str) -> None:
    arguments = backward_arguments((1, 2, 3, 4, 5), torch.float32, "channels_last", [True] * 6, activation="relu")
    check(ops.proximal_gate_backward.default, arguments)


def shrink_arguments(dtype: torch.dtype, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return torch.randn(size).to(dtype).requires_grad_(), torch.rand(size[1]).to(dtype).requires_grad_()


def test_soft_threshold_in_every_dtype(backend: str, dtype: torch.dtype) -> None:
    check(ops.soft_threshold.default, shrink_arguments(dtype, (2, 3, 4, 5)))


@pytest.mark.parametrize("size", [(4, 3), (1, 2, 3, 4, 5)])
def test_soft_threshold_of_any_rank(backend: str, size: tuple[int, ...]) -> None:
    check(ops.soft_threshold.default, shrink_arguments(torch.float32, size))


def test_soft_threshold_backward(backend: str) -> None:
    x, threshold = shrink_arguments(torch.float64, (2, 3, 4, 5))
    check(ops.soft_threshold_backward.default, (torch.randn_like(x).requires_grad_(), x, threshold))

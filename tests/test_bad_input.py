"""Bad input raises ValueError or TypeError that names the argument, on every backend and before any kernel runs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import prosma_ops
from prosma_ops import proximal_gate, soft_threshold


def good(size: tuple[int, ...] = (2, 3, 5, 6)) -> dict[str, object]:
    return {
        "field": torch.randn(size),
        "weight": torch.randn(2, size[1], 3, 3),
        "threshold": torch.rand(size[1]),
        "skip": torch.randn(size),
        "channel_gate": torch.rand(size[:2]),
        "dilations": (1, 2),
        "bias": torch.randn(size[1]),
        "activation": "identity",
    }


META = torch.device("meta")

CASES = {
    # wrong kinds
    "field is a list": ("field", [[1.0]], TypeError, "field is a list"),
    "field is None": ("field", None, TypeError, "field is a NoneType"),
    "weight is an array": ("weight", torch.randn(2, 3, 3, 3).numpy(), TypeError, "weight is a ndarray"),
    "threshold is a float": ("threshold", 0.1, TypeError, "threshold is a float"),
    "skip is a bool": ("skip", True, TypeError, "skip is a bool"),
    "gate is a float": ("channel_gate", 1.0, TypeError, "channel_gate is a float"),
    "bias is False": ("bias", False, TypeError, "bias is a bool"),
    # ranks and shapes
    "field without batch": ("field", torch.randn(3, 5, 6), ValueError, "field has 3 dimensions"),
    "field of six dimensions": ("field", torch.randn(1, 3, 2, 2, 2, 2), ValueError, "field has 6 dimensions"),
    "3-D weight, 2-D field": ("weight", torch.randn(2, 3, 3, 3, 3), ValueError, "weight has 5 dimensions"),
    "torch's depthwise weight": ("weight", torch.randn(3, 1, 3, 3), ValueError, "weight has shape"),
    "weight of other channels": ("weight", torch.randn(2, 4, 3, 3), ValueError, "weight has shape"),
    "weight of one channel": ("weight", torch.randn(2, 1, 3, 3), ValueError, "weight has shape"),
    "no kernels": ("weight", torch.randn(0, 3, 3, 3), ValueError, "weight has shape"),
    "even kernel": ("weight", torch.randn(2, 3, 4, 4), ValueError, "weight has kernels of size"),
    "kernel of size 0": ("weight", torch.randn(2, 3, 0, 0), ValueError, "weight has kernels of size"),
    "oblong kernel": ("weight", torch.randn(2, 3, 3, 5), ValueError, "weight has kernels of size"),
    "scalar threshold": ("threshold", torch.tensor(0.1), ValueError, "threshold has shape"),
    "threshold of other channels": ("threshold", torch.rand(4), ValueError, "threshold has shape"),
    "threshold laid out to broadcast": ("threshold", torch.rand(1, 3, 1, 1), ValueError, "threshold has shape"),
    "skip of another size": ("skip", torch.randn(2, 3, 5, 7), ValueError, "skip has shape"),
    "skip of another batch": ("skip", torch.randn(1, 3, 5, 6), ValueError, "skip has shape"),
    "gate of other channels": ("channel_gate", torch.rand(2, 4), ValueError, "channel_gate has shape"),
    "gate per pixel": ("channel_gate", torch.rand(2, 3, 5, 6), ValueError, "channel_gate has shape"),
    "gate without batch": ("channel_gate", torch.rand(3), ValueError, "channel_gate has shape"),
    "bias of other channels": ("bias", torch.randn(2), ValueError, "bias has shape"),
    # dtypes
    "integer field": ("field", torch.ones(2, 3, 5, 6, dtype=torch.int64), TypeError, "field is torch.int64"),
    "boolean field": ("field", torch.ones(2, 3, 5, 6, dtype=torch.bool), TypeError, "field is torch.bool"),
    "complex field": ("field", torch.ones(2, 3, 5, 6, dtype=torch.complex64), TypeError, "field is torch.complex64"),
    "float8 field": ("field", torch.ones(2, 3, 5, 6).to(torch.float8_e4m3fn), TypeError, "field is torch.float8"),
    "integer weight": ("weight", torch.ones(2, 3, 3, 3, dtype=torch.int32), TypeError, "weight is torch.int32"),
    "float64 weight": ("weight", torch.randn(2, 3, 3, 3).double(), TypeError, "weight is torch.float64"),
    "half weight, float32 field": ("weight", torch.randn(2, 3, 3, 3).half(), TypeError, "weight is torch.float16"),
    "float64 threshold": ("threshold", torch.rand(3).double(), TypeError, "threshold is torch.float64"),
    "bfloat16 bias, float32 field": ("bias", torch.rand(3).bfloat16(), TypeError, "bias is torch.bfloat16"),
    "integer skip": ("skip", torch.ones(2, 3, 5, 6, dtype=torch.uint8), TypeError, "skip is torch.uint8"),
    "float64 gate": ("channel_gate", torch.rand(2, 3).double(), TypeError, "channel_gate is torch.float64"),
    # storage
    "sparse field": ("field", torch.randn(2, 3, 5, 6).to_sparse(), TypeError, "field has layout"),
    "sparse skip": ("skip", torch.randn(2, 3, 5, 6).to_sparse(), TypeError, "skip has layout"),
    "sparse gate": ("channel_gate", torch.rand(2, 3).to_sparse(), TypeError, "channel_gate has layout"),
    # devices
    "weight elsewhere": ("weight", torch.randn(2, 3, 3, 3, device=META), ValueError, "weight is on meta"),
    "threshold elsewhere": ("threshold", torch.rand(3, device=META), ValueError, "threshold is on meta"),
    "skip elsewhere": ("skip", torch.randn(2, 3, 5, 6, device=META), ValueError, "skip is on meta"),
    "gate elsewhere": ("channel_gate", torch.rand(2, 3, device=META), ValueError, "channel_gate is on meta"),
    "bias elsewhere": ("bias", torch.rand(3, device=META), ValueError, "bias is on meta"),
    # settings
    "dilation 0": ("dilations", (1, 0), ValueError, "dilations is"),
    "negative dilation": ("dilations", (-1, 2), ValueError, "dilations is"),
    "too few dilations": ("dilations", (1,), ValueError, "dilations has 1 entries"),
    "too many dilations": ("dilations", (1, 2, 3), ValueError, "dilations has 3 entries"),
    "no dilations": ("dilations", (), ValueError, "dilations has 0 entries"),
    "one dilation not in a sequence": ("dilations", 2, TypeError, "dilations is 2"),
    "fractional dilation": ("dilations", (1, 2.5), TypeError, "dilations is"),
    "whole, but float, dilation": ("dilations", (1.0, 2.0), TypeError, "dilations is"),
    "boolean dilations": ("dilations", (True, True), TypeError, "dilations is"),
    "dilations as text": ("dilations", "12", TypeError, "dilations is"),
    "dilations of pairs": ("dilations", ((1, 1), (2, 2)), TypeError, "dilations is"),
    "gigantic dilation": ("dilations", (1, 1 << 40), ValueError, "dilations is"),
    "dilation beyond 64 bits": ("dilations", (1, 1 << 80), ValueError, "dilations is"),
    "sigmoid": ("activation", "sigmoid", ValueError, "activation is 'sigmoid'"),
    "activation of another case": ("activation", "ReLU", ValueError, "activation is 'ReLU'"),
    "activation is None": ("activation", None, ValueError, "activation is None"),
    "activation is a function": ("activation", torch.tanh, ValueError, "activation is <built-in"),
    "activation is a list": ("activation", ["tanh"], ValueError, "activation is"),
}


@pytest.mark.parametrize(("name", "value", "error", "message"), CASES.values(), ids=CASES)
def test_proximal_gate(backend: str, name: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        proximal_gate(**(good() | {name: value}))
    assert message in str(caught.value)


@pytest.mark.parametrize("size", [(2, 0, 5, 6), (2, 3, 0, 6), (2, 3, 5, 0)], ids=str)
def test_a_field_without_channels_rows_or_columns(backend: str, size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="field has shape"):
        proximal_gate(**good(size))


def test_the_arguments_that_the_cases_spoil_are_good(backend: str) -> None:
    assert proximal_gate(**good()).shape == (2, 3, 5, 6)


@pytest.mark.parametrize(
    ("x", "threshold", "error", "message"),
    [
        ([1.0], torch.rand(3), TypeError, "x is a list"),
        (torch.randn(3), torch.rand(3), ValueError, "x has 1 dimensions"),
        (torch.randn(2, 3).long(), torch.rand(3), TypeError, "x is torch.int64"),
        (torch.randn(2, 3), 0.5, TypeError, "threshold is a float"),
        (torch.randn(2, 3), torch.rand(2), ValueError, "threshold has shape"),
        (torch.randn(2, 3), torch.tensor(0.5), ValueError, "threshold has shape"),
        (torch.randn(2, 3), torch.rand(3).double(), TypeError, "threshold is torch.float64"),
        (torch.randn(2, 3), torch.rand(3, device=META), ValueError, "threshold is on meta"),
        (torch.randn(2, 3).to_sparse(), torch.rand(3), TypeError, "x has layout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_soft_threshold(backend: str, x: object, threshold: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        soft_threshold(x, threshold)
    assert message in str(caught.value)


def test_messages_say_what_came_and_what_would_do(backend: str) -> None:
    with pytest.raises(ValueError, match=r"skip has shape \(2, 3, 5, 7\).*\(2, 3, 5, 6\)"):
        proximal_gate(**(good() | {"skip": torch.randn(2, 3, 5, 7)}))
    with pytest.raises(ValueError, match="'identity', 'tanh', 'relu'"):
        proximal_gate(**(good() | {"activation": "gelu"}))


# Straight through torch.ops, past the public function's checks: still no undefined behaviour.


def direct(**changes: object) -> Tensor:
    arguments = good() | changes
    names = ("field", "weight", "threshold", "skip", "channel_gate", "bias")
    tensors = [arguments[name] for name in names]
    return torch.ops.prosma_ops.proximal_gate(*tensors, list(arguments["dilations"]), arguments["activation"])


def test_the_operator_itself_is_the_public_function(backend: str) -> None:
    torch.manual_seed(0)
    expected = proximal_gate(**good())
    torch.manual_seed(0)
    assert torch.equal(direct(), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": torch.randn(2, 3, 4, 4)},
        {"weight": torch.randn(2, 2, 3, 3)},
        {"weight": torch.randn(1, 3, 3, 3)},
        {"threshold": torch.rand(1)},
        {"skip": torch.randn(2, 3, 5, 5)},
        {"skip": torch.randn(2, 3, 5, 6).double()},
        {"channel_gate": torch.rand(1, 1)},
        {"bias": torch.rand(2)},
        {"dilations": (0, 1)},
        {"dilations": (-3, 1)},
        {"dilations": (1,)},
        {"activation": "sigmoid"},
        {"field": torch.ones(2, 3, 5, 6, dtype=torch.int64)},
        {"field": torch.randn(3, 5, 6)},
    ],
    ids=lambda changes: " ".join(f"{k} {tuple(v.shape) if isinstance(v, Tensor) else v}" for k, v in changes.items()),
)
def test_the_operator_called_directly_does_not_read_beyond_its_tensors(
    backend: str, changes: dict[str, object]
) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError, KeyError, IndexError)):
        direct(**changes)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf])
def test_values_are_not_arguments(backend: str, threshold: float) -> None:
    """No value of a tensor raises: nothing waits for a device to look at it."""
    y = proximal_gate(**(good() | {"threshold": torch.full((3,), threshold)}))
    assert y.shape == (2, 3, 5, 6)


@pytest.mark.parametrize("name", ["numpy", "", "CPU", "cudnn"])
def test_use_backend(name: str) -> None:
    with pytest.raises(ValueError, match="use_backend"), prosma_ops.use_backend(name):
        pass

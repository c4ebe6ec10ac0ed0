"""Tensor subclasses that carry extra data, MONAI's MetaTensor above all, are unwrapped at the public functions."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from prosma_ops import proximal_gate, soft_threshold
from prosma_ops.testing.proximal_gate import example


class Annotated(Tensor):
    """Like MetaTensor: data of its own, and a `__torch_function__` that hands them on to every result."""

    note: str

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = super().__torch_function__(function, types, arguments, keywords or {})
        if isinstance(result, cls):
            result.note = next((a.note for a in arguments if isinstance(a, cls) and hasattr(a, "note")), "")
        return result


def annotated(values: Tensor) -> Tensor:
    result = values.detach().clone().as_subclass(Annotated)
    result.note = "a scan"
    return result.requires_grad_(values.requires_grad)


def test_a_subclass_computes_the_same(backend: str) -> None:
    problem = example((2, 3, 5, 6))
    plain = proximal_gate(**problem.inputs, **problem.settings)
    found = proximal_gate(**{name: annotated(tensor) for name, tensor in problem.inputs.items()}, **problem.settings)
    assert type(found) is Tensor
    assert torch.equal(found, plain)
    assert type(soft_threshold(annotated(plain), problem.inputs["threshold"])) is Tensor


def test_its_gradients_arrive(backend: str) -> None:
    problem = example((2, 3, 5, 6))
    inputs = {name: annotated(tensor.detach().requires_grad_()) for name, tensor in problem.inputs.items()}
    plain = {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.inputs.items()}
    proximal_gate(**inputs, **problem.settings).backward(problem.grads[0])
    proximal_gate(**plain, **problem.settings).backward(problem.grads[0])
    for name, tensor in inputs.items():
        assert torch.equal(tensor.grad.as_subclass(Tensor), plain[name].grad), name


def test_parameters_and_buffers_pass(backend: str) -> None:
    problem = example((2, 3, 5, 6))
    inputs = dict(problem.inputs) | {"weight": torch.nn.Parameter(problem.inputs["weight"])}
    inputs["threshold"] = torch.nn.Buffer(problem.inputs["threshold"])
    expected = proximal_gate(**problem.inputs, **problem.settings)
    assert torch.equal(proximal_gate(**inputs, **problem.settings), expected)


@pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="MONAI is not installed")
def test_monai_metatensor(backend: str) -> None:
    from monai.data import MetaTensor

    problem = example((2, 3, 5, 6))
    inputs = dict(problem.inputs) | {name: MetaTensor(problem.inputs[name]) for name in ("field", "skip")}
    expected = proximal_gate(**problem.inputs, **problem.settings)
    assert torch.equal(proximal_gate(**inputs, **problem.settings), expected)

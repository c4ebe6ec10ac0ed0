"""The ways that a call of an operator takes: the dispatcher's, and the shorter ones where nobody watches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prosma_ops import mixed_logit_statistics
from prosma_ops.ops.library import Operator
from prosma_ops.ops.logit_mixing import _mixed_logit_statistics as operator


def problem() -> tuple[Any, ...]:
    """Two levels, of which one needs no gradient, and concat's weights, which need one."""
    torch.manual_seed(0)
    levels = [torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 8, 8)]
    weight = torch.randn(3, 6, requires_grad=True)
    target = torch.randint(0, 3, (2, 8, 8))
    return levels, target, weight, None, None, None, ["concat"], "softmax", "logits", None, False, False, False


def leaves(arguments: Sequence[Any]) -> list[Tensor]:
    return [arguments[0][0], arguments[2]]


def loss(results: Sequence[Tensor]) -> Tensor:
    return results[0].square().sum() + (results[1] * results[3]).sum()


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that calls of the operator take, in order."""
    taken: list[str] = []
    registered, implementation = operator.registered, operator.implementation
    monkeypatch.setattr(operator, "registered", lambda *given: (taken.append("dispatcher"), registered(*given))[1])
    monkeypatch.setattr(operator, "implementation", lambda *given: (taken.append("short"), implementation(*given))[1])
    return taken


def test_the_short_way_gives_the_dispatchers_results_and_gradients(ways: list[str]) -> None:
    arguments = problem()
    found, expected = operator(*arguments), operator.registered(*arguments)
    assert ways == ["short", "dispatcher"]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad == other.requires_grad
    for one, other in zip(
        torch.autograd.grad(loss(found), leaves(arguments)),
        torch.autograd.grad(loss(expected), leaves(arguments)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_graph_that_is_kept_gives_its_gradients_again() -> None:
    arguments = problem()
    value = loss(operator(*arguments))
    first = torch.autograd.grad(value, leaves(arguments), retain_graph=True)
    again = torch.autograd.grad(value, leaves(arguments))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_second_gradient_is_that_of_the_dispatchers_way() -> None:
    found = []
    for way in (operator, operator.registered):
        arguments = problem()
        first = torch.autograd.grad(loss(way(*arguments)), leaves(arguments), create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), leaves(arguments)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return function(*arguments, **(keywords or {}))


def test_what_watches_gets_the_dispatchers_way(ways: list[str]) -> None:
    arguments = problem()
    with Watching():
        operator(*arguments)
    with torch.profiler.profile():
        operator(*arguments)
    assert set(ways) == {"dispatcher"}


def test_without_a_gradient_nothing_is_recorded(ways: list[str]) -> None:
    arguments = problem()
    with torch.no_grad():
        assert not operator(*arguments)[0].requires_grad
    assert ways == ["short"]


def test_every_operator_is_called_through_one() -> None:
    assert isinstance(operator, Operator)
    found = mixed_logit_statistics(problem()[0], problem()[1], operators=())
    assert found.cross_entropy.grad_fn is not None
    assert type(found.cross_entropy.grad_fn).__name__ == "_RecordedBackward"

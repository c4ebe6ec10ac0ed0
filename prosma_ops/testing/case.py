"""What one operator is proved with: cases, each of which builds one problem on a device.

A new operator has its cases in `SUITES` of `prosma_ops/testing/<room>.py`. Everything else (the parity runner, the
self-test, `prosma-ops check`, the tests) finds it by the operator's name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import backends

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = ("tiny", "full")


@dataclass(frozen=True)
class Problem:
    """The tensors and settings of one call, and the three ways to compute it: all take the same keywords."""

    inputs: Mapping[str, Tensor | None]
    settings: Mapping[str, Any]
    function: Callable[..., Any]  # the public function
    definition: Callable[..., Any]  # differentiable; given float64 it is the reference
    eager: Callable[..., Any]  # as a user writes it, in the dtype of the leading tensor
    leader: str  # the input that sets the dtype
    grads: Sequence[Tensor] = ()  # what flows into each result; none: the forward alone is compared
    constant: frozenset[str] = field(default_factory=frozenset)  # inputs that have no gradient

    @property
    def dtype(self) -> torch.dtype:
        leader = self.inputs[self.leader]
        assert leader is not None
        return leader.dtype


@dataclass(frozen=True)
class Case:
    operator: str
    name: str
    layout: str
    dtype: torch.dtype
    build: Callable[[torch.device], Problem]

    def __str__(self) -> str:
        return f"{self.operator}, {self.name}, {self.layout}, {dtype_name(self.dtype)}"


@dataclass(frozen=True)
class Suite:
    """`cases(size)`, and what the functions of an implementation return, by the names that the runner reports."""

    cases: Callable[[str], Sequence[Case]]
    results: Mapping[str, tuple[str, ...]]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def suite(operator: str) -> Suite:
    """The suite of a registered operator; an operator without one is an error, never silence."""
    room = backends.OPERATORS[operator].room
    try:
        found = importlib.import_module(f"{__package__}.{room}").SUITES[operator]
    except (ImportError, AttributeError, KeyError) as error:
        raise LookupError(
            f"{operator} has no cases: SUITES of prosma_ops/testing/{room}.py must have them ({error!r})"
        ) from None
    if not isinstance(found, Suite) or not found.cases("full"):
        raise LookupError(f"{operator} has no cases: those in SUITES of prosma_ops/testing/{room}.py are none")
    return found

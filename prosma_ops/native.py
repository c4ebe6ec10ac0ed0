"""Loads the compiled library; if it is absent, knows the reason.

The library is built without torch (`csrc` sees raw pointers), so one binary serves every torch release. It takes
its OpenMP runtime from torch, which therefore must be imported first: hence the order of imports in `load`.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch  # before the library: it brings the OpenMP runtime, and so the one thread pool
from torch import Tensor

LEVEL_VARIABLE = "PROSMA_CPU_LEVEL"


class Library(NamedTuple):
    module: ModuleType | None
    reason: str  # why it is absent, or which level it runs at


@functools.cache
def load() -> Library:
    try:
        module = importlib.import_module("prosma_ops._native")
    except ImportError as error:
        return Library(None, f"the native library is not installed or does not load ({error})")
    asked = os.environ.get(LEVEL_VARIABLE, "auto")
    try:
        level = module.select_level(asked)
    except ValueError as error:
        raise ValueError(f"{LEVEL_VARIABLE}={asked!r}: {error}") from None
    module.recognise(torch)
    return Library(module, f"compiled for {level}")


@functools.cache
def warn_once() -> None:
    """Called when an operator falls back because the library is absent."""
    module, reason = load()
    if module is None:
        warnings.warn(
            f"prosma_ops runs its reference implementations: {reason}. They are right, and several times slower. "
            "`prosma-ops doctor` says what is missing.",
            RuntimeWarning,
            stacklevel=4,
        )


def required() -> Any:
    """The loaded module. Only implementations whose predicate has passed call this."""
    return load().module


# How a tensor is handed over. The codes are those of `csrc/arguments.h`.

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def work(leader: Tensor, sizes: tuple[int, ...] | None = None) -> tuple[int, int, tuple[int, ...]]:
    """What every native function starts with: the dtype, the threads that torch may use, and the sizes of the work,
    which are the leader's shape where none are given."""
    return DTYPES[leader.dtype], torch.get_num_threads(), leader.shape if sizes is None else sizes


def placed(*tensors: Tensor | None) -> list[Any]:
    """Where each tensor starts and its strides in elements; a tensor that is absent starts at 0."""
    result: list[Any] = []
    for tensor in tensors:
        result += (0, ()) if tensor is None else (tensor.data_ptr(), tensor.stride())
    return result


def parameters(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors contiguous and in this dtype, converted where they are not."""
    return [
        tensor
        if tensor is None or (tensor.dtype is dtype and tensor.is_contiguous())
        else tensor.to(dtype).contiguous()
        for tensor in tensors
    ]


def pointers(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def deliver(results: Sequence[Tensor | None], destinations: Sequence[Tensor | None]) -> None:
    """Copy results that had to be converted to the tensors they were made for."""
    for result, destination in zip(results, destinations, strict=True):
        if result is not None and destination is not None and result is not destination:
            destination.copy_(result)

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


# CUDA: where the work is queued, and tensors as its kernels take them: contiguous, or channels_last.


def queued(leader: Tensor, sizes: tuple[int, ...] | None = None) -> tuple[int, int, int, tuple[int, ...]]:
    """What every CUDA function starts with: the dtype, the device, its current stream, and the sizes of the work."""
    device, stream = queue(leader.device)
    return DTYPES[leader.dtype], device, stream, leader.shape if sizes is None else sizes


def queue(device: torch.device) -> tuple[int, int]:
    current = torch.cuda.current_stream(device)
    return current.device_index, current.cuda_stream


def layout(leader: Tensor) -> torch.memory_format:
    """The memory format that spares the leader a copy."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(leader.dim())
    if last is not None and not leader.is_contiguous() and leader.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def arranged(layout: torch.memory_format, *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in this format, copied where they lie otherwise."""
    return [tensor if tensor is None else tensor.contiguous(memory_format=layout) for tensor in tensors]


def destinations(layout: torch.memory_format, *tensors: Tensor | None) -> list[Tensor | None]:
    """Where results go that must be in this format: the tensors themselves, or memory to `deliver` them from."""
    return [
        tensor
        if tensor is None or tensor.is_contiguous(memory_format=layout)
        else torch.empty_like(tensor, memory_format=layout)
        for tensor in tensors
    ]


def workspace(size: int, leader: Tensor) -> Tensor:
    """Scratch memory of so many bytes."""
    return torch.empty(size, dtype=torch.uint8, device=leader.device)


def deliver(results: Sequence[Tensor | None], destinations: Sequence[Tensor | None]) -> None:
    """Copy results that had to be converted to the tensors they were made for."""
    for result, destination in zip(results, destinations, strict=True):
        if result is not None and destination is not None and result is not destination:
            destination.copy_(result)

"""The arithmetic that every reference shares: float32 inside for half types, and no autocast inside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run `function` with autocast off: inside it a float32 convolution must stay float32."""

    @functools.wraps(function)
    def run(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        tensor = next(a for a in arguments if isinstance(a, torch.Tensor))
        device = tensor.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(*arguments, **keywords)
        with torch.autocast(device, enabled=False):
            return function(*arguments, **keywords)

    return run

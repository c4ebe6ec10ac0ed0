"""The layers that every module here is put together from, in 2-D and 3-D, by the names that their options take."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks

SPATIAL_DIMS = (2, 3)
NORMS = ("batch", "instance", "group")
# At most this many groups: 8 leaves 8 channels a group at 64 channels, and 2 at the 16 of the finest level.
MOST_GROUPS = 8


def positive_integer(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be an integer of at least 1")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be an integer of at least 1")
    return value


def dimensions(value: Any) -> int:
    if value not in SPATIAL_DIMS:
        raise ValueError(f"spatial_dims is {value!r}; it must be 2 or 3")
    return int(value)


def pointwise(inputs: int, outputs: int, spatial_dims: int) -> nn.Module:
    """A 1x1(x1) convolution without bias: a normalization follows it."""
    kind = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return kind(inputs, outputs, kernel_size=1, bias=False)


def normalization(norm: str, channels: int, spatial_dims: int) -> nn.Module:
    checks.choice("norm", norm, NORMS)
    if norm == "group":
        groups = max(count for count in range(1, MOST_GROUPS + 1) if channels % count == 0)
        return nn.GroupNorm(groups, channels)
    if norm == "instance":
        # The same numbers as nn.InstanceNorm2d and 3d, which would lose channels_last; and one pixel is allowed.
        return nn.GroupNorm(channels, channels)
    return (nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm3d)(channels)


def resize_like(values: Tensor, like: Tensor) -> Tensor:
    """Bilinear or trilinear interpolation of `values` to the spatial size of `like`."""
    size = like.shape[2:]
    if values.shape[2:] == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False)


def laid_out_like(values: Tensor, like: Tensor) -> Tensor:
    """`values` in the memory format of `like`; on a GPU, group normalization always gives the contiguous one."""
    channels_last = torch.channels_last if like.dim() == 4 else torch.channels_last_3d
    keep = not like.is_contiguous() and like.is_contiguous(memory_format=channels_last)
    return values.contiguous(memory_format=channels_last if keep else torch.contiguous_format)


def number(name: str, value: Any, *, largest: float = math.inf) -> float:
    """A finite number from 0 to `largest`."""
    found = checks.number(name, value)
    if not 0 <= found <= largest or math.isinf(found):
        limit = f" and at most {largest}" if largest < math.inf else ", and finite"
        raise ValueError(f"{name} is {value!r}; it must be at least 0{limit}")
    return found


def one_or_more(maps: Any) -> list[Tensor]:
    """A list of tensors, of a sequence of them or of one."""
    return [maps] if isinstance(maps, Tensor) else list(maps)

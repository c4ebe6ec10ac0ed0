"""The same numbers in the layouts that users bring: what a tensor's strides may look like.

Around a view the buffer is filled with NaN, or with an integer that is no label, so an implementation that reads beside
it gives itself away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "chunk", "channels_last_chunk", "expanded", "mixed")

# What the three big tensors of a "mixed" case have, in turn: no two alike.
_MIXED = {
    **dict.fromkeys(("field", "x", "level0"), "contiguous"),
    **dict.fromkeys(("skip", "level1"), "channels_last"),
    "grad": "sliced",
}


def lay_out(values: Tensor, layout: str, role: str = "field") -> Tensor:
    """`values` in another layout; "expanded" repeats the first entry of dimension 0, all others keep every number.

    `role` is the tensor's name in the operator's signature, or "grad".
    """
    if layout == "mixed":
        layout = _MIXED.get(role, "sliced")
    if layout == "expanded":
        return values[:1].expand_as(values) if values.shape[0] else values
    if layout == "contiguous":
        return values.contiguous()
    return _spatial(values, layout) if values.dim() >= 4 and role != "weight" else _slice(values)


def _spatial(values: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return channels_last(values)
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        return _slice(values)
    if layout == "chunk":
        return _chunk(values, lambda buffer: buffer)
    if layout == "channels_last_chunk":
        return _chunk(values, channels_last)
    raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")


def channels_last(values: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return values.contiguous(memory_format=formats[values.dim()]) if values.dim() in formats else values


def _slice(values: Tensor) -> Tensor:
    """Every second element of the last dimension, two rows cut off each side of the others, inside a larger buffer."""
    shape = [size + 3 for size in values.shape[:-1]] + [2 * values.shape[-1] + 3]
    buffer = _filled(shape, values)
    inside = (*(slice(1, 1 + size) for size in values.shape[:-1]), slice(3, None, 2))
    buffer[inside] = values
    return buffer[inside]


def _filled(shape: Sequence[int], like: Tensor) -> Tensor:
    wrong = (
        math.nan if like.dtype.is_floating_point else True if like.dtype is torch.bool else torch.iinfo(like.dtype).max
    )
    return torch.full(shape, wrong, dtype=like.dtype, device=like.device)


def _chunk(values: Tensor, arrange: Callable[[Tensor], Tensor]) -> Tensor:
    """What `torch.chunk` over channels gives: some channels of a larger tensor."""
    channels = values.shape[1]
    shape = (values.shape[0], channels + 5, *values.shape[2:])
    buffer = arrange(_filled(shape, values))
    buffer[:, 2 : 2 + channels] = values
    return buffer[:, 2 : 2 + channels]


def moved(values: Tensor, device: torch.device) -> Tensor:
    """On the device with its strides, views of larger buffers included."""
    if device.type == "cpu":
        return values
    whole = torch.empty(0, dtype=values.dtype).set_(values.untyped_storage())
    return whole.to(device).as_strided(values.shape, values.stride(), values.storage_offset())

"""How kernels are started, and what every host function here needs to know about its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy
import torch
import triton.language as tl
from torch import Tensor

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def launch(kernel: Any, programs: int, *arguments: Any, device: torch.device, **constants: Any) -> None:
    """Start `programs` programs of `kernel` on the tensors' own device, whichever device is current."""
    if programs == 0:
        return
    # Interpreted, the arithmetic is NumPy's, which warns of every infinity and NaN that it meets.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), numpy.errstate(all="ignore"):
        kernel[(programs,)](*arguments, **constants)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    return torch.promote_types(dtype, torch.float32)


def power_of_two(value: int) -> int:
    """The least power of two that is at least `value`."""
    return 1 << max(value - 1, 0).bit_length()


def needs_int64(distance: int) -> bool:
    """Whether offsets that far from the first element pass 32 bits."""
    return distance >= 2**31


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """The largest distance in elements between two elements of a tensor."""
    return sum((size - 1) * abs(stride) for size, stride in zip(shape, strides, strict=True) if size > 1)


def spatial_strides(tensor: Tensor | None) -> tuple[int, ...]:
    """(batch, channel, depth, height, width); an image has depth 1, an absent tensor has strides 0."""
    if tensor is None:
        return (0, 0, 0, 0, 0)
    strides = tensor.stride()
    return strides if len(strides) == 5 else (*strides[:2], 0, *strides[2:])


def merged_dimensions(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Sizes and strides of all dimensions after the second, the fastest last, merged where all tensors allow it."""
    order = sorted(range(2, tensors[0].dim()), key=lambda i: -tensors[0].stride(i))
    sizes: list[int] = [1]
    strides: list[list[int]] = [[1] for _ in tensors]
    for i in order:
        size, steps = tensors[0].shape[i], [t.stride(i) for t in tensors]
        if size == 1:
            continue
        if sizes[-1] == 1 or all(s[-1] == size * step for s, step in zip(strides, steps, strict=True)):
            sizes[-1] *= size
            for s, step in zip(strides, steps, strict=True):
                s[-1] = step
        else:
            sizes.append(size)
            for s, step in zip(strides, steps, strict=True):
                s.append(step)
    return tuple(sizes), [tuple(s) for s in strides]

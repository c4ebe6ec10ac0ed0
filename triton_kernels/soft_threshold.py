"""soft_threshold in Triton: u = sign(x) * max(|x| - max(threshold, 0), 0), one threshold a channel.

Bound by memory: n elements of s bytes are read once and written once (backward: read twice, written once). Dimensions
after the second are merged where all tensors allow it, so that a contiguous plane is one run of vector loads; in
channels_last the fastest axis of a tile is the channel. The threshold's gradient is a sum a tile, added in fixed order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TRITON_DTYPES, compute_dtype, extent, launch, merged_dimensions, needs_int64, power_of_two
from .reduction import finish_kernel
from .shrinkage import shrink, sign


@triton.jit
def _elements(pid_tile, sizes, strides, RANK: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of BLOCK consecutive elements of a plane of any rank."""
    offs = pid_tile * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        offs = pid_tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if RANK == 1:
        return offs * strides[0]
    else:
        result = offs * 0
        for i in tl.static_range(RANK):
            result += (offs % sizes[RANK - 1 - i]) * strides[RANK - 1 - i]
            offs = offs // sizes[RANK - 1 - i]
        return result


@triton.jit
def _plane(tiles_channel, tiles_plane, CHANNELS: tl.constexpr, CHANNELS_FASTEST: tl.constexpr):
    """(batch, channels of the tile, tile of the plane) of this program."""
    rest = tl.program_id(0)
    if CHANNELS_FASTEST:
        pid_channel = rest % tiles_channel
        pid_tile = rest // tiles_channel % tiles_plane
    else:
        pid_tile = rest % tiles_plane
        pid_channel = rest // tiles_plane % tiles_channel
    return rest // (tiles_channel * tiles_plane), pid_channel * CHANNELS + tl.arange(0, CHANNELS), pid_tile


@triton.jit
def _pointers(
    ptr, strides, batch, offs_channel, pid_tile, sizes, RANK: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """`strides` is ((batch, channel), (one for each dimension of the plane))."""
    start = ptr + batch.to(tl.int64) * strides[0][0]
    offs = _elements(pid_tile, sizes, strides[1], RANK, BLOCK, WIDE)
    return start + offs_channel.to(tl.int64)[:, None] * strides[0][1] + offs[None, :]


@triton.jit
def _soft_threshold_kernel(
    ptr_x,
    ptr_threshold,
    ptr_out,
    strides_x,
    strides_out,
    channels,
    elements,
    sizes,
    tiles_channel,
    tiles_plane,
    COMPUTE: tl.constexpr,
    RANK: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_FASTEST: tl.constexpr,
    WIDE: tl.constexpr,
):
    batch, offs_channel, pid_tile = _plane(tiles_channel, tiles_plane, CHANNELS, CHANNELS_FASTEST)
    mask_channel = offs_channel < channels
    mask = mask_channel[:, None] & (pid_tile * BLOCK + tl.arange(0, BLOCK) < elements)[None, :]
    t = tl.load(ptr_threshold + offs_channel, mask=mask_channel, other=0.0).to(COMPUTE)[:, None]
    ptrs_x = _pointers(ptr_x, strides_x, batch, offs_channel, pid_tile, sizes, RANK, BLOCK, WIDE)
    u = shrink(tl.load(ptrs_x, mask=mask, other=0.0).to(COMPUTE), tl.where(t < 0, 0.0, t))
    ptrs_out = _pointers(ptr_out, strides_out, batch, offs_channel, pid_tile, sizes, RANK, BLOCK, WIDE)
    tl.store(ptrs_out, u.to(ptr_out.dtype.element_ty), mask=mask)


@triton.jit
def _soft_threshold_backward_kernel(
    ptr_grad,
    ptr_x,
    ptr_threshold,
    ptr_dx,
    ptr_sums,
    strides_grad,
    strides_x,
    strides_dx,
    channels,
    elements,
    sizes,
    tiles_channel,
    tiles_plane,
    batches,
    COMPUTE: tl.constexpr,
    RANK: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_FASTEST: tl.constexpr,
    WIDE: tl.constexpr,
):
    batch, offs_channel, pid_tile = _plane(tiles_channel, tiles_plane, CHANNELS, CHANNELS_FASTEST)
    mask_channel = offs_channel < channels
    mask = mask_channel[:, None] & (pid_tile * BLOCK + tl.arange(0, BLOCK) < elements)[None, :]
    tau = tl.load(ptr_threshold + offs_channel, mask=mask_channel, other=0.0).to(COMPUTE)
    t = tl.where(tau < 0, 0.0, tau)[:, None]
    ptrs_x = _pointers(ptr_x, strides_x, batch, offs_channel, pid_tile, sizes, RANK, BLOCK, WIDE)
    ptrs_grad = _pointers(ptr_grad, strides_grad, batch, offs_channel, pid_tile, sizes, RANK, BLOCK, WIDE)
    ptrs_dx = _pointers(ptr_dx, strides_dx, batch, offs_channel, pid_tile, sizes, RANK, BLOCK, WIDE)
    z = tl.load(ptrs_x, mask=mask, other=0.0).to(COMPUTE)
    dz = tl.where(tl.abs(z) <= t, 0.0, tl.load(ptrs_grad, mask=mask, other=0.0).to(COMPUTE))
    tl.store(ptrs_dx, dz.to(ptr_dx.dtype.element_ty), mask=mask)
    sums = tl.sum(tl.where(mask, -sign(z) * dz, 0.0), axis=1) * (tau >= 0).to(COMPUTE)
    row = offs_channel.to(tl.int64) * batches + batch
    tl.store(ptr_sums + row * tiles_plane + pid_tile, sums, mask=mask_channel)


def soft_threshold_forward(x: Tensor, threshold: Tensor) -> Tensor:
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    arguments, constants, programs = _soft_threshold_tiles(x, out)
    strides_x, strides_out, *rest = arguments
    launch(
        _soft_threshold_kernel,
        programs,
        x,
        threshold.contiguous(),
        out,
        strides_x,
        strides_out,
        *rest,
        device=x.device,
        **constants,
    )
    return out


def soft_threshold_backward(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x)
    dthreshold = torch.empty_like(threshold, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return dx, dthreshold.zero_()
    arguments, constants, programs = _soft_threshold_tiles(x, dx, grad)
    strides_x, strides_dx, strides_grad, *rest = arguments
    tiles_plane = rest[-1]
    dtype = compute_dtype(x.dtype)
    batch, channels = x.shape[:2]
    sums = torch.empty(channels, batch, tiles_plane, dtype=dtype, device=x.device)
    launch(
        _soft_threshold_backward_kernel,
        programs,
        grad,
        x,
        threshold.contiguous(),
        dx,
        sums,
        strides_grad,
        strides_x,
        strides_dx,
        *rest,
        batch,
        device=x.device,
        **constants,
    )
    launch(
        finish_kernel,
        channels,
        None,
        None,
        0,
        0,
        sums,
        dthreshold,
        None,
        None,
        channels,
        batch,
        tiles_plane,
        device=x.device,
        BLOCK=1024,
        COMPUTE=TRITON_DTYPES[dtype],
        num_warps=4,
    )
    return dx, dthreshold


def _soft_threshold_tiles(*tensors: Tensor) -> tuple[list[Any], dict[str, Any], int]:
    """What both kernels take: strides of each tensor, then sizes and counts; their constants; how many programs."""
    x = tensors[0]
    batch, channels = x.shape[:2]
    sizes, strides = merged_dimensions(tensors)
    elements = math.prod(sizes)
    channels_fastest = channels > 1 and x.stride(1) == 1 and strides[0][-1] != 1
    numbers = 1024
    if channels_fastest:
        block_channels = min(power_of_two(channels), 64)
        block = min(power_of_two(elements), numbers // block_channels)
    else:
        block = min(power_of_two(elements), numbers)
        block_channels = min(power_of_two(channels), numbers // block)
    tiles_channel, tiles_plane = -(-channels // block_channels), -(-elements // block)
    wide = needs_int64(max(extent(sizes, s) for s in strides) + numbers)
    arguments: list[Any] = [((t.stride(0), t.stride(1)), s) for t, s in zip(tensors, strides, strict=True)]
    constants = {
        "COMPUTE": TRITON_DTYPES[compute_dtype(x.dtype)],
        "RANK": len(sizes),
        "CHANNELS": block_channels,
        "BLOCK": block,
        "CHANNELS_FASTEST": channels_fastest,
        "WIDE": wide,
        "num_warps": 4,
    }
    arguments += [channels, elements, sizes, tiles_channel, tiles_plane]
    return arguments, constants, batch * tiles_channel * tiles_plane

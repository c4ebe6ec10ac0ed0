"""proximal_gate in Triton: one launch forward; backward two, and a small one that adds up the sums of the tiles.

    z = sum_m depthwise_conv(field, weight[m], dilation d_m) + bias;  u = soft threshold of z
    y = skip * activation(u) * channel_gate

Floors, for n elements of s bytes and a stencil of t distinct taps (25 in 2-D and 79 in 3-D for dilations 1, 2, 3):
forward 3 n s bytes and 2 t n flops, backward 7 n s bytes (5 n s, and dz written and read) and 6 t n flops.

How the kernels approach them: each tensor is named once in a launch; a tap is one coalesced load, and all but the first
find their numbers in L1 and L2. Threshold, activation, skip and gate are applied to the sums in registers. The second
backward launch makes dfield and the weight gradient from the same loads of dz. Sums over a tile are stored as partial
sums in float32 (float64) and added in fixed order: no atomics, bitwise repeatable.

What the compiler made of it for sm_90 (Triton 3.9, float32, dilations 1, 2, 3; no spills, compiled in under 1 s each;
read from the machine code, nothing of it is a measured time), in 2-D / in 3-D:
    forward            64 / 80 registers, 258 / 682 instructions an output (27 / 81 of them FMA)
    backward of gate   96 / 96 registers
    backward of field  80 / 80 registers, 504 / 1566 instructions an output (54 / 162 of them on taps)
So they are bound by the rate of instructions, not by memory; most of these are addresses and masks. At 80 registers an
SM holds 24 warps of 64, at 96 it holds 20.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TRITON_DTYPES, compute_dtype, launch, spatial_strides
from .reduction import finish_kernel
from .shrinkage import activate, shrink, sign, slope
from .soft_threshold import soft_threshold_backward, soft_threshold_forward
from .stencil import Budget, convolve, gate_tile, tile_channels, tile_load, tile_mask, tile_place, tile_store

__all__ = ["backward", "forward", "soft_threshold_backward", "soft_threshold_forward"]

# 16 numbers a thread take 128 to 170 registers, and then ptxas spills on one architecture or another; of the field, a
# row of taps unrolled does so at 8 as well. One warp needs no barrier for the sums over a tile.
GATE = Budget(numbers=1024, warps=4, unroll=True)
FIELD = Budget(numbers=256, warps=1, unroll=False)


@triton.jit
def _parameters(ptr_threshold, ptr_bias, ptr_gate, sizes, place, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    """threshold, bias (0) and channel_gate (1), as (CHANNELS, 1)."""
    offs_channel, mask_channel = tile_channels(place, sizes, TILE)
    threshold = tl.load(ptr_threshold + offs_channel, mask=mask_channel, other=0.0).to(COMPUTE)
    bias = tl.zeros_like(threshold)
    if ptr_bias is not None:
        bias = tl.load(ptr_bias + offs_channel, mask=mask_channel, other=0.0).to(COMPUTE)
    gate = tl.full(threshold.shape, 1.0, COMPUTE)
    if ptr_gate is not None:
        gate = tl.load(ptr_gate + place[0] * sizes[0] + offs_channel, mask=mask_channel, other=0.0).to(COMPUTE)
    return threshold[:, None], bias[:, None], gate[:, None]


@triton.jit
def _gate_kernel(
    ptr_field,
    ptr_weight,
    ptr_threshold,
    ptr_bias,
    ptr_gate,
    ptr_skip,
    ptr_out,
    strides_field,
    strides_skip,
    strides_out,
    sizes,
    tiles,
    steps,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    place = tile_place(tiles, TILE)
    mask = tile_mask(place, sizes, 0, 0, 0, TILE)
    t, shift, scale = _parameters(ptr_threshold, ptr_bias, ptr_gate, sizes, place, TILE, COMPUTE)
    t = tl.where(t < 0, 0.0, t)
    z = convolve(ptr_field, strides_field, ptr_weight, None, None, 0, 0, sizes, steps, place, TILE, COMPUTE, 1) + shift
    y = activate(shrink(z, t), ACTIVATION)
    if ptr_skip is not None:
        y = y * tile_load(ptr_skip, strides_skip, place, mask, TILE, COMPUTE)
    tile_store(ptr_out, strides_out, place, mask, y * scale, TILE)


@triton.jit
def _gate_backward_kernel(
    ptr_grad,
    ptr_field,
    ptr_weight,
    ptr_threshold,
    ptr_bias,
    ptr_gate,
    ptr_skip,
    ptr_dskip,
    ptr_dz,
    ptr_sums,
    strides_grad,
    strides_field,
    strides_skip,
    strides_dskip,
    strides_dz,
    sizes,
    tiles,
    steps,
    batches,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """z again, and from it dz, dskip and, for every channel, the tile's sums for threshold, bias and gate."""
    place = tile_place(tiles, TILE)
    mask = tile_mask(place, sizes, 0, 0, 0, TILE)
    tau, shift, scale = _parameters(ptr_threshold, ptr_bias, ptr_gate, sizes, place, TILE, COMPUTE)
    t = tl.where(tau < 0, 0.0, tau)
    z = convolve(ptr_field, strides_field, ptr_weight, None, None, 0, 0, sizes, steps, place, TILE, COMPUTE, 1) + shift
    u = shrink(z, t)
    gate = activate(u, ACTIVATION)
    dy = tile_load(ptr_grad, strides_grad, place, mask, TILE, COMPUTE)
    du = dy
    if ptr_skip is not None:
        du = dy * tile_load(ptr_skip, strides_skip, place, mask, TILE, COMPUTE)
    dz = tl.where(tl.abs(z) <= t, 0.0, du * scale * slope(u, gate, ACTIVATION))
    if ptr_dskip is not None:
        tile_store(ptr_dskip, strides_dskip, place, mask, dy * gate * scale, TILE)
    if ptr_dz is not None:
        tile_store(ptr_dz, strides_dz, place, mask, dz, TILE)
    if ptr_sums is not None:
        offs_channel, mask_channel = tile_channels(place, sizes, TILE)
        per_image = tiles[1] * tiles[2] * tiles[3]
        table = tl.cast(sizes[0] * batches, tl.int64) * per_image
        ptrs = ptr_sums + (offs_channel * batches + place[0]).to(tl.int64) * per_image + place[5]
        dthreshold = tl.sum(tl.where(mask, -sign(z) * dz, 0.0), axis=1)[:, None] * (tau >= 0).to(COMPUTE)
        tl.store(ptrs[:, None], dthreshold, mask=mask_channel[:, None])
        tl.store(ptrs + table, tl.sum(tl.where(mask, dz, 0.0), axis=1), mask=mask_channel)
        ptrs = ptr_sums + 2 * table + (place[0] * sizes[0] + offs_channel).to(tl.int64) * per_image + place[5]
        tl.store(ptrs, tl.sum(tl.where(mask, du * gate, 0.0), axis=1), mask=mask_channel)


@triton.jit
def _field_backward_kernel(
    ptr_dz,
    ptr_field,
    ptr_weight,
    ptr_dfield,
    ptr_partial,
    strides_dz,
    strides_field,
    strides_dfield,
    sizes,
    tiles,
    steps,
    batches,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The transposed stencil over dz; and, from the same loads, the tile's correlation of dz with the field."""
    place = tile_place(tiles, TILE)
    mask = tile_mask(place, sizes, 0, 0, 0, TILE)
    values = None
    if ptr_partial is not None:
        values = tile_load(ptr_field, strides_field, place, mask, TILE, COMPUTE)
    per_image = tiles[1] * tiles[2] * tiles[3]
    dfield = convolve(
        ptr_dz,
        strides_dz,
        ptr_weight,
        values,
        ptr_partial,
        batches * per_image,
        place[0] * per_image + place[5],
        sizes,
        steps,
        place,
        TILE,
        COMPUTE,
        -1,
    )
    if ptr_dfield is not None:
        tile_store(ptr_dfield, strides_dfield, place, mask, dfield, TILE)


def forward(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: Sequence[int],
    activation: str,
) -> Tensor:
    out = torch.empty_like(field)
    if out.numel() == 0:
        return out
    tensors = [field, out] if skip is None else [field, out, skip]
    tile = gate_tile(tensors, dilations, weight.shape[-1], GATE)
    sizes = _sizes(field)
    tiles = tile.counts(sizes)
    launch(
        _gate_kernel,
        field.shape[0] * math.prod(tiles),
        field,
        *_contiguous(weight, threshold, bias, channel_gate),
        skip,
        out,
        *map(spatial_strides, (field, skip, out)),
        sizes,
        tiles,
        tile.steps,
        device=field.device,
        TILE=tile,
        COMPUTE=TRITON_DTYPES[compute_dtype(field.dtype)],
        ACTIVATION=activation,
        num_warps=tile.warps,
    )
    return out


def backward(
    grad: Tensor,
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: Sequence[int],
    activation: str,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The gradients of field, weight, threshold, skip, channel_gate and bias; of no size where not asked for."""
    inputs = (field, weight, threshold, skip, channel_gate, bias)
    gradients = tuple(
        (torch.empty_like(t) if i in (0, 3) else torch.empty_like(t, memory_format=torch.contiguous_format))
        if wanted and t is not None
        else field.new_empty(0)
        for i, (t, wanted) in enumerate(zip(inputs, needed, strict=True))
    )
    if field.numel() == 0:
        return tuple(gradient.zero_() for gradient in gradients)
    asked = [
        gradient if wanted and t is not None else None
        for gradient, t, wanted in zip(gradients, inputs, needed, strict=True)
    ]
    dfield, dweight, dthreshold, _, dgate, dbias = asked
    dz, sums, columns_sums = _backward_of_gate(grad, field, inputs, dilations, activation, asked)
    partial, columns_weight = None, 0
    if dz is not None:
        partial, columns_weight = _backward_of_field(dz, field, weight, dilations, dfield, dweight)
    launch(
        finish_kernel,
        sum(gradient.numel() for gradient in (dweight, dthreshold, dbias, dgate) if gradient is not None),
        partial,
        dweight,
        weight.numel(),
        columns_weight,
        sums,
        dthreshold,
        dbias,
        dgate,
        field.shape[1],
        field.shape[0],
        columns_sums,
        device=field.device,
        BLOCK=1024,
        COMPUTE=TRITON_DTYPES[compute_dtype(field.dtype)],
        num_warps=4,
    )
    return gradients


def _backward_of_gate(
    grad: Tensor,
    field: Tensor,
    inputs: Sequence[Tensor | None],
    dilations: Sequence[int],
    activation: str,
    asked: Sequence[Tensor | None],
) -> tuple[Tensor | None, Tensor | None, int]:
    """dz if it is needed, the sums of every tile as (3, C * B, tiles) if they are, and the number of tiles."""
    _, weight, threshold, skip, channel_gate, bias = inputs
    dfield, dweight, dthreshold, dskip, dgate, dbias = asked
    assert weight is not None
    dtype = compute_dtype(field.dtype)
    # dz is kept in float32 for half types too: rounding it would put an error into every tap of both sums over it.
    dz = torch.empty_like(field, dtype=dtype) if dfield is not None or dweight is not None else None
    tensors = [t for t in (field, dz, dskip, grad, skip) if t is not None]
    tile = gate_tile(tensors, dilations, weight.shape[-1], GATE)
    sizes = _sizes(field)
    tiles = tile.counts(sizes)
    batch, per_plane = field.shape[0], math.prod(tiles[1:])
    sums = None
    if any(gradient is not None for gradient in (dthreshold, dbias, dgate)):
        sums = torch.empty(3, field.shape[1], batch, per_plane, dtype=dtype, device=field.device)
    launch(
        _gate_backward_kernel,
        batch * math.prod(tiles),
        grad,
        field,
        *_contiguous(weight, threshold, bias, channel_gate),
        skip,
        dskip,
        dz,
        sums,
        *map(spatial_strides, (grad, field, skip, dskip, dz)),
        sizes,
        tiles,
        tile.steps,
        batch,
        device=field.device,
        TILE=tile,
        COMPUTE=TRITON_DTYPES[dtype],
        ACTIVATION=activation,
        num_warps=tile.warps,
    )
    return dz, sums, per_plane


def _backward_of_field(
    dz: Tensor,
    field: Tensor,
    weight: Tensor,
    dilations: Sequence[int],
    dfield: Tensor | None,
    dweight: Tensor | None,
) -> tuple[Tensor | None, int]:
    """Fills dfield; gives the correlations of every tile as (weights, B * tiles) if they are needed."""
    tensors = [t for t in (dz, dfield, field) if t is not None]
    tile = gate_tile(tensors, dilations, weight.shape[-1], FIELD)
    sizes = _sizes(field)
    tiles = tile.counts(sizes)
    columns = field.shape[0] * math.prod(tiles[1:])
    partial = None if dweight is None else dz.new_empty(weight.numel(), columns)
    launch(
        _field_backward_kernel,
        field.shape[0] * math.prod(tiles),
        dz,
        field,
        *_contiguous(weight),
        dfield,
        partial,
        *map(spatial_strides, (dz, field, dfield)),
        sizes,
        tiles,
        tile.steps,
        field.shape[0],
        device=field.device,
        TILE=tile,
        COMPUTE=TRITON_DTYPES[dz.dtype],
        num_warps=tile.warps,
    )
    return partial, columns


def _sizes(field: Tensor) -> tuple[int, int, int, int]:
    """(channels, depth, height, width)."""
    _, channels, *depth, height, width = field.shape
    return channels, depth[0] if depth else 1, height, width


def _contiguous(*parameters: Tensor | None) -> list[Tensor | None]:
    return [None if parameter is None else parameter.contiguous() for parameter in parameters]

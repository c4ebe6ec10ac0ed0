"""proximal_gate in Triton: one launch forward; backward two, and a small one that adds up the sums of the tiles.

    z = sum_m depthwise_conv(field, weight[m], dilation d_m) + bias;  u = soft threshold of z
    y = skip * activation(u) * channel_gate

Floors, for n elements of s bytes and a stencil of t distinct taps (25 in 2-D and 79 in 3-D for dilations 1, 2, 3):
forward 3 n s bytes and 2 t n flops, backward 7 n s bytes (5 n s, and dz written and read) and 6 t n flops.

How the kernels approach them: each tensor is named once in a launch, and the halo is left to L1 and L2, of which a
thread's rows (8 or 4, in 3-D 2 or 1) share the loads. Threshold, activation, skip and gate are applied to the sums in
registers. The second backward launch makes dfield and the weight gradient from the same loads of dz. Sums over a tile
are stored as partial sums in float32 (float64) and added in fixed order: no atomics, bitwise repeatable.

What the compiler made of it for sm_90 (Triton 3.9, float32, 128 x 128, dilations 1, 2, 3; no spills in any; read from
the machine code, nothing of it is a measured time):
    forward            80 registers, 57 instructions an output (25 of them FMA), 50 loads of 16 bytes for 32 outputs
    backward of gate   92 registers, 77 instructions an output
    backward of field  96 registers, 113 instructions an output (50 of them FMA), 34 loads of 16 bytes for 16 outputs
With 4 rows a thread instead of 8 the forward needs 71 instructions an output; with 8 instead of 4 the backward of the
field needs 190 registers. In 3-D (2 rows, for the field 1) they are 66, 154 and 112 registers and 267, 295 and 802
instructions an output: there the sums over the tile, 651 shuffles for 4 outputs, outweigh the stencil. At 80
registers an SM holds 24 warps of 64, at 96 it holds 20.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configuration import gate_tile, warps
from .convolution import (
    block_zeros,
    convolve,
    load_output,
    mask_output,
    parted,
    per_channel,
    stacked,
    store_output,
    tile_origin,
    tile_place,
)
from .launch import TRITON_DTYPES, compute_dtype, launch, spatial_strides
from .reduction import finish_kernel
from .shrinkage import activate, shrink, sign, slope
from .soft_threshold import soft_threshold_backward, soft_threshold_forward
from .stencil import correlation_order

__all__ = ["backward", "forward", "soft_threshold_backward", "soft_threshold_forward"]


@triton.jit
def _parameters(ptr_threshold, ptr_bias, ptr_gate, sizes, place, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    """threshold, bias (0) and channel_gate (1), as (CHANNELS, 1, 1, 1)."""
    threshold = per_channel(ptr_threshold, place, 1, TILE, COMPUTE)
    bias = tl.zeros_like(threshold)
    if ptr_bias is not None:
        bias = per_channel(ptr_bias, place, 1, TILE, COMPUTE)
    gate = tl.full(threshold.shape, 1.0, COMPUTE)
    if ptr_gate is not None:
        gate = per_channel(ptr_gate + place[0] * sizes[0], place, 1, TILE, COMPUTE)
    return threshold, bias, gate


@triton.jit
def _store_sums(ptr_sums, values, sizes, tiles, batches, place, TILE: tl.constexpr):
    """The sums of three (CHANNELS, GROUPS, LANES, VECTOR) tensors over the tile, into (3, C, B, tiles)."""
    CHANNELS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.groups * TILE.lanes * TILE.vector
    sums = tl.sum(tl.reshape(stacked(values, 3, 4), (CHANNELS, POSITIONS, 4)), axis=1)
    kind = tl.arange(0, 4)
    per_plane = tiles[1] * tiles[2] * tiles[3]
    offs_channel = (place[1] + place[2]).to(tl.int64)
    offs = (kind[None, :] * sizes[0] + offs_channel[:, None]) * (batches * per_plane) + place[0] * per_plane + place[7]
    tl.store(ptr_sums + offs, sums, mask=place[3][:, None] & (kind < 3)[None, :])


@triton.jit
def _gate_kernel(ptr_field, ptr_weight, ptr_threshold, ptr_bias, ptr_gate, ptr_skip, ptr_out,
                 strides_field, strides_skip, strides_out, sizes, tiles,
                 TILE: tl.constexpr, COMPUTE: tl.constexpr, ACTIVATION: tl.constexpr):
    BLOCKS: tl.constexpr = TILE.blocks
    place = tile_place(sizes, tiles, TILE)
    t, shift, scale = _parameters(ptr_threshold, ptr_bias, ptr_gate, sizes, place, TILE, COMPUTE)
    t = tl.where(t < 0, 0.0, t)
    sums = convolve(tile_origin(ptr_field, strides_field, place, TILE), strides_field, ptr_weight, (), None, 0, 0, 0,
                     sizes, place, TILE, COMPUTE, False, False)
    out = tile_origin(ptr_out, strides_out, place, TILE)
    for i in tl.static_range(BLOCKS):
        y = activate(shrink(sums[i] + shift, t), ACTIVATION)
        if ptr_skip is not None:
            y = y * load_output(ptr_skip, strides_skip, sizes, place, i, TILE, COMPUTE)
        store_output(out, strides_out, sizes, place, i, y * scale, TILE)


@triton.jit
def _gate_backward_kernel(ptr_grad, ptr_field, ptr_weight, ptr_threshold, ptr_bias, ptr_gate, ptr_skip,
                          ptr_dskip, ptr_dz, ptr_sums, strides_grad, strides_field, strides_skip, strides_dskip,
                          strides_dz, sizes, tiles, batches,
                          TILE: tl.constexpr, COMPUTE: tl.constexpr, ACTIVATION: tl.constexpr):
    """z again, and from it dz, dskip and, for every channel, the tile's sums for threshold, bias and gate."""
    BLOCKS: tl.constexpr = TILE.blocks
    place = tile_place(sizes, tiles, TILE)
    tau, shift, scale = _parameters(ptr_threshold, ptr_bias, ptr_gate, sizes, place, TILE, COMPUTE)
    t = tl.where(tau < 0, 0.0, tau)
    sums = convolve(tile_origin(ptr_field, strides_field, place, TILE), strides_field, ptr_weight, (), None, 0, 0, 0,
                     sizes, place, TILE, COMPUTE, False, False)
    dthreshold = block_zeros(TILE, COMPUTE)
    dbias = dthreshold
    dgate = dthreshold
    for i in tl.static_range(BLOCKS):
        z = sums[i] + shift
        u = shrink(z, t)
        gate = activate(u, ACTIVATION)
        dy = load_output(ptr_grad, strides_grad, sizes, place, i, TILE, COMPUTE)
        du = dy
        if ptr_skip is not None:
            du = dy * load_output(ptr_skip, strides_skip, sizes, place, i, TILE, COMPUTE)
        dz = tl.where(tl.abs(z) <= t, 0.0, du * scale * slope(u, gate, ACTIVATION))
        if ptr_dskip is not None:
            store_output(tile_origin(ptr_dskip, strides_dskip, place, TILE), strides_dskip, sizes, place, i,
                          dy * gate * scale, TILE)
        if ptr_dz is not None:
            store_output(tile_origin(ptr_dz, strides_dz, place, TILE), strides_dz, sizes, place, i, dz, TILE)
        if ptr_sums is not None:
            mask = mask_output(sizes, place, i, TILE)
            dthreshold += tl.where(mask, -sign(z) * dz, 0.0)
            dbias += tl.where(mask, dz, 0.0)
            dgate += tl.where(mask, du * gate, 0.0)
    if ptr_sums is not None:
        dthreshold = dthreshold * (tau >= 0).to(COMPUTE)
        _store_sums(ptr_sums, (dthreshold, dbias, dgate), sizes, tiles, batches, place, TILE)


@triton.jit
def _field_backward_kernel(ptr_dz, ptr_field, ptr_weight, ptr_dfield, ptr_partial, strides_dz, strides_field,
                           strides_dfield, sizes, tiles, batches,
                           TILE: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr):
    """The transposed stencil over dz; and, from the same loads, the tile's correlation of dz with the field."""
    BLOCKS: tl.constexpr = TILE.blocks
    place = tile_place(sizes, tiles, TILE)
    values = ()
    if ptr_partial is not None:
        for i in tl.static_range(BLOCKS):
            values = values + parted(load_output(ptr_field, strides_field, sizes, place, i, TILE, COMPUTE), TILE)
    per_plane = tiles[1] * tiles[2] * tiles[3]
    sums = convolve(tile_origin(ptr_dz, strides_dz, place, TILE), strides_dz, ptr_weight, values, ptr_partial,
                     ROWS, batches * per_plane, place[0] * per_plane + place[7],
                     sizes, place, TILE, COMPUTE, True, ptr_partial is not None)
    if ptr_dfield is not None:
        out = tile_origin(ptr_dfield, strides_dfield, place, TILE)
        for i in tl.static_range(BLOCKS):
            store_output(out, strides_dfield, sizes, place, i, sums[i], TILE)


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
    tile = gate_tile(tensors, 2, dilations, weight.shape[-1], correlated=False)
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
        device=field.device,
        TILE=tile,
        COMPUTE=TRITON_DTYPES[compute_dtype(field.dtype)],
        ACTIVATION=activation,
        num_warps=warps(tile),
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
    channels, batch = field.shape[1], field.shape[0]
    places = weight[0, 0].numel()
    kernel_size, spatial = weight.shape[-1], field.dim() - 2
    programs = sum(gradient.numel() for gradient in (dweight, dthreshold, dbias, dgate) if gradient is not None)
    order = None if dweight is None else correlation_order(tuple(dilations), kernel_size, spatial)
    launch(
        finish_kernel,
        programs,
        partial,
        sums,
        dweight,
        dthreshold,
        dbias,
        dgate,
        channels,
        batch,
        columns_weight,
        columns_sums,
        device=field.device,
        ORDER=order,
        PLACES=places,
        BLOCK=1024,
        DTYPE=TRITON_DTYPES[compute_dtype(field.dtype)],
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
    """dz if it is needed, the sums of every tile as (3, C, B, tiles) if they are, and the number of tiles."""
    _, weight, threshold, skip, channel_gate, bias = inputs
    dfield, dweight, dthreshold, dskip, dgate, dbias = asked
    assert weight is not None
    dtype = compute_dtype(field.dtype)
    # dz is kept in float32 for half types too: rounding it would put an error into every tap of both sums over it.
    dz = torch.empty_like(field, dtype=dtype) if dfield is not None or dweight is not None else None
    tensors = [t for t in (field, dz, dskip, grad, skip) if t is not None]
    tile = gate_tile(tensors, len(tensors) - (1 if skip is None else 2), dilations, weight.shape[-1], correlated=False)
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
        batch,
        device=field.device,
        TILE=tile,
        COMPUTE=TRITON_DTYPES[dtype],
        ACTIVATION=activation,
        num_warps=warps(tile),
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
    """Fills dfield; gives the correlations of every tile as (C, weights, B * tiles) if they are needed."""
    tensors = [t for t in (dz, dfield, field) if t is not None]
    kernel_size = weight.shape[-1]
    tile = gate_tile(tensors, len(tensors) - 1, dilations, kernel_size, correlated=dweight is not None)
    sizes = _sizes(field)
    tiles = tile.counts(sizes)
    rows = weight.shape[0] * weight[0, 0].numel()
    columns = field.shape[0] * math.prod(tiles[1:])
    partial = None if dweight is None else dz.new_empty(field.shape[1], rows, columns)
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
        field.shape[0],
        device=field.device,
        TILE=tile,
        COMPUTE=TRITON_DTYPES[dz.dtype],
        ROWS=rows,
        num_warps=warps(tile),
    )
    return partial, columns


def _sizes(field: Tensor) -> tuple[int, int, int, int]:
    """(channels, depth, height, width)."""
    _, channels, *depth, height, width = field.shape
    return channels, depth[0] if depth else 1, height, width


def _contiguous(*parameters: Tensor | None) -> list[Tensor | None]:
    return [None if parameter is None else parameter.contiguous() for parameter in parameters]

"""proximal_gate and soft_threshold in Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configuration import gate_tile, needs_int64, power_of_two, warps
from .launch import INTERPRETED, TRITON_DTYPES, compute_dtype, extent, launch, merged_dimensions, spatial_strides
from .stencil import correlation_order, count, entry, plan, power_of_two_at_least


@triton.jit
def _tanh(u):
    # Below 0.625 the continued fraction x / (1 + x^2 / (3 + x^2 / (5 + ...))) keeps the relative accuracy that
    # 1 - exp(-2|u|) would lose; above it the exponential is at most 0.29 and nothing cancels.
    # The convergents are summed by their recurrence: one division, and every term positive.
    LEVELS: tl.constexpr = 10 if u.dtype == tl.float64 else 6
    square = u * u
    above, below = tl.full(u.shape, 1.0, u.dtype), tl.full(u.shape, 1.0, u.dtype)
    above_before, below_before = tl.zeros_like(u), tl.full(u.shape, 1.0, u.dtype)
    for level in tl.static_range(2, LEVELS + 1):
        above, above_before = (2 * level - 1) * above + square * above_before, above
        below, below_before = (2 * level - 1) * below + square * below_before, below
    size = tl.abs(u)
    decay = tl.exp(-2.0 * size)
    large = (1.0 - decay) / (1.0 + decay)
    return tl.where(size < 0.625, u * (above / below), tl.where(u < 0, -large, large))


@triton.jit
def _sign(z):
    return tl.where(z > 0, 1.0, tl.where(z < 0, -1.0, 0.0)).to(z.dtype)


@triton.jit
def _shrink(z, t):
    # Asked this way round a NaN, in z or in t, is never silenced.
    return tl.where(tl.abs(z) <= t, 0.0, z - t * _sign(z))


@triton.jit
def _activate(u, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        return _tanh(u)
    elif ACTIVATION == "relu":
        return tl.where(u <= 0, 0.0, u)
    else:
        return u


@triton.jit
def _slope(u, gate, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        return 1.0 - gate * gate
    elif ACTIVATION == "relu":
        return tl.where(u <= 0, 0.0, 1.0).to(u.dtype)
    else:
        return tl.full(u.shape, 1.0, u.dtype)


@triton.jit
def _program(tiles, TILE: tl.constexpr):
    """The tile of this program: batch, then places in the grid of tiles of channels, depths, rows and columns."""
    rest = tl.program_id(0)
    pid_channel = rest * 0
    if TILE.channels_fastest:
        pid_channel = rest % tiles[0]
        rest = rest // tiles[0]
    pid_column = rest % tiles[3]
    rest = rest // tiles[3]
    pid_row = rest % tiles[2]
    rest = rest // tiles[2]
    pid_depth = rest % tiles[1]
    rest = rest // tiles[1]
    if not TILE.channels_fastest:
        pid_channel = rest % tiles[0]
        rest = rest // tiles[0]
    return rest, pid_channel, pid_depth, pid_row, pid_column


@triton.jit
def _place(sizes, tiles, TILE: tl.constexpr):
    """(batch, first channel, channels of the tile, their mask, first depth, first rows, first columns, tile number)."""
    CHANNELS: tl.constexpr = TILE.channels
    GROUPS: tl.constexpr = TILE.groups
    LANES: tl.constexpr = TILE.lanes
    batch, pid_channel, pid_depth, pid_row, pid_column = _program(tiles, TILE)
    first_channel = pid_channel * CHANNELS
    offs_channel = tl.arange(0, CHANNELS)
    mask_channel = offs_channel < sizes[0] - first_channel
    group = tl.arange(0, GROUPS)
    offs_depth = (pid_depth * (GROUPS // TILE.groups_in_plane) + group // TILE.groups_in_plane) * TILE.depths
    offs_row = (pid_row * TILE.groups_in_plane + group % TILE.groups_in_plane) * TILE.rows
    offs_column = (pid_column * LANES + tl.arange(0, LANES)) * TILE.columns
    number = (pid_depth * tiles[2] + pid_row) * tiles[3] + pid_column
    return batch, first_channel, offs_channel, mask_channel, offs_depth, offs_row, offs_column, number


@triton.jit
def _origin(ptr, strides, place, TILE: tl.constexpr):
    VECTOR: tl.constexpr = TILE.vector
    start = place[0].to(tl.int64) * strides[0] + place[1].to(tl.int64) * strides[1]
    return ptr + tl.multiple_of(start, [VECTOR])


@triton.jit
def _offsets(strides, place, depth, row, column, TILE: tl.constexpr):
    """(CHANNELS, GROUPS, LANES, VECTOR) offsets of a block at (depth, row, column) from the thread's first output."""
    VECTOR: tl.constexpr = TILE.vector
    offs_channel = place[2]
    offs_depth = place[4] + depth
    offs_row = place[5] + row
    offs_column = place[6] + column
    if TILE.wide:
        offs_channel = offs_channel.to(tl.int64)
        offs_depth = offs_depth.to(tl.int64)
        offs_row = offs_row.to(tl.int64)
        offs_column = offs_column.to(tl.int64)
    offs_plane = offs_depth * strides[2] + offs_row * strides[3]
    outer = offs_channel[:, None, None, None] * strides[1] + offs_plane[None, :, None, None]
    inner = (offs_column[:, None] + tl.arange(0, VECTOR)[None, :]) * strides[4]
    return tl.multiple_of(outer, [VECTOR, VECTOR, VECTOR, VECTOR]) + inner[None, None, :, :]


@triton.jit
def _mask(sizes, place, depth, row, column, TILE: tl.constexpr):
    """Blocks that lie in the image; with VECTOR > 1 a block lies in it wholly or not at all."""
    offs_row = place[5] + row
    offs_column = place[6] + column
    mask_row = (offs_row >= 0) & (offs_row < sizes[2])
    if TILE.spatial == 3:
        offs_depth = place[4] + depth
        mask_row = mask_row & (offs_depth >= 0) & (offs_depth < sizes[1])
    mask_column = (offs_column >= 0) & (offs_column < sizes[3])
    mask = mask_row[None, :, None, None] & mask_column[None, None, :, None]
    if not TILE.even:
        mask = mask & place[3][:, None, None, None]
    return mask


@triton.jit
def _load(origin, strides, sizes, place, depth, row, column, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    ptrs = origin + _offsets(strides, place, depth, row, column, TILE)
    return tl.load(ptrs, mask=_mask(sizes, place, depth, row, column, TILE), other=0.0).to(COMPUTE)


@triton.jit
def _zeros(TILE: tl.constexpr, COMPUTE: tl.constexpr):
    CHANNELS: tl.constexpr = TILE.channels
    GROUPS: tl.constexpr = TILE.groups
    LANES: tl.constexpr = TILE.lanes
    return tl.zeros((CHANNELS, GROUPS, LANES), COMPUTE)


@triton.jit
def _zeros_of_block(TILE: tl.constexpr, COMPUTE: tl.constexpr):
    CHANNELS: tl.constexpr = TILE.channels
    GROUPS: tl.constexpr = TILE.groups
    LANES: tl.constexpr = TILE.lanes
    VECTOR: tl.constexpr = TILE.vector
    return tl.zeros((CHANNELS, GROUPS, LANES, VECTOR), COMPUTE)


@triton.jit
def _parted(block, TILE: tl.constexpr):
    """(..., VECTOR) -> VECTOR tensors, in registers."""
    CHANNELS: tl.constexpr = TILE.channels
    GROUPS: tl.constexpr = TILE.groups
    LANES: tl.constexpr = TILE.lanes
    if TILE.vector == 1:
        return (tl.reshape(block, (CHANNELS, GROUPS, LANES)),)
    elif TILE.vector == 2:
        first, second = tl.split(block)
        return first, second
    else:
        even, odd = tl.split(tl.reshape(block, (CHANNELS, GROUPS, LANES, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth


@triton.jit
def _joined(values, FIRST: tl.constexpr, TILE: tl.constexpr):
    """The inverse of `_parted`, of VECTOR tensors from values[FIRST] on."""
    CHANNELS: tl.constexpr = TILE.channels
    GROUPS: tl.constexpr = TILE.groups
    LANES: tl.constexpr = TILE.lanes
    VECTOR: tl.constexpr = TILE.vector
    if VECTOR == 1:
        block = values[FIRST]
    elif VECTOR == 2:
        block = tl.join(values[FIRST], values[FIRST + 1])
    else:
        even = tl.join(values[FIRST], values[FIRST + 2])
        block = tl.join(even, tl.join(values[FIRST + 1], values[FIRST + 3]))
    return tl.reshape(block, (CHANNELS, GROUPS, LANES, VECTOR))


@triton.jit
def _stacked(values, COUNT: tl.constexpr, SIZE: tl.constexpr):
    """COUNT tensors and zeros up to SIZE, a power of two, as one tensor with log2(SIZE) trailing dimensions of 2."""
    items = values
    for _ in tl.static_range(SIZE - COUNT):
        items = items + (tl.zeros_like(values[0]),)
    for level in tl.static_range(8):
        if SIZE >> (level + 1) > 0:
            paired = ()
            for i in tl.static_range(SIZE >> (level + 1)):
                paired = paired + (tl.join(items[i], items[i + (SIZE >> (level + 1))]),)
            items = paired
    return items[0]


@triton.jit
def _per_channel(ptr, place, scale, other, COMPUTE: tl.constexpr):
    """A parameter of the tile's channels, as (CHANNELS, 1, 1)."""
    values = tl.load(ptr + (place[1] + place[2]) * scale, mask=place[3], other=other)
    return values.to(COMPUTE)[:, None, None]


@triton.jit
def _weight(ptr_weight, index, sizes, place, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    """weight[m, c, tap] for index = m * PLACES + tap, as (CHANNELS, 1, 1)."""
    PLACES: tl.constexpr = TILE.kernel_size**TILE.spatial
    offs = (index // PLACES) * sizes[0] * PLACES + index % PLACES
    return _per_channel(ptr_weight + offs, place, PLACES, 0.0, COMPUTE)


@triton.jit
def _merged_weight(ptr_weight, PLAN: tl.constexpr, G: tl.constexpr, T: tl.constexpr, sizes, place, TILE: tl.constexpr,
                   COMPUTE: tl.constexpr):
    """The sum of the weights that meet at a tap."""
    weight = _weight(ptr_weight, entry(PLAN, "groups", G, "taps", T, "weights", 0), sizes, place, TILE, COMPUTE)
    for i in tl.static_range(1, count(PLAN, "groups", G, "taps", T, "weights")):
        weight += _weight(ptr_weight, entry(PLAN, "groups", G, "taps", T, "weights", i), sizes, place, TILE, COMPUTE)
    return tl.broadcast_to(weight, _zeros(TILE, COMPUTE).shape)


@triton.jit
def _parameters(ptr_threshold, ptr_bias, ptr_gate, sizes, place, COMPUTE: tl.constexpr):
    """threshold, bias (0) and channel_gate (1), as (CHANNELS, 1, 1, 1)."""
    threshold = _per_channel(ptr_threshold, place, 1, 0.0, COMPUTE)
    bias = tl.zeros_like(threshold)
    if ptr_bias is not None:
        bias = _per_channel(ptr_bias, place, 1, 0.0, COMPUTE)
    gate = tl.full(threshold.shape, 1.0, COMPUTE)
    if ptr_gate is not None:
        gate = _per_channel(ptr_gate + place[0] * sizes[0], place, 1, 0.0, COMPUTE)
    return threshold[:, :, :, None], bias[:, :, :, None], gate[:, :, :, None]


# Output i of a thread is a block of VECTOR outputs: which depth, row and column they start at.


@triton.jit
def _load_output(ptr, strides, sizes, place, I: tl.constexpr, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    PER_ROW: tl.constexpr = TILE.columns // TILE.vector
    return _load(_origin(ptr, strides, place, TILE), strides, sizes, place, I // PER_ROW // TILE.rows,
                 I // PER_ROW % TILE.rows, I % PER_ROW * TILE.vector, TILE, COMPUTE)


@triton.jit
def _store_output(origin, strides, sizes, place, I: tl.constexpr, value, TILE: tl.constexpr):
    PER_ROW: tl.constexpr = TILE.columns // TILE.vector
    depth: tl.constexpr = I // PER_ROW // TILE.rows
    row: tl.constexpr = I // PER_ROW % TILE.rows
    ptrs = origin + _offsets(strides, place, depth, row, I % PER_ROW * TILE.vector, TILE)
    tl.store(ptrs, value.to(origin.dtype.element_ty), mask=_mask_output(sizes, place, I, TILE))


@triton.jit
def _mask_output(sizes, place, I: tl.constexpr, TILE: tl.constexpr):
    PER_ROW: tl.constexpr = TILE.columns // TILE.vector
    return _mask(sizes, place, I // PER_ROW // TILE.rows, I // PER_ROW % TILE.rows, I % PER_ROW * TILE.vector, TILE)


@triton.jit
def _store_sums(ptr_sums, values, sizes, tiles, batches, place, TILE: tl.constexpr):
    """The sums of three (CHANNELS, GROUPS, LANES, VECTOR) tensors over the tile, into (3, C, B, tiles)."""
    CHANNELS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.groups * TILE.lanes * TILE.vector
    sums = tl.sum(tl.reshape(_stacked(values, 3, 4), (CHANNELS, POSITIONS, 4)), axis=1)
    kind = tl.arange(0, 4)
    per_plane = tiles[1] * tiles[2] * tiles[3]
    offs_channel = (place[1] + place[2]).to(tl.int64)
    offs = (kind[None, :] * sizes[0] + offs_channel[:, None]) * (batches * per_plane) + place[0] * per_plane + place[7]
    tl.store(ptr_sums + offs, sums, mask=place[3][:, None] & (kind < 3)[None, :])


@triton.jit
def _store_correlation(ptr_partial, first_row, values, COUNT: tl.constexpr, rows, columns, column, place,
                       TILE: tl.constexpr):
    """Sum COUNT tensors over the tile and store them as rows first_row and on of the workspace (C, rows, columns)."""
    CHANNELS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.groups * TILE.lanes
    SIZE: tl.constexpr = power_of_two_at_least(COUNT)
    sums = tl.sum(tl.reshape(_stacked(values, COUNT, SIZE), (CHANNELS, POSITIONS, SIZE)), axis=1)
    offs_row = tl.arange(0, SIZE)
    offs_channel = (place[1] + place[2]).to(tl.int64)
    ptrs = ptr_partial + (offs_channel[:, None] * rows + first_row + offs_row[None, :]) * columns + column
    tl.store(ptrs, sums, mask=place[3][:, None] & (offs_row < COUNT)[None, :])


@triton.jit
def _stencil(origin, strides, ptr_weight, values, ptr_partial, rows, columns, column, sizes, place,
             TILE: tl.constexpr, COMPUTE: tl.constexpr, MIRRORED: tl.constexpr, CORRELATED: tl.constexpr):
    """DEPTHS * ROWS * COLUMNS sums over the taps, unrolled: every block is loaded once for all of them.

    CORRELATED: also sum values[output] times the input at each tap over the tile, and store the sums in the workspace.
    """
    OUTPUTS: tl.constexpr = TILE.outputs
    PLAN: tl.constexpr = plan(TILE, MIRRORED)
    zeros = _zeros(TILE, COMPUTE)
    sums = ()
    for _ in tl.static_range(OUTPUTS):
        sums = sums + (zeros,)
    for g in tl.static_range(count(PLAN, "groups")):
        weights = ()
        products = ()
        for t in tl.static_range(count(PLAN, "groups", g, "taps")):
            weights = weights + (_merged_weight(ptr_weight, PLAN, g, t, sizes, place, TILE, COMPUTE),)
            products = products + (zeros,)
        for i in tl.static_range(count(PLAN, "groups", g, "loads")):
            parts = _parted(_load(origin, strides, sizes, place, entry(PLAN, "groups", g, "depth"),
                                  entry(PLAN, "groups", g, "loads", i, "row"),
                                  entry(PLAN, "groups", g, "loads", i, "block") * TILE.vector, TILE, COMPUTE), TILE)
            updated = ()
            for o in tl.static_range(OUTPUTS):
                value = sums[o]
                for use in tl.static_range(count(PLAN, "groups", g, "loads", i, "by_output", o)):
                    value = tl.fma(parts[entry(PLAN, "groups", g, "loads", i, "by_output", o, use, 0)],
                                   weights[entry(PLAN, "groups", g, "loads", i, "by_output", o, use, 1)], value)
                updated = updated + (value,)
            sums = updated
            if CORRELATED:
                updated = ()
                for t in tl.static_range(count(PLAN, "groups", g, "taps")):
                    value = products[t]
                    for use in tl.static_range(count(PLAN, "groups", g, "loads", i, "by_tap", t)):
                        value = tl.fma(parts[entry(PLAN, "groups", g, "loads", i, "by_tap", t, use, 0)],
                                       values[entry(PLAN, "groups", g, "loads", i, "by_tap", t, use, 1)], value)
                    updated = updated + (value,)
                products = updated
        if CORRELATED:
            repeated = ()
            for r in tl.static_range(count(PLAN, "groups", g, "correlations")):
                repeated = repeated + (products[entry(PLAN, "groups", g, "correlations", r)],)
            _store_correlation(ptr_partial, entry(PLAN, "groups", g, "first_correlation"), repeated,
                               count(PLAN, "groups", g, "correlations"), rows, columns, column, place, TILE)
    return sums


@triton.jit
def _stencil_looped(origin, strides, ptr_weight, values, ptr_partial, rows, columns, column, sizes, place,
                    TILE: tl.constexpr, COMPUTE: tl.constexpr, MIRRORED: tl.constexpr, CORRELATED: tl.constexpr):
    """The same for one output a thread, a tap at a time: what large kernels get, whose unrolled sum would not compile."""
    KERNEL_SIZE: tl.constexpr = TILE.kernel_size
    PLACES: tl.constexpr = TILE.kernel_size**TILE.spatial
    HALF: tl.constexpr = TILE.kernel_size // 2
    SIGN: tl.constexpr = -1 if MIRRORED else 1
    result = _zeros(TILE, COMPUTE)
    for m in tl.static_range(count(TILE.dilations)):
        for tap in range(PLACES):
            right = (tap % KERNEL_SIZE - HALF) * (SIGN * entry(TILE.dilations, m))
            down = (tap // KERNEL_SIZE % KERNEL_SIZE - HALF) * (SIGN * entry(TILE.dilations, m))
            depth = 0
            if TILE.spatial == 3:
                depth = (tap // (KERNEL_SIZE * KERNEL_SIZE) - HALF) * (SIGN * entry(TILE.dilations, m))
            part = _parted(_load(origin, strides, sizes, place, depth, down, right, TILE, COMPUTE), TILE)[0]
            weight = _weight(ptr_weight, m * PLACES + tap, sizes, place, TILE, COMPUTE)
            result = tl.fma(part, tl.broadcast_to(weight, result.shape), result)
            if CORRELATED:
                _store_correlation(ptr_partial, m * PLACES + tap, (part * values[0],), 1, rows, columns, column,
                                   place, TILE)
    return (result,)


@triton.jit
def _convolve(origin, strides, ptr_weight, values, ptr_partial, rows, columns, column, sizes, place,
              TILE: tl.constexpr, COMPUTE: tl.constexpr, MIRRORED: tl.constexpr, CORRELATED: tl.constexpr):
    if TILE.looped:
        return _stencil_looped(origin, strides, ptr_weight, values, ptr_partial, rows, columns, column, sizes, place,
                               TILE, COMPUTE, MIRRORED, CORRELATED)
    else:
        return _stencil(origin, strides, ptr_weight, values, ptr_partial, rows, columns, column, sizes, place,
                        TILE, COMPUTE, MIRRORED, CORRELATED)


@triton.jit
def _gate_kernel(ptr_field, ptr_weight, ptr_threshold, ptr_bias, ptr_gate, ptr_skip, ptr_out,
                 strides_field, strides_skip, strides_out, sizes, tiles,
                 TILE: tl.constexpr, COMPUTE: tl.constexpr, ACTIVATION: tl.constexpr):
    BLOCKS: tl.constexpr = TILE.blocks
    place = _place(sizes, tiles, TILE)
    t, shift, scale = _parameters(ptr_threshold, ptr_bias, ptr_gate, sizes, place, COMPUTE)
    t = tl.where(t < 0, 0.0, t)
    sums = _convolve(_origin(ptr_field, strides_field, place, TILE), strides_field, ptr_weight, (), None, 0, 0, 0,
                     sizes, place, TILE, COMPUTE, False, False)
    out = _origin(ptr_out, strides_out, place, TILE)
    for i in tl.static_range(BLOCKS):
        y = _activate(_shrink(_joined(sums, i * TILE.vector, TILE) + shift, t), ACTIVATION)
        if ptr_skip is not None:
            y = y * _load_output(ptr_skip, strides_skip, sizes, place, i, TILE, COMPUTE)
        _store_output(out, strides_out, sizes, place, i, y * scale, TILE)


@triton.jit
def _gate_backward_kernel(ptr_grad, ptr_field, ptr_weight, ptr_threshold, ptr_bias, ptr_gate, ptr_skip,
                          ptr_dskip, ptr_dz, ptr_sums, strides_grad, strides_field, strides_skip, strides_dskip,
                          strides_dz, sizes, tiles, batches,
                          TILE: tl.constexpr, COMPUTE: tl.constexpr, ACTIVATION: tl.constexpr):
    """z again, and from it dz, dskip and, for every channel, the tile's sums for threshold, bias and gate."""
    BLOCKS: tl.constexpr = TILE.blocks
    place = _place(sizes, tiles, TILE)
    tau, shift, scale = _parameters(ptr_threshold, ptr_bias, ptr_gate, sizes, place, COMPUTE)
    t = tl.where(tau < 0, 0.0, tau)
    sums = _convolve(_origin(ptr_field, strides_field, place, TILE), strides_field, ptr_weight, (), None, 0, 0, 0,
                     sizes, place, TILE, COMPUTE, False, False)
    dthreshold = _zeros_of_block(TILE, COMPUTE)
    dbias = dthreshold
    dgate = dthreshold
    for i in tl.static_range(BLOCKS):
        z = _joined(sums, i * TILE.vector, TILE) + shift
        u = _shrink(z, t)
        gate = _activate(u, ACTIVATION)
        dy = _load_output(ptr_grad, strides_grad, sizes, place, i, TILE, COMPUTE)
        du = dy
        if ptr_skip is not None:
            du = dy * _load_output(ptr_skip, strides_skip, sizes, place, i, TILE, COMPUTE)
        dz = tl.where(tl.abs(z) <= t, 0.0, du * scale * _slope(u, gate, ACTIVATION))
        if ptr_dskip is not None:
            _store_output(_origin(ptr_dskip, strides_dskip, place, TILE), strides_dskip, sizes, place, i,
                          dy * gate * scale, TILE)
        if ptr_dz is not None:
            _store_output(_origin(ptr_dz, strides_dz, place, TILE), strides_dz, sizes, place, i, dz, TILE)
        if ptr_sums is not None:
            mask = _mask_output(sizes, place, i, TILE)
            dthreshold += tl.where(mask, -_sign(z) * dz, 0.0)
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
    place = _place(sizes, tiles, TILE)
    values = ()
    if ptr_partial is not None:
        for i in tl.static_range(BLOCKS):
            values = values + _parted(_load_output(ptr_field, strides_field, sizes, place, i, TILE, COMPUTE), TILE)
    per_plane = tiles[1] * tiles[2] * tiles[3]
    sums = _convolve(_origin(ptr_dz, strides_dz, place, TILE), strides_dz, ptr_weight, values, ptr_partial,
                     ROWS, batches * per_plane, place[0] * per_plane + place[7],
                     sizes, place, TILE, COMPUTE, True, ptr_partial is not None)
    if ptr_dfield is not None:
        out = _origin(ptr_dfield, strides_dfield, place, TILE)
        for i in tl.static_range(BLOCKS):
            _store_output(out, strides_dfield, sizes, place, i, _joined(sums, i * TILE.vector, TILE), TILE)


@triton.jit
def _row_sum(ptr, columns, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    total = tl.zeros((BLOCK,), DTYPE)
    for start in range(0, columns, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        total += tl.load(ptr + offs, mask=offs < columns, other=0.0)
    return tl.sum(total)


@triton.jit
def _finish_kernel(ptr_partial, ptr_sums, ptr_dweight, ptr_dthreshold, ptr_dbias, ptr_dgate, channels, batches,
                   columns_weight, columns_sums, ORDER: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
                   DTYPE: tl.constexpr):
    """One program a number: the sum of a row of a workspace. First the weights, then threshold, bias and gate."""
    rest = tl.program_id(0)
    ROWS: tl.constexpr = 0 if ORDER is None else count(ORDER)
    per_channel = (columns_sums * batches).to(tl.int64)
    if ptr_dweight is not None:
        if rest < channels * ROWS:
            row = rest % ROWS
            channel = rest // ROWS
            total = _row_sum(ptr_partial + rest.to(tl.int64) * columns_weight, columns_weight, BLOCK, DTYPE)
            index = row
            for i in tl.static_range(ROWS):
                index = tl.where(row == i, entry(ORDER, i), index)
            offs = ((index // PLACES) * channels + channel) * PLACES + index % PLACES
            tl.store(ptr_dweight + offs, total.to(ptr_dweight.dtype.element_ty))
        rest = rest - channels * ROWS
    if ptr_dthreshold is not None:
        if (rest >= 0) & (rest < channels):
            total = _row_sum(ptr_sums + rest * per_channel, columns_sums * batches, BLOCK, DTYPE)
            tl.store(ptr_dthreshold + rest, total.to(ptr_dthreshold.dtype.element_ty))
        rest = rest - channels
    if ptr_dbias is not None:
        if (rest >= 0) & (rest < channels):
            total = _row_sum(ptr_sums + (channels + rest) * per_channel, columns_sums * batches, BLOCK, DTYPE)
            tl.store(ptr_dbias + rest, total.to(ptr_dbias.dtype.element_ty))
        rest = rest - channels
    if ptr_dgate is not None:
        if rest >= 0:
            row = 2 * channels * batches + rest % channels * batches + rest // channels
            total = _row_sum(ptr_sums + row.to(tl.int64) * columns_sums, columns_sums, BLOCK, DTYPE)
            tl.store(ptr_dgate + rest, total.to(ptr_dgate.dtype.element_ty))


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
    dfield, dweight, dthreshold, dskip, dgate, dbias = asked
    dz, sums, columns_sums = _backward_of_gate(grad, inputs, dilations, activation, asked)
    partial, columns_weight = None, 0
    if dz is not None:
        partial, columns_weight = _backward_of_field(dz, field, weight, dilations, dfield, dweight)
    channels, batch = field.shape[1], field.shape[0]
    places = weight[0, 0].numel()
    kernel_size, spatial = weight.shape[-1], field.dim() - 2
    programs = sum(gradient.numel() for gradient in (dweight, dthreshold, dbias, dgate) if gradient is not None)
    order = None if dweight is None else correlation_order(tuple(dilations), kernel_size, spatial)
    launch(
        _finish_kernel,
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
    inputs: Sequence[Tensor | None],
    dilations: Sequence[int],
    activation: str,
    asked: Sequence[Tensor | None],
) -> tuple[Tensor | None, Tensor | None, int]:
    """dz if it is needed, the sums of every tile as (3, C, B, tiles) if they are, and the number of tiles."""
    field, weight, threshold, skip, channel_gate, bias = inputs
    dfield, dweight, dthreshold, dskip, dgate, dbias = asked
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
def _soft_threshold_kernel(ptr_x, ptr_threshold, ptr_out, strides_x, strides_out, channels, elements, sizes,
                           tiles_channel, tiles_plane,
                           COMPUTE: tl.constexpr, RANK: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
                           CHANNELS_FASTEST: tl.constexpr, WIDE: tl.constexpr):
    batch, offs_channel, pid_tile = _plane(tiles_channel, tiles_plane, CHANNELS, CHANNELS_FASTEST)
    mask_channel = offs_channel < channels
    mask = mask_channel[:, None] & (pid_tile * BLOCK + tl.arange(0, BLOCK) < elements)[None, :]
    t = tl.load(ptr_threshold + offs_channel, mask=mask_channel, other=0.0).to(COMPUTE)[:, None]
    z = tl.load(_pointers(ptr_x, strides_x, batch, offs_channel, pid_tile, sizes, RANK, BLOCK, WIDE), mask=mask, other=0.0)
    u = _shrink(z.to(COMPUTE), tl.where(t < 0, 0.0, t))
    ptrs_out = _pointers(ptr_out, strides_out, batch, offs_channel, pid_tile, sizes, RANK, BLOCK, WIDE)
    tl.store(ptrs_out, u.to(ptr_out.dtype.element_ty), mask=mask)


@triton.jit
def _pointers(ptr, strides, batch, offs_channel, pid_tile, sizes, RANK: tl.constexpr, BLOCK: tl.constexpr,
              WIDE: tl.constexpr):
    """`strides` is ((batch, channel), (one for each dimension of the plane))."""
    start = ptr + batch.to(tl.int64) * strides[0][0]
    offs = _elements(pid_tile, sizes, strides[1], RANK, BLOCK, WIDE)
    return start + offs_channel.to(tl.int64)[:, None] * strides[0][1] + offs[None, :]


@triton.jit
def _soft_threshold_backward_kernel(ptr_grad, ptr_x, ptr_threshold, ptr_dx, ptr_sums, strides_grad, strides_x,
                                    strides_dx, channels, elements, sizes, tiles_channel, tiles_plane, batches,
                                    COMPUTE: tl.constexpr, RANK: tl.constexpr, CHANNELS: tl.constexpr,
                                    BLOCK: tl.constexpr, CHANNELS_FASTEST: tl.constexpr, WIDE: tl.constexpr):
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
    sums = tl.sum(tl.where(mask, -_sign(z) * dz, 0.0), axis=1) * (tau >= 0).to(COMPUTE)
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
        _finish_kernel,
        channels,
        None,
        sums,
        None,
        dthreshold,
        None,
        None,
        channels,
        batch,
        0,
        tiles_plane,
        device=x.device,
        ORDER=None,
        PLACES=1,
        BLOCK=1024,
        DTYPE=TRITON_DTYPES[dtype],
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
    numbers = 4096 if INTERPRETED else 1024
    if channels_fastest:
        block_channels = min(power_of_two(channels), 64)
        block = min(power_of_two(elements), numbers // block_channels)
    else:
        block = min(power_of_two(elements), numbers)
        block_channels = min(power_of_two(channels), numbers // block)
    tiles_channel, tiles_plane = -(-channels // block_channels), -(-elements // block)
    wide = max(extent(sizes, s) for s in strides) + numbers >= 2**31
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
    return [*arguments, channels, elements, sizes, tiles_channel, tiles_plane], constants, batch * tiles_channel * tiles_plane

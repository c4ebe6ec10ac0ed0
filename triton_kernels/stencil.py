"""A sum of dilated depthwise convolutions on a tile of outputs: what the gate's kernels are made of.

A program computes a tile of (CHANNELS, POSITIONS) numbers; its positions are a box of the image, columns fastest. A
run-time loop goes over the rows of each kernel, with the taps of a row unrolled where that does not spill: a tap is one
load of the tile, shifted. Neighbouring threads load neighbouring numbers, and what one tap has loaded the next ones
find in L1. So a kernel of any size and rank compiles within a second; unrolled, with rows kept in registers, it needs
a fifth to a half of the instructions and compiles for up to 98 s.

Each kernel keeps its own centre: merging those that coincide would save 2 taps of 27 (81), and would lose the NaN that
weights of opposite sign make of an infinity in the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .launch import needs_int64, power_of_two

# The time to compile grows with the taps in the code: 9 take a second.
MOST_UNROLLED_TAPS = 50


class Budget(NamedTuple):
    """What a program may take: numbers, warps, and whether a row of taps is unrolled."""

    numbers: int
    warps: int
    unroll: bool


@dataclass(frozen=True)
class Tile:
    """What a program computes: for `channels` channels a box of depths x rows x columns."""

    dilations: tuple[int, ...]
    kernel_size: int
    spatial: int
    channels: int
    depths: int
    rows: int
    columns: int
    channels_fastest: bool
    even: bool  # no channel of a tile is beyond the last
    wide: bool  # offsets inside a tile take 64 bits
    unrolled: int  # how many taps of each kernel are unrolled: a row of them or one
    warps: int

    @property
    def positions(self) -> int:
        return self.depths * self.rows * self.columns

    @property
    def places(self) -> int:
        """How many taps a kernel has."""
        places: int = self.kernel_size**self.spatial
        return places

    @property
    def steps(self) -> int:
        """How many times the loop over the taps of a kernel runs."""
        return self.places // self.unrolled

    @property
    def kernels(self) -> int:
        return len(self.dilations)

    def counts(self, sizes: Sequence[int]) -> tuple[int, int, int, int]:
        """How many tiles cover (channels, depth, height, width)."""
        steps = (self.channels, self.depths, self.rows, self.columns)
        return tuple(-(-size // step) for size, step in zip(sizes, steps, strict=True))  # type: ignore[return-value]


def gate_tile(tensors: Sequence[Tensor], dilations: Sequence[int], kernel_size: int, budget: Budget) -> Tile:
    """The tile for a stencil over `tensors[0]`: the same on a GPU and under the interpreter."""
    field = tensors[0]
    numbers = budget.numbers // max(field.element_size() // 4, 1)  # float64 takes two registers a number
    spatial = field.dim() - 2
    _, channels, *depth, height, width = field.shape
    channels_fastest = channels > 1 and field.stride(1) == 1 and field.stride(-1) != 1
    # A warp loads 128 bytes side by side: along the width, or along the channels.
    block_channels = min(power_of_two(channels), 128 // field.element_size()) if channels_fastest else 1
    positions = numbers // block_channels
    columns = min(power_of_two(width), 8 if channels_fastest else 32)
    rows = min(power_of_two(height), positions // columns, 8 if spatial == 3 else positions)
    depths = min(power_of_two(depth[0]) if depth else 1, positions // (columns * rows))
    if not channels_fastest:
        block_channels = min(power_of_two(channels), numbers // (depths * rows * columns))
    block = (block_channels, depths, rows, columns) if spatial == 3 else (block_channels, rows, columns)
    reach = [sum((size - 1) * abs(stride) for size, stride in zip(block, t.stride()[1:], strict=True)) for t in tensors]
    return Tile(
        dilations=tuple(dilations),
        kernel_size=kernel_size,
        spatial=spatial,
        channels=block_channels,
        depths=depths,
        rows=rows,
        columns=columns,
        channels_fastest=channels_fastest,
        even=channels % block_channels == 0,
        wide=needs_int64(max(reach)),
        unrolled=kernel_size if budget.unroll and len(dilations) * kernel_size <= MOST_UNROLLED_TAPS else 1,
        warps=min(budget.warps, max(1, block_channels * depths * rows * columns // 32)),
    )


@triton.jit
def tile_place(tiles, TILE: tl.constexpr):
    """What this program computes: (batch, first channel, first depth, first row, first column, tile of the image)."""
    rest = tl.program_id(0)
    channel = rest * 0
    if TILE.channels_fastest:
        channel = rest % tiles[0]
        rest = rest // tiles[0]
    number = rest % (tiles[1] * tiles[2] * tiles[3])
    rest = rest // (tiles[1] * tiles[2] * tiles[3])
    if not TILE.channels_fastest:
        channel = rest % tiles[0]
        rest = rest // tiles[0]
    depth = number // (tiles[2] * tiles[3])
    row = number // tiles[3] % tiles[2]
    column = number % tiles[3]
    return rest, channel * TILE.channels, depth * TILE.depths, row * TILE.rows, column * TILE.columns, number


@triton.jit
def _inside(TILE: tl.constexpr):
    """Depth, row and column of each position, counted from the first of the tile."""
    POSITIONS: tl.constexpr = TILE.positions
    position = tl.arange(0, POSITIONS)
    # Triton would else give a thread 4 neighbours, which a tap that is shifted by one column cannot load at once: each
    # of the 4 loads would touch 4 times as many cache lines.
    column = tl.max_contiguous(position % TILE.columns, [1])
    return position // (TILE.rows * TILE.columns), position // TILE.columns % TILE.rows, column


@triton.jit
def tile_channels(place, sizes, TILE: tl.constexpr):
    """The channels of the tile, and which of them there are."""
    CHANNELS: tl.constexpr = TILE.channels
    offs_channel = place[1] + tl.arange(0, CHANNELS)
    return offs_channel, offs_channel < sizes[0]


@triton.jit
def tile_address(ptr, strides, place, TILE: tl.constexpr):
    """A pointer to the first number of the tile, and the (CHANNELS, POSITIONS) offsets from there."""
    CHANNELS: tl.constexpr = TILE.channels
    start = place[0].to(tl.int64) * strides[0]
    for i in tl.static_range(1, 5):
        start += place[i].to(tl.int64) * strides[i]
    channel = tl.arange(0, CHANNELS)
    depth, row, column = _inside(TILE)
    if TILE.wide:
        channel = channel.to(tl.int64)
        depth = depth.to(tl.int64)
        row = row.to(tl.int64)
        column = column.to(tl.int64)
    offs = depth * strides[2] + row * strides[3] + column * strides[4]
    return ptr + start, (channel * strides[1])[:, None] + offs[None, :]


@triton.jit
def tile_mask(place, sizes, depth, row, column, TILE: tl.constexpr):
    """(CHANNELS, POSITIONS): whether the position shifted by (depth, row, column) lies in the image."""
    inner_depth, inner_row, inner_column = _inside(TILE)
    # Below zero is far beyond the last in unsigned numbers: one comparison for both ends.
    mask = (inner_column + (place[4] + column)).to(tl.uint32) < tl.cast(sizes[3], tl.uint32)
    mask = mask & ((inner_row + (place[3] + row)).to(tl.uint32) < tl.cast(sizes[2], tl.uint32))
    if TILE.spatial == 3:
        mask = mask & ((inner_depth + (place[2] + depth)).to(tl.uint32) < tl.cast(sizes[1], tl.uint32))
    mask = mask[None, :]
    if not TILE.even:
        mask = mask & tile_channels(place, sizes, TILE)[1][:, None]
    return mask


@triton.jit
def tile_load(ptr, strides, place, mask, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    origin, offs = tile_address(ptr, strides, place, TILE)
    return tl.load(origin + offs, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def tile_store(ptr, strides, place, mask, value, TILE: tl.constexpr):
    origin, offs = tile_address(ptr, strides, place, TILE)
    tl.store(origin + offs, value.to(ptr.dtype.element_ty), mask=mask)


@triton.constexpr_function
def _entry(values, index):
    return values[index]


@triton.jit
def _tap(step, TAP: tl.constexpr, TILE: tl.constexpr):
    """Tap TAP of a step of the loop: its depth, row and column in the kernel."""
    SIZE: tl.constexpr = TILE.kernel_size
    if TILE.unrolled == SIZE:
        return step // SIZE, step % SIZE, TAP
    else:
        return step // (SIZE * SIZE), step // SIZE % SIZE, step % SIZE


@triton.jit
def convolve(
    ptr,
    strides,
    ptr_weight,
    values,
    ptr_partial,
    columns,
    column,
    sizes,
    steps,
    place,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    SIGN: tl.constexpr,
):
    """The sum over all taps of weight times shifted tile; SIGN is -1 for the transposed convolution.

    With `ptr_partial`, a workspace (M, C, taps of a kernel, columns), also each tap's sum over the tile of `values`
    times shifted tile, as one column of it. A thread adds up its own numbers before threads exchange any.
    """
    CHANNELS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.positions
    KERNELS: tl.constexpr = TILE.kernels
    UNROLLED: tl.constexpr = TILE.unrolled
    HALF: tl.constexpr = TILE.kernel_size // 2
    origin, offs = tile_address(ptr, strides, place, TILE)
    offs_channel, mask_channel = tile_channels(place, sizes, TILE)
    total = tl.zeros((CHANNELS, POSITIONS), COMPUTE)
    for m in tl.static_range(KERNELS):
        step = 0
        # A number of steps that the compilers do not know keeps them from unrolling, which ends in spills.
        while step < steps:
            for i in tl.static_range(UNROLLED):
                depth, row, right = _tap(step, i, TILE)
                depth = (depth - HALF) * (SIGN * _entry(TILE.dilations, m)) if TILE.spatial == 3 else 0
                row = (row - HALF) * (SIGN * _entry(TILE.dilations, m))
                right = (right - HALF) * (SIGN * _entry(TILE.dilations, m))
                mask = tile_mask(place, sizes, depth, row, right, TILE)
                # The column last: side by side it is a constant, and the taps of a row share an address.
                shift = tl.cast(depth, tl.int64) * strides[2] + tl.cast(row, tl.int64) * strides[3]
                ptrs = origin + (shift + tl.cast(right, tl.int64) * strides[4]) + offs
                block = tl.load(ptrs, mask=mask, other=0.0).to(COMPUTE)
                offs_weight = (m * sizes[0] + offs_channel) * TILE.places + step * UNROLLED + i
                weight = tl.load(ptr_weight + offs_weight, mask=mask_channel, other=0.0).to(COMPUTE)
                total = tl.fma(block, tl.broadcast_to(weight[:, None], total.shape), total)
                if ptr_partial is not None:
                    # Beyond the edge there is nothing to sum: zero times a NaN of `values` would be one.
                    sums = tl.sum(tl.where(mask, block * values, 0.0), axis=1)
                    tl.store(ptr_partial + offs_weight.to(tl.int64) * columns + column, sums, mask=mask_channel)
            step += 1
    return total

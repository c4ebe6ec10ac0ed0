"""The sum of dilated depthwise convolutions of a tile, in registers: what the gate's kernels are made of.

A thread computes DEPTHS x ROWS x COLUMNS neighbouring outputs of each of its places, so that what it loads serves
many of them: it loads blocks of VECTOR neighbours (16 bytes), takes them apart, and puts the shifted windows together
again, all in registers. In 2-D with dilations 1, 2, 3 that makes 5.25 numbers loaded an output at 8 rows and 4
columns, where one load a tap makes 25. In channels_last the vectors run over channels and a block is one column.
Offsets are by strides, 32 bits wide from a 64-bit origin, and 64 bits where a tile's channels reach further.
"""

import triton
import triton.language as tl

from .stencil import count, entry, plan, power_of_two_at_least


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
def tile_place(sizes, tiles, TILE: tl.constexpr):
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
def tile_origin(ptr, strides, place, TILE: tl.constexpr):
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
def block_zeros(TILE: tl.constexpr, COMPUTE: tl.constexpr):
    CHANNELS: tl.constexpr = TILE.channels
    GROUPS: tl.constexpr = TILE.groups
    LANES: tl.constexpr = TILE.lanes
    VECTOR: tl.constexpr = TILE.vector
    return tl.zeros((CHANNELS, GROUPS, LANES, VECTOR), COMPUTE)


@triton.jit
def parted(block, TILE: tl.constexpr):
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
    """The inverse of `parted`, of VECTOR tensors from values[FIRST] on."""
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


# A thread's outputs come in blocks of VECTOR; BLOCK counts them, columns fastest, then rows, then depths.


@triton.jit
def load_output(ptr, strides, sizes, place, BLOCK: tl.constexpr, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    PER_ROW: tl.constexpr = TILE.columns // TILE.vector
    return _load(tile_origin(ptr, strides, place, TILE), strides, sizes, place, BLOCK // PER_ROW // TILE.rows,
                 BLOCK // PER_ROW % TILE.rows, BLOCK % PER_ROW * TILE.vector, TILE, COMPUTE)


@triton.jit
def store_output(origin, strides, sizes, place, BLOCK: tl.constexpr, value, TILE: tl.constexpr):
    PER_ROW: tl.constexpr = TILE.columns // TILE.vector
    depth: tl.constexpr = BLOCK // PER_ROW // TILE.rows
    row: tl.constexpr = BLOCK // PER_ROW % TILE.rows
    ptrs = origin + _offsets(strides, place, depth, row, BLOCK % PER_ROW * TILE.vector, TILE)
    tl.store(ptrs, value.to(origin.dtype.element_ty), mask=mask_output(sizes, place, BLOCK, TILE))


@triton.jit
def mask_output(sizes, place, BLOCK: tl.constexpr, TILE: tl.constexpr):
    PER_ROW: tl.constexpr = TILE.columns // TILE.vector
    depth: tl.constexpr = BLOCK // PER_ROW // TILE.rows
    row: tl.constexpr = BLOCK // PER_ROW % TILE.rows
    return _mask(sizes, place, depth, row, BLOCK % PER_ROW * TILE.vector, TILE)


@triton.jit
def per_channel(ptr, place, scale, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    """A parameter of the tile's channels, as (CHANNELS, 1, 1, 1)."""
    if TILE.channels == 1:
        # A scalar load: 27 tensors more for the compiler to lay out would double its time.
        return tl.full((1, 1, 1, 1), tl.load(ptr + place[1] * scale).to(COMPUTE), COMPUTE)
    else:
        values = tl.load(ptr + (place[1] + place[2]) * scale, mask=place[3], other=0.0)
        return values.to(COMPUTE)[:, None, None, None]


@triton.jit
def _weight(ptr_weight, index, sizes, place, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    """weight[m, c, tap] for index = m * PLACES + tap, as (CHANNELS, 1, 1)."""
    PLACES: tl.constexpr = TILE.kernel_size**TILE.spatial
    offs = (index // PLACES) * sizes[0] * PLACES + index % PLACES
    return per_channel(ptr_weight + offs, place, PLACES, TILE, COMPUTE)


@triton.jit
def _merged_weight(ptr_weight, PLAN: tl.constexpr, G: tl.constexpr, T: tl.constexpr, sizes, place, TILE: tl.constexpr,
                   COMPUTE: tl.constexpr):
    """The sum of the weights that meet at a tap."""
    weight = _weight(ptr_weight, entry(PLAN, "groups", G, "taps", T, "weights", 0), sizes, place, TILE, COMPUTE)
    for i in tl.static_range(1, count(PLAN, "groups", G, "taps", T, "weights")):
        weight += _weight(ptr_weight, entry(PLAN, "groups", G, "taps", T, "weights", i), sizes, place, TILE, COMPUTE)
    return tl.broadcast_to(weight, block_zeros(TILE, COMPUTE).shape)


@triton.jit
def stacked(values, COUNT: tl.constexpr, SIZE: tl.constexpr):
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
def _store_correlation(ptr_partial, first_row, values, COUNT: tl.constexpr, rows, columns, column, place,
                       TILE: tl.constexpr):
    """Sum COUNT tensors over the tile and store them as rows first_row and on of the workspace (C, rows, columns)."""
    CHANNELS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.groups * TILE.lanes
    SIZE: tl.constexpr = power_of_two_at_least(COUNT)
    sums = tl.sum(tl.reshape(stacked(values, COUNT, SIZE), (CHANNELS, POSITIONS, SIZE)), axis=1)
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
    BLOCKS: tl.constexpr = TILE.blocks
    PLAN: tl.constexpr = plan(TILE, MIRRORED)
    sums = ()
    for _ in tl.static_range(BLOCKS):
        sums = sums + (block_zeros(TILE, COMPUTE),)
    for g in tl.static_range(count(PLAN, "groups")):
        weights = ()
        products = ()
        for t in tl.static_range(count(PLAN, "groups", g, "taps")):
            weights = weights + (_merged_weight(ptr_weight, PLAN, g, t, sizes, place, TILE, COMPUTE),)
            products = products + (_zeros(TILE, COMPUTE),)
        for i in tl.static_range(count(PLAN, "groups", g, "rows")):
            parts = ()
            for j in tl.static_range(count(PLAN, "groups", g, "rows", i, "blocks")):
                parts = parts + parted(_load(origin, strides, sizes, place, entry(PLAN, "groups", g, "depth"),
                                              entry(PLAN, "groups", g, "rows", i, "row"),
                                              entry(PLAN, "groups", g, "rows", i, "blocks", j), TILE, COMPUTE), TILE)
            windows = ()
            for w in tl.static_range(count(PLAN, "groups", g, "rows", i, "windows")):
                windows = windows + (_joined(parts, entry(PLAN, "groups", g, "rows", i, "windows", w), TILE),)
            updated = ()
            for o in tl.static_range(BLOCKS):
                value = sums[o]
                for use in tl.static_range(count(PLAN, "groups", g, "rows", i, "by_output", o)):
                    value = tl.fma(windows[entry(PLAN, "groups", g, "rows", i, "by_output", o, use, 0)],
                                   weights[entry(PLAN, "groups", g, "rows", i, "by_output", o, use, 1)], value)
                updated = updated + (value,)
            sums = updated
            if CORRELATED:
                updated = ()
                for t in tl.static_range(count(PLAN, "groups", g, "taps")):
                    value = products[t]
                    for use in tl.static_range(count(PLAN, "groups", g, "rows", i, "by_tap", t)):
                        value = tl.fma(parts[entry(PLAN, "groups", g, "rows", i, "by_tap", t, use, 0)],
                                       values[entry(PLAN, "groups", g, "rows", i, "by_tap", t, use, 1)], value)
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
    """The same for one output a thread, a tap at a time: for large kernels, which unrolled would not compile."""
    KERNEL_SIZE: tl.constexpr = TILE.kernel_size
    PLACES: tl.constexpr = TILE.kernel_size**TILE.spatial
    HALF: tl.constexpr = TILE.kernel_size // 2
    SIGN: tl.constexpr = -1 if MIRRORED else 1
    result = block_zeros(TILE, COMPUTE)
    for m in tl.static_range(count(TILE.dilations)):
        for tap in range(PLACES):
            right = (tap % KERNEL_SIZE - HALF) * (SIGN * entry(TILE.dilations, m))
            down = (tap // KERNEL_SIZE % KERNEL_SIZE - HALF) * (SIGN * entry(TILE.dilations, m))
            depth = 0
            if TILE.spatial == 3:
                depth = (tap // (KERNEL_SIZE * KERNEL_SIZE) - HALF) * (SIGN * entry(TILE.dilations, m))
            block = _load(origin, strides, sizes, place, depth, down, right, TILE, COMPUTE)
            weight = _weight(ptr_weight, m * PLACES + tap, sizes, place, TILE, COMPUTE)
            result = tl.fma(block, tl.broadcast_to(weight, result.shape), result)
            if CORRELATED:
                _store_correlation(ptr_partial, m * PLACES + tap, (parted(block, TILE)[0] * values[0],), 1, rows,
                                   columns, column, place, TILE)
    return (result,)


@triton.jit
def convolve(origin, strides, ptr_weight, values, ptr_partial, rows, columns, column, sizes, place,
              TILE: tl.constexpr, COMPUTE: tl.constexpr, MIRRORED: tl.constexpr, CORRELATED: tl.constexpr):
    if TILE.looped:
        return _stencil_looped(origin, strides, ptr_weight, values, ptr_partial, rows, columns, column, sizes, place,
                               TILE, COMPUTE, MIRRORED, CORRELATED)
    else:
        return _stencil(origin, strides, ptr_weight, values, ptr_partial, rows, columns, column, sizes, place,
                        TILE, COMPUTE, MIRRORED, CORRELATED)

"""A tile of pixels of one image, up-sampled once into a scratch of the program's own; and the way back.

Up-sampling is bilinear or trilinear, as `torch.nn.functional.interpolate`: along each axis a full-size position lies
between two of the level. A program gathers 4 (8) numbers of a level for each of its own, once for all maps; what it
makes stands in `Scratch`: per level (classes, pixels), pixels side by side, in the caches of the GPU.

The way back is two gathers in fixed order, no atomics: a tile of whole rows adds up its rows along the columns, which
leaves as many columns as the level has, and a second kernel adds up rows and depths. A position of the level looks at
the full-size positions that may touch it and asks each for its weight: exactly the weight that went forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl


@dataclass(frozen=True)
class Setting:
    """What the kernels are compiled for."""

    operators: tuple[str, ...]
    activation: str
    probabilities: bool  # the maps are mixed from probabilities
    multi_label: bool  # the target says yes or no for each class
    ignore: bool
    align_corners: bool
    log_probability: bool
    spatial: int
    classes: int  # the power of two that holds them
    pixels: int  # of a block of a tile
    chunk: int  # classes that are up-sampled at a time
    wide: bool  # offsets inside an image take 64 bits
    product: int  # rows and columns of a block of a matrix product
    precision: str  # of the matrix products
    warps: int


@triton.jit
def of_level(values, level):
    """values[level] for a level known at run time: code for one level serves all."""
    result = values[0]
    for i in tl.static_range(1, len(values)):
        result = tl.where(level == i, values[i], result)
    return result


@triton.jit
def along_axis(values, level, AXIS: tl.constexpr):
    """values[level][AXIS]."""
    result = values[0][AXIS]
    for i in tl.static_range(1, len(values)):
        result = tl.where(level == i, values[i][AXIS], result)
    return result


@triton.jit
def class_offsets(classes, SETTING: tl.constexpr):
    CLASSES: tl.constexpr = SETTING.classes
    offs_class = tl.arange(0, CLASSES)
    return offs_class, offs_class < classes


@triton.jit
def block_load(ptr, start, pixels, classes, SETTING: tl.constexpr):
    """A block of a map in the scratch, (CLASSES, PIXELS); classes that there are not are 0."""
    PIXELS: tl.constexpr = SETTING.pixels
    offs_class, mask_class = class_offsets(classes, SETTING)
    ptrs = ptr + offs_class[:, None] * pixels + (start + tl.arange(0, PIXELS))[None, :]
    return tl.load(ptrs, mask=mask_class[:, None], other=0)


@triton.jit
def block_store(ptr, start, pixels, classes, values, SETTING: tl.constexpr):
    PIXELS: tl.constexpr = SETTING.pixels
    offs_class, mask_class = class_offsets(classes, SETTING)
    ptrs = ptr + offs_class[:, None] * pixels + (start + tl.arange(0, PIXELS))[None, :]
    tl.store(ptrs, values, mask=mask_class[:, None])


@triton.jit
def _between(position, size, full, SETTING: tl.constexpr, COMPUTE: tl.constexpr):
    """The two positions of a level around a full-size one, and the share of the upper."""
    if SETTING.align_corners:
        scale = tl.cast(size - 1, COMPUTE) / tl.maximum(tl.cast(full - 1, COMPUTE), 1.0)
        source = position.to(COMPUTE) * scale
    else:
        scale = tl.cast(size, COMPUTE) / tl.cast(full, COMPUTE)
        source = scale * (position.to(COMPUTE) + 0.5) - 0.5
        source = tl.where(source < 0, 0.0, source)
    lower = tl.minimum(source.to(tl.int32), size - 1)
    upper = tl.minimum(lower + 1, size - 1)
    share = tl.minimum(source - lower.to(COMPUTE), 1.0)
    return lower, upper, tl.where(share < 0, 0.0, share)


@triton.jit
def _offset(place, stride, SETTING: tl.constexpr):
    return (place.to(tl.int64) if SETTING.wide else place) * stride


@triton.jit
def _upsample(
    ptr,
    strides,
    sizes,
    full,
    place,
    present,
    ptr_level,
    start,
    pixels,
    classes,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """A block of a level at the pixels `place`: (depth, row, column), a few classes at a time.

    `strides` are those of class, depth, row and column.
    """
    front, back, deep = _between(place[0], sizes[0], full[0], SETTING, COMPUTE)
    top, bottom, low = _between(place[1], sizes[1], full[1], SETTING, COMPUTE)
    left, right, far = _between(place[2], sizes[2], full[2], SETTING, COMPUTE)
    CHUNK: tl.constexpr = SETTING.chunk
    PIXELS: tl.constexpr = SETTING.pixels
    CORNERS: tl.constexpr = 1 << SETTING.spatial
    first = 0
    while first < classes:
        offs_class = first + tl.arange(0, CHUNK)
        origin = ptr + (offs_class.to(tl.int64) * strides[0])[:, None]
        mask = present[None, :] & (offs_class < classes)[:, None]
        total = tl.zeros((CHUNK, PIXELS), COMPUTE)
        for corner in tl.static_range(CORNERS):
            weight = far if corner % 2 == 1 else 1 - far
            weight = weight * (low if corner // 2 % 2 == 1 else 1 - low)
            offs = _offset(bottom if corner // 2 % 2 == 1 else top, strides[2], SETTING)
            offs += _offset(right if corner % 2 == 1 else left, strides[3], SETTING)
            if SETTING.spatial == 3:
                weight = weight * (deep if corner // 4 == 1 else 1 - deep)
                offs += _offset(back if corner // 4 == 1 else front, strides[1], SETTING)
            values = tl.load(origin + offs[None, :], mask=mask, other=0).to(COMPUTE)
            total = tl.fma(values, tl.broadcast_to(weight[None, :], total.shape), total)
        ptrs = ptr_level + offs_class[:, None] * pixels + (start + tl.arange(0, PIXELS))[None, :]
        tl.store(ptrs, tl.where(mask, total, 0), mask=(offs_class < classes)[:, None])
        first += CHUNK


@triton.jit
def activate(values, classes, SETTING: tl.constexpr):
    """Softmax over the classes, or sigmoid."""
    mask_class = class_offsets(classes, SETTING)[1]
    if SETTING.activation == "softmax":
        shifted = tl.where(mask_class[:, None], values - tl.max(known(values, classes, SETTING), axis=0)[None, :], 0)
        exponentials = tl.where(mask_class[:, None], tl.exp(shifted), 0)
        return exponentials / tl.sum(exponentials, axis=0)[None, :]
    else:
        small = tl.exp(-tl.abs(values))
        return tl.where(values >= 0, 1.0, small) / (1 + small)


@triton.jit
def known(values, classes, SETTING: tl.constexpr):
    """`values`, and below all of them where there is no class: what a maximum is taken of."""
    return tl.where(class_offsets(classes, SETTING)[1][:, None], values, float("-inf"))


@triton.jit
def _read_labels(ptr, offs, mask, largest, ignore_index, SETTING: tl.constexpr):
    """Class (or 0 and 1) of each pixel and -1 where it does not count; and where it is invalid."""
    if ptr.dtype.element_ty.is_floating():
        values = tl.load(ptr + offs, mask=mask, other=0)
        if ptr.dtype.element_ty.primitive_bitwidth < 32:
            values = values.to(tl.float32)
        good = (values >= 0) & (values <= largest)
        good = good & (tl.floor(values) == values)
    else:
        values = tl.load(ptr + offs, mask=mask, other=0).to(tl.int64)
        good = (values >= 0) & (values <= largest)
    ignored = mask & False
    if SETTING.ignore:
        ignored = mask & (values == ignore_index)
    labels = tl.where(good & mask & (ignored == 0), values, -1).to(tl.int32)
    return labels, (mask & (ignored == 0)) & (good == 0)


@triton.jit
def block_labels(ptr_labels, start, pixels, classes, SETTING: tl.constexpr):
    """Where a class is the pixel's own, and where a pixel counts for a class: (CLASSES, PIXELS) both."""
    PIXELS: tl.constexpr = SETTING.pixels
    offs_class, mask_class = class_offsets(classes, SETTING)
    offs_pixel = start + tl.arange(0, PIXELS)
    if SETTING.multi_label:
        ptrs = ptr_labels + offs_class[:, None] * pixels + offs_pixel[None, :]
        labels = tl.load(ptrs, mask=mask_class[:, None], other=-1)
        return labels == 1, labels >= 0
    else:
        labels = tl.load(ptr_labels + offs_pixel)[None, :]
        # With one class the labels are 0 and 1, and the class is 1.
        own = labels == offs_class[:, None] + tl.where(classes == 1, 1, 0)
        return own & mask_class[:, None], (labels >= 0) & mask_class[:, None]


@triton.jit
def fill_scratch(
    logits,
    strides,
    sizes,
    ptr_target,
    strides_target,
    ptr_labels,
    ptr_levels,
    ptr_counts,
    image,
    first,
    count,
    levels,
    pixels,
    classes,
    full,
    ignore_index,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Labels and up-sampled levels of the `count` pixels from `first`.

    Where nothing counts, and beyond the last pixel, levels are 0: whatever stands there, NaN too, reaches nothing.
    """
    PIXELS: tl.constexpr = SETTING.pixels
    offs_class, mask_class = class_offsets(classes, SETTING)
    found = tl.zeros(offs_class.shape, tl.int32)
    ptr_target += image.to(tl.int64) * strides_target[0]
    present_count = 0
    invalid_count = 0
    start = 0
    while start < pixels:
        inside = start + tl.arange(0, PIXELS)
        mask = inside < count
        pixel = first + inside
        place = (pixel // (full[1] * full[2]), pixel // full[2] % full[1], pixel % full[2])
        offs = _offset(place[0], strides_target[2], SETTING) + _offset(place[1], strides_target[3], SETTING)
        offs += _offset(place[2], strides_target[4], SETTING)
        if SETTING.multi_label:
            offs = offs[None, :] + (offs_class.to(tl.int64) * strides_target[1])[:, None]
            both = mask[None, :] & mask_class[:, None]
            labels, invalid = _read_labels(ptr_target, offs, both, 1, ignore_index, SETTING)
            present = tl.max(labels, axis=0) >= 0
            found += tl.sum((labels == 1).to(tl.int32), axis=1)
            invalid_count += tl.sum(tl.sum(invalid.to(tl.int32), axis=0), axis=0)
            block_store(ptr_labels, start, pixels, classes, labels, SETTING)
        else:
            labels, invalid = _read_labels(ptr_target, offs, mask, tl.maximum(classes - 1, 1), ignore_index, SETTING)
            present = labels >= 0
            own = labels[None, :] == offs_class[:, None] + tl.where(classes == 1, 1, 0)
            found += tl.sum(own.to(tl.int32), axis=1)
            invalid_count += tl.sum(invalid.to(tl.int32), axis=0)
            tl.store(ptr_labels + inside, labels)
        present_count += tl.sum(present.to(tl.int32), axis=0)
        i = 0
        while i < levels:
            _upsample(
                of_level(logits, i) + image.to(tl.int64) * along_axis(strides, i, 0),
                (
                    along_axis(strides, i, 1),
                    along_axis(strides, i, 2),
                    along_axis(strides, i, 3),
                    along_axis(strides, i, 4),
                ),
                (along_axis(sizes, i, 0), along_axis(sizes, i, 1), along_axis(sizes, i, 2)),
                full,
                place,
                present,
                ptr_levels + i * classes * pixels,
                start,
                pixels,
                classes,
                SETTING,
                COMPUTE,
            )
            i += 1
        start += PIXELS
    if ptr_counts is not None:
        ptrs = ptr_counts + offs_class
        tl.store(ptrs, tl.load(ptrs, mask=mask_class, other=0) + found, mask=mask_class)
        tl.store(ptr_counts + classes, tl.load(ptr_counts + classes) + present_count)
        tl.store(ptr_counts + classes + 1, tl.load(ptr_counts + classes + 1) + invalid_count)


@triton.jit
def prepare_parts(
    ptr_levels, ptr_parts, ptr_dparts, levels, pixels, classes, SETTING: tl.constexpr, COMPUTE: tl.constexpr
):
    """Probabilities of the levels, if maps are mixed from them; and zeros for the gradients of the parts."""
    if SETTING.probabilities or ptr_dparts is not None:
        i = 0
        while i < levels:
            offset = i * classes * pixels
            start = 0
            while start < pixels:
                if SETTING.probabilities:
                    values = block_load(ptr_levels + offset, start, pixels, classes, SETTING)
                    values = activate(values, classes, SETTING)
                    block_store(ptr_parts + offset, start, pixels, classes, values, SETTING)
                if ptr_dparts is not None:
                    zeros = tl.zeros((SETTING.classes, SETTING.pixels), COMPUTE)
                    block_store(ptr_dparts + offset, start, pixels, classes, zeros, SETTING)
                start += SETTING.pixels
            i += 1
        tl.debug_barrier()


@triton.jit
def _first_touching(position, size, full, SETTING: tl.constexpr):
    """No full-size position before this one lies next to `position` of the level; one less, against rounding."""
    if SETTING.align_corners:
        scale = tl.cast(full - 1, tl.float32) / tl.maximum(tl.cast(size - 1, tl.float32), 1.0)
        first = (position - 1).to(tl.float32) * scale
    else:
        first = (position.to(tl.float32) - 0.5) * (tl.cast(full, tl.float32) / tl.cast(size, tl.float32)) - 0.5
    return tl.maximum(tl.floor(first).to(tl.int32) - 1, 0)


@triton.jit
def _weight(touching, position, size, full, SETTING: tl.constexpr, COMPUTE: tl.constexpr):
    """The weight of `position` of the level in what was up-sampled to the full-size position `touching`."""
    lower, upper, share = _between(touching, size, full, SETTING, COMPUTE)
    weight = tl.where(lower == position, 1 - share, 0) + tl.where(upper == position, share, 0)
    return tl.where(touching < full, weight, 0)


@triton.jit
def add_up_columns(
    ptr_dlevel,
    ptr_rows,
    width,
    taps,
    image,
    first_row,
    rows,
    pixels,
    classes,
    full,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """From a tile of `rows` whole rows to a table (images, classes, depths * rows, width of the level)."""
    PIXELS: tl.constexpr = SETTING.pixels
    offs_class, mask_class = class_offsets(classes, SETTING)
    all_rows = tl.cast(full[0], tl.int64) * full[1]
    start = 0
    while start < rows * width:
        element = start + tl.arange(0, PIXELS)
        row = element // width
        column = element % width
        mask = row < rows
        total = tl.zeros((SETTING.classes, PIXELS), COMPUTE)
        first = _first_touching(column, width, full[2], SETTING)
        tap = 0
        while tap < taps:
            weight = _weight(first + tap, column, width, full[2], SETTING, COMPUTE)
            ptrs = ptr_dlevel + offs_class[:, None] * pixels + (row * full[2] + first + tap)[None, :]
            values = tl.load(ptrs, mask=mask_class[:, None] & (mask & (weight != 0))[None, :], other=0)
            total = tl.fma(values, tl.broadcast_to(weight[None, :], total.shape), total)
            tap += 1
        plane = (image.to(tl.int64) * classes + offs_class) * all_rows
        offs = (plane[:, None] + (first_row + row)[None, :]) * width + column[None, :]
        tl.store(ptr_rows + offs, total, mask=mask_class[:, None] & mask[None, :])
        start += PIXELS


@triton.jit
def add_up_rows_kernel(
    ptr_rows,
    ptr_grad,
    strides,
    sizes,
    full,
    taps,
    first_image,
    classes,
    elements,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """From the table of rows to the gradient of a level: up to taps[0] * taps[1] rows for each number."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    column = element % sizes[2]
    rest = element // sizes[2]
    row = (rest % sizes[1]).to(tl.int32)
    rest = rest // sizes[1]
    depth = (rest % sizes[0]).to(tl.int32)
    plane = rest // sizes[0]
    total = tl.zeros((BLOCK,), COMPUTE)
    first_depth = _first_touching(depth, sizes[0], full[0], SETTING)
    first_row = _first_touching(row, sizes[1], full[1], SETTING)
    i = 0
    while i < taps[0]:
        weight_depth = _weight(first_depth + i, depth, sizes[0], full[0], SETTING, COMPUTE)
        j = 0
        while j < taps[1]:
            weight = weight_depth * _weight(first_row + j, row, sizes[1], full[1], SETTING, COMPUTE)
            at = (plane * full[0] + first_depth + i) * full[1] + first_row + j
            values = tl.load(ptr_rows + at * sizes[2] + column, mask=mask & (weight != 0), other=0)
            total += values * weight
            j += 1
        i += 1
    offs = (plane // classes + first_image) * strides[0] + plane % classes * strides[1]
    offs += depth.to(tl.int64) * strides[2] + row.to(tl.int64) * strides[3] + column * strides[4]
    tl.store(ptr_grad + offs, total.to(ptr_grad.dtype.element_ty), mask=mask)

"""One map on a tile of pixels: how it is mixed from the parts of a subset, its sums, its gradient, and theirs.

A subset is a number with a bit for each level. Everything loops over its members at run time and loads their parts from
the scratch of the program, block by block: neither registers nor code grow with the levels, the subsets or the classes.
"""

import triton
import triton.language as tl

from .logit_mixing_tile import block_labels, block_load, block_store, class_offsets, known

SUBSETS_IN_A_WORD = 10
ADD, MULTIPLY, CONCAT, ATTENTION = range(4)
CODES = {"add": ADD, "multiply": MULTIPLY, "concat": CONCAT, "attention": ATTENTION}


@triton.constexpr_function
def has(setting, operator):
    return operator in setting.operators


@triton.jit
def subset_of(words, number):
    """The bits of subset `number`: six for each of ten subsets in a word, which needs no table in memory."""
    word = tl.cast(words[0], tl.int64)
    for i in tl.static_range(1, len(words)):
        word = tl.where(number // 10 == i, words[i], word)
    return ((word >> (6 * (number % 10))) & 63).to(tl.int32)


@triton.jit
def map_of(number, levels, subsets, words, codes):
    """(code of its operator, its subset, that subset's number) of a map; an original is the sum of one level."""
    original = number < levels
    place = tl.maximum(number - levels, 0)
    subset = place % tl.maximum(subsets, 1)
    code = tl.where(original, 0, (codes >> (2 * (place // tl.maximum(subsets, 1)))) & 3)
    return code, tl.where(original, tl.cast(1, tl.int32) << number, subset_of(words, subset)), subset


@triton.jit
def members(bits):
    """How many levels a subset has."""
    count = 0
    for i in tl.static_range(6):
        count += (bits >> i) & 1
    return count


@triton.jit
def score(ptr_weight, ptr_bias, row, part, classes, SETTING: tl.constexpr, COMPUTE: tl.constexpr):
    """<v, part> + c at each pixel, and v, (CLASSES, 1)."""
    offs_class, mask_class = class_offsets(classes, SETTING)
    vector = tl.load(ptr_weight + row * classes + offs_class, mask=mask_class, other=0).to(COMPUTE)[:, None]
    result = tl.sum(part * vector, axis=0)
    if ptr_bias is not None:
        result += tl.load(ptr_bias + row).to(COMPUTE)
    return result, vector


@triton.jit
def mix(
    ptr_parts,
    ptr_mixed,
    ptr_weight,
    ptr_bias,
    code,
    bits,
    levels,
    pair,
    start,
    pixels,
    classes,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The block of a map, and attention's greatest score and sum of exponentials at each pixel (else zeros).

    concat has been multiplied out before, into `ptr_mixed`. `pair` counts the members of all subsets before.
    """
    greatest = tl.full((SETTING.pixels,), float("-inf"), COMPUTE)
    total = tl.zeros((SETTING.pixels,), COMPUTE)
    mixed = tl.zeros((SETTING.classes, SETTING.pixels), COMPUTE) + tl.where(code == 1, 1.0, 0.0)
    i = 0
    if has(SETTING, "concat"):
        if code == 2:
            mixed = block_load(ptr_mixed, start, pixels, classes, SETTING)
            i += levels
    while i < levels:
        if (bits >> i) & 1 != 0:
            part = block_load(ptr_parts + i * classes * pixels, start, pixels, classes, SETTING)
            if code == 0:
                mixed += part
            elif code == 1:
                mixed *= part
            elif has(SETTING, "attention"):
                value = score(ptr_weight, ptr_bias, pair, part, classes, SETTING, COMPUTE)[0]
                raised = tl.maximum(greatest, value)
                scale = tl.exp(greatest - raised)
                share = tl.exp(value - raised)
                total = total * scale + share
                mixed = mixed * scale[None, :] + share[None, :] * part
                greatest = raised
                pair += 1
        i += 1
    if has(SETTING, "attention"):
        if code == 3:
            mixed = mixed / total[None, :]
    return mixed, greatest, total


@triton.jit
def multiply_out(
    ptr_parts,
    ptr_mixed,
    ptr_weight,
    ptr_bias,
    bits,
    levels,
    pair,
    columns,
    number,
    subsets,
    pixels,
    classes,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """concat's map on the whole tile: the weights of the subset times the parts of its members."""
    BLOCK: tl.constexpr = SETTING.product
    PIXELS: tl.constexpr = 32
    first = 0
    while first < classes:
        offs_row = first + tl.arange(0, BLOCK)
        mask_row = offs_row < classes
        bias = tl.zeros((BLOCK,), COMPUTE)
        if ptr_bias is not None:
            bias += tl.load(ptr_bias + offs_row * subsets + number, mask=mask_row, other=0).to(COMPUTE)
        start = 0
        while start < pixels:
            offs_pixel = start + tl.arange(0, PIXELS)
            total = tl.zeros((BLOCK, PIXELS), COMPUTE) + bias[:, None]
            column = pair
            i = 0
            while i < levels:
                if (bits >> i) & 1 != 0:
                    inner = 0
                    while inner < classes:
                        offs_inner = inner + tl.arange(0, BLOCK)
                        mask_inner = offs_inner < classes
                        ptrs = ptr_weight + offs_row[:, None] * columns + (column * classes + offs_inner)[None, :]
                        weight = tl.load(ptrs, mask=mask_row[:, None] & mask_inner[None, :], other=0).to(COMPUTE)
                        ptrs = ptr_parts + (i * classes + offs_inner)[:, None] * pixels + offs_pixel[None, :]
                        part = tl.load(ptrs, mask=mask_inner[:, None], other=0)
                        total += tl.dot(weight, part, input_precision=SETTING.precision, out_dtype=COMPUTE)
                        inner += BLOCK
                    column += 1
                i += 1
            tl.store(ptr_mixed + offs_row[:, None] * pixels + offs_pixel[None, :], total, mask=mask_row[:, None])
            start += PIXELS
        first += BLOCK


@triton.jit
def _logarithm_of_one_plus(small):
    """log(1 + x) without the loss of a small x in the sum."""
    grown = 1 + small
    lost = grown == 1
    return tl.where(lost, small, tl.log(grown) * (small / tl.where(lost, 1.0, grown - 1)))


@triton.jit
def probabilities(values, classes, SETTING: tl.constexpr):
    """p, log p and, for a sigmoid, log(1 - p) of a block; p is 0 where there is no class."""
    mask_class = class_offsets(classes, SETTING)[1][:, None]
    if SETTING.activation == "softmax":
        shifted = tl.where(mask_class, values - tl.max(known(values, classes, SETTING), axis=0)[None, :], 0)
        exponentials = tl.where(mask_class, tl.exp(shifted), 0)
        total = tl.sum(exponentials, axis=0)
        logarithm = shifted - tl.log(total)[None, :]
        return exponentials * (1 / total)[None, :], logarithm, logarithm
    else:
        small = tl.exp(-tl.abs(values))
        p = tl.where(values >= 0, 1.0, small) / (1 + small)
        rest = _logarithm_of_one_plus(small)
        return tl.where(mask_class, p, 0), tl.minimum(values, 0) - rest, tl.minimum(-values, 0) - rest


@triton.jit
def gradient_row(ptr_gradients, number, statistic, classes, SETTING: tl.constexpr):
    """(CLASSES, 1) of the gradients of one sum of map `number`, which are stored (maps, 5, CLASSES)."""
    offs_class, mask_class = class_offsets(classes, SETTING)
    ptrs = ptr_gradients + (number * 5 + statistic) * SETTING.classes + offs_class
    return tl.load(ptrs, mask=mask_class, other=0)[:, None]


@triton.jit
def map_gradient(values, ptr_labels, start, rows, pixels, classes, SETTING: tl.constexpr):
    """G of a block, from the five gradients of the sums of its map: `rows`."""
    own, counted = block_labels(ptr_labels, start, pixels, classes, SETTING)
    p = probabilities(values, classes, SETTING)[0]
    d = tl.where(own, rows[1], 0) + rows[2] + 2 * rows[3] * p
    entropy = tl.where(own, rows[0], 0)
    if SETTING.activation == "softmax":
        mean = tl.sum(d * p - entropy + rows[4], axis=0)
        result = p * (d - mean[None, :]) - entropy + rows[4]
    else:
        result = p * (1 - p) * d + rows[0] * p - entropy + rows[4] * (1 - p)
    return tl.where(counted, result, 0)


@triton.jit
def _add(ptr_dparts, i, start, pixels, classes, values, SETTING: tl.constexpr):
    ptr = ptr_dparts + i * classes * pixels
    block_store(ptr, start, pixels, classes, block_load(ptr, start, pixels, classes, SETTING) + values, SETTING)


@triton.jit
def unmix(
    ptr_parts,
    ptr_dparts,
    ptr_mixed,
    ptr_tilts,
    ptr_weight,
    ptr_bias,
    g,
    mixed,
    greatest,
    total,
    code,
    bits,
    levels,
    pair,
    start,
    pixels,
    classes,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Adds to the gradients of the parts what a block of a map gives them. concat only keeps G, for the products."""
    along = tl.zeros((SETTING.pixels,), COMPUTE)
    i = 0
    if has(SETTING, "concat"):
        if code == 2:
            block_store(ptr_mixed, start, pixels, classes, g, SETTING)
            i += levels
    if has(SETTING, "attention"):
        if code == 3:
            along = tl.sum(g * mixed, axis=0)
    while i < levels:
        if (bits >> i) & 1 != 0:
            gradient = g
            if code == 1:
                # The product of the others, never a division. Members are few: |S| - 1 loads from the cache.
                j = 0
                while j < levels:
                    if ((bits >> j) & 1 != 0) & (j != i):
                        gradient *= block_load(ptr_parts + j * classes * pixels, start, pixels, classes, SETTING)
                    j += 1
            if has(SETTING, "attention"):
                if code == 3:
                    part = block_load(ptr_parts + i * classes * pixels, start, pixels, classes, SETTING)
                    value, vector = score(ptr_weight, ptr_bias, pair, part, classes, SETTING, COMPUTE)
                    share = tl.exp(value - greatest) / total
                    tilt = share * (tl.sum(g * part, axis=0) - along)
                    gradient = share[None, :] * g + vector * tilt[None, :]
                    tl.store(ptr_tilts + i * pixels + start + tl.arange(0, SETTING.pixels), tilt)
                    pair += 1
            ptr = ptr_dparts + i * classes * pixels
            gradient += block_load(ptr, start, pixels, classes, SETTING)
            block_store(ptr, start, pixels, classes, gradient, SETTING)
        i += 1


@triton.jit
def add_to_table(ptrs, values, mask):
    tl.store(ptrs, tl.load(ptrs, mask=mask, other=0) + values.to(tl.float64), mask=mask)


@triton.jit
def attention_sums(
    ptr_parts,
    ptr_tilts,
    ptr_dweight,
    ptr_dbias,
    bits,
    levels,
    pair,
    pixels,
    classes,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """dv = sum t P and dc = sum t over the tile, added to the program's own tables."""
    offs_class, mask_class = class_offsets(classes, SETTING)
    i = 0
    while i < levels:
        if (bits >> i) & 1 != 0:
            products = tl.zeros((SETTING.classes, SETTING.pixels), COMPUTE)
            tilts = tl.zeros((SETTING.pixels,), COMPUTE)
            start = 0
            while start < pixels:
                tilt = tl.load(ptr_tilts + i * pixels + start + tl.arange(0, SETTING.pixels))
                part = block_load(ptr_parts + i * classes * pixels, start, pixels, classes, SETTING)
                products += tilt[None, :] * part
                tilts += tilt
                start += SETTING.pixels
            if ptr_dweight is not None:
                add_to_table(ptr_dweight + pair * classes + offs_class, tl.sum(products, axis=1), mask_class)
            if ptr_dbias is not None:
                tl.store(ptr_dbias + pair, tl.load(ptr_dbias + pair) + tl.sum(tilts, axis=0).to(tl.float64))
            pair += 1
        i += 1


@triton.jit
def concat_backward(
    ptr_parts,
    ptr_dparts,
    ptr_g,
    ptr_weight,
    ptr_dweight,
    bits,
    levels,
    pair,
    columns,
    pixels,
    classes,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """dP_i += W^T G on the whole tile, and dW = sum G P_i^T, added to the program's own table."""
    BLOCK: tl.constexpr = SETTING.product
    PIXELS: tl.constexpr = 32
    i = 0
    while i < levels:
        if (bits >> i) & 1 != 0:
            first = 0
            while first < classes:
                offs_part = first + tl.arange(0, BLOCK)
                mask_part = offs_part < classes
                offs_column = pair * classes + offs_part
                start = 0
                while start < pixels:
                    offs_pixel = start + tl.arange(0, PIXELS)
                    ptrs = ptr_dparts + (i * classes + offs_part)[:, None] * pixels + offs_pixel[None, :]
                    total = tl.load(ptrs, mask=mask_part[:, None], other=0)
                    inner = 0
                    while inner < classes:
                        offs_inner = inner + tl.arange(0, BLOCK)
                        mask_inner = offs_inner < classes
                        ptrs_weight = ptr_weight + offs_column[:, None] + offs_inner[None, :] * columns
                        both = mask_part[:, None] & mask_inner[None, :]
                        weight = tl.load(ptrs_weight, mask=both, other=0).to(COMPUTE)
                        ptrs_g = ptr_g + offs_inner[:, None] * pixels + offs_pixel[None, :]
                        g = tl.load(ptrs_g, mask=mask_inner[:, None], other=0)
                        total += tl.dot(weight, g, input_precision=SETTING.precision, out_dtype=COMPUTE)
                        inner += BLOCK
                    tl.store(ptrs, total, mask=mask_part[:, None])
                    start += PIXELS
                if ptr_dweight is not None:
                    inner = 0
                    while inner < classes:
                        offs_inner = inner + tl.arange(0, BLOCK)
                        mask_inner = offs_inner < classes
                        product = tl.zeros((BLOCK, BLOCK), COMPUTE)
                        start = 0
                        while start < pixels:
                            offs_pixel = start + tl.arange(0, PIXELS)
                            ptrs = ptr_g + offs_inner[:, None] * pixels + offs_pixel[None, :]
                            g = tl.load(ptrs, mask=mask_inner[:, None], other=0)
                            ptrs = ptr_parts + (i * classes + offs_part)[None, :] * pixels + offs_pixel[:, None]
                            part = tl.load(ptrs, mask=mask_part[None, :], other=0)
                            product += tl.dot(g, part, input_precision=SETTING.precision, out_dtype=COMPUTE)
                            start += PIXELS
                        ptrs = ptr_dweight + offs_inner[:, None] * columns + offs_column[None, :]
                        add_to_table(ptrs, product, mask_inner[:, None] & mask_part[None, :])
                        inner += BLOCK
                first += BLOCK
            pair += 1
        i += 1

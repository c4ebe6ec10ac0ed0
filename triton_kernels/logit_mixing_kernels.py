"""The kernels of mixed_logit_statistics: programs that take tile after tile of one image, and what adds up tables.

A program fills its scratch with a tile and goes over all maps. Barriers stand where threads read from the scratch what
others have written. Sums over a tile are float32 (float64 for float64); the program adds them to a table of its own in
float64, and `finish_kernel` adds the tables: always in the same order.
"""

import triton
import triton.language as tl

from .logit_mixing_maps import (
    add_to_table,
    attention_sums,
    concat_backward,
    gradient_row,
    has,
    map_gradient,
    map_of,
    members,
    mix,
    multiply_out,
    probabilities,
    unmix,
)
from .logit_mixing_tile import (
    add_up_columns,
    along_axis,
    block_labels,
    block_load,
    block_store,
    class_offsets,
    fill_scratch,
    prepare_parts,
)


@triton.jit
def _quarter(values):
    """Sums of four neighbouring pixels, which one thread holds: a quarter of the registers for what is accumulated."""
    return tl.sum(tl.reshape(values, (values.shape[0], values.shape[1] // 4, 4)), axis=2)


@triton.jit
def _add_map_sums(
    ptr_parts,
    ptr_mixed,
    ptr_labels,
    ptr_table,
    table,
    ptr_weight,
    ptr_bias,
    code,
    bits,
    levels,
    pair,
    pixels,
    classes,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The sums of one map over the tile, added to its five rows (`table` numbers apart) of the program's table.

    A thread adds up its own pixels of all blocks before threads exchange any: an exchange a block would cost as much as
    the exponentials.
    """
    offs_class, mask_class = class_offsets(classes, SETTING)
    entropy = tl.zeros((SETTING.classes, SETTING.pixels // 4), COMPUTE)
    intersection = tl.zeros((SETTING.classes, SETTING.pixels // 4), COMPUTE)
    probability = tl.zeros((SETTING.classes, SETTING.pixels // 4), COMPUTE)
    square = tl.zeros((SETTING.classes, SETTING.pixels // 4), COMPUTE)
    log_probability = tl.zeros((SETTING.classes, SETTING.pixels // 4), COMPUTE)
    start = 0
    while start < pixels:
        values = mix(
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
            SETTING,
            COMPUTE,
        )[0]
        own, counted = block_labels(ptr_labels, start, pixels, classes, SETTING)
        p, logarithm, logarithm_of_rest = probabilities(values, classes, SETTING)
        p = tl.where(counted, p, 0)
        intersection += _quarter(tl.where(own, p, 0))
        probability += _quarter(p)
        square += _quarter(p * p)
        if SETTING.activation == "softmax":
            entropy -= _quarter(tl.where(own, logarithm, 0))
        else:
            entropy -= _quarter(tl.where(counted, tl.where(own, logarithm, logarithm_of_rest), 0))
        if SETTING.log_probability:
            log_probability += _quarter(tl.where(counted, logarithm, 0))
        start += SETTING.pixels
    ptrs = ptr_table + offs_class
    add_to_table(ptrs, tl.sum(entropy, axis=1), mask_class)
    add_to_table(ptrs + table, tl.sum(intersection, axis=1), mask_class)
    add_to_table(ptrs + 2 * table, tl.sum(probability, axis=1), mask_class)
    add_to_table(ptrs + 3 * table, tl.sum(square, axis=1), mask_class)
    if SETTING.log_probability:
        add_to_table(ptrs + 4 * table, tl.sum(log_probability, axis=1), mask_class)


@triton.jit
def statistics_kernel(
    logits,
    strides,
    sizes,
    ptr_target,
    strides_target,
    ptr_concat_weight,
    ptr_concat_bias,
    ptr_attention_weight,
    ptr_attention_bias,
    ptr_labels,
    ptr_scratch,
    ptr_table,
    ptr_counts,
    table,
    scratch,
    label_scratch,
    words,
    codes,
    maps,
    subsets,
    pairs,
    levels,
    classes,
    full,
    first_image,
    programs,
    tiles,
    positions,
    pixels,
    elements,
    ignore_index,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """All sums of all maps. Scratch: levels, their probabilities if maps are mixed from them, concat's map."""
    program = tl.program_id(0)
    image = first_image + program // programs
    row = first_image * programs + program  # of the tables
    ptr_levels = ptr_scratch + program.to(tl.int64) * scratch
    parts = levels * classes * pixels if SETTING.probabilities else 0
    ptr_parts = ptr_levels + parts
    ptr_mixed = ptr_parts + levels * classes * pixels
    ptr_labels += program.to(tl.int64) * label_scratch
    ptr_table += row.to(tl.int64) * (maps * classes)
    ptr_counts += row.to(tl.int64) * (classes + 2)
    tile = program % programs
    while tile < tiles:
        first = tile * positions
        count = tl.minimum(elements - first, positions)
        fill_scratch(
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
            SETTING,
            COMPUTE,
        )
        tl.debug_barrier()
        prepare_parts(ptr_levels, ptr_parts, None, levels, pixels, classes, SETTING, COMPUTE)
        number = 0
        pair = 0
        while number < maps:
            code, bits, subset = map_of(number, levels, subsets, words, codes)
            pair = tl.where(subset == 0, 0, pair)
            if has(SETTING, "concat"):
                if code == 2:
                    multiply_out(
                        ptr_parts,
                        ptr_mixed,
                        ptr_concat_weight,
                        ptr_concat_bias,
                        bits,
                        levels,
                        pair,
                        pairs * classes,
                        subset,
                        subsets,
                        pixels,
                        classes,
                        SETTING,
                        COMPUTE,
                    )
                    tl.debug_barrier()
            _add_map_sums(
                ptr_levels + tl.where(number < levels, 0, parts),
                ptr_mixed,
                ptr_labels,
                ptr_table + number * classes,
                table,
                ptr_attention_weight,
                ptr_attention_bias,
                code,
                bits,
                levels,
                pair,
                pixels,
                classes,
                SETTING,
                COMPUTE,
            )
            if has(SETTING, "concat"):
                tl.debug_barrier()
            pair += members(bits)
            number += 1
        tl.debug_barrier()
        tile += programs


@triton.jit
def _level_gradient(
    ptr_level,
    ptr_part,
    ptr_dpart,
    ptr_labels,
    ptr_gradients,
    number,
    pixels,
    classes,
    SETTING: tl.constexpr,
):
    """Turns the gradient of a part into that of its level, and adds what the level itself is supervised with."""
    rows = _gradient_rows(ptr_gradients, number, classes, SETTING)
    start = 0
    while start < pixels:
        level = block_load(ptr_level, start, pixels, classes, SETTING)
        gradient = block_load(ptr_dpart, start, pixels, classes, SETTING)
        if SETTING.probabilities:
            part = block_load(ptr_part, start, pixels, classes, SETTING)
            if SETTING.activation == "softmax":
                gradient = part * (gradient - tl.sum(part * gradient, axis=0)[None, :])
            else:
                gradient = part * (1 - part) * gradient
        gradient += map_gradient(level, ptr_labels, start, rows, pixels, classes, SETTING)
        block_store(ptr_dpart, start, pixels, classes, gradient, SETTING)
        start += SETTING.pixels


@triton.jit
def _gradient_rows(ptr_gradients, number, classes, SETTING: tl.constexpr):
    entropy = gradient_row(ptr_gradients, number, 0, classes, SETTING)
    intersection = gradient_row(ptr_gradients, number, 1, classes, SETTING)
    probability = gradient_row(ptr_gradients, number, 2, classes, SETTING)
    square = gradient_row(ptr_gradients, number, 3, classes, SETTING)
    log_probability = tl.zeros_like(square)
    if SETTING.log_probability:
        log_probability = gradient_row(ptr_gradients, number, 4, classes, SETTING)
    return entropy, intersection, probability, square, log_probability


@triton.jit
def _mixed_gradient(
    ptr_parts,
    ptr_dparts,
    ptr_mixed,
    ptr_tilts,
    ptr_labels,
    ptr_gradients,
    number,
    ptr_weight,
    ptr_bias,
    ptr_dbias,
    subset,
    subsets,
    code,
    bits,
    levels,
    pair,
    pixels,
    classes,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Adds to the gradients of the parts what map `number` gives them; and concat's bias has its sums of G."""
    offs_class, mask_class = class_offsets(classes, SETTING)
    rows = _gradient_rows(ptr_gradients, number, classes, SETTING)
    sums = tl.zeros((SETTING.classes, SETTING.pixels // 4), COMPUTE)
    start = 0
    while start < pixels:
        mixed, greatest, total = mix(
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
            SETTING,
            COMPUTE,
        )
        g = map_gradient(mixed, ptr_labels, start, rows, pixels, classes, SETTING)
        if ptr_dbias is not None:
            sums += _quarter(g)
        unmix(
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
            SETTING,
            COMPUTE,
        )
        start += SETTING.pixels
    if ptr_dbias is not None:
        if code == 2:
            add_to_table(ptr_dbias + offs_class * subsets + subset, tl.sum(sums, axis=1), mask_class)


@triton.jit
def gradient_kernel(
    logits,
    strides,
    sizes,
    ptr_target,
    strides_target,
    ptr_concat_weight,
    ptr_concat_bias,
    ptr_attention_weight,
    ptr_attention_bias,
    ptr_gradients,
    ptr_concat_dweight,
    ptr_concat_dbias,
    ptr_attention_dweight,
    ptr_attention_dbias,
    ptr_tables,
    needed,
    images,
    ptr_labels,
    ptr_scratch,
    scratch,
    label_scratch,
    words,
    codes,
    maps,
    subsets,
    pairs,
    levels,
    classes,
    full,
    taps,
    first_image,
    gradients,
    programs,
    tiles,
    rows,
    pixels,
    ignore_index,
    SETTING: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradients of parameters, a table a program; and of the levels, as tables of rows that are added up along columns.

    A tile is `rows` whole rows. Scratch: levels, their probabilities if maps are mixed from them, gradients of the
    parts, concat's map and then its G, and attention's gradients of the scores. An image's gradients of the sums are
    `gradients` numbers from the last one's.
    """
    program = tl.program_id(0)
    local_image = program // programs
    image = first_image + local_image
    row = program.to(tl.int64)  # of the tables
    ptr_levels = ptr_scratch + program.to(tl.int64) * scratch
    parts = levels * classes * pixels if SETTING.probabilities else 0
    ptr_parts = ptr_levels + parts
    ptr_dparts = ptr_parts + levels * classes * pixels
    ptr_mixed = ptr_dparts + levels * classes * pixels
    ptr_tilts = ptr_mixed + classes * pixels
    ptr_labels += program.to(tl.int64) * label_scratch
    ptr_gradients += image.to(tl.int64) * gradients
    if ptr_concat_dweight is not None:
        ptr_concat_dweight += row * (pairs * classes * classes)
    if ptr_concat_dbias is not None:
        ptr_concat_dbias += row * (subsets * classes)
    if ptr_attention_dweight is not None:
        ptr_attention_dweight += row * (pairs * classes)
    if ptr_attention_dbias is not None:
        ptr_attention_dbias += row * pairs
    tile = program % programs
    while tile < tiles:
        first_row = tile * rows
        count_rows = tl.minimum(full[0] * full[1] - first_row, rows)
        fill_scratch(
            logits,
            strides,
            sizes,
            ptr_target,
            strides_target,
            ptr_labels,
            ptr_levels,
            None,
            image,
            first_row * full[2],
            count_rows * full[2],
            levels,
            pixels,
            classes,
            full,
            ignore_index,
            SETTING,
            COMPUTE,
        )
        tl.debug_barrier()
        prepare_parts(ptr_levels, ptr_parts, ptr_dparts, levels, pixels, classes, SETTING, COMPUTE)
        number = 0 + levels
        pair = 0
        while number < maps:
            code, bits, subset = map_of(number, levels, subsets, words, codes)
            pair = tl.where(subset == 0, 0, pair)
            if has(SETTING, "concat"):
                if code == 2:
                    multiply_out(
                        ptr_parts,
                        ptr_mixed,
                        ptr_concat_weight,
                        ptr_concat_bias,
                        bits,
                        levels,
                        pair,
                        pairs * classes,
                        subset,
                        subsets,
                        pixels,
                        classes,
                        SETTING,
                        COMPUTE,
                    )
                    tl.debug_barrier()
            _mixed_gradient(
                ptr_parts,
                ptr_dparts,
                ptr_mixed,
                ptr_tilts,
                ptr_labels,
                ptr_gradients,
                number,
                ptr_attention_weight,
                ptr_attention_bias,
                ptr_concat_dbias,
                subset,
                subsets,
                code,
                bits,
                levels,
                pair,
                pixels,
                classes,
                SETTING,
                COMPUTE,
            )
            tl.debug_barrier()
            if has(SETTING, "concat"):
                if code == 2:
                    concat_backward(
                        ptr_parts,
                        ptr_dparts,
                        ptr_mixed,
                        ptr_concat_weight,
                        ptr_concat_dweight,
                        bits,
                        levels,
                        pair,
                        pairs * classes,
                        pixels,
                        classes,
                        SETTING,
                        COMPUTE,
                    )
                    tl.debug_barrier()
            if ptr_attention_dweight is not None or ptr_attention_dbias is not None:
                if code == 3:
                    attention_sums(
                        ptr_parts,
                        ptr_tilts,
                        ptr_attention_dweight,
                        ptr_attention_dbias,
                        bits,
                        levels,
                        pair,
                        pixels,
                        classes,
                        SETTING,
                        COMPUTE,
                    )
                    tl.debug_barrier()
            pair += members(bits)
            number += 1
        i = 0
        while i < levels:
            map_offset = i * classes * pixels
            _level_gradient(
                ptr_levels + map_offset,
                ptr_parts + map_offset,
                ptr_dparts + map_offset,
                ptr_labels,
                ptr_gradients,
                i,
                pixels,
                classes,
                SETTING,
            )
            i += 1
        tl.debug_barrier()
        i = 0
        ptr_rows = ptr_tables
        while i < levels:
            width = along_axis(sizes, i, 2)
            if (needed >> i) & 1 != 0:
                add_up_columns(
                    ptr_dparts + i * classes * pixels,
                    ptr_rows,
                    width,
                    along_axis(taps, i, 2),
                    local_image,
                    first_row,
                    count_rows,
                    pixels,
                    classes,
                    full,
                    SETTING,
                    COMPUTE,
                )
                ptr_rows += tl.cast(images * classes, tl.int64) * full[0] * full[1] * width
            i += 1
        tl.debug_barrier()
        tile += programs


@triton.jit
def finish_kernel(tables, results, rows, programs, numbers, ROWS: tl.constexpr, NUMBERS: tl.constexpr):
    """results[k][i] = the sum of column i of tables[k], (programs, numbers[k]), `rows` rows at a time: an image or all.

    A program takes NUMBERS columns of one table; the tables stand one behind the other among the programs.
    """
    block = tl.program_id(0)
    for k in tl.static_range(len(tables)):
        blocks = tl.cdiv(numbers[k], NUMBERS)
        groups = programs // rows
        if (block >= 0) & (block < blocks * groups):
            group = block // blocks
            offs_number = block % blocks * NUMBERS + tl.arange(0, NUMBERS)
            mask_number = offs_number < numbers[k]
            total = tl.zeros((ROWS, NUMBERS), tl.float64)
            start = 0
            while start < rows:
                offs_row = start + tl.arange(0, ROWS)
                ptrs = tables[k] + (group * rows + offs_row).to(tl.int64)[:, None] * numbers[k] + offs_number[None, :]
                total += tl.load(ptrs, mask=(offs_row < rows)[:, None] & mask_number[None, :], other=0)
                start += ROWS
            result = tl.sum(total, axis=0)
            if results[k].dtype.element_ty.primitive_bitwidth < 32:
                result = result.to(tl.float32)  # neither the interpreter nor every GPU goes from float64 to bfloat16
            ptrs = results[k] + group.to(tl.int64) * numbers[k] + offs_number
            tl.store(ptrs, result.to(results[k].dtype.element_ty), mask=mask_number)
        block -= blocks * groups

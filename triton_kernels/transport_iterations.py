"""The iterations of transport in Triton: in one launch, or half an iteration a launch.

    f_i = epsilon * (log a_i - logsumexp_j((S_ij + g_j) / epsilon))
    g_j = epsilon * (log b_j - logsumexp_i((S_ij + f_i) / epsilon))

One launch: a program does all iterations of an item, in sweeps over whole rows. The row sum of
E_ij = exp((S_ij + g_j - top_i) / epsilon) gives f_i, and in the same registers E_ij a_i / (row sum) are the entries of
the plan under the old g, whose column sums c_j give the new g_j = g_j + epsilon * log(b_j / c_j). An iteration is one
exponential an entry, where the log-domain loop takes two. A row cannot fail: its maximum is taken out. If the sum of a
column falls under 1e-20, where entries may have underflowed, columns are done by logsumexp from f, in one more sweep.

Why not exponentiate once and iterate by products, as on a CPU: an SM makes 16 exponentials a clock and loads 16 numbers
a clock from L2. Streaming a stored kernel matrix costs what making it again costs, and takes scratch and absorptions.

Columns hold in all what rows do. Rounding moves a little from one to the other, which no later iteration takes back:
in float32 potentials drifted by 1e-7 an iteration, 5e-6 in 40. So the c_j are scaled to the total of the rows, and 40
leave 5e-7; where half an iteration is a launch, a kernel between two iterations moves the column potentials by the
constant that this is. In float64 that sum would round as much as it corrects.

Half an iteration a launch: where an item is too large for one program, each program makes the potentials of its own
lines by an online logsumexp over the other side. Nothing is added across programs, so there are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .transport_tiles import (
    exponentials,
    exponentials_under,
    from_bits,
    masses,
    matrix_tile,
    merged,
    new_potential,
    place,
    potentials,
    score_tile,
    store_tile,
)


@triton.jit
def log_sums(
    ptr_own,
    ptr_other,
    ptr_mass,
    ptr_potential,
    strides_own,
    strides_other,
    batch,
    head,
    first_own,
    own,
    others,
    depth,
    scale,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Of exp((S + potential) / epsilon) over the other side: the maximum, and the sum with the maximum taken out."""
    top = tl.full((TILE.own,), float("-inf"), COMPUTE)
    total = tl.zeros((TILE.own,), COMPUTE)
    first = 0
    while first < others:
        other = first + tl.arange(0, TILE.other) < others
        if ptr_mass is not None:
            _, other = masses(ptr_mass, first, others, TILE.other)
        potential, other = potentials(ptr_potential, first, others, other, TILE.other)
        scores = score_tile(
            ptr_own,
            ptr_other,
            strides_own,
            strides_other,
            batch,
            head,
            first_own,
            first,
            own,
            other,
            depth,
            TILE,
            COMPUTE,
        )
        weights, more_top = exponentials(scores, potential, own, other, scale, 1, COMPUTE)
        top, total = merged(top, total, more_top, tl.sum(weights, axis=1), scale)
        first += TILE.other
    return top, total


@triton.jit
def half_step_kernel(
    ptr_own,
    ptr_other,
    ptr_own_mass,
    ptr_other_mass,
    ptr_given,
    ptr_found,
    ptr_before,
    ptr_result,
    ptr_error,
    ptr_done,
    strides_own,
    strides_other,
    strides_mass,
    strides_potential,
    sizes,
    tiles,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """New potentials of a tile of the own side.

    Rows (`ptr_error`) come with the largest change since `ptr_before`, relative in the scaling: that is how far the
    row sums of the plan before were off. Of columns that are done (`ptr_done`) the history holds what was before.
    """
    batch, head, tile = place(tiles, sizes[3])
    item = tl.cast(batch * sizes[3] + head, tl.int64)
    first = tile * TILE.own
    offs = first + tl.arange(0, TILE.own)
    given, found = item * strides_potential[0], item * strides_potential[1]
    done = 0
    if ptr_done is not None:
        done = tl.load(ptr_done + item)
    if done != 0:
        if ptr_result is not None:
            before = tl.load(ptr_before + found + offs, mask=offs < sizes[0], other=0.0)
            tl.store(ptr_found + found + offs, before, mask=offs < sizes[0])
    else:
        epsilon = from_bits(epsilon_bits)
        scale = (1.4426950408889634 / epsilon).to(COMPUTE)
        mass, own = masses(ptr_own_mass + tl.cast(batch, tl.int64) * strides_mass[0], first, sizes[0], TILE.own)
        top, total = log_sums(
            ptr_own,
            ptr_other,
            ptr_other_mass + tl.cast(batch, tl.int64) * strides_mass[1],
            ptr_given + given,
            strides_own,
            strides_other,
            batch,
            head,
            first,
            own,
            sizes[1],
            sizes[2],
            scale,
            TILE,
            COMPUTE,
        )
        potential = new_potential(mass, top, total, epsilon)
        if ptr_error is not None:
            before = tl.load(ptr_before + found + offs, mask=offs < sizes[0], other=float("-inf"))
            change = tl.abs(tl.exp((before - tl.where(own, potential, 0.0)) / epsilon) - 1.0)
            change = tl.where(own & (potential > float("-inf")), change, 0.0)
            tl.store(ptr_error + item * tiles + tile, tl.max(change, axis=0))
        if ptr_result is not None:
            result = potential.to(ptr_result.dtype.element_ty)
            tl.store(ptr_result + item * sizes[0] + offs, result, mask=offs < sizes[0])
            potential = tl.where(potential > float("-inf"), potential, 0.0)
        tl.store(ptr_found + found + offs, potential, mask=offs < sizes[0])


@triton.jit
def decide_kernel(ptr_error, ptr_done, ptr_count, tiles, step, tolerance_bits, BLOCK: tl.constexpr):
    """Whether the item is done: the iteration before `step` left its rows within the tolerance."""
    item = tl.program_id(0)
    if tl.load(ptr_done + item) == 0:
        worst = tl.zeros((BLOCK,), tl.float64)
        start = 0
        while start < tiles:
            offs = start + tl.arange(0, BLOCK)
            error = tl.load(ptr_error + tl.cast(item, tl.int64) * tiles + offs, mask=offs < tiles, other=0.0)
            worst = tl.where(error < worst, worst, error)
            start += BLOCK
        converged = tl.max(worst, axis=0) < from_bits(tolerance_bits)
        tl.store(ptr_done + item, converged.to(tl.int32))
        tl.store(ptr_count + item, tl.where(converged, step - 1, step))


@triton.jit
def kept_share(held, total):
    """What brings `held` back to `total`: 1 where they are further apart than rounding leaves them, or not numbers."""
    close = tl.abs(held - total) < 1e-3 * total
    return tl.where(close, total / tl.where(close, held, 1.0), 1.0)


@triton.jit
def conserve_kernel(
    ptr_mass,
    ptr_total,
    ptr_before,
    ptr_found,
    ptr_result,
    ptr_done,
    stride_mass,
    strides_potential,
    columns,
    heads,
    epsilon_bits,
    BLOCK: tl.constexpr,
):
    """Moves new column potentials of an item by one constant, so that columns held what rows held.

    c_j = b_j exp((g before - g) / epsilon) is what a column held; `ptr_total` is what the rows did.
    """
    item = tl.program_id(0)
    done = 0
    if ptr_done is not None:
        done = tl.load(ptr_done + item)
    if done == 0:
        epsilon = from_bits(epsilon_bits)
        ptr_mass += tl.cast(item // heads, tl.int64) * stride_mass
        ptr_before += tl.cast(item, tl.int64) * strides_potential[0]
        ptr_found += tl.cast(item, tl.int64) * strides_potential[1]
        held = tl.zeros((BLOCK,), tl.float64)
        first = 0
        while first < columns:
            offs = first + tl.arange(0, BLOCK)
            mass, column = masses(ptr_mass, first, columns, BLOCK)
            before = tl.load(ptr_before + offs, mask=column, other=0.0)
            found = tl.load(ptr_found + offs, mask=column, other=0.0)
            held += tl.where(column, mass * tl.exp((before - found) / epsilon), 0.0)
            first += BLOCK
        kept = kept_share(tl.sum(held, axis=0), tl.load(ptr_total + item // heads))
        first = 0
        while (first < columns) & (kept != 1.0):
            offs = first + tl.arange(0, BLOCK)
            column = masses(ptr_mass, first, columns, BLOCK)[1]
            found = tl.load(ptr_found + offs, mask=column, other=0.0) - epsilon * tl.log(kept)
            tl.store(ptr_found + offs, found, mask=column)
            result = found.to(ptr_result.dtype.element_ty)
            tl.store(ptr_result + tl.cast(item, tl.int64) * columns + offs, result, mask=column)
            first += BLOCK


@triton.jit
def total_mass(ptr, size, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    first = 0
    while first < size:
        mass, taking = masses(ptr, first, size, BLOCK)
        total += tl.where(taking, mass, 0.0)
        first += BLOCK
    return tl.sum(total, axis=0)


@triton.jit
def _column_log_sums(
    ptr_scores,
    ptr_row,
    strides_scores,
    batch,
    head,
    rows,
    column,
    scale,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """As `log_sums`, of all columns at once, from the row potentials at `ptr_row`."""
    top = tl.full((TILE.other,), float("-inf"), COMPUTE)
    total = tl.zeros((TILE.other,), COMPUTE)
    first = 0
    while first < rows:
        offs = first + tl.arange(0, TILE.own)
        potential, row = potentials(ptr_row, first, rows, offs < rows, TILE.own)
        scores = matrix_tile(ptr_scores, strides_scores, batch, head, first, 0, row, column, TILE.wide, COMPUTE)
        weights, more_top = exponentials(scores, potential, row, column, scale, 0, COMPUTE)
        top, total = merged(top, total, more_top, tl.sum(weights, axis=0), scale)
        first += TILE.own
    return top, total


@triton.jit
def whole_kernel(
    ptr_scores,
    ptr_row_mass,
    ptr_column_mass,
    ptr_work,
    ptr_final,
    ptr_row,
    ptr_column,
    ptr_history,
    ptr_count,
    strides_scores,
    strides_mass,
    sizes,
    iterations,
    keep,
    epsilon_bits,
    tolerance_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    TOLERANCE: tl.constexpr,
):
    """All iterations of an item. `ptr_work` holds two sets of row potentials, of this iteration and of the last."""
    batch, head = tl.program_id(0) // sizes[2], tl.program_id(0) % sizes[2]
    item = tl.cast(batch * sizes[2] + head, tl.int64)
    rows, columns = sizes[0], sizes[1]
    epsilon = from_bits(epsilon_bits)
    scale = (1.4426950408889634 / epsilon).to(COMPUTE)
    ptr_row_mass += tl.cast(batch, tl.int64) * strides_mass[0]
    ptr_column_mass += tl.cast(batch, tl.int64) * strides_mass[1]
    ptr_work += item * 2 * rows
    ptr_history += item * keep * columns
    offs_column = tl.arange(0, TILE.other)
    in_column = offs_column < columns
    column_mass, column = masses(ptr_column_mass, 0, columns, TILE.other)
    whole = total_mass(ptr_row_mass, rows, TILE.own)
    alive = tl.max(column.to(tl.int32), axis=0) * (whole > 0).to(tl.int32)
    # Asked of the numbers: in the interpreter a lone truth value does not combine with a block of them.
    column = tl.where(alive != 0, column_mass, 0.0) > 0
    potential = tl.zeros((TILE.other,), tl.float64)
    running = alive
    count = tl.where(alive != 0, iterations, 1) if TOLERANCE else iterations + alive * 0
    step = 0
    while (step < iterations) & (running != 0):
        sums = tl.zeros((TILE.own, TILE.other), COMPUTE)
        worst = tl.zeros((TILE.own,), tl.float64)
        first = 0
        while first < rows:
            offs_row = first + tl.arange(0, TILE.own)
            mass, row = masses(ptr_row_mass, first, rows, TILE.own)
            scores = matrix_tile(ptr_scores, strides_scores, batch, head, first, 0, row, column, TILE.wide, COMPUTE)
            weights, top = exponentials(scores, potential, row, column, scale, 1, COMPUTE)
            total = tl.sum(weights, axis=1)
            found = new_potential(mass, top, total, epsilon)
            if TOLERANCE:
                ptrs = ptr_work + ((step + 1) % 2) * rows + offs_row
                before = tl.load(ptrs, mask=row, other=0.0)
                change = tl.abs(tl.exp((before - tl.where(row, found, 0.0)) / epsilon) - 1.0)
                worst = tl.where(row & ~(change <= worst), change, worst)
            tl.store(ptr_work + (step % 2) * rows + offs_row, found, mask=offs_row < rows)
            scaling = tl.where(row, mass.to(COMPUTE) / tl.where(row, total, 1.0), 0.0)
            sums += weights * scaling[:, None]
            first += TILE.own
        # What one thread has stored another one reads, in this iteration or in the next.
        tl.debug_barrier()
        if TOLERANCE:
            if (step > 0) & (tl.max(worst, axis=0) < from_bits(tolerance_bits)):
                running = 0
                count = step
        if running != 0:
            total = tl.sum(sums, axis=0)
            safe = total > 1e-20
            exact = total.to(tl.float64)
            if tl.float64 != COMPUTE:
                exact *= kept_share(tl.sum(tl.where(column, exact, 0.0), axis=0), whole)
            taken = tl.log(tl.where(safe, exact, 1.0))
            log_mass = tl.log(tl.where(column, column_mass, 1.0))
            if tl.max((column & ~safe).to(tl.int32), axis=0) != 0:
                ptr_now = ptr_work + (step % 2) * rows
                top, total = _column_log_sums(
                    ptr_scores, ptr_now, strides_scores, batch, head, rows, column, scale, TILE, COMPUTE
                )
                found = new_potential(column_mass, top, total, epsilon)
                potential = tl.where(column, found, 0.0)
            else:
                potential = tl.where(column, potential + epsilon * (log_mass - taken), 0.0)
            if keep > 1:
                tl.store(ptr_history + tl.cast(step, tl.int64) * columns + offs_column, potential, mask=in_column)
            step += 1
    fill = tl.minimum(step, keep - 1)
    while fill < keep:
        tl.store(ptr_history + tl.cast(fill, tl.int64) * columns + offs_column, potential, mask=in_column)
        fill += 1
    result = tl.where(column, potential, float("-inf")).to(ptr_column.dtype.element_ty)
    tl.store(ptr_column + item * columns + offs_column, result, mask=in_column)
    tl.store(ptr_count + item, count)
    first = 0
    while first < rows:
        offs_row = first + tl.arange(0, TILE.own)
        mass, _ = masses(ptr_row_mass, first, rows, TILE.own)
        row = tl.where(alive != 0, mass, 0.0) > 0
        final = tl.load(ptr_work + ((count + 1) % 2) * rows + offs_row, mask=row, other=float("-inf"))
        tl.store(ptr_final + item * rows + offs_row, final, mask=offs_row < rows)
        tl.store(ptr_row + item * rows + offs_row, final.to(ptr_row.dtype.element_ty), mask=offs_row < rows)
        first += TILE.own


@triton.jit
def plan_kernel(
    ptr_own,
    ptr_other,
    ptr_own_mass,
    ptr_potential,
    ptr_plan,
    strides_own,
    strides_other,
    strides_mass,
    strides_plan,
    sizes,
    tiles,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """T of a tile of columns, the own side here, each the softmax over its rows times its mass: columns are exact."""
    batch, head, tile = place(tiles, sizes[3])
    item = tl.cast(batch * sizes[3] + head, tl.int64)
    first_own = tile * TILE.own
    scale = (1.4426950408889634 / from_bits(epsilon_bits)).to(COMPUTE)
    mass, own = masses(ptr_own_mass + tl.cast(batch, tl.int64) * strides_mass[0], first_own, sizes[0], TILE.own)
    ptr_potential += item * sizes[1]
    top, total = log_sums(
        ptr_own,
        ptr_other,
        None,
        ptr_potential,
        strides_own,
        strides_other,
        batch,
        head,
        first_own,
        own,
        sizes[1],
        sizes[2],
        scale,
        TILE,
        COMPUTE,
    )
    factor = tl.where(total > 0, mass.to(COMPUTE) / tl.where(total > 0, total, 1.0), 0.0)
    first = 0
    while first < sizes[1]:
        offs_other = first + tl.arange(0, TILE.other)
        potential, other = potentials(ptr_potential, first, sizes[1], offs_other < sizes[1], TILE.other)
        scores = score_tile(
            ptr_own,
            ptr_other,
            strides_own,
            strides_other,
            batch,
            head,
            first_own,
            first,
            own,
            other,
            sizes[2],
            TILE,
            COMPUTE,
        )
        weights = exponentials_under(scores, potential, top, own, other, scale, 1, COMPUTE) * factor[:, None]
        store_tile(ptr_plan, strides_plan, batch, head, first_own, first, sizes[0], sizes[1], weights, TILE.wide)
        first += TILE.other

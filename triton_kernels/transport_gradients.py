"""What a transport plan moves, in Triton, and the gradients of scores, tokens and reference: the plan is never stored.

    moved_i = sum_j T_ij v_j;        dS = T * dT / epsilon  less what the iterations take back
    dtokens_i = sum_j dS_ij r_j;     dreference_j = sum_i dS_ij x_i    (distance: 2 (sum_j dS_ij r_j - x_i sum_j dS_ij))

As in attention a program keeps its own lines, streams the other side, makes a tile of scores, of the plan and of the
gradient again from tokens and reference, and multiplies it by what is to be moved. Rows and columns are one kernel: the
pointers change places.

What the iterations take back: with shares P = T / b of columns and R = T / a of rows after t iterations,
    unrolled: sum_t P^t_ij gamma^t_j + R^t_ij phi^t_i        implicit: T_ij (alpha_i + beta_j)
"""

from __future__ import annotations

import triton
import triton.language as tl

from .transport_tiles import (
    at,
    from_bits,
    log_masses,
    masses,
    matrix_tile,
    place,
    potentials,
    product_tile,
    score_tile,
    shares,
    store_tile,
)

# Above any exponent of a plan, and still finite when summed: 2^100.
HIGHEST = tl.constexpr(100.0)


@triton.jit
def _lines(
    ptr_potential, ptr_mass, strides_potential, batch, head, first, size, FACTOR: tl.constexpr, BLOCK: tl.constexpr
):
    """Potentials, the mass that the plan takes as its factor (or 1), and who takes part."""
    offs = first + tl.arange(0, BLOCK)
    taking = offs < size
    potential, taking = potentials(ptr_potential + at(batch, head, strides_potential), first, size, taking, BLOCK)
    factor = tl.full((BLOCK,), 1.0, tl.float64)
    if FACTOR:
        factor, positive = masses(ptr_mass, first, size, BLOCK)
        taking = taking & positive
    return potential, factor, taking


@triton.jit
def _taken_back(
    scores,
    ptr_row,
    ptr_phi,
    ptr_gamma,
    ptr_history,
    ptr_own_mass,
    ptr_other_mass,
    first_own,
    first_other,
    own_size,
    other_size,
    own,
    other,
    count,
    epsilon,
    scale,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    OWN_ROWS: tl.constexpr,
):
    """sum_t P^t_ij gamma^t_j + R^t_ij phi^t_i of a tile."""
    log_own = epsilon * log_masses(ptr_own_mass, first_own, own_size, TILE.own)
    log_other = epsilon * log_masses(ptr_other_mass, first_other, other_size, TILE.other)
    offs_own = first_own + tl.arange(0, TILE.own)
    offs_other = first_other + tl.arange(0, TILE.other)
    taken = tl.zeros((TILE.own, TILE.other), COMPUTE)
    rows = own_size if OWN_ROWS else other_size
    columns = other_size if OWN_ROWS else own_size
    step = 0
    while step < count:
        row = ptr_row + tl.cast(step, tl.int64) * rows
        phi = ptr_phi + tl.cast(step, tl.int64) * rows
        gamma = ptr_gamma + tl.cast(step, tl.int64) * columns
        history = ptr_history + tl.cast(step, tl.int64) * columns
        if OWN_ROWS:
            f = tl.load(row + offs_own, mask=own, other=0.0)
            g = tl.load(history + offs_other, mask=other, other=0.0)
            before = tl.load(history - columns + offs_other, mask=other & (offs_other * 0 + step > 0), other=0.0)
            by_columns = shares(scores, f, g - log_other, own, other, scale, 0.0, COMPUTE)
            by_rows = shares(scores, f - log_own, before, own, other, scale, 0.0, COMPUTE)
            taken += by_columns * tl.load(gamma + offs_other, mask=other, other=0.0)[None, :]
            taken += by_rows * tl.load(phi + offs_own, mask=own, other=0.0)[:, None]
        else:
            f = tl.load(row + offs_other, mask=other, other=0.0)
            g = tl.load(history + offs_own, mask=own, other=0.0)
            before = tl.load(history - columns + offs_own, mask=own & (offs_own * 0 + step > 0), other=0.0)
            by_columns = shares(scores, g - log_own, f, own, other, scale, 0.0, COMPUTE)
            by_rows = shares(scores, before, f - log_other, own, other, scale, 0.0, COMPUTE)
            taken += by_columns * tl.load(gamma + offs_own, mask=own, other=0.0)[:, None]
            taken += by_rows * tl.load(phi + offs_other, mask=other, other=0.0)[None, :]
        step += 1
    return taken


@triton.jit
def _slope(
    ptr_own,
    ptr_other,
    ptr_own_moved,
    ptr_other_moved,
    ptr_own_potential,
    ptr_other_potential,
    ptr_own_mass,
    ptr_other_mass,
    ptr_own_taken,
    ptr_other_taken,
    ptr_row,
    ptr_phi,
    ptr_gamma,
    ptr_history,
    ptr_count,
    strides_own,
    strides_other,
    strides_own_moved,
    strides_other_moved,
    strides_own_potential,
    strides_other_potential,
    strides_mass,
    batch,
    head,
    first_own,
    first_other,
    sizes,
    steps,
    epsilon,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    KIND: tl.constexpr,
    OWN_ROWS: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """A tile of the plan and of dL/dS, the second without what is taken back where KIND is "given"."""
    scale = (1.4426950408889634 / epsilon).to(COMPUTE)
    if ptr_own_mass is not None:
        ptr_own_mass += tl.cast(batch, tl.int64) * strides_mass[0]
    if ptr_other_mass is not None:
        ptr_other_mass += tl.cast(batch, tl.int64) * strides_mass[1]
    # The plan is T = a R where the row potentials came last, and T = b P where the column potentials did.
    OWN_FACTOR: tl.constexpr = (KIND == "implicit" and OWN_ROWS) or (KIND == "unrolled" and not OWN_ROWS)
    OTHER_FACTOR: tl.constexpr = KIND != "given" and not OWN_FACTOR
    by_own, factor_own, own = _lines(
        ptr_own_potential,
        ptr_own_mass,
        strides_own_potential,
        batch,
        head,
        first_own,
        sizes[0],
        OWN_FACTOR,
        TILE.own,
    )
    by_other, factor_other, other = _lines(
        ptr_other_potential,
        ptr_other_mass,
        strides_other_potential,
        batch,
        head,
        first_other,
        sizes[1],
        OTHER_FACTOR,
        TILE.other,
    )
    scores = score_tile(
        ptr_own,
        ptr_other,
        strides_own,
        strides_other,
        batch,
        head,
        first_own,
        first_other,
        own,
        other,
        sizes[2],
        TILE,
        COMPUTE,
    )
    plan = shares(scores, by_own, by_other, own, other, scale, HIGHEST if KIND == "given" else 0.0, COMPUTE)
    if OWN_FACTOR:
        plan = plan * factor_own.to(COMPUTE)[:, None]
    if OTHER_FACTOR:
        plan = plan * factor_other.to(COMPUTE)[None, :]
    slope = tl.zeros_like(plan)
    if SLOPE:
        if ptr_own_moved is not None:
            if ptr_other_moved is None:
                dplan = matrix_tile(
                    ptr_own_moved,
                    strides_own_moved,
                    batch,
                    head,
                    first_own,
                    first_other,
                    own,
                    other,
                    TILE.wide,
                    COMPUTE,
                )
            else:
                dplan = product_tile(
                    ptr_own_moved,
                    ptr_other_moved,
                    strides_own_moved,
                    strides_other_moved,
                    batch,
                    head,
                    first_own,
                    first_other,
                    own,
                    other,
                    sizes[3],
                    False,
                    TILE,
                    COMPUTE,
                )
            slope = plan * dplan * (1.0 / epsilon).to(COMPUTE)
        item = tl.cast(batch * sizes[4] + head, tl.int64)
        if ptr_own_taken is not None:
            offs_own = first_own + tl.arange(0, TILE.own)
            offs_other = first_other + tl.arange(0, TILE.other)
            alpha = tl.load(ptr_own_taken + item * sizes[0] + offs_own, mask=own, other=0.0)
            beta = tl.load(ptr_other_taken + item * sizes[1] + offs_other, mask=other, other=0.0)
            # Between parts of the plan that share little both are large, and nearly opposite.
            slope = (slope.to(tl.float64) - plan.to(tl.float64) * (alpha[:, None] + beta[None, :])).to(COMPUTE)
        if ptr_phi is not None:
            rows = sizes[0] if OWN_ROWS else sizes[1]
            columns = sizes[1] if OWN_ROWS else sizes[0]
            slope -= _taken_back(
                scores,
                ptr_row + item * steps * rows,
                ptr_phi + item * steps * rows,
                ptr_gamma + item * steps * columns,
                ptr_history + item * steps * columns,
                ptr_own_mass,
                ptr_other_mass,
                first_own,
                first_other,
                sizes[0],
                sizes[1],
                own,
                other,
                tl.load(ptr_count + item),
                epsilon,
                scale,
                TILE,
                COMPUTE,
                OWN_ROWS,
            )
    return plan, slope


@triton.jit
def slope_sums_kernel(
    ptr_own,
    ptr_other,
    ptr_own_moved,
    ptr_other_moved,
    ptr_own_potential,
    ptr_other_potential,
    ptr_own_mass,
    ptr_other_mass,
    ptr_own_taken,
    ptr_other_taken,
    ptr_row,
    ptr_phi,
    ptr_gamma,
    ptr_history,
    ptr_count,
    ptr_sums,
    strides_own,
    strides_other,
    strides_own_moved,
    strides_other_moved,
    strides_own_potential,
    strides_other_potential,
    strides_mass,
    sizes,
    steps,
    tiles,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    KIND: tl.constexpr,
    OWN_ROWS: tl.constexpr,
):
    """The sums of T * dT / epsilon over the other side: the gradient of the own potentials."""
    batch, head, tile = place(tiles, sizes[4])
    first_own = tile * TILE.own
    epsilon = from_bits(epsilon_bits)
    # What a linear system is solved for has to be as exact as the system: a float's rounding would be divided by its
    # least eigenvalue.
    EXACT: tl.constexpr = tl.float64 if KIND == "implicit" else COMPUTE
    sums = tl.zeros((TILE.own,), EXACT)
    first = 0
    while first < sizes[1]:
        _, slope = _slope(
            ptr_own,
            ptr_other,
            ptr_own_moved,
            ptr_other_moved,
            ptr_own_potential,
            ptr_other_potential,
            ptr_own_mass,
            ptr_other_mass,
            ptr_own_taken,
            ptr_other_taken,
            ptr_row,
            ptr_phi,
            ptr_gamma,
            ptr_history,
            ptr_count,
            strides_own,
            strides_other,
            strides_own_moved,
            strides_other_moved,
            strides_own_potential,
            strides_other_potential,
            strides_mass,
            batch,
            head,
            first_own,
            first,
            sizes,
            steps,
            epsilon,
            TILE,
            COMPUTE,
            KIND,
            OWN_ROWS,
            True,
        )
        sums += tl.sum(slope.to(EXACT), axis=1)
        first += TILE.other
    offs = first_own + tl.arange(0, TILE.own)
    ptr_sums += tl.cast(batch * sizes[4] + head, tl.int64) * sizes[0]
    tl.store(ptr_sums + offs, sums.to(ptr_sums.dtype.element_ty), mask=offs < sizes[0])


@triton.jit
def scores_gradient_kernel(
    ptr_own,
    ptr_other,
    ptr_own_moved,
    ptr_other_moved,
    ptr_own_potential,
    ptr_other_potential,
    ptr_own_mass,
    ptr_other_mass,
    ptr_own_taken,
    ptr_other_taken,
    ptr_row,
    ptr_phi,
    ptr_gamma,
    ptr_history,
    ptr_count,
    ptr_dscores,
    strides_own,
    strides_other,
    strides_own_moved,
    strides_other_moved,
    strides_own_potential,
    strides_other_potential,
    strides_mass,
    strides_dscores,
    sizes,
    steps,
    tiles,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    KIND: tl.constexpr,
    OWN_ROWS: tl.constexpr,
):
    """dS of one tile."""
    batch, head, tile = place(tiles[0] * tiles[1], sizes[4])
    first_own = tile // tiles[1] * TILE.own
    first_other = tile % tiles[1] * TILE.other
    _, slope = _slope(
        ptr_own,
        ptr_other,
        ptr_own_moved,
        ptr_other_moved,
        ptr_own_potential,
        ptr_other_potential,
        ptr_own_mass,
        ptr_other_mass,
        ptr_own_taken,
        ptr_other_taken,
        ptr_row,
        ptr_phi,
        ptr_gamma,
        ptr_history,
        ptr_count,
        strides_own,
        strides_other,
        strides_own_moved,
        strides_other_moved,
        strides_own_potential,
        strides_other_potential,
        strides_mass,
        batch,
        head,
        first_own,
        first_other,
        sizes,
        steps,
        from_bits(epsilon_bits),
        TILE,
        COMPUTE,
        KIND,
        OWN_ROWS,
        True,
    )
    store_tile(ptr_dscores, strides_dscores, batch, head, first_own, first_other, sizes[0], sizes[1], slope, TILE.wide)


@triton.jit
def move_kernel(
    ptr_own,
    ptr_other,
    ptr_own_moved,
    ptr_other_moved,
    ptr_own_potential,
    ptr_other_potential,
    ptr_own_mass,
    ptr_other_mass,
    ptr_own_taken,
    ptr_other_taken,
    ptr_row,
    ptr_phi,
    ptr_gamma,
    ptr_history,
    ptr_count,
    ptr_own_lines,
    ptr_other_lines,
    ptr_values,
    ptr_out,
    strides_own,
    strides_other,
    strides_own_moved,
    strides_other_moved,
    strides_own_potential,
    strides_other_potential,
    strides_mass,
    strides_own_lines,
    strides_other_lines,
    strides_values,
    strides_out,
    sizes,
    steps,
    tiles,
    width,
    terms,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    KIND: tl.constexpr,
    OWN_ROWS: tl.constexpr,
    SUM: tl.constexpr,
    SLOPE: tl.constexpr,
    DISTANCE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of a tile of own lines: the gradient that dS gives them (SLOPE), and the values that the plan moves to them.

    SUM names what the result is a sum over: "heads", "batch" (`terms` of it a program), or "" for one item.
    """
    first_index, second, tile = place(tiles[0] * tiles[1], tiles[2])
    first_own = tile // tiles[1] * TILE.own
    first_width = tile % tiles[1] * WIDTH
    inside = first_width + tl.arange(0, WIDTH) < width
    epsilon = from_bits(epsilon_bits)
    out = tl.zeros((TILE.own, WIDTH), COMPUTE)
    batch, head = first_index, second
    term = 0
    if SUM == "batch":
        term = first_index * terms
        terms = tl.minimum(term + terms, sizes[5])
    while term < terms:
        if SUM == "heads":
            head = term
        if SUM == "batch":
            batch = term
        sums = tl.zeros((TILE.own,), COMPUTE)
        first = 0
        while first < sizes[1]:
            plan, slope = _slope(
                ptr_own,
                ptr_other,
                ptr_own_moved,
                ptr_other_moved,
                ptr_own_potential,
                ptr_other_potential,
                ptr_own_mass,
                ptr_other_mass,
                ptr_own_taken,
                ptr_other_taken,
                ptr_row,
                ptr_phi,
                ptr_gamma,
                ptr_history,
                ptr_count,
                strides_own,
                strides_other,
                strides_own_moved,
                strides_other_moved,
                strides_own_potential,
                strides_other_potential,
                strides_mass,
                batch,
                head,
                first_own,
                first,
                sizes,
                steps,
                epsilon,
                TILE,
                COMPUTE,
                KIND,
                OWN_ROWS,
                SLOPE,
            )
            offs_other = first + tl.arange(0, TILE.other)
            by_other = ptr_other_potential + at(batch, head, strides_other_potential)
            other = potentials(by_other, first, sizes[1], offs_other < sizes[1], TILE.other)[1]
            if SLOPE:
                if DISTANCE:
                    slope = 2.0 * slope
                    sums += tl.sum(slope, axis=1)
                lines = matrix_tile(
                    ptr_other_lines,
                    strides_other_lines,
                    batch,
                    head,
                    first,
                    first_width,
                    other,
                    inside,
                    TILE.wide,
                    COMPUTE,
                )
                out = tl.dot(slope, lines, out, input_precision=TILE.moving, out_dtype=COMPUTE)
            if ptr_values is not None:
                values = matrix_tile(
                    ptr_values, strides_values, batch, head, first, first_width, other, inside, TILE.wide, COMPUTE
                )
                out = tl.dot(plan, values, out, input_precision=TILE.moving, out_dtype=COMPUTE)
            first += TILE.other
        if SLOPE and DISTANCE:
            by_own = ptr_own_potential + at(batch, head, strides_own_potential)
            offs_own = first_own + tl.arange(0, TILE.own)
            own = potentials(by_own, first_own, sizes[0], offs_own < sizes[0], TILE.own)[1]
            lines = matrix_tile(
                ptr_own_lines, strides_own_lines, batch, head, first_own, first_width, own, inside, TILE.wide, COMPUTE
            )
            out -= lines * sums[:, None]
        term += 1
    store_tile(ptr_out, strides_out, first_index, second, first_own, first_width, sizes[0], width, out, TILE.wide)

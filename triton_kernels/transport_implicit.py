"""The linear system of the implicit gradient, in Triton, matrix-free, in one launch or three launches a step.

    [[diag(T 1), T], [T^T, diag(T^T 1)]] [alpha; beta] = [phi; gamma]

By the Schur complement of the rows, C beta = gamma - T^T y with y = phi / T 1 and
C = diag(T^T 1) - T^T diag(1 / T 1) T, by conjugate gradients scaled by T^T 1. A step is one sweep over the plan, whose
entries are made again from the scores: the row sums of T p, divided by T 1, weigh the same entries in registers.

C is the Laplacian of a graph, so relative errors of its weights only cause relative errors of the same size, however
near to singular it is; but only if its sums are exact. So entries are float32 (float64 for float64 input), and sums
over them, and all vectors, are float64. C knows no constant: what phi and gamma differ by in sum is taken from the
shorter side, as in the reference. A direction without curvature moves potentials between parts of the plan that share
so little mass that it has no gradient: it is left out of the right side, and all begins again with what remains.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .transport_tiles import from_bits, masses, matrix_tile, place, potentials, score_tile, shares

# Curvature over that of the diagonal, as NO_DIRECTION of the reference.
NO_CURVATURE = tl.constexpr(1e-9)


@triton.jit
def _plan_rows(
    ptr_scores,
    ptr_row_mass,
    ptr_row,
    strides_scores,
    batch,
    head,
    first,
    rows,
    potential,
    column,
    scale,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """T of a tile of whole rows, in float64: a share of each row, times its mass."""
    mass, row = masses(ptr_row_mass, first, rows, TILE.own)
    by_row, row = potentials(ptr_row, first, rows, row, TILE.own)
    scores = matrix_tile(ptr_scores, strides_scores, batch, head, first, 0, row, column, TILE.wide, COMPUTE)
    plan = shares(scores, by_row, potential, row, column, scale, 0.0, COMPUTE)
    return (plan * mass.to(COMPUTE)[:, None]).to(tl.float64), row


@triton.jit
def _leave_out(
    ptr_scores,
    ptr_row_mass,
    ptr_row,
    ptr_sums,
    ptr_alpha,
    strides_scores,
    batch,
    head,
    rows,
    potential,
    column,
    direction,
    scale,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """alpha += T direction / T 1: the rows give what their equations with the columns cannot have."""
    first = 0
    while first < rows:
        offs_row = first + tl.arange(0, TILE.own)
        plan, row = _plan_rows(
            ptr_scores,
            ptr_row_mass,
            ptr_row,
            strides_scores,
            batch,
            head,
            first,
            rows,
            potential,
            column,
            scale,
            TILE,
            COMPUTE,
        )
        total = tl.load(ptr_sums + offs_row, mask=row, other=1.0)
        alpha = tl.load(ptr_alpha + offs_row, mask=row, other=0.0)
        alpha += tl.sum(plan * direction[None, :], axis=1) / tl.where(total > 0, total, 1.0)
        tl.store(ptr_alpha + offs_row, alpha, mask=offs_row < rows)
        first += TILE.own
    tl.debug_barrier()


@triton.jit
def whole_solve_kernel(
    ptr_scores,
    ptr_row_mass,
    ptr_row,
    ptr_column,
    ptr_phi,
    ptr_gamma,
    ptr_alpha,
    ptr_beta,
    ptr_sums,
    strides_scores,
    strides_mass,
    sizes,
    most_steps,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ENOUGH: tl.constexpr,
):
    """alpha and beta of an item. `ptr_sums` is scratch for T 1; `ptr_alpha` holds phi / T 1 until the end."""
    batch, head = tl.program_id(0) // sizes[2], tl.program_id(0) % sizes[2]
    item = tl.cast(batch * sizes[2] + head, tl.int64)
    rows, columns = sizes[0], sizes[1]
    scale = (1.4426950408889634 / from_bits(epsilon_bits)).to(COMPUTE)
    ptr_row_mass += tl.cast(batch, tl.int64) * strides_mass[0]
    ptr_row += item * rows
    ptr_phi += item * rows
    ptr_alpha += item * rows
    ptr_sums += item * rows
    offs_column = tl.arange(0, TILE.other)
    potential, column = potentials(ptr_column + item * columns, 0, columns, offs_column < columns, TILE.other)
    gamma = tl.load(ptr_gamma + item * columns + offs_column, mask=column, other=0.0).to(tl.float64)
    diagonal = tl.zeros((TILE.other,), tl.float64)
    moved = tl.zeros((TILE.other,), tl.float64)
    mass_sum = tl.zeros((TILE.own,), tl.float64)
    phi_sum = tl.zeros((TILE.own,), tl.float64)
    first = 0
    while first < rows:
        offs_row = first + tl.arange(0, TILE.own)
        plan, row = _plan_rows(
            ptr_scores,
            ptr_row_mass,
            ptr_row,
            strides_scores,
            batch,
            head,
            first,
            rows,
            potential,
            column,
            scale,
            TILE,
            COMPUTE,
        )
        total = tl.sum(plan, axis=1)
        phi = tl.load(ptr_phi + offs_row, mask=row, other=0.0).to(tl.float64)
        tl.store(ptr_sums + offs_row, total, mask=offs_row < rows)
        tl.store(ptr_alpha + offs_row, phi / tl.where(total > 0, total, 1.0), mask=offs_row < rows)
        diagonal += tl.sum(plan, axis=0)
        moved += tl.sum(plan * tl.where(total > 0, phi / tl.where(total > 0, total, 1.0), 0.0)[:, None], axis=0)
        mass_sum += total
        phi_sum += phi
        first += TILE.own
    tl.debug_barrier()
    whole = tl.sum(mass_sum, axis=0)
    surplus = (tl.sum(phi_sum, axis=0) - tl.sum(gamma, axis=0)) / tl.where(whole > 0, whole, 1.0)
    column = diagonal > 0
    inverse = tl.where(column, 1.0 / tl.where(column, diagonal, 1.0), 0.0)
    residual = tl.where(column, gamma - moved + surplus * diagonal, 0.0)
    direction = residual * inverse
    norm = tl.sum(residual * direction, axis=0)
    goal = norm * (ENOUGH * ENOUGH)
    beta = tl.zeros((TILE.other,), tl.float64)
    step = 0
    while (step < most_steps) & (norm > goal):
        product = diagonal * direction
        first = 0
        while first < rows:
            offs_row = first + tl.arange(0, TILE.own)
            plan, row = _plan_rows(
                ptr_scores,
                ptr_row_mass,
                ptr_row,
                strides_scores,
                batch,
                head,
                first,
                rows,
                potential,
                column,
                scale,
                TILE,
                COMPUTE,
            )
            total = tl.load(ptr_sums + offs_row, mask=row, other=1.0)
            weight = tl.sum(plan * direction[None, :], axis=1) / tl.where(total > 0, total, 1.0)
            product -= tl.sum(plan * weight[:, None], axis=0)
            first += TILE.own
        curvature = tl.sum(direction * product, axis=0)
        flat = tl.sum(direction * direction * diagonal, axis=0)
        curved = curvature > NO_CURVATURE * flat
        length = norm / tl.where(curved, curvature, 1.0)
        if curved:
            beta += length * direction
            residual -= length * product
        else:
            share = norm / tl.where(flat > 0, flat, 1.0)
            residual -= share * diagonal * direction
            if rows <= columns:
                _leave_out(
                    ptr_scores,
                    ptr_row_mass,
                    ptr_row,
                    ptr_sums,
                    ptr_alpha,
                    strides_scores,
                    batch,
                    head,
                    rows,
                    potential,
                    column,
                    share * direction,
                    scale,
                    TILE,
                    COMPUTE,
                )
        renewed = tl.sum(residual * residual * inverse, axis=0)
        direction = residual * inverse + tl.where(curved, renewed / norm, 0.0) * direction
        norm = renewed
        step += 1
    tl.store(ptr_beta + item * columns + offs_column, beta, mask=offs_column < columns)
    # Of the shorter side, as in the reference, the equations give way to the surplus.
    gives = tl.where(rows > columns, 0.0, surplus)
    first = 0
    while first < rows:
        offs_row = first + tl.arange(0, TILE.own)
        plan, row = _plan_rows(
            ptr_scores,
            ptr_row_mass,
            ptr_row,
            strides_scores,
            batch,
            head,
            first,
            rows,
            potential,
            column,
            scale,
            TILE,
            COMPUTE,
        )
        total = tl.load(ptr_sums + offs_row, mask=row, other=1.0)
        alpha = tl.load(ptr_alpha + offs_row, mask=row, other=0.0)
        alpha -= tl.sum(plan * beta[None, :], axis=1) / tl.where(total > 0, total, 1.0)
        tl.store(ptr_alpha + offs_row, tl.where(row, alpha - gives, 0.0), mask=offs_row < rows)
        first += TILE.own


@triton.jit
def plan_product_kernel(
    ptr_own,
    ptr_other,
    ptr_own_mass,
    ptr_other_mass,
    ptr_own_potential,
    ptr_other_potential,
    ptr_vector,
    ptr_divisor,
    ptr_product,
    ptr_done,
    strides_own,
    strides_other,
    strides_mass,
    sizes,
    tiles,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    OWN_ROWS: tl.constexpr,
):
    """T (or T^T) times a vector over the other side (ones if there is none), divided by a vector of the own side."""
    batch, head, tile = place(tiles, sizes[3])
    item = tl.cast(batch * sizes[3] + head, tl.int64)
    done = 0
    if ptr_done is not None:
        done = tl.load(ptr_done + item)
    if done == 0:
        first_own = tile * TILE.own
        scale = (1.4426950408889634 / from_bits(epsilon_bits)).to(COMPUTE)
        offs_own = first_own + tl.arange(0, TILE.own)
        own_potential, own = potentials(
            ptr_own_potential + item * sizes[0], first_own, sizes[0], offs_own < sizes[0], TILE.own
        )
        total = tl.zeros((TILE.own,), tl.float64)
        first = 0
        while first < sizes[1]:
            offs_other = first + tl.arange(0, TILE.other)
            potential, other = potentials(
                ptr_other_potential + item * sizes[1], first, sizes[1], offs_other < sizes[1], TILE.other
            )
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
            plan = shares(scores, own_potential, potential, own, other, scale, 0.0, COMPUTE)
            # The same rounding on both sides: the entry is a share of its row, times the mass of the row.
            if OWN_ROWS:
                mass = masses(ptr_own_mass + tl.cast(batch, tl.int64) * strides_mass[0], first_own, sizes[0], TILE.own)
                plan = plan * mass[0].to(COMPUTE)[:, None]
            else:
                mass = masses(ptr_other_mass + tl.cast(batch, tl.int64) * strides_mass[1], first, sizes[1], TILE.other)
                plan = plan * mass[0].to(COMPUTE)[None, :]
            exact = plan.to(tl.float64)
            if ptr_vector is not None:
                vector = tl.load(ptr_vector + item * sizes[1] + offs_other, mask=other, other=0.0).to(tl.float64)
                exact = exact * vector[None, :]
            total += tl.sum(exact, axis=1)
            first += TILE.other
        if ptr_divisor is not None:
            divisor = tl.load(ptr_divisor + item * sizes[0] + offs_own, mask=own, other=1.0)
            total = tl.where(divisor > 0, total / tl.where(divisor > 0, divisor, 1.0), 0.0)
        tl.store(ptr_product + item * sizes[0] + offs_own, total, mask=offs_own < sizes[0])


@triton.jit
def conjugate_kernel(
    ptr_diagonal,
    ptr_product,
    ptr_beta,
    ptr_residual,
    ptr_direction,
    ptr_norm,
    ptr_left_out,
    ptr_done,
    columns,
    BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
    ENOUGH: tl.constexpr,
):
    """The vectors of one step of conjugate gradients for an item; `ptr_product` holds T^T (T p / T 1).

    FIRST: `ptr_residual` stands there already, and the first direction is made of it. `ptr_norm` keeps (norm, goal),
    and `ptr_left_out` gets how much of the direction is left out, where it has no curvature.
    """
    item = tl.program_id(0)
    start = tl.cast(item, tl.int64) * columns
    zero = tl.zeros((BLOCK,), tl.float64)
    if FIRST or tl.load(ptr_done + item) == 0:
        norm = tl.load(ptr_norm + 2 * item)
        goal = tl.load(ptr_norm + 2 * item + 1)
        curvature, squared = zero, zero
        length, left_out = norm * 0.0, norm * 0.0
        if not FIRST:
            first = 0
            while first < columns:
                offs = first + tl.arange(0, BLOCK)
                inside = offs < columns
                diagonal = tl.load(ptr_diagonal + start + offs, mask=inside, other=0.0)
                direction = tl.load(ptr_direction + start + offs, mask=inside, other=0.0)
                product = tl.load(ptr_product + start + offs, mask=inside, other=0.0)
                curvature += direction * (diagonal * direction - product)
                squared += direction * direction * diagonal
                first += BLOCK
            bend = tl.sum(curvature, axis=0)
            flat = tl.sum(squared, axis=0)
            curved = bend > NO_CURVATURE * flat
            length = tl.where(curved, norm / tl.where(curved, bend, 1.0), 0.0)
            left_out = tl.where(curved, 0.0, norm / tl.where(flat > 0, flat, 1.0))
        squares = zero
        first = 0
        while first < columns:
            offs = first + tl.arange(0, BLOCK)
            inside = offs < columns
            diagonal = tl.load(ptr_diagonal + start + offs, mask=inside, other=0.0)
            residual = tl.load(ptr_residual + start + offs, mask=inside, other=0.0)
            if not FIRST:
                direction = tl.load(ptr_direction + start + offs, mask=inside, other=0.0)
                product = tl.load(ptr_product + start + offs, mask=inside, other=0.0)
                beta = tl.load(ptr_beta + start + offs, mask=inside, other=0.0)
                residual -= length * (diagonal * direction - product) + left_out * diagonal * direction
                tl.store(ptr_beta + start + offs, beta + length * direction, mask=inside)
                tl.store(ptr_residual + start + offs, residual, mask=inside)
            squares += tl.where(diagonal > 0, residual * residual / tl.where(diagonal > 0, diagonal, 1.0), 0.0)
            first += BLOCK
        # What one thread has stored another one reads.
        tl.debug_barrier()
        renewed = tl.sum(squares, axis=0)
        growth = norm * 0.0
        if FIRST:
            goal = renewed * (ENOUGH * ENOUGH)
        else:
            growth = tl.where(length > 0, renewed / norm, 0.0)
        first = 0
        while first < columns:
            offs = first + tl.arange(0, BLOCK)
            inside = offs < columns
            diagonal = tl.load(ptr_diagonal + start + offs, mask=inside, other=0.0)
            residual = tl.load(ptr_residual + start + offs, mask=inside, other=0.0)
            direction = tl.where(diagonal > 0, residual / tl.where(diagonal > 0, diagonal, 1.0), 0.0)
            if not FIRST:
                direction += growth * tl.load(ptr_direction + start + offs, mask=inside, other=0.0)
            tl.store(ptr_direction + start + offs, direction, mask=inside)
            first += BLOCK
        done = renewed <= goal
        tl.store(ptr_left_out + item, left_out)
        tl.store(ptr_norm + 2 * item, renewed)
        tl.store(ptr_norm + 2 * item + 1, goal)
        tl.store(ptr_done + item, done.to(tl.int32))
    else:
        tl.store(ptr_left_out + item, tl.zeros((), tl.float64))

"""Back through the iterations of transport, in Triton: in one launch, or two launches an iteration.

With the shares of columns and of rows
    P^t = exp((S + f_t + g_t) / epsilon) / b        R^t = exp((S + f_t + g_(t-1)) / epsilon) / a
    phi^t_i = [t = last] dL/df_i - sum_j P^t_ij gamma^t_j;        gamma^(t-1)_j = - sum_i R^t_ij phi^t_i

These kernels find the vectors f_t, phi^t, gamma^t of every iteration from the saved g_t alone, and
transport_gradients.py makes dS of them. f_t follows from g_(t-1), as it did forward. In one launch an entry takes one
exponential an iteration: R is the softmax of a row in registers, and P^t_ij = R_ij a_i exp((g_t - g_(t-1)) / epsilon) /
b_j, unless that factor passes e^40, when R may have underflowed where P has not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .transport_iterations import log_sums
from .transport_tiles import (
    exponentials,
    from_bits,
    log_masses,
    masses,
    matrix_tile,
    new_potential,
    place,
    potentials,
    score_tile,
    shares,
)


@triton.jit
def rows_back_kernel(
    ptr_own,
    ptr_other,
    ptr_row_mass,
    ptr_column_mass,
    ptr_before,
    ptr_history,
    ptr_start,
    ptr_row,
    ptr_phi,
    ptr_gamma,
    ptr_count,
    strides_own,
    strides_other,
    strides_mass,
    stride_before,
    sizes,
    steps,
    step,
    tiles,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """f and phi of one iteration, for a tile of rows."""
    batch, head, tile = place(tiles, sizes[3])
    item = tl.cast(batch * sizes[3] + head, tl.int64)
    count = tl.load(ptr_count + item)
    if step < count:
        first_own = tile * TILE.own
        epsilon = from_bits(epsilon_bits)
        scale = (1.4426950408889634 / epsilon).to(COMPUTE)
        ptr_row_mass += tl.cast(batch, tl.int64) * strides_mass[0]
        ptr_column_mass += tl.cast(batch, tl.int64) * strides_mass[1]
        line = item * steps + step
        mass, own = masses(ptr_row_mass, first_own, sizes[0], TILE.own)
        top, total = log_sums(
            ptr_own,
            ptr_other,
            ptr_column_mass,
            ptr_before + item * stride_before,
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
        found = new_potential(mass, top, total, epsilon)
        own = found > float("-inf")
        offs_own = first_own + tl.arange(0, TILE.own)
        tl.store(ptr_row + line * sizes[0] + offs_own, found, mask=offs_own < sizes[0])
        found = tl.where(own, found, 0.0)
        taken = tl.zeros((TILE.own,), COMPUTE)
        first = 0
        while first < sizes[1]:
            offs_other = first + tl.arange(0, TILE.other)
            other = masses(ptr_column_mass, first, sizes[1], TILE.other)[1]
            potential = tl.load(ptr_history + line * sizes[1] + offs_other, mask=other, other=0.0)
            potential -= epsilon * log_masses(ptr_column_mass, first, sizes[1], TILE.other)
            gamma = tl.load(ptr_gamma + line * sizes[1] + offs_other, mask=other, other=0.0)
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
            part = shares(scores, found, potential, own, other, scale, 0.0, COMPUTE)
            taken += tl.sum(part * gamma[None, :], axis=1)
            first += TILE.other
        start = tl.load(ptr_start + item * sizes[0] + offs_own, mask=own, other=0.0)
        phi = tl.where(own, tl.where(step == count - 1, start, 0.0) - taken, 0.0)
        tl.store(ptr_phi + line * sizes[0] + offs_own, phi, mask=offs_own < sizes[0])


@triton.jit
def columns_back_kernel(
    ptr_own,
    ptr_other,
    ptr_column_mass,
    ptr_row_mass,
    ptr_before,
    ptr_row,
    ptr_phi,
    ptr_gamma,
    ptr_count,
    strides_own,
    strides_other,
    strides_mass,
    stride_before,
    sizes,
    steps,
    step,
    tiles,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """gamma of the iteration before, for a tile of columns, which are the own side here."""
    batch, head, tile = place(tiles, sizes[3])
    item = tl.cast(batch * sizes[3] + head, tl.int64)
    if step < tl.load(ptr_count + item):
        first_own = tile * TILE.own
        epsilon = from_bits(epsilon_bits)
        scale = (1.4426950408889634 / epsilon).to(COMPUTE)
        ptr_column_mass += tl.cast(batch, tl.int64) * strides_mass[0]
        ptr_row_mass += tl.cast(batch, tl.int64) * strides_mass[1]
        line = item * steps + step
        own = masses(ptr_column_mass, first_own, sizes[0], TILE.own)[1]
        before, own = potentials(ptr_before + item * stride_before, first_own, sizes[0], own, TILE.own)
        offs_own = first_own + tl.arange(0, TILE.own)
        taken = tl.zeros((TILE.own,), COMPUTE)
        first = 0
        while first < sizes[1]:
            offs_other = first + tl.arange(0, TILE.other)
            potential, other = potentials(ptr_row + line * sizes[1], first, sizes[1], offs_other < sizes[1], TILE.other)
            potential -= epsilon * log_masses(ptr_row_mass, first, sizes[1], TILE.other)
            phi = tl.load(ptr_phi + line * sizes[1] + offs_other, mask=other, other=0.0)
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
            part = shares(scores, before, potential, own, other, scale, 0.0, COMPUTE)
            taken += tl.sum(part * phi[None, :], axis=1)
            first += TILE.other
        tl.store(ptr_gamma + (line - 1) * sizes[0] + offs_own, -taken, mask=offs_own < sizes[0])


@triton.jit
def whole_back_kernel(
    ptr_scores,
    ptr_row_mass,
    ptr_column_mass,
    ptr_history,
    ptr_start,
    ptr_row,
    ptr_phi,
    ptr_gamma,
    ptr_count,
    strides_scores,
    strides_mass,
    sizes,
    steps,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """f, phi and gamma of all iterations of an item; the last gamma stands there already."""
    batch, head = tl.program_id(0) // sizes[2], tl.program_id(0) % sizes[2]
    item = tl.cast(batch * sizes[2] + head, tl.int64)
    rows, columns = sizes[0], sizes[1]
    epsilon = from_bits(epsilon_bits)
    scale = (1.4426950408889634 / epsilon).to(COMPUTE)
    ptr_row_mass += tl.cast(batch, tl.int64) * strides_mass[0]
    ptr_column_mass += tl.cast(batch, tl.int64) * strides_mass[1]
    ptr_start += item * rows
    offs_column = tl.arange(0, TILE.other)
    column = masses(ptr_column_mass, 0, columns, TILE.other)[1]
    log_column = epsilon * log_masses(ptr_column_mass, 0, columns, TILE.other)
    count = tl.load(ptr_count + item)
    step = count - 1
    line = item * steps + step
    gamma = tl.load(ptr_gamma + line * columns + offs_column, mask=column, other=0.0)
    after = tl.load(ptr_history + line * columns + offs_column, mask=column, other=0.0)
    while step >= 0:
        line = item * steps + step
        # Before the first iteration the potentials are 0.
        ptrs = ptr_history + (line - 1) * columns + offs_column
        before = tl.load(ptrs, mask=column & (offs_column * 0 + step > 0), other=0.0)
        target = tl.where(column, after - log_column, 0.0)
        growth = tl.where(column, target - before, 0.0)
        quick = tl.max(tl.abs(growth), axis=0) < 40.0 * epsilon
        factor = tl.exp(tl.where(column & (tl.abs(growth) < 40.0 * epsilon), growth / epsilon, 0.0)).to(COMPUTE) * gamma
        sums = tl.zeros((TILE.own, TILE.other), COMPUTE)
        first = 0
        while first < rows:
            offs_row = first + tl.arange(0, TILE.own)
            mass, row = masses(ptr_row_mass, first, rows, TILE.own)
            scores = matrix_tile(ptr_scores, strides_scores, batch, head, first, 0, row, column, TILE.wide, COMPUTE)
            weights, top = exponentials(scores, before, row, column, scale, 1, COMPUTE)
            total = tl.sum(weights, axis=1)
            found = new_potential(mass, top, total, epsilon)
            row = found > float("-inf")
            inverse = tl.where(row, 1.0 / tl.where(row, total, 1.0), 0.0)
            if quick:
                taken = tl.sum(weights * factor[None, :], axis=1) * inverse * mass.to(COMPUTE)
            else:
                part = shares(scores, tl.where(row, found, 0.0), target, row, column, scale, 0.0, COMPUTE)
                taken = tl.sum(part * gamma[None, :], axis=1)
            start = tl.load(ptr_start + offs_row, mask=row, other=0.0)
            phi = tl.where(row, tl.where(step == count - 1, start, 0.0) - taken, 0.0)
            tl.store(ptr_row + line * rows + offs_row, found, mask=offs_row < rows)
            tl.store(ptr_phi + line * rows + offs_row, phi, mask=offs_row < rows)
            sums += weights * (phi * inverse)[:, None]
            first += TILE.own
        gamma = -tl.sum(sums, axis=0)
        if step > 0:
            tl.store(ptr_gamma + (line - 1) * columns + offs_column, gamma, mask=offs_column < columns)
        after = before
        step -= 1

"""Scores of tokens and a reference, and T^T values as attention: the plan is never stored.

    S_ij = <x_i, r_j>  or  -|x_i - r_j|^2;        moved_j = b_j sum_i softmax_i((S_ij + f_i) / epsilon) v_i

As in attention a program keeps its columns and streams the rows, with the maximum and the sum of the exponentials
carried along: each column of the plan is exact, and nothing overflows, however large the scores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .transport_tiles import exponentials, from_bits, masses, matrix_tile, place, potentials, score_tile, store_tile


@triton.jit
def scores_kernel(
    ptr_own,
    ptr_other,
    ptr_scores,
    strides_own,
    strides_other,
    strides_scores,
    sizes,
    tiles,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Scores of tokens and reference, written down: (batch, head, own, other)."""
    batch, head, tile = place(tiles[0] * tiles[1], sizes[3])
    first_own = tile // tiles[1] * TILE.own
    first_other = tile % tiles[1] * TILE.other
    scores = score_tile(
        ptr_own,
        ptr_other,
        strides_own,
        strides_other,
        batch,
        head,
        first_own,
        first_other,
        first_own + tl.arange(0, TILE.own) < sizes[0],
        first_other + tl.arange(0, TILE.other) < sizes[1],
        sizes[2],
        TILE,
        COMPUTE,
    )
    store_tile(ptr_scores, strides_scores, batch, head, first_own, first_other, sizes[0], sizes[1], scores, TILE.wide)


@triton.jit
def align_kernel(
    ptr_own,
    ptr_other,
    ptr_own_mass,
    ptr_potential,
    ptr_values,
    ptr_moved,
    strides_own,
    strides_other,
    strides_mass,
    strides_values,
    strides_moved,
    sizes,
    tiles,
    width,
    epsilon_bits,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """T^T values as attention: own lines are columns, and T_ij = b_j softmax_i((S_ij + f_i) / epsilon)."""
    batch, head, tile = place(tiles[0] * tiles[1], sizes[3])
    first_own = tile // tiles[1] * TILE.own
    first_width = tile % tiles[1] * WIDTH
    inside = first_width + tl.arange(0, WIDTH) < width
    scale = (1.4426950408889634 / from_bits(epsilon_bits)).to(COMPUTE)
    mass, own = masses(ptr_own_mass + tl.cast(batch, tl.int64) * strides_mass[0], first_own, sizes[0], TILE.own)
    ptr_potential += tl.cast(batch * sizes[3] + head, tl.int64) * sizes[1]
    moved = tl.zeros((TILE.own, WIDTH), COMPUTE)
    total = tl.zeros((TILE.own,), COMPUTE)
    top = tl.full((TILE.own,), float("-inf"), COMPUTE)
    first = 0
    while first < sizes[1]:
        potential, other = potentials(
            ptr_potential, first, sizes[1], first + tl.arange(0, TILE.other) < sizes[1], TILE.other
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
        weights, more_top = exponentials(scores, potential, own, other, scale, 1, COMPUTE)
        highest = tl.maximum(top, more_top)
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        kept, more = tl.exp2((top - safe) * scale), tl.exp2((more_top - safe) * scale)
        weights = weights * more[:, None]
        values = matrix_tile(
            ptr_values, strides_values, batch, head, first, first_width, other, inside, TILE.wide, COMPUTE
        )
        total = total * kept + tl.sum(weights, axis=1)
        moved = tl.dot(weights, values, moved * kept[:, None], input_precision=TILE.moving, out_dtype=COMPUTE)
        top = highest
        first += TILE.other
    factor = tl.where(total > 0, mass.to(COMPUTE) / tl.where(total > 0, total, 1.0), 0.0)
    store_tile(
        ptr_moved,
        strides_moved,
        batch,
        head,
        first_own,
        first_width,
        sizes[0],
        width,
        moved * factor[:, None],
        TILE.wide,
    )

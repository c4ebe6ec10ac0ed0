"""Forward launches of transport: the iterations, the plan, and what it moves where both come at once."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .launch import launch
from .transport_apply import align_kernel, scores_kernel
from .transport_iterations import conserve_kernel, decide_kernel, half_step_kernel, plan_kernel, whole_kernel
from .transport_problem import (
    MOVE_WARPS,
    WARPS,
    Problem,
    bits,
    headed_matrix,
    pair_tile,
    token_matrix,
    whole_tile,
    whole_warps,
    width_block,
)


class Iterations(NamedTuple):
    """What iterating found, of which `final` are the row potentials in float64."""

    final: Tensor
    row: Tensor
    column: Tensor
    history: Tensor
    count: Tensor


def iterate(problem: Problem, iterations: int, tolerance: float, keep: int) -> Iterations:
    batch, heads, n, p = problem.shape
    found = Iterations(
        final=problem.new(batch, heads, n),
        row=problem.new(batch, heads, n, dtype=problem.dtype),
        column=problem.new(batch, heads, p, dtype=problem.dtype),
        history=problem.new(batch, heads, keep, p),
        count=torch.full((batch, heads), iterations, dtype=torch.int32, device=problem.leader.device),
    )
    if problem.is_whole:
        _iterate_whole(problem, found, iterations, tolerance, keep)
        return found
    return _iterate_by_halves(problem, found, iterations, tolerance, keep)


def _iterate_whole(problem: Problem, found: Iterations, iterations: int, tolerance: float, keep: int) -> None:
    batch, heads, n, p = problem.shape
    side = problem.side(rows=True)
    tile = whole_tile(side)
    launch(
        whole_kernel,
        side.items,
        side.own,
        *problem.masses,
        problem.new(batch, heads, 2, n),
        *found,
        side.strides_own,
        tuple(mass.stride(0) for mass in problem.masses),
        (n, p, heads),
        iterations,
        keep,
        problem.epsilon_bits,
        bits(tolerance),
        device=side.own.device,
        TILE=tile,
        COMPUTE=problem.compute,
        TOLERANCE=tolerance > 0,
        num_warps=whole_warps(tile),
    )


def _iterate_by_halves(problem: Problem, found: Iterations, iterations: int, tolerance: float, keep: int) -> Iterations:
    batch, heads, n, p = problem.shape
    device = problem.leader.device
    rows = (problem.new(batch, heads, n), problem.new(batch, heads, n).fill_(float("-inf")))
    start = torch.zeros(batch, heads, p, dtype=torch.float64, device=device)
    done = torch.zeros(batch, heads, dtype=torch.int32, device=device) if tolerance > 0 else None
    tiles = -(-n // pair_tile(problem.side(rows=True)).own)
    error = problem.new(batch, heads, tiles) if tolerance > 0 else None
    columns = (found.history[:, :, 0], torch.empty_like(start))  # for keep = 1: this iteration's and the last one's
    row_mass, column_mass = problem.masses
    total = torch.where(row_mass > 0, row_mass, 0.0).sum(dim=1)
    before = start
    for step in range(1, iterations + 1):
        half_step(problem, True, before, rows[step % 2], rows[(step + 1) % 2], None, error, done)
        if tolerance > 0 and step > 1:
            launch(
                decide_kernel,
                batch * heads,
                error,
                done,
                found.count,
                tiles,
                step,
                bits(tolerance),
                device=device,
                BLOCK=256,
                num_warps=WARPS,
            )
        column = found.history[:, :, step - 1] if keep > 1 else columns[(iterations - step) % 2]
        half_step(problem, False, rows[step % 2], column, before, found.column, None, done)
        if problem.dtype is not torch.float64:
            launch(
                conserve_kernel,
                batch * heads,
                column_mass,
                total,
                before,
                column,
                found.column,
                done,
                column_mass.stride(0),
                (before.stride(1), column.stride(1)),
                p,
                heads,
                problem.epsilon_bits,
                device=device,
                BLOCK=1024,
                num_warps=WARPS,
            )
        before = column
    last = rows[iterations % 2]
    if tolerance > 0:
        odd = (found.count % 2 == 1).unsqueeze(-1)
        last = torch.where(odd, rows[1], rows[0])
    return found._replace(final=last, row=last.to(problem.dtype))


def half_step(
    problem: Problem,
    rows: bool,
    given: Tensor,
    found: Tensor,
    before: Tensor,
    result: Tensor | None,
    error: Tensor | None,
    done: Tensor | None,
) -> None:
    side = problem.side(rows)
    tile = pair_tile(side)
    tiles = -(-side.own_size // tile.own)
    own_mass, other_mass = problem.masses[:: 1 if rows else -1]
    launch(
        half_step_kernel,
        side.items * tiles,
        side.own,
        side.other,
        own_mass,
        other_mass,
        given,
        found,
        before,
        result,
        error,
        done,
        side.strides_own,
        side.strides_other,
        (own_mass.stride(0), other_mass.stride(0)),
        (given.stride(1), found.stride(1), before.stride(1)),
        side.sizes,
        tiles,
        problem.epsilon_bits,
        device=side.own.device,
        TILE=tile,
        COMPUTE=problem.compute,
        num_warps=WARPS,
    )


def write_plan(problem: Problem, final: Tensor, plan: Tensor) -> None:
    side = problem.side(rows=False)
    tile = pair_tile(side)
    tiles = -(-side.own_size // tile.own)
    strides = plan.stride()
    launch(
        plan_kernel,
        side.items * tiles,
        side.own,
        side.other,
        problem.masses[1],
        final,
        plan,
        side.strides_own,
        side.strides_other,
        (problem.masses[1].stride(0),),
        (*strides[:2], strides[3], strides[2]),
        side.sizes,
        tiles,
        problem.epsilon_bits,
        device=plan.device,
        TILE=tile,
        COMPUTE=problem.compute,
        num_warps=WARPS,
    )


def with_scores(problem: Problem) -> Problem:
    """The same problem with its scores written down."""
    batch, heads, n, p = problem.shape
    scores = problem.new(batch, heads, n, p, dtype=problem.dtype)
    side = problem.side(rows=True)
    tile = pair_tile(side, out=headed_matrix(scores))
    tiles = (-(-n // tile.own), -(-p // tile.other))
    launch(
        scores_kernel,
        side.items * tiles[0] * tiles[1],
        side.own,
        side.other,
        scores,
        side.strides_own,
        side.strides_other,
        scores.stride(),
        side.sizes,
        tiles,
        device=scores.device,
        TILE=tile,
        COMPUTE=problem.compute,
        num_warps=WARPS,
    )
    return replace(problem, scores=scores, tokens=None, reference=None, score="given")


def align(problem: Problem, final: Tensor, tokens: Tensor, aligned: Tensor) -> None:
    side = problem.side(rows=False)
    values, strides_values = token_matrix(tokens)
    tile = pair_tile(side, (values, strides_values), out=headed_matrix(aligned))
    width = tokens.shape[2]
    block = width_block(width)
    tiles = (-(-side.own_size // tile.own), -(-width // block))
    launch(
        align_kernel,
        side.items * tiles[0] * tiles[1],
        side.own,
        side.other,
        problem.masses[1],
        final,
        values,
        aligned,
        side.strides_own,
        side.strides_other,
        (problem.masses[1].stride(0),),
        strides_values,
        aligned.stride(),
        side.sizes,
        tiles,
        width,
        problem.epsilon_bits,
        device=aligned.device,
        TILE=tile,
        COMPUTE=problem.compute,
        WIDTH=block,
        num_warps=MOVE_WARPS,
    )

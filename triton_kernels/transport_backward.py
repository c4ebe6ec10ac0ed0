"""Backward launches of transport: through the plan, back through the iterations, and to tokens and reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .launch import launch
from .transport_forward import half_step
from .transport_gradients import move_kernel, scores_gradient_kernel, slope_sums_kernel
from .transport_implicit import conjugate_kernel, plan_product_kernel, whole_solve_kernel
from .transport_problem import (
    MOVE_WARPS,
    NOTHING,
    WARPS,
    WHOLE_NUMBERS_EXACT,
    Matrix,
    Problem,
    Side,
    headed_matrix,
    pair_tile,
    transposed,
    whole_tile,
    whole_warps,
    width_block,
)
from .transport_tiles import Tile
from .transport_unrolled import columns_back_kernel, rows_back_kernel, whole_back_kernel

# Conjugate gradients find what they can in as many steps as there are unknowns; each takes three launches.
MOST_STEPS = 500
# With 4 warps ptxas stays at 80 registers for sm_90 and spills 8 bytes, with 8 at 76 and spills none.
SUM_WARPS = 8
# Parts of the batch whose gradients of the reference are made side by side.
MOST_PARTS = 32


@dataclass(frozen=True)
class Slope:
    """All that a tile of the plan and of dS is made of: the arguments that the kernels of transport_apply.py share."""

    problem: Problem
    kind: str  # "given", "unrolled" or "implicit"
    by_row: Tensor  # potentials that make shares (plans where "given"); -inf where a line takes no part
    by_column: Tensor
    rows_moved: Matrix = NOTHING  # dT_ij = <row i, column j> of these; or rows_moved is dT where there is no other
    columns_moved: Matrix = NOTHING
    width: int = 0
    taken: tuple[Tensor | None, Tensor | None] = (None, None)  # alpha and beta of the implicit gradient
    unrolled: tuple[Tensor | None, ...] = (None, None, None, None, None)  # f, phi, gamma, history, count
    steps: int = 0

    def side(self, rows: bool) -> tuple[Side, Tile]:
        side = self.problem.side(rows)
        return side, pair_tile(side, self.rows_moved, self.columns_moved)

    def arguments(self, rows: bool) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The tensors and their strides, as seen from the rows or from the columns."""
        side, order = self.problem.side(rows), 1 if rows else -1
        moved = [self.rows_moved, self.columns_moved][::order]
        if self.columns_moved[0] is None:
            moved = [self.rows_moved if rows else transposed(self.rows_moved), NOTHING]
        potentials = [self.by_row, self.by_column][::order]
        masses = [self.problem.row_mass, self.problem.column_mass][::order]
        tensors = (
            side.own,
            side.other,
            *(tensor for tensor, _ in moved),
            *potentials,
            *masses,
            *self.taken[::order],
            *self.unrolled,
        )
        strides = (
            side.strides_own,
            side.strides_other,
            *(steps for _, steps in moved),
            *(potential.stride()[:2] for potential in potentials),
            tuple(0 if mass is None else mass.stride(0) for mass in masses),
        )
        return tensors, strides

    def sizes(self, side: Side) -> tuple[int, ...]:
        return side.own_size, side.other_size, side.depth, self.width, side.heads, side.batch


def slope_of(
    problem: Problem,
    rows_moved: Matrix,
    columns_moved: Matrix,
    width: int,
    grads: tuple[Tensor | None, ...],
    history: Tensor,
    count: Tensor,
    unrolled: bool,
) -> Slope:
    """The plan, dT, and what the iterations take back."""
    by_row, by_column = _anchor(problem, history, count, unrolled)
    kind = "unrolled" if unrolled else "implicit"
    slope = Slope(problem, kind, by_row, by_column, rows_moved, columns_moved, width)
    starts = []
    for rows, grad, by in zip((True, False), grads, (by_row, by_column), strict=True):
        if rows_moved[0] is not None:
            start = slope_sums(slope, rows)
        else:
            start = torch.zeros(by.shape, dtype=problem.dtype, device=by.device)
        starts.append(start if grad is None else start + torch.where(by > float("-inf"), grad, 0.0).to(start.dtype))
    if not unrolled:
        return replace(slope, taken=_solve(problem, by_row, by_column, *starts))
    return replace(
        slope,
        unrolled=(*_unroll(problem, starts[0], starts[1], history, count), history, count),
        steps=history.shape[2],
    )


def _anchor(problem: Problem, history: Tensor, count: Tensor, unrolled: bool) -> tuple[Tensor, Tensor]:
    """The potentials that make shares of the plan: T = b P after a column step, T = a R after a row step."""
    batch, heads, n, p = problem.shape
    last = history[:, :, -1]
    row_mass, column_mass = (mass.unsqueeze(1) for mass in problem.masses)
    before = last
    if unrolled:
        place = (count.long() - 2).clamp(min=0)[..., None, None].expand(batch, heads, 1, p)
        before = torch.where(count.unsqueeze(-1) > 1, history.gather(2, place).squeeze(2), 0.0)
    by_row = problem.new(batch, heads, n)
    half_step(problem, True, before, by_row, by_row, None, None, None)
    if unrolled:
        last = last - problem.epsilon * torch.where(column_mass > 0, column_mass, 1.0).log()
    else:
        by_row = by_row - problem.epsilon * torch.where(row_mass > 0, row_mass, 1.0).log()
    return by_row, torch.where(column_mass > 0, last, float("-inf"))


def slope_sums(slope: Slope, rows: bool) -> Tensor:
    """The gradient of the potentials of one side, through the plan."""
    side, tile = slope.side(rows)
    tensors, strides = slope.arguments(rows)
    dtype = torch.float64 if slope.kind == "implicit" else slope.problem.dtype
    sums = slope.problem.new(side.batch, side.heads, side.own_size, dtype=dtype)
    tiles = -(-side.own_size // tile.own)
    launch(
        slope_sums_kernel,
        side.items * tiles,
        *tensors,
        sums,
        *strides,
        slope.sizes(side),
        slope.steps,
        tiles,
        slope.problem.epsilon_bits,
        device=sums.device,
        TILE=tile,
        COMPUTE=slope.problem.compute,
        KIND=slope.kind,
        OWN_ROWS=rows,
        num_warps=SUM_WARPS,
    )
    return sums


def write_slope(slope: Slope, dscores: Tensor) -> None:
    """dS of every item, (B, heads, n, p)."""
    side, tile = slope.side(rows=True)
    tensors, strides = slope.arguments(rows=True)
    tiles = (-(-side.own_size // tile.own), -(-side.other_size // tile.other))
    launch(
        scores_gradient_kernel,
        side.items * tiles[0] * tiles[1],
        *tensors,
        dscores,
        *strides,
        dscores.stride(),
        slope.sizes(side),
        slope.steps,
        tiles,
        slope.problem.epsilon_bits,
        device=dscores.device,
        TILE=tile,
        COMPUTE=slope.problem.compute,
        KIND=slope.kind,
        OWN_ROWS=True,
        num_warps=SUM_WARPS,
    )


def _unroll(problem: Problem, phi: Tensor, gamma: Tensor, history: Tensor, count: Tensor) -> tuple[Tensor, ...]:
    """f, phi and gamma of every iteration that ran."""
    batch, heads, n, p = problem.shape
    steps = history.shape[2]
    row = problem.new(batch, heads, steps, n)
    phis = problem.new(batch, heads, steps, n, dtype=problem.dtype)
    last = (count.long() - 1)[..., None, None].expand(batch, heads, 1, p)
    gammas = problem.new(batch, heads, steps, p, dtype=problem.dtype).scatter_(2, last, gamma.unsqueeze(2))
    masses = problem.masses
    strides_mass = tuple(mass.stride(0) for mass in masses)
    if problem.is_whole:
        side = problem.side(rows=True)
        tile = whole_tile(side)
        launch(
            whole_back_kernel,
            side.items,
            side.own,
            *masses,
            history,
            phi,
            row,
            phis,
            gammas,
            count,
            side.strides_own,
            strides_mass,
            (n, p, heads),
            steps,
            problem.epsilon_bits,
            device=row.device,
            TILE=tile,
            COMPUTE=problem.compute,
            num_warps=whole_warps(tile),
        )
        return row, phis, gammas
    start = torch.zeros(batch, heads, p, dtype=torch.float64, device=row.device)
    for step in range(steps - 1, -1, -1):
        before = history[:, :, step - 1] if step > 0 else start
        for rows in (True, False)[: 2 if step > 0 else 1]:
            side = problem.side(rows)
            tile = pair_tile(side)
            tiles = -(-side.own_size // tile.own)
            tensors = (before, history, phi, row, phis, gammas) if rows else (before, row, phis, gammas)
            launch(
                rows_back_kernel if rows else columns_back_kernel,
                side.items * tiles,
                side.own,
                side.other,
                *masses[:: 1 if rows else -1],
                *tensors,
                count,
                side.strides_own,
                side.strides_other,
                strides_mass[:: 1 if rows else -1],
                before.stride(1),
                side.sizes,
                steps,
                step,
                tiles,
                problem.epsilon_bits,
                device=row.device,
                TILE=tile,
                COMPUTE=problem.compute,
                num_warps=WARPS,
            )
    return row, phis, gammas


def _solve(problem: Problem, by_row: Tensor, by_column: Tensor, phi: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and beta of the implicit gradient."""
    batch, heads, n, p = problem.shape
    most_steps = min(2 * min(n, p) + 20, MOST_STEPS)
    # Of the residual, in the norm that the scaling gives, relative to the first one.
    enough = 1e-15 if problem.dtype is torch.float64 else 1e-10
    if problem.is_whole:
        side = problem.side(rows=True)
        tile = whole_tile(side, WHOLE_NUMBERS_EXACT)
        alpha, beta = problem.new(batch, heads, n), problem.new(batch, heads, p)
        launch(
            whole_solve_kernel,
            side.items,
            side.own,
            problem.row_mass,
            by_row,
            by_column,
            phi,
            gamma,
            alpha,
            beta,
            torch.empty_like(alpha),
            side.strides_own,
            tuple(mass.stride(0) for mass in problem.masses),
            (n, p, heads),
            most_steps,
            problem.epsilon_bits,
            device=alpha.device,
            TILE=tile,
            COMPUTE=problem.compute,
            ENOUGH=enough,
            num_warps=whole_warps(tile),
        )
        return alpha, beta

    def product(rows: bool, vector: Tensor | None, divisor: Tensor | None) -> Tensor:
        return _plan_product(problem, rows, by_row, by_column, vector, divisor, done)

    done = torch.zeros(batch, heads, dtype=torch.int32, device=by_row.device)
    row_sums, diagonal = product(True, None, None), product(False, None, None)
    moved = torch.where(row_sums > 0, phi / row_sums, 0.0)
    whole = row_sums.sum(dim=-1, keepdim=True)
    difference = phi.double().sum(dim=-1, keepdim=True) - gamma.double().sum(dim=-1, keepdim=True)
    surplus = torch.where(whole > 0, difference / whole, 0.0)
    residual = torch.where(diagonal > 0, gamma - product(False, moved, None) + surplus * diagonal, 0.0)
    beta, direction = torch.zeros_like(residual), torch.zeros_like(residual)
    norm = problem.new(batch, heads, 2)
    left_out = torch.zeros(batch, heads, 1, dtype=torch.float64, device=done.device)
    vectors = (beta, residual, direction, norm, left_out, done)
    swept = residual
    missing, weights = torch.zeros_like(moved, dtype=torch.float64), None
    for step in range(most_steps + 1):
        if step > 0:
            weights = product(True, direction, row_sums)
            swept = product(False, weights, None)
        launch(
            conjugate_kernel,
            batch * heads,
            diagonal,
            swept,
            *vectors,
            p,
            device=done.device,
            BLOCK=1024,
            FIRST=step == 0,
            ENOUGH=enough,
            num_warps=WARPS,
        )
        if weights is not None and n <= p:
            missing.addcmul_(left_out, weights)
    done.zero_()
    alpha = torch.where(row_sums > 0, phi / row_sums, 0.0) - product(True, beta, row_sums)
    # What has no solution is taken from the shorter side, as in the reference.
    return alpha if n > p else alpha - surplus + missing, beta


def _plan_product(
    problem: Problem,
    rows: bool,
    by_row: Tensor,
    by_column: Tensor,
    vector: Tensor | None,
    divisor: Tensor | None,
    done: Tensor,
) -> Tensor:
    side, order = problem.side(rows), 1 if rows else -1
    tile = pair_tile(side)
    masses = problem.masses[::order]
    product = problem.new(side.batch, side.heads, side.own_size)
    tiles = -(-side.own_size // tile.own)
    launch(
        plan_product_kernel,
        side.items * tiles,
        side.own,
        side.other,
        *masses,
        *(by_row, by_column)[::order],
        vector,
        divisor,
        product,
        done,
        side.strides_own,
        side.strides_other,
        tuple(mass.stride(0) for mass in masses),
        side.sizes,
        tiles,
        problem.epsilon_bits,
        device=product.device,
        TILE=tile,
        COMPUTE=problem.compute,
        OWN_ROWS=rows,
        num_warps=WARPS,
    )
    return product


def reference_gradient(slope: Slope, lines: tuple[Matrix, Matrix], reference: Tensor, distance: bool) -> Tensor:
    """The gradient of the reference: parts of the batch side by side, then added up."""
    parts = min(slope.problem.shape[0], MOST_PARTS)
    found = slope.problem.new(parts, *reference.shape, dtype=slope.problem.dtype)
    move(slope, False, "batch", lines, NOTHING, reference.shape[-1], distance, found)
    return found.sum(dim=0)


def move(
    slope: Slope,
    rows: bool,
    summed: str,
    lines: tuple[Matrix, Matrix],
    values: Matrix,
    width: int,
    distance: bool,
    out: Tensor,
) -> None:
    """What the plan moves to the rows, or to the columns, from `values`, and with `lines` their gradient."""
    side = slope.problem.side(rows)
    own_lines, other_lines = lines if rows else lines[::-1]
    matrix = headed_matrix(out if out.dim() == 4 else out.unsqueeze(1))
    tile = pair_tile(side, slope.rows_moved, slope.columns_moved, *lines, values, out=matrix)
    tensors, strides = slope.arguments(rows)
    block = width_block(width)
    first, second = (out.shape[0], 1) if summed == "heads" else out.shape[:2]
    tiles = (-(-side.own_size // tile.own), -(-width // block), second)
    terms = {"heads": side.heads, "batch": -(-side.batch // first) if first else 0, "": 1}[summed]
    launch(
        move_kernel,
        first * second * tiles[0] * tiles[1],
        *tensors,
        own_lines[0],
        other_lines[0],
        values[0],
        out,
        *strides,
        own_lines[1],
        other_lines[1],
        values[1],
        matrix[1],
        slope.sizes(side),
        slope.steps,
        tiles,
        width,
        terms,
        slope.problem.epsilon_bits,
        device=out.device,
        TILE=tile,
        COMPUTE=slope.problem.compute,
        KIND=slope.kind,
        OWN_ROWS=rows,
        SUM=summed,
        SLOPE=lines[0][0] is not None,
        DISTANCE=distance,
        WIDTH=block,
        num_warps=MOVE_WARPS,
    )

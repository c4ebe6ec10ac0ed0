"""Transport in Triton: log-domain Sinkhorn, its plan, what the plan moves, and all gradients.

    f_i = epsilon * (log a_i - logsumexp_j((S_ij + g_j) / epsilon))      T_ij = exp((S_ij + f_i + g_j) / epsilon)
    g_j = epsilon * (log b_j - logsumexp_i((S_ij + f_i) / epsilon))      moved = T^T v  or  T v

An item of up to 2^20 scores in up to 4096 columns is one program's, which does all iterations in one launch
(transport_iterations.py), back too (transport_unrolled.py, transport_implicit.py). A larger one takes a launch half an
iteration, of many programs an item. Whether an item has converged is decided on the device. The plan is made in a
second launch, of tiles. Which way an item goes depends on n, p, D and dtype alone.

Scores of tokens and a reference are written down, for as many items at a time as fit 64 MB; where those of one item do
not, every kernel makes its tile of them again by `tl.dot`. Neither the plan nor its gradient is ever stored for them.
`tl.dot` multiplies in TF32 where torch's own float32 products may, or where both factors are half numbers, which is
exact; a plan times half numbers takes three such products; everything else is float32 throughout ("ieee").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .transport_backward import Slope, move, reference_gradient, slope_of, slope_sums, write_slope
from .transport_forward import align, iterate, with_scores, write_plan
from .transport_problem import NOTHING, SCORES, Problem, groups, headed_matrix, reference_matrix, token_matrix


def plan_forward(
    scores: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    epsilon: float,
    iterations: int,
    tolerance: float,
    keep: int,
    with_plan: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(plan, row, column, history, count); the plan has no elements where it is not wanted."""
    problem = Problem(scores.unsqueeze(1), None, None, "given", row_mass, column_mass, epsilon)
    found = iterate(problem, iterations, tolerance, keep)
    plan = torch.empty(scores.shape if with_plan else (0,), dtype=scores.dtype, device=scores.device)
    if with_plan:
        write_plan(problem, found.final, plan.unsqueeze(1))
    row, column, history, count = (part.squeeze(1) for part in found[1:])
    return plan, row, column, history, count


def plan_backward(
    grad_plan: Tensor | None,
    grad_row: Tensor | None,
    grad_column: Tensor | None,
    scores: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    history: Tensor,
    count: Tensor,
    epsilon: float,
    unrolled: bool,
) -> Tensor:
    dscores = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    if dscores.numel() == 0:
        return dscores
    problem = Problem(scores.unsqueeze(1), None, None, "given", row_mass, column_mass, epsilon)
    moved = NOTHING if grad_plan is None else headed_matrix(grad_plan.unsqueeze(1))
    grads = tuple(None if grad is None else grad.unsqueeze(1) for grad in (grad_row, grad_column))
    slope = slope_of(problem, moved, NOTHING, 0, grads, history.unsqueeze(1), count.unsqueeze(1), unrolled)
    write_slope(slope, dscores.unsqueeze(1))
    return dscores


def align_forward(
    tokens: Tensor,
    reference: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    score: int,
    epsilon: float,
    iterations: int,
    tolerance: float,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(aligned, row, column, history, count)"""
    problem = Problem(None, tokens, reference, SCORES[score], row_mass, column_mass, epsilon)
    batch, heads, n, p = problem.shape
    aligned = torch.empty(batch, heads, p, tokens.shape[2], dtype=tokens.dtype, device=tokens.device)
    parts = groups(problem, n * p)
    pieces = []
    for first, last in parts or [(0, batch)]:
        piece = problem.batches(first, last)
        piece = with_scores(piece) if parts else piece
        found = iterate(piece, iterations, tolerance, keep)
        align(piece, found.final, tokens[first:last], aligned[first:last])
        pieces.append(found[1:])
    if len(pieces) == 1:
        return aligned, *pieces[0]
    if not pieces:
        return aligned, *iterate(problem, iterations, tolerance, keep)[1:]
    row, column, history, count = (torch.cat(part) for part in zip(*pieces, strict=True))
    return aligned, row, column, history, count


def align_backward(
    grad_aligned: Tensor | None,
    grad_row: Tensor | None,
    grad_column: Tensor | None,
    tokens: Tensor,
    reference: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    history: Tensor,
    count: Tensor,
    score: int,
    epsilon: float,
    unrolled: bool,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    dtokens = torch.empty(tokens.shape if needed[0] else (0,), dtype=tokens.dtype, device=tokens.device)
    dreference = None
    problem = Problem(None, tokens, reference, SCORES[score], row_mass, column_mass, epsilon)
    batch, _, n, p = problem.shape
    steps = history.shape[2] if unrolled else 1
    vectors = steps * (n * 3 + p)
    parts = groups(problem, n * p + vectors)
    for first, last in parts or groups(problem, vectors) or [(i, i + 1) for i in range(batch)]:
        piece = problem.batches(first, last)
        whole = with_scores(piece) if parts else piece
        grads = tuple(None if grad is None else grad[first:last] for grad in (grad_row, grad_column))
        lines = token_matrix(tokens[first:last]), reference_matrix(reference)
        incoming = NOTHING if grad_aligned is None else headed_matrix(grad_aligned[first:last])
        moved = NOTHING if grad_aligned is None else lines[0]
        slope = slope_of(
            whole, moved, incoming, tokens.shape[2], grads, history[first:last], count[first:last], unrolled
        )
        if needed[0]:
            move(slope, True, "heads", lines, incoming, tokens.shape[2], score == 1, dtokens[first:last])
        if needed[1]:
            found = reference_gradient(slope, lines, reference, score == 1)
            dreference = found if dreference is None else dreference + found
    if needed[1] and dreference is None:
        dreference = torch.zeros(reference.shape, dtype=problem.dtype, device=reference.device)
    return dtokens, tokens.new_empty(0).to(reference.dtype) if dreference is None else dreference.to(reference.dtype)


def apply_forward(
    tokens: Tensor,
    reference: Tensor,
    row: Tensor,
    column: Tensor,
    values: Tensor,
    columns_side: bool,
    score: int,
    epsilon: float,
) -> Tensor:
    slope = _given_plan(tokens, reference, row, column, score, epsilon)
    batch, heads, n, p = slope.problem.shape
    shape = (batch, heads, p) if columns_side else (batch, n)
    out = torch.empty(*shape, values.shape[-1], dtype=values.dtype, device=values.device)
    matrix = token_matrix(values) if columns_side else headed_matrix(values)
    lines = (NOTHING, NOTHING)
    move(slope, not columns_side, "" if columns_side else "heads", lines, matrix, values.shape[-1], False, out)
    return out


def apply_backward(
    grad_out: Tensor,
    tokens: Tensor,
    reference: Tensor,
    row: Tensor,
    column: Tensor,
    values: Tensor,
    columns_side: bool,
    score: int,
    epsilon: float,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The gradients of tokens, reference, row, column and values; of no size where not needed."""
    rows, columns = (values, grad_out) if columns_side else (grad_out, values)
    slope = _given_plan(tokens, reference, row, column, score, epsilon)
    width = values.shape[-1]
    slope = replace(slope, rows_moved=token_matrix(rows), columns_moved=headed_matrix(columns), width=width)
    lines = token_matrix(tokens), reference_matrix(reference)
    found = [torch.empty(0, dtype=t.dtype, device=t.device) for t in (tokens, reference, row, column, values)]
    if needed[0]:
        found[0] = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
        move(slope, True, "heads", lines, NOTHING, tokens.shape[2], score == 1, found[0])
    if needed[1]:
        found[1] = reference_gradient(slope, lines, reference, score == 1).to(reference.dtype)
    if needed[2]:
        found[2] = slope_sums(slope, True).to(row.dtype)
    if needed[3]:
        found[3] = slope_sums(slope, False).to(column.dtype)
    if needed[4]:
        found[4] = torch.empty(values.shape, dtype=values.dtype, device=values.device)
        incoming = headed_matrix(grad_out) if columns_side else token_matrix(grad_out)
        summed = "heads" if columns_side else ""
        move(slope, columns_side, summed, (NOTHING, NOTHING), incoming, width, False, found[4])
    return tuple(found)


def _given_plan(tokens: Tensor, reference: Tensor, row: Tensor, column: Tensor, score: int, epsilon: float) -> Slope:
    problem = Problem(None, tokens, reference, SCORES[score], None, None, epsilon)
    return Slope(problem, "given", row.contiguous(), column.contiguous())

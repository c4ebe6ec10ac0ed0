"""Log-domain Sinkhorn, the transport plan and what is moved by it, as they are defined.

    f = 0, g = 0; repeat:   f_i = epsilon * (log a_i - logsumexp_j((S_ij + g_j) / epsilon))
                            g_j = epsilon * (log b_j - logsumexp_i((S_ij + f_i) / epsilon))
    T_ij = exp((S_ij + f_i + g_j) / epsilon)          columns exact, rows to convergence
    S_ij = <x_i, r_j>  or  -|x_i - r_j|^2             where tokens x and a reference r take the place of scores

All of it is float64, whatever comes: at |S| / epsilon = 1e8 the same loop in float32 is 20 % off.

A row or column of mass 0 takes no part: its potential is -inf, its part of the plan and of every gradient is 0, and its
scores, tokens and values are never looked at; they may be NaN. An item in which no row or no column takes part has a
plan of zeros. Inside, such potentials are 0, and such scores stand at -inf.

The gradients are written out, from the column potentials g of every iteration (`history`) or of the last: they are what
the kernels compute. Written as plain PyTorch, the forward gives by autograd what they are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .precision import compute_dtype, without_autocast

SCORES = ("dot", "negative_squared_distance")
# Of I - A A^T, whose eigenvalues lie between 0 and 1: an iteration brings a direction closer to the fixed point by this
# share. Below it, potentials move between parts of the plan that share so little mass that no number of iterations
# would converge in it, and it has no gradient; nor does float64 know it: it solves to 1e-15 over the eigenvalue.
NO_DIRECTION = 1e-9


class Marginals(NamedTuple):
    """The masses of rows (..., n) and columns (..., p), and who takes part."""

    row_mass: Tensor
    column_mass: Tensor
    rows: Tensor  # bool
    columns: Tensor
    pairs: Tensor  # (..., n, p)


def marginals(row_mass: Tensor, column_mass: Tensor) -> Marginals:
    rows, columns = row_mass > 0, column_mass > 0
    something = rows.any(dim=-1, keepdim=True) & columns.any(dim=-1, keepdim=True)
    rows, columns = rows & something, columns & something
    pairs = rows.unsqueeze(-1) & columns.unsqueeze(-2)
    return Marginals(row_mass, column_mass, rows, columns, pairs)


def only(values: Tensor, taking_part: Tensor, otherwise: float = 0.0) -> Tensor:
    """`values` where something takes part; elsewhere a constant, without a gradient, even where `values` are NaN."""
    return torch.where(taking_part, values, otherwise)


def standing(logits: Tensor, pairs: Tensor, dim: int) -> Tensor:
    """`logits` with -inf where no pair is; a line without any pair is constant instead, so that nothing becomes NaN."""
    return only(only(logits, pairs, -math.inf), pairs.any(dim=dim, keepdim=True))


def log_share(mass: Tensor, logits: Tensor, dim: int) -> Tensor:
    """log(mass) - logsumexp(logits), by one logarithm: where it is near 0 nothing is rounded at the size of the two."""
    largest = logits.detach().amax(dim=dim, keepdim=True)
    return (mass / (logits - largest).exp().sum(dim=dim)).log() - largest.squeeze(dim)


# What rows have too much, columns have too little: an error that all rows have in common, such as that of a logarithm
# of equal masses, comes back with every iteration and adds up, to 10 times what one of them rounds. So
#   - an update counts from the potential as it was before. The result does not depend on that, but rows and columns are
#     then summed from the same exponents, and what these round moves both alike;
#   - masses are counted in powers of two that leave potentials near 0. Rows then are all off by one constant, which
#     shares do not see, and which the columns' update takes back.


def excess(scores: Tensor, mass: Marginals) -> Tensor:
    """exp of what `row_update` adds to the rows' potentials, over epsilon: (..., 1), powers of two."""
    total = mass.row_mass.sum(dim=-1, keepdim=True)
    pairs = max(scores.shape[-2] * scores.shape[-1], 1)
    return torch.exp2((pairs / only(total, total > 0, 1.0)).log2().round())


def row_update(scores: Tensor, column: Tensor, mass: Marginals, epsilon: float, before: Tensor | None = None) -> Tensor:
    """The row potentials plus epsilon * log(excess), which `row_potentials` takes away."""
    row = torch.zeros_like(mass.row_mass) if before is None else before.detach()
    logits = standing((scores + row.unsqueeze(-1) + column.unsqueeze(-2)) / epsilon, mass.pairs, dim=-1)
    in_units = only(mass.row_mass * excess(scores, mass), mass.rows, 1.0)
    return only(row + epsilon * log_share(in_units, logits, -1), mass.rows)


def column_update(scores: Tensor, row: Tensor, mass: Marginals, epsilon: float, before: Tensor | None = None) -> Tensor:
    """The column potentials that follow from rows as `row_update` gives them."""
    column = torch.zeros_like(mass.column_mass) if before is None else before.detach()
    logits = standing((scores + row.unsqueeze(-1) + column.unsqueeze(-2)) / epsilon, mass.pairs, dim=-2)
    in_units = only(mass.column_mass * excess(scores, mass), mass.columns, 1.0)
    return only(column + epsilon * log_share(in_units, logits, -2), mass.columns)


def row_potentials(scores: Tensor, row: Tensor, mass: Marginals, epsilon: float) -> Tensor:
    return row - epsilon * excess(scores, mass).log()


def row_shares(scores: Tensor, column: Tensor, mass: Marginals, epsilon: float) -> Tensor:
    """R_ij = exp((S_ij + f_i + g_j) / epsilon) / a_i where f comes from g: each row sums to 1."""
    return only(standing((scores + column.unsqueeze(-2)) / epsilon, mass.pairs, dim=-1).softmax(dim=-1), mass.pairs)


def column_shares(scores: Tensor, row: Tensor, mass: Marginals, epsilon: float) -> Tensor:
    """P_ij = exp((S_ij + f_i + g_j) / epsilon) / b_j where g comes from f: each column sums to 1."""
    return only(standing((scores + row.unsqueeze(-1)) / epsilon, mass.pairs, dim=-2).softmax(dim=-2), mass.pairs)


def plan_of(scores: Tensor, row: Tensor, mass: Marginals, epsilon: float) -> Tensor:
    """T, through its columns: they are exact, and nothing overflows, however large |S| / epsilon is."""
    return only(mass.column_mass, mass.columns).unsqueeze(-2) * column_shares(scores, row, mass, epsilon)


def row_error(plan: Tensor, mass: Marginals) -> Tensor:
    """max over rows with mass of |sum_j T_ij - a_i| / a_i, an item."""
    relative = (plan.sum(dim=-1) - mass.row_mass).abs() / only(mass.row_mass, mass.rows, 1.0)
    return only(relative, mass.rows).amax(dim=-1)


class Iterations(NamedTuple):
    row: Tensor  # as `row_update` gives it
    history: list[Tensor]  # the column potentials after each iteration, those that an item did not run being its last
    ran: Tensor  # (...), int32: how many


def iterate(
    scores: Tensor, mass: Marginals, epsilon: float, iterations: int, tolerance: float, count: Tensor | None = None
) -> Iterations:
    """The iterations; `count`, where it is given, decides how many an item runs, instead of the tolerance."""
    row, column = torch.zeros_like(mass.row_mass), torch.zeros_like(mass.column_mass)
    running = torch.ones_like(mass.rows[..., 0])
    ran = torch.zeros_like(running, dtype=torch.int32)
    history: list[Tensor] = []
    for step in range(iterations):
        if count is not None:
            running = step < count
        new_row = row_update(scores, column, mass, epsilon, row)
        new_column = column_update(scores, new_row, mass, epsilon, column)
        row = torch.where(running.unsqueeze(-1), new_row, row)
        column = torch.where(running.unsqueeze(-1), new_column, column)
        history.append(column)
        ran = ran + running.to(torch.int32)
        if tolerance > 0 and count is None:
            plan = plan_of(scores.detach(), row.detach(), mass, epsilon)
            running = running & ~(row_error(plan, mass) < tolerance)
    return Iterations(row, history, ran)


def potentials(
    found: Iterations, scores: Tensor, mass: Marginals, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    row = only(row_potentials(scores, found.row, mass, epsilon), mass.rows, -math.inf)
    column = only(found.history[-1], mass.columns, -math.inf)
    return row.to(compute_dtype(dtype)), column.to(compute_dtype(dtype))


def kept(history: Sequence[Tensor], keep: int) -> Tensor:
    """(..., keep, p): all of the history, or the last of it."""
    return torch.stack(list(history[-keep:]), dim=-2).contiguous()


@without_autocast
def plan_forward(
    scores: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    epsilon: float,
    iterations: int,
    tolerance: float,
    keep: int,
    with_plan: bool,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(plan, row, column, history, count); the plan has no elements where it is not wanted."""
    mass = marginals(row_mass, column_mass)
    exact = only(scores.double(), mass.pairs)
    found = iterate(exact, mass, epsilon, iterations, tolerance, count)
    plan = plan_of(exact, found.row, mass, epsilon).to(scores.dtype) if with_plan else scores.new_empty(0)
    return (
        plan.contiguous(),
        *potentials(found, exact, mass, epsilon, scores.dtype),
        kept(found.history, keep),
        found.ran,
    )


@without_autocast
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
    mass = marginals(row_mass, column_mass)
    exact = only(scores.double(), mass.pairs)
    dscores = scores_gradient(grad_plan, grad_row, grad_column, exact, mass, history, count, epsilon, unrolled)
    return dscores.to(scores.dtype).contiguous()


def last_plan(
    scores: Tensor, mass: Marginals, history: Tensor, count: Tensor, epsilon: float, unrolled: bool
) -> Tensor:
    """T again. Where only the last column potentials are kept, from the row potentials that follow from them."""
    if not unrolled:
        return only(mass.row_mass, mass.rows).unsqueeze(-1) * row_shares(scores, history[..., -1, :], mass, epsilon)
    before = (count.long() - 2).clamp(min=0)[..., None, None].expand(*history.shape[:-2], 1, history.shape[-1])
    column = history.gather(-2, before).squeeze(-2) * (count > 1).unsqueeze(-1)
    return plan_of(scores, row_update(scores, column, mass, epsilon), mass, epsilon)


def scores_gradient(
    grad_plan: Tensor | None,
    grad_row: Tensor | None,
    grad_column: Tensor | None,
    scores: Tensor,
    mass: Marginals,
    history: Tensor,
    count: Tensor,
    epsilon: float,
    unrolled: bool,
) -> Tensor:
    """dL/dS from the gradients of the plan and of the potentials: phi is dL/df and gamma dL/dg, of the last ones."""
    phi, gamma = torch.zeros_like(mass.row_mass), torch.zeros_like(mass.column_mass)
    plan, slope = None, torch.zeros_like(scores)
    if grad_row is not None:
        phi = phi + only(grad_row.double(), mass.rows)
    if grad_column is not None:
        gamma = gamma + only(grad_column.double(), mass.columns)
    if grad_plan is not None or not unrolled:
        plan = last_plan(scores, mass, history, count, epsilon, unrolled)
    if grad_plan is not None and plan is not None:
        slope = plan * only(grad_plan.double(), mass.pairs) / epsilon
        phi, gamma = phi + slope.sum(dim=-1), gamma + slope.sum(dim=-2)
    if unrolled:
        return slope + unroll(phi, gamma, scores, mass, history, count, epsilon)
    assert plan is not None
    alpha, beta = solve(plan, phi, gamma)
    return slope - plan * (alpha.unsqueeze(-1) + beta.unsqueeze(-2))


def unroll(
    phi: Tensor, gamma: Tensor, scores: Tensor, mass: Marginals, history: Tensor, count: Tensor, epsilon: float
) -> Tensor:
    """Back through the iterations: g_t came from f_t, and f_t from g_(t-1)."""
    dscores = torch.zeros_like(scores)
    for step in range(history.shape[-2], 0, -1):
        before = history[..., step - 2, :] if step > 1 else torch.zeros_like(gamma)
        by_row = row_shares(scores, before, mass, epsilon)
        by_column = column_shares(scores, row_update(scores, before, mass, epsilon), mass, epsilon)
        ran = (step <= count).unsqueeze(-1)
        through_columns = by_column * gamma.unsqueeze(-2)
        dfrow = phi - through_columns.sum(dim=-1)
        through_rows = by_row * dfrow.unsqueeze(-1)
        dscores = dscores - only(through_columns + through_rows, ran.unsqueeze(-1))
        phi, gamma = only(phi, ~ran), torch.where(ran, -through_rows.sum(dim=-2), gamma)
    return dscores


def solve(plan: Tensor, phi: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """[[diag(T 1), T], [T^T, diag(T^T 1)]] [alpha; beta] = [phi; gamma], by the Schur complement of the smaller side.

    With A = diag(T 1)^-1/2 T diag(T^T 1)^-1/2 that is I - A A^T, symmetric, its eigenvalues between 0 and 1. Each part
    of the plan that is connected has one eigenvalue 0: a constant moved between alpha and beta changes nothing.
    """
    if plan.shape[-2] > plan.shape[-1]:
        beta, alpha = solve(plan.mT, gamma, phi)
        return alpha, beta
    row, column = plan.sum(dim=-1), plan.sum(dim=-2)
    root_row, root_column = only(row, row > 0, 1.0).sqrt(), only(column, column > 0, 1.0).sqrt()
    scaled = plan / root_row.unsqueeze(-1) / root_column.unsqueeze(-2)
    complement = torch.diag_embed(torch.ones_like(row)) - scaled @ scaled.mT
    right = phi / root_row - (scaled @ (gamma / root_column).unsqueeze(-1)).squeeze(-1)
    values, vectors = torch.linalg.eigh(complement)
    weights = (vectors.mT @ right.unsqueeze(-1)).squeeze(-1) / only(values, values > NO_DIRECTION, math.inf)
    alpha = (vectors @ weights.unsqueeze(-1)).squeeze(-1) / root_row
    beta = (gamma - (plan.mT @ alpha.unsqueeze(-1)).squeeze(-1)) / root_column.square()
    return alpha, beta


# Tokens (B, n, D) and a reference (m, p, D) in the place of scores: (B, m, n, p), one plan a head.


class Pair(NamedTuple):
    """Tokens (B, 1, n, D) and reference (B, m, p, D) in float64, zero where a token or a support takes no part."""

    tokens: Tensor
    reference: Tensor
    mass: Marginals


def headed(row_mass: Tensor, column_mass: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(B, n) and (B, p) -> (B, m, n) and (B, m, p)."""
    return tuple(mass.unsqueeze(1).expand(-1, heads, -1) for mass in (row_mass, column_mass))  # type: ignore[return-value]


def pair_of(tokens: Tensor, reference: Tensor, mass: Marginals) -> Pair:
    """A token takes part if it does in any head; heads differ only where potentials from elsewhere say so."""
    rows = mass.rows.any(dim=1, keepdim=True).unsqueeze(-1)
    supports = reference.double().unsqueeze(0)
    return Pair(only(tokens.double().unsqueeze(1), rows), only(supports, mass.columns.unsqueeze(-1)), mass)


def scores_of(pair: Pair, score: int) -> Tensor:
    x, r = pair.tokens, pair.reference
    scores = x @ r.mT
    if SCORES[score] == "negative_squared_distance":
        scores = 2 * scores - x.square().sum(dim=-1).unsqueeze(-1) - r.square().sum(dim=-1).unsqueeze(-2)
    return only(scores, pair.mass.pairs)


def pair_gradients(dscores: Tensor, pair: Pair, score: int) -> tuple[Tensor, Tensor]:
    """The gradients of tokens (B, n, D) and reference (m, p, D)."""
    x, r = pair.tokens, pair.reference
    dtokens, dreference = dscores @ r, dscores.mT @ x
    if SCORES[score] == "negative_squared_distance":
        dtokens = 2 * (dtokens - dscores.sum(dim=-1).unsqueeze(-1) * x)
        dreference = 2 * (dreference - dscores.sum(dim=-2).unsqueeze(-1) * r)
    return dtokens.sum(dim=1), dreference.sum(dim=0)


def no_gradient(like: Tensor) -> Tensor:
    return like.new_empty(0)


@without_autocast
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
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(aligned, row, column, history, count)"""
    mass = marginals(*headed(row_mass, column_mass, reference.shape[0]))
    pair = pair_of(tokens, reference, mass)
    scores = scores_of(pair, score)
    found = iterate(scores, mass, epsilon, iterations, tolerance, count)
    aligned = plan_of(scores, found.row, mass, epsilon).mT @ pair.tokens
    row, column = potentials(found, scores, mass, epsilon, tokens.dtype)
    return aligned.to(tokens.dtype).contiguous(), row, column, kept(found.history, keep), found.ran


@without_autocast
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
    mass = marginals(*headed(row_mass, column_mass, reference.shape[0]))
    pair = pair_of(tokens, reference, mass)
    scores = scores_of(pair, score)
    grad_plan, moved = None, torch.zeros_like(pair.tokens).squeeze(1)
    if grad_aligned is not None:
        incoming = only(grad_aligned.double(), mass.columns.unsqueeze(-1))
        grad_plan = pair.tokens @ incoming.mT
        moved = (last_plan(scores, mass, history, count, epsilon, unrolled) @ incoming).sum(dim=1)
    dscores = scores_gradient(grad_plan, grad_row, grad_column, scores, mass, history, count, epsilon, unrolled)
    dtokens, dreference = pair_gradients(dscores, pair, score)
    return (
        (dtokens + moved).to(tokens.dtype).contiguous() if needed[0] else no_gradient(tokens),
        dreference.to(reference.dtype).contiguous() if needed[1] else no_gradient(reference),
    )


class Applied(NamedTuple):
    """The plan that potentials from elsewhere give, and what it is made of."""

    plan: Tensor
    pair: Pair


def plan_from_potentials(
    tokens: Tensor, reference: Tensor, row: Tensor, column: Tensor, score: int, epsilon: float
) -> Applied:
    """A potential of -inf says that its token or support takes no part."""
    rows, columns = row != -math.inf, column != -math.inf
    mass = Marginals(row, column, rows, columns, rows.unsqueeze(-1) & columns.unsqueeze(-2))
    pair = pair_of(tokens, reference, mass)
    f, g = only(row.double(), rows), only(column.double(), columns)
    logits = (scores_of(pair, score) + f.unsqueeze(-1) + g.unsqueeze(-2)) / epsilon
    return Applied(only(only(logits, mass.pairs).exp(), mass.pairs), pair)


def moved_values(values: Tensor, mass: Marginals, columns_side: bool) -> Tensor:
    """values (B, n, E) as (B, 1, n, E), or (B, m, p, E), in float64; zero where their row or column takes no part."""
    if columns_side:
        return only(values.double().unsqueeze(1), mass.rows.any(dim=1, keepdim=True).unsqueeze(-1))
    return only(values.double(), mass.columns.unsqueeze(-1))


@without_autocast
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
    plan, pair = plan_from_potentials(tokens, reference, row, column, score, epsilon)
    exact = moved_values(values, pair.mass, columns_side)
    moved = plan.mT @ exact if columns_side else (plan @ exact).sum(dim=1)
    return moved.to(values.dtype).contiguous()


@without_autocast
def apply_backward(
    grad: Tensor,
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
    plan, pair = plan_from_potentials(tokens, reference, row, column, score, epsilon)
    exact = moved_values(values, pair.mass, columns_side)
    if columns_side:
        incoming = only(grad.double(), pair.mass.columns.unsqueeze(-1))
        dplan, dvalues = exact @ incoming.mT, (plan @ incoming).sum(dim=1)
    else:
        incoming = only(grad.double().unsqueeze(1), pair.mass.rows.any(dim=1, keepdim=True).unsqueeze(-1))
        dplan, dvalues = incoming @ exact.mT, plan.mT @ incoming
    dscores = plan * dplan / epsilon
    found = (*pair_gradients(dscores, pair, score), dscores.sum(dim=-1), dscores.sum(dim=-2), dvalues)
    inputs = (tokens, reference, row, column, values)
    return tuple(
        gradient.to(like.dtype).contiguous() if wanted else no_gradient(like)
        for gradient, like, wanted in zip(found, inputs, needed, strict=True)
    )

"""sinkhorn, transport_plan, transport_align and apply_plan: the public functions.

The mathematics stands in `prosma_ops/reference/transport.py`; schemas, shape rules and gradients in
`transport_scores.py` and `transport_tokens.py`; the checks and what becomes of masses and masks in
`transport_arguments.py`; the backends in `transport_implementations.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import transport as definition
from . import checks, transport_arguments
from .transport_arguments import masses_of, one_head, plain_numbers, with_heads
from .transport_scores import run_sinkhorn, run_transport_plan
from .transport_tokens import run_apply_plan, run_transport_align

SCORES = definition.SCORES
SIDES = ("columns", "rows")
GRADIENTS = ("unrolled", "implicit")


class Potentials(NamedTuple):
    """f of the rows, (B, n) or (B, m, n), and g of the columns, (B, p) or (B, m, p); -inf where there is no mass."""

    row: Tensor
    column: Tensor


def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 1.0,
    iterations: int = 20,
    row_mass: Tensor | None = None,
    column_mass: Tensor | None = None,
    mask: Tensor | None = None,
    tolerance: float = 0.0,
) -> Potentials:
    """The potentials of entropic optimal transport, by Sinkhorn's iterations in the log domain.

    f = 0, g = 0; then `iterations` times  f_i = epsilon * (log a_i - logsumexp_j((S_ij + g_j) / epsilon))
                                           g_j = epsilon * (log b_j - logsumexp_i((S_ij + f_i) / epsilon))

    Arguments:
        scores: S, (B, n, p), float32, float64, float16 or bfloat16, of any strides. Larger means closer: minus a cost.
        epsilon: above 0; the smaller, the sharper the plan, and the more iterations it needs.
        iterations: at least 1.
        row_mass: a, (n,) or (B, n); 1/n each if None. Without a gradient, as all masses.
        column_mass: b, (p,) or (B, p); 1/p each if None. Its total must be that of `row_mass`.
        mask: (B, n), bool: True where a token (row) takes part. The others have no mass and no gradient, and may be
            NaN. The default `row_mass` is spread over those that take part; a given one is not rescaled.
        tolerance: above 0, an item stops after the first iteration at which its rows hold what they should to this
            share, max_i |sum_j T_ij - a_i| / a_i < tolerance; `iterations` is then the most.

    Returns Potentials(row, column), (B, n) and (B, p), float32 (float64 for float64), -inf where there is no mass.
    Differentiable, twice too, by the exact gradient of the iterations that ran.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it and says what would do. On a GPU
            the values of masses are reported by `prosma_ops.check_errors()`.
    """
    scores, masses = transport_arguments.leader_and_masses(scores, row_mass, column_mass, mask)
    numbers = plain_numbers(epsilon, iterations, tolerance)
    if torch.compiler.is_exporting():
        transport_arguments.check_plan(scores, *masses, *numbers, 1)
        a, b = masses_of(scores, scores.shape[2], *masses)
        found = definition.plan_forward(scores, a, b, *numbers, 1, False)
        return Potentials(found[1], found[2])
    keep = transport_arguments.history_length(numbers[1], "unrolled", scores)
    row, column, _, _ = run_sinkhorn(scores, *masses, *numbers, keep)
    return Potentials(row, column)


def transport_plan(
    scores: Tensor,
    *,
    epsilon: float = 1.0,
    iterations: int = 20,
    row_mass: Tensor | None = None,
    column_mass: Tensor | None = None,
    mask: Tensor | None = None,
    tolerance: float = 0.0,
    gradient: str = "unrolled",
) -> Tensor:
    """The transport plan T_ij = exp((S_ij + f_i + g_j) / epsilon) of the potentials that `sinkhorn` finds.

    Its columns hold exactly what `column_mass` says, its rows hold `row_mass` when the iterations have converged.

    Arguments: those of `sinkhorn`, and
        gradient: "unrolled", the exact gradient of the iterations that ran, for which `iterations` x p numbers an item
            are kept; or "implicit", that of the fixed point, right when they have converged, for which p are kept.

    Returns (B, n, p) of the dtype of `scores`, contiguous. The unrolled gradient has a second derivative, which keeps
    copies of the plan; the implicit one has none, and raises.
    """
    scores, masses = transport_arguments.leader_and_masses(scores, row_mass, column_mass, mask)
    numbers = plain_numbers(epsilon, iterations, tolerance)
    checks.choice("gradient", gradient, GRADIENTS)
    if torch.compiler.is_exporting():
        transport_arguments.check_plan(scores, *masses, *numbers, 1)
        a, b = masses_of(scores, scores.shape[2], *masses)
        return definition.plan_forward(scores, a, b, *numbers, 1, True)[0]
    keep = transport_arguments.history_length(numbers[1], gradient, scores)
    plan: Tensor = run_transport_plan(scores, *masses, *numbers, keep, gradient == "unrolled")[0]
    return plan


def transport_align(
    tokens: Tensor,
    reference: Tensor,
    *,
    score: str = "dot",
    epsilon: float = 1.0,
    iterations: int = 20,
    row_mass: Tensor | None = None,
    column_mass: Tensor | None = None,
    mask: Tensor | None = None,
    tolerance: float = 0.0,
    gradient: str = "unrolled",
    return_potentials: bool = False,
) -> Tensor | tuple[Tensor, Potentials]:
    """T^T x: tokens x moved onto a reference by the transport plan between them, which is never stored.

    Arguments: those of `transport_plan` without the scores, and
        tokens: x, (B, n, D).
        reference: r, (p, D), or (m, p, D) for m heads with a plan each; of the dtype of `tokens`, or float32.
        score: "dot", S_ij = <x_i, r_j>, or "negative_squared_distance", S_ij = -|x_i - r_j|^2.
        return_potentials: whether to return Potentials(row, column) too, as `apply_plan` takes them.

    Returns (B, p, D) or (B, m, p, D) of the dtype of `tokens`; potentials are (B, n) and (B, p), or (B, m, n) and
    (B, m, p). Differentiable in tokens and reference, through the result and through the potentials. The implicit
    gradient knows potentials only up to a constant that moves from rows to columns: what depends on that constant is
    taken to be halfway.
    """
    tokens, masses = transport_arguments.leader_and_masses(tokens, row_mass, column_mass, mask, name="tokens")
    reference = checks.plain("reference", reference)
    numbers = plain_numbers(epsilon, iterations, tolerance)
    checks.choice("gradient", gradient, GRADIENTS)
    supports = with_heads(reference)
    if torch.compiler.is_exporting():
        transport_arguments.check_align(tokens, supports, *masses, score, *numbers, 1)
        a, b = masses_of(tokens, supports.shape[1], *masses)
        found: Sequence[Tensor] = definition.align_forward(tokens, supports, a, b, SCORES.index(score), *numbers, 1)
    else:
        keep = transport_arguments.history_length(numbers[1], gradient, tokens, supports)
        found = run_transport_align(tokens, supports, *masses, score, *numbers, keep, gradient == "unrolled")
    aligned, row, column = (result if reference.dim() == 3 else result.squeeze(1) for result in found[:3])
    return (aligned, Potentials(row, column)) if return_potentials else aligned


def apply_plan(
    tokens: Tensor,
    reference: Tensor,
    potentials: Potentials,
    values: Tensor,
    *,
    side: str,
    score: str = "dot",
    epsilon: float = 1.0,
) -> Tensor:
    """T^T values or T values, with the plan T that `transport_align` found and that is never stored.

    Arguments:
        tokens, reference, score, epsilon: as they were given to `transport_align`.
        potentials: as it returned them, (row, column): float32 (float64 for float64 tokens). With float32 potentials f
            an entry of the plan is right to about 1e-7 * |f| / epsilon of itself.
        values: of the dtype of `tokens`; (B, n, E) for side="columns", (B[, m], p, E) for side="rows".
        side: "columns": T^T values, (B[, m], p, E). "rows": T values, (B, n, E), added up over the heads.

    Differentiable, twice too, in tokens, reference, potentials and values.
    """
    tokens, reference = checks.plain("tokens", tokens), checks.plain("reference", reference)
    values = checks.plain("values", values)
    row, column = transport_arguments.pair("potentials", potentials)
    checks.choice("side", side, SIDES)
    supports, columns_side = with_heads(reference), side == "columns"
    flat = reference.dim() == 2
    if flat:
        row, column = one_head("potentials.row", row, 2), one_head("potentials.column", column, 2)
        values = values if columns_side else one_head("values", values, 3)
    tensors = (tokens, supports, row, column, values)
    settings = (columns_side, score, transport_arguments.positive_epsilon(epsilon))
    if torch.compiler.is_exporting():
        transport_arguments.check_apply(*tensors, *settings)
        result = definition.apply_forward(*tensors, columns_side, SCORES.index(score), settings[2])
    else:
        result = run_apply_plan(*tensors, *settings)
    return result.squeeze(1) if flat and columns_side else result

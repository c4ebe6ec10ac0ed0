"""sinkhorn, transport_plan, transport_align and apply_plan: public functions, schemas, shape rules and gradients.

The mathematics stands in `prosma_ops/reference/transport.py`, the checks and what becomes of masses and masks in
`transport_arguments.py`, the backends in `transport_implementations.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import transport as definition
from ..reference.precision import compute_dtype
from . import checks, transport_arguments
from .library import define, derivative_of, passes_through
from .transport_arguments import masses_of, one_head, plain_numbers, with_heads
from .transport_implementations import ALIGN, APPLY, PLAN, SINKHORN

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
    run = _sinkhorn if passes_through((scores, *masses)) else _sinkhorn_operator
    row, column, _, _ = run(
        scores, *masses, *numbers, transport_arguments.history_length(numbers[1], "unrolled", scores)
    )
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
    run = _transport_plan if passes_through((scores, *masses)) else _transport_plan_operator
    keep = transport_arguments.history_length(numbers[1], gradient, scores)
    plan: Tensor = run(scores, *masses, *numbers, keep, gradient == "unrolled")[0]
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
        run = _transport_align if passes_through((tokens, supports, *masses)) else _transport_align_operator
        keep = transport_arguments.history_length(numbers[1], gradient, tokens, supports)
        found = run(tokens, supports, *masses, score, *numbers, keep, gradient == "unrolled")
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
        result = (_apply_plan if passes_through(tensors) else _apply_plan_operator)(*tensors, *settings)
    return result.squeeze(1) if flat and columns_side else result


# Every way into an operator passes its check, real tensors and traced ones: no kernel sees unchecked arguments.


def _sinkhorn(scores: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """(row, column, history, count)"""
    transport_arguments.check_plan(scores, *arguments)
    row_mass, column_mass, mask, epsilon, iterations, tolerance, keep = arguments
    both = transport_arguments.checked_masses(scores, scores.shape[2], row_mass, column_mass, mask)
    result: tuple[Tensor, ...] = SINKHORN.run(
        "forward", (scores,), (scores, *both, epsilon, iterations, tolerance, keep, False)
    )
    return result


def _fake_sinkhorn(scores: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    transport_arguments.check_plan(scores, *arguments)
    return _like_potentials(scores, scores.shape[:1], scores.shape[1], scores.shape[2], arguments[-1])


def _like_potentials(leader: Tensor, items: Sequence[int], rows: int, columns: int, keep: int) -> tuple[Tensor, ...]:
    """row, column, history and count, unwritten."""
    dtype = compute_dtype(leader.dtype)
    return (
        leader.new_empty((*items, rows), dtype=dtype),
        leader.new_empty((*items, columns), dtype=dtype),
        leader.new_empty((*items, keep, columns), dtype=torch.float64),
        leader.new_empty(items, dtype=torch.int32),
    )


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _check_sinkhorn_backward(
    grad_row: Tensor | None, grad_column: Tensor | None, scores: Tensor, *arguments: Any
) -> None:
    row_mass, column_mass, mask, history, count, epsilon = arguments
    transport_arguments.check_plan(scores, row_mass, column_mass, mask, epsilon, 1, 0.0, 1)
    (batch, rows, columns), dtype = scores.shape, compute_dtype(scores.dtype)
    transport_arguments.check_history(history, count, (batch,), columns)
    transport_arguments.check_gradient("grad_row", grad_row, (batch, rows), dtype)
    transport_arguments.check_gradient("grad_column", grad_column, (batch, columns), dtype)


def _sinkhorn_backward(*arguments: Any) -> Tensor:
    _check_sinkhorn_backward(*arguments)
    grad_row, grad_column, scores, *masses, history, count, epsilon = arguments
    both = masses_of(scores, scores.shape[2], *masses)
    result: Tensor = SINKHORN.run(
        "backward", (scores,), (None, grad_row, grad_column, scores, *both, history, count, epsilon, True)
    )
    return result


def _fake_sinkhorn_backward(*arguments: Any) -> Tensor:
    _check_sinkhorn_backward(*arguments)
    return _like(arguments[2])


def _save_sinkhorn(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.epsilon, iterations, _, keep = inputs
    _keep_history(ctx, tensors, output[2:], keep == iterations)


def _keep_history(ctx: Any, tensors: Sequence[Tensor | None], history: Sequence[Tensor], enough: bool) -> None:
    """`history` and the count of iterations, the last two results, are for the backward alone."""
    ctx.mark_non_differentiable(*history)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *history)
    ctx.enough = enough


def _check_enough(ctx: Any) -> None:
    if not ctx.enough:
        raise RuntimeError("the unrolled gradient needs the column potentials of every iteration: keep = iterations")


def _gradient_of_sinkhorn(ctx: Any, grad_row: Tensor | None, grad_column: Tensor | None, *_: Any) -> tuple[Any, ...]:
    _check_enough(ctx)
    if grad_row is None and grad_column is None:
        return (None,) * 8
    return _sinkhorn_backward_operator(grad_row, grad_column, *ctx.saved_tensors, ctx.epsilon), *(None,) * 7


def _save_sinkhorn_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)


def _second_gradient_of_sinkhorn(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_row, grad_column, scores, *masses, history, count = ctx.saved_tensors
    both = masses_of(scores, scores.shape[2], *masses)

    def first_gradient(of_row: Tensor | None, of_column: Tensor | None, values: Tensor) -> list[Tensor | None]:
        settings = (ctx.epsilon, history.shape[1], 0.0, 1, False, count)
        _, row, column, _, _ = definition.plan_forward(values, *both, *settings)
        return _gradients((row, column), (of_row, of_column), (values,))

    return *derivative_of(first_gradient, (grad_row, grad_column, scores), (), [grad]), *(None,) * 6


def _gradients(
    results: Sequence[Tensor], grads: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """By autograd, to be differentiated again: the potentials depend on the inputs too, which `history` hides."""
    pairs = [(result, grad) for result, grad in zip(results, grads, strict=True) if grad is not None]
    return list(
        torch.autograd.grad(
            [result for result, _ in pairs],
            list(inputs),
            [grad for _, grad in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )


define(
    "sinkhorn(Tensor scores, Tensor? row_mass, Tensor? column_mass, Tensor? mask, float epsilon, int iterations,"
    " float tolerance, int keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _sinkhorn,
    _fake_sinkhorn,
    setup_context=_save_sinkhorn,
    backward=_gradient_of_sinkhorn,
)
define(
    "sinkhorn_backward(Tensor? grad_row, Tensor? grad_column, Tensor scores, Tensor? row_mass, Tensor? column_mass,"
    " Tensor? mask, Tensor history, Tensor count, float epsilon) -> Tensor",
    _sinkhorn_backward,
    _fake_sinkhorn_backward,
    setup_context=_save_sinkhorn_backward,
    backward=_second_gradient_of_sinkhorn,
)
_sinkhorn_operator = torch.ops.prosma_ops.sinkhorn.default
_sinkhorn_backward_operator = torch.ops.prosma_ops.sinkhorn_backward.default


def _transport_plan(scores: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """(plan, history, count)"""
    transport_arguments.check_plan(scores, *arguments[:-1])
    row_mass, column_mass, mask, epsilon, iterations, tolerance, keep, _ = arguments
    both = transport_arguments.checked_masses(scores, scores.shape[2], row_mass, column_mass, mask)
    plan, _, _, history, count = PLAN.run(
        "forward", (scores,), (scores, *both, epsilon, iterations, tolerance, keep, True)
    )
    return plan, history, count


def _fake_transport_plan(scores: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _like(scores), *_fake_sinkhorn(scores, *arguments[:-1])[2:]


def _check_plan_backward(grad: Tensor, scores: Tensor, *arguments: Any) -> None:
    _check_sinkhorn_backward(None, None, scores, *arguments[:-1])
    checks.twin("grad", grad, "scores", scores)


def _transport_plan_backward(grad: Tensor, scores: Tensor, *arguments: Any) -> Tensor:
    _check_plan_backward(grad, scores, *arguments)
    *masses, history, count, epsilon, unrolled = arguments
    both = masses_of(scores, scores.shape[2], *masses)
    result: Tensor = PLAN.run(
        "backward", (scores,), (grad, None, None, scores, *both, history, count, epsilon, unrolled)
    )
    return result


def _fake_transport_plan_backward(grad: Tensor, scores: Tensor, *arguments: Any) -> Tensor:
    _check_plan_backward(grad, scores, *arguments)
    return _like(scores)


def _save_transport_plan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.epsilon, iterations, _, keep, ctx.unrolled = inputs
    _keep_history(ctx, tensors, output[1:], keep == iterations or not ctx.unrolled)


def _gradient_of_transport_plan(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    _check_enough(ctx)
    if grad is None:
        return (None,) * 9
    return _transport_plan_backward_operator(grad, *ctx.saved_tensors, ctx.epsilon, ctx.unrolled), *(None,) * 8


def _save_transport_plan_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.epsilon, ctx.unrolled = inputs
    ctx.save_for_backward(*tensors)


def _refuse_second_gradient(unrolled: bool) -> None:
    if not unrolled:
        raise RuntimeError("gradient='implicit' has no second derivative; gradient='unrolled' has one")


def _second_gradient_of_transport_plan(ctx: Any, second: Tensor) -> tuple[Any, ...]:
    _refuse_second_gradient(ctx.unrolled)
    grad, scores, *masses, history, count = ctx.saved_tensors
    both = masses_of(scores, scores.shape[2], *masses)

    def first_gradient(of_plan: Tensor, values: Tensor) -> list[Tensor | None]:
        plan = definition.plan_forward(values, *both, ctx.epsilon, history.shape[1], 0.0, 1, True, count)[0]
        return _gradients((plan,), (of_plan,), (values,))

    return *derivative_of(first_gradient, (grad, scores), (), [second]), *(None,) * 7


define(
    "transport_plan(Tensor scores, Tensor? row_mass, Tensor? column_mass, Tensor? mask, float epsilon, int iterations,"
    " float tolerance, int keep, bool unrolled) -> (Tensor, Tensor, Tensor)",
    _transport_plan,
    _fake_transport_plan,
    setup_context=_save_transport_plan,
    backward=_gradient_of_transport_plan,
)
define(
    "transport_plan_backward(Tensor grad, Tensor scores, Tensor? row_mass, Tensor? column_mass, Tensor? mask,"
    " Tensor history, Tensor count, float epsilon, bool unrolled) -> Tensor",
    _transport_plan_backward,
    _fake_transport_plan_backward,
    setup_context=_save_transport_plan_backward,
    backward=_second_gradient_of_transport_plan,
)
_transport_plan_operator = torch.ops.prosma_ops.transport_plan.default
_transport_plan_backward_operator = torch.ops.prosma_ops.transport_plan_backward.default


def _transport_align(tokens: Tensor, reference: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """(aligned, row, column, history, count)"""
    transport_arguments.check_align(tokens, reference, *arguments[:-1])
    row_mass, column_mass, mask, score, epsilon, iterations, tolerance, keep, _ = arguments
    both = transport_arguments.checked_masses(tokens, reference.shape[1], row_mass, column_mass, mask)
    settings = (SCORES.index(score), epsilon, iterations, tolerance, keep)
    result: tuple[Tensor, ...] = ALIGN.run("forward", (tokens,), (tokens, reference, *both, *settings))
    return result


def _fake_transport_align(tokens: Tensor, reference: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    transport_arguments.check_align(tokens, reference, *arguments[:-1])
    (batch, rows, features), (heads, columns, _) = tokens.shape, reference.shape
    aligned = tokens.new_empty((batch, heads, columns, features))
    return aligned, *_like_potentials(tokens, (batch, heads), rows, columns, arguments[-2])


def _check_align_backward(
    grad_aligned: Tensor | None,
    grad_row: Tensor | None,
    grad_column: Tensor | None,
    tokens: Tensor,
    reference: Tensor,
    *arguments: Any,
) -> None:
    row_mass, column_mass, mask, history, count, score, epsilon, _, _ = arguments
    transport_arguments.check_align(tokens, reference, row_mass, column_mass, mask, score, epsilon, 1, 0.0, 1)
    (batch, rows, features), (heads, columns, _) = tokens.shape, reference.shape
    items, dtype = (batch, heads), compute_dtype(tokens.dtype)
    transport_arguments.check_history(history, count, items, columns)
    transport_arguments.check_gradient("grad_aligned", grad_aligned, (*items, columns, features), tokens.dtype)
    transport_arguments.check_gradient("grad_row", grad_row, (*items, rows), dtype)
    transport_arguments.check_gradient("grad_column", grad_column, (*items, columns), dtype)


def _transport_align_backward(*arguments: Any) -> tuple[Tensor, ...]:
    _check_align_backward(*arguments)
    grad_aligned, grad_row, grad_column, tokens, reference, *masses, history, count, score = arguments[:-3]
    epsilon, unrolled, needed = arguments[-3:]
    both = masses_of(tokens, reference.shape[1], *masses)
    if not unrolled:
        grad_row, grad_column = transport_arguments.balanced(grad_row, grad_column, *both)
    grads = (grad_aligned, grad_row, grad_column)
    settings = (SCORES.index(score), epsilon, unrolled, needed)
    result: tuple[Tensor, ...] = ALIGN.run(
        "backward", (tokens,), (*grads, tokens, reference, *both, history, count, *settings)
    )
    return result


def _like_needed(tensors: Sequence[Tensor], needed: Sequence[bool]) -> tuple[Tensor, ...]:
    return tuple(_like(t) if wanted else t.new_empty(0) for t, wanted in zip(tensors, needed, strict=True))


def _fake_transport_align_backward(*arguments: Any) -> tuple[Tensor, ...]:
    _check_align_backward(*arguments)
    return _like_needed(arguments[3:5], arguments[-1])


def _save_transport_align(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.score, ctx.epsilon, iterations, _, keep, ctx.unrolled = inputs
    _keep_history(ctx, tensors, output[3:], keep == iterations or not ctx.unrolled)


def _gradient_of_transport_align(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    _check_enough(ctx)
    if all(grad is None for grad in grads):
        return (None,) * 11
    needed = list(ctx.needs_input_grad[:2])
    settings = (ctx.score, ctx.epsilon, ctx.unrolled, needed)
    found = _transport_align_backward_operator(*grads[:3], *ctx.saved_tensors, *settings)
    return *_wanted(found, needed), *(None,) * 9


def _wanted(found: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    return [gradient if wanted else None for gradient, wanted in zip(found, needed, strict=True)]


def _save_transport_align_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.score, ctx.epsilon, ctx.unrolled, ctx.needed = inputs
    ctx.save_for_backward(*tensors)


def _second_gradient_of_transport_align(ctx: Any, *second: Tensor) -> tuple[Any, ...]:
    _refuse_second_gradient(ctx.unrolled)
    *tensors, row_mass, column_mass, mask, history, count = ctx.saved_tensors
    both = masses_of(tensors[3], history.shape[3], row_mass, column_mass, mask)

    def first_gradient(*differentiable: Tensor | None) -> list[Tensor | None]:
        *grads, tokens, reference = differentiable
        assert tokens is not None
        assert reference is not None
        settings = (SCORES.index(ctx.score), ctx.epsilon, history.shape[2], 0.0, 1, count)
        results = definition.align_forward(tokens, reference, *both, *settings)
        return _gradients(results[:3], grads, (tokens, reference))

    found = derivative_of(first_gradient, tensors, (), _wanted(second, ctx.needed))
    return *found, *(None,) * 9


define(
    "transport_align(Tensor tokens, Tensor reference, Tensor? row_mass, Tensor? column_mass, Tensor? mask, str score,"
    " float epsilon, int iterations, float tolerance, int keep, bool unrolled)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _transport_align,
    _fake_transport_align,
    setup_context=_save_transport_align,
    backward=_gradient_of_transport_align,
)
define(
    "transport_align_backward(Tensor? grad_aligned, Tensor? grad_row, Tensor? grad_column, Tensor tokens,"
    " Tensor reference, Tensor? row_mass, Tensor? column_mass, Tensor? mask, Tensor history, Tensor count, str score,"
    " float epsilon, bool unrolled, bool[] needed) -> (Tensor, Tensor)",
    _transport_align_backward,
    _fake_transport_align_backward,
    setup_context=_save_transport_align_backward,
    backward=_second_gradient_of_transport_align,
)
_transport_align_operator = torch.ops.prosma_ops.transport_align.default
_transport_align_backward_operator = torch.ops.prosma_ops.transport_align_backward.default


def _apply_plan(*arguments: Any) -> Tensor:
    transport_arguments.check_apply(*arguments)
    *tensors, columns_side, score, epsilon = arguments
    settings = (columns_side, SCORES.index(score), epsilon)
    result: Tensor = APPLY.run("forward", tensors[:1], (*tensors, *settings))
    return result


def _result_shape(
    tokens: Tensor, reference: Tensor, row: Tensor, column: Tensor, values: Tensor, columns_side: bool
) -> tuple[int, ...]:
    leading = (*tokens.shape[:1], *reference.shape[:2]) if columns_side else tokens.shape[:2]
    return (*leading, values.shape[-1])


def _fake_apply_plan(*arguments: Any) -> Tensor:
    transport_arguments.check_apply(*arguments)
    return arguments[0].new_empty(_result_shape(*arguments[:6]))  # type: ignore[no-any-return]


def _check_apply_backward(grad: Tensor, *arguments: Any) -> None:
    transport_arguments.check_apply(*arguments)
    transport_arguments.check_gradient("grad", grad, _result_shape(*arguments[:6]), arguments[0].dtype)


def _apply_plan_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    _check_apply_backward(grad, *arguments[:-1])
    *tensors, columns_side, score, epsilon, needed = arguments
    settings = (columns_side, SCORES.index(score), epsilon, needed)
    result: tuple[Tensor, ...] = APPLY.run("backward", tensors[:1], (grad, *tensors, *settings))
    return result


def _fake_apply_plan_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    _check_apply_backward(grad, *arguments[:-1])
    return _like_needed(arguments[:5], arguments[-1])


def _save_apply_plan(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.columns_side, ctx.score, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)


def _gradient_of_apply_plan(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needed = list(ctx.needs_input_grad[:5])
    settings = (ctx.columns_side, ctx.score, ctx.epsilon, needed)
    return *_wanted(_apply_plan_backward_operator(grad, *ctx.saved_tensors, *settings), needed), *(None,) * 3


def _save_apply_plan_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.columns_side, ctx.score, ctx.epsilon, ctx.needed = inputs
    ctx.save_for_backward(*tensors)


def _second_gradient_of_apply_plan(ctx: Any, *second: Tensor) -> tuple[Any, ...]:
    settings = (ctx.columns_side, SCORES.index(ctx.score), ctx.epsilon, [True] * 5)
    found = derivative_of(definition.apply_backward, ctx.saved_tensors, settings, _wanted(second, ctx.needed))
    return *found, *(None,) * 4


define(
    "apply_plan(Tensor tokens, Tensor reference, Tensor row, Tensor column, Tensor values, bool columns_side,"
    " str score, float epsilon) -> Tensor",
    _apply_plan,
    _fake_apply_plan,
    setup_context=_save_apply_plan,
    backward=_gradient_of_apply_plan,
)
define(
    "apply_plan_backward(Tensor grad, Tensor tokens, Tensor reference, Tensor row, Tensor column, Tensor values,"
    " bool columns_side, str score, float epsilon, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _apply_plan_backward,
    _fake_apply_plan_backward,
    setup_context=_save_apply_plan_backward,
    backward=_second_gradient_of_apply_plan,
)
_apply_plan_operator = torch.ops.prosma_ops.apply_plan.default
_apply_plan_backward_operator = torch.ops.prosma_ops.apply_plan_backward.default

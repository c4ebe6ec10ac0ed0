"""sinkhorn and transport_plan, which take scores: schemas, shape rules and gradients.

Every way into an operator passes its check, real tensors and traced ones: no kernel sees unchecked arguments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..reference import transport as definition
from ..reference.precision import compute_dtype
from . import checks, transport_arguments
from .library import define, derivative_of
from .transport_arguments import masses_of
from .transport_implementations import PLAN, SINKHORN
from .transport_results import check_enough, gradients, keep_history, like, like_potentials, refuse_second_gradient


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
    return like_potentials(scores, scores.shape[:1], scores.shape[1], scores.shape[2], arguments[-1])


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
    return like(arguments[2])


def _save_sinkhorn(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.epsilon, iterations, _, keep = inputs
    keep_history(ctx, tensors, output[2:], keep == iterations)


def _gradient_of_sinkhorn(ctx: Any, grad_row: Tensor | None, grad_column: Tensor | None, *_: Any) -> tuple[Any, ...]:
    check_enough(ctx)
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
        return gradients((row, column), (of_row, of_column), (values,))

    return *derivative_of(first_gradient, (grad_row, grad_column, scores), (), [grad]), *(None,) * 6


run_sinkhorn = define(
    "sinkhorn(Tensor scores, Tensor? row_mass, Tensor? column_mass, Tensor? mask, float epsilon, int iterations,"
    " float tolerance, int keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _sinkhorn,
    _fake_sinkhorn,
    setup_context=_save_sinkhorn,
    backward=_gradient_of_sinkhorn,
)
_sinkhorn_backward_operator = define(
    "sinkhorn_backward(Tensor? grad_row, Tensor? grad_column, Tensor scores, Tensor? row_mass, Tensor? column_mass,"
    " Tensor? mask, Tensor history, Tensor count, float epsilon) -> Tensor",
    _sinkhorn_backward,
    _fake_sinkhorn_backward,
    setup_context=_save_sinkhorn_backward,
    backward=_second_gradient_of_sinkhorn,
)


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
    return like(scores), *_fake_sinkhorn(scores, *arguments[:-1])[2:]


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
    return like(scores)


def _save_transport_plan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.epsilon, iterations, _, keep, ctx.unrolled = inputs
    keep_history(ctx, tensors, output[1:], keep == iterations or not ctx.unrolled)


def _gradient_of_transport_plan(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    check_enough(ctx)
    if grad is None:
        return (None,) * 9
    return _transport_plan_backward_operator(grad, *ctx.saved_tensors, ctx.epsilon, ctx.unrolled), *(None,) * 8


def _save_transport_plan_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.epsilon, ctx.unrolled = inputs
    ctx.save_for_backward(*tensors)


def _second_gradient_of_transport_plan(ctx: Any, second: Tensor) -> tuple[Any, ...]:
    refuse_second_gradient(ctx.unrolled)
    grad, scores, *masses, history, count = ctx.saved_tensors
    both = masses_of(scores, scores.shape[2], *masses)

    def first_gradient(of_plan: Tensor, values: Tensor) -> list[Tensor | None]:
        plan = definition.plan_forward(values, *both, ctx.epsilon, history.shape[1], 0.0, 1, True, count)[0]
        return gradients((plan,), (of_plan,), (values,))

    return *derivative_of(first_gradient, (grad, scores), (), [second]), *(None,) * 7


run_transport_plan = define(
    "transport_plan(Tensor scores, Tensor? row_mass, Tensor? column_mass, Tensor? mask, float epsilon, int iterations,"
    " float tolerance, int keep, bool unrolled) -> (Tensor, Tensor, Tensor)",
    _transport_plan,
    _fake_transport_plan,
    setup_context=_save_transport_plan,
    backward=_gradient_of_transport_plan,
)
_transport_plan_backward_operator = define(
    "transport_plan_backward(Tensor grad, Tensor scores, Tensor? row_mass, Tensor? column_mass, Tensor? mask,"
    " Tensor history, Tensor count, float epsilon, bool unrolled) -> Tensor",
    _transport_plan_backward,
    _fake_transport_plan_backward,
    setup_context=_save_transport_plan_backward,
    backward=_second_gradient_of_transport_plan,
)

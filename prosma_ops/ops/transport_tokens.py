"""transport_align and apply_plan, which take tokens and a reference: schemas, shape rules and gradients.

Every way into an operator passes its check, real tensors and traced ones: no kernel sees unchecked arguments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..reference import transport as definition
from ..reference.precision import compute_dtype
from ..reference.transport import SCORES
from . import transport_arguments
from .library import define, derivative_of
from .transport_arguments import masses_of
from .transport_implementations import ALIGN, APPLY
from .transport_results import (
    check_enough,
    gradients,
    keep_history,
    like_needed,
    like_potentials,
    refuse_second_gradient,
    wanted,
)


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
    return aligned, *like_potentials(tokens, (batch, heads), rows, columns, arguments[-2])


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


def _fake_transport_align_backward(*arguments: Any) -> tuple[Tensor, ...]:
    _check_align_backward(*arguments)
    return like_needed(arguments[3:5], arguments[-1])


def _save_transport_align(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.score, ctx.epsilon, iterations, _, keep, ctx.unrolled = inputs
    keep_history(ctx, tensors, output[3:], keep == iterations or not ctx.unrolled)


def _gradient_of_transport_align(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    check_enough(ctx)
    if all(grad is None for grad in grads):
        return (None,) * 11
    needed = list(ctx.needs_input_grad[:2])
    settings = (ctx.score, ctx.epsilon, ctx.unrolled, needed)
    found = _transport_align_backward_operator(*grads[:3], *ctx.saved_tensors, *settings)
    return *wanted(found, needed), *(None,) * 9


def _save_transport_align_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.score, ctx.epsilon, ctx.unrolled, ctx.needed = inputs
    ctx.save_for_backward(*tensors)


def _second_gradient_of_transport_align(ctx: Any, *second: Tensor) -> tuple[Any, ...]:
    refuse_second_gradient(ctx.unrolled)
    *tensors, row_mass, column_mass, mask, history, count = ctx.saved_tensors
    both = masses_of(tensors[3], history.shape[3], row_mass, column_mass, mask)

    def first_gradient(*differentiable: Tensor | None) -> list[Tensor | None]:
        *grads, tokens, reference = differentiable
        assert tokens is not None
        assert reference is not None
        settings = (SCORES.index(ctx.score), ctx.epsilon, history.shape[2], 0.0, 1, count)
        results = definition.align_forward(tokens, reference, *both, *settings)
        return gradients(results[:3], grads, (tokens, reference))

    found = derivative_of(first_gradient, tensors, (), wanted(second, ctx.needed))
    return *found, *(None,) * 9


run_transport_align = define(
    "transport_align(Tensor tokens, Tensor reference, Tensor? row_mass, Tensor? column_mass, Tensor? mask, str score,"
    " float epsilon, int iterations, float tolerance, int keep, bool unrolled)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _transport_align,
    _fake_transport_align,
    setup_context=_save_transport_align,
    backward=_gradient_of_transport_align,
)
_transport_align_backward_operator = define(
    "transport_align_backward(Tensor? grad_aligned, Tensor? grad_row, Tensor? grad_column, Tensor tokens,"
    " Tensor reference, Tensor? row_mass, Tensor? column_mass, Tensor? mask, Tensor history, Tensor count, str score,"
    " float epsilon, bool unrolled, bool[] needed) -> (Tensor, Tensor)",
    _transport_align_backward,
    _fake_transport_align_backward,
    setup_context=_save_transport_align_backward,
    backward=_second_gradient_of_transport_align,
)


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
    return like_needed(arguments[:5], arguments[-1])


def _save_apply_plan(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.columns_side, ctx.score, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)


def _gradient_of_apply_plan(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needed = list(ctx.needs_input_grad[:5])
    settings = (ctx.columns_side, ctx.score, ctx.epsilon, needed)
    return *wanted(_apply_plan_backward_operator(grad, *ctx.saved_tensors, *settings), needed), *(None,) * 3


def _save_apply_plan_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.columns_side, ctx.score, ctx.epsilon, ctx.needed = inputs
    ctx.save_for_backward(*tensors)


def _second_gradient_of_apply_plan(ctx: Any, *second: Tensor) -> tuple[Any, ...]:
    settings = (ctx.columns_side, SCORES.index(ctx.score), ctx.epsilon, [True] * 5)
    found = derivative_of(definition.apply_backward, ctx.saved_tensors, settings, wanted(second, ctx.needed))
    return *found, *(None,) * 4


run_apply_plan = define(
    "apply_plan(Tensor tokens, Tensor reference, Tensor row, Tensor column, Tensor values, bool columns_side,"
    " str score, float epsilon) -> Tensor",
    _apply_plan,
    _fake_apply_plan,
    setup_context=_save_apply_plan,
    backward=_gradient_of_apply_plan,
)
_apply_plan_backward_operator = define(
    "apply_plan_backward(Tensor grad, Tensor tokens, Tensor reference, Tensor row, Tensor column, Tensor values,"
    " bool columns_side, str score, float epsilon, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _apply_plan_backward,
    _fake_apply_plan_backward,
    setup_context=_save_apply_plan_backward,
    backward=_second_gradient_of_apply_plan,
)

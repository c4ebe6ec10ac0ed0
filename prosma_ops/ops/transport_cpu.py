"""Backend "cpu" of the operators of transport: the native library sees pointers and strides.

Scores, tokens and the gradient of the plan come with any strides. What is small, the reference, potentials and values
and their gradients, the library takes contiguous and in the dtype that it computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..reference.precision import compute_dtype


def _work(leader: Tensor, *sizes: int) -> tuple[int, int, tuple[int, ...]]:
    return native.DTYPES[leader.dtype], torch.get_num_threads(), sizes


def _masses(row_mass: Tensor, column_mass: Tensor) -> tuple[tuple[int, ...], tuple[Tensor, Tensor]]:
    """Where they are, and what has to live until they are read: an inner stride of 1 is promised, but of 1 element."""
    row, column = (mass if mass.stride(-1) == 1 else mass.contiguous() for mass in (row_mass, column_mass))
    return (row.data_ptr(), row.stride(0), column.data_ptr(), column.stride(0)), (row, column)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _placed(tensor: Tensor | None) -> tuple[Any, Any]:
    return (0, ()) if tensor is None else (tensor.data_ptr(), tensor.stride())


def _as(dtype: torch.dtype, like: Tensor, wanted: bool = True) -> Tensor | None:
    """Room for a gradient of `like`, in the dtype that is computed in."""
    return _empty(like.shape, dtype) if wanted else None


def _delivered(results: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Results as gradients of the inputs; one of no size where there is none."""
    return tuple(
        like.new_empty(0) if result is None else result.to(like.dtype)
        for result, like in zip(results, inputs, strict=True)
    )


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
    batch, rows, columns = scores.shape
    dtype = compute_dtype(scores.dtype)
    plan = _empty((batch, rows, columns) if with_plan else (0,), scores.dtype)
    row, column = _empty((batch, rows), dtype), _empty((batch, columns), dtype)
    history, count = _empty((batch, keep, columns), torch.float64), _empty((batch,), torch.int32)
    masses, alive = _masses(row_mass, column_mass)
    native.required().transport_plan_forward(
        *_work(scores, batch, 1, rows, columns, 0),
        *_placed(scores),
        0,
        False,
        masses,
        epsilon,
        iterations,
        tolerance,
        keep,
        *native.pointers((plan if with_plan else None, row, column, history, count)),
    )
    del alive
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
    batch, rows, columns = scores.shape
    dtype = compute_dtype(scores.dtype)
    if grad_plan is not None and grad_plan.dtype is not scores.dtype:
        grad_plan = grad_plan.to(scores.dtype)
    grads = native.parameters(dtype, grad_row, grad_column)
    saved = [history.contiguous(), count.contiguous()]
    dscores = _empty(scores.shape, dtype)
    masses, alive = _masses(row_mass, column_mass)
    native.required().transport_plan_backward(
        *_work(scores, batch, 1, rows, columns, 0),
        *_placed(scores),
        0,
        False,
        masses,
        epsilon,
        history.shape[1],
        unrolled,
        *native.pointers(saved),
        *_placed(grad_plan),
        *native.pointers(grads),
        dscores.data_ptr(),
        0,
    )
    del alive
    return dscores.to(scores.dtype)


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
    batch, rows, depth = tokens.shape
    heads, columns, _ = reference.shape
    dtype = compute_dtype(tokens.dtype)
    parameters = native.parameters(dtype, reference)
    aligned = _empty((batch, heads, columns, depth), dtype)
    row, column = _empty((batch, heads, rows), dtype), _empty((batch, heads, columns), dtype)
    history, count = _empty((batch, heads, keep, columns), torch.float64), _empty((batch, heads), torch.int32)
    masses, alive = _masses(row_mass, column_mass)
    native.required().transport_align_forward(
        *_work(tokens, batch, heads, rows, columns, depth),
        *_placed(tokens),
        *native.pointers(parameters),
        score == 1,
        masses,
        epsilon,
        iterations,
        tolerance,
        keep,
        *native.pointers((aligned, row, column, history, count)),
    )
    del alive
    return aligned.to(tokens.dtype), row, column, history, count


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
) -> tuple[Tensor, ...]:
    batch, rows, depth = tokens.shape
    heads, columns, _ = reference.shape
    dtype = compute_dtype(tokens.dtype)
    parameters = native.parameters(dtype, reference)
    grads = native.parameters(dtype, grad_aligned, grad_row, grad_column)
    results = [_as(dtype, like, wanted) for like, wanted in zip((tokens, reference), needed, strict=True)]
    saved = [history.contiguous(), count.contiguous()]
    masses, alive = _masses(row_mass, column_mass)
    address, *others = native.pointers(grads)
    native.required().transport_align_backward(
        *_work(tokens, batch, heads, rows, columns, depth),
        *_placed(tokens),
        *native.pointers(parameters),
        score == 1,
        masses,
        epsilon,
        history.shape[2],
        unrolled,
        *native.pointers(saved),
        address,
        (),
        *others,
        *native.pointers(results),
    )
    del alive
    return _delivered(results, (tokens, reference))


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
    batch, rows, depth = tokens.shape
    heads, columns, _ = reference.shape
    width = values.shape[-1]
    dtype = compute_dtype(tokens.dtype)
    parameters = native.parameters(dtype, reference, row, column, values)
    out = _empty((batch, heads, columns, width) if columns_side else (batch, rows, width), dtype)
    place, *others = native.pointers(parameters)
    native.required().apply_plan_forward(
        *_work(tokens, batch, heads, rows, columns, depth, width),
        *_placed(tokens),
        place,
        score == 1,
        *others,
        columns_side,
        epsilon,
        out.data_ptr(),
    )
    return out.to(values.dtype)


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
    batch, rows, depth = tokens.shape
    heads, columns, _ = reference.shape
    dtype = compute_dtype(tokens.dtype)
    parameters = native.parameters(dtype, reference, row, column, values, grad)
    inputs = (tokens, reference, row, column, values)
    results = [_as(dtype, like, wanted) for like, wanted in zip(inputs, needed, strict=True)]
    addresses = native.pointers(parameters)
    native.required().apply_plan_backward(
        *_work(tokens, batch, heads, rows, columns, depth, values.shape[-1]),
        *_placed(tokens),
        addresses[0],
        score == 1,
        *addresses[1:4],
        columns_side,
        epsilon,
        addresses[4],
        *native.pointers(results),
    )
    return _delivered(results, inputs)

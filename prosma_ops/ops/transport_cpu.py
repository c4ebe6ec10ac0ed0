"""Backend "cpu" of the operators of transport: the native library sees pointers and strides.

Scores, tokens and the gradient of the plan come with any strides. What is small, the reference, potentials and values
and their gradients, the library takes contiguous and in the dtype that it computes in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from ..reference.precision import compute_dtype


def _masses(row_mass: Tensor, column_mass: Tensor) -> tuple[tuple[int, ...], tuple[Tensor, Tensor]]:
    """Where they are, and what has to live until they are read: an inner stride of 1 is promised, but of 1 element."""
    row, column = (mass if mass.stride(-1) == 1 else mass.contiguous() for mass in (row_mass, column_mass))
    return (row.data_ptr(), row.stride(0), column.data_ptr(), column.stride(0)), (row, column)


def _as(dtype: torch.dtype, like: Tensor, wanted: bool = True) -> Tensor | None:
    """Room for a gradient of `like`, in the dtype that is computed in."""
    return torch.empty(like.shape, dtype=dtype) if wanted else None


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
    plan = torch.empty((batch, rows, columns) if with_plan else (0,), dtype=scores.dtype)
    row, column = torch.empty((batch, rows), dtype=dtype), torch.empty((batch, columns), dtype=dtype)
    history, count = torch.empty((batch, keep, columns), dtype=torch.float64), torch.empty((batch,), dtype=torch.int32)
    masses, alive = _masses(row_mass, column_mass)
    native.required().transport_plan_forward(
        *native.work(scores, (batch, 1, rows, columns, 0)),
        *native.placed(scores),
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
    potentials = native.parameters(dtype, grad_row, grad_column)
    saved = [history.contiguous(), count.contiguous()]
    dscores = torch.empty(scores.shape, dtype=dtype)
    masses, alive = _masses(row_mass, column_mass)
    native.required().transport_plan_backward(
        *native.work(scores, (batch, 1, rows, columns, 0)),
        *native.placed(scores),
        0,
        False,
        masses,
        epsilon,
        history.shape[1],
        unrolled,
        *native.pointers(saved),
        *native.placed(grad_plan),
        *native.pointers(potentials),
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
    aligned = torch.empty((batch, heads, columns, depth), dtype=dtype)
    row, column = torch.empty((batch, heads, rows), dtype=dtype), torch.empty((batch, heads, columns), dtype=dtype)
    history, count = (
        torch.empty((batch, heads, keep, columns), dtype=torch.float64),
        torch.empty((batch, heads), dtype=torch.int32),
    )
    masses, alive = _masses(row_mass, column_mass)
    native.required().transport_align_forward(
        *native.work(tokens, (batch, heads, rows, columns, depth)),
        *native.placed(tokens),
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
        *native.work(tokens, (batch, heads, rows, columns, depth)),
        *native.placed(tokens),
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
    out = torch.empty((batch, heads, columns, width) if columns_side else (batch, rows, width), dtype=dtype)
    place, *others = native.pointers(parameters)
    native.required().apply_plan_forward(
        *native.work(tokens, (batch, heads, rows, columns, depth, width)),
        *native.placed(tokens),
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
        *native.work(tokens, (batch, heads, rows, columns, depth, values.shape[-1])),
        *native.placed(tokens),
        addresses[0],
        score == 1,
        *addresses[1:4],
        columns_side,
        epsilon,
        addresses[4],
        *native.pointers(results),
    )
    return _delivered(results, inputs)

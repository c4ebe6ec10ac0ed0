"""Backends "cpu" and "cuda" of the operators of transport: the native library sees pointers and strides.

Scores, tokens and the gradient of the plan come with any strides. What is small, the reference, potentials and values
and their gradients, the library takes contiguous and in the dtype that it computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..reference.precision import compute_dtype

# Calls a native function of one backend: by its name, with the leader, the sizes of the work, and its other arguments.
Library = Callable[..., None]


def on_cpu(function: str, leader: Tensor, sizes: tuple[int, ...], *arguments: Any) -> None:
    getattr(native.required(), function)(*native.work(leader, sizes), *arguments)


def on_cuda(function: str, leader: Tensor, sizes: tuple[int, ...], *arguments: Any) -> None:
    """Queued on the current stream, with scratch memory that the caching allocator gives."""
    operator, direction = function.rsplit("_", 1)
    name = f"{operator}_cuda_{direction}"
    work = native.queued(leader, sizes)
    size = getattr(native.required(), f"{name}_workspace")(work[0], sizes, *arguments)
    workspace = native.workspace(size, leader)
    getattr(native.required(), name)(*work, *arguments, workspace.data_ptr())


def _masses(row_mass: Tensor, column_mass: Tensor) -> tuple[tuple[int, ...], tuple[Tensor, Tensor]]:
    """Where they are, and what has to live until they are read: an inner stride of 1 is promised, but of 1 element."""
    row, column = (mass if mass.stride(-1) == 1 else mass.contiguous() for mass in (row_mass, column_mass))
    return (row.data_ptr(), row.stride(0), column.data_ptr(), column.stride(0)), (row, column)


def _room(leader: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=leader.device)


def _as(dtype: torch.dtype, leader: Tensor, like: Tensor, wanted: bool) -> Tensor | None:
    """Room for a gradient of `like`, in the dtype that is computed in; that of an empty batch is 0."""
    if not wanted:
        return None
    return _room(leader, dtype, *like.shape) if leader.shape[0] else torch.zeros_like(like, dtype=dtype)


def _delivered(results: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Results as gradients of the inputs; one of no size where there is none."""
    return tuple(
        like.new_empty(0) if result is None else result.to(like.dtype)
        for result, like in zip(results, inputs, strict=True)
    )


def plan_forward(
    library: Library,
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
    plan = _room(scores, scores.dtype, *((batch, rows, columns) if with_plan else (0,)))
    row, column = _room(scores, dtype, batch, rows), _room(scores, dtype, batch, columns)
    history, count = _room(scores, torch.float64, batch, keep, columns), _room(scores, torch.int32, batch)
    masses, alive = _masses(row_mass, column_mass)
    library(
        "transport_plan_forward",
        scores,
        (batch, 1, rows, columns, 0),
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
    library: Library,
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
    dscores = _room(scores, dtype, *scores.shape)
    masses, alive = _masses(row_mass, column_mass)
    library(
        "transport_plan_backward",
        scores,
        (batch, 1, rows, columns, 0),
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
    library: Library,
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
    aligned = _room(tokens, dtype, batch, heads, columns, depth)
    row, column = _room(tokens, dtype, batch, heads, rows), _room(tokens, dtype, batch, heads, columns)
    history = _room(tokens, torch.float64, batch, heads, keep, columns)
    count = _room(tokens, torch.int32, batch, heads)
    masses, alive = _masses(row_mass, column_mass)
    library(
        "transport_align_forward",
        tokens,
        (batch, heads, rows, columns, depth),
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
    library: Library,
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
    results = [_as(dtype, tokens, like, wanted) for like, wanted in zip((tokens, reference), needed, strict=True)]
    saved = [history.contiguous(), count.contiguous()]
    masses, alive = _masses(row_mass, column_mass)
    address, *others = native.pointers(grads)
    library(
        "transport_align_backward",
        tokens,
        (batch, heads, rows, columns, depth),
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
    library: Library,
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
    out = _room(tokens, dtype, *((batch, heads, columns, width) if columns_side else (batch, rows, width)))
    place, *others = native.pointers(parameters)
    library(
        "apply_plan_forward",
        tokens,
        (batch, heads, rows, columns, depth, width),
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
    library: Library,
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
    results = [_as(dtype, tokens, like, wanted) for like, wanted in zip(inputs, needed, strict=True)]
    addresses = native.pointers(parameters)
    library(
        "apply_plan_backward",
        tokens,
        (batch, heads, rows, columns, depth, values.shape[-1]),
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

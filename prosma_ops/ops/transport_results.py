"""What the operators of transport and their gradients have in common: results unwritten, and what is saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.precision import compute_dtype


def like_potentials(leader: Tensor, items: Sequence[int], rows: int, columns: int, keep: int) -> tuple[Tensor, ...]:
    """row, column, history and count, unwritten."""
    dtype = compute_dtype(leader.dtype)
    return (
        leader.new_empty((*items, rows), dtype=dtype),
        leader.new_empty((*items, columns), dtype=dtype),
        leader.new_empty((*items, keep, columns), dtype=torch.float64),
        leader.new_empty(items, dtype=torch.int32),
    )


def like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def like_needed(tensors: Sequence[Tensor], needed: Sequence[bool]) -> tuple[Tensor, ...]:
    return tuple(like(t) if wanted else t.new_empty(0) for t, wanted in zip(tensors, needed, strict=True))


def keep_history(ctx: Any, tensors: Sequence[Tensor | None], history: Sequence[Tensor], enough: bool) -> None:
    """`history` and the count of iterations, the last two results, are for the backward alone."""
    ctx.mark_non_differentiable(*history)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *history)
    ctx.enough = enough


def check_enough(ctx: Any) -> None:
    if not ctx.enough:
        raise RuntimeError("the unrolled gradient needs the column potentials of every iteration: keep = iterations")


def gradients(
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


def refuse_second_gradient(unrolled: bool) -> None:
    if not unrolled:
        raise RuntimeError("gradient='implicit' has no second derivative; gradient='unrolled' has one")


def wanted(found: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    return [gradient if wanted else None for gradient, wanted in zip(found, needed, strict=True)]

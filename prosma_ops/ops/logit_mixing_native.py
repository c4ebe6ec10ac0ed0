"""Backends "cpu" and "cuda" of mixed_logit_statistics: the native library sees pointers and strides.

Parameters and the gradients of the sums are small, so it takes them contiguous and in the dtype that it computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..reference import logit_mixing as reference
from ..reference.precision import compute_dtype
from .library import empty_gradients

# The codes of `LabelType` in csrc/logit_mixing.h. A bool is a byte of 0 or 1.
LABEL_DTYPES = {
    torch.uint8: 0,
    torch.bool: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float32: 5,
    torch.float64: 6,
    torch.float16: 7,
    torch.bfloat16: 8,
}
LARGEST_INDEX = 1 << 62


# How a native function is called: (its direction, leader, shared arguments, sums or their gradients, the rest).
Library = Callable[[str, Tensor, tuple[Any, ...], tuple[int, ...], Sequence[Any]], None]


def _on_cpu(
    direction: str, leader: Tensor, shared: tuple[Any, ...], sums: tuple[int, ...], rest: Sequence[Any]
) -> None:
    getattr(native.required(), f"mixed_logit_statistics_{direction}")(shared, sums, *rest)


def _on_cuda(
    direction: str, leader: Tensor, shared: tuple[Any, ...], sums: tuple[int, ...], rest: Sequence[Any]
) -> None:
    """Queued on the current stream, with scratch memory that the caching allocator gives."""
    module = native.required()
    gradients = rest if direction == "backward" else ((), ())
    workspace = native.workspace(module.mixed_logit_statistics_cuda_workspace(shared, sums, *gradients), leader)
    function = getattr(module, f"mixed_logit_statistics_cuda_{direction}")
    function(shared, *native.queue(leader.device), workspace.data_ptr(), sums, *rest)


def forward(
    library: Library,
    logits: Sequence[Tensor],
    target: Tensor,
    concat_weight: Tensor | None,
    concat_bias: Tensor | None,
    attention_weight: Tensor | None,
    attention_bias: Tensor | None,
    operators: Sequence[str],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
    per_sample: bool,
    log_probability: bool,
) -> tuple[Tensor, ...]:
    first = logits[0]
    parameters = native.parameters(
        compute_dtype(first.dtype), concat_weight, concat_bias, attention_weight, attention_bias
    )
    batch, classes = first.shape[:2]
    images = (batch,) if per_sample else ()
    table = (*images, len(logits) + len(operators) * len(reference.subsets(len(logits))), classes)
    sums = [first.new_empty(table, dtype=compute_dtype(first.dtype)) for _ in range(4 + log_probability)]
    counts = [first.new_empty(shape, dtype=torch.int64) for shape in ((*images, classes), images, images)]
    settings = (operators, activation, domain, ignore_index, align_corners, per_sample)
    shared = _shared(logits, target, parameters, *settings)
    addresses = tuple(native.pointers([*sums, *[None] * (5 - len(sums))]))
    library("forward", first, shared, addresses, native.pointers(counts))
    if not log_probability:
        sums.append(sums[0].new_empty(0))
    return (*sums, *counts)


def backward(
    library: Library,
    grad_cross_entropy: Tensor | None,
    grad_intersection: Tensor | None,
    grad_probability: Tensor | None,
    grad_square: Tensor | None,
    grad_log_probability: Tensor | None,
    logits: Sequence[Tensor],
    target: Tensor,
    concat_weight: Tensor | None,
    concat_bias: Tensor | None,
    attention_weight: Tensor | None,
    attention_bias: Tensor | None,
    operators: Sequence[str],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
    per_sample: bool,
    needed: Sequence[bool],
) -> list[Tensor]:
    dtype = compute_dtype(logits[0].dtype)
    stored = (concat_weight, concat_bias, attention_weight, attention_bias)
    parameters = native.parameters(dtype, *stored)
    gradients = empty_gradients((*logits, *stored), needed)
    wanted = [gradient if gradient.numel() else None for gradient in gradients]
    levels, destinations = wanted[: len(logits)], wanted[len(logits) :]
    for destination, operator in zip(destinations, ("concat", "concat", "attention", "attention"), strict=True):
        if destination is not None and operator not in operators:
            destination.zero_()
    results = native.parameters(dtype, *destinations)
    sums = native.parameters(
        dtype, grad_cross_entropy, grad_intersection, grad_probability, grad_square, grad_log_probability
    )
    settings = (operators, activation, domain, ignore_index, align_corners, per_sample)
    shared = _shared(logits, target, parameters, *settings)
    placed = tuple(tuple(native.placed(level)) for level in levels)
    library("backward", logits[0], shared, tuple(native.pointers(sums)), (placed, tuple(native.pointers(results))))
    native.deliver(results, destinations)
    return gradients


def _shared(
    logits: Sequence[Tensor],
    target: Tensor,
    parameters: Sequence[Tensor | None],
    operators: Sequence[str],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
    per_sample: bool,
) -> tuple[Any, ...]:
    """What forward and backward both tell the library, in the order of `arguments_of` in csrc/bindings."""
    first = logits[0]
    per_channel = target.dim() == first.dim()
    if not per_channel:
        target = target.unsqueeze(1)
    if ignore_index is not None and abs(ignore_index) > LARGEST_INDEX:
        ignore_index = None  # no label is that large
    return (
        *native.work(first, (*first.shape[:2], *target.shape[2:])),
        tuple((*native.placed(level), level.shape) for level in logits),
        tuple(native.placed(target)),
        LABEL_DTYPES[target.dtype],
        per_channel,
        ignore_index,
        tuple(reference.OPERATORS.index(operator) for operator in operators),
        activation == "sigmoid",
        domain == "probabilities",
        align_corners,
        per_sample,
        tuple(native.pointers(parameters)),
    )


cpu_forward, cpu_backward = partial(forward, _on_cpu), partial(backward, _on_cpu)
cuda_forward, cuda_backward = partial(forward, _on_cuda), partial(backward, _on_cuda)

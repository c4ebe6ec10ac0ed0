"""Sums over all processes of torch.distributed, differentiable, for losses that are not a mean of the processes' own.

Dice over a whole batch is a function of sums; with the batch spread over processes it is that function of the sums
over all of them. Every process then holds the same loss L(S), S = sum_r s_r, and starts a backward of its own, so the
gradient that arrives at s_r is the sum over the processes of dL/dS: the backward of an all-reduce is an all-reduce.
DistributedDataParallel averages the parameters' gradients, which takes that factor, the number of processes, out
again: what remains is the gradient of one process with the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops.library import define


def sum_over_processes(*values: Tensor) -> tuple[Tensor, ...]:
    """Each tensor summed over the processes of the default group, in its own dtype: all of them in one message.

    The message is float64, in which counts are exact up to 2^53. Without a process group, or with one process, the
    tensors come back as they are.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    message = torch.cat([value.reshape(-1).double() for value in values])
    sums = _sum_over_processes(message).split([value.numel() for value in values])
    return tuple(total.reshape(value.shape).to(value.dtype) for total, value in zip(sums, values, strict=True))


def _sum(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Nothing is needed: the operator is linear."""


def _gradient(ctx: Any, grad: Tensor) -> Tensor:
    total: Tensor = _sum_over_processes(grad)
    return total


_sum_over_processes = define(
    "sum_over_processes(Tensor values) -> Tensor",
    _sum,
    lambda values: torch.empty_like(values, memory_format=torch.contiguous_format),
    setup_context=_save,
    backward=_gradient,
)

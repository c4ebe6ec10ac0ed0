"""What public functions ask of their arguments. Every message names the argument, what came, and what would do.

All of it is metadata (types, shapes, dtypes, devices): nothing here reads a tensor's values or waits for a device,
and all of it traces under torch.compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter

from ..backends import SUPPORTED

_NAMES = "float32, float64, float16 or bfloat16"


def plain(name: str, value: Any) -> Tensor:
    """`value` as a plain tensor: subclasses that only carry extra data (MONAI's MetaTensor) are unwrapped.

    Subclasses with a dispatch of their own (fake, functional, distributed tensors) are left as they are.
    """
    kind = type(value)
    if kind is Tensor or kind is Parameter:
        return value  # type: ignore[no-any-return]
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {kind.__name__}; it must be a torch.Tensor")
    if kind.__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl:
        return value.as_subclass(Tensor)
    return value


def optional(name: str, value: Any) -> Tensor | None:
    return None if value is None else plain(name, value)


def floating(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in SUPPORTED:
        raise TypeError(f"{name} is {tensor.dtype}; it must be {_NAMES}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}; it must be a dense (strided) tensor")


def companion(name: str, tensor: Tensor, leader_name: str, leader: Tensor) -> None:
    """A parameter beside the tensor that sets the dtype: the same device, and that dtype or float32."""
    right_dtype = tensor.dtype is leader.dtype or tensor.dtype is torch.float32
    if right_dtype and tensor.layout is torch.strided and tensor.device == leader.device:
        return
    floating(name, tensor)
    if not right_dtype:
        fitting = f"{leader.dtype}" + ("" if leader.dtype is torch.float32 else " or torch.float32")
        raise TypeError(f"{name} is {tensor.dtype} beside a {leader_name} of {leader.dtype}; it must be {fitting}")
    same_device(name, tensor, leader_name, leader)


def same_device(name: str, tensor: Tensor, leader_name: str, leader: Tensor) -> None:
    if tensor.device != leader.device:
        raise ValueError(
            f"{name} is on {tensor.device} and {leader_name} on {leader.device}; they must be on one device"
        )


def channel_values(
    name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str, leader_name: str, leader: Tensor
) -> None:
    """One value a channel (and image): the shape that `meaning` names, beside the leader."""
    if tensor.shape != expected:
        wrong_shape(name, tensor, expected, f"{meaning} of {leader_name}")
    companion(name, tensor, leader_name, leader)


def twin(name: str, tensor: Tensor, leader_name: str, leader: Tensor) -> None:
    """A tensor of the leader's shape, dtype and device."""
    same = tensor.dtype is leader.dtype and tensor.shape == leader.shape and tensor.device == leader.device
    if same and tensor.layout is torch.strided:
        return
    floating(name, tensor)
    same_device(name, tensor, leader_name, leader)
    if tensor.dtype is not leader.dtype:
        raise TypeError(f"{name} is {tensor.dtype}; it must have the dtype of {leader_name}, {leader.dtype}")
    if tensor.shape != leader.shape:
        wrong_shape(name, tensor, leader.shape, f"the shape of {leader_name}")


def wrong_shape(name: str, tensor: Tensor, expected: Sequence[int], meaning: str) -> NoReturn:
    raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {meaning} = {tuple(expected)}")


def wrong_rank(name: str, tensor: Tensor, meaning: str) -> NoReturn:
    raise ValueError(f"{name} has {tensor.dim()} dimensions, shape {tuple(tensor.shape)}; it must be {meaning}")


def choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def integers(name: str, values: Any) -> tuple[int, ...]:
    """`values` as a tuple of true integers, which is all that an operator's schema takes."""
    try:
        result = tuple(values)
    except TypeError:
        raise TypeError(f"{name} is {values!r}; it must be a sequence of integers") from None
    for value in result:
        if type(value) is not int:
            raise TypeError(f"{name} is {values!r}; each entry must be an int, not {type(value).__name__}")
    return result


def positive_integers(name: str, values: Sequence[int], count: int, largest: int, meaning: str) -> None:
    for value in values if type(values) is tuple else integers(name, values):
        if type(value) is not int:
            integers(name, values)
        if value < 1 or value > largest:
            raise ValueError(f"{name} is {tuple(values)}; each must be at least 1 and at most {largest}")
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries, {tuple(values)}; it must have {count}: {meaning}")


def number(name: str, value: Any) -> float:
    """`value` as a float; a tensor would make the host wait for it."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a number")
    return float(value)

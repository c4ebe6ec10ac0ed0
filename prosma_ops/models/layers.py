"""The layers that the networks are put together from, in 2-D and 3-D, with a size or a stride for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.layers import normalization, positive_integer

CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def per_axis(name: str, value: Any, spatial_dims: int) -> tuple[int, ...]:
    """One positive integer for each spatial axis, of one integer or a sequence of as many."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != spatial_dims:
            raise ValueError(f"{name} is {tuple(value)}; it must be one integer or {spatial_dims}, one an axis")
        return tuple(positive_integer(name, entry) for entry in value)
    return (positive_integer(name, value),) * spatial_dims


def convolution(
    inputs: int,
    outputs: int,
    spatial_dims: int,
    *,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Module:
    """A convolution of odd size that keeps the image's size where its stride is 1."""
    size = per_axis("kernel_size", kernel_size, spatial_dims)
    if any(length % 2 == 0 for length in size):
        raise ValueError(f"kernel_size is {size}; it must be odd, so that a kernel has a centre")
    return CONVOLUTIONS[spatial_dims](
        inputs,
        outputs,
        kernel_size=size,
        stride=per_axis("stride", stride, spatial_dims),
        padding=tuple(length // 2 for length in size),
        groups=groups,
        bias=bias,
    )


def upsampling(inputs: int, outputs: int, spatial_dims: int, step: Sequence[int]) -> nn.Module:
    """A transposed convolution whose kernels do not overlap: each coarse pixel becomes a block of `step` fine ones."""
    return TRANSPOSED[spatial_dims](inputs, outputs, kernel_size=tuple(step), stride=tuple(step), bias=False)


class ConvolutionBlock(nn.Sequential):
    """Convolutions, each normalized and rectified; the first of them takes the stride."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spatial_dims: int,
        *,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        convolutions: int = 2,
        norm: str = "batch",
    ) -> None:
        layers: list[nn.Module] = []
        for number in range(convolutions):
            first = number == 0
            layers += [
                convolution(
                    inputs if first else outputs,
                    outputs,
                    spatial_dims,
                    kernel_size=kernel_size,
                    stride=stride if first else 1,
                ),
                normalization(norm, outputs, spatial_dims),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


def padded(values: Tensor, multiple: Sequence[int]) -> Tensor:
    """`values` continued at the far end of each axis by the border's values, to a multiple of so many pixels."""
    missing = [-size % factor for size, factor in zip(values.shape[2:], multiple, strict=True)]
    if not any(missing):
        return values
    # F.pad counts from the last axis, and takes a number for either end.
    return F.pad(values, [amount for length in reversed(missing) for amount in (0, length)], mode="replicate")


def cropped(values: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` pixels of each axis."""
    for axis, length in enumerate(size, start=2):
        if values.shape[axis] != length:
            values = values.narrow(axis, 0, length)
    return values

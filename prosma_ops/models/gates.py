"""What stands on a skip connection: `gate(skip, gating)` is of the skip's shape; `gating` may be coarser.

none          skip
attention     skip * sigmoid(norm(psi(relu(norm(W_x skip) + norm(W_g up(gating))))))     one factor a pixel
large_kernel  the same with grouped 3x3 convolutions for W_x and W_g
proximal      skip * soft threshold of a sparse field * one factor a channel             `prosma_ops.nn.ProximalGate`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import ProximalGate
from ..nn.layers import dimensions, normalization, pointwise, positive_integer, resize_like
from .layers import convolution
from .parts import chosen


class NoGate(nn.Module):
    """The skip connection of U-Net: everything passes."""

    def __init__(self, channels: int, gating_channels: int, *, spatial_dims: int = 2, norm: str = "batch") -> None:
        super().__init__()

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        return skip


class AttentionGate(nn.Module):
    """The additive attention gate of Attention U-Net (arXiv 1804.03999): one factor from 0 to 1 for each pixel.

    As in MONAI's `AttentionUnet`, on the grid of the skip connection; the original halves that grid first. `gating` is
    projected before it is brought to that grid, which gives the same numbers at a quarter (an eighth) of the work.

    Arguments:
        channels: of the skip connection, and of the result.
        gating_channels: of the decoder's features.
        hidden: features in which the two are compared, by default half of `channels`.
        spatial_dims: 2 or 3.
        norm: "batch", "instance" or "group".
    """

    def __init__(
        self,
        channels: int,
        gating_channels: int,
        *,
        hidden: int | None = None,
        spatial_dims: int = 2,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        dimensions(spatial_dims)
        width = max(1, channels // 2) if hidden is None else positive_integer("hidden", hidden)
        self.project_skip = nn.Sequential(
            pointwise(channels, width, spatial_dims), normalization(norm, width, spatial_dims)
        )
        self.project_gating = pointwise(gating_channels, width, spatial_dims)
        self.normalize_gating = normalization(norm, width, spatial_dims)
        self.attention = nn.Sequential(pointwise(width, 1, spatial_dims), normalization(norm, 1, spatial_dims))

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """(B, channels, *size) and (B, gating_channels, *coarser size) -> (B, channels, *size)."""
        confirmed = self.normalize_gating(resize_like(self.project_gating(gating), skip))
        factors: Tensor = self.attention(F.relu(self.project_skip(skip) + confirmed)).sigmoid()
        return skip * factors


class LargeKernelGate(nn.Module):
    """LGAG, the grouped attention gate of EMCAD (arXiv 2405.06880): one factor from 0 to 1 for each pixel.

    Skip connection and gating are compared in half as many features as the skip has channels, which grouped 3x3
    convolutions make of them; a group is one of these features where that divides the channels, as it does in EMCAD.

    Arguments:
        channels: of the skip connection, and of the result.
        gating_channels: of the decoder's features; as many as `channels` in EMCAD.
        spatial_dims: 2 or 3.
        norm: "batch", "instance" or "group".
    """

    def __init__(self, channels: int, gating_channels: int, *, spatial_dims: int = 2, norm: str = "batch") -> None:
        super().__init__()
        width = max(1, channels // 2)

        def project(inputs: int) -> nn.Sequential:
            grouped = convolution(inputs, width, spatial_dims, groups=math.gcd(inputs, width), bias=True)
            return nn.Sequential(grouped, normalization(norm, width, spatial_dims))

        self.project_skip = project(channels)
        self.project_gating = project(gating_channels)
        self.attention = nn.Sequential(
            convolution(width, 1, spatial_dims, kernel_size=1, bias=True), normalization(norm, 1, spatial_dims)
        )

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """(B, channels, *size) and (B, gating_channels, *size or coarser) -> (B, channels, *size)."""
        confirmed = resize_like(self.project_gating(gating), skip)
        factors: Tensor = self.attention(F.relu(self.project_skip(skip) + confirmed)).sigmoid()
        return skip * factors


GATES: dict[str, type[nn.Module]] = {
    "none": NoGate,
    "attention": AttentionGate,
    "large_kernel": LargeKernelGate,
    "proximal": ProximalGate,
}


def make_gates(
    kind: str,
    channels: Sequence[int],
    gating_channels: Sequence[int],
    *,
    spatial_dims: int,
    norm: str,
    options: Mapping[str, Any] | None = None,
) -> list[nn.Module]:
    """A gate for each skip connection: a key of `GATES`, with the keyword arguments of its class."""
    make, given = chosen("gate", kind, GATES, options)
    return [
        make(own, gating, spatial_dims=spatial_dims, norm=norm, **given)
        for own, gating in zip(channels, gating_channels, strict=True)
    ]

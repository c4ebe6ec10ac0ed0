"""EMCAD's decoder (arXiv 2405.06880) and its parts: attention, multi-scale convolution and up-sampling.

CAB   x * sigmoid(W_2 relu(W_1 mean(x)) + W_2 relu(W_1 max(x)))         means and maxima over places
SAB   x * sigmoid(7x7 convolution of [mean(x), max(x)])                  means and maxima over channels
MSCB  x + norm(W_2 shuffle(sum over k of relu6(norm(depthwise k x k of relu6(norm(W_1 x))))))
EUCB  W relu(norm(depthwise 3x3 of x, enlarged twice)) + b

The shuffle of channels in MSCB is a fixed permutation between a sum and a 1x1 convolution: it is applied to the
weights, 2 C^2 numbers, in place of a copy of the features, 2 C numbers a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.layers import normalization, pointwise
from .skeleton import Decoder, Encoder

REDUCTION = 16  # of the hidden features of CAB
EXPANSION = 2  # of the channels inside MSCB
KERNELS = (1, 3, 5)
DEVIATION = 0.02  # of the weights of every convolution at the start


def depthwise(channels: int, kernel_size: int) -> nn.Conv2d:
    """Without bias: a normalization follows it."""
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)


class ChannelAttention(nn.Module):
    """CAB: one factor a channel, from its mean and its maximum through one shared perceptron without biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.reduce = pointwise(channels, hidden, 2)
        self.expand = pointwise(hidden, channels, 2)

    def forward(self, values: Tensor) -> Tensor:
        pooled = values.mean((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
        mean, largest = (self.expand(F.relu(self.reduce(each))) for each in pooled)
        return values * torch.sigmoid(mean + largest)


class SpatialAttention(nn.Module):
    """SAB: one factor a place, from the mean and the maximum of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        pooled = torch.cat([values.mean(1, keepdim=True), values.amax(1, keepdim=True)], dim=1)
        return values * torch.sigmoid(self.convolution(pooled))


class MultiScaleConvolution(nn.Module):
    """MSCB: depthwise kernels of several sizes side by side, between two 1x1 convolutions, beside the identity."""

    def __init__(self, channels: int, kernels: Sequence[int] = KERNELS, norm: str = "batch") -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.expand = nn.Sequential(
            pointwise(channels, inner, 2), normalization(norm, inner, 2), nn.ReLU6(inplace=True)
        )
        self.scales = nn.ModuleList(
            nn.Sequential(depthwise(inner, size), normalization(norm, inner, 2), nn.ReLU6(inplace=True))
            for size in kernels
        )
        self.reduce = pointwise(inner, channels, 2)
        self.normalize = normalization(norm, channels, 2)

    def forward(self, values: Tensor) -> Tensor:
        expanded = self.expand(values)
        total: Tensor = self.scales[0](expanded)
        for scale in self.scales[1:]:
            total = total + scale(expanded)
        reduced: Tensor = self.normalize(F.conv2d(total, self.unshuffled_weight()))
        return values + reduced

    def unshuffled_weight(self) -> Tensor:
        """The weight of `reduce` for channels that were not shuffled.

        The shuffle moves channel g * EXPANSION + p to p * C + g, so the weight at the latter belongs to the former.
        """
        weight = self.reduce.weight
        assert isinstance(weight, Tensor)
        channels = weight.shape[0]
        return weight.view(channels, EXPANSION, channels).transpose(1, 2).reshape(weight.shape)


class EfficientUpConvolution(nn.Module):
    """EUCB: twice the size by nearest neighbours, smoothed channel by channel, then a 1x1 convolution with bias."""

    def __init__(self, inputs: int, outputs: int, norm: str = "batch") -> None:
        super().__init__()
        self.smooth = nn.Sequential(depthwise(inputs, 3), normalization(norm, inputs, 2), nn.ReLU(inplace=True))
        self.project = nn.Conv2d(inputs, outputs, 1)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.project(self.smooth(F.interpolate(values, scale_factor=2.0, mode="nearest")))
        return result


class EMCADDecoder(Decoder):
    """At each level d = MSCB(SAB(CAB(d))), where d = EUCB(d of the coarser level) + gate(skip, EUCB(d)).

    The features that gate are those after EUCB, of the skip's channels and size. All levels share one SAB.

    Arguments:
        encoder: its levels halve the size; its coarsest features are the first that are decoded.
        kernels: sizes of MSCB's depthwise convolutions, odd.
        norm: "batch", "instance" or "group".
    """

    def __init__(self, encoder: Encoder, *, kernels: Sequence[int] = KERNELS, norm: str = "batch") -> None:
        super().__init__()
        self.channels = encoder.channels[::-1]
        self.strides = list(encoder.strides)[::-1]
        self.channel_attentions = nn.ModuleList(ChannelAttention(channels) for channels in self.channels)
        self.spatial_attention = SpatialAttention()
        self.convolutions = nn.ModuleList(MultiScaleConvolution(channels, kernels, norm) for channels in self.channels)
        self.upsamplings = nn.ModuleList(
            EfficientUpConvolution(coarse, fine, norm) for coarse, fine in pairwise(self.channels)
        )

    def forward(self, features: Sequence[Tensor], gates: Sequence[nn.Module]) -> list[Tensor]:
        *skips, values = features
        decoded = [self._refined(0, values)]
        for level, (skip, gate, upsample) in enumerate(zip(skips[::-1], gates, self.upsamplings, strict=True), start=1):
            enlarged = upsample(decoded[-1])
            decoded.append(self._refined(level, enlarged + gate(skip, enlarged)))
        return decoded

    def _refined(self, level: int, values: Tensor) -> Tensor:
        attended = self.spatial_attention(self.channel_attentions[level](values))
        result: Tensor = self.convolutions[level](attended)
        return result


def initialize(*parts: nn.Module) -> None:
    """Every convolution in `parts` as EMCAD starts it: normal with DEVIATION, biases 0."""
    for module in (inner for part in parts for inner in part.modules()):
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(module.weight, std=DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

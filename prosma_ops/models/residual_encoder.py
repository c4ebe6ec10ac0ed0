"""ResNet stages with group normalization and standardized weights: the convolutional half of R50-ViT-B/16.

weight    = (w - mean(w)) / std(w), over the inputs of each output channel (arXiv 1903.10520)
block(x)  = relu(x' + norm(1x1(relu(norm(3x3(relu(norm(1x1(x)))))))))        x' = x, or norm(1x1(x)) where shapes change
features  = stem (7x7, stride 2), then after a maximum over 3x3 (stride 2) each stage of blocks

The numbers are those of timm's `vit_base_r50_s16_224`, and so are the names of the parameters, its weights therefore
load as they are. A normalization of the weight is what `layer_norm` computes, in one fused kernel each way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .skeleton import Encoder

COLOURS = 3
MOST_GROUPS = 32
BOTTLENECK = 4  # the 3x3 convolution of a block has a quarter of its channels
EXPANSION = 4  # of the stem's channels to those of the first stage; they double from stage to stage
WEIGHT_EPSILON = 1e-8


def padded_at_the_end(values: Tensor, kernel_size: int, stride: int) -> Tensor:
    """What a window needs beyond the border for sizes that the stride divides; an odd pixel goes to the far end."""
    missing = max(kernel_size - stride, 0)
    if missing == 0:
        return values
    near = missing // 2
    return F.pad(values, (near, missing - near) * 2)


class StandardizedConvolution(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 over the inputs of each output; the size is divided by the
    stride."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> None:
        # What is symmetric is left to the convolution, which needs no copy for it.
        self.symmetric = (kernel_size - stride) % 2 == 0
        padding = (kernel_size - stride) // 2 if self.symmetric and kernel_size > stride else 0
        super().__init__(inputs, outputs, kernel_size, stride=stride, padding=padding, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        if not self.symmetric:
            values = padded_at_the_end(values, self.kernel_size[0], self.stride[0])
        flat = self.weight.flatten(1)
        weight = F.layer_norm(flat, flat.shape[1:], eps=WEIGHT_EPSILON).view(self.weight.shape)
        return F.conv2d(values, weight, None, self.stride, self.padding)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(count for count in range(1, MOST_GROUPS + 1) if channels % count == 0), channels)


class Downsample(nn.Module):
    """The identity of a block whose shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = StandardizedConvolution(inputs, outputs, 1, stride)
        self.norm = group_norm(outputs)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(values))
        return result


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        inner = max(1, outputs // BOTTLENECK)
        changes = stride > 1 or inputs != outputs
        self.downsample = Downsample(inputs, outputs, stride) if changes else nn.Identity()
        self.conv1 = StandardizedConvolution(inputs, inner, 1)
        self.norm1 = group_norm(inner)
        self.conv2 = StandardizedConvolution(inner, inner, 3, stride)
        self.norm2 = group_norm(inner)
        self.conv3 = StandardizedConvolution(inner, outputs, 1)
        self.norm3 = group_norm(outputs)

    def forward(self, values: Tensor) -> Tensor:
        found = F.relu(self.norm1(self.conv1(values)), inplace=True)
        found = F.relu(self.norm2(self.conv2(found)), inplace=True)
        return F.relu(self.norm3(self.conv3(found)) + self.downsample(values), inplace=True)


class Stem(nn.Module):
    """Half the image's size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = StandardizedConvolution(inputs, outputs, 7, stride=2)
        self.norm = group_norm(outputs)

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(image)), inplace=True)


class Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ResidualBlock(inputs, outputs, stride), *(ResidualBlock(outputs, outputs) for _ in range(blocks - 1))
        )

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.blocks(values)
        return result


class ResidualEncoder(Encoder):
    """Stem and stages, at strides 2, 4, 8, ...

    Arguments:
        in_channels: of the image; one becomes three equal colours, so that pretrained weights fit it.
        stem_channels: of the features at stride 2; stages have 4, 8, 16, ... times as many.
        blocks: of each stage.
    """

    strides: tuple[int, ...]

    def __init__(self, in_channels: int, stem_channels: int, blocks: Sequence[int]) -> None:
        super().__init__()
        stages = [stem_channels * EXPANSION * 2**number for number in range(len(blocks))]
        self.channels = (stem_channels, *stages)
        self.strides = tuple(2 ** (level + 1) for level in range(len(self.channels)))
        self.grey = in_channels == 1
        self.stem = Stem(COLOURS if self.grey else in_channels, stem_channels)
        self.stages = nn.ModuleList(
            Stage(inputs, outputs, count, stride=2 if number else 1)
            for number, (inputs, outputs, count) in enumerate(zip(self.channels[:-1], stages, blocks, strict=True))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [self.stem(image.expand(-1, COLOURS, -1, -1) if self.grey else image)]
        # Features are not negative, so zeros beyond the border are no larger than what is inside.
        values = F.max_pool2d(padded_at_the_end(features[0], 3, 2), 3, stride=2)
        for stage in self.stages:
            values = stage(values)
            features.append(values)
        return features

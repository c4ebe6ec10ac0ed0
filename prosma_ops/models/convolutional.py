"""The convolutional encoder and decoder, and the networks that differ from U-Net in one part.

encoder   a level is a block of 3x3 convolutions, each normalized and rectified; the first takes the level's stride
decoder   level = block(concat(gate(skip, coarser level), transposed convolution of the coarser level))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..nn.layers import dimensions, positive_integer
from ..ops import checks
from .bottlenecks import make_bottleneck
from .gates import make_gates
from .layers import ConvolutionBlock, per_axis, upsampling
from .registry import register
from .skeleton import Decoder, Encoder, SegmentationModel

#: Widths of the levels, fine to coarse, by preset and spatial dimensions.
PRESETS: dict[str, dict[int, tuple[int, ...]]] = {
    "small": {2: (16, 32, 64, 128, 256), 3: (16, 32, 64, 128)},
    "large": {2: (32, 64, 128, 256, 512), 3: (32, 64, 128, 256, 320)},
}


class ConvolutionalEncoder(Encoder):
    """A block of convolutions at each level.

    Arguments:
        in_channels: of the image.
        widths: channels of each level, fine to coarse.
        strides: of each level relative to the one before it (the first: to the image); one number, or one an axis.
        kernel_sizes: of each level, likewise.
        convolutions: in each block.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        *,
        convolutions: int = 2,
        spatial_dims: int = 2,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.channels = tuple(widths)
        cumulative = [(1,) * spatial_dims]
        for stride in strides:
            cumulative.append(tuple(before * step for before, step in zip(cumulative[-1], stride, strict=True)))
        self.strides = cumulative[1:]
        self.levels = nn.ModuleList(
            ConvolutionBlock(
                inputs,
                outputs,
                spatial_dims,
                kernel_size=kernel_size,
                stride=stride,
                convolutions=convolutions,
                norm=norm,
            )
            for inputs, outputs, stride, kernel_size in zip(
                (in_channels, *widths[:-1]), widths, strides, kernel_sizes, strict=True
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class ConvolutionalDecoder(Decoder):
    """From the coarsest features up: the gated skip connection beside the up-sampled features, and a block of both.

    Takes the arguments of the encoder, fine to coarse. The features that gate are those before up-sampling.
    """

    def __init__(
        self,
        encoder: Encoder,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        *,
        convolutions: int = 2,
        spatial_dims: int = 2,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.channels = encoder.channels[-2::-1]
        self.strides = list(encoder.strides)[-2::-1]
        rising = list(pairwise(encoder.channels[::-1]))
        self.upsamplings = nn.ModuleList(
            upsampling(coarse, fine, spatial_dims, step)
            for (coarse, fine), step in zip(rising, strides[:0:-1], strict=True)
        )
        self.levels = nn.ModuleList(
            ConvolutionBlock(
                2 * fine, fine, spatial_dims, kernel_size=kernel_size, convolutions=convolutions, norm=norm
            )
            for (_, fine), kernel_size in zip(rising, kernel_sizes[-2::-1], strict=True)
        )

    def forward(self, features: Sequence[Tensor], gates: Sequence[nn.Module]) -> list[Tensor]:
        *skips, values = features
        decoded = []
        for skip, gate, upsample, level in zip(skips[::-1], gates, self.upsamplings, self.levels, strict=True):
            values = level(torch.cat([gate(skip, values), upsample(values)], dim=1))
            decoded.append(values)
        return decoded


@register("unet")
class UNet(SegmentationModel):
    """U-Net (arXiv 1505.04597), with exchangeable parts: the other convolutional networks are this with another part.

    Known from the paper: two 3x3 convolutions a level, channels doubled from level to level, up-sampling by transposed
    convolutions, concatenated skip connections. As everybody has it since: zero-padded convolutions with a
    normalization after each, and strided convolutions in place of max pooling, as in nnU-Net; a head at each scale of
    the decoder.

    Arguments:
        in_channels: of the image.
        classes: channels of the logits, the background's included.
        spatial_dims: 2 or 3.
        preset: "small" or "large", the widths: 16 to 256 or 32 to 512 in 2-D, 16 to 128 or 32 to 320 in 3-D.
        widths: channels of each level, fine to coarse, in place of a preset.
        strides: of each level relative to the one before it, the first's (1 by default, then 2) to the image. One
            number, or one an axis: `[1, (1, 2, 2), 2, 2]` suits a volume of thick slices.
        kernel_sizes: odd, of each level, likewise; one number is for all.
        convolutions: in each block of convolutions.
        norm: "batch", "instance" or "group".
        gate: on the skip connections: "none", "attention" or "proximal"; by default the model's own.
        gate_options: keyword arguments of `AttentionGate` or `prosma_ops.nn.ProximalGate`.
        bottleneck: "none", "codebook", "transport" or "synergy"; by default the model's own.
        bottleneck_options: keyword arguments of `CodebookBottleneck`, `TransportBottleneck` or `SynergyBottleneck`.
        deep_supervision: False leaves out all heads but the finest; training mode then returns one map.
    """

    own_gate: ClassVar[str] = "none"
    own_bottleneck: ClassVar[str] = "none"

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        spatial_dims: int = 2,
        preset: str = "large",
        widths: Sequence[int] | None = None,
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_sizes: int | Sequence[int | Sequence[int]] = 3,
        convolutions: int = 2,
        norm: str = "batch",
        gate: str | None = None,
        gate_options: Mapping[str, Any] | None = None,
        bottleneck: str | None = None,
        bottleneck_options: Mapping[str, Any] | None = None,
        deep_supervision: bool = True,
    ) -> None:
        checks.choice("preset", preset, tuple(PRESETS))
        positive_integer("in_channels", in_channels)
        positive_integer("convolutions", convolutions)
        dimensions(spatial_dims)
        found = _widths(PRESETS[preset][spatial_dims] if widths is None else widths)
        given = (1, *(2,) * (len(found) - 1)) if strides is None else strides
        steps = _each_level("strides", given, len(found), spatial_dims)
        sizes = (kernel_sizes,) * len(found) if isinstance(kernel_sizes, int) else kernel_sizes
        kernels = _each_level("kernel_sizes", sizes, len(found), spatial_dims)
        gate = self.own_gate if gate is None else gate
        bottleneck = self.own_bottleneck if bottleneck is None else bottleneck
        shape: dict[str, Any] = {"convolutions": convolutions, "spatial_dims": spatial_dims, "norm": norm}
        encoder = ConvolutionalEncoder(in_channels, found, steps, kernels, **shape)
        super().__init__(
            encoder,
            make_bottleneck(bottleneck, found[-1], spatial_dims=spatial_dims, options=bottleneck_options),
            make_gates(gate, found[-2::-1], found[:0:-1], spatial_dims=spatial_dims, norm=norm, options=gate_options),
            ConvolutionalDecoder(encoder, steps, kernels, **shape),
            in_channels=in_channels,
            classes=classes,
            spatial_dims=spatial_dims,
            deep_supervision=deep_supervision,
            config={
                "in_channels": in_channels,
                "classes": classes,
                "widths": list(found),
                "strides": [list(step) for step in steps],
                "kernel_sizes": [list(kernel) for kernel in kernels],
                "gate": gate,
                "gate_options": dict(gate_options or {}),
                "bottleneck": bottleneck,
                "bottleneck_options": dict(bottleneck_options or {}),
                "deep_supervision": deep_supervision,
                **shape,
            },
        )


@register("attention_unet")
class AttentionUNet(UNet):
    """Attention U-Net (arXiv 1804.03999): an additive attention gate on each skip connection, see `AttentionGate`.

    Known: the gate's formula, and that the coarser features of the decoder do the gating. As in MONAI's
    `AttentionUnet`, the gate works on the grid of the skip connection. Arguments: those of `UNet`; `gate_options`
    takes `hidden`.
    """

    own_gate = "attention"


@register("prosma_unet")
class ProSMAUNet(UNet):
    """ProSMA-UNet (arXiv 2603.03187), a reconstruction: a proximal gate on each skip connection.

    Known, from the abstract alone: a multi-scale compatibility field of depthwise dilated convolutions on a skip
    connection, a soft threshold with learned values per channel, the proximal operator of the L1 norm, which removes
    what the decoder does not confirm, and a gate on the channels from the decoder's global context. Chosen here: all
    that `prosma_ops.nn.ProximalGate` lists, and U-Net's encoder and decoder around it. Arguments: those of `UNet`;
    `gate_options` takes `dilations`, `kernel_size`, `activation`, `initial_threshold`, `reduction`.
    """

    own_gate = "proximal"


@register("vq_unet")
class VQUNet(UNet):
    """VQ-UNet: a codebook at the bottleneck, whose loss is the output's `auxiliary`.

    Known: the features are projected to 256 channels, each replaced by the nearest of 1024 codes, and projected back;
    straight-through gradients; a commitment weight of 0.25. See `CodebookBottleneck`; `bottleneck_options` takes its
    keyword arguments. All other arguments: those of `UNet`.
    """

    own_bottleneck = "codebook"


@register("synergy_net")
class SynergyNet(UNet):
    """SynergyNet (arXiv 2310.17764), a reconstruction: a bottleneck with a discrete and a continuous branch.

    Known: one branch is a codebook, the other is self-attention; they exchange features, and are fused. Chosen here:
    how, see `SynergyBottleneck`; `bottleneck_options` takes its keyword arguments. All others: those of `UNet`.
    """

    own_bottleneck = "synergy"


@register("l2g_net")
class L2GNet(UNet):
    """L2GNet (arXiv 2502.05229), a reconstruction: codes aligned to a learned reference by optimal transport.

    Known: the encoder's features, 14x14 for an image of 224x224, are projected to 256 channels and quantised by 1024
    codes; a transport plan by Sinkhorn's iterations, in place of attention, moves them onto a trainable reference; no
    queries, keys or values. Chosen here: how the aligned features come back to their places, see `TransportBottleneck`;
    `bottleneck_options` takes its keyword arguments, `supports`, `heads`, `epsilon`, `iterations` among them. All
    others: those of `UNet`. Trained with half cross-entropy, half Dice, and the output's `auxiliary`.
    """

    own_bottleneck = "transport"


def _widths(widths: Sequence[int]) -> tuple[int, ...]:
    found = tuple(positive_integer("widths", width) for width in widths)
    if len(found) < 2:
        raise ValueError(f"widths is {found}; it must have 2 entries or more, one a level")
    return found


def _each_level(
    name: str, values: Sequence[int | Sequence[int]], levels: int, spatial_dims: int
) -> list[tuple[int, ...]]:
    if len(values) != levels:
        raise ValueError(f"{name} has {len(values)} entries; it must have {levels}, one a level")
    return [per_axis(name, value, spatial_dims) for value in values]

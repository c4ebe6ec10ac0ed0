"""The one skeleton of all networks: encoder, bottleneck, a gate on each skip connection, decoder, a head a scale.

features                = encoder(image)                fine -> coarse
features[-1], auxiliary = bottleneck(features[-1])
decoded                 = decoder(features, gates)      coarse -> fine
logits[l]               = head[l](decoded[l])           in training mode; in evaluation mode the finest alone

Any size of image will do: it is padded to a multiple of the coarsest stride, at the far end of each axis, and what
comes out is cropped again. A map of stride s keeps ceil(size / s) pixels, so that its pixels stay where they are in the
image, and the last of them may look beyond its border. The finest map, enlarged if its stride is not 1, is cropped to
the size of the image.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..nn.layers import dimensions, laid_out_like, positive_integer, resize_like
from ..ops import checks
from .layers import convolution, cropped, padded, per_axis
from .pretrained import Pretrained

Strides = Sequence[int | Sequence[int]]


class SegmentationOutput(NamedTuple):
    """What a model returns in training mode."""

    #: One map a scale, coarse to fine: (B, classes, *ceil(size / stride)).
    logits: list[Tensor]
    #: What to add to the loss: the codebook's part, or 0 where there is none.
    auxiliary: Tensor


class Encoder(nn.Module):
    """What makes features of an image, (B, in_channels, *size) -> [(B, channels[l], *size / strides[l])].

    Levels run from fine to coarse; the last of them goes to the bottleneck, the others to the skip connections. The
    size is a multiple of the last stride.
    """

    channels: tuple[int, ...]
    #: Of each level relative to the image: one number, or one an axis.
    strides: Strides


class Bottleneck(nn.Module):
    """What works on the coarsest features: (B, C, *size) -> the same shape, and what to add to the loss, ()."""


class Decoder(nn.Module):
    """What makes one feature map a scale of the encoder's features: `decoder(features, gates)`, coarse to fine.

    `gates` holds a module for each skip connection, coarse to fine: `gate(skip, gating)` is of the skip's shape, and
    takes a `gating` of the skip's size or coarser. What gates, and whether skips are concatenated or added, is the
    decoder's choice.
    """

    #: Of each map that comes out, coarse to fine.
    channels: tuple[int, ...]
    strides: Strides


class SegmentationModel(nn.Module, Pretrained):
    """The skeleton. In evaluation mode `model(x)` is the logits (B, classes, *size of x), in training mode a
    `SegmentationOutput` with a map for each scale.

    Arguments:
        encoder, bottleneck, gates, decoder: the parts, see `Encoder`, `Bottleneck`, `Decoder`.
        in_channels: of the image.
        classes: channels of the logits.
        spatial_dims: 2 or 3.
        deep_supervision: False leaves out all heads but the finest; training mode then returns one map.
        config: the keyword arguments that made this model, for `config()`.
    """

    #: By which `create_model` knows the class; `registry.register` sets it.
    model_name: ClassVar[str]

    def __init__(
        self,
        encoder: Encoder,
        bottleneck: Bottleneck,
        gates: Sequence[nn.Module],
        decoder: Decoder,
        *,
        in_channels: int,
        classes: int,
        spatial_dims: int,
        deep_supervision: bool,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.in_channels = positive_integer("in_channels", in_channels)
        self.classes = positive_integer("classes", classes)
        self.spatial_dims = dimensions(spatial_dims)
        self.deep_supervision = deep_supervision
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.gates = nn.ModuleList(gates)
        self.decoder = decoder
        self._multiple = per_axis("strides", encoder.strides[-1], spatial_dims)
        supervised = slice(None) if deep_supervision else slice(-1, None)
        self._strides = [per_axis("strides", stride, spatial_dims) for stride in decoder.strides[supervised]]
        self.heads = nn.ModuleList(
            convolution(channels, classes, spatial_dims, kernel_size=1, bias=True)
            for channels in decoder.channels[supervised]
        )
        # Through JSON and back: what `config` returns is what a file gives, and nothing else gets in.
        self._config = json.loads(json.dumps(dict(config)))

    def forward(self, x: Tensor) -> Tensor | SegmentationOutput:
        """(B, in_channels, *size) -> see the class."""
        return self.all_scales(x) if self.training else self.finest(x)

    def finest(self, x: Tensor) -> Tensor:
        """The logits, whatever the mode; no other head runs."""
        image, decoded, _ = self._decoded(x)
        return _fitted(resize_like(self.heads[-1](decoded[-1]), image), x.shape[2:])

    def all_scales(self, x: Tensor) -> SegmentationOutput:
        """A map for each scale, whatever the mode."""
        _, decoded, auxiliary = self._decoded(x)
        maps = [
            _fitted(head(values), [-(-length // step) for length, step in zip(x.shape[2:], stride, strict=True)])
            for head, values, stride in zip(self.heads, decoded[-len(self.heads) :], self._strides, strict=True)
        ]
        return SegmentationOutput(maps, auxiliary)

    def config(self) -> dict[str, Any]:
        """Plain values from which `create_model(**model.config())` makes such a model again."""
        return {"name": self.model_name, **copy.deepcopy(self._config)}

    def _decoded(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """The padded image, the decoder's features, coarse to fine, and what to add to the loss."""
        x = checks.plain("x", x)
        self._check(x)
        image = padded(x, self._multiple)
        *skips, coarsest = self.encoder(image)
        deepest, auxiliary = self.bottleneck(coarsest)
        return image, self.decoder([*skips, deepest], self.gates), auxiliary

    def _check(self, x: Tensor) -> None:
        axes = "(B, C, H, W)" if self.spatial_dims == 2 else "(B, C, D, H, W)"
        if x.dim() != self.spatial_dims + 2:
            checks.wrong_rank("x", x, f"{axes}, as spatial_dims={self.spatial_dims} says")
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x has {x.shape[1]} channels; this model was made for in_channels={self.in_channels}")
        if 0 in x.shape[2:]:
            raise ValueError(f"x has shape {tuple(x.shape)}; every spatial size must be at least 1")


def _fitted(values: Tensor, size: Sequence[int]) -> Tensor:
    """Cropped, and laid out in memory as before."""
    if values.shape[2:] == tuple(size):
        return values
    return laid_out_like(cropped(values, size), values)

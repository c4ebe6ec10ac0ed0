"""EMCAD (arXiv 2405.06880): a pyramid encoder and an efficient multi-scale attention decoder, wired together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..nn.layers import positive_integer
from .bottlenecks import make_bottleneck
from .convolutional import ConvolutionalEncoder
from .emcad_decoder import KERNELS, EMCADDecoder, initialize
from .gates import make_gates
from .registry import register
from .skeleton import Encoder, SegmentationModel
from .timm_encoder import TimmEncoder

CONVOLUTIONAL = "convolutional"
# Half of PVTv2-B2's at each level.
WIDTHS = (32, 64, 160, 256)


@register("emcad")
class EMCAD(SegmentationModel):
    """EMCAD (arXiv 2405.06880), by default PVT-EMCAD-B2; for 2-D images.

    Known, from the paper and its public code: everything. With PVTv2-B2 and an image of one channel it has the public
    code's 26,764,411 parameters for one class and 26,772,635 for nine, 1,913,515 of them in decoder and gates. An image
    of three channels needs no convolution that makes three of one, 12 parameters less. Maps come out at strides 32, 16,
    8 and 4; for prediction the finest is enlarged.

    Arguments:
        in_channels: of the image.
        classes: channels of the logits, the background's included.
        spatial_dims: 2.
        encoder: the name of any network of timm that has features at strides 4, 8, 16 and 32, "pvt_v2_b2" by default
            (`pip install 'prosma-ops[emcad]'`), or "convolutional": that of `unet`, which needs no timm.
        pretrained: whether timm loads its weights for the encoder. No part of `config()`: weights are saved apart.
        encoder_options: further keyword arguments of `timm.create_model`, {"drop_path_rate": 0.1}, say.
        widths: channels of the four levels of the convolutional encoder.
        kernels: sizes of the depthwise convolutions that stand side by side, odd.
        norm: of decoder, gates and convolutional encoder: "batch", "instance" or "group".
        gate, gate_options, bottleneck, bottleneck_options: as `UNet` takes them; "large_kernel" is EMCAD's gate.
        deep_supervision: False leaves out all heads but the finest; training mode then returns one map.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        spatial_dims: int = 2,
        encoder: str = "pvt_v2_b2",
        pretrained: bool = False,
        encoder_options: Mapping[str, Any] | None = None,
        widths: Sequence[int] = WIDTHS,
        kernels: Sequence[int] = KERNELS,
        norm: str = "batch",
        gate: str = "large_kernel",
        gate_options: Mapping[str, Any] | None = None,
        bottleneck: str = "none",
        bottleneck_options: Mapping[str, Any] | None = None,
        deep_supervision: bool = True,
    ) -> None:
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims is {spatial_dims!r}; emcad is for 2")
        positive_integer("in_channels", in_channels)
        if encoder == CONVOLUTIONAL:
            _no_options(pretrained, encoder_options)
            features = _convolutional(in_channels, widths, norm)
        else:
            features = TimmEncoder(encoder, in_channels, pretrained=pretrained, options=encoder_options)
        skips = features.channels[-2::-1]
        gates = make_gates(gate, skips, skips, spatial_dims=2, norm=norm, options=gate_options)
        decoder = EMCADDecoder(features, kernels=_kernels(kernels), norm=norm)
        if gate == "large_kernel":
            initialize(*gates)
        initialize(decoder)
        super().__init__(
            features,
            make_bottleneck(bottleneck, features.channels[-1], spatial_dims=2, options=bottleneck_options),
            gates,
            decoder,
            in_channels=in_channels,
            classes=classes,
            spatial_dims=2,
            deep_supervision=deep_supervision,
            config={
                "in_channels": in_channels,
                "classes": classes,
                "spatial_dims": 2,
                "encoder": encoder,
                "encoder_options": dict(encoder_options or {}),
                "widths": list(widths),
                "kernels": list(kernels),
                "norm": norm,
                "gate": gate,
                "gate_options": dict(gate_options or {}),
                "bottleneck": bottleneck,
                "bottleneck_options": dict(bottleneck_options or {}),
                "deep_supervision": deep_supervision,
            },
        )


def _convolutional(in_channels: int, widths: Sequence[int], norm: str) -> Encoder:
    """Four levels at strides 4, 8, 16 and 32; the first has kernels of 7, as stems of stride 4 have."""
    found = [positive_integer("widths", width) for width in widths]
    if len(found) != 4:
        raise ValueError(f"widths is {tuple(widths)}; it must have 4 entries, one a level")
    strides, kernels = ((4, 4), (2, 2), (2, 2), (2, 2)), ((7, 7), (3, 3), (3, 3), (3, 3))
    return ConvolutionalEncoder(in_channels, found, strides, kernels, norm=norm)


def _no_options(pretrained: bool, options: Mapping[str, Any] | None) -> None:
    for name, value in (("pretrained", pretrained), ("encoder_options", options)):
        if value:
            raise ValueError(f"{name} is {value!r}, but encoder='convolutional' is not timm's; leave it out")


def _kernels(kernels: Sequence[int]) -> tuple[int, ...]:
    found = tuple(positive_integer("kernels", size) for size in kernels)
    if not found or any(size % 2 == 0 for size in found):
        raise ValueError(f"kernels is {found}; it must hold one odd number or more")
    return found

"""TransUNet (arXiv 2102.04306): ResNet stages, a transformer on their coarsest features, and a cascaded up-sampler.

values = conv(transformer output)                               3x3, to 512 channels, at stride 16
level  = two 3x3 convolutions of concat(enlarge(values), skip)  to 256, 128 and 64, with skips of strides 8, 4 and 2
level  = two 3x3 convolutions of enlarge(values)                to 16, at the image's own size, where no skip is
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.layers import number, positive_integer
from ..ops import checks
from .gates import make_gates
from .layers import ConvolutionBlock
from .registry import register
from .residual_encoder import ResidualEncoder
from .skeleton import Decoder, SegmentationModel
from .timm_encoder import import_timm
from .vision_transformer import TransformerBottleneck, interpolated

#: The sizes of every part, by preset; each is an argument of its own too.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "stem": 16,
        "blocks": (1, 1, 1),
        "width": 192,
        "layers": 4,
        "heads": 3,
        "hidden": 384,
        "entry": 128,
        "widths": (64, 32, 16, 16),
    },
    "large": {
        "stem": 64,
        "blocks": (3, 4, 9),
        "width": 768,
        "layers": 12,
        "heads": 12,
        "hidden": 3072,
        "entry": 512,
        "widths": (256, 128, 64, 16),
    },
}
#: What `pretrained=True` stands for: ResNet-50 and ViT-B/16 trained on ImageNet-21k, as in the paper.
PRETRAINED = "vit_base_r50_s16_224.orig_in21k"
# The beginnings of timm's names and of ours; what follows is equal.
NAMES = {
    "patch_embed.backbone.": "encoder.",
    "patch_embed.proj.": "bottleneck.proj.",
    "pos_embed": "bottleneck.pos_embed",
    "blocks.": "bottleneck.blocks.",
    "norm.": "bottleneck.norm.",
}
STEM = "encoder.stem.conv.weight"
POSITION = "bottleneck.pos_embed"


class LoadedWeights(NamedTuple):
    """What `TransUNet.load_timm_weights` did."""

    #: Parameters of the encoder and the transformer that were given new values.
    loaded: list[str]
    #: Those that no weight was there for.
    missing: list[str]
    #: Weights that nothing here fits, by timm's names: the classifier, the class token, other shapes.
    unused: list[str]


class CascadedDecoder(Decoder):
    """The cascaded up-sampler. The features that gate a skip connection are those before they are enlarged.

    Arguments:
        encoder: its features but the coarsest are the skip connections.
        inputs: channels of the bottleneck's result.
        entry: channels after the first convolution.
        widths: of each level, coarse to fine: one more than there are skip connections.
        norm: "batch", "instance" or "group".
    """

    def __init__(
        self, encoder: ResidualEncoder, inputs: int, entry: int, widths: Sequence[int], *, norm: str = "batch"
    ) -> None:
        super().__init__()
        skips = (*encoder.channels[-2::-1], 0)  # none at the image's own size
        self.channels = tuple(widths)
        self.strides = (*encoder.strides[-2::-1], 1)
        self.entry = ConvolutionBlock(inputs, entry, 2, convolutions=1, norm=norm)
        self.levels = nn.ModuleList(
            ConvolutionBlock(coarse + skip, fine, 2, norm=norm)
            for (coarse, fine), skip in zip(pairwise((entry, *widths)), skips, strict=True)
        )

    def forward(self, features: Sequence[Tensor], gates: Sequence[nn.Module]) -> list[Tensor]:
        *skips, values = features
        values = self.entry(values)
        decoded = []
        for level, skip, gate in zip_longest(self.levels, skips[::-1], gates):
            enlarged = F.interpolate(values, scale_factor=2.0, mode="bilinear", align_corners=False)
            values = level(enlarged if skip is None else torch.cat([enlarged, gate(skip, values)], dim=1))
            decoded.append(values)
        return decoded


@register("trans_unet")
class TransUNet(SegmentationModel):
    """TransUNet (arXiv 2102.04306), R50-ViT-B/16 by default; for 2-D images.

    Known, from the paper and its public code: all parts and their sizes; without its heads this model has the
    105,275,776 parameters of the public one. Different here: a head for each scale, 1x1 (the public code has one, 3x3,
    at the finest); enlarging does not align corners; the position embedding is interpolated for any size of image, and
    the normalization after a block's 1x1 shortcut has 32 groups, as in the weights that ViT was published with, where
    the public code has one a channel. Trained there with SGD, learning rate 0.01, momentum 0.9, polynomial decay.

    Arguments:
        in_channels: of the image.
        classes: channels of the logits, the background's included.
        spatial_dims: 2.
        preset: "small" or "large" (R50-ViT-B/16), the sizes of everything below.
        stem: channels of the features at stride 2; stages have 4, 8 and 16 times as many.
        blocks: of each stage.
        width, layers, heads, hidden: of the transformer, see `TransformerBottleneck`.
        entry: channels of the up-sampler's first convolution.
        widths: of its levels, coarse to fine, one more than stages.
        image_size: the size of square images that the position embedding is learned for.
        dropout: in the transformer.
        norm: of the up-sampler; encoder and transformer have group and layer normalization.
        gate, gate_options: on the skip connections, see `UNet`.
        pretrained: True, or the name of a hybrid transformer of timm, loads its weights as `load_timm_weights` does.
        deep_supervision: False leaves out all heads but the finest; training mode then returns one map.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        spatial_dims: int = 2,
        preset: str = "large",
        stem: int | None = None,
        blocks: Sequence[int] | None = None,
        width: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        entry: int | None = None,
        widths: Sequence[int] | None = None,
        image_size: int = 224,
        dropout: float = 0.1,
        norm: str = "batch",
        gate: str = "none",
        gate_options: Mapping[str, Any] | None = None,
        pretrained: bool | str = False,
        deep_supervision: bool = True,
    ) -> None:
        checks.choice("preset", preset, tuple(PRESETS))
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims is {spatial_dims!r}; trans_unet is for 2")
        asked = {
            "stem": stem,
            "blocks": blocks,
            "width": width,
            "layers": layers,
            "heads": heads,
            "hidden": hidden,
            "entry": entry,
            "widths": widths,
        }
        sizes = {name: _positive(name, PRESETS[preset][name] if own is None else own) for name, own in asked.items()}
        if len(sizes["widths"]) != len(sizes["blocks"]) + 1:
            raise ValueError(
                f"widths is {sizes['widths']}; it must have {len(sizes['blocks']) + 1}, one more than blocks"
            )
        encoder = ResidualEncoder(positive_integer("in_channels", in_channels), sizes["stem"], sizes["blocks"])
        stride = encoder.strides[-1]
        side = -(-positive_integer("image_size", image_size) // stride)
        transformer = {name: sizes[name] for name in ("width", "layers", "heads", "hidden")}
        super().__init__(
            encoder,
            TransformerBottleneck(
                encoder.channels[-1], (side, side), dropout=number("dropout", dropout, largest=1), **transformer
            ),
            make_gates(
                gate,
                encoder.channels[-2::-1],
                (sizes["entry"], *sizes["widths"][:-2]),
                spatial_dims=2,
                norm=norm,
                options=gate_options,
            ),
            CascadedDecoder(encoder, sizes["width"], sizes["entry"], sizes["widths"], norm=norm),
            in_channels=in_channels,
            classes=classes,
            spatial_dims=2,
            deep_supervision=deep_supervision,
            config={
                "in_channels": in_channels,
                "classes": classes,
                "spatial_dims": 2,
                **{name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()},
                "image_size": image_size,
                "dropout": dropout,
                "norm": norm,
                "gate": gate,
                "gate_options": dict(gate_options or {}),
                "deep_supervision": deep_supervision,
            },
        )
        if pretrained:
            source = PRETRAINED if pretrained is True else pretrained
            self.load_timm_weights(import_timm().create_model(source, pretrained=True).state_dict())

    def load_timm_weights(self, weights: Mapping[str, Tensor]) -> LoadedWeights:
        """Take what fits, by name, from the state_dict of a vision transformer of timm.

        `vit_base_r50_s16_224` and `_384` fill the encoder and the transformer, `vit_base_patch16_224` and its like the
        transformer's layers. The position embedding is interpolated; its entry for the class token has no use here.
        Images of one channel are seen as grey ones; the channels of others than colour images get the weights of the
        colours in turn.
        """
        own = {
            name: values for name, values in self.state_dict().items() if not name.startswith(("decoder.", "heads."))
        }
        found: dict[str, Tensor] = {}
        unused = []
        for name, values in weights.items():
            ours = _our_name(name)
            fitted = self._fitted_weight(ours, values)
            if ours in own and fitted.shape == own[ours].shape:
                found[ours] = fitted
            else:
                unused.append(name)
        self.load_state_dict(found, strict=False)
        missing = [name for name in own if name not in found]
        return LoadedWeights(sorted(found), missing, unused)

    def _fitted_weight(self, name: str, values: Tensor) -> Tensor:
        if name == POSITION and values.dim() == 3:
            return self._fitted_position(values)
        if name == STEM and self.in_channels > 1:
            return values[:, [channel % values.shape[1] for channel in range(self.in_channels)]]
        return values

    def _fitted_position(self, values: Tensor) -> Tensor:
        """Square grids, with an entry for the class token before them or without."""
        side = int(values.shape[1] ** 0.5)
        bottleneck = self.bottleneck
        assert isinstance(bottleneck, TransformerBottleneck)
        return interpolated(values[:, values.shape[1] - side * side :], (side, side), bottleneck.grid)


def _our_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _positive(name: str, value: Any) -> Any:
    """A positive integer, or a tuple of them where the preset has one."""
    if isinstance(PRESETS["large"][name], tuple):
        return tuple(positive_integer(name, each) for each in value)
    return positive_integer(name, value)

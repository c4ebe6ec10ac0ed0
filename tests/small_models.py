"""Each convolutional model by name, as small as it can be and still have every part, with images and losses for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prosma_ops.models import SegmentationModel, SegmentationOutput, create_model

CHANNELS, CLASSES = 2, 3
CODEBOOK = {"codes": 8, "dim": 8}
# Some hidden features in the gates: of a few, which is what the usual share of so few channels is, all may be dead.
OPTIONS: dict[str, dict[str, Any]] = {
    "unet": {},
    "attention_unet": {"gate_options": {"hidden": 4}},
    "prosma_unet": {"gate_options": {"dilations": [1, 2], "reduction": 1}},
    "vq_unet": {"bottleneck_options": CODEBOOK},
    "synergy_net": {"bottleneck_options": CODEBOOK | {"heads": 2}},
    "l2g_net": {"bottleneck_options": CODEBOOK | {"supports": 5, "heads": 2, "iterations": 5}},
}
CONVOLUTIONAL = tuple(OPTIONS)


def made(name: str, spatial_dims: int = 2, **changes: Any) -> SegmentationModel:
    torch.manual_seed(0)
    options: Mapping[str, Any] = {"widths": (4, 6, 8), **OPTIONS[name], **changes}
    return create_model(name, in_channels=CHANNELS, classes=CLASSES, spatial_dims=spatial_dims, **options)


def images(*size: int, batch: int = 2, **kind: Any) -> Tensor:
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(1), **kind)


def labels(*size: int, batch: int = 2) -> Tensor:
    return torch.randint(0, CLASSES, (batch, *size), generator=torch.Generator().manual_seed(2))


def loss_of(output: SegmentationOutput, target: Tensor) -> Tensor:
    """Cross-entropy of each map, enlarged, and what the model adds."""
    size = target.shape[1:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    losses = [F.cross_entropy(F.interpolate(values, size=size, mode=mode), target) for values in output.logits]
    return sum(losses, output.auxiliary)

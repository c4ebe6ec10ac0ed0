"""A small U-shaped network with a map at each level of its decoder: what a loss costs beside a whole training step."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 128)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each normalized and rectified."""
    layers: list[nn.Module] = []
    for first in (inputs, outputs):
        layers += [nn.Conv2d(first, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """(B, 1, H, W) -> logits (B, classes, H / 2^l, W / 2^l), coarse to fine."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(block(*pair) for pair in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True))
        falling = WIDTHS[::-1]
        self.decoder = nn.ModuleList(block(coarse + fine, fine) for coarse, fine in pairwise(falling))
        self.heads = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in falling)

    def forward(self, image: Tensor) -> list[Tensor]:
        features, kept = image, []
        for number, stage in enumerate(self.encoder):
            features = stage(F.max_pool2d(features, 2) if number else features)
            kept.append(features)
        maps = [self.heads[0](kept.pop())]
        for stage, head in zip(self.decoder, self.heads[1:], strict=True):
            skip = kept.pop()
            features = stage(torch.cat([F.interpolate(features, size=skip.shape[2:], mode="bilinear"), skip], dim=1))
            maps.append(head(features))
        return maps

"""Training with LoMix works: a small U-shaped network, four levels, generated images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prosma_ops.nn import DiceLoss, MixedLogitLoss

CLASSES, SIZE, BATCH, STEPS = 3, 32, 4, 500
WIDTHS = (8, 12, 16, 24)


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU())


class SmallUNet(nn.Module):
    """Logits from each level of the decoder, coarse to fine."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([block(a, b) for a, b in zip((1, *WIDTHS), WIDTHS, strict=False)])
        self.decoder = nn.ModuleList([block(a + b, b) for a, b in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)])
        self.heads = nn.ModuleList([nn.Conv2d(width, CLASSES, 1) for width in WIDTHS[::-1]])

    def forward(self, values: Tensor) -> list[Tensor]:
        features = []
        for number, layer in enumerate(self.encoder):
            values = layer(F.max_pool2d(values, 2) if number else values)
            features.append(values)
        decoded = [features.pop()]
        for layer in self.decoder:
            decoded.append(layer(torch.cat([F.interpolate(decoded[-1], scale_factor=2), features.pop()], 1)))
        return [head(values) for head, values in zip(self.heads, decoded, strict=True)]


def images(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A disc and a square, each of its own brightness, in noise."""
    grid = torch.arange(SIZE)
    centre = torch.randint(8, SIZE - 8, (2, BATCH, 2), generator=generator)
    radius = torch.randint(4, 8, (2, BATCH, 1, 1), generator=generator)
    rows = (grid.reshape(1, 1, SIZE, 1) - centre[..., :1, None]).abs()
    columns = (grid.reshape(1, 1, 1, SIZE) - centre[..., 1:, None]).abs()
    disc = rows[0].square() + columns[0].square() <= radius[0].square()
    square = torch.maximum(rows[1], columns[1]) <= radius[1]
    target = torch.where(square, 2, disc.long())
    brightness = torch.tensor([0.0, 1.0, -1.0])[target]
    return (brightness + 0.5 * torch.randn(BATCH, SIZE, SIZE, generator=generator)).unsqueeze(1), target


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["softplus", "normalized", "fixed"])
def test_a_network_learns(weights: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network, loss = SmallUNet(), MixedLogitLoss(4, CLASSES, weights=weights)
    parameters = [*network.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01 if weights == "fixed" else 0.015, momentum=0.9)
    dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False)
    losses, overlaps = [], []
    for _ in range(STEPS):
        values, target = images(generator)
        maps = network(values)
        value = loss(maps, target)
        assert value.isfinite()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
        overlaps.append(dice(maps[-1].detach(), target).item())
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    assert sum(overlaps[-20:]) < 0.4 * sum(overlaps[:20])
    found = list(loss.weights().values())
    if weights == "fixed":
        assert set(found) == {1.0}
    else:
        assert max(found) - min(found) >= 0.05, loss.weights()

"""Generated images on which a skip connection has something to remove, and how networks are trained on them.

An organ, a bright ellipse, may hold lesions, small brighter discs. Discs just like them lie outside, and are nothing:
what a lesion is, is known only from afar. Labels: 0 background, 1 organ, 2 lesion. Everything in noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prosma_ops.nn import DeepSupervisionLoss, DiceCELoss

CLASSES, SIZE = 3, 64
DISCS, RADIUS, NOISE = 6, 3.0, 0.4


def generated(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, 1, SIZE, SIZE) images and their labels (count, 1, SIZE, SIZE)."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, 1, 1, generator=generator)

    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    across, down = uniform(12, 20), uniform(12, 20)
    row, column = uniform(24, SIZE - 24), uniform(24, SIZE - 24)
    organ = ((rows - row) / down).square() + ((columns - column) / across).square() <= 1
    offsets = (rows - uniform(4, SIZE - 4, DISCS)).square() + (columns - uniform(4, SIZE - 4, DISCS)).square()
    discs = (offsets <= RADIUS**2).any(dim=1)
    labels = organ.long() + (organ & discs).long()
    image = 0.8 * organ.float() + 0.8 * discs.float()
    noise = torch.randn(image.shape, generator=generator)
    return (image + NOISE * noise).unsqueeze(1), labels.unsqueeze(1)


def train(model: nn.Module, steps: int, seed: int, batch: int = 8) -> float:
    """By Dice and cross-entropy at every scale; the mean loss of the last tenth of the steps."""
    generator = torch.Generator().manual_seed(seed)
    loss = DeepSupervisionLoss(DiceCELoss(softmax=True, to_onehot_y=True, batch=True), resize="logits")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    losses = []
    model.train()
    for _ in range(steps):
        images, labels = generated(batch, generator)
        output = model(images)
        value = loss(output.logits, labels) + output.auxiliary
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


@torch.no_grad()
def dice(model: nn.Module, count: int = 64, seed: int = 10_000) -> list[float]:
    """Of organ and lesion, over images that no training has seen."""
    images, labels = generated(count, torch.Generator().manual_seed(seed))
    found = F.one_hot(model.eval()(images).argmax(1), CLASSES).double()
    actual = F.one_hot(labels[:, 0], CLASSES).double()
    both, total = (found * actual).sum((0, 1, 2)), (found + actual).sum((0, 1, 2))
    return (2 * both / total)[1:].tolist()

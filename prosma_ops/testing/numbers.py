"""Numbers for cases: drawn on the CPU from a fixed seed, so that every device and machine compares the same ones.

Elementwise comparisons of gradients must not hang on which side of the threshold a rounding error puts z. So:

grid     q, weight and bias are small integers times a power of two. Their products and sums are exact, not only in
         float32: |z| below 256 units is exact in bfloat16 as well, and 27 or 81 taps rarely pass that and never near
         a threshold. Thresholds lie half a unit between the points. Then no implementation, eager bfloat16 included,
         can flip, and its error stays a yardstick.
exact    the same, and skip, gate and incoming gradient are one of seven small numbers: then every product and every sum
         of up to some thousand terms is exact in float32, and so are the gradients (but not those through tanh). For
         single sums, which may cancel to anything and then have no scale to be judged by.
normal   normally distributed; each threshold is put into the widest gap between the |z| of its channel around their
         median, found in float64.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

UNIT = 1 / 64  # of z on the grid: fields come in quarters, weights in sixteenths


def generator(*key: object) -> torch.Generator:
    """Seeded by what the case is, so that adding a case leaves the numbers of the others."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def grid(shape: tuple[int, ...], step: float, largest: int, random: torch.Generator) -> Tensor:
    """Integers from -largest to largest, times step."""
    return torch.randint(-largest, largest + 1, shape, generator=random).to(torch.float64) * step


def normal(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def between_grid_points(channels: int, random: torch.Generator) -> Tensor:
    """Thresholds at half units, 0.5 to 31.5: below, at and above the usual |z|; exact in bfloat16."""
    return (torch.randint(0, 32, (channels,), generator=random).to(torch.float64) + 0.5) * UNIT


def in_widest_gap(z: Tensor) -> Tensor:
    """One threshold a channel: the middle of the widest gap among the central half of |z|."""
    magnitudes = z.abs().transpose(0, 1).flatten(1).sort(dim=1).values
    count = magnitudes.shape[1]
    if count < 4:
        return magnitudes.mean(dim=1) * 0.75
    central = magnitudes[:, count // 4 : count - count // 4]
    gaps = central.diff(dim=1)
    widest = gaps.argmax(dim=1, keepdim=True)
    return (central.gather(1, widest) + central.gather(1, widest + 1)).squeeze(1) / 2

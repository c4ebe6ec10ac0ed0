"""The sweeps of proximal_gate. Channels are independent, so large fields are repetitions of a few channels.

Extents are multiples of 7: then no period of the repetition divides 2^31, and an offset that overflowed would find
other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from prosma_ops import proximal_gate
from prosma_ops.testing import Problem
from prosma_ops.testing.proximal_gate import Shape, eager, problem

from . import SMALL_SIZES, THREADS
from .sweep import Point, Sweep, against_eager
from .tiling import Tiling

DILATIONS = (1, 2, 3)
AXES = {"field": 1, "weight": 1, "threshold": 0, "skip": 1, "channel_gate": 1}


def build(dilations: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
    return problem(Shape("sweep", size, dilations, missing=("bias",)), "contiguous", dtype, device)


def point(
    value: float,
    size: tuple[int, ...],
    training: bool = True,
    dilations: tuple[int, ...] = DILATIONS,
    threads: int | None = None,
    **options: Any,
) -> Point:
    tiling = Tiling(partial(build, dilations), 1, AXES, {"result": 1})
    elements, taps = math.prod(size), 1 + len(set(dilations)) * (3 ** (len(size) - 2) - 1)
    tensors = (6 if training else 3) * elements * 4
    return against_eager(
        value,
        tiling,
        proximal_gate,
        eager,
        name=f"{'forward + backward' if training else 'forward'}, {'x'.join(map(str, size))}, dilations {dilations}",
        size=size,
        training=training,
        moved_bytes=(8 if training else 3) * elements * 4,
        multiply_adds=(4 if training else 1) * taps * elements,
        tensors=tensors,
        intermediate=2 * tensors,
        threads=threads,
        **options,
    )


def extents(batch: int, channels: int, spatial: Sequence[int], rank: int, training: bool) -> list[Point]:
    sizes = [(batch, channels, *(extent,) * rank) for extent in spatial]
    return [point(math.prod(size), size, training) for size in sizes]


def sweeps(threads: Sequence[int]) -> list[Sweep]:
    both, reach = "forward + backward", range(1, 7)
    return [
        Sweep(
            "size, 2-D, forward",
            "elements of the field",
            extents(1, 96, (56, 112, 224, 448, 896, 1792, 3584), 2, False),
            "forward, 1x96xs^2, dilations 1, 2, 3",
            short=True,
        ),
        Sweep(
            "size, 2-D",
            "elements of the field",
            extents(1, 96, (56, 112, 224, 448, 896, 1792), 2, True),
            f"{both}, 1x96xs^2, dilations 1, 2, 3",
            memory=True,
            short=True,
        ),
        Sweep(
            "size, 3-D",
            "elements of the field",
            extents(1, 24, (14, 28, 56, 112, 224), 3, True),
            f"{both}, 1x24xs^3, dilations 1, 2, 3",
        ),
        Sweep("batch", "batch", [point(b, (b, 96, 56, 56)) for b in (1, 4, 16, 64)], f"{both}, Bx96x56^2"),
        Sweep("channels", "channels", [point(c, (4, c, 56, 56)) for c in (6, 24, 96, 384, 1536)], f"{both}, 4xCx56^2"),
        Sweep(
            "dilations",
            "number of dilations",
            [point(n, (4, 48, 112, 112), dilations=tuple(range(1, n + 1))) for n in reach],
            f"{both}, 4x48x112^2, dilations 1, 2, ...",
        ),
        Sweep(
            "distance",
            "d of dilations d, 2d, 3d",
            [point(d, (4, 48, 112, 112), dilations=(d, 2 * d, 3 * d)) for d in (1, 2, 4, 8, 16)],
            f"{both}, 4x48x112^2",
        ),
        Sweep(
            THREADS,
            "threads",
            [point(count, (4, 64, 112, 112), threads=count) for count in threads],
            f"{both}, 4x64x112^2",
            short=True,
        ),
        Sweep(
            SMALL_SIZES,
            "elements of the field",
            [point(2 * s * s, (1, 2, s, s), False, calls=100) for s in (4, 8, 16, 32, 64)],
            "forward, 1x2xs^2, no gradient",
            short=True,
        ),
    ]

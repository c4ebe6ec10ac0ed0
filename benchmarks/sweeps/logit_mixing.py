"""The sweeps of mixed_logit_statistics. Images are independent: large batches repeat a few, and their sums multiply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from prosma_ops import mixed_logit_statistics
from prosma_ops.testing import Problem
from prosma_ops.testing.logit_mixing import ALL, Shape, by_name, eager, problem

from . import SMALL_SIZES, THREADS
from .sweep import Point, Sweep, against_eager
from .tiling import Tiling


def build(
    strides: tuple[int, ...],
    operators: tuple[str, ...],
    size: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Problem:
    """Levels of the size over each stride."""
    levels = tuple(tuple(max(1, extent // stride) for extent in size[2:]) for stride in strides)
    return problem(Shape("sweep", size, levels, operators), "contiguous", dtype, device)


def point(
    value: float,
    size: tuple[int, ...],
    strides: tuple[int, ...] = (1,),
    training: bool = True,
    threads: int | None = None,
    **options: Any,
) -> Point:
    """One level: its own sums. Several: LoMix of them."""
    operators = ALL if len(strides) > 1 else ()
    names = [f"level{number}" for number in range(len(strides))]
    tiling = Tiling(partial(build, strides, operators), 0, dict.fromkeys((*names, "target"), 0))
    pixels, classes, levels = size[0] * math.prod(size[2:]), size[1], len(strides)
    logits = sum(size[0] * classes * math.prod(extent // stride for extent in size[2:]) for stride in strides)
    # As benchmarks/logit_mixing.py counts them: 37 C + 28 at four levels.
    products = 2**levels - levels - 1
    of_a_pixel = classes * (levels + 3 * products) + (levels * 2 ** (levels - 1) - levels)
    passes = 2 if training else 1
    return against_eager(
        value,
        tiling,
        by_name(mixed_logit_statistics),
        by_name(eager),
        name=f"{maps_of(levels)} maps, {'x'.join(map(str, size))}{', forward + backward' if training else ''}",
        size=size,
        training=training,
        moved_bytes=(3 if training else 1) * logits * 4 + passes * pixels * torch.int64.itemsize,
        exponentials=passes * pixels * of_a_pixel,
        tensors=passes * logits * 4 + pixels * torch.int64.itemsize,
        intermediate=8 * maps_of(levels) * pixels * classes * 4,
        threads=threads,
        **options,
    )


def maps_of(levels: int) -> int:
    return levels + len(ALL) * (2**levels - levels - 1)


STRIDES = (32, 16, 8, 4)


def sweeps(threads: Sequence[int]) -> list[Sweep]:
    return [
        Sweep(
            "size, one map",
            "pixels",
            [point(b * 224**2, (b, 9, 224, 224)) for b in (1, 4, 16, 64, 256, 1024, 2560)],
            "one map, forward + backward, Bx9x224^2",
            memory=True,
            short=True,
        ),
        Sweep(
            "size, LoMix",
            "pixels",
            [point(2 * s * s, (2, 9, s, s), STRIDES) for s in (56, 112, 224, 448, 896)],
            "LoMix, 48 maps, forward + backward, 2x9xs^2 from s/32 to s/4",
            memory=True,
            short=True,
        ),
        Sweep(
            "batch, LoMix",
            "batch",
            [point(b, (b, 9, 112, 112), STRIDES) for b in (1, 4, 16, 64)],
            "LoMix, 48 maps, forward + backward, Bx9x112^2",
        ),
        Sweep(
            "classes, one map",
            "classes",
            [point(c, (2, c, 224, 224)) for c in (2, 4, 9, 16, 32, 64)],
            "one map, forward + backward, 2xCx224^2",
        ),
        Sweep(
            "classes, LoMix",
            "classes",
            [point(c, (2, c, 112, 112), STRIDES) for c in (2, 4, 9, 16, 32)],
            "LoMix, 48 maps, forward + backward, 2xCx112^2",
        ),
        Sweep(
            "levels",
            "maps of 1 to 5 levels",
            [
                point(maps_of(levels), (2, 9, 112, 112), STRIDES[:levels] + (2,) * (levels > 4))
                for levels in range(1, 6)
            ],
            "LoMix, forward + backward, 2x9x112^2",
        ),
        Sweep(
            THREADS,
            "threads",
            [point(count, (2, 9, 224, 224), STRIDES, threads=count) for count in threads],
            "LoMix, 48 maps, forward + backward, 2x9x224^2",
            short=True,
        ),
        Sweep(
            SMALL_SIZES,
            "pixels",
            [point(s * s, (1, 2, s, s), training=False, calls=50) for s in (4, 8, 16, 32, 64)],
            "one map, forward, 1x2xs^2, no gradient",
            short=True,
        ),
    ]

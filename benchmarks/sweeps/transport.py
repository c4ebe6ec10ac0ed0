"""The sweeps of transport_plan and transport_align. Images are independent: large batches are repetitions of a few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from prosma_ops import transport_align, transport_plan
from prosma_ops.testing.transport import eager_plan

from ..transport import align_problem, eager_aligned, plan_problem
from . import SMALL_SIZES, THREADS
from .sweep import Point, Sweep, against_eager
from .tiling import Tiling

ITERATIONS, EPSILON = 20, 0.5


def plan(
    value: float,
    size: tuple[int, int, int],
    training: bool = True,
    iterations: int = ITERATIONS,
    threads: int | None = None,
    **options: Any,
) -> Point:
    tiling = Tiling(partial(plan_problem, EPSILON, iterations), 0, {"scores": 0}, {"result": 0})
    entries = size[0] * size[1] * size[2]
    return against_eager(
        value,
        tiling,
        transport_plan,
        eager_plan,
        name=f"plan, {'forward + backward' if training else 'forward'}, {'x'.join(map(str, size))}, {iterations}",
        size=size,
        training=training,
        moved_bytes=(5 if training else 2) * entries * 4,
        multiply_adds=(7 if training else 2) * iterations * entries,
        tensors=(4 if training else 2) * entries * 4,
        # Autograd keeps two tensors of the scores' size a half step.
        intermediate=(4 * iterations if training else 3) * entries * 4,
        threads=threads,
        **options,
    )


def align(value: float, size: tuple[int, int, int], features: int = 64, iterations: int = 10) -> Point:
    tiling = Tiling(partial(align_problem, features, iterations), 0, {"tokens": 0}, {"result": 0})
    batch, rows, columns = size
    entries, tokens = batch * rows * columns, batch * rows * features
    return against_eager(
        value,
        tiling,
        transport_align,
        eager_aligned,
        name=f"align, forward + backward, {'x'.join(map(str, size))}, {features} features",
        size=size,
        training=True,
        moved_bytes=3 * tokens * 4,
        multiply_adds=7 * (iterations + features) * entries,
        tensors=4 * (2 * tokens + 2 * batch * columns * features),
        intermediate=4 * (4 * iterations + 4) * entries,
    )


def sweeps(threads: Sequence[int]) -> list[Sweep]:
    both, twenty = "forward + backward", f"epsilon {EPSILON}, {ITERATIONS} iterations"
    return [
        Sweep(
            "size, forward",
            "entries of the plans",
            [plan(b * 784 * 512, (b, 784, 512), False) for b in (1, 4, 16, 64, 256, 1024, 4096)],
            f"plan, forward, Bx784x512, {twenty}",
            short=True,
        ),
        Sweep(
            "tokens",
            "tokens",
            [plan(n, (16, n, 512)) for n in (49, 196, 784, 3136, 12544)],
            f"plan, {both}, 16xnx512, {twenty}",
            memory=True,
            short=True,
        ),
        Sweep(
            "supports",
            "supports",
            [plan(p, (16, 196, p)) for p in (16, 64, 256, 1024, 4096)],
            f"plan, {both}, 16x196xp, {twenty}",
        ),
        Sweep(
            "batch",
            "batch",
            [plan(b, (b, 196, 512)) for b in (1, 4, 16, 64, 256)],
            f"plan, {both}, Bx196x512, {twenty}",
        ),
        Sweep(
            "iterations",
            "iterations",
            [plan(count, (16, 196, 512), iterations=count) for count in (5, 10, 20, 40, 80, 160)],
            f"plan, {both}, 16x196x512, epsilon {EPSILON}",
        ),
        Sweep(
            "align, tokens",
            "tokens",
            [align(n, (4, n, 512)) for n in (196, 784, 3136, 12544)],
            f"align, {both}, 4xnx512, 64 features, 10 iterations",
            memory=True,
        ),
        Sweep(
            "align, features",
            "features",
            [align(dim, (4, 784, 512), dim) for dim in (16, 32, 64, 128, 256)],
            f"align, {both}, 4x784x512, 10 iterations",
        ),
        Sweep(
            THREADS,
            "threads",
            [plan(count, (16, 196, 512), threads=count) for count in threads],
            f"plan, {both}, 16x196x512, {twenty}",
            short=True,
        ),
        Sweep(
            SMALL_SIZES,
            "entries of the plan",
            [plan(n * n, (1, n, n), False, 5, calls=50) for n in (4, 8, 16, 32, 64)],
            "plan, forward, 1xnxn, 5 iterations, no gradient",
            short=True,
        ),
    ]

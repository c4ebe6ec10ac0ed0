"""The sweeps of nearest_code and code_statistics. Tokens are independent: large numbers of them repeat a few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from prosma_ops import code_statistics, nearest_code
from prosma_ops.testing.codebook import eager, eager_statistics

from .. import codebook as races
from . import SMALL_SIZES, THREADS
from .sweep import Point, Sweep, against_eager
from .tiling import Tiling


def nearest(
    value: float,
    tokens: int,
    features: int,
    codes: int,
    training: bool = False,
    threads: int | None = None,
    **options: Any,
) -> Point:
    build = partial(races.build, "euclidean", codes=codes)
    tiling = Tiling(build, 0, {"tokens": 0}, {"quantized": 0, "index": 0})
    moved = (3 if training else 2) * tokens * features * 4
    return against_eager(
        value,
        tiling,
        nearest_code,
        eager,
        name=f"nearest code{' and its gradient' if training else ''}, {tokens}x{features}, {codes} codes",
        size=(tokens, features),
        training=training,
        moved_bytes=moved,
        multiply_adds=tokens * features * codes,
        tensors=moved + 8 * tokens,
        intermediate=2 * tokens * codes * 4,
        threads=threads,
        **options,
    )


def statistics(value: float, tokens: int, features: int = 256) -> Point:
    tiling = Tiling(races.build_statistics, 0, {"tokens": 0, "index": 0})
    return against_eager(
        value,
        tiling,
        code_statistics,
        eager_statistics,
        name=f"statistics, {tokens}x{features}, {races.CODES} codes",
        size=(tokens, features),
        moved_bytes=tokens * features * 4,
        tensors=tokens * (features * 4 + 8),
        intermediate=2 * tokens * races.CODES * 4,
    )


def sweeps(threads: Sequence[int]) -> list[Sweep]:
    counts = [784 * 4**step for step in range(7)]
    return [
        Sweep(
            "size",
            "tokens",
            [nearest(n, n, 64, 512) for n in counts],
            "nearest code, 64 features, 512 codes",
            memory=True,
            short=True,
        ),
        Sweep(
            "size, with its gradient",
            "tokens",
            [nearest(n, n, 64, 512, True) for n in counts[:6]],
            "nearest code and the codebook's gradient, 64 features, 512 codes",
        ),
        Sweep(
            "size, statistics",
            "tokens",
            [statistics(n, n) for n in (*counts, 14_400_000)],
            f"statistics, 256 features, {races.CODES} codes",
            short=True,
        ),
        Sweep(
            "codes",
            "codes",
            [nearest(k, 12544, 256, k) for k in (64, 256, 1024, 4096, 16384)],
            "nearest code, 12544 tokens, 256 features",
        ),
        Sweep(
            "features",
            "features",
            [nearest(dim, 12544, dim, 1024) for dim in (16, 64, 256, 1024)],
            "nearest code, 12544 tokens, 1024 codes",
        ),
        Sweep(
            THREADS,
            "threads",
            [nearest(count, 12544, 256, 1024, threads=count) for count in threads],
            "nearest code, 12544x256, 1024 codes",
            short=True,
        ),
        Sweep(
            SMALL_SIZES,
            "tokens",
            [nearest(n, n, 8, 8, calls=100) for n in (4, 16, 64, 256, 1024)],
            "nearest code, 8 features, 8 codes, no gradient",
            short=True,
        ),
    ]

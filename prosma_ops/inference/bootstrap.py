"""The mean of scores, and how far it would move with other cases of the same kind: the bootstrap's interval.

Whole groups (subjects, or single cases) are drawn with replacement, because images of one subject resemble each other.
The mean of a draw is sum_g n_g s_g / sum_g n_g c_g, with s_g the sum of a group's values, c_g how many these are, and
n_g how often it was drawn: two products of matrices for all draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000


def mean_of_known(values: Iterable[float]) -> float:
    """Of the values that are not NaN; NaN where all are."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Of the mean of the values that are not NaN; None where fewer than two groups have one.

    `groups`: of each value; by default each is its own.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(values)} values need as many groups, not {len(groups)}")
    known = np.asarray(values, np.float64)
    there = ~np.isnan(known)
    names = [name for name, has in zip(groups or range(len(known)), there, strict=True) if has]
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    if len(number) < 2:
        return None
    places = [number[name] for name in names]
    sums, counts = np.bincount(places, known[there]), np.bincount(places)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)

"""Intervals of means: what they cover, and what they are made of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prosma_ops.inference.bootstrap import interval, mean_of_known


def test_an_interval_is_that_of_the_normal_distribution_for_many_values() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = interval(values.tolist()) or (math.nan, math.nan)
    half = 1.96 * values.std() / 20
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.05), pytest.approx(values.mean() + half, abs=0.05))


def test_ninety_five_of_a_hundred_intervals_hold_the_mean() -> None:
    generator = np.random.default_rng(1)
    draws = [generator.normal(size=30).tolist() for _ in range(300)]
    found = [interval(values, resamples=300) or (1, 0) for values in draws]
    assert 0.90 <= np.mean([low <= 0 <= high for low, high in found]) <= 0.98


def test_values_of_one_subject_are_drawn_together() -> None:
    """Each of 10 subjects' values repeated 20 times tells no more than the 10 did."""
    values = np.random.default_rng(2).normal(size=10).tolist()
    subjects = [f"s{number}" for number in range(10)]
    once = interval(values, subjects)
    assert interval(values * 20, subjects * 20) == pytest.approx(once)
    low, high = interval(values * 20) or (0.0, 0.0)
    assert once is not None
    assert high - low < 0.4 * (once[1] - once[0])


def test_what_has_no_value_is_left_out() -> None:
    assert interval([1.0, math.nan, 2.0, 4.0]) == interval([1.0, 2.0, 4.0])
    assert interval([1.0, math.nan]) is None
    assert mean_of_known([1.0, math.nan, 4.0]) == 2.5
    assert math.isnan(mean_of_known([math.nan]))
    assert math.isnan(mean_of_known([]))
    assert interval([]) is None
    assert interval([1.0, 2.0], ["same", "same"]) is None


def test_an_interval_is_the_same_again() -> None:
    values = np.random.default_rng(3).normal(size=30).tolist()
    assert interval(values) == interval(values)
    assert interval(values, seed=1) != interval(values, seed=2)
    assert interval(values, confidence=0.5) != interval(values)


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        interval([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="2 values need as many groups, not 1"):
        interval([1.0, 2.0], ["a"])

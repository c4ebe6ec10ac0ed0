"""The tolerance rule is what it says: it accepts rounding, and nothing that is not."""

from __future__ import annotations

import math

import pytest
import torch

from prosma_ops.testing import compare
from prosma_ops.testing.tolerance import EPS_FACTOR, bound, error, scale

EPS = torch.finfo(torch.float32).eps


def test_the_bound_is_eight_eps_of_the_largest_value() -> None:
    reference = torch.tensor([-4.0, 1.0, 0.0], dtype=torch.float64)
    assert bound(torch.float32, reference) == EPS_FACTOR * EPS * 4
    assert compare((reference + 7.9 * EPS * 4).float(), reference).ok
    assert not compare((reference + 9 * EPS * 4).float(), reference).ok


def test_or_twice_the_error_of_eager() -> None:
    reference = torch.ones(3, dtype=torch.float64)
    eager = torch.tensor([1.0, 1.01, 1.0])
    assert bound(torch.float32, reference, eager) == pytest.approx(0.02, rel=1e-5)
    assert bound(torch.float32, reference, [reference.float(), eager]) == pytest.approx(0.02, rel=1e-5)
    assert compare(torch.tensor([1.0, 1.0, 1.019]), reference, eager).ok
    assert not compare(torch.tensor([1.0, 1.0, 1.021]), reference, eager).ok


@pytest.mark.parametrize("spoiled", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_passes(spoiled: float) -> None:
    reference = torch.ones(3, dtype=torch.float64)
    verdict = compare(torch.tensor([1.0, spoiled, 1.0]), reference)
    assert not verdict.ok
    assert verdict.error == math.inf
    assert not compare(torch.tensor([1.0, spoiled, 1.0]), reference, torch.tensor([spoiled, spoiled, spoiled])).ok


def test_unless_the_reference_has_it_at_the_same_place() -> None:
    reference = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=torch.float64)
    assert compare(reference.float(), reference).ok
    assert not compare(torch.tensor([1.0, math.inf, -math.inf, 1.0]), reference).ok
    assert not compare(torch.tensor([math.nan, -math.inf, -math.inf, 1.0]), reference).ok
    assert not compare(torch.tensor([math.nan, math.inf, -math.inf, math.nan]), reference).ok
    assert scale(reference) == 1


def test_zeros_must_be_zeros() -> None:
    reference = torch.zeros(4, dtype=torch.float64)
    assert compare(torch.zeros(4), reference).ok
    assert not compare(torch.full((4,), 1e-30), reference).ok


def test_shapes_dtypes_and_absence() -> None:
    reference = torch.ones(2, dtype=torch.float64)
    assert "shape" in compare(torch.ones(3), reference).reason
    assert "torch.float32 instead of torch.float16" in compare(torch.ones(2), reference, dtype=torch.float16).reason
    assert "no result" in compare(None, reference).reason
    assert compare(torch.ones(0), torch.ones(0, dtype=torch.float64)).ok


def test_integers_must_be_equal() -> None:
    assert compare(torch.tensor([1, 2]), torch.tensor([1.0, 2.0], dtype=torch.float64)).ok
    assert "1 integers differ" in compare(torch.tensor([1, 3]), torch.tensor([1.0, 2.0])).reason


def test_a_wrong_sign_fails_in_every_dtype() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        reference = torch.randn(50, dtype=torch.float64)
        assert not compare((-reference).to(dtype), reference).ok


def test_error_is_formed_in_float64() -> None:
    assert error(torch.tensor([1.0]), torch.tensor([1.0 + 1e-12], dtype=torch.float64)) == pytest.approx(
        1e-12, rel=1e-3
    )

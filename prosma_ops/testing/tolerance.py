"""The tolerance rule, written down once: what tests, `prosma-ops check` and the benchmarks call equal.

    error <= max(8 * eps * scale, 2 * error of eager PyTorch)

error   the largest |result - reference| over the elements of one tensor, formed in float64. A NaN counts as an
        infinite error, unless the reference is NaN at the same place; so does an infinity that is not the reference's.
eps     of the dtype of the result: 1.2e-7 for float32, 2.2e-16 for float64, 9.8e-4 for float16, 7.8e-3 for bfloat16.
scale   the largest finite |value| of the float64 reference of the same tensor. One number a tensor, because an
        element that is small by cancellation has the rounding errors of the large terms it came from. For sums over
        batch and space (gradients of weights, thresholds, gates) it is the largest of the sums too, not the sum of
        the absolute terms: with 10^4 terms of mixed sign that would be 100 times more generous, and in bfloat16
        (8 eps = 1/16) a result of the wrong sign would pass.
eager   the plain formula as a user writes it, all tensors cast to the dtype of the leading one, its gradients by
        autograd; its error is measured against the same reference, and where it has been run in both memory formats
        that users have (contiguous and channels_last) the larger error counts. For float64, where eager rounds as
        much as the reference itself, it is the error of eager float32 times the ratio of the two eps. Where eager
        gives NaN or an infinity, or does not run in that dtype, it allows nothing.

An all-zero reference has scale 0: the result must be zero too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EPS_FACTOR = 8.0
EAGER_FACTOR = 2.0

Eager = Tensor | Sequence[Tensor] | None


class Comparison(NamedTuple):
    error: float
    bound: float
    ok: bool
    reason: str  # empty if ok

    @property
    def ratio(self) -> float:
        """error / bound: at most 1 passes."""
        if self.error == 0:
            return 0.0
        return self.error / self.bound if self.bound > 0 else math.inf


def scale(reference: Tensor) -> float:
    """The largest finite |value|; 0 for a tensor without one."""
    finite = reference[reference.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def error(result: Tensor, reference: Tensor) -> float:
    """The largest |result - reference|; infinite where only one of the two is NaN, or infinite, or the signs differ."""
    found, expected = result.detach().to("cpu", torch.float64), reference.detach().to("cpu", torch.float64)
    same = (found == expected) | (found.isnan() & expected.isnan())
    difference = (found - expected).abs()
    difference = torch.where(difference.isfinite(), difference, math.inf)
    difference = torch.where(same, 0.0, difference)
    return float(difference.max()) if difference.numel() else 0.0


def bound(dtype: torch.dtype, reference: Tensor, eager: Eager = None) -> float:
    """What the error of a result of `dtype` may be. `eager` is what eager PyTorch gave, where there is one."""
    allowed = EPS_FACTOR * torch.finfo(dtype).eps * scale(reference)
    attempts = [eager] if isinstance(eager, Tensor) else eager or ()
    errors = [error(attempt, reference) for attempt in attempts]
    return max([allowed, *(EAGER_FACTOR * found for found in errors if math.isfinite(found))])


def compare(
    result: Tensor | None, reference: Tensor, eager: Eager = None, dtype: torch.dtype | None = None
) -> Comparison:
    """Judge `result` by the rule. `dtype` is the one it must have, where that is known."""
    if result is None:
        return Comparison(math.inf, 0.0, False, "there is no result")
    if result.shape != reference.shape:
        return Comparison(math.inf, 0.0, False, f"shape {tuple(result.shape)} instead of {tuple(reference.shape)}")
    if dtype is not None and result.dtype is not dtype:
        return Comparison(math.inf, 0.0, False, f"{result.dtype} instead of {dtype}")
    if not result.dtype.is_floating_point:
        wrong = int((result.to("cpu", torch.int64) != reference.to("cpu", torch.int64)).sum())
        return Comparison(float(wrong), 0.0, wrong == 0, f"{wrong} integers differ" if wrong else "")
    allowed, found = bound(result.dtype, reference, eager), error(result, reference)
    if found <= allowed:
        return Comparison(found, allowed, True, "")
    return Comparison(found, allowed, False, _explain(result, reference, found, allowed))


def _explain(result: Tensor, reference: Tensor, found: float, allowed: float) -> str:
    unexpected = result.detach().cpu().isnan() & ~reference.detach().cpu().isnan()
    if unexpected.any():
        return f"{int(unexpected.sum())} of {result.numel()} elements are NaN where the reference is not"
    return f"error {found:.3g} exceeds {allowed:.3g}"

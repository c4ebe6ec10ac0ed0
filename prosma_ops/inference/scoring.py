"""Scores of one case, for each class but the background, or for each region.

dice = 2 |P and T| / (|P| + |T|)      iou = |P and T| / |P or T|
hd95: of the distances from each point of one border to the other border, the 95th percentile, the larger of both ways
surface_distance: the mean of these distances, both ways together (average symmetric surface distance)

P: predicted, T: true. Pixels to be ignored belong to neither. A class that is in neither has no score, NaN, and is left
out of means. One that is in only one of both has a Dice and an IoU of 0; its distances are undefined, NaN, and since
leaving them out flatters, `missed` and `invented` say how often that was so.
Borders and distances are MONAI's, in mm where there is a spacing, else in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from monai.metrics import get_mask_edges, get_surface_distance
from torch import Tensor

from ..data import IGNORED, LabelScheme

#: The scores that a class has in a case, in the order of tables.
SCORES = ("dice", "iou", "hd95", "surface_distance")
PERCENTILE = 95


@dataclass(frozen=True)
class ClassScores:
    """Of one class in one case; NaN stands for what is undefined, see above.

    predicted, actual: pixels.
    """

    name: str
    predicted: int
    actual: int
    dice: float
    iou: float
    hd95: float
    surface_distance: float

    @property
    def missed(self) -> bool:
        return bool(self.actual and not self.predicted)

    @property
    def invented(self) -> bool:
        return bool(self.predicted and not self.actual)

    def as_json(self) -> dict[str, Any]:
        """NaN, which JSON has not, as None."""
        return {key: None if value != value else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ClassScores:
        values: dict[str, Any] = {key: float("nan") if value is None else value for key, value in fields.items()}
        return cls(**values)


def dice(prediction: np.ndarray | Tensor, truth: np.ndarray | Tensor, scheme: LabelScheme) -> np.ndarray:
    """Of each output that is evaluated, `scheme.foreground`, float64; NaN where the class is in neither.

    Both as `LabelScheme.encode` has them: class numbers (*space) or (1, *space), or regions (outputs, *space). The
    truth may hold `IGNORED`.
    """
    one, other = np.asarray(prediction), np.asarray(truth)
    if not scheme.regions:
        space = min(one.ndim, other.ndim)
        one, other = (each[0] if each.ndim > space and len(each) == 1 else each for each in (one, other))
    return np.array([_overlap(predicted, actual)[0] for predicted, actual in _masks(one, other, scheme)])


def scores(
    prediction: np.ndarray, truth: np.ndarray, scheme: LabelScheme, spacing: Sequence[float] | None = None
) -> list[ClassScores]:
    """All scores of a case, in the order of `scheme.foreground`, on the grid of the source: class numbers (*space), or
    regions (outputs, *space)."""
    found = []
    masks = _masks(prediction, truth, scheme)
    for output, (predicted, actual) in zip(scheme.foreground, masks, strict=True):
        counts = int(np.count_nonzero(predicted)), int(np.count_nonzero(actual))
        shares = _overlap(predicted, actual)
        found.append(ClassScores(scheme.names[output], *counts, *shares, *_distances(predicted, actual, spacing)))
    return found


def _masks(prediction: np.ndarray, truth: np.ndarray, scheme: LabelScheme) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each output that is evaluated where it is predicted and where it is, without what is ignored."""
    if prediction.shape != truth.shape:
        raise ValueError(f"a prediction of shape {prediction.shape} cannot be compared with a truth of {truth.shape}")
    for output in scheme.foreground:
        if scheme.regions:
            actual = truth[output]
            yield (prediction[output] != 0) & (actual != IGNORED), actual == 1
        else:
            yield (prediction == output) & (truth != IGNORED), truth == output


def _overlap(predicted: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Dice and IoU."""
    both = int(np.count_nonzero(predicted & actual))
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(actual))
    if not total:
        return float("nan"), float("nan")
    return 2 * both / total, both / (total - both)


def _distances(predicted: np.ndarray, actual: np.ndarray, spacing: Sequence[float] | None) -> tuple[float, float]:
    """hd95 and surface_distance."""
    if not (predicted.any() and actual.any()):
        return float("nan"), float("nan")
    found, true = get_mask_edges(predicted, actual)
    ways = [get_surface_distance(*pair, spacing=spacing) for pair in ((found, true), (true, found))]
    farthest = max(float(np.percentile(way, PERCENTILE)) for way in ways)
    return farthest, float(np.concatenate(ways).mean(dtype=np.float64))

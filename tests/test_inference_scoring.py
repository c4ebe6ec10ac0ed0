"""Dice, IoU and distances of borders: by MONAI's own functions, by hand, and where they are undefined."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou

from prosma_ops.data import IGNORED, LabelScheme, labels
from prosma_ops.inference.scoring import SCORES, ClassScores, dice, scores

FOUR = labels.found([0, 1, 2, 3])
REGIONS = LabelScheme(("whole", "inner"), ((1, 2), (2,)), regions=True)


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    coordinates = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    generator = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for code in (1, 2, 3):
        centre = generator.uniform(-0.4, 0.4, len(shape)).reshape(-1, *(1,) * len(shape))
        mask[((coordinates - centre) ** 2).sum(0) < generator.uniform(0.1, 0.3)] = code
    return mask


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(mask).long(), 4).movedim(-1, 0)[None]


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")  # MONAI's, of itself
@pytest.mark.parametrize(
    ("shape", "spacing"), [((40, 31), None), ((40, 31), (0.5, 1.5)), ((14, 18, 11), (0.9, 1.2, 3.0))]
)
def test_scores_are_those_of_monai(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> None:
    prediction, truth = blobs(shape, 0), blobs(shape, 1)
    found = scores(prediction, truth, FOUR, spacing)
    pair = one_hot(prediction), one_hot(truth)
    expected = {
        "dice": compute_dice(*pair, include_background=False),
        "iou": compute_iou(*pair, include_background=False),
        "hd95": compute_hausdorff_distance(*pair, percentile=95, spacing=spacing),
        "surface_distance": compute_average_surface_distance(*pair, symmetric=True, spacing=spacing),
    }
    for name in SCORES:
        own = [getattr(each, name) for each in found]
        np.testing.assert_allclose(own, expected[name][0], rtol=1e-5, err_msg=name)
    assert [each.name for each in found] == list(FOUR.names[1:])
    np.testing.assert_allclose(dice(prediction, truth, FOUR), expected["dice"][0], rtol=1e-6)


def test_a_volume_of_one_slice() -> None:
    """Its spacing has three numbers, and it makes no difference which axis is the one of length 1."""
    prediction, truth = blobs((30, 20), 0), blobs((30, 20), 1)
    found = []
    for axis in range(3):
        spacing = [0.5, 1.5]
        spacing.insert(axis, 4.0)
        pair = np.expand_dims(prediction, axis), np.expand_dims(truth, axis)
        found.append([each.as_json() for each in scores(*pair, FOUR, spacing)])
    assert found[0] == found[1] == found[2]
    np.testing.assert_equal(dice(prediction[None], truth, FOUR), dice(prediction, truth, FOUR))


def test_distances_by_hand() -> None:
    """Two squares of 5 pixels, 3 apart: of a border's 16 pixels the far side is 3 away, and no pixel farther."""
    truth, prediction = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    truth[4:9, 4:9] = 1
    prediction[4:9, 7:12] = 1
    (found,) = scores(prediction, truth, labels.found([0, 1]), (2.0, 0.5))
    assert (found.predicted, found.actual) == (25, 25)
    assert found.dice == pytest.approx(2 * 10 / 50)
    assert found.iou == pytest.approx(10 / 40)
    assert found.hd95 == pytest.approx(1.5)


def test_what_is_in_neither_has_no_score() -> None:
    truth, prediction = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    truth[2:5, 2:5], prediction[5:8, 5:8] = 1, 2
    one, two, three = scores(prediction, truth, FOUR)
    assert (one.dice, one.iou, one.missed, one.invented) == (0, 0, True, False)
    assert (two.dice, two.iou, two.missed, two.invented) == (0, 0, False, True)
    assert math.isnan(one.hd95)
    assert math.isnan(two.surface_distance)
    assert math.isnan(three.dice)
    assert (three.missed, three.invented) == (False, False)
    np.testing.assert_array_equal(dice(prediction, truth, FOUR), [0, 0, np.nan])


def test_what_is_ignored_counts_nowhere() -> None:
    truth, prediction = blobs((30, 30), 3), blobs((30, 30), 4)
    expected = scores(np.where(np.arange(30) < 20, prediction, 0), np.where(np.arange(30) < 20, truth, 0), FOUR)
    truth[:, 20:] = IGNORED
    assert scores(prediction, truth, FOUR) == expected
    np.testing.assert_array_equal(dice(prediction[None], truth[None], FOUR), [each.dice for each in expected])


def test_regions_overlap() -> None:
    mask, other = blobs((30, 30), 5), blobs((30, 30), 6)
    truth = np.stack([mask > 0, mask == 2]).astype(np.uint8)
    prediction = np.stack([other > 0, other == 2]).astype(np.uint8)
    truth[:, :5] = IGNORED
    inside = np.arange(30)[:, None] >= 5
    whole, inner = scores(prediction, truth, REGIONS)
    both = ((mask > 0) & (other > 0) & inside).sum()
    assert whole.dice == pytest.approx(2 * both / (((mask > 0) & inside).sum() + ((other > 0) & inside).sum()))
    assert (whole.name, inner.name) == ("whole", "inner")
    assert inner.actual == ((mask == 2) & inside).sum()
    np.testing.assert_allclose(dice(torch.from_numpy(prediction), torch.from_numpy(truth), REGIONS)[0], whole.dice)


def test_scores_survive_json() -> None:
    found = scores(np.zeros((5, 5), np.uint8), np.eye(5, dtype=np.uint8), FOUR)
    written = json.dumps([each.as_json() for each in found], allow_nan=False)
    again = [ClassScores.from_json(each) for each in json.loads(written)]
    assert repr(again) == repr(found)  # NaN is not equal to itself


def test_shapes_that_differ_are_told() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 4\) cannot be compared with a truth of \(4, 5\)"):
        dice(np.zeros((4, 4)), np.zeros((4, 5)), FOUR)

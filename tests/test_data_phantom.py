"""Generated images: always the same, with every class, and hard enough to be worth something."""

from __future__ import annotations

import numpy as np
import pytest

from prosma_ops.data import Phantom, inspect, recognise


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_same_seed_gives_the_same_image(dimensions: int) -> None:
    phantom = Phantom(dimensions, size=32)
    image, label, spacing = phantom.make(5)
    again, label_again, _ = Phantom(dimensions, cases=9, size=32).make(5)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    assert (image.dtype, label.dtype) == (np.float32, np.uint8)
    assert image.shape == (1, *label.shape) == (1, *(32,) * dimensions)
    assert spacing == (1.0,) * dimensions
    assert not np.array_equal(image, phantom.make(6)[0])
    assert not np.array_equal(image, Phantom(dimensions, size=32, seed=1).make(5)[0])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_organs_are_nested_and_touch(dimensions: int) -> None:
    phantom = Phantom(dimensions, size=48)
    for index in range(4):
        _, label, _ = phantom.make(index)
        assert set(np.unique(label)) == {0, 1, 2, 3}
        pairs = set()
        for axis in range(dimensions):
            first, second = np.moveaxis(label, axis, 0)[:-1], np.moveaxis(label, axis, 0)[1:]
            pairs |= {tuple(sorted(pair)) for pair in zip(first[first != second], second[first != second], strict=True)}
        assert (1, 2) in pairs
        assert (1, 3) in pairs or (2, 3) in pairs


def test_brightness_alone_does_not_tell_the_organ() -> None:
    """The best threshold on smoothed brightness stays far from the label: contrast is low, and clutter looks alike."""
    from scipy.ndimage import gaussian_filter

    best = []
    for index in range(4):
        image, label, _ = Phantom(2, size=96).make(index)
        smooth, inside = gaussian_filter(image[0], 2), label > 0
        cuts = np.quantile(smooth, np.linspace(0.05, 0.95, 19))
        dice = [2 * (inside & (smooth < cut)).sum() / (inside.sum() + (smooth < cut).sum()) for cut in cuts]
        best.append(max(dice))
    assert np.mean(best) < 0.75


def test_it_is_a_collection() -> None:
    found = recognise("phantom:dimensions=3,cases=5,size=24,seed=2")
    assert (found.format, found.dimensions, len(found.cases)) == ("phantom", 3, 5)
    inspection = inspect("phantom:cases=12,size=32")
    assert not inspection.problems
    assert inspection.survey.required_scheme().names == ("background", "organ", "core", "neighbour")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phantom:colour=3", "'colour=3' is no option"),
        ("phantom:size=big", "'size=big' is no option"),
        ("phantom:size=4", "at least 16"),
        ("phantom:dimensions=4", "2 or 3 dimensions"),
    ],
)
def test_options_are_checked(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recognise(text)


def test_numbers_beyond_the_last() -> None:
    with pytest.raises(ValueError, match="images 0 to 2, not 3"):
        Phantom(cases=3, size=16).make(3)

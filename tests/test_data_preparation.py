"""From files to what a network sees, and back to the grid of the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from prosma_ops.data import (
    BadFileError,
    Normalisation,
    Phantom,
    Preparation,
    patch_size,
    recognise,
    strides,
    survey,
    thick_axis,
)
from tests.data_folders import archives, describe, noise, picture, pictures, square, volume, volumes


def prepared(folder: Path | str, **changes: object) -> tuple[Preparation, list]:
    found = survey(recognise(folder))
    return replace(Preparation.of(found), **changes), list(found.collection.cases)  # type: ignore[arg-type]


def one_hot(label: torch.Tensor, outputs: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(label[0].long(), outputs).movedim(-1, 0).float()


def test_each_image_by_its_own_mean_and_deviation(tmp_path: Path) -> None:
    preparation, cases = prepared(volumes(tmp_path))
    image = preparation.image(cases[2]).image
    assert (image.dtype, image.shape, type(image)) == (torch.float32, (1, 14, 14, 10), torch.Tensor)
    assert float(image.mean()) == pytest.approx(0, abs=1e-5)
    assert float(image.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_ct_by_the_clipped_foreground_of_all(tmp_path: Path) -> None:
    describe(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "liver": 1})
    values = np.full((12, 12, 12), -1000, np.int16)
    values[3:9, 3:9, 3:9] = np.linspace(0, 200, 216).reshape(6, 6, 6)
    for i in range(3):
        volume(tmp_path / "images" / f"{i}.nii.gz", values + np.int16(i))
        volume(tmp_path / "labels" / f"{i}.nii.gz", square((12, 12, 12)))
    preparation, cases = prepared(tmp_path)
    (how,) = preparation.normalisation
    assert how.kind == "ct"
    assert 0 <= how.low < 5 < 195 < how.high <= 202
    image = preparation.image(cases[0]).image
    assert float(image.min()) == pytest.approx((how.low - how.mean) / how.deviation, abs=1e-4)
    assert float(image[0, 3:9, 3:9, 3:9].std()) == pytest.approx(1, abs=0.05)


def test_air_tells_ct_where_nobody_says_it(tmp_path: Path) -> None:
    volumes(tmp_path, 3)
    for i in range(3):
        values = noise((12 + i, 14, 10), i).astype(np.int16) - 1024
        volume(tmp_path / "images" / f"scan_{i:03}.nii.gz", values)
    assert prepared(tmp_path)[0].channels == ("CT",)


def test_what_was_cut_away_stays_zero(tmp_path: Path) -> None:
    for i in range(3):
        values = noise((16, 16, 16), i).astype(np.float32) + 100
        volume(tmp_path / "images" / f"{i}.nii.gz", values * square((16, 16, 16)))
        volume(tmp_path / "labels" / f"{i}.nii.gz", square((16, 16, 16)))
    preparation, cases = prepared(tmp_path)
    assert preparation.normalisation == (Normalisation(nonzero=True),)
    image = preparation.image(cases[0]).image
    inside = image[0][torch.from_numpy(square((16, 16, 16))).bool()]
    assert int((image == 0).sum()) == 16**3 - 8**3
    assert float(inside.mean()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA", "PIL"])
def test_volumes_in_any_orientation_come_out_the_same_and_go_back(tmp_path: Path, axes: str) -> None:
    """The same volume, its axes stored in another order and direction."""
    values, mask = noise((12, 14, 10), 0).astype(np.float32), square((12, 14, 10))
    mask[3, 4, 5] = 2
    images = {}
    for name, array in (("images", values), ("labels", mask)):
        image = nibabel.Nifti1Image(array, np.diag([1.5, 1.0, 2.0, 1.0]))
        to = nibabel.orientations.axcodes2ornt(axes)
        images[name] = image.as_reoriented(
            nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), to)
        )
        (tmp_path / name).mkdir()
        nibabel.save(images[name], tmp_path / name / "a.nii.gz")
    preparation, (case,) = prepared(tmp_path)
    assert preparation.spacing == (1.5, 1.0, 2.0)
    seen = preparation.image(case)
    expected = torch.from_numpy((values - values.mean()) / values.std())
    torch.testing.assert_close(seen.image[0], expected, atol=1e-4, rtol=1e-4)
    label = preparation.label(case, seen.source)
    np.testing.assert_array_equal(label[0].numpy(), mask)
    codes = preparation.codes(one_hot(label, 3), seen)
    np.testing.assert_array_equal(codes, np.asarray(images["labels"].dataobj))


def test_volumes_of_another_spacing_are_resampled_and_go_back(tmp_path: Path) -> None:
    shape = (24, 20, 16)
    along = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    ramp, ball = along[0] + 2 * along[1] + 3 * along[2], sum(part**2 for part in along) < 0.8
    volume(tmp_path / "images" / "a.nii.gz", ramp.astype(np.float32), np.diag([-1.0, 1, 2, 1]))
    volume(tmp_path / "labels" / "a.nii.gz", ball.astype(np.uint8), np.diag([-1.0, 1, 2, 1]))
    preparation, (case,) = prepared(tmp_path, spacing=(0.5, 1.0, 1.0))
    seen = preparation.image(case)
    label = preparation.label(case, seen.source)
    assert tuple(seen.image.shape[1:]) == tuple(label.shape[1:]) == (48, 20, 32)
    assert preparation.shape(shape, (1, 1, 2)) == (48, 20, 32)
    codes = preparation.codes(one_hot(label, 2), seen)
    assert codes.shape == shape
    assert 2 * (ball & (codes == 1)).sum() / (ball.sum() + (codes == 1).sum()) > 0.98
    # Linear interpolation leaves a ramp as it is, but for its ends; anything moved or flipped would show.
    restored = preparation.restore(seen.image, seen)[0].numpy()[2:-2, 2:-2, 2:-2]
    slope, intercept = np.polyfit(ramp[2:-2, 2:-2, 2:-2].ravel(), restored.ravel(), 1)
    assert slope > 0.3
    np.testing.assert_allclose(restored, slope * ramp[2:-2, 2:-2, 2:-2] + intercept, atol=1e-4)


def test_the_median_spacing_is_common(tmp_path: Path) -> None:
    for i, spacing in enumerate((0.8, 1.0, 1.6)):
        volume(tmp_path / "images" / f"{i}.nii.gz", noise((10, 10, 10), i), np.diag([spacing, 1, 3, 1]))
        volume(tmp_path / "labels" / f"{i}.nii.gz", square((10, 10, 10)), np.diag([spacing, 1, 3, 1]))
    preparation, cases = prepared(tmp_path)
    assert preparation.spacing == pytest.approx((1.0, 1.0, 3.0))
    assert [preparation.image(case).image.shape[1] for case in cases] == [8, 10, 16]


def test_pictures_of_several_sizes_become_one(tmp_path: Path) -> None:
    pictures(tmp_path, 3, size=40)
    picture(tmp_path / "images" / "009.png", noise((30, 60), 9))
    picture(tmp_path / "masks" / "009.png", square((30, 60)))
    preparation, cases = prepared(tmp_path)
    assert preparation.size == (40, 40)
    seen = preparation.image(cases[-1])
    assert tuple(seen.image.shape) == (1, 40, 40)
    label = preparation.label(cases[-1], seen.source)
    assert preparation.codes(one_hot(label, 2), seen).shape == (30, 60)
    assert preparation.restore(torch.zeros(2, 40, 40), seen).shape == (2, 30, 60)


def test_pictures_of_one_size_stay_as_they_are(tmp_path: Path) -> None:
    preparation, cases = prepared(pictures(tmp_path))
    assert (preparation.size, preparation.spacing) == (None, None)
    assert preparation(cases[0])["label"].shape == (1, 24, 24)


def test_regions_and_ignored_pixels(tmp_path: Path) -> None:
    describe(pictures(tmp_path, 2), labels={"background": 0, "whole": [1, 2], "core": [2], "ignore": 3})
    mask = square((24, 24), 2)
    mask[0, :4] = (1, 1, 3, 0)
    picture(tmp_path / "masks" / "000.png", mask)
    preparation, cases = prepared(tmp_path)
    label = preparation(cases[0])["label"]
    assert label.shape == (2, 24, 24)
    assert label[:, 0, :4].tolist() == [[1, 1, 255, 0], [0, 0, 255, 0]]
    seen = preparation.image(cases[0])
    codes = preparation.codes((label == 1).float(), seen)
    np.testing.assert_array_equal(codes, np.where(mask == 3, 0, mask))


def test_stacks_are_resized_within_their_slices(tmp_path: Path) -> None:
    preparation, cases = prepared(archives(tmp_path), size=(8, 12))
    stack = next(case for case in cases if case.stack)
    seen = preparation.image(stack)
    assert tuple(seen.image.shape) == (1, 5, 8, 12)
    assert preparation.restore(torch.zeros(2, 5, 8, 12), seen).shape == (2, 5, 16, 16)


def test_json_there_and_back(tmp_path: Path) -> None:
    for folder in (volumes(tmp_path / "a"), pictures(tmp_path / "b")):
        preparation, _ = prepared(folder)
        assert Preparation.from_json(json.loads(json.dumps(preparation.as_json()))) == preparation


def test_a_case_that_does_not_fit_is_named(tmp_path: Path) -> None:
    preparation, cases = prepared(pictures(tmp_path))
    picture(tmp_path / "masks" / "001.png", square((24, 24), 5))
    with pytest.raises(BadFileError, match=r"masks/001\.png: has the labels 5"):
        preparation(cases[1])
    two = replace(preparation, channels=("T1", "T2"), normalisation=(Normalisation(),) * 2)
    with pytest.raises(BadFileError, match=r"images/002\.png: has 1 channels; 2 are needed: T1, T2"):
        two.image(cases[2])
    with pytest.raises(ValueError, match=r"scores of shape \(2, 3, 3\)"):
        preparation.restore(torch.zeros(2, 3, 3), preparation.image(cases[0]))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    preparation, _ = prepared(pictures(tmp_path))
    with pytest.raises(ValueError, match="size must be 2 positive numbers"):
        replace(preparation, size=(8, 0))
    with pytest.raises(ValueError, match="1 channels need as many normalisations, not 2"):
        replace(preparation, normalisation=(Normalisation(),) * 2)
    with pytest.raises(ValueError, match="none of the 0 cases is usable"):
        Preparation.of(survey(Phantom(cases=2, size=16).collection()), [])


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((35, 50, 36), (1, 1, 1), (40, 56, 40)),
        ((512, 534), None, (512, 512)),
        ((512, 512, 100), (0.8, 0.8, 2.5), None),
        ((320, 320, 20), (0.6, 0.6, 3.6), None),
    ],
)
def test_patches(shape: tuple[int, ...], spacing: tuple[float, ...] | None, expected: tuple[int, ...] | None) -> None:
    patch = patch_size(shape, spacing)
    assert expected is None or patch == expected
    assert all(side % 8 == 0 for side in patch)
    most = 512 * 512 if len(patch) == 2 else 96**3
    assert most * 0.7 <= np.prod(patch) <= most or np.all(np.array(patch) >= shape)


def test_thick_slices() -> None:
    assert thick_axis((0.5, 0.5, 3.0)) == 2
    assert thick_axis((3.0, 0.9, 1.0)) == 0
    assert thick_axis((1.0, 1.0, 2.0)) is None
    assert thick_axis(None) is None


def test_strides_leave_thick_axes_until_the_others_are_as_long() -> None:
    assert strides((64, 64, 64), (1, 1, 1), 4) == [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert strides((128, 128, 16), (0.5, 0.5, 3.0), 5) == [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]
    assert strides((64, 16), None, 4) == [(1, 1), (2, 2), (2, 2), (2, 1)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_told(tmp_path: Path, value: float) -> None:
    preparation, cases = prepared(volumes(tmp_path, 2))
    values = noise((12, 14, 10), 0).astype(np.float32)
    values[1, 2, 3] = value
    volume(tmp_path / "images" / "scan_000.nii.gz", values)
    with pytest.raises(BadFileError, match=r"scan_000\.nii\.gz: has NaN or infinity"):
        preparation.image(cases[0])


def test_volumes_of_other_axes_and_spacing_at_once(tmp_path: Path) -> None:
    """Axes in another order, two of them reversed, resampled: a ramp along each axis of space comes back."""
    affine = np.array([[0, 0, -1.0, 30], [-2.0, 0, 0, 40], [0, 0.5, 0, 0], [0, 0, 0, 1]])
    shape = (10, 24, 16)
    ramp = np.arange(10)[:, None, None] * 1.0 + np.arange(24)[:, None] * 2.0 + np.arange(16) * 3.0
    volume(tmp_path / "images" / "a.nii.gz", ramp.astype(np.float32), affine)
    volume(tmp_path / "labels" / "a.nii.gz", square(shape), affine)
    preparation, (case,) = prepared(tmp_path, spacing=(1.0, 1.0, 1.0))
    seen = preparation.image(case)
    assert tuple(seen.image.shape) == (1, 16, 20, 12)
    # In space: 3 a mm to the left, 1 for 2 mm to the back, 4 a mm up.
    inner = seen.image[0, 3:-3, 3:-3, 3:-3]
    slopes = [float(inner.diff(dim=axis).mean()) for axis in range(3)]
    assert slopes[0] / slopes[2] == pytest.approx(-3 / 4, rel=1e-2)
    assert slopes[1] / slopes[2] == pytest.approx(-0.5 / 4, rel=1e-2)
    restored = preparation.restore(seen.image, seen)[0].numpy()[2:-2, 3:-3, 2:-2]
    expected = ramp[2:-2, 3:-3, 2:-2]
    slope, intercept = np.polyfit(expected.ravel(), restored.ravel(), 1)
    np.testing.assert_allclose(restored, slope * expected + intercept, atol=0.02)

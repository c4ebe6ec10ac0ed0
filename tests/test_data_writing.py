"""Predictions are written as their sources were, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from prosma_ops.data import (
    BadFileError,
    Preparation,
    inspect,
    labels,
    overlay,
    read_image,
    recognise,
    survey,
    write_mask,
    write_overlay,
    write_probabilities,
)
from prosma_ops.data.reading import Array
from prosma_ops.data.writing import outline
from tests.data_folders import archives, noise, picture, pictures, square, volume

TWO = labels.found([0, 1, 2])
FLAT = Array(np.zeros((1, 24, 24)), space=(24, 24))


def test_volumes_have_the_affine_and_the_header_of_their_source(tmp_path: Path) -> None:
    affine = np.array([[0, -1.2, 0, 7], [0, 0, 3.0, -5], [0.9, 0, 0, 2], [0, 0, 0, 1]])
    scan = nibabel.Nifti1Image(noise((10, 12, 14), 0).astype(np.int16), affine)
    scan.header.set_xyzt_units("mm", "sec")
    scan.header["descrip"] = b"scanner 7"
    scan.header.set_slope_inter(2.0, -100.0)
    scan.header["cal_max"] = 400
    (tmp_path / "images").mkdir()
    nibabel.save(scan, tmp_path / "images" / "a.nii.gz")
    volume(tmp_path / "labels" / "a.nii.gz", square((10, 12, 14), 2), affine)
    found = survey(recognise(tmp_path))
    preparation, (case,) = Preparation.of(found), found.collection.cases
    seen = preparation.image(case)
    label = preparation.label(case, seen.source)[0].long()
    scores = torch.nn.functional.one_hot(label, 3).movedim(-1, 0).float()
    path = write_mask(tmp_path / "out" / case.name, preparation.codes(scores, seen), preparation.scheme, seen.source)
    assert path == tmp_path / "out" / "a.nii.gz"
    written = nibabel.load(path)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(written.dataobj), square((10, 12, 14), 2))
    assert written.header["descrip"] == b"scanner 7"
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.get_data_dtype() == np.uint8
    assert written.header["cal_max"] == 0
    assert [name.name for name in path.parent.iterdir()] == ["a.nii.gz"]


def test_pictures_have_a_palette(tmp_path: Path) -> None:
    mask = square((24, 24), 2)
    path = write_mask(tmp_path / "new" / "folder" / "a", mask, TWO, FLAT)
    with Image.open(path) as opened:
        assert (path.name, opened.mode) == ("a.png", "P")
        np.testing.assert_array_equal(np.asarray(opened), mask)
        colours = np.asarray(opened.convert("RGB"))
    assert tuple(colours[12, 12]) == labels.COLOURS[2]
    assert tuple(colours[0, 0]) == (0, 0, 0)


def test_pictures_in_colours_and_of_large_codes(tmp_path: Path) -> None:
    scheme = labels.found_colours([0xFF0000, 0x00FF80])
    with Image.open(write_mask(tmp_path / "a", square((24, 24), 1), scheme, FLAT)) as opened:
        assert opened.getpixel((12, 12)) == (0, 255, 128)
    black_and_white = labels.found([0, 255])
    with Image.open(
        write_mask(tmp_path / "c", black_and_white.decode(square((24, 24))), black_and_white, FLAT)
    ) as opened:
        assert opened.getpixel((12, 12)) == 255
        assert opened.convert("RGB").getpixel((12, 12)) == labels.COLOURS[1]
    large = labels.declared({"background": 0, "cell": 3000})
    with Image.open(write_mask(tmp_path / "b", large.decode(square((24, 24))), large, FLAT)) as opened:
        assert opened.getpixel((12, 12)) == 3000


def test_what_is_written_reads_as_masks(tmp_path: Path) -> None:
    """A prediction put in the place of the masks is inspected without complaint, with the same classes."""
    pictures(tmp_path, 12)
    scheme = inspect(tmp_path).survey.required_scheme()
    for path in (tmp_path / "masks").iterdir():
        write_mask(path.with_suffix(""), square((24, 24)), scheme, FLAT)
    again = inspect(tmp_path)
    assert not again.problems
    assert again.survey.required_scheme().codes == scheme.codes


def test_stacks_become_volumes(tmp_path: Path) -> None:
    case = next(case for case in recognise(archives(tmp_path)).cases if case.stack)
    source = read_image(case, 2)
    path = write_mask(tmp_path / "out" / case.name, square((5, 16, 16)), TWO, source)
    assert np.asarray(nibabel.load(path).dataobj).shape == (5, 16, 16)


def test_volumes_of_one_slice_stay_so(tmp_path: Path) -> None:
    volume(tmp_path / "images" / "a.nii.gz", noise((16, 18, 1), 0))
    volume(tmp_path / "labels" / "a.nii.gz", np.ones((16, 18, 1), np.uint8))
    source = read_image(recognise(tmp_path).cases[0], 2)
    path = write_mask(tmp_path / "out" / "a", square((16, 18)), TWO, source)
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), square((16, 18))[..., None])


def test_probabilities(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 6, 7, 8))
    source = Array(np.zeros((1, 6, 7, 8)), (1.0, 1.0, 2.0), np.diag([1.0, 1, 2, 1]), space=(6, 7, 8))
    written = nibabel.load(write_probabilities(tmp_path / "a", values, source))
    np.testing.assert_allclose(np.moveaxis(np.asarray(written.dataobj), -1, 0), values, rtol=1e-6)
    np.testing.assert_array_equal(written.affine, source.affine)
    flat = write_probabilities(tmp_path / "b", values[:, 0], FLAT)
    np.testing.assert_allclose(np.load(flat)["probabilities"], values[:, 0], rtol=1e-6)


def test_overlays_show_the_image_the_tint_and_the_outline(tmp_path: Path) -> None:
    image, mask = noise((1, 24, 24), 0), square((24, 24))
    shown = overlay(image, mask, TWO)
    outside, edge = mask == 0, outline(mask) & (mask > 0)
    np.testing.assert_array_equal(shown[outside], np.repeat(image[0][outside][:, None], 3, 1))
    assert (shown[edge] == labels.COLOURS[1]).all()
    inside = ~outside & ~edge
    expected = 0.6 * image[0][inside][:, None] + 0.4 * np.array(labels.COLOURS[1])
    np.testing.assert_allclose(shown[inside], expected, atol=0.51)
    with Image.open(write_overlay(tmp_path / "a.png", image, mask, TWO)) as opened:
        np.testing.assert_array_equal(np.asarray(opened), shown)


def test_overlays_of_volumes_show_the_slice_with_most() -> None:
    mask = np.zeros((10, 12, 6), np.uint8)
    mask[2:4, 3:9, 4] = 2
    shown = overlay(np.linspace(-500, 900, 720, dtype=np.float32).reshape(1, 10, 12, 6), mask, TWO)
    assert shown.shape == (12, 10, 3)
    assert (shown == labels.COLOURS[2]).all(-1).any()


def test_colours_stay_in_overlays() -> None:
    image = noise((3, 24, 24), 0)
    np.testing.assert_array_equal(overlay(image, np.zeros((24, 24), np.uint8), TWO), np.moveaxis(image, 0, -1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.png", square((24, 24), 1))
    before = path.read_bytes()

    def full(self: Image.Image, name: Path) -> None:
        Path(name).write_bytes(b"half")
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"the other half")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(BadFileError, match=r"a\.png: could not be written \(No space left on device\)"):
        write_mask(tmp_path / "a", square((24, 24), 2), TWO, FLAT)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(BadFileError, match=r"out/a\.png: could not be written"):
        write_mask(tmp_path / "out" / "a", square((24, 24)), TWO, FLAT)

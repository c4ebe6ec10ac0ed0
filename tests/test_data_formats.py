"""Formats are recognised by looking, and images and masks are paired by their names."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from prosma_ops.data import BadFileError, Case, inputs, read_image, read_label, recognise
from prosma_ops.data.case import File
from tests.data_folders import archives, describe, noise, picture, pictures, square, volume, volumes


def test_pictures(tmp_path: Path) -> None:
    found = recognise(pictures(tmp_path, suffix=".tif"))
    assert (found.format, found.dimensions, found.pixels, found.problems) == ("pictures", 2, "grey", ())
    assert [case.name for case in found.cases] == ["000", "001", "002", "003", "004", "005"]
    image = read_image(found.cases[2], 2)
    assert image.values.shape == (1, 24, 24)
    np.testing.assert_array_equal(image.values[0], noise((24, 24), 2))
    np.testing.assert_array_equal(read_label(found.cases[2], 2).values, square((24, 24)))


def test_pictures_in_folders_of_splits_that_share_names(tmp_path: Path) -> None:
    pictures(tmp_path / "train", 3)
    pictures(tmp_path / "Test", 2)
    found = recognise(tmp_path)
    names = {case.name: case.split for case in found.cases}
    assert sorted(names) == ["002", "test/000", "test/001", "train/000", "train/001"]
    assert names["002"] == "train"


def test_a_mask_may_have_a_suffix_and_another_format(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg", noise((16, 16), 0))
    picture(tmp_path / "masks" / "a_segmentation.png", square((16, 16)))
    (case,) = recognise(tmp_path).cases
    assert read_label(case, 2).values.sum() == 64


@pytest.mark.parametrize(("grey", "channels"), [(False, 3), (True, 1)], ids=["colours", "mixed"])
def test_colours_are_kept_if_all_pictures_have_them(tmp_path: Path, grey: bool, channels: int) -> None:
    pictures(tmp_path, 0)
    picture(tmp_path / "images" / "a.png", noise((16, 16, 3), 0))
    picture(tmp_path / "images" / "b.png", noise((16, 16) if grey else (16, 16, 3), 1))
    for name in "ab":
        picture(tmp_path / "masks" / f"{name}.png", square((16, 16)))
    found = recognise(tmp_path)
    assert [len(read_image(case, 2, found.pixels).values) for case in found.cases] == [channels, channels]


def test_volumes(tmp_path: Path) -> None:
    (volumes(tmp_path) / "images" / "._scan_000.nii.gz").write_bytes(b"left by macOS")
    found = recognise(tmp_path)
    assert (found.format, found.dimensions, len(found.cases), found.problems) == ("nifti", 3, 6, ())
    image = read_image(found.cases[3], 3)
    assert image.values.shape == (1, 15, 14, 10)
    assert image.spacing == (1.5, 1.0, 2.0)


def test_decathlon(tmp_path: Path) -> None:
    volumes(tmp_path, names=("imagesTr", "labelsTr"))
    training = [
        {"image": f"./imagesTr/scan_{i:03}.nii.gz", "label": f"./labelsTr/scan_{i:03}.nii.gz"} for i in range(7)
    ]
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    describe(tmp_path, modality={"0": "MRI"}, labels=labels, training=training)
    found = recognise(tmp_path)
    assert (found.format, found.channels, len(found.cases)) == ("decathlon", ("MRI",), 6)
    assert found.scheme is not None
    assert found.scheme.names == ("background", "Anterior", "Posterior")
    (problem,) = found.problems
    assert problem.file.endswith("scan_006.nii.gz")
    assert "no such file" in problem.message


def test_channels_in_the_fourth_axis(tmp_path: Path) -> None:
    values = np.stack([noise((8, 9, 7), channel) for channel in range(4)], -1)
    volume(tmp_path / "imagesTr" / "a.nii.gz", values)
    volume(tmp_path / "labelsTr" / "a.nii.gz", square((8, 9, 7)))
    (case,) = recognise(tmp_path).cases
    np.testing.assert_array_equal(read_image(case, 3).values, np.moveaxis(values, -1, 0))


def test_nnunet(tmp_path: Path) -> None:
    for name, folder in (("liver_001", "Tr"), ("liver_002", "Tr"), ("liver_009", "Ts")):
        for channel in (0, 1):
            volume(tmp_path / f"images{folder}" / f"{name}_{channel:04}.nii.gz", noise((8, 9, 7), channel))
        volume(tmp_path / f"labels{folder}" / f"{name}.nii.gz", square((8, 9, 7)))
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    describe(tmp_path, channel_names={"0": "CT", "1": "PET"}, labels=labels, file_ending=".nii.gz")
    found = recognise(tmp_path)
    assert (found.format, found.channels, found.problems) == ("nnunet", ("CT", "PET"), ())
    assert {case.name: case.split for case in found.cases} == {
        "liver_001": None,
        "liver_002": None,
        "liver_009": "test",
    }
    assert found.scheme is not None
    assert (found.scheme.regions, found.scheme.names, found.scheme.ignore) == (True, ("whole", "core"), (3,))
    np.testing.assert_array_equal(read_image(found.cases[0], 3).values[1], noise((8, 9, 7), 1))


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000"):
        volume(tmp_path / "images" / f"{name}.nii.gz", noise((8, 9, 7), 0))
    for name in "ab":
        volume(tmp_path / "labels" / f"{name}.nii.gz", square((8, 9, 7)))
    found = recognise(tmp_path)
    assert [len(case.images) for case in found.cases] == [2, 1]
    assert [Path(problem.file).name for problem in found.problems] == ["b_0000.nii.gz"]


def test_archives_with_lists(tmp_path: Path) -> None:
    found = recognise(archives(tmp_path))
    assert (found.format, found.dimensions, len(found.cases), found.problems) == ("archives", 2, 13, ())
    stacks = [case for case in found.cases if case.stack]
    assert [(case.name, case.split) for case in stacks] == [("case0009", "test")]
    assert read_image(stacks[0], 2).values.shape == (1, 5, 16, 16)
    assert read_image(found.cases[0], 2).values.shape == (1, 16, 16)
    assert {case.subject for case in found.cases} == {"case0001", "case0002", "case0003", "case0009"}


def test_a_list_that_names_a_missing_archive(tmp_path: Path) -> None:
    with (archives(tmp_path) / "lists" / "train.txt").open("a") as opened:
        opened.write("case0077_slice000\n")
    (problem,) = recognise(tmp_path).problems
    assert "case0077_slice000" in problem.message
    assert problem.file.endswith("train.txt")


def test_lists_of_slices_go_before_lists_of_volumes(tmp_path: Path) -> None:
    for name, shape in (("patient001_frame01_slice_1", (16, 16)), ("patient001_frame01", (3, 16, 16))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as opened:
            opened["image"], opened["label"] = noise(shape, 0), square(shape)
    (tmp_path / "train.list").write_text("patient001_frame01\n")
    (tmp_path / "train_slices.list").write_text("patient001_frame01_slice_1\n")
    found = recognise(tmp_path)
    assert [case.name for case in found.cases] == ["patient001_frame01_slice_1"]
    assert found.left_out == ("patient001_frame01",)


def test_an_archive_without_the_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=noise((8, 8), 0), label=square((8, 8)))
    np.savez(tmp_path / "b.npz", picture=noise((8, 8), 0))
    found = recognise(tmp_path)
    with pytest.raises(BadFileError, match=r"b\.npz.*has no array 'image'; it has picture"):
        read_image(found.cases[1], 2)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.array([{"a": 1}], object), label=square((8, 8)))
    (case,) = recognise(tmp_path).cases
    with pytest.raises(BadFileError, match=r"a\.npz.*pickle"):
        read_image(case, 2)


def test_what_is_none_of_the_formats_says_what_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"holds none of the formats that are read, but notes\.txt"):
        recognise(tmp_path)
    with pytest.raises(ValueError, match="does not exist; the data is a folder"):
        recognise(tmp_path / "absent")
    with pytest.raises(ValueError, match="is a file"):
        recognise(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is no JSON"), ("[]", "not an object"), ('{"labels": {"a": "b"}}', "'a' is 'b'")]
)
def test_a_bad_description_is_named(tmp_path: Path, content: str, message: str) -> None:
    (pictures(tmp_path) / "dataset.json").write_text(content)
    with pytest.raises(BadFileError, match=rf"dataset\.json.*{message}"):
        recognise(tmp_path)


def test_folders_within_are_splits_or_subjects(tmp_path: Path) -> None:
    for inner in ("train", "test"):
        for kind in ("images", "masks"):
            picture(tmp_path / "splits" / kind / inner / "0.png", square((16, 16)))
    for inner in ("anna", "bert"):
        for kind in ("images", "masks"):
            for name in "01":
                picture(tmp_path / "subjects" / kind / inner / f"{name}.png", square((16, 16)))
    found = recognise(tmp_path / "splits")
    assert {case.name: case.split for case in found.cases} == {"train/0": "train", "test/0": "test"}
    found = recognise(tmp_path / "subjects")
    assert {case.name: case.subject for case in found.cases} == {
        "anna/0": "anna",
        "anna/1": "anna",
        "bert/0": "bert",
        "bert/1": "bert",
    }


def test_volumes_of_one_slice_are_flat(tmp_path: Path) -> None:
    volume(tmp_path / "images" / "a.nii.gz", noise((16, 18, 1), 0))
    volume(tmp_path / "labels" / "a.nii.gz", square((16, 18, 1), 1)[..., :1])
    found = recognise(tmp_path)
    assert found.dimensions == 2
    assert read_image(found.cases[0], 2).values.shape == (1, 16, 18)
    assert read_label(found.cases[0], 2).values.shape == (16, 18)


def test_pages_and_records_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "a", 2)
    pages = [Image.fromarray(noise((8, 8), i)) for i in range(3)]
    pages[0].save(tmp_path / "a" / "images" / "000.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(BadFileError, match=r"000\.tif: has 3 pages"):
        read_image(Case("a", (File(tmp_path / "a" / "images" / "000.tif"),)), 2)
    colours = np.zeros((8, 8, 8), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    volume(tmp_path / "b.nii.gz", colours)
    with pytest.raises(BadFileError, match=r"b\.nii\.gz: holds records"):
        read_image(Case("b", (File(tmp_path / "b.nii.gz"),)), 3)


def test_inputs_without_masks(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        volume(tmp_path / f"{name}.nii.gz", noise((8, 8, 8), 0))
    assert [(case.name, len(case.images)) for case in inputs([tmp_path], 2)] == [("a", 2), ("b", 2)]
    single = inputs([tmp_path / "a_0000.nii.gz", tmp_path / "b_0001.nii.gz"])
    assert [(case.name, case.label) for case in single] == [("a_0000", None), ("b_0001", None)]
    with pytest.raises(ValueError, match="does not exist"):
        inputs([tmp_path / "absent.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there are no images in .*empty"):
        inputs([tmp_path / "empty"])
    (tmp_path / "b_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"b_0000\.nii\.gz is of an image b with 1 channels"):
        inputs([tmp_path], 2)

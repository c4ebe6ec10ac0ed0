"""`prosma-ops inspect`: what it counts, and that everything wrong is told by the name of its file."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

from prosma_ops import cli
from prosma_ops.data.case import BadFileError, Case, File
from prosma_ops.data.inspection import Inspection, as_json, inspect
from prosma_ops.data.reading import read_image, read_label
from tests.data_folders import AFFINE, archives, describe, noise, picture, pictures, square, volume, volumes


def messages(found: Inspection, severity: str) -> dict[str, str]:
    """By the names of files, without folders."""
    return {Path(p.file).name: p.message for p in found.problems if p.severity == severity}


def test_counts_sizes_spacings_labels(tmp_path: Path) -> None:
    found = inspect(volumes(tmp_path, count=10))
    content = as_json(found)
    assert (content["format"], content["cases"], content["usable"], content["problems"]) == ("nifti", 10, 10, [])
    assert content["sizes"]["smallest"] == [12, 14, 10]
    assert content["sizes"]["largest"] == [21, 14, 10]
    assert content["spacing"]["median"] == [1.5, 1.0, 2.0]
    assert content["spacing"]["orientations"] == {"RAS": 10}
    masks = [square((12 + i, 14, 10)) for i in range(10)]
    share = sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)
    assert [row["share"] for row in content["labels"]] == pytest.approx([1 - share, share])
    assert [row["cases"] for row in content["labels"]] == [10, 10]
    assert content["intensities"][0]["lowest"] == 0
    assert content["intensities"][0]["highest"] == 199
    assert content["splits"]["sizes"] == {"train": 7, "val": 1, "test": 2}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_truncated_pictures(tmp_path: Path, suffix: str) -> None:
    path = pictures(tmp_path, size=64, suffix=suffix) / "images" / f"002{suffix}"
    path.write_bytes(path.read_bytes()[:200])
    assert "damaged or truncated" in messages(inspect(tmp_path), "error")[f"002{suffix}"]


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_files_that_are_something_else(tmp_path: Path, content: bytes) -> None:
    (pictures(tmp_path) / "masks" / "003.png").write_bytes(content)
    (volumes(tmp_path / "3d") / "images" / "scan_001.nii.gz").write_bytes(content)
    assert "003.png" in messages(inspect(tmp_path), "error")
    assert "scan_001.nii.gz" in messages(inspect(tmp_path / "3d"), "error")


def test_truncated_volumes_and_archives(tmp_path: Path) -> None:
    scan = volumes(tmp_path / "volumes") / "images" / "scan_004.nii.gz"
    scan.write_bytes(scan.read_bytes()[: scan.stat().st_size // 2])
    for path in (archives(tmp_path / "archives")).rglob("*case000[29]*"):
        path.write_bytes(path.read_bytes()[:300])
    assert set(messages(inspect(tmp_path / "volumes"), "error")) == {"scan_004.nii.gz"}
    damaged = messages(inspect(tmp_path / "archives"), "error")
    assert {name.partition("[")[0] for name in damaged} == {
        "case0009.npy.h5",
        *(f"case0002_slice{number:03}.npz" for number in range(4)),
    }


def test_images_and_masks_without_one_another(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "masks" / "001.png").unlink()
    (tmp_path / "images" / "004.png").unlink()
    found = inspect(tmp_path)
    assert "has no mask in" in messages(found, "error")["001.png"]
    assert "without an image" in messages(found, "warning")["004.png"]


def test_shapes_and_affines_that_disagree(tmp_path: Path) -> None:
    volumes(tmp_path)
    volume(tmp_path / "labels" / "scan_001.nii.gz", square((13, 14, 11)))
    moved = AFFINE.copy()
    moved[0, 3] = 4
    volume(tmp_path / "labels" / "scan_002.nii.gz", square((14, 14, 10)), moved)
    barely = AFFINE.copy()
    barely[0, 3] = 1e-4
    volume(tmp_path / "labels" / "scan_003.nii.gz", square((15, 14, 10)), barely)
    errors = messages(inspect(tmp_path), "error")
    assert set(errors) == {"scan_001.nii.gz", "scan_002.nii.gz"}
    assert "has shape (13, 14, 11), but" in errors["scan_001.nii.gz"]
    assert "by up to 4 mm" in errors["scan_002.nii.gz"]


def test_pictures_of_another_size_than_their_mask(tmp_path: Path) -> None:
    picture(pictures(tmp_path) / "masks" / "002.png", square((24, 20)))
    assert "(24, 20)" in messages(inspect(tmp_path), "error")["002.png"]


def test_labels_outside_the_classes(tmp_path: Path) -> None:
    describe(pictures(tmp_path), labels={"background": 0, "nerve": 1})
    picture(tmp_path / "masks" / "005.png", square((24, 24), 3))
    found = inspect(tmp_path)
    assert messages(found, "error") == {"005.png": "has the labels 3, which are none of the classes (0, 1)"}


def test_values_that_no_class_can_have(tmp_path: Path) -> None:
    volumes(tmp_path)
    for name, value in (("001", 0.5), ("002", np.nan)):
        mask = square((12 + int(name), 14, 10)).astype(np.float32) * np.float32(value)
        volume(tmp_path / "labels" / f"scan_{name}.nii.gz", mask)
    errors = messages(inspect(tmp_path), "error")
    assert "0.5, which is no whole number" in errors["scan_001.nii.gz"]
    assert "NaN" in errors["scan_002.nii.gz"]


def test_nan_in_a_volume(tmp_path: Path) -> None:
    values = noise((14, 14, 10), 0).astype(np.float32)
    values[3, 4, :5] = np.nan
    volume(volumes(tmp_path) / "images" / "scan_002.nii.gz", values)
    assert messages(inspect(tmp_path), "error") == {"scan_002.nii.gz": "has NaN in 5 of 1960 pixels"}


def test_warnings_do_not_stop(tmp_path: Path) -> None:
    pictures(tmp_path)
    picture(tmp_path / "masks" / "001.png", np.zeros((24, 24), np.uint8))
    picture(tmp_path / "images" / "002.png", np.full((24, 24), 7, np.uint8))
    picture(tmp_path / "images" / "003.png", noise((24, 24), 0))
    found = inspect(tmp_path)
    assert not found.errors
    warnings = messages(found, "warning")
    assert warnings["001.png"] == "is a mask of nothing but background"
    assert warnings["002.png"] == "is the same everywhere: 7"
    assert warnings["003.png"].startswith("is the same image as")
    assert warnings["003.png"].endswith("000.png")


@pytest.mark.parametrize("name", ["train", "val"])
def test_an_empty_split(tmp_path: Path, name: str) -> None:
    splits = {"train": ["000.png"], "val": ["001.png"], "test": ["002.png"]} | {name: []}
    (pictures(tmp_path) / "splits.json").write_text(json.dumps(splits))
    assert messages(inspect(tmp_path), "error") == {"splits.json": f"the split {name} is empty"}


def test_a_single_odd_mask_and_a_class_that_nobody_has(tmp_path: Path) -> None:
    pictures(tmp_path, 20)
    picture(tmp_path / "masks" / "004.png", square((24, 24), 3))
    warnings = messages(inspect(tmp_path), "warning")
    assert "only mask of 20" in warnings["004.png"]
    assert warnings["masks"] == "no mask has 'class 2'"


def test_images_with_another_number_of_channels(tmp_path: Path) -> None:
    volume(volumes(tmp_path) / "images" / "scan_002.nii.gz", noise((14, 14, 10, 2), 0))
    assert messages(inspect(tmp_path), "error") == {"scan_002.nii.gz": "has 2 channels, where most have 1"}


def test_an_affine_that_maps_onto_nothing(tmp_path: Path) -> None:
    raw = bytearray(nibabel.Nifti1Image(noise((14, 14, 10), 0), AFFINE).to_bytes())
    raw[280:328] = bytes(48)  # the affine, which nibabel itself would not write so
    (volumes(tmp_path) / "images" / "scan_002.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    assert "maps the volume onto nothing" in messages(inspect(tmp_path), "error")["scan_002.nii.gz"]


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures(tmp_path / "good", 12) / "masks" / "003.png").unlink()
    status = cli.main(["inspect", str(tmp_path / "good"), "--json", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    assert status == 1
    assert "pictures, 2-D" in printed
    assert "has no mask in" in printed
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["cases"] == 12
    assert len(content["each"]) == 12
    assert cli.main(["inspect", "phantom:cases=10,size=32"]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_the_command_refuses_what_is_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(tmp_path)])
    assert "holds none of the formats" in capsys.readouterr().err


def test_inspecting_needs_no_torch(python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    pictures(tmp_path / "data")
    code = """
        import sys
        from prosma_ops import cli
        print(cli.main(["inspect", "data"]), sorted({"torch", "monai"} & set(sys.modules)))
    """
    done = python(code)
    assert done.stdout.endswith("0 []\n"), done.stdout + done.stderr


def test_images_with_fewer_channels_than_are_named(tmp_path: Path) -> None:
    describe(volumes(tmp_path, 2), channel_names={"0": "T1", "1": "T2"})
    found = inspect(tmp_path)
    expected = "has 1 channels, where dataset.json names 2"
    assert messages(found, "error") == {"scan_000.nii.gz": expected, "scan_001.nii.gz": expected}
    assert as_json(found)["usable"] == 0


def test_a_missing_library_is_named(python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    code = """
        import sys
        sys.modules["nibabel"] = None
        from prosma_ops import cli
        cli.main(["inspect", "phantom"])
    """
    done = python(code)
    assert done.returncode == 2
    assert "nibabel is not installed: pip install 'prosma-ops[train]'" in done.stderr


KINDS = ("a.png", "a.jpg", "a.tif", "a.nii", "a.nii.gz", "a.npz", "a.h5")


def complaint(read: Callable[..., object], case: Case, dimensions: int) -> str:
    try:
        read(case, dimensions)
    except BadFileError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", KINDS)
def test_damage_anywhere_is_a_bad_file_and_nothing_else(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are lost or changed at random: reading succeeds, or says which file is damaged."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a damaged size may be of hundreds of megabytes
    path = tmp_path / name
    dimensions = 3 if ".nii" in name else 2
    member = ("image", "label") if name in ("a.npz", "a.h5") else ("", "")
    if dimensions == 3:
        volume(path, noise((9, 8, 7), 1).astype(np.int16))
    elif name == "a.npz":
        np.savez_compressed(path, image=noise((9, 9), 1), label=square((9, 9)))
    elif name == "a.h5":
        with h5py.File(path, "w") as opened:
            opened["image"], opened["label"] = noise((9, 9), 1), square((9, 9))
    else:
        picture(path, noise((20, 20), 1))
    whole, generator = path.read_bytes(), random.Random(0)
    case = Case("a", (File(path, member[0]),), File(path, member[1]))
    failures = 0
    for _ in range(60):
        damaged = bytearray(whole)
        if generator.random() < 0.3:
            damaged = damaged[: generator.randrange(len(damaged))]
        for _ in range(generator.choice((1, 5, 20)) if damaged else 0):
            damaged[generator.randrange(min(len(damaged), generator.choice((40, 400))))] = generator.randrange(256)
        path.write_bytes(bytes(damaged))
        messages_of = [complaint(read, case, dimensions) for read in (read_image, read_label)]
        assert all(name in message for message in messages_of if message)
        failures += sum(bool(message) for message in messages_of)
    assert failures > 20

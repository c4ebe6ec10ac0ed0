"""Predictions: files like those that came in, and what becomes of images that cannot be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from benchmarks import prediction
from prosma_ops.data import BadFileError, Preparation, inputs, recognise, survey
from prosma_ops.inference.prediction import predict, remaining, require_other_files, written
from prosma_ops.inference.processes import Processes
from prosma_ops.inference.segmenting import Segmenter
from tests import two_processes
from tests.data_folders import picture, square, volume
from tests.small_runs import Brightness

AFFINE = np.array([[0, -1.2, 0, 7], [0, 0, 3.0, -5], [0.9, 0, 0, 2], [0, 0, 0, 1]])


def bright(shape: tuple[int, ...]) -> np.ndarray:
    return np.where(square(shape), 200, 20).astype(np.uint8)


def scans(folder: Path, channels: int = 1) -> Segmenter:
    """A volume to train on, "a", with a bright box that is the mask."""
    for number in range(channels):
        name = f"a_{number:04}.nii.gz" if channels > 1 else "a.nii.gz"
        volume(folder / "images" / name, bright((12, 10, 14)).astype(np.int16), AFFINE)
    volume(folder / "labels" / "a.nii.gz", square((12, 10, 14)), AFFINE)
    return Segmenter(Brightness(), Preparation.of(survey(recognise(folder))), patch_size=(8, 8, 8))


def pictures_of(folder: Path) -> Segmenter:
    picture(folder / "images" / "a.png", bright((24, 20)))
    picture(folder / "masks" / "a.png", square((24, 20)))
    return Segmenter(Brightness(), Preparation.of(survey(recognise(folder))), patch_size=(16, 16))


def test_volumes(tmp_path: Path) -> None:
    segmenter = scans(tmp_path)
    (done,) = predict(segmenter, inputs([tmp_path / "images"]), tmp_path / "out", probabilities=True)
    assert done.problem is None
    assert done.files == (
        tmp_path / "out" / "a.nii.gz",
        tmp_path / "out" / "overlays" / "a.png",
        tmp_path / "out" / "probabilities" / "a.nii.gz",
    )
    mask, probabilities = (nibabel.load(path) for path in (done.files[0], done.files[2]))
    np.testing.assert_array_equal(np.asarray(mask.dataobj), square((12, 10, 14)))
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
    values = np.asarray(probabilities.dataobj)
    assert values.shape == (12, 10, 14, 2)
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(values.argmax(-1), square((12, 10, 14)))
    with Image.open(done.files[1]) as opened:
        assert opened.mode == "RGB"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "overlays", "probabilities"]


def test_pictures(tmp_path: Path) -> None:
    segmenter = pictures_of(tmp_path)
    new = picture(tmp_path / "new" / "b.png", bright((40, 24)))
    (done,) = predict(segmenter, inputs([new]), tmp_path / "out", overlays=False)
    assert [path.name for path in done.files] == ["b.png"]
    with Image.open(done.files[0]) as opened:
        assert opened.mode == "P"
        np.testing.assert_array_equal(np.asarray(opened), square((40, 24)))


def test_several_channels(tmp_path: Path) -> None:
    segmenter = scans(tmp_path, channels=2)
    cases = inputs([tmp_path / "images"], 2)
    assert [case.name for case in cases] == ["a"]
    (done,) = predict(segmenter, cases, tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(nibabel.load(done.files[0]).dataobj), square((12, 10, 14)))
    (bad,) = predict(segmenter, inputs([tmp_path / "images" / "a_0001.nii.gz"], 2), tmp_path / "other")
    assert bad.problem is not None
    assert "has 1 channels; 2 are needed" in bad.problem.message
    assert not (tmp_path / "other").exists()


def test_a_bad_image_is_told_and_the_others_are_segmented(tmp_path: Path) -> None:
    segmenter = scans(tmp_path)
    volume(tmp_path / "new" / "flat.nii.gz", np.zeros((6, 7), np.float32))
    holes = bright((12, 10, 14)).astype(np.float32)
    holes[0, 0, 0] = np.nan
    volume(tmp_path / "new" / "holes.nii.gz", holes)
    (tmp_path / "new" / "junk.nii.gz").write_bytes(b"no volume")
    volume(tmp_path / "new" / "whole.nii.gz", bright((12, 10, 14)))
    told: list[str] = []
    found = list(
        predict(segmenter, inputs([tmp_path / "new"]), tmp_path / "out", told=lambda case: told.append(case.name))
    )
    assert told == ["flat", "holes", "junk", "whole"]
    reasons = {done.case.name: done.problem.message for done in found if done.problem is not None}
    assert set(reasons) == {"flat", "holes", "junk"}
    assert "shape (6, 7)" in reasons["flat"]
    assert "has NaN or infinity in it" in reasons["holes"]
    assert "damaged or truncated" in reasons["junk"]
    assert written(found[3].case, tmp_path / "out") == tmp_path / "out" / "whole.nii.gz"
    assert written(found[2].case, tmp_path / "out") is None


def test_a_mask_is_written_when_all_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that --continue, which goes by the masks, makes what an interrupt has left out."""

    def stopped(*_: Any) -> Path:
        raise KeyboardInterrupt

    segmenter, cases = pictures_of(tmp_path), inputs([tmp_path / "images"])
    for name in ("write_overlay", "write_probabilities"):
        with monkeypatch.context() as patch:
            patch.setattr(f"prosma_ops.inference.prediction.{name}", stopped)
            with pytest.raises(KeyboardInterrupt):
                list(predict(segmenter, cases, tmp_path / "out", probabilities=True))
        assert written(cases[0], tmp_path / "out") is None


def test_what_cannot_be_written_ends_it(tmp_path: Path) -> None:
    segmenter = pictures_of(tmp_path)
    (tmp_path / "out").write_text("")
    with pytest.raises(BadFileError, match=r"out/overlays/a\.png: could not be written"):
        list(predict(segmenter, inputs([tmp_path / "images"]), tmp_path / "out"))


def one_that_is_late(rank: int, folder: Path) -> list[str]:
    """Writes a mask as soon as it knows what there is to do; the second process looks a second later."""
    cases = inputs([folder / "images"])
    time.sleep(rank)
    found = remaining(cases, folder / "out", Processes(rank, 2))
    picture(folder / "out" / f"{found[rank].name}.png", square((8, 8)))
    return [case.name for case in found]


def test_processes_agree_on_what_is_left(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path / "images" / f"{name}.png", bright((8, 8)))
    picture(tmp_path / "out" / "b.png", square((8, 8)))
    assert two_processes.run(one_that_is_late, tmp_path, tmp_path) == [["a", "c", "d"]] * 2


def test_no_image_is_written_over(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", bright((24, 20)))
    cases = inputs([tmp_path / "images"])
    require_other_files(cases, tmp_path)
    with pytest.raises(ValueError, match=r"a\.png is an image, and its mask would be written over it"):
        require_other_files(cases, tmp_path / "other" / ".." / "images")


def test_an_image_of_the_training_is_no_obstacle(tmp_path: Path) -> None:
    """A picture in colours where the training was grey is read as grey, too."""
    segmenter = pictures_of(tmp_path)
    colours = np.repeat(bright((24, 20))[..., None], 3, -1)
    (done,) = predict(segmenter, inputs([picture(tmp_path / "new.png", colours)]), tmp_path / "out")
    with Image.open(done.files[0]) as opened:
        np.testing.assert_array_equal(np.asarray(opened), square((24, 20)))


def test_what_a_prediction_takes_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--model", "unet", "--shape", "40", "24", "20", "--patch", "16", "--windows", "2", "--channels", "2"]
    monkeypatch.setattr("sys.argv", ["prediction", *small])
    assert prediction.main() == 0
    said = capsys.readouterr().out
    assert "unet, 40x24x20, 2 channels, 4 classes, 16 windows of 16^3" in said
    assert "GB beside the model (2 allowed)" in said


@pytest.mark.slow
def test_a_large_volume_takes_less_than_two_gigabytes_beside_the_model(python: Callable[..., Any]) -> None:
    done = python(["-m", "benchmarks.prediction", "--windows", "2", "--channels", "4"])
    assert done.returncode == 0, done.stdout + done.stderr

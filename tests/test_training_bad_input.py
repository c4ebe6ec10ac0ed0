"""What cannot be trained is refused before a step is made, and named; a loss that is not finite ends the training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from prosma_ops.cli import main
from prosma_ops.training import TrainingError
from tests.small_training import SMALL, log, resumed, trained


def pictures(folder: Path, count: int = 12) -> Path:
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((16, 16), np.uint8)
        mask[4:9, 3:12] = 1
        Image.fromarray(generator.integers(0, 255, (16, 16), np.uint8)).save(folder / "images" / f"{number:02}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02}.png")
    return folder


def truncated(folder: Path) -> None:
    path = folder / "images" / "03.png"
    path.write_bytes(path.read_bytes()[:60])


def unlike(folder: Path) -> None:
    Image.fromarray(np.zeros((16, 18), np.uint8)).save(folder / "masks" / "04.png")


def unmasked(folder: Path) -> None:
    (folder / "masks" / "05.png").unlink()


def empty_split(folder: Path) -> None:
    (folder / "splits.json").write_text('{"train": [], "val": ["01"], "test": ["02"]}')


BAD = {
    "a truncated image": (truncated, r"images/03\.png: "),
    "shapes that disagree": (unlike, r"masks/04\.png: .*18"),
    "an image without a mask": (unmasked, r"images/05\.png: has no mask"),
    "an empty split": (empty_split, "the split train is empty"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_data_is_refused(tmp_path: Path, what: str) -> None:
    spoil, message = BAD[what]
    spoil(pictures(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"(?s)data has .*error.*, so nothing is trained on it:.*" + message):
        trained(tmp_path / "run", data=str(tmp_path / "data"))
    assert not (tmp_path / "run").exists()


def test_a_mask_of_background_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "data")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "data" / "masks" / "05.png")
    settings = [f"--set={name}={SMALL[name]}" for name in ("batch_size", "epoch_steps", "workers", "tensorboard")]
    arguments = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--set", "steps=1", *settings]
    assert main(["train", *arguments, "--set", "model_options.widths=[2,4]"]) == 0
    assert "05.png: is a mask of nothing but background" in capsys.readouterr().out


def test_nan_in_a_volume(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(4):
        volume = np.full((8, 8, 8), number + 1, np.float32)
        volume[number, 2, 3] = np.nan if number == 2 else 0
        label = (volume == 0).astype(np.uint8)
        for name, values in (("images", volume), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "data" / name / f"{number}.nii.gz")
    with pytest.raises(ValueError, match=r"data has an error.*\n  .*images/2\.nii\.gz: has NaN in 1 of 512"):
        trained(tmp_path / "run", data=str(tmp_path / "data"))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no data": ({"data": ""}, "data is not given: --data names a folder"),
    "a folder that is not there": ({"data": "/nowhere/at/all"}, "/nowhere/at/all"),
    "an unknown network": ({"model": "vnet"}, "model is 'vnet'; it must be one of unet, attention_unet"),
    "an option it has not": (
        {"model_options": {"depth": 3}},
        "model_options has no key 'depth' for prosma_unet: it has",
    ),
    "an option of the data's": ({"model_options": {"classes": 3}}, "model_options has no key 'classes'"),
    "a wrong option": ({"model_options": {"preset": "huge"}}, "preset"),
    "a loss's option": ({"loss_options": {"gamma": 2}}, "loss_options: .*gamma"),
    "a patch of three sides": ({"patch_size": [8, 8, 8]}, r"patch_size is \[8, 8, 8\]; these images have 2 dimensions"),
    "mm for pictures": ({"spacing": [1, 1]}, r"spacing is \[1.0, 1.0\], but it is for volumes, and these are none"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_named(tmp_path: Path, what: str) -> None:
    changes, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        trained(tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_that_holds_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run", steps=1)
    with pytest.raises(SystemExit):
        main(["train", "--data", "phantom", "--out", str(tmp_path / "run")])
    assert "holds a run already; --resume goes on with it, another --out begins anew" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--resume", "--out", str(tmp_path / "other")])
    assert "is no folder; what `prosma-ops train --out` wrote is needed" in capsys.readouterr().err


def test_a_loss_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--set={name}={value}" for name, value in SMALL.items() if name not in ("data", "model_options")]
    wild = ["--set=optimizer=sgd", "--set=learning_rate=1e30", "--set=warmup=0", "--set=clip=0"]
    run = tmp_path / "run"
    status = main(
        ["train", "--data", SMALL["data"], "--out", str(run), *arguments, *wild, "--set=model_options.widths=[2,4]"]
    )
    said = capsys.readouterr().err
    assert status == 1
    step = len(log(run)) + 1
    assert f"of step {step} is nan, so the training has stopped; its batch was cut from phantom_" in said
    assert "There is no checkpoint yet." in said
    assert not (run / "last.safetensors").exists()


def test_after_a_checkpoint_it_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prosma_ops.training.engine import Training

    make = Training._reduced
    with monkeypatch.context() as patch:
        patch.setattr(
            Training, "_reduced", lambda self, losses: make(self, losses * math.nan if self.at.step == 6 else losses)
        )
        with pytest.raises(
            TrainingError, match=r"(?s)the loss of step 7 is nan.*step-00000004\.safetensors; .* goes on"
        ):
            trained(tmp_path / "run")
    assert resumed(tmp_path / "run").step == 12

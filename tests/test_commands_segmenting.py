"""`prosma-ops evaluate` and `prosma-ops predict`, as they are called."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from prosma_ops import cli
from prosma_ops.commands import predict as command
from prosma_ops.data import recognise
from prosma_ops.inference import Segmenter
from prosma_ops.training.run_folder import RunFolder
from tests.data_folders import pictures, volumes
from tests.small_runs import run_folder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit status of `prosma-ops ARGUMENTS`, and what it said."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return status, *capsys.readouterr()

    return call


def test_evaluate_writes_scores_of_the_test_split(tmp_path: Path, ran: Run) -> None:
    data = volumes(tmp_path / "data", 10)
    folder = run_folder(tmp_path / "run", data)
    status, said, _ = ran("evaluate", "--run", folder.path, "--data", data)
    assert status == 0
    assert "2 cases" in said
    assert "class 1" in said
    content = json.loads((folder.path / "evaluation-test" / "scores.json").read_text())
    assert [case["name"] for case in content["cases"]] == folder.cases["test"]
    assert (content["split"], content["unit"], content["weights"]) == ("test", "mm", "best")
    rows = (folder.path / "evaluation-test" / "scores.csv").read_text().splitlines()
    assert len(list(csv.DictReader(rows))) == 2


def test_evaluate_all_of_another_folder(tmp_path: Path, ran: Run) -> None:
    folder = run_folder(tmp_path / "run", pictures(tmp_path / "data", 8))
    other = pictures(tmp_path / "other", 3)
    options = ("--split", "all", "--out", tmp_path / "scores", "--weights", "last", "--flips", "--overlap", "0.25")
    status, said, _ = ran("evaluate", "--run", folder.path, "--data", other, *options)
    assert status == 0
    assert "3 cases" in said
    content = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert (content["flips"], content["overlap"], len(content["cases"])) == (True, 0.25, 3)


def test_a_file_that_cannot_be_read_makes_the_status_1(tmp_path: Path, ran: Run) -> None:
    data = pictures(tmp_path / "data", 10)
    folder = run_folder(tmp_path / "run", data)
    bad = data / "images" / f"{folder.cases['test'][0]}.png"
    bad.write_bytes(b"")
    status, said, _ = ran("evaluate", "--run", folder.path, "--data", data)
    assert status == 1
    assert str(bad) in said
    _, shown, wrong = ran("predict", data / "images", "--run", folder.path, "--out", tmp_path / "out")
    assert "9 of 10 images segmented" in shown
    assert f"error: {bad}: cannot be read" in wrong


def test_predict_writes_masks_and_goes_on_where_it_stopped(
    tmp_path: Path, ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = volumes(tmp_path / "data", 5)
    folder = run_folder(tmp_path / "run", data)
    arguments = ("predict", data / "images", "--run", folder.path, "--out", tmp_path / "out")
    whole = command.predicted

    def interrupted(options: Any, segmenter: Any, cases: Any, shown: bool) -> Any:
        seen: list[str] = []

        def stop(case: Any) -> Any:
            seen.append(case.name)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return type(segmenter.preparation).image(segmenter.preparation, case)

        object.__setattr__(segmenter.preparation, "image", stop)
        return whole(options, segmenter, cases, shown)

    monkeypatch.setattr(command, "predicted", interrupted)
    status, _, wrong = ran(*arguments)
    assert status == 130
    assert "interrupted: 2 of 5 images are segmented, each whole" in wrong
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["scan_000.nii.gz", "scan_001.nii.gz"]
    before = (tmp_path / "out" / "scan_000.nii.gz").stat().st_mtime_ns
    status, said, _ = ran(*arguments, "--continue", "--probabilities", "--no-overlays")
    assert status == 0
    assert "3 images segmented" in said
    assert (tmp_path / "out" / "scan_000.nii.gz").stat().st_mtime_ns == before
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 5
    assert len(list((tmp_path / "out" / "probabilities").iterdir())) == 3
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 2


def test_an_interrupt_ends_an_evaluation_quietly(tmp_path: Path, ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    data = pictures(tmp_path / "data", 6)
    folder = run_folder(tmp_path / "run", data)
    monkeypatch.setattr(Segmenter, "labels", stop)
    status, _, wrong = ran("evaluate", "--run", folder.path, "--data", data)
    assert (status, wrong.strip()) == (130, "interrupted")
    assert not (folder.path / "evaluation-test").exists()


def test_predict_is_what_evaluate_scores(tmp_path: Path, ran: Run) -> None:
    data = volumes(tmp_path / "data", 8)
    folder = run_folder(tmp_path / "run", data)
    case = next(case for case in recognise(data).cases if case.name == folder.cases["test"][0])
    ran("predict", case, "--run", folder.path, "--out", tmp_path / "out")
    found = np.asarray(nibabel.load(tmp_path / "out" / f"{case.name}.nii.gz").dataobj) == 1
    actual = np.asarray(nibabel.load(str(case.label)).dataobj) == 1
    ran("evaluate", "--run", folder.path, "--data", data)
    content = json.loads((folder.path / "evaluation-test" / "scores.json").read_text())
    (scores,) = next(each["classes"] for each in content["cases"] if each["name"] == case.name)
    assert scores["predicted"] == found.sum()
    assert scores["dice"] == pytest.approx(2 * (found & actual).sum() / (found.sum() + actual.sum()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--run", "{tmp}/none", "--data", "{data}"), "none is no folder"),
        (("evaluate", "--run", "{data}", "--data", "{data}"), "is no run of `prosma-ops train`: it has no conf"),
        (("evaluate", "--run", "{run}", "--data", "{tmp}/none"), "none does not exist"),
        (("evaluate", "--run", "{run}", "--data", "phantom:dimensions=2,cases=4,size=16"), "2-D images; the run"),
        (("evaluate", "--run", "{run}", "--data", "{data}", "--device", "gpu"), "--device is 'gpu', which cannot"),
        (("evaluate", "--run", "{run}", "--data", "{data}", "--overlap", "1"), "overlap is a share"),
        (("evaluate", "--run", "{run}", "--data", "{data}", "--precision", "16-mixed"), "16-mixed, which needs a GPU"),
        (("evaluate", "--run", "{still}", "--data", "{data}", "--flips"), "flipped no images"),
        (("predict", "{tmp}/none", "--run", "{run}", "--out", "{tmp}/out"), "none does not exist"),
        (("predict", "{tmp}", "--run", "{run}", "--out", "{tmp}/out"), "there are no images in"),
        (("predict", "{data}/images", "--run", "{run}", "--out", "{data}/images"), "would be written over it"),
        (("predict", "{data}/images", "--run", "{run}", "--out", "{run}/log.jsonl"), "which is a file"),
        (("predict", "{data}/images", "--run", "{bare}", "--out", "{tmp}/out"), "bare has no best.safetensors"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, ran: Run, arguments: tuple[str, ...], message: str) -> None:
    data = volumes(tmp_path / "data", 4)
    whole = run_folder(tmp_path / "run", data)
    (whole.path / "log.jsonl").touch()
    bare = run_folder(tmp_path / "bare", data)
    for weights in ("best", "last"):
        bare.weights_path(weights).unlink()
    run_folder(tmp_path / "still", data, augmentation={"flip": 0.0})
    places = {"tmp": tmp_path, "data": data, "run": whole.path, "bare": bare.path, "still": tmp_path / "still"}
    status, _, wrong = ran(*(argument.format(**places) for argument in arguments))
    assert status == 2
    assert message in " ".join(wrong.split())


@pytest.mark.slow
def test_two_processes_score_each_case_once(tmp_path: Path, python: Callable[..., Any]) -> None:
    data = pictures(tmp_path / "data", 9)
    folder = run_folder(tmp_path / "run", data)
    common = ["--run-folder", str(folder.path), "--data", str(data), "--split", "all"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prosma_ops"]
    done = python([*torchrun, "evaluate", *common, "--out", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 cases") == 1
    assert cli.main(["evaluate", *common, "--out", str(tmp_path / "one")]) == 0
    for name in ("scores.csv", "scores.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_a_run_is_opened_without_unpickling(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 4)
    folder = run_folder(tmp_path / "run", data)
    (folder.path / "best.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"best\.safetensors: cannot be read"):
        RunFolder.open(folder.path).model()

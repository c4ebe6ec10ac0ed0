"""`prosma-ops demo`, with a few steps on tiny images: the page says what the runs' files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prosma_ops import cli
from prosma_ops.report import demonstration
from prosma_ops.report.demonstration import discard
from prosma_ops.training import Outcome, TrainingError
from prosma_ops.training.run_folder import RunFolder
from tests.test_report import parity_record, parsed

TINY = ("data=phantom:cases=10,size=24", "model_options.widths=[4, 6, 8]", "batch_size=2", "workers=0", "log_every=1")


def demo(out: Path, *more: object, steps: int = 3) -> int:
    settings = [word for setting in (*TINY, "epoch_steps=2") for word in ("--set", setting)]
    return cli.main(["demo", "--out", str(out), "--steps", str(steps), *settings, *map(str, more)])


def test_the_page_holds_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parity, speeds = tmp_path / "parity.json", tmp_path / "speeds.json"
    parity.write_text(json.dumps({"device": "some CPU", "records": [parity_record("sinkhorn", 0.5)]}))
    record = {"operator": "transport", "work": "forward", "dtype": "float32", "contestants": {"ours": {"median": 1e-3}}}
    speeds.write_text(json.dumps({"machine": {"device": "some CPU"}, "records": [record]}))
    assert demo(tmp_path / "out", "--parity", parity, "--speeds", speeds) == 0
    assert "report.html" in capsys.readouterr().out
    html = (tmp_path / "out" / "report.html").read_text()
    reader = parsed(html)
    assert all(place.startswith("data:image/png;base64,") for place in reader.loaded)
    # 3 rows of image, truth and two predictions; one image, and a picture for each of the two gates.
    assert len(reader.loaded) == 3 * 4 + 1 + 2
    assert html.count("<svg") == 5
    text = " ".join(" ".join(reader.text).split())
    for part in ("ProSMA-UNet, LoMix", "U-Net, one output", "Parity", "sinkhorn", "transport", "1 ms"):
        assert part in text
    for model in ("prosma_unet", "unet"):
        scores = json.loads((tmp_path / "out" / model / "evaluation-test" / "scores.json").read_text())
        (mean,) = (each["mean"] for each in scores["summary"] if (each["name"], each["score"]) == ("mean", "dice"))
        assert f"{mean:.3f}" in text
    steps = [entry for entry in RunFolder.open(tmp_path / "out" / "prosma_unet").log() if entry["kind"] == "step"]
    name, weight = max(steps[-1]["loss_weights"].items(), key=lambda item: item[1])
    assert re.search(rf"{re.escape(name)} {weight:.3f}", text)


def test_a_demonstration_takes_the_place_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = dict(list(demonstration.NETWORKS.items())[1:])
    monkeypatch.setattr(demonstration, "NETWORKS", networks)
    monkeypatch.setattr(demonstration, "written", lambda *_: "a page")
    assert demo(tmp_path, steps=1) == 0
    (tmp_path / "unet" / "best.safetensors").unlink()
    assert demo(tmp_path, steps=2) == 0
    assert len(RunFolder.open(tmp_path / "unet").log()) > 2
    assert (tmp_path / "report.html").read_text() == "a page"


def test_an_interrupted_training_ends_the_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = Outcome(RunFolder.__new__(RunFolder), 1, None, 0, signal=2, first=True)
    monkeypatch.setattr(demonstration, "train", lambda *_, **__: stopped)
    assert demo(tmp_path) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_training_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> Outcome:
        raise TrainingError("the loss is NaN at step 3")

    monkeypatch.setattr(demonstration, "train", failing)
    assert demo(tmp_path) == 1
    assert "prosma-ops demo: the loss is NaN at step 3" in capsys.readouterr().err


def test_nothing_of_somebody_else_is_removed(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    discard(tmp_path / "unet")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="unet is no run of an earlier demonstration"):
        discard(tmp_path / "unet")
    assert (tmp_path / "unet" / "letter.txt").exists()
    discard(tmp_path / "none")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", "0"), "--steps must be at least 1, got 0"),
        (("--parity", "none.json"), "none.json: is no JSON (No such file"),
        (("--set", "stepz=3"), "has no key 'stepz'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "--out", str(tmp_path / "out"), *more])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()

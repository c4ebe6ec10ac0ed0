"""The accuracy benchmark: a queue that stops and goes on, and tables that say what is not there yet."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import cells, table
from benchmarks.accuracy.cells import Run
from tests.small_training import SMALL
from tests.test_training_bad_input import pictures


def test_the_first_24_runs() -> None:
    first = cells.runs()[:24]
    assert Counter((run.share, run.model, run.loss) for run in first) == {
        (share, model, loss): 3
        for share in (1.0, 0.05)
        for model in ("unet", "prosma_unet")
        for loss in ("dice_ce", "lomix")
    }
    assert {run.data for run in first} == {"hippocampus"}
    assert len(set(map(str, cells.runs()))) == len(cells.runs())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Run]:
    pictures(tmp_path / "data" / "usgra")
    settings = {name: value for name, value in SMALL.items() if name != "data"}
    monkeypatch.setattr(
        Run, "settings", lambda run: {**settings, "model": run.model, "loss": run.loss, "seed": run.seed}
    )
    return [Run("usgra", 1.0, "unet", loss, seed) for seed in (0, 1) for loss in ("dice_ce", "lomix")]


def test_the_queue_goes_on_where_it_was(small: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prosma_ops.training.engine import Training

    data, runs, results = tmp_path / "data", tmp_path / "runs", tmp_path / "results"
    monkeypatch.setattr(cells, "runs", lambda: small)
    arguments = ["--data", str(data), "--runs", str(runs), "--results", str(results)]
    make = Training._step

    def stopped(self: Training, loader: Any) -> None:
        if self.run.configuration.seed == 1 and self.at.step == 5:
            signal.raise_signal(signal.SIGINT)
        make(self, loader)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", stopped)
        assert command.main(["run", *arguments]) == 130
    assert sorted(path.stem for path in results.iterdir()) == ["usgra-1-unet-dice_ce-0", "usgra-1-unet-lomix-0"]
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    assert command.main(["run", *arguments]) == 0
    assert sorted(path.stem for path in results.iterdir()) == sorted(map(str, small))
    assert all((results / name).read_bytes() == content for name, content in before.items())
    found = json.loads((results / f"{small[2]}.json").read_text())
    assert found["run"] == {"data": "usgra", "share": 1.0, "model": "unet", "loss": "dice_ce", "seed": 1}
    assert 0 <= found["dice"] <= 1
    assert set(found["dice_per_class"]) == {"class 1"}
    assert [step for step, _ in found["validation"]] == [4, 8, 12]
    assert len(found["each"]) == 3


def result(run: Run, dice: float) -> dict[str, Any]:
    each = {
        f"case {n}": {"a": {"dice": dice + n / 100, "hd95": 2.0}, "b": {"dice": None, "hd95": None}} for n in range(4)
    }
    fields = {"data": run.data, "share": run.share, "model": run.model, "loss": run.loss, "seed": run.seed}
    per_class = {"a": dice, "b": dice}
    return {"run": fields, "dice": dice, "hd95": 2.0, "dice_per_class": per_class, "training_seconds": 90, "each": each}


def test_tables_say_what_is_not_there() -> None:
    runs = [Run("usgra", 1.0, "unet", loss, seed) for loss in ("dice_ce", "lomix", "mutation") for seed in (0, 1)]
    dice = {runs[0]: 0.70, runs[1]: 0.80, runs[2]: 0.75}
    lines = table.text({run: result(run, value) for run, value in dice.items()}, runs).splitlines()
    assert (
        lines[2] == "| usgra | 100% | `unet` | one output | 0.7500 ± 0.0707 | a 0.750, b 0.750 | 2.00 | 1.5 | 2 of 2 |"
    )
    assert "| 0.7500 | a 0.750, b 0.750 | 2.00 | 1.5 | 1 of 2, unfinished |" in lines[3]
    assert "| MUTATION | not run yet |" in lines[4]
    assert lines[-2].startswith(
        "| usgra, 100%, `unet`: LoMix - one output | +0.0500 | +0.0500 | +0.0500 to +0.0500 | 1 of 2"
    )
    assert lines[-1] == "| usgra, 100%, `unet`: MUTATION - one output | not run yet |  |  | 0 of 2, unfinished |"


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"run": {"data": "x"}}')
    with pytest.raises(ValueError, match=r"a\.json is no result of this benchmark"):
        table.read(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--only", "nothing"],
            "--only is 'nothing', which is in the name of no run; one is hippocampus-1-unet",
        ),
        (["run", "--data", "/nowhere"], "/nowhere has no folder hippocampus"),
        (["run"], "--data or PROSMA_DATA has to name the folder"),
    ],
)
def test_what_is_asked_wrongly(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROSMA_DATA", raising=False)
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err

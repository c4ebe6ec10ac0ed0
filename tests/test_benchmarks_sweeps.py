"""The sweeps and the plots: exponents, problems whose results are known, what is left out, and what is drawn."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import floors, harness, machine, proximal_gate, report
from benchmarks.floors import Rates
from benchmarks.sweeps import PUBLIC, SMALL_SIZES, THREADS, growth, sweep, tiling
from benchmarks.sweeps import __main__ as command
from benchmarks.sweeps.sweep import Point, Rounds, Sweep
from benchmarks.work import Contestant
from prosma_ops.report.records import EAGER, OURS
from prosma_ops.testing import Problem
from tests.benchmark_records import point_record, race_results, results, sweep_results

CPU = torch.device("cpu")
SETTING = Rounds("cpu", 1, short=True)


def of(operator: str) -> Any:
    return importlib.import_module(f"benchmarks.sweeps.{operator}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loops for the floors, and as few rounds as there may be."""
    monkeypatch.setattr(floors, "measure", lambda *_, **__: Rates(fma=100.0, exp=1.0, copy=10.0))
    monkeypatch.setattr(Rounds, "budget", 0.0)


def shrunk(point: Point, items: int) -> Point:
    """The same work with little in it: `items` on the axis that is repeated, at most 9 on every other."""
    axis = point.tiling.axis
    size = tuple(items if at == axis else min(9, extent) for at, extent in enumerate(point.work.size))
    return dataclasses.replace(point, work=dataclasses.replace(point.work, size=size, calls=1))


def points() -> list[Any]:
    """The last point of every sweep, but those over threads, whose work is another's."""
    return [
        pytest.param(one.points[-1], id=f"{operator}, {one.name}")
        for operator in PUBLIC
        for one in of(operator).sweeps((1, 2))
        if one.name != THREADS
    ]


@pytest.mark.parametrize("point", points())
def test_every_work_is_right_when_it_is_repeated(point: Point, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six items are made of two or three: ours and eager must give that many times the small problem's results."""
    monkeypatch.setattr(tiling, "SMALL", 1)
    tiny = shrunk(point, 6)
    monkeypatch.setattr(tiling, "SMALL", 2 * torch.Size(tiny.work.size).numel() // 6)
    assert tiny.tiling.repetitions(tiny.work.size) == 3
    record = sweep.measure(tiny, [OURS, EAGER], SETTING)
    for name, entry in record["contestants"].items():
        assert entry["wrong"] == "", name
        assert entry["median"] > 0
    assert record["floors"]


def broken(repetition: int, **arguments: Any) -> torch.Tensor:
    """Right but for one channel of one repetition."""
    result = proximal_gate.eager(**arguments)
    wrong = result.clone()
    wrong[:, repetition] += 0.1
    return wrong


@pytest.mark.parametrize("repetition", [0, 2])
def test_one_wrong_repetition_is_found_and_not_timed(
    repetition: int, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "SMALL", 20)
    point = of("proximal_gate").point(1, (1, 3, 4, 5), training=False)
    assert point.tiling.repetitions(point.work.size) == 3
    contestants = [Contestant(OURS, lambda **arguments: broken(repetition, **arguments))]
    point = dataclasses.replace(point, work=dataclasses.replace(point.work, contestants=contestants))
    record = sweep.measure(point, [OURS], SETTING)
    assert record["contestants"][OURS]["wrong"]
    assert "median" not in record["contestants"][OURS]


def test_a_repeated_problem_has_the_small_ones_numbers() -> None:
    def build(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
        x, weight = torch.arange(float(size[0] * size[1])).reshape(size), torch.ones(size[1])
        return Problem({"x": x, "weight": weight, "none": None}, {}, *(torch.mul,) * 3, "x", grads=(x + 1,))

    made = tiling.Tiling(build, 0, {"x": 0}, {"result": 0})
    assert made.small((6, 4)) == (6, 4)
    limited = 1 + 4 * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "SMALL", limited)
        assert made.small((6, 4)) == (2, 4)
        assert made.small((7, 4)) == (1, 4)
        problem = made.problem((6, 4), torch.float32, CPU)
    assert problem.inputs["x"].shape == problem.grads[0].shape == (6, 4)
    assert torch.equal(problem.inputs["x"][4:], problem.inputs["x"][:2])
    assert problem.inputs["weight"].shape == (4,)
    assert problem.inputs["none"] is None
    assert [block.item() for block in tiling.spread(list(torch.arange(9)))] == [0, 2, 4, 6, 8]
    assert [block.item() for block in tiling.spread(list(torch.arange(2)))] == [0, 1]


@pytest.mark.parametrize("operator", PUBLIC)
def test_sweeps_can_be_told_apart_and_grow(operator: str) -> None:
    sweeps = of(operator).sweeps((1, 2))
    assert len({one.name for one in sweeps}) == len(sweeps)
    assert {THREADS, SMALL_SIZES} <= {one.name for one in sweeps}
    assert any(one.memory for one in sweeps)
    assert sum(one.short for one in sweeps) >= 3
    for one in sweeps:
        values = [point.value for point in one.points]
        assert values == sorted(set(values)), one.name
        for point in one.points:
            assert point.work.moved_bytes
            assert 0 < point.tensor_bytes <= point.eager_bytes
            assert point.work.field_bytes == 10**6
    assert max(point.tensor_bytes for one in sweeps for point in one.points) > 8e9


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(exponent: float) -> None:
    line = growth.fit([(value, 3.0 * value**exponent) for value in (1, 4, 16, 100)])
    assert line == {"exponent": exponent, "residuals": [1.0, 1.0], "from": 1, "to": 100, "points": 4}


def test_what_is_no_power_has_residuals_far_from_one() -> None:
    line = growth.fit([(1, 1.0), (10, 1.0), (100, 100.0)])
    assert line is not None
    assert line["exponent"] == 1.0
    assert line["residuals"] == [pytest.approx(10 ** (-2 / 3), abs=1e-3), pytest.approx(10 ** (1 / 3), abs=1e-3)]
    assert growth.fit([(1, 1.0), (2, 2.0)]) is None
    assert growth.fit([(2, 1.0), (2, 2.0), (2, 3.0)]) is None


def test_exponents_leave_out_times_that_are_a_calls_own_cost() -> None:
    lines = {
        (line["sweep"], line["contestant"], line["quantity"]): line for line in growth.fits(sweep_results()["records"])
    }
    assert set(lines) == {("size", name, "time") for name in (OURS, EAGER)} | {
        ("size", name, "memory") for name in (OURS, EAGER)
    }
    assert lines["size", OURS, "time"]["from"] == 100
    assert lines["size", EAGER, "time"]["from"] == 1
    assert lines["size", EAGER, "time"]["exponent"] == 1.0


def test_the_report_of_a_sweep() -> None:
    text = growth.text(sweep_results())
    for part in (
        "size: forward, 1xs^2",
        "100 ms [90 ms - 150 ms]",
        "10.0x",
        "50 %",
        "200 / 1000",
        "2.00x",
        "time of ours grows with the power 1.00 (1.00 to 1.00)",
        "left out: pixels 1, ours: would need 17.0 GB",
        "import torch 2 s, first call 3 ms",
    ):
        assert part in text


def test_wrong_results_have_no_time_in_the_report() -> None:
    bad = point_record(5, 1.0, contestants={OURS: {"error": None, "wrong": "differs"}})
    rows = growth.table([bad, point_record(7, 1.0)])
    assert rows[1] == ("5", "WRONG", "differs")
    assert growth.series([bad, point_record(7, 1.0)], OURS) == [(7, 1.0)]


def test_points_that_need_too_much_are_left_out(quick: None) -> None:
    """The third needs too much memory, and eager's second too long, as its first took a second a byte."""
    made = [of("proximal_gate").point(s, (1, 2, s, s), training=False) for s in (2, 4, 64)]
    slow = dataclasses.replace(made[0].work, moved_bytes=1e-9)
    made[0] = dataclasses.replace(made[0], work=slow)
    found = list(sweep.run(Sweep("size", "s", made, "forward"), "proximal_gate", SETTING, most_memory=10_000))
    assert [set(one.get("contestants", ())) for one in found] == [{OURS, EAGER}, set(), set()]
    assert "s a call" in found[1]["sweep"]["left_out"][EAGER]
    assert found[2]["sweep"]["left_out"][OURS] == "would need 0.0 GB"
    assert "would need" in found[2]["sweep"]["left_out"][EAGER]


def test_more_memory_is_never_taken_than_there_is() -> None:
    assert 0 < command.most_memory() <= command.MOST
    counts = command.thread_counts()
    assert counts[0] == 1
    assert counts == sorted(set(counts))


def test_a_run_keeps_what_it_measured(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps = [
        Sweep("size", "s", [of("proximal_gate").point(s, (1, 2, s, s)) for s in (2, 3, 4)], "both", True, True),
        Sweep("not in short runs", "s", [], "nothing"),
    ]
    monkeypatch.setattr(of("proximal_gate"), "sweeps", lambda threads: sweeps)
    monkeypatch.setattr(command, "start", lambda operator, processes: {"first call": 0.001 * processes})
    monkeypatch.setattr(command, "MEMORY_FROM", 0)
    monkeypatch.setattr(harness, "extra_memory", lambda operator, work, name, setting: 12.5)
    options = argparse.Namespace(short=True, sweep="")
    assert command.measure("proximal_gate", tmp_path, 1e9, options) == 0
    kept = report.load(tmp_path / "sweeps-proximal_gate.json")
    assert [one["sweep"]["value"] for one in kept["records"]] == [2, 3, 4]
    assert {one["contestants"][OURS]["wrong"] for one in kept["records"]} == {""}
    assert kept["start"] == {"first call": 0.001}
    assert kept["machine"]["kind"] == "cpu"
    assert "memory" not in kept["records"][0]
    found = command.memory("proximal_gate", sweeps[0], kept["records"][0], SETTING)
    assert found == {"memory": {OURS: 12.5, EAGER: 12.5}}


def test_extra_memory_of_a_point_is_measured_in_a_process_of_its_own() -> None:
    one = next(one for one in of("codebook").sweeps((1,)) if one.memory)
    found = harness.extra_memory("sweeps.codebook", one.points[1].work, OURS, SETTING)
    assert found is None or 0 < found < 100


def test_the_start_of_a_process_is_measured_step_by_step() -> None:
    asked = [sys.executable, "-m", "benchmarks.sweeps.start", "logit_mixing"]
    done = subprocess.run(asked, cwd=machine.ROOT, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    assert list(found)[:3] == ["import torch", "import prosma_ops", "import of the operator"]
    assert found["import torch"] > found["import prosma_ops"] > 0
    assert {"first call", "second call", "first call of eager", "second call of eager"} < set(found)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = {"sweeps-proximal_gate": sweep_results(), "proximal_gate": race_results(), "models": results()}
    paths = [tmp_path / f"{name}.json" for name in found]
    for path, content in zip(paths, found.values(), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_every_plot_is_drawn_as_svg_and_png_and_the_svg_is_the_same_each_time(
    files: list[Path], tmp_path: Path
) -> None:
    plots = pytest.importorskip("benchmarks.plots", reason="there is no matplotlib", exc_type=ImportError)
    written = plots.draw(files, tmp_path / "plots")
    kinds = ("growth-proximal_gate", "ratios-proximal_gate", "roofline")
    assert [path.name for path in written] == [f"{kind}.{suffix}" for kind in kinds for suffix in ("svg", "png")]
    assert all(path.stat().st_size > 5000 for path in written)
    again, _ = plots.save(plots.growth_figure("proximal_gate", report.load(files[0])), tmp_path / "again")
    assert again.read_bytes() == written[0].read_bytes()
    assert b"2026-0" not in re.sub(rb"<!--.*?-->", b"", again.read_bytes())


def test_plots_say_where_they_were_measured(files: list[Path], tmp_path: Path) -> None:
    plots = pytest.importorskip("benchmarks.plots", reason="there is no matplotlib", exc_type=ImportError)
    sweeps, raced = (report.load(path) for path in files[:2])
    for figure in (
        plots.growth_figure("proximal_gate", sweeps),
        plots.ratios_figure("proximal_gate", raced),
        plots.roofline_figure({"proximal_gate": raced}),
    ):
        text = " ".join(one.get_text() for one in figure.texts)
        assert "A processor, 2 cores, torch 2.13.0, 2 threads" in text
        assert "commit abc, 2026-01-02" in text
    shown = [axes.get_ylabel() for axes in plots.growth_figure("proximal_gate", sweeps).axes if axes.get_visible()]
    assert shown == ["time of a call", "time of a call", "extra peak memory"]
    assert plots.rivals_of(raced["records"][0]) == [
        (EAGER, pytest.approx(10), pytest.approx(9), pytest.approx(15)),
        ("torch.compile", pytest.approx(0.5), pytest.approx(0.45), pytest.approx(0.75)),
    ]


def test_a_roofs_arithmetic_is_that_of_the_floor() -> None:
    plots = pytest.importorskip("benchmarks.plots", reason="there is no matplotlib", exc_type=ImportError)
    one = point_record(100, 0.002)
    assert plots.ROOFS[0].arithmetic(one) == pytest.approx(300e9 * 0.001)
    assert plots.moved(one) == pytest.approx(15e9 * 0.0005)
    assert plots.ROOFS[1].arithmetic(one | {"rates": {"exp": None}}) is None

"""The benchmarks judge others, so they are judged here: targets, tables, and that a wrong result gets no time."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import (
    codebook,
    floors,
    gpu,
    harness,
    logit_mixing,
    machine,
    proximal_gate,
    report,
    single,
    tables,
    targets,
    timing,
    transport,
    work,
)
from benchmarks.floors import Rates
from benchmarks.targets import BEST, OURS, Target
from benchmarks.work import Contestant, Work
from prosma_ops import native
from prosma_ops.testing.proximal_gate import eager
from tests.benchmark_records import HEAD, record, results

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("target", "value", "reached"),
    [
        (Target("speedup", "eager", at_least=6), 10, True),
        (Target("speedup", "eager", at_least=12), 10, False),
        (Target("speedup", BEST, at_least=4), 4.5, True),
        (Target("slowdown", "eager", at_most=1.3), 0.1, True),
        (Target("excess", "softshrink", at_most=10), 5, True),
        (Target("excess", "softshrink", at_most=4), 5, False),
        (Target("floor", "largest", at_least=0.65), 0.75, True),
        (Target("floor", "memory", at_least=0.65), 0.5, False),
        (Target("memory", OURS, at_most=4), 3.5, True),
        (Target("memory", OURS, at_most=3), 3.5, False),
        (Target("memory share", "eager", at_most=0.1), 0.05, True),
        (Target("memory share", "eager", at_most=0.04), 0.05, False),
        (Target("memory share", "nobody", at_most=0.1), None, None),
        (Target("speedup", "nobody", at_least=2), None, None),
    ],
)
def test_targets_are_computed_from_the_medians(target: Target, value: float | None, reached: bool | None) -> None:
    measured = targets.value(target, record())
    assert measured == (None if value is None else pytest.approx(value))
    assert targets.reached(target, measured) is reached
    assert targets.from_json(json.loads(json.dumps(target.as_json()))) == target


def test_memory_is_told_in_the_unit_of_the_work() -> None:
    target = Target("memory", OURS, at_most=100)
    measured = record(memory={OURS: 41.5}, memory_unit="MB", targets=[target.as_json()])
    assert report.verdicts(measured) == [("extra peak memory", "41.50 MB", "at most 100 MB", "reached")]
    assert "extra memory in MB: ours 41.5" in report.text(results(measured))


def test_a_yardstick_is_no_rival() -> None:
    assert targets.best_of_others(record()) == "torch.compile"


def test_floors_are_the_work_over_the_rate() -> None:
    found = floors.times(Rates(fma=500.0, copy=50.0), moved_bytes=50e6, multiply_adds=1e9)
    assert found == {"memory": pytest.approx(1e-3), "fma": pytest.approx(4e-3)}
    assert floors.times(Rates(), 50e6, 1e9) == {}
    assert floors.times(Rates(exp=4.0), 50e6, 1e9, exponentials=8e9) == {"exp": pytest.approx(2.0)}
    together = floors.together([Rates(fma=10, copy=1), Rates(fma=30, copy=2), Rates(fma=20, copy=9), Rates()])
    assert together == Rates(fma=30, copy=2)


def test_the_floors_of_this_machine_are_positive() -> None:
    if native.load().module is None:
        assert floors.measure("cpu", 1) == Rates()
        return
    rates = floors.measure("cpu", 1, 0.01, exp=True)
    assert all(rate is not None and rate > 0.1 for rate in dataclasses.astuple(rates))


def test_the_report_shows_times_ratios_floors_and_verdicts(tmp_path: Path) -> None:
    wanted = [
        Target("speedup", "eager", at_least=6),
        Target("speedup", BEST, at_least=5),
        Target("floor", "largest", 0.65),
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(record(targets=[target.as_json() for target in wanted]))))
    text = report.text(report.load(path))
    for part in (
        "2 threads, allocator thresholds raised",
        "2 ms [1.8 ms - 3 ms]",
        "10.0x",
        "75 %",
        "best of the others (torch.compile)",
        "at least 65 %",
        "largest error 0.25 of what is allowed",
        "ours 3.5",
        "500 GFLOP/s",
    ):
        assert part in text
    lines = [line for line in text.splitlines() if "at least" in line]
    assert [line.split()[-1] for line in lines] == ["reached", "REACHED", "reached"]
    assert "NOT REACHED" in lines[1]


def test_targets_are_judged_in_the_main_setting_only() -> None:
    target = Target("speedup", "eager", at_least=6).as_json()
    for other in ({"allocator": "default"}, {"main": False, "threads": 1}, {"device": "cuda"}):
        assert report.verdicts(record(targets=[target], **other)) == []
    assert len(report.verdicts(record(targets=[target]))) == 1


def test_the_markdown_table_has_a_line_a_work() -> None:
    lines = report.markdown(results(record(), record(allocator="default"))).splitlines()
    assert lines[2] == "| forward, 4x64x128^2, float32 | 2 ms | 10.0x | 4.50x (torch.compile) | 75 % (FMA) |"
    assert lines[3] == ""


def tiny_work(function: Any, **more: Any) -> Work:
    """A work of a few numbers with eager PyTorch as the rival."""
    contestants = [Contestant(OURS, function), Contestant("eager", eager)]
    return Work("tiny", proximal_gate.build, (1, 2, 4, 5), contestants, **more)


class Stopwatch:
    """Stands for pytest-benchmark's fixture: three rounds."""

    def __init__(self) -> None:
        self.rounds = 0

    def pedantic(self, target: Any, setup: Any, rounds: int, iterations: int) -> None:
        assert iterations == 1
        for _ in range(rounds):
            setup()
            target()
        self.rounds = rounds


@pytest.fixture
def quick_setting(monkeypatch: pytest.MonkeyPatch) -> harness.Setting:
    monkeypatch.setattr(floors, "measure", lambda *_: Rates(fma=100.0, copy=10.0))
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(harness.Setting, "budget", 0.0)
    for name in machine.ALLOCATOR_VARIABLES:
        monkeypatch.setenv(name, machine.RAISED)
    return harness.Setting("cpu", torch.get_num_threads(), short=True)


def wrong(field: torch.Tensor, **others: Any) -> torch.Tensor:
    result = eager(field, **others)
    return result + 1e-3 * result.abs().max()


def fails(field: torch.Tensor, **others: Any) -> torch.Tensor:
    raise ValueError("cannot do this")


@pytest.mark.parametrize("function", [wrong, fails])
@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_result_is_reported_and_never_timed(
    function: Any, training: bool, quick_setting: harness.Setting
) -> None:
    stopwatch, found = Stopwatch(), harness.Results(HEAD, operator="proximal_gate")
    with pytest.raises(AssertionError, match="WRONG, so not timed"):
        found.race(stopwatch, tiny_work(function, training=training), quick_setting)
    assert stopwatch.rounds == 0
    assert all("median" not in one for one in found.records[0]["contestants"].values())
    for text in (report.text(found.as_json()), report.markdown(found.as_json()), report.line(found.records[0])):
        assert "WRONG" in text
        assert " us" not in text
        assert " ms" not in text


@pytest.mark.parametrize("training", [False, True])
def test_a_right_result_is_timed_beside_its_rivals(
    training: bool, quick_setting: harness.Setting, tmp_path: Path
) -> None:
    stopwatch, path = Stopwatch(), tmp_path / "results.json"
    found = harness.Results(HEAD, path, operator="proximal_gate")
    ours = proximal_gate.works("cpu")[0].ours.function
    found.race(stopwatch, tiny_work(ours, training=training, moved_bytes=960, multiply_adds=1000), quick_setting)
    (kept,) = report.load(path)["records"]
    assert stopwatch.rounds == 5
    assert {kept["contestants"][name]["rounds"] for name in (OURS, "eager", harness.COPY)} == {5}
    assert kept["contestants"][OURS]["error"] <= 1
    assert kept["floors"] == {"memory": pytest.approx(960 / 10e9), "fma": pytest.approx(2000 / 100e9)}
    assert "WRONG" not in report.text(report.load(path))


def test_a_rival_that_is_wrong_drops_out_and_ours_is_timed(quick_setting: harness.Setting) -> None:
    raced = dataclasses.replace(
        tiny_work(eager), contestants=[Contestant(OURS, eager), Contestant("other", wrong), Contestant("third", eager)]
    )
    kept = harness.race(Stopwatch(), raced, quick_setting)
    assert kept["contestants"]["other"]["wrong"]
    assert "median" not in kept["contestants"]["other"]
    assert targets.best_of_others(kept) == "third"


@pytest.mark.parametrize("size", [(1, 3, 9, 8), (1, 2, 7, 8, 9)])
def test_the_merged_kernel_is_the_same_gate(size: tuple[int, ...]) -> None:
    problem = proximal_gate.build(size, torch.float64, CPU)
    expected = eager(**problem.inputs, **problem.settings)
    inputs = proximal_gate.with_merged_weight(dict(problem.inputs))
    torch.testing.assert_close(proximal_gate.gate_with_one_kernel(**inputs, **problem.settings), expected)
    torch.testing.assert_close(proximal_gate.gate_that_merges(**problem.inputs, **problem.settings), expected)


@pytest.mark.parametrize("one", transport.works("cpu"), ids=lambda one: one.key)
def test_the_rivals_of_transport_compute_the_same(one: Work) -> None:
    """But for GeomLoss, which the benchmark says is wrong; compiled ones are the loop."""
    problem = dataclasses.replace(one, size=(2, 12, 9)).problem(CPU)
    expected = harness.expectation(problem)
    for contestant in one.contestants:
        if contestant.rival and not contestant.compiled and contestant.name not in (OURS, transport.GEOMLOSS):
            assert harness.check(problem, contestant, expected)["wrong"] == "", contestant.name


@pytest.mark.parametrize("size", [(2, 3, 32, 32), (1, 2, 8, 8)], ids=str)
def test_the_eager_losses_are_those_of_the_operator(size: tuple[int, ...]) -> None:
    """The rivals compute the same number: LoMix in eager PyTorch, and MONAI's losses."""
    for one in logit_mixing.works("cpu")[:4]:
        problem = one.problem(CPU, size)
        ours = problem.function(**problem.inputs, **problem.settings)
        for rival in one.contestants[1:]:
            if rival.rival:
                torch.testing.assert_close(rival.function(**problem.inputs), ours, rtol=1e-4, atol=1e-4)


def test_the_step_with_the_last_map_takes_every_gradient_of_the_network() -> None:
    inputs = work.leaves(logit_mixing.build_step((1, 2, 8, 8), torch.float32, CPU), Contestant("any", eager))
    gradients = logit_mixing.step_with_last_map(**inputs)
    names = [name for name, tensor in inputs.items() if tensor.requires_grad]
    without = {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}
    of_other_heads = {f"network.heads.{head}.{name}" for head in range(3) for name in ("weight", "bias")}
    assert without == of_other_heads | {name for name in names if not name.startswith("network.")}


def test_the_readme_shows_the_newest_run_of_each_operator_and_kind_of_machine(tmp_path: Path) -> None:
    runs = {"old": ("cpu", "2026-01-02"), "new": ("cpu", "2026-01-03"), "card": ("cuda", "2026-01-01")}
    for name, (kind, date) in {**runs, "local": ("cpu", "2027-01-01")}.items():
        path = tmp_path / "benchmarks" / "results" / name / "proximal_gate.json"
        path.parent.mkdir(parents=True)
        machine = {"kind": kind, "date": date, "device": name, "versions": {"torch": "2.13"}}
        path.write_text(json.dumps({"machine": machine, "records": []}))
    chosen = tables.newest(tables.found(tmp_path))
    assert [path.parent.name for path, _ in chosen] == ["new", "card"]
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter"
    once = tables.replaced(page, tables.tables(chosen))
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter")
    assert tables.replaced(once, tables.tables(chosen)) == once


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "operator", [proximal_gate, transport, codebook, logit_mixing], ids=lambda module: module.__name__
)
def test_works_have_names_of_their_own_and_targets_that_can_be_judged(operator: ModuleType, device: str) -> None:
    works = operator.works(device)
    assert len({one.key for one in works}) == len(works)
    for one in works:
        names = {contestant.name for contestant in one.contestants}
        for target in one.targets:
            assert target.measure in ("floor", "memory") or target.against in (*names, BEST)
            assert target.measure != "memory" or one.field_bytes
            assert target.measure != "floor" or (one.moved_bytes and one.multiply_adds)


def test_a_file_named_to_pytest_is_measured_once() -> None:
    options = ["--collect-only", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "benchmarks/codebook.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=300)
    found = [line for line in done.stdout.splitlines() if "::" in line]
    assert found, done.stdout + done.stderr
    assert len(found) == len(set(found)), done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_extra_memory_is_what_a_run_allocates() -> None:
    megabytes = 64
    peak = single.cpu_peak(lambda: torch.ones(megabytes << 18))
    assert peak is not None
    assert megabytes <= peak / 2**20 < megabytes + 16


def test_a_profile_becomes_one_record_a_kernel() -> None:
    metrics = list(gpu.METRICS)
    header = ["ID", "Kernel Name", *metrics]
    units = ["", "", "us", "%", "%", "%", "", "register/thread"]
    row = ["0", "gate_forward(float *)", "187.5", "81.2", "40.0", "62.5", "1,024", "40"]
    output = "==PROF== Connected\n" + "\n".join(
        ",".join(f'"{cell}"' for cell in cells) for cells in (header, units, row)
    )
    (kernel,) = gpu.parse_profile(output)
    assert kernel["kernel"] == "gate_forward(float *)"
    assert kernel["time_us"] == 187.5
    assert kernel["bank_conflicts"] == 1024
    assert gpu.parse_profile("==ERROR== no kernels") == []


def test_a_stage_is_finished_only_for_these_sources_and_only_if_it_passed(tmp_path: Path) -> None:
    class Arguments:
        stage, results = "tests", tmp_path

    path = tmp_path / "tests.json"
    assert gpu.finished(Arguments) == 1
    for values, finished in (
        ({"status": 0, "sources": gpu.sources()}, 0),
        ({"status": 1, "sources": gpu.sources()}, 1),
        ({"status": 0, "sources": "others"}, 1),
    ):
        path.write_text(json.dumps(values))
        assert gpu.finished(Arguments) == finished


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_gpu_script_says_at_once_that_there_is_no_gpu() -> None:
    script = str(ROOT / "benchmarks" / "gpu.sh")
    environment = machine.environment("default") | {"PYTHON": sys.executable, "DEVICE": "cuda"}
    done = subprocess.run(["bash", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1
    assert "there is no GPU here" in done.stderr
    assert done.stdout == ""


def test_each_setting_gets_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in machine.ALLOCATORS:
        for name in machine.ALLOCATOR_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in machine.environment(setting).items():
            monkeypatch.setenv(name, value)
        assert machine.allocator() == setting


def test_one_run_does_the_forward_or_the_gradients_of_everything() -> None:
    gate = tiny_work(eager, training=True)
    result, gradients = work.runner(gate.problem(CPU), gate.ours)()
    assert result.shape == gate.size
    assert [tuple(gradient.shape) for gradient in gradients] == [gate.size, (3, 2, 3, 3), (2,), gate.size, (1, 2)]
    forward = tiny_work(eager)
    assert not work.runner(forward.problem(CPU), forward.ours)().requires_grad
    assert timing.timer(forward, forward.ours, [forward.problem(CPU)]).seconds() > 0


def test_results_without_gradients_are_left_out_of_the_backward() -> None:
    """The indices that nearest_code returns beside the codes."""
    training = next(one for one in codebook.works("cpu") if one.training)
    for contestant in training.contestants:
        _, (gradient,) = work.runner(training.problem(CPU, training.tiny), contestant)()
        assert gradient.shape == (codebook.CODES, training.tiny[-1])

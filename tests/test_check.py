"""`prosma-ops check` passes, fails when it should, and its self-test reports every planted error."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prosma_ops import backends, native
from prosma_ops.cli import main
from prosma_ops.testing import Comparison, check, faults, parity
from prosma_ops.testing.case import Suite, suite
from prosma_ops.testing.check import Request
from prosma_ops.testing.faults import planted
from prosma_ops.testing.layouts import LAYOUTS
from prosma_ops.testing.parity import Implementation
from tests.conftest import need_native

CPU = torch.device("cpu")
IN_PROCESS = ["--backend", "reference", "--backend", "cpu"]


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the command shows and writes of every operator's tiny cases."""
    need_native()
    path, shown = tmp_path_factory.mktemp("check") / "report.json", io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main(["check", "--device", "cpu", "--size", "tiny", "--json", str(path), *IN_PROCESS]) == 0
    return shown.getvalue(), json.loads(path.read_text())


def test_it_passes(passed: tuple[str, dict[str, Any]]) -> None:
    shown, report = passed
    levels = native.required().runnable_levels
    for text in ("proximal_gate", "soft_threshold", "channels_last", "bfloat16", "reference", "pass: "):
        assert text in shown
    for level in levels:
        assert f"cpu ({level})" in shown
    assert report["passed"] is True
    assert {record["operator"] for record in report["records"]} == set(backends.OPERATORS)
    tensors = {record["tensor"] for record in report["records"] if record["operator"] == "proximal_gate"}
    assert tensors == {name for names in suite("proximal_gate").results.values() for name in names}
    assert all(record["ok"] and record["ratio"] <= 1 for record in report["records"])


def test_every_operator_implementation_dtype_and_layout_has_a_row(passed: tuple[str, dict[str, Any]]) -> None:
    report = check.Report("cpu")
    check._merge(passed[1], report)
    rows = {(r.operator, r.implementation, r.dtype, r.layout) for r in report.records}
    implementations = ["reference", *(f"cpu ({level})" for level in native.required().runnable_levels)]
    for operator in backends.OPERATORS:
        cases = suite(operator).cases("tiny")
        expected = {(parity.dtype_name(case.dtype), case.layout) for case in cases}
        assert {dtype for dtype, _ in expected} == {"float32", "float64", "float16", "bfloat16"}
        assert {layout for _, layout in expected} == set(LAYOUTS)
        for implementation in implementations:
            assert {row[2:] for row in rows if row[:2] == (operator, implementation)} == expected
    assert len(check.record_table(report.records).splitlines()) == 1 + len(rows)


@pytest.mark.parametrize("function", ["forward", "backward"])
def test_a_failing_implementation_fails_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, function: str) -> None:
    path = tmp_path / "report.json"
    asked = ["--operator", "proximal_gate", "--backend", "reference"]
    arguments = ["check", "--device", "cpu", "--size", "tiny", *asked, "--json", str(path)]
    with planted("proximal_gate", "reference", function, 0, faults.wrong_sign):
        assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert "FAIL" in shown
    assert "exceeds" in shown
    assert json.loads(path.read_text())["passed"] is False


def test_an_implementation_that_raises_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> object:
        raise ZeroDivisionError("in the kernel")

    table = backends.OPERATORS["soft_threshold"].implementations["reference"].functions
    monkeypatch.setitem(table, "forward", broken)
    report = check.run(Request(CPU, ["soft_threshold"], ["reference"], "tiny", False))
    assert not report.passed
    assert "ZeroDivisionError: in the kernel" in check.text(report)


def test_a_write_beside_the_result_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def stray(x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x).copy_(backends_forward(x, threshold))
        out.as_strided((1,), (1,), out.storage_offset() - 1).zero_()
        return out

    table = backends.OPERATORS["soft_threshold"].implementations["reference"].functions
    backends_forward = table["forward"]
    monkeypatch.setitem(table, "forward", stray)
    report = check.run(Request(CPU, ["soft_threshold"], ["reference"], "tiny", False))
    assert {record.tensor for record in report.records if not record.ok} == {"memory"}


@pytest.fixture
def unproved_operator() -> Iterator[str]:
    backends.register("not_proved", "proximal_gate", backends.OPERATORS["soft_threshold"].implementations)
    yield "not_proved"
    del backends.OPERATORS["not_proved"]


@pytest.mark.parametrize("self_test", [False, True])
def test_an_operator_without_cases_fails_it(unproved_operator: str, self_test: bool) -> None:
    report = check.run(Request(CPU, [unproved_operator], ["reference"], "tiny", self_test))
    assert not report.passed
    assert f"{unproved_operator} has no cases: SUITES of prosma_ops/testing/proximal_gate.py" in check.text(report)


def test_an_operator_that_nothing_ran_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "implementations", lambda *rest: ([], {"reference": "blocked by a test"}))
    report = check.run(Request(CPU, ["soft_threshold"], ["reference"], "tiny", False))
    assert "soft_threshold: no implementation ran" in report.complaints
    assert not report.passed


def test_a_backend_asked_for_that_cannot_run_fails_it(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--operator", "soft_threshold", "--backend", "reference", "--backend", "cuda"]
    assert main(["check", "--device", "cpu", "--size", "tiny", *asked]) == 1
    assert "backend cuda was asked for and did not run" in capsys.readouterr().out


def test_the_library_that_must_be_there_and_is_not_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: native.Library(None, "blocked by a test"))
    arguments = Request(CPU, ["soft_threshold"], ["reference"], "tiny", False)
    monkeypatch.setenv("PROSMA_REQUIRE_NATIVE", "0")
    assert check.run(arguments).passed
    monkeypatch.setenv("PROSMA_REQUIRE_NATIVE", "1")
    assert not check.run(arguments).passed


def test_backends_that_cannot_run_are_listed_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    request = Request(CPU, ["proximal_gate"], None, "tiny", False)
    report = check.Report("cpu")
    check._run_here(request, ["reference", "cuda"], "tiny", report)
    shown = check.text(report)
    assert "cannot run here" in shown
    assert report.not_run["proximal_gate"]["cuda"] in shown


def test_a_report_that_cannot_be_written_is_shown_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none" / "report.json"
    arguments = ["--operator", "soft_threshold", "--backend", "reference", "--size", "tiny", "--json", str(path)]
    with pytest.raises(SystemExit) as ended:
        main(["check", "--device", "cpu", *arguments])
    assert ended.value.code == 2
    said, wrong = capsys.readouterr()
    assert "soft_threshold" in said
    assert f"--json is '{path}', which cannot be written: No such file or directory" in wrong


@pytest.mark.parametrize("arguments", [["--operator", "gate"], ["--device", "no_such_device"], ["--backend", "numpy"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", *arguments])
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err


# The self-test.


@pytest.mark.usefixtures("native_library")
def test_the_self_test_reports_every_planted_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert main(["check", "--device", "cpu", "--self-test", "--json", str(path), *IN_PROCESS]) == 0
    plants = json.loads(path.read_text())["planted"]
    assert all(plant["reported"] for plant in plants)
    levels = len(native.required().runnable_levels)
    tensors = sum(len(names) for operator in backends.OPERATORS for names in suite(operator).results.values())
    assert len(plants) == (1 + levels) * 4 * tensors * 3
    assert f"{len(plants)} of {len(plants)} planted errors reported" in capsys.readouterr().out


def test_a_self_test_computes_again_only_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = faults.table_of("soft_threshold", "reference")
    original, calls = table["forward"], []
    monkeypatch.setitem(table, "forward", lambda *arguments: (calls.append(arguments), original(*arguments))[1])
    x, threshold = torch.randn(1, 2, 4, 4), torch.zeros(2)
    with faults.remembering("soft_threshold", "reference"):
        first, again = table["forward"](x, threshold), table["forward"](x.clone(), threshold)
        assert len(calls) == 1
        assert torch.equal(first, again)
        assert first is not again  # or a planted error would stay
        for other in (x + 1, x.double(), x.contiguous(memory_format=torch.channels_last)):
            table["forward"](other, threshold)
        assert len(calls) == 4


def test_the_self_test_fails_when_an_error_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that accepts everything is found out."""
    monkeypatch.setattr(parity, "compare", lambda *rest: Comparison(0.0, 1.0, True, ""))
    report = check.run(Request(CPU, ["soft_threshold"], ["reference"], "tiny", True))
    assert not report.passed
    assert not any(plant.reported for plant in report.plants)


def test_the_self_test_fails_when_the_implementation_did_not_run(
    monkeypatch: pytest.MonkeyPatch, native_library: object
) -> None:
    """An error planted into one backend while another answers goes unreported."""
    monkeypatch.setattr(Implementation, "chosen", lambda self: backends.use_backend("reference"))
    report = check.run(Request(CPU, ["soft_threshold"], ["cpu"], "tiny", True))
    assert not report.passed


def test_the_self_test_fails_when_something_is_wrong_already() -> None:
    with planted("soft_threshold", "reference", "forward", 0, faults.wrong_sign):
        report = check.run(Request(CPU, ["soft_threshold"], ["reference"], "tiny", True))
    assert not report.passed
    assert "wrong before anything was planted" in check.text(report)


def test_a_function_that_the_suite_does_not_know_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    real = suite("soft_threshold")
    partial = Suite(real.cases, {"forward": ("result",)})
    monkeypatch.setattr(faults, "suite", lambda operator: partial)
    report = check.run(Request(CPU, ["soft_threshold"], ["reference"], "tiny", True))
    assert not report.passed
    assert "function 'backward' has no entry" in check.text(report)

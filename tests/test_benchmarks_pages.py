"""What README and BENCHMARKS.md say was measured: nothing that no committed file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measured, report, tables
from tests.benchmark_records import HEAD, race_results, results, sweep_results

PLACE = Path("benchmarks/results/a-processor-2-cores")


def files(*more: tuple[str, dict[str, Any]]) -> list[tuple[Path, dict[str, Any]]]:
    found = [("proximal_gate", race_results()), ("sweeps-proximal_gate", sweep_results()), *more]
    return [(PLACE / f"{name}.json", content) for name, content in found]


def test_the_page_tells_files_with_machine_versions_and_commit() -> None:
    rows = [line for line in measured.kept(files()).splitlines() if PLACE.name in line]
    assert rows[0] == (
        f"| `{PLACE}/proximal_gate.json` | A processor, 2 cores | 2 records |  | torch 2.13.0, Python 3.11 | abc "
        "| 2026-01-02 | quiet |"
    )
    busy = {**race_results(), "machine": HEAD | {"load": 3.5}}
    assert measured.kept([(PLACE / "proximal_gate.json", busy)]).endswith("| busy |")


def test_what_is_missing_is_said() -> None:
    lines = measured.missing(files()).splitlines()
    assert lines[0].startswith("- Any GPU: no result from one exists")
    assert "- the race of `transport` on a CPU" in lines
    assert "- the sweeps of `codebook` on a CPU" in lines
    assert "- whole networks on a CPU" in lines
    assert not any("of `proximal_gate` on a CPU" in line for line in lines)
    assert lines[-1].endswith("sweeps-proximal_gate.json`, which did not fit: size")
    every = [(name, results() | {"machine": HEAD | {"kind": kind}}) for kind in ("cpu", "cuda") for name in names()]
    assert measured.missing([(PLACE / name, content) for name, content in every]) == (
        "- Nothing that the harness can measure."
    )


def names() -> list[str]:
    return [*measured.OPERATORS, "models", *(f"sweeps-{operator}" for operator in measured.OPERATORS)]


def test_exponents_threads_and_first_calls_are_those_of_the_sweeps() -> None:
    found = files()[1:]
    assert (
        "| proximal_gate | pixels | forward, 1xs^2 | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |"
        in measured.exponents(found)
    )
    row = "| proximal_gate | A processor, 2 cores | forward, 1xs^2 | 1 to 2 | 2.00x | 2.00x |"
    assert measured.threads(found).splitlines()[-1] == row
    assert "| 2 s | - | - | 3 ms | - |" in measured.starts(found)


def test_a_page_is_written_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    for path, content in files():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))
    (tmp_path / PLACE / "tests.json").write_text(json.dumps({"stage": "tests"}))
    (tmp_path / PLACE / "plots").mkdir()
    for name in ("roofline", "growth-proximal_gate"):
        (tmp_path / PLACE / "plots" / f"{name}.svg").write_text("<svg/>")
    for name in (tables.README, tables.BENCHMARKS):
        (tmp_path / name).write_text(f"first\n{tables.BEGIN}\nby hand\n{tables.END}\nlast\n")
    run(monkeypatch, "--check", status=1)
    run(monkeypatch, status=0)
    run(monkeypatch, "--check", status=0)
    readme, page = ((tmp_path / name).read_text() for name in (tables.README, tables.BENCHMARKS))
    assert "by hand" not in readme + page
    assert f"![Rate against arithmetic a byte, A processor, 2 cores]({PLACE}/plots/roofline.svg)" in readme
    assert f"({PLACE}/plots/growth-proximal_gate.svg)" in readme
    assert "ratios" not in readme
    assert "sweeps-proximal_gate.json" in page
    (tmp_path / tables.README).write_text("no lines")
    with pytest.raises(SystemExit, match="has no lines"):
        run(monkeypatch, status=0)


def run(monkeypatch: pytest.MonkeyPatch, *options: str, status: int) -> None:
    monkeypatch.setattr("sys.argv", ["tables", *options])
    assert tables.main() == status


def test_the_committed_pages_show_plots_that_are_there() -> None:
    root = tables.ROOT
    shown = [line.partition("](")[2].rstrip(")") for line in (root / tables.README).read_text().splitlines()]
    plots = [path for path in shown if "/plots/" in path]
    assert plots
    for path in plots:
        assert (root / path).is_file(), path


def test_without_matplotlib_there_are_no_plots_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    import benchmarks

    monkeypatch.delattr(benchmarks, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "benchmarks.plots", None)
    assert report.draw(tmp_path) == []
    assert "there is no matplotlib" in capsys.readouterr().out

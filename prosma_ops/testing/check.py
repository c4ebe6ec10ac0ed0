"""`prosma-ops check`: the parity runner, or its self-test, as a table, as JSON and as an exit status."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from .. import __version__, backends, native
from . import faults, parity
from .case import DTYPES
from .faults import Plant
from .parity import Record

CHILD_TIMEOUT_S = 1800
SHOWN_FAILURES = 25
# Of the self-test under Triton's interpreter, where a call takes a second: one dtype of each width of arithmetic.
INTERPRETED_SELF_TEST = (torch.float32, torch.bfloat16)


@dataclass
class Report:
    device: str
    records: list[Record] = field(default_factory=list)
    plants: list[Plant] = field(default_factory=list)
    not_run: dict[str, dict[str, str]] = field(default_factory=dict)  # operator -> backend -> reason
    complaints: list[str] = field(default_factory=list)  # what fails beside single tensors

    @property
    def passed(self) -> bool:
        proved = bool(self.records or self.plants) and not self.complaints
        return proved and all(r.ok for r in self.records) and all(p.reported for p in self.plants)

    def as_json(self) -> dict[str, Any]:
        return {
            "prosma_ops": __version__,
            "torch": str(torch.__version__),
            "device": self.device,
            "passed": self.passed,
            "complaints": self.complaints,
            "not_run": self.not_run,
            "records": [record.as_json() for record in self.records],
            "planted": [plant.as_json() for plant in self.plants],
        }


@dataclass(frozen=True)
class Request:
    device: torch.device
    operators: Sequence[str] | None
    backends: Sequence[str] | None
    size: str
    self_test: bool

    @property
    def wanted(self) -> Sequence[str]:
        return self.backends or backends.BACKENDS


def run(request: Request) -> Report:
    report = Report(_device_name(request.device))
    for name in request.operators or ():
        if name not in parity.operators():
            raise ValueError(f"--operator is {name!r}; it must be one of {', '.join(parity.operators())}")
    interpret = request.device.type == "cpu" and "triton" in request.wanted
    in_process = [name for name in request.wanted if not (interpret and name == "triton")]
    _run_here(request, in_process, request.size, report)
    if interpret:
        _run_interpreted(request, report)
    _complain(request, report)
    return report


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _chosen_operators(request: Request) -> list[str]:
    return [name for name in parity.operators() if request.operators is None or name in request.operators]


def _run_here(
    request: Request, only: Sequence[str], size: str, report: Report, dtypes: Sequence[torch.dtype] = DTYPES
) -> None:
    for operator in _chosen_operators(request):
        _, cannot = parity.implementations(operator, request.device, only)
        report.not_run.setdefault(operator, {}).update(cannot)
    chosen = {"only_operators": request.operators, "only_backends": only}
    if request.self_test:
        report.plants += faults.run(request.device, **chosen, dtypes=dtypes)  # type: ignore[arg-type]
    else:
        report.records += parity.run(request.device, **chosen, size=size)  # type: ignore[arg-type]


def _run_interpreted(request: Request, report: Report) -> None:
    """Triton on CPU tensors, tiny cases. The interpreter must be chosen before Triton is imported: in a child."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        torch.set_num_threads(1)  # tiny tensors: a second thread only waits
        _run_here(request, ["triton"], "tiny", report, INTERPRETED_SELF_TEST)
        return
    package, reason = backends.triton_package()
    if package is None:
        for operator in _chosen_operators(request):
            report.not_run[operator]["triton"] = reason
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "prosma_ops", "check", "--backend", "triton", "--json", str(path)]
        command += [word for name in request.operators or () for word in ("--operator", name)]
        command += ["--self-test"] if request.self_test else []
        done = subprocess.run(
            command, env=interpreter_environment(), capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False
        )
        if not path.exists():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            report.complaints.append(f"Triton under its interpreter gave no report: {' '.join(last)}")
            return
        _merge(json.loads(path.read_text()), report)


def interpreter_environment() -> dict[str, str]:
    """The child imports this very package, wherever it starts, and runs what it is told to."""
    chosen = {name: value for name, value in os.environ.items() if name != backends.BACKEND_VARIABLE}
    parent = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([parent, *filter(None, [chosen.get("PYTHONPATH")])])
    return chosen | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}


def _merge(found: dict[str, Any], report: Report) -> None:
    report.records += [_record(values) for values in found["records"]]
    report.plants += [Plant(**values) for values in found["planted"]]
    report.complaints += found["complaints"]
    for operator, reasons in found["not_run"].items():
        report.not_run.setdefault(operator, {}).update(reasons)


def _record(values: dict[str, Any]) -> Record:
    known = {entry.name: values[entry.name] for entry in fields(Record)}
    return Record(**known | {name: math.inf for name in ("error", "bound") if known[name] is None})


def _complain(request: Request, report: Report) -> None:
    """Silence is a failure: an operator that nothing ran, a backend asked for by name, a library that must be there."""
    entries: list[Record | Plant] = [*report.records, *report.plants]
    ran = {(entry.operator, entry.implementation.split()[0]) for entry in entries}
    for operator in _chosen_operators(request):
        if not any(name == operator for name, _ in ran):
            report.complaints.append(f"{operator}: no implementation ran")
        for backend in request.backends or ():
            if not ran & {(operator, backend), (operator, "all")}:
                reason = report.not_run[operator].get(backend, "no reason known")
                report.complaints.append(f"{operator}: backend {backend} was asked for and did not run: {reason}")
    module, reason = native.load()
    if module is None and os.environ.get("PROSMA_REQUIRE_NATIVE") == "1":
        report.complaints.append(f"PROSMA_REQUIRE_NATIVE=1, but {reason}")


def table(rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest entry."""
    lines = [list(row) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _verdict(good: bool) -> str:
    return "pass" if good else "FAIL"


def record_table(records: Sequence[Record]) -> str:
    rows = [("operator", "implementation", "dtype", "layout", "tensors", "worst error/bound", "")]
    for labels, group in parity.worst(records).items():
        ratio = f"{group[0].ratio:.3f}" if math.isfinite(group[0].ratio) else "no bound"
        rows.append((*labels, str(len(group)), ratio, _verdict(group[0].ok)))
    return table(rows)


def plant_table(plants: Sequence[Plant]) -> str:
    groups: dict[tuple[str, str, str], list[Plant]] = {}
    for plant in plants:
        groups.setdefault((plant.operator, plant.implementation, plant.dtype), []).append(plant)
    rows = [("operator", "implementation", "dtype", "planted", "reported", "")]
    for labels, group in groups.items():
        reported = sum(plant.reported for plant in group)
        rows.append((*labels, str(len(group)), str(reported), _verdict(reported == len(group))))
    return table(rows)


def failures(report: Report) -> list[str]:
    wrong = [
        f"{r.operator} {r.implementation} {r.dtype} {r.layout}, {r.case}: {r.tensor}: {r.reason}"
        for r in report.records
        if not r.ok
    ]
    missed = [
        f"{p.operator} {p.implementation} {p.dtype}: {p.tensor}, {p.fault}: {p.reason}"
        for p in report.plants
        if not p.reported
    ]
    return [*report.complaints, *wrong, *missed]


def text(report: Report) -> str:
    parts = [f"device: {report.device}"]
    if report.records:
        parts.append(record_table(report.records))
    if report.plants:
        parts.append(plant_table(report.plants))
    reasons = [(name, op, why) for op, found in report.not_run.items() for name, why in found.items()]
    if reasons:
        parts.append("cannot run here:\n" + table(("  " + name, op, why) for name, op, why in sorted(reasons)))
    wrong = failures(report)
    if wrong:
        more = [f"and {len(wrong) - SHOWN_FAILURES} more (--json has all)"] if len(wrong) > SHOWN_FAILURES else []
        parts.append("\n".join(["failures:", *("  " + line for line in wrong[:SHOWN_FAILURES] + more)]))
    parts.append(summary(report))
    return "\n\n".join(parts)


def summary(report: Report) -> str:
    if report.plants:
        found = sum(plant.reported for plant in report.plants)
        return f"{_verdict(report.passed)}: {found} of {len(report.plants)} planted errors reported"
    good = sum(record.ok for record in report.records)
    return (
        f"{_verdict(report.passed)}: {good} of {len(report.records)} tensors within "
        "max(8 eps x scale, twice the error of eager PyTorch) of float64"
    )

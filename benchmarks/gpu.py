"""What `gpu.sh` needs of Python: names, the stages' records, the profiler and the sanitizer, and the closing table."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from prosma_ops import tuned

from . import machine, report
from .work import Work, rooms, works_of

SOURCES = ("csrc", "prosma_ops", "triton_kernels", "benchmarks", "tests", "CMakeLists.txt", "pyproject.toml")
SUFFIXES = (".py", ".cpp", ".cu", ".h", ".txt", ".toml", ".sh")

# Nsight Compute's metric -> what the record calls it.
METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active": "fma_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "bank_conflicts",
    "launch__registers_per_thread": "registers",
}


def sources() -> str:
    """A fingerprint of what a stage's result depends on."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = machine.ROOT / name
        files = [top] if top.is_file() else sorted(top.rglob("*"))
        for path in files:
            if path.is_file() and path.suffix in SUFFIXES and "results" not in path.parts:
                digest.update(str(path.relative_to(machine.ROOT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def architecture() -> str:
    """CMake's name of the GPU's architecture; from Hopper on with the instructions that only it has."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}{'a' if major >= 9 else ''}-real"


def slug(device: str) -> str:
    import torch

    return tuned.slug(torch.cuda.get_device_name() if device == "cuda" else machine.cpu_name())


def finished(arguments: argparse.Namespace) -> int:
    path = arguments.results / f"{arguments.stage}.json"
    if not path.exists():
        return 1
    found = json.loads(path.read_text())
    return 0 if found.get("status") == 0 and found.get("sources") == sources() else 1


def record(arguments: argparse.Namespace) -> int:
    """The stage's JSON: how it ended, on what machine, and what it found."""
    values: dict[str, Any] = {
        "stage": arguments.stage,
        "status": arguments.status,
        "seconds": arguments.seconds,
        "sources": sources(),
        "machine": machine.record(arguments.device),
        "rates": _rates(arguments.device),
    }
    if arguments.status == 124:
        values["reason"] = "stopped: it took longer than it may"
    found = arguments.work / f"{arguments.stage}.json"
    if found.exists():
        values["found"] = json.loads(found.read_text())
    tests = arguments.work / f"{arguments.stage}.xml"
    if tests.exists():
        values["found"] = _tests(tests)
    path = arguments.results / f"{arguments.stage}.json"
    path.write_text(json.dumps(values, indent=1) + "\n")
    return 0


def _rates(device: str) -> dict[str, float | None]:
    import torch

    from . import floors

    return floors.measure(device, torch.get_num_threads(), 0.1, exp=True).as_json()


def _tests(path: Path) -> dict[str, Any]:
    suite = next(ElementTree.parse(path).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": failed}


def works(device: str) -> Iterator[tuple[str, Work]]:
    """(room, work) of every room that has a benchmark."""
    for room in rooms():
        if (machine.ROOT / "benchmarks" / f"{room}.py").exists():
            for work in works_of(room, device).values():
                yield room, work


def single(operator: str, work: Work, purpose: str, device: str) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.single", operator, work.key]
    return [*command, "--purpose", purpose, "--device", device]


def profile(arguments: argparse.Namespace) -> int:
    """DRAM %, FMA %, occupancy and bank conflicts of every kernel, where Nsight Compute is there."""
    if shutil.which("ncu") is None or arguments.device != "cuda":
        print("ncu is not there: nothing to profile with")
        return _write(arguments.output, {"skipped": "ncu is not there"})
    found, status = {}, 0
    for operator, work in works("cuda"):
        if not work.profiled:
            continue
        command = ["ncu", "--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "raw"]
        command += ["--metrics", ",".join(METRICS), *single(operator, work, "profile", "cuda")]
        done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True)
        kernels = parse_profile(done.stdout)
        found[f"{operator}: {work.key}"] = kernels
        print(f"{operator}: {work.key}")
        for kernel in kernels:
            print("  " + ", ".join(f"{name} {value}" for name, value in kernel.items()))
        if done.returncode != 0 or not kernels:
            status = 1
            print(done.stdout[-2000:], done.stderr[-2000:])
    return _write(arguments.output, found) or status


def parse_profile(output: str) -> list[dict[str, Any]]:
    """Nsight Compute's raw CSV: a header, a row of units, then a row a kernel; other programs' lines around it."""
    lines = output.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    header, units, *rows = list(csv.reader(io.StringIO("\n".join(line for line in lines[start:] if line[:1] == '"'))))
    kernels = []
    for row in rows:
        values = dict(zip(header, row, strict=False))
        kernel: dict[str, Any] = {"kernel": values.get("Kernel Name", "")[:80]}
        for metric, name in METRICS.items():
            if values.get(metric, "") not in ("", "n/a"):
                unit = units[header.index(metric)]
                kernel[f"time_{unit}" if name == "time" else name] = float(values[metric].replace(",", ""))
        kernels.append(kernel)
    return kernels


def sanitize(arguments: argparse.Namespace) -> int:
    """memcheck and racecheck on small cases, where compute-sanitizer is there."""
    tool = shutil.which("compute-sanitizer")
    if arguments.device != "cuda":
        tool = None
    found: dict[str, Any] = {} if tool else {"skipped": "compute-sanitizer is not there"}
    if not tool:
        print(found["skipped"])
        return _write(arguments.output, found)
    # Without torch's pool every tensor is an allocation of its own, so that the tool sees its bounds.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    seen, status = set(), 0
    for operator, work in works("cuda"):
        kind = (operator, len(work.size), work.dtype)
        if kind in seen or not work.training:
            continue
        seen.add(kind)
        for check in ("memcheck", "racecheck"):
            command = [tool, "--tool", check, "--error-exitcode", "9", *single(operator, work, "sanitize", "cuda")]
            done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, env=environment)
            name = f"{operator}: {work.key} at {'x'.join(map(str, work.tiny))}, {check}"
            found[name] = "clean" if done.returncode == 0 else f"exit status {done.returncode}"
            print(f"{name}: {found[name]}", flush=True)
            if done.returncode != 0:
                status = 1
                print(done.stdout[-3000:], done.stderr[-1000:])
            _write(arguments.output, found)
    return status


def _write(path: Path, values: Any) -> int:
    path.write_text(json.dumps(values, indent=1) + "\n")
    return 0


def table(arguments: argparse.Namespace) -> int:
    """What the stages came to, and our time and the best rival's of every work."""
    print()
    for path in sorted(arguments.results.glob("*.json")):
        values = json.loads(path.read_text())
        if "stage" in values:
            print(f"{values['stage']:<10}{_outcome(values):<40}{values['seconds']:>5} s")
    for path in sorted(arguments.results.glob("*.json")):
        values = json.loads(path.read_text())
        if "records" in values:
            print(f"\n{path.stem} on {values['machine']['device']}")
            print("\n".join(report.aligned(report.summary_rows(values))))
    return 0


def _outcome(values: dict[str, Any]) -> str:
    outcome = "passed" if values["status"] == 0 else values.get("reason", f"FAILED, exit status {values['status']}")
    found = values.get("found", {})
    if isinstance(found, dict) and "skipped" in found and "tests" not in found:
        return str(found["skipped"])
    if isinstance(found, dict) and "tests" in found:
        failed = found["failures"] + found["errors"]
        return f"{outcome}: {found['tests']} tests, {failed} failed, {found['skipped']} skipped"
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, wanted in {
        "slug": ("device",),
        "architecture": (),
        "finished": ("stage", "results"),
        "record": ("stage", "device", "status", "seconds", "work", "results"),
        "profile": ("device", "output"),
        "sanitize": ("device", "output"),
        "table": ("results",),
    }.items():
        command = commands.add_parser(name)
        for option in wanted:
            kind: Any = {"status": int, "seconds": int, "stage": str, "device": str}.get(option, Path)
            command.add_argument(option if option == "stage" else f"--{option}", type=kind)
    arguments = parser.parse_args()
    if arguments.command == "slug":
        print(slug(arguments.device))
        return 0
    if arguments.command == "architecture":
        print(architecture())
        return 0
    run: Any = {"finished": finished, "record": record, "profile": profile, "sanitize": sanitize, "table": table}
    return int(run[arguments.command](arguments))


if __name__ == "__main__":
    sys.exit(main())

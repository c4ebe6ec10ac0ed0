"""The sweeps: how cost grows with each parameter, threads, the smallest sizes, and what comes before the first call.

A process an operator, with the allocator's thresholds raised. Whole runs are kept beside the code, as
benchmarks/results/<machine>/sweeps-<operator>.json with the plots of them; short ones in benchmarks/results/local.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prosma_ops import doctor
from prosma_ops.report.records import EAGER, OURS

from .. import harness, machine, report
from . import PUBLIC, SWEEPS, growth
from .sweep import Rounds, Sweep, run

RESULTS = machine.ROOT / "benchmarks" / "results"
GIGABYTE = 10**9
MOST = 16.0
# Of what is free: the check and the system need some as well.
SHARE = 0.7
# A fresh process for each; small ones say nothing, and large ones take long to fill.
MEMORY_FROM, MEMORY_TO = 20 * 10**6, 500 * 10**6
STARTS = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.add_argument("operators", nargs="*", help=f"of {', '.join(PUBLIC)} (default: all)")
    parser.add_argument("--short", action="store_true", help="the first three points of some sweeps, in two minutes")
    parser.add_argument("--sweep", default="", help="only sweeps whose name holds this; kept in results/local")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks/results/<machine>)")
    parser.add_argument(
        "--most-memory", type=float, metavar="GB", help="of tensors (default: 70 %% of what is free, at most 16)"
    )
    parser.add_argument("--no-plots", action="store_true")
    parser.add_argument("--here", action="store_true", help="in this process and its allocator setting")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.operators) - set(PUBLIC))
    if unknown:
        parser.error(f"no such operator: {', '.join(unknown)}; there are {', '.join(PUBLIC)}")
    partial = arguments.short or arguments.sweep
    folder = arguments.output or RESULTS / ("local" if partial else machine.slug(machine.cpu_name()))
    most = GIGABYTE * (arguments.most_memory or most_memory())
    if arguments.here:
        return max(measure(operator, folder, most, arguments) for operator in arguments.operators)
    status = 0
    for operator in arguments.operators or PUBLIC:
        command = [sys.executable, "-m", "benchmarks.sweeps", operator, "--here", "--output", str(folder.resolve())]
        command += ["--most-memory", str(most / GIGABYTE), "--sweep", arguments.sweep] + ["--short"] * arguments.short
        status |= subprocess.run(command, cwd=machine.ROOT, env=machine.environment("raised"), check=False).returncode
    if not arguments.no_plots:
        report.draw(folder)
    return status


def most_memory() -> float:
    """GB that tensors may take."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return MOST / 4
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(MOST, SHARE * free / GIGABYTE)


@dataclass
class Kept(harness.Results):
    """The records of an operator's sweeps, and what else a run of them finds; written after every point."""

    left_out: list[dict[str, Any]] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "left_out": self.left_out,
            "fits": growth.fits(self.records),
            "start": self.start,
        }

    def add(self, record: dict[str, Any]) -> None:
        (self.records if "contestants" in record else self.left_out).append(record)
        self.write()


def thread_counts() -> list[int]:
    """1 to all; of more than 8 the powers of two, and all."""
    cores = doctor.usable_cores()
    return (
        list(range(1, cores + 1)) if cores <= 8 else [*(2**n for n in range(cores.bit_length()) if 2**n < cores), cores]
    )


def measure(operator: str, folder: Path, most: float, arguments: argparse.Namespace) -> int:
    """All sweeps of an operator in this process; 1 if a result of ours was wrong."""
    counts = thread_counts()
    setting = Rounds("cpu", counts[-1], arguments.short)
    module = importlib.import_module(f".{operator}", __package__)
    kept = Kept(machine.record("cpu"), folder / f"{SWEEPS}{operator}.json", operator=operator)
    sweeps: Sequence[Sweep] = module.sweeps(counts)
    print(f"{operator}: tensors of at most {most / GIGABYTE:.1f} GB", flush=True)
    kept.start = start(operator, 1 if arguments.short else STARTS)
    for sweep in sweeps:
        if arguments.sweep not in sweep.name or (arguments.short and not sweep.short):
            continue
        for record in run(sweep, operator, setting, most):
            if sweep.memory and not arguments.short and "contestants" in record:
                record |= memory(operator, sweep, record, setting)
            kept.add(record)
            if "contestants" in record:
                print(report.line(record), flush=True)
    print(growth.text(kept.as_json()))
    return int(any(record["contestants"][OURS]["wrong"] for record in kept.records))


def memory(operator: str, sweep: Sweep, record: dict[str, Any], setting: Rounds) -> dict[str, Any]:
    """The extra peak memory of ours and eager, of those that were timed, each in a fresh process."""
    if not MEMORY_FROM <= record["sweep"]["tensor_bytes"] <= MEMORY_TO:
        return {}
    point = next(point for point in sweep.points if point.value == record["sweep"]["value"])
    timed = [name for name in (OURS, EAGER) if record["contestants"].get(name, {}).get("median")]
    return {"memory": {name: harness.extra_memory(f"sweeps.{operator}", point.work, name, setting) for name in timed}}


def start(operator: str, processes: int) -> dict[str, float]:
    """The median seconds of each step before the first result, over some fresh processes."""
    command = [sys.executable, "-m", "benchmarks.sweeps.start", operator]
    found = [
        json.loads(subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=True).stdout)
        for _ in range(processes)
    ]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


if __name__ == "__main__":
    sys.exit(main())

"""Writes the table by which `auto` chooses between `cuda` and `triton` on the GPU at hand: `python -m benchmarks.tune`.

Every piece of work of the benchmarks is timed on both, cold and in a CUDA graph as there, the two by turns; the median
of the rounds goes to `prosma_ops/tuned/<GPU>.json`, which is installed with the package.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from prosma_ops import backends, tuned
from prosma_ops.testing import Problem
from prosma_ops.testing.case import dtype_name

from .gpu import works
from .timing import rotated, timer
from .work import Work

ROUNDS = 7


def both(problem: Problem) -> bool:
    """Whether both backends can do this work; what is no single operator has no table."""
    operator = backends.OPERATORS.get(problem.function.__name__)
    if operator is None:
        return False
    leader = problem.inputs[problem.leader]
    return all(operator.implementations[name].can_run((leader,)).can_run for name in tuned.RIVALS)


def measure(work: Work, problem: Problem) -> dict[str, float]:
    """The median seconds of each backend for this work."""
    timers, problems = {}, rotated(work, problem)
    for name in tuned.RIVALS:
        with backends.use_backend(name):
            timers[name] = timer(work, work.ours, problems)
    rounds: dict[str, list[float]] = {name: [] for name in tuned.RIVALS}
    for _ in range(ROUNDS):
        for name, one in timers.items():
            with backends.use_backend(name):
                rounds[name].append(one.seconds())
    return {name: statistics.median(times) for name, times in rounds.items()}


def table(device: torch.device) -> tuned.Seconds:
    found: dict[str, Any] = {}
    for _, work in works(device.type):
        problem = work.problem(device)
        if not both(problem):
            continue
        leader = problem.inputs[problem.leader]
        assert leader is not None
        entry = {"work": work.key, "numbers": leader.numel(), **measure(work, problem)}
        found.setdefault(problem.function.__name__, {}).setdefault(dtype_name(work.dtype), []).append(entry)
        print(json.dumps(entry), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=tuned.FOLDER, help="where the table goes")
    folder = parser.parse_args().folder
    if not torch.cuda.is_available():
        print("there is no GPU here that torch can use: nothing to measure", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name()
    found = table(torch.device("cuda"))
    if not found:
        print("no operator has both a CUDA C++ and a Triton kernel here; `prosma-ops doctor` says why", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    path = tuned.path_of(name, folder)
    path.write_text(json.dumps({"device": name, "seconds": found}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

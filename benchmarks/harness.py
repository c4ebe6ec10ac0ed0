"""One piece of work, raced: every contestant checked against float64, then all timed in turn within each round.

Results go into plain records (see `race`), which `benchmarks.report` makes tables of. A contestant whose result is
wrong gets no time.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prosma_ops import backends, testing
from prosma_ops.testing import Problem, parity
from prosma_ops.testing.case import dtype_name

from . import floors, machine, report, timing
from .floors import Rates
from .machine import allocator
from .targets import OURS
from .work import Contestant, Work, as_function, device_of

COPY = "a copy of the same bytes"


@dataclass(frozen=True)
class Setting:
    device: str
    threads: int
    short: bool = False
    main: bool = True  # the first of the thread counts, by which targets are judged

    @property
    def budget(self) -> float:
        """Seconds of rounds for one piece of work."""
        return 2.0 if self.short else 5.0

    @property
    def rounds(self) -> tuple[int, int]:
        """The fewest and the most."""
        return (5, 15) if self.short else (7, 41)

    def includes(self, one: Work | Contestant) -> bool:
        main = self.main and (self.device == "cuda" or allocator() == "raised")
        return (one.short or not self.short) and (one.every_setting or main)


# A rival slower than SLOW seconds is timed in the first three rounds only, as its jitter is small beside its time; one
# slower than VERY_SLOW, which only a busy machine has, in the first.
SLOW, ROUNDS_OF_SLOW = 0.5, 3
VERY_SLOW = 5.0


def expectation(problem: Problem) -> parity.Expectation:
    """The float64 reference, and what eager PyTorch makes of it in the work's dtype, both on the work's device."""

    def contiguous(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda tensor: tensor.contiguous().to(dtype if tensor.dtype.is_floating_point else tensor.dtype)

    with parity.full_precision():
        with backends.use_backend("reference"):  # a definition may be made of operators
            reference = parity.evaluate(problem, problem.definition, contiguous(torch.float64))
        with parity.without_onednn(problem.dtype.itemsize == 2):
            eager = parity.evaluate(problem, problem.eager, contiguous(problem.dtype))
    return parity.Expectation(reference, [eager])


_last: tuple[Any, parity.Expectation] | None = None


def expectation_of(work: Work, problem: Problem) -> parity.Expectation:
    """The expectation, kept for the next work or setting with the same numbers: float64 in 3-D takes seconds."""
    global _last
    if _last is None or _last[0] != work.numbers:
        _last = None
        _last = (work.numbers, expectation(problem))
    return _last[1]


# What a rival may exceed the tolerance rule by and still be timed. torch.compile sums the gradients of a threshold in
# one chain of float32, 1.4 times what the rule allows; leaving it out would only make the comparison easier for us.
LENIENCE = 10.0


def check(problem: Problem, contestant: Contestant, expected: parity.Expectation) -> dict[str, Any]:
    """error: the largest share of what the tolerance rule allows, over the result and all gradients; wrong: why."""
    found, called = first_call(problem, as_function(contestant), contestant.arrange)
    if found is None:
        return called
    pieces = [
        (name, found.get(name), reference, expected.eager(name))
        for name, reference in expected.reference.items()
        if reference is not None
    ]
    return called | judge(problem, contestant, pieces)


def first_call(
    problem: Problem, function: Callable[..., Any], arrange: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[parity.Results | None, dict[str, Any]]:
    """The results, and `first`, the seconds of a contestant's first call: for a compiled one, of compiling."""
    start = time.perf_counter()
    try:
        with parity.full_precision():
            found = parity.evaluate(problem, function, arrange)
        synchronize(problem)
    except Exception as error:  # a contestant that cannot do the work is reported, and the others go on
        return None, {"error": None, "wrong": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return found, {"first": time.perf_counter() - start}


Piece = tuple[str, torch.Tensor | None, torch.Tensor, Sequence[torch.Tensor]]


def judge(problem: Problem, contestant: Contestant, pieces: Iterable[Piece]) -> dict[str, Any]:
    """The verdict over (name, result, reference, what eager makes of it): ours is held to the rule, rivals to LENIENCE
    times the rule, and the report shows the error of both."""
    worst, reasons = 0.0, []
    for name, result, reference, attempts in pieces:
        verdict = testing.compare(result, reference, attempts, parity.expected_dtype(problem, name))
        worst = max(worst, verdict.ratio)
        lenient = contestant.name != OURS and verdict.ratio <= LENIENCE
        if not verdict.ok and not lenient:
            reasons.append(f"{name}: {verdict.reason}")
    return {"error": worst if math.isfinite(worst) else None, "wrong": "; ".join(reasons)}


def synchronize(problem: Problem) -> None:
    if device_of(problem).type == "cuda":
        torch.cuda.synchronize()


def copy_of_the_same_bytes(work: Work, device: torch.device) -> Contestant:
    """The yardstick: what PyTorch needs to move the least bytes of the work, half read and half written."""
    source = torch.zeros(max(1, int(work.moved_bytes // 8)), device=device)
    target = torch.zeros_like(source)
    return Contestant(COPY, lambda **_: target.copy_(source), rival=False)


def race(benchmark: Any, work: Work, setting: Setting) -> dict[str, Any]:
    """Check and time every contestant; `benchmark` is pytest-benchmark's fixture, and times ours."""
    device = torch.device(setting.device)
    torch.set_num_threads(setting.threads)
    torch.compiler.reset()
    contestants = [one for one in work.contestants if setting.includes(one)]
    problem = work.problem(device)
    expected = expectation_of(work, problem)
    entries: dict[str, dict[str, Any]] = {}
    for contestant in contestants:
        entry: dict[str, Any] = {"rival": contestant.rival}
        entries[contestant.name] = entry | (check(problem, contestant, expected) if contestant.rival else {})
    gc.collect()

    if entries[OURS]["wrong"]:  # then there is nothing to compare
        return record(work, setting, entries, Rates())
    problems = timing.rotated(work, problem)
    running = [one for one in contestants if not entries[one.name].get("wrong")]
    if work.moved_bytes:
        running.append(copy_of_the_same_bytes(work, device))
        entries[COPY] = {"rival": False}
    timers = {contestant.name: timing.timer(work, contestant, problems) for contestant in running}
    times, rates = run_rounds(benchmark, timers, setting, measures(work))
    for name, timer in timers.items():
        entries[name] |= {"graph": timer.graph} | summary(times[name])
    return record(work, setting, entries, rates)


def summary(times: Sequence[float]) -> dict[str, Any]:
    found = {"median": statistics.median(times), "min": min(times), "max": max(times)}
    return {name: float(f"{seconds:.4g}") for name, seconds in found.items()} | {"rounds": len(times)}


def measures(work: Work) -> Callable[[str, int], Rates]:
    """How the floors of a work are measured: exponentials take a loop of their own, which few works need."""
    return functools.partial(floors.measure, exp=True) if work.exponentials else floors.measure


def run_rounds(
    benchmark: Any,
    timers: Mapping[str, timing.Timer],
    setting: Setting,
    measure: Callable[[str, int], Rates],
) -> tuple[dict[str, list[float]], Rates]:
    """Rounds in which each contestant runs once, ours last; the floors are measured at the start, middle and end."""
    trial = {name: timer.trial for name, timer in timers.items()}
    slow = {name: 1 if seconds > VERY_SLOW else ROUNDS_OF_SLOW for name, seconds in trial.items() if seconds > SLOW}
    slow.pop(OURS, None)
    quick = sum(seconds * timers[name].calls for name, seconds in trial.items() if name not in slow)
    fewest, most = setting.rounds
    rounds = max(fewest, min(most, int(setting.budget / max(quick, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in timers}
    rates: list[Rates] = []
    numbers = itertools.count()

    def others() -> None:
        number = next(numbers)
        if number in (0, rounds // 2, rounds - 1):
            rates.append(measure(setting.device, setting.threads))
        for name, timer in timers.items():
            if name != OURS and number < slow.get(name, rounds):
                times[name].append(timer.seconds())

    def ours() -> None:
        times[OURS].append(timers[OURS].seconds())

    benchmark.pedantic(ours, setup=others, rounds=rounds, iterations=1)
    return times, floors.together(rates)


def record(work: Work, setting: Setting, entries: dict[str, Any], rates: Rates) -> dict[str, Any]:
    return {
        "work": work.name,
        "dtype": dtype_name(work.dtype),
        "device": setting.device,
        "threads": setting.threads,
        "main": setting.main,
        "allocator": allocator(),
        "calls": work.calls,
        "contestants": entries,
        "rates": rates.as_json(),
        "floors": floors.times(rates, work.moved_bytes, work.multiply_adds, work.exponentials),
        "memory_unit": work.memory_unit,
        "targets": [target.as_json() for target in work.targets],
    }


@dataclass
class Results:
    """The records of one process, as they are written for `benchmarks.report`."""

    machine: dict[str, Any]
    path: Path | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    operator: str = ""

    def race(self, benchmark: Any, work: Work, setting: Setting) -> None:
        """Race one work and write its record at once; fails, with no time taken, where our result is wrong."""
        found = race(benchmark, work, setting)
        if work.field_bytes and setting.main:
            found["memory"] = {
                name: extra_memory(self.operator, work, name, setting) for name in memory_of(work, setting)
            }
        self.records.append({"operator": self.operator, **found})
        self.write()
        wrong = found["contestants"][OURS]["wrong"]
        if wrong:
            raise AssertionError(f"WRONG, so not timed: {wrong}")

    def last_line(self) -> str:
        return report.line(self.records[-1]) if self.records else ""

    def write(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.as_json(), indent=1) + "\n")

    def as_json(self) -> dict[str, Any]:
        return {"machine": self.machine, "records": self.records}


def memory_of(work: Work, setting: Setting) -> list[str]:
    """Whose memory is measured: ours, and in whole runs the first rival's."""
    names = [contestant.name for contestant in work.contestants if contestant.rival]
    return [OURS] if setting.short or allocator() == "default" else names[:2]


def extra_memory(operator: str, work: Work, name: str, setting: Setting) -> float | None:
    """Measured by `benchmarks.single` in a fresh process; None where the system cannot tell."""
    command = [sys.executable, "-m", "benchmarks.single", operator, work.key]
    command += ["--contestant", name, "--device", setting.device]
    done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])["tensors"]  # type: ignore[no-any-return]

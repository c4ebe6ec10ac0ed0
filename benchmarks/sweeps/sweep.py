"""A sweep: one piece of work at several values of one parameter, ours beside eager PyTorch, each checked before timed.

Left out, and said: a point whose tensors exceed the memory that may be used, and a contestant that the points before
predict to take too long. The prediction scales the last time by what grew most: bytes, multiply-adds or exponentials.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prosma_ops import testing
from prosma_ops.report.records import EAGER, OURS
from prosma_ops.testing import parity

from .. import harness, timing
from ..floors import Rates
from ..work import Contestant, Work, as_function
from .tiling import Tiling

# A contestant predicted to take longer is left out: five calls of it are made.
LONGEST = {OURS: 6.0, EAGER: 1.0}
LONGEST_SHORT = {OURS: 0.5, EAGER: 0.15}
POINTS_OF_SHORT = 3
# What the extra memory of every work of a sweep is counted in.
MEGABYTES: dict[str, Any] = {"field_bytes": 10**6, "memory_unit": "MB"}


@dataclass(frozen=True)
class Point:
    """`tensor_bytes`: inputs, results and gradients; `eager_bytes`: what eager needs with its intermediate tensors."""

    value: float
    work: Work
    tiling: Tiling
    tensor_bytes: float
    eager_bytes: float
    threads: int | None = None  # None: all


def against_eager(
    value: float,
    tiling: Tiling,
    ours: Callable[..., Any],
    eager: Callable[..., Any],
    *,
    tensors: float,
    intermediate: float,
    threads: int | None = None,
    **work: Any,
) -> Point:
    """A point of ours and eager, which needs `intermediate` bytes beside the tensors'; `work` is the rest of a Work."""
    contestants = [Contestant(OURS, ours), Contestant(EAGER, eager)]
    made = Work(build=tiling.problem, contestants=contestants, **MEGABYTES, **work)
    return Point(value, made, tiling, tensors, tensors + intermediate, threads)


@dataclass(frozen=True)
class Sweep:
    name: str  # unlike that of any other of the operator
    parameter: str  # what the values are, as an axis is labelled
    points: Sequence[Point]
    what: str  # the work, with what stays the same
    memory: bool = False  # extra memory is measured too
    short: bool = False  # belongs to short runs

    def chosen(self, short: bool) -> Sequence[Point]:
        return self.points[:POINTS_OF_SHORT] if short else self.points


@dataclass(frozen=True)
class Rounds(harness.Setting):
    """Fewer rounds than a race has: a line through several points needs less of each."""

    @property
    def budget(self) -> float:
        return 0.2 if self.short else 0.8

    @property
    def rounds(self) -> tuple[int, int]:
        return (3, 5) if self.short else (3, 15)


class Loop:
    """Stands for pytest-benchmark's fixture."""

    @staticmethod
    def pedantic(target: Callable[[], Any], setup: Callable[[], Any], rounds: int, iterations: int) -> None:
        assert iterations == 1
        for _ in range(rounds):
            setup()
            target()


def check(
    point: Point, problem: testing.Problem, contestant: Contestant, expected: parity.Expectation
) -> dict[str, Any]:
    """As `harness.check`, piece by piece."""
    function = as_function(contestant)
    found, called = harness.first_call(problem, function, contestant.arrange)
    if found is None:
        return called
    pieces = point.tiling.pieces(found, expected, point.tiling.repetitions(point.work.size))
    return called | harness.judge(problem, contestant, pieces)


def measure(point: Point, names: Sequence[str], setting: Rounds) -> dict[str, Any]:
    """The record of a point, in the form of `benchmarks.harness`."""
    work, device = point.work, torch.device(setting.device)
    torch.set_num_threads(setting.threads)
    small = point.tiling.small_problem(work.size, work.dtype, device)
    expected = harness.expectation(small if work.training else without_grads(small))
    problem = work.problem(device)
    entries: dict[str, dict[str, Any]] = {}
    for name in names:
        entries[name] = {"rival": True} | check(point, problem, work.contestant(name), expected)
        gc.collect()
    if entries[OURS]["wrong"]:
        return harness.record(work, setting, entries, Rates())
    problems = timing.rotated(work, problem)
    running = [name for name in names if not entries[name]["wrong"]]
    timers = {name: timing.timer(work, work.contestant(name), problems) for name in running}
    rates_of = functools.partial(harness.measures(work), seconds=0.01) if setting.short else harness.measures(work)
    times, rates = harness.run_rounds(Loop, timers, setting, rates_of)
    for name, timer in timers.items():
        entries[name] |= {"graph": timer.graph} | harness.summary(times[name])
    return harness.record(work, setting, entries, rates)


def without_grads(problem: testing.Problem) -> testing.Problem:
    return dataclasses.replace(problem, grads=())


def effort(work: Work) -> Mapping[str, float]:
    return {"bytes": work.moved_bytes, "fma": work.multiply_adds, "exp": work.exponentials}


def predicted(known: tuple[Work, float] | None, work: Work) -> float:
    """Seconds, from the last point's; 0 where nothing is known yet."""
    if known is None:
        return 0.0
    before, after = effort(known[0]), effort(work)
    return known[1] * max((after[name] / before[name] for name in before if before[name]), default=1.0)


def run(sweep: Sweep, operator: str, setting: Rounds, most_memory: float) -> Iterator[dict[str, Any]]:
    """The records of a sweep, one a point, each as soon as it is measured."""
    last: dict[str, tuple[Work, float]] = {}
    limits = LONGEST_SHORT if setting.short else LONGEST
    for point in sweep.chosen(setting.short):
        needed = {OURS: point.tensor_bytes, EAGER: point.eager_bytes}
        reasons = {}
        for name in needed:
            seconds = predicted(last.get(name), point.work)
            if needed[name] > most_memory:
                reasons[name] = f"would need {needed[name] / 1e9:.1f} GB"
            elif seconds > limits[name]:
                reasons[name] = f"would take {seconds:.1f} s a call"
        described = {
            "name": sweep.name,
            "parameter": sweep.parameter,
            "what": sweep.what,
            "value": point.value,
            "tensor_bytes": point.tensor_bytes,
            "left_out": reasons,
        }
        if OURS in reasons:
            yield {"operator": operator, "sweep": described}
            continue
        at = Rounds(setting.device, point.threads or setting.threads, setting.short)
        names = [name for name in needed if name not in reasons]
        found = measure(point, names, at)
        for name in names:
            if found["contestants"][name].get("median"):
                last[name] = (point.work, found["contestants"][name]["median"])
        yield {"operator": operator, "sweep": described, **found}

"""What a piece of work should reach, and whether a record does. All are judged on medians of one interleaved run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prosma_ops.report.records import OURS, best_of_others, medians

BEST = "best of the others"


@dataclass(frozen=True)
class Target:
    """`measure` names what is judged:

    speedup     time of `against` / our time; against BEST: of the fastest rival
    slowdown    our time / time of `against`
    excess      our time - time of `against`, in microseconds
    floor       floor / our time; `against` is "memory", "fma", "exp" or "largest"
    memory      extra peak memory, in the unit of the work
    memory share   our extra peak memory / that of `against`
    share       of our time, what the record's part `against` takes
    """

    measure: str
    against: str
    at_least: float | None = None
    at_most: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(values: Mapping[str, Any]) -> Target:
    return Target(**values)


def value(target: Target, record: Mapping[str, Any]) -> float | None:
    """What the record reached, or None where it holds no such measurement."""
    if target.measure == "memory":
        entry = record.get("memory", {}).get(OURS)
        return None if entry is None else float(entry)
    if target.measure == "memory share":
        ours, other = (record.get("memory", {}).get(name) for name in (OURS, target.against))
        return None if ours is None or not other else float(ours / other)
    if target.measure == "share":
        part: float | None = record.get("shares", {}).get(target.against)
        return part
    found = medians(record)
    ours = found.get(OURS)
    if not ours:
        return None
    if target.measure == "floor":
        floors = record.get("floors", {})
        floor = max(floors.values(), default=None) if target.against == "largest" else floors.get(target.against)
        return None if floor is None else floor / ours
    against = best_of_others(record) if target.against == BEST else target.against
    other = found.get(against) if against else None
    if other is None:
        return None
    return {"speedup": other / ours, "slowdown": ours / other, "excess": (ours - other) * 1e6}[target.measure]


def reached(target: Target, reached_value: float | None) -> bool | None:
    if reached_value is None or math.isnan(reached_value):
        return None
    if target.at_least is not None:
        return reached_value >= target.at_least
    return target.at_most is None or reached_value <= target.at_most

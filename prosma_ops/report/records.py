"""What a record of the benchmarks says of one piece of work, for the page here and for the benchmarks' own reports.

    {"work": ..., "dtype": ..., "device": "cpu" or "cuda", "contestants": {"ours": {"median": seconds}, "eager": ...}}

A contestant with "wrong" has no time. "rival": False says that it is no other way to the same result, such as a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OURS, EAGER = "ours", "eager"

Record = Mapping[str, Any]


def title(record: Record) -> str:
    return f"{record['work']}, {record['dtype']}"


def leading(record: Record) -> bool:
    """Whether it is of the benchmarks' main setting; one thread and the default allocator are told elsewhere."""
    return record.get("device") == "cuda" or (
        record.get("allocator", "raised") == "raised" and record.get("main", True)
    )


def medians(record: Record) -> dict[str, float]:
    """Seconds by contestant, of those that have a time."""
    return {name: entry["median"] for name, entry in record["contestants"].items() if entry.get("median") is not None}


def best_of_others(record: Record) -> str | None:
    found = medians(record)
    others = [name for name in found if name != OURS and record["contestants"][name].get("rival", True)]
    return min(others, key=found.__getitem__) if others else None


def speed(record: Record) -> tuple[str, str, str]:
    """Our time, and how many times that eager PyTorch and the best of the others take."""
    found = medians(record)
    base = found.get(OURS)
    if record["contestants"][OURS].get("wrong") or not base:
        return "WRONG", "", ""
    best = best_of_others(record)
    eager = ratio(found[EAGER] / base) if EAGER in found else ""
    return duration(base), eager, f"{ratio(found[best] / base)} ({best})" if best else ""


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    scale, unit = next((pair for pair in ((1.0, "s"), (1e-3, "ms")) if seconds >= pair[0]), (1e-6, "us"))
    value = seconds / scale
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def ratio(value: float) -> str:
    return f"{value:.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 9.95 else f"{value:.2f}x"

"""What a sweep says: the exponent by which time and memory grow, and the tables.

The exponent is the slope of a least-squares line through the logarithms. Beside it stands the range of what was
measured over what the line gives: far from 1, the growth is no power, and the exponent only its mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prosma_ops.report.records import EAGER, OURS

from .. import report
from . import SMALL_SIZES, THREADS

# Seconds, and MB: below these a call's own cost and the process's pages bend the line.
SMALLEST = {"time": 1e-4, "memory": 1.0}
FEWEST = 3

Record = Mapping[str, Any]


def fit(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """Of (value, measured); None for fewer than three."""
    if len(pairs) < FEWEST:
        return None
    logarithms = [(math.log(value), math.log(measured)) for value, measured in pairs]
    x_mean, y_mean = (sum(column) / len(pairs) for column in zip(*logarithms, strict=True))
    spread = sum((x - x_mean) ** 2 for x, _ in logarithms)
    if spread == 0:
        return None
    slope = sum((x - x_mean) * (y - y_mean) for x, y in logarithms) / spread
    residuals = [math.exp(y - y_mean - slope * (x - x_mean)) for x, y in logarithms]
    values = [value for value, _ in pairs]
    return {
        "exponent": round(slope, 3),
        "residuals": [round(min(residuals), 3), round(max(residuals), 3)],
        "from": min(values),
        "to": max(values),
        "points": len(pairs),
    }


def measured(record: Record, name: str, quantity: str) -> float | None:
    if quantity == "memory":
        found: float | None = record.get("memory", {}).get(name)
    else:
        found = record["contestants"].get(name, {}).get("median")
    return found


def series(records: Iterable[Record], name: str, quantity: str = "time") -> list[tuple[float, float]]:
    """(value, seconds or MB) of one contestant, rising."""
    pairs = ((record["sweep"]["value"], measured(record, name, quantity)) for record in records)
    return sorted((value, found) for value, found in pairs if found is not None)


def by_sweep(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["sweep"]["name"], []).append(record)
    return found


def fits(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Every exponent that a file's records give. More threads are no growth, and the smallest sizes have none."""
    found = []
    for name, points in by_sweep(records).items():
        if name in (THREADS, SMALL_SIZES):
            continue
        for contestant, quantity in itertools.product((OURS, EAGER), SMALLEST):
            pairs = [pair for pair in series(points, contestant, quantity) if pair[1] >= SMALLEST[quantity]]
            line = fit(pairs)
            if line is not None:
                found.append({"sweep": name, "contestant": contestant, "quantity": quantity, **line})
    return found


def exponent(line: Mapping[str, Any]) -> str:
    low, high = line["residuals"]
    return f"{line['exponent']:.2f} ({low:.2f} to {high:.2f})"


def amount(value: float) -> str:
    """48, 12.5k, 1.2G."""
    for letter, scale in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= scale:
            return f"{value / (1e3 if letter == 'k' else scale):.3g}{letter}"
    return f"{value:g}"


def table(records: Sequence[Record]) -> list[report.Row]:
    parameter, threads = records[0]["sweep"]["parameter"], records[0]["sweep"]["name"] == THREADS
    last = "speed-up" if threads else "extra memory, MB"
    rows: list[report.Row] = [(parameter, OURS, "eager / ours", "floor reached", last)]
    base = records[0]["contestants"][OURS].get("median")
    for record in records:
        entry, value = record["contestants"][OURS], amount(record["sweep"]["value"])
        if entry.get("wrong") or not entry.get("median"):
            rows.append((value, "WRONG", entry["wrong"]))
            continue
        eager, floor = measured(record, EAGER, "time"), max(record["floors"].values(), default=None)
        memory = [measured(record, name, "memory") for name in (OURS, EAGER)]
        known = " / ".join("-" if one is None else f"{one:.0f}" for one in memory) if any(memory) else ""
        rows.append(
            (
                value,
                report.ours(record),
                report.ratio(eager / entry["median"]) if eager else "-",
                report.share(floor / entry["median"]) if floor else "",
                report.ratio(base / entry["median"]) if threads and base else known,
            )
        )
    return rows


def text(results: Mapping[str, Any]) -> str:
    """The whole of a file for a terminal."""
    machine, records = results["machine"], results["records"]
    parts = [report.head(machine), *report.busy(machine, records), ""]
    for name, points in by_sweep(records).items():
        parts += [f"{name}: {points[0]['sweep']['what']}", *report.aligned(table(points))]
        for line in (line for line in results.get("fits", ()) if line["sweep"] == name):
            unit = "time" if line["quantity"] == "time" else "memory"
            parts.append(f"  {unit} of {line['contestant']} grows with the power {exponent(line)}")
        parts += [*(f"  left out: {reason}" for reason in left_out(results, name)), ""]
    if results.get("start"):
        steps = ", ".join(f"{name} {report.duration(seconds)}" for name, seconds in results["start"].items())
        parts += [f"in a fresh process: {steps}", ""]
    return "\n".join(parts)


def left_out(results: Mapping[str, Any], sweep: str) -> list[str]:
    found = []
    for one in (*results["records"], *results.get("left_out", ())):
        about = one["sweep"]
        if about["name"] == sweep:
            for name, reason in about["left_out"].items():
                found.append(f"{about['parameter']} {amount(about['value'])}, {name}: {reason}")
    return found

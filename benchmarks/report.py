"""The tables of a run: `python -m benchmarks.report RESULTS.json [--markdown]`.

For each work: our median time with the fastest and slowest round, each rival's time as a multiple of ours, the share of
the floors, the largest error as a share of what the tolerance rule allows, extra peak memory, and for each target
whether it was reached. A contestant with a wrong result shows WRONG and no time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prosma_ops.report.records import OURS, Record, best_of_others, duration, leading, medians, ratio, speed, title

from . import targets
from .machine import ALLOCATORS
from .targets import BEST, Target

Row = tuple[str, ...]
SHARES = ("floor", "memory share", "share")


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def memory_unit(record: Record) -> str:
    return str(record.get("memory_unit", "tensors"))


def shown(target: Target, value: float | None, unit: str = "tensors") -> str:
    if value is None:
        return "not measured"
    if target.measure == "excess":
        return f"{value:+.1f} us"
    if target.measure == "memory":
        return f"{value:.2f} {unit}"
    return share(value) if target.measure in SHARES else ratio(value)


def wanted(target: Target, unit: str = "tensors") -> str:
    bound = target.at_least if target.at_least is not None else target.at_most
    unit = {"excess": " us", "memory": f" {unit}", **dict.fromkeys(SHARES, " %")}.get(target.measure, "x")
    amount = 100 * bound if target.measure in SHARES else bound  # type: ignore[operator]
    return f"at {'least' if target.at_least is not None else 'most'} {amount:g}{unit}"


def described(target: Target, record: Record) -> str:
    """What the target is measured against, with the name of the best rival or of the floor that binds."""
    if target.measure == "memory":
        return "extra peak memory"
    if target.measure == "memory share":
        return f"extra peak memory of {target.against}"
    if target.measure == "share":
        return f"{target.against}, of our time"
    if target.measure == "floor":
        name = target.against
        if name == "largest":
            floors = record.get("floors", {})
            name = max(floors, key=floors.__getitem__) if floors else "memory or FMA"
        return f"floor ({'FMA' if name == 'fma' else name})"
    if target.against == BEST:
        return f"{BEST} ({best_of_others(record) or 'none'})"
    return target.against


def judged(record: Record) -> bool:
    """Targets are for the main setting on a CPU; elsewhere the figures are reported without one."""
    return record["device"] == "cpu" and leading(record)


def verdicts(record: Record) -> list[Row]:
    """(against, reached, wanted, verdict) for every target of a record."""
    rows: list[Row] = []
    for target in map(targets.from_json, record["targets"] if judged(record) else ()):
        value = None if record["contestants"][OURS].get("wrong") else targets.value(target, record)
        reached = targets.reached(target, value)
        verdict = {True: "reached", False: "NOT REACHED", None: "-"}[reached]
        unit = memory_unit(record)
        rows.append((described(target, record), shown(target, value, unit), wanted(target, unit), verdict))
    return rows


def ours(record: Record) -> str:
    entry = record["contestants"][OURS]
    if entry.get("wrong"):
        return "WRONG"
    spread = f"[{duration(entry['min'])} - {duration(entry['max'])}]"
    return f"{duration(entry['median'])} {spread}"


def line(record: Record) -> str:
    """One line of progress."""
    entry = record["contestants"][OURS]
    if entry.get("wrong"):
        return f"  {title(record)}: WRONG: {entry['wrong']}"
    return f"  {title(record)}: {ours(record)}, {entry['rounds']} rounds"


def group(record: Record) -> str:
    """The setting that a record was measured in."""
    if record["device"] == "cuda":
        return "GPU, cold cache"
    count = record["threads"]
    return f"{count} thread{'s' if count > 1 else ''}, {ALLOCATORS[record['allocator']]}"


def rivals(record: Record) -> list[Row]:
    """(name, time, multiple of ours) of everything else that was timed, and its error where the rule forbids it."""
    base = record["contestants"][OURS].get("median")
    rows: list[Row] = []
    for name, entry in record["contestants"].items():
        if name == OURS:
            continue
        if entry.get("wrong"):
            rows.append((name, "WRONG", entry["wrong"]))
        elif base and entry.get("median"):
            error = entry.get("error") or 0
            excess = (f"its error is {error:.1f} of what is allowed",) if error > 1 else ()
            rows.append((name, duration(entry["median"]), ratio(entry["median"] / base), *excess))
    return rows


def floors(record: Record) -> list[tuple[str, str, str]]:
    base = record["contestants"][OURS].get("median")
    names = {"memory": "memory floor", "fma": "FMA floor", "exp": "exp floor"}
    return [(names[name], duration(time), share(time / base)) for name, time in record["floors"].items() if base]


def rates(record: Record) -> str:
    units = {"fma": "GFLOP/s FMA", "exp": "G/s exp", "copy": "GB/s copy"}
    found = [f"{record['rates'][name]:.0f} {unit}" for name, unit in units.items() if record["rates"].get(name)]
    return ", ".join(found)


def head(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    clocks = ", ".join(f"{name} {value}" for name, value in machine.get("clocks", {}).items())
    native = f"; native library: {machine['native']}" if machine.get("native") else ""
    where = f"{machine['device']} ({machine['driver']}; {clocks}; load before {machine.get('load', 0)}){native}"
    return f"{where}\n{versions}; commit {machine['commit']}; {machine['date']}"


def busy(machine: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    """A warning where other work ran when the run began: threads that wait for each other suffer most from it."""
    cores, load = max((record["threads"] for record in records), default=1), machine.get("load", 0)
    if machine["kind"] != "cpu" or load <= cores / 4:
        return []
    return [f"The machine was busy (load {load} with {cores} threads): these times are not what it can do alone."]


def details(record: Record) -> list[str]:
    """What else is known: the error, first call, memory, and how many rounds."""
    entry = record["contestants"][OURS]
    if entry.get("wrong"):
        return [entry["wrong"]]
    found = []
    if entry.get("error") is not None:
        found.append(f"largest error {entry['error']:.2f} of what is allowed")
    if entry.get("first") is not None:
        found.append(f"first call {duration(entry['first'])}")
    if record.get("shares"):
        found.append(", ".join(f"{name} {share(value)} of our time" for name, value in record["shares"].items()))
    memory = {name: value for name, value in record.get("memory", {}).items() if value is not None}
    if memory:
        found.append(
            f"extra memory in {memory_unit(record)}: "
            + ", ".join(f"{name} {value:.1f}" for name, value in memory.items())
        )
    return found


def text(results: Mapping[str, Any]) -> str:
    """The whole report for a terminal."""
    machine, records = results["machine"], results["records"]
    parts = [head(machine), *busy(machine, records), ""]
    for setting in dict.fromkeys(map(group, records)):
        chosen = [record for record in records if group(record) == setting]
        beside = f"   (measured beside: {typical(chosen)})" if any(record["rates"] for record in chosen) else ""
        parts += [f"{setting}{beside}", *aligned(_rows(chosen)), ""]
    summary = targets_table(results)
    if len(summary) > 1:
        parts += ["Targets", *aligned(summary), ""]
    return "\n".join(parts)


def typical(records: Sequence[Record]) -> str:
    return next((rates(record) for record in records if rates(record)), "no floors: there is no native library")


def _rows(records: Sequence[Record]) -> list[Row]:
    rows: list[Row] = [("work", "against", "time", "time / ours")]
    for record in records:
        rows.append((title(record), OURS, ours(record), ""))
        rows += [("", *row) for row in rivals(record)]
        rows += [("", name, time, f"{reached} reached") for name, time, reached in floors(record)]
        rows += [("", note) for note in details(record)]
    return rows


def targets_table(results: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = [("work", "against", "measured", "target", "")]
    for record in results["records"]:
        for number, row in enumerate(verdicts(record)):
            rows.append((record["work"] if number == 0 else "", *row))
    return rows


def summary_rows(results: Mapping[str, Any]) -> list[Row]:
    """One line a work: our time, the best rival's as a multiple of it, and the share of the floor that binds."""
    rows: list[Row] = [("work", "time", "best of the others", "floor reached")]
    for record in results["records"]:
        name, time, _, best, floor = _cells(record)
        rows.append((f"{name}, {group(record)}", time, best, floor))
    return rows


# Wider than this a cell is a note and does not widen its column.
WIDEST = 44


def aligned(rows: Sequence[Row]) -> list[str]:
    columns = max(len(row) for row in rows)
    widths = [
        max((len(row[at]) for row in rows if at < len(row) - 1 and len(row[at]) <= WIDEST), default=0)
        for at in range(columns)
    ]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows
    ]


def markdown(results: Mapping[str, Any]) -> str:
    """The table for the README: the main setting, one line a work."""
    records = [record for record in results["records"] if leading(record)]
    machine = results["machine"]
    columns = ["work", "time", "eager", "best of the others", "floor reached"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cells(record)) + " |" for record in records]
    where = f"{machine['device']}, torch {machine['versions']['torch']}, {group(records[0])}" if records else ""
    note = "Times are medians of interleaved rounds; the other columns are the rival's time divided by ours."
    return "\n".join([*lines, "", f"{where}. {note}" if where else note])


def _cells(record: Record) -> list[str]:
    cells, base = [title(record), *speed(record)], medians(record).get(OURS)
    largest = max(record["floors"], key=record["floors"].__getitem__, default=None)
    if record["contestants"][OURS].get("wrong") or not base or not largest:
        return [*cells, ""]
    return [*cells, f"{share(record['floors'][largest] / base)} ({'FMA' if largest == 'fma' else largest})"]


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def draw(folder: Path) -> list[Path]:
    """The plots of a folder's results, in its `plots`; none, and why, where there is no matplotlib."""
    try:
        from . import plots
    except ImportError:
        print("no plots: there is no matplotlib; pip install 'prosma-ops[bench]' brings it")
        return []
    written = plots.draw(sorted(folder.glob("*.json")), folder / "plots")
    if written:
        print(f"{len(written)} plots in {folder / 'plots'}")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--markdown", action="store_true", help="the table for the README")
    arguments = parser.parse_args()
    for path in arguments.results:
        print((markdown if arguments.markdown else text)(load(path)))


if __name__ == "__main__":
    main()

"""What was measured on which machine, and what was not: the part of BENCHMARKS.md that `make tables` writes.

All of it comes from the committed results files, so it cannot claim what no file holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prosma_ops.report.records import EAGER, OURS

from . import report, targets
from .sweeps import PUBLIC, SMALL_SIZES, SWEEPS, THREADS, growth

OPERATORS = sorted(PUBLIC)
MODELS = "models"

Results = Mapping[str, Any]
File = tuple[Path, Results]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def page(files: Sequence[File]) -> str:
    """Everything between the markers."""
    sweeps = [file for file in files if file[0].stem.startswith(SWEEPS)]
    parts = ["### Results that are kept", kept(files), "### Not measured yet", missing(files)]
    if sweeps:
        parts += ["### How cost grows", exponents(sweeps), "### Threads", threads(sweeps)]
        parts += ["### Before the first result, and the smallest calls", starts(sweeps)]
    return "\n\n".join(parts)


def kept(files: Iterable[File]) -> str:
    rows = []
    for path, results in files:
        machine, records = results["machine"], results["records"]
        wrong = sum(bool(record["contestants"][OURS].get("wrong")) for record in records)
        verdicts = [verdict for record in records for *_, verdict in report.verdicts(record)]
        reached = f"{verdicts.count('reached')} of {len(verdicts)}" if verdicts else ""
        busy = "busy" if report.busy(machine, records) else "quiet"
        versions = machine["versions"]
        rows.append(
            (
                f"`{path.as_posix()}`",
                machine["device"],
                f"{len(records)} records{f', {wrong} wrong' if wrong else ''}",
                reached,
                f"torch {versions['torch']}, Python {versions['python']}",
                machine["commit"],
                machine["date"].split()[0],
                busy,
            )
        )
    columns = ("file", "machine", "what", "targets reached", "versions", "commit", "date", "machine was")
    return table(columns, rows)


def missing(files: Sequence[File]) -> str:
    """A line for each thing that no committed file holds."""
    known = {(path.stem, results["machine"]["kind"]) for path, results in files}
    wanted = [*OPERATORS, MODELS, *(SWEEPS + operator for operator in OPERATORS)]
    lines = []
    if not any(kind == "cuda" for _, kind in known):
        lines.append(
            "- Any GPU: no result from one exists, so nothing here says how fast the Triton and CUDA kernels are."
        )
    for stem in wanted:
        if (stem, "cpu") not in known:
            name = stem.removeprefix(SWEEPS)
            what = "the sweeps of" if stem.startswith(SWEEPS) else "the race of"
            lines.append(f"- {what} `{name}` on a CPU" if stem != MODELS else "- whole networks on a CPU")
    for path, results in files:
        partial = sorted({record["sweep"]["name"] for record in results.get("left_out", ())})
        if partial:
            lines.append(f"- the largest points of `{path.as_posix()}`, which did not fit: {', '.join(partial)}")
    return "\n".join(lines) or "- Nothing that the harness can measure."


def by_machine(files: Iterable[File]) -> dict[str, list[File]]:
    found: dict[str, list[File]] = {}
    for path, results in files:
        found.setdefault(results["machine"]["device"], []).append((path, results))
    return found


def exponents(files: Iterable[File]) -> str:
    """The power of each parameter by which time grows, for ours and eager PyTorch."""
    parts = []
    for device, own in by_machine(files).items():
        rows = []
        for path, results in own:
            lines = {(line["sweep"], line["contestant"], line["quantity"]): line for line in results.get("fits", ())}
            for name in dict.fromkeys(sweep for sweep, *_ in lines):
                what = next(one["sweep"] for one in results["records"] if one["sweep"]["name"] == name)
                found = [lines.get((name, who, quantity)) for quantity in ("time", "memory") for who in (OURS, EAGER)]
                cells = [growth.exponent(line) if line else "" for line in found]
                rows.append((path.stem.removeprefix(SWEEPS), what["parameter"], what["what"], *cells))
        columns = ("operator", "grows with", "work", "time of ours", "of eager", "extra memory of ours", "of eager")
        parts.append(f"{device}:\n\n{table(columns, rows)}")
    return "\n\n".join(parts)


def threads(files: Iterable[File]) -> str:
    rows = []
    for path, results in files:
        own = [record for record in results["records"] if record["sweep"]["name"] == THREADS]
        found = {record["threads"]: targets.medians(record) for record in own}
        if len(found) < 2 or not all(OURS in medians for medians in found.values()):
            continue
        first, last = min(found), max(found)
        cells = [
            report.ratio(found[first][name] / found[last][name]) if name in found[first] and name in found[last] else ""
            for name in (OURS, EAGER)
        ]
        device = results["machine"]["device"]
        rows.append((path.stem.removeprefix(SWEEPS), device, own[0]["sweep"]["what"], f"{first} to {last}", *cells))
    return table(("operator", "machine", "work", "threads", "ours is faster by", "eager is faster by"), rows)


def starts(files: Iterable[File]) -> str:
    rows = []
    for path, results in files:
        found = results.get("start") or {}
        names = ("import torch", "import prosma_ops", "import of the operator", "first call", "second call")
        own = [record for record in results["records"] if record["sweep"]["name"] == SMALL_SIZES]
        medians = targets.medians(own[0]) if own else {}
        cells = [report.duration(found.get(name)) for name in names]
        cells += [report.duration(medians.get(name)) for name in (OURS, EAGER)]
        rows.append((path.stem.removeprefix(SWEEPS), results["machine"]["device"], *cells))
    columns = ("operator", "machine", "import torch", "import prosma_ops", "import of the operator", "first call")
    return table((*columns, "second call", "smallest call, warm", "the same in eager"), rows)

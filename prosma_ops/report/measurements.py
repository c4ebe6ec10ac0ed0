"""The tables of parity and of speed, from the JSON that `prosma-ops check --json` and `python -m benchmarks` write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import BadFileError
from . import page, records


def read_parity(path: Path) -> dict[str, Any]:
    """Raises `BadFileError` for another file."""
    return _read(path, ("operator", "implementation", "dtype", "error", "bound", "ok"), "prosma-ops check --json")


def read_speeds(path: Path) -> dict[str, Any]:
    """Raises `BadFileError` for another file."""
    return _read(path, ("operator", "work", "dtype", "contestants"), "python -m benchmarks")


def _read(path: Path, keys: Sequence[str], maker: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadFileError(path, f"is no JSON ({getattr(error, 'strerror', None) or error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("records"), list):
        raise BadFileError(path, f"has no records; a JSON of {maker} is needed")
    for record in content["records"]:
        missing = [key for key in keys if not isinstance(record, dict) or key not in record]
        if missing:
            raise BadFileError(path, f"has a record without {', '.join(missing)}; a JSON of {maker} is needed")
    return content


def parity(content: Mapping[str, Any]) -> str:
    """A line for each operator, a column for each implementation: its worst error as a share of what is allowed."""
    compared = content["records"]
    operators, names = (
        list(dict.fromkeys(record[key] for record in compared)) for key in ("operator", "implementation")
    )
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in compared:
        groups.setdefault((record["operator"], record["implementation"]), []).append(record)
    rows = [(operator, *(_verdict(groups.get((operator, name), ())) for name in names)) for operator in operators]
    dtypes = ", ".join(dict.fromkeys(record["dtype"] for record in compared))
    said = f"{len(compared):,} tensors in {dtypes}; beneath each verdict the worst error as a share of what is allowed."
    return page.table(("operator", *names), rows) + page.paragraph(said, note=True)


def _verdict(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "not run"
    worst = max(_ratio(record) for record in records)
    shown = f"{worst:.2f}" if math.isfinite(worst) else "no bound"
    return ("pass" if all(record["ok"] for record in records) else "FAIL") + f"\n{shown}"


def _ratio(record: Mapping[str, Any]) -> float:
    """Error and bound are None where they are infinite; no error at all is 0, whatever the bound."""
    error, bound = (math.inf if record[name] is None else record[name] for name in ("error", "bound"))
    if error == 0:
        return 0.0
    return error / bound if bound and math.isfinite(error) else math.inf


def speeds(contents: Sequence[Mapping[str, Any]]) -> str:
    """A line for each work: our time, and how many times that eager PyTorch and the best of the others take."""
    found = [record for content in contents for record in content["records"] if records.leading(record)]
    rows = [(record["operator"], records.title(record), *records.speed(record)) for record in found]
    head = ("operator", "work", "time", "eager PyTorch", "best of the others")
    return page.table(head, rows, numbers=(2, 3))


def machines(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the speeds were measured on."""
    found = []
    for content in contents:
        machine = content.get("machine") or {}
        versions = machine.get("versions") or {}
        found.append(f"{machine.get('device', 'unknown')}, torch {versions.get('torch', 'unknown')}")
    return list(dict.fromkeys(found))

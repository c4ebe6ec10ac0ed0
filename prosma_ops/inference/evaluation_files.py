"""An evaluation as a table for a terminal, as CSV with a line for each case and class, and as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data.writing import replacing
from .bootstrap import CONFIDENCE
from .evaluation import ALL, Evaluation, Summary
from .scoring import SCORES

TITLES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "surface_distance": "mean distance"}
SHARES = ("dice", "iou")


def show(evaluation: Evaluation, console: Console) -> None:
    """The means with their intervals, what was missed or invented, the worst cases, and what could not be read."""
    if evaluation.cases:
        console.print(_table(evaluation))
        for place, what in enumerate(("missed", "invented")):
            counts = {name: evaluation.counts(name)[place] for name in evaluation.names() if name != ALL}
            listed = ", ".join(f"{name} in {count}" for name, count in counts.items() if count)
            if listed:
                console.print(f"{what}: {listed} of {len(evaluation.cases)} cases", soft_wrap=True, highlight=False)
        if len(evaluation.cases) > 1:
            worst = ", ".join(f"{case.name} {case.mean('dice'):.3f}" for case in evaluation.worst())
            console.print(f"lowest Dice: {worst}", soft_wrap=True, highlight=False)
    for problem in evaluation.problems:
        line = Text.assemble((f"{problem.severity:8}", "red"), f"{problem.file}: {problem.message}")
        console.print(line, soft_wrap=True)


def _table(evaluation: Evaluation) -> Table:
    number = len(evaluation.cases)
    cases = f"{number} case{'s' if number > 1 else ''}"
    title = f"{cases}: mean, {CONFIDENCE:.0%} interval, distances in {evaluation.unit}"
    table = Table(title=title, title_justify="left", header_style="bold", title_style="bold", box=SIMPLE_HEAD)
    table.pad_edge = False
    table.add_column("class", overflow="fold")
    for score in SCORES:
        table.add_column(TITLES[score], justify="right")
    for name in evaluation.names():
        cells = [cell(evaluation.summary(name, score)).replace(" [", "\n[") for score in SCORES]
        table.add_row(name, *map(Text, cells), style="bold" if name == ALL else "")
    return table


def cell(summary: Summary) -> str:
    """0.871 [0.852, 0.889]; distances with two digits behind the point, large ones with one."""
    if math.isnan(summary.mean):
        return "-"
    digits = 3 if summary.score in SHARES else 2 if summary.mean < 100 else 1
    if summary.interval is None:
        return f"{summary.mean:.{digits}f}"
    low, high = summary.interval
    return f"{summary.mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def write(evaluation: Evaluation, folder: Path, about: Mapping[str, Any]) -> tuple[Path, Path]:
    """`scores.csv` and `scores.json`, which opens with `about`. Raises `BadFileError`."""
    table, whole = folder / "scores.csv", folder / "scores.json"
    with replacing(table) as aside, aside.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["case", "subject", "class", "predicted", "actual", *SCORES])
        for case in evaluation.cases:
            for each in case.classes:
                values = [getattr(each, score) for score in SCORES]
                cells = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
                writer.writerow([case.name, case.subject or "", each.name, each.predicted, each.actual, *cells])
    with replacing(whole) as aside:
        content = {**about, **evaluation.as_json()}
        aside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return table, whole

"""An inspection as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .findings import Finding
from .inspection import Inspection, as_json

# More lines about one kind of problem say no more than these.
MOST_ALIKE = 10


def track(findings: Iterable[Finding], total: int) -> Iterator[Finding]:
    """The findings as they come, with a bar on the terminal's error channel while they do."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=total)
        for finding in findings:
            yield finding
            progress.advance(task)


def show(inspection: Inspection, console: Console) -> None:
    content = as_json(inspection)
    console.print(Text(content["location"], style="bold"))
    console.print(_facts(content))
    if content["labels"]:
        console.print(_labels(content))
    if content["intensities"]:
        console.print(_intensities(content))
    _problems(inspection, console)


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _facts(content: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    labelled = f"{content['cases']}, {content['labelled']} with a mask, {content['usable']} without errors"
    subjects = "" if content["subjects"] == content["cases"] else f", of {content['subjects']} subjects"
    table.add_row("format", f"{content['format']}, {content['dimensions']}-D")
    table.add_row("cases", labelled + subjects)
    if content["splits"] is not None:
        sizes = ", ".join(f"{name} {number}" for name, number in content["splits"]["sizes"].items())
        left_out = content["splits"]["left_out"]
        rest = f"; left out: {_listed(left_out)}" if left_out else ""
        table.add_row("splits", f"{sizes} (from {content['splits']['origin']}){rest}")
    if content["sizes"] is not None:
        table.add_row("size", _sizes(content["sizes"], ""))
        if "stacks_median" in content["sizes"]:
            table.add_row("size of stacks", _sizes(content["sizes"], "stacks_"))
    if content["spacing"] is not None:
        spacing = content["spacing"]
        table.add_row("spacing, mm", _range(spacing["smallest"], spacing["median"], spacing["largest"]))
        if spacing["orientations"]:
            table.add_row("orientation", _counted(spacing["orientations"]))
    colours = "" if content["pixels"] == "grey" else ", in colours" + (" that are all grey" if content["grey"] else "")
    table.add_row("stored as", _counted(content["kinds"]) + colours)
    return table


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")


def _counted(counts: dict[str, int]) -> str:
    return next(iter(counts), "") if len(counts) == 1 else ", ".join(f"{name} ({n})" for name, n in counts.items())


def _sizes(sizes: dict[str, Any], prefix: str) -> str:
    return _range(*(sizes[prefix + name] for name in ("smallest", "median", "largest")))


def _range(smallest: Sequence[float], median: Sequence[float], largest: Sequence[float]) -> str:
    low, middle, high = (" x ".join(f"{value:.4g}" for value in values) for values in (smallest, median, largest))
    return low if low == high else f"{low} to {high}, median {middle}"


def _labels(content: dict[str, Any]) -> Table:
    scheme = content["scheme"]
    ignored = f", {_listed([str(code) for code in scheme['ignore']])} is ignored" if scheme["ignore"] else ""
    kind = "regions, which may overlap" if scheme["regions"] else "classes"
    table = _table(f"labels: {kind}{ignored}", "name", "in masks", "share", "cases", right=("share", "cases"))
    for row in content["labels"]:
        codes = ", ".join(str(code) for code in row["codes"])
        table.add_row(row["name"], codes, f"{row['share']:.3%}", f"{row['cases']} of {row['of']}")
    return table


def _intensities(content: dict[str, Any]) -> Table:
    columns = ("channel", "lowest", "0.5 %", "median", "99.5 %", "highest", "highest of each image")
    table = _table("intensities (quantiles: the median image's)", *columns, right=columns[1:])
    for row in content["intensities"]:
        numbers = [row["lowest"], *row["median_of_quantiles"], row["highest"]]
        each = " to ".join(f"{value:.4g}" for value in row["highest_range"])
        table.add_row(row["name"], *(f"{number:.4g}" for number in numbers), each)
    return table


def _problems(inspection: Inspection, console: Console) -> None:
    if not inspection.problems:
        console.print(Text("no problems found", style="green"))
        return
    counts = Counter(problem.severity for problem in inspection.problems)
    said = [f"{counts[kind]} {kind}{'s' * (counts[kind] > 1)}" for kind in ("error", "warning") if counts[kind]]
    console.print(Text(f"problems: {' and '.join(said)}", style="bold"))
    shown: Counter[str] = Counter()
    for problem in sorted(inspection.problems, key=lambda problem: problem.severity):
        kind = problem.message.split(" ")[0] + problem.severity + " ".join(problem.message.split(" ")[1:3])
        shown[kind] += 1
        if shown[kind] <= MOST_ALIKE:
            style = "red" if problem.severity == "error" else "yellow"
            line = Text.assemble((f"{problem.severity:8}", style), f"{problem.file}: {problem.message}")
            console.print(line, soft_wrap=True)  # one line each, so that names can be copied
    hidden = sum(max(0, number - MOST_ALIKE) for number in shown.values())
    if hidden:
        console.print(f"... and {hidden} more like these; --json writes them all")

"""What README and BENCHMARKS.md say was measured, made from the committed results: `python -m benchmarks.tables`.

In the README, for each operator and for the networks, the newest whole run of each kind of machine, CPU and GPU, in
benchmarks/results/<machine>/, and the plots of them; in BENCHMARKS.md every file that is kept. Each stands between two
lines of the page and is replaced whole, so nobody edits it by hand: `--check`, part of `make lint`, fails when it is
not what the results say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import measured, models, report
from .sweeps import SWEEPS

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README, BENCHMARKS = Path("benchmarks") / "results", "README.md", "BENCHMARKS.md"
BEGIN, END = "<!-- speeds -->", "<!-- /speeds -->"
UNKEPT, PLOTS = "local", "plots"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a page differs")
    arguments = parser.parse_args()
    races, sweeps = newest(found(ROOT)), newest(found(ROOT, SWEEPS))
    pages = {
        README: "\n\n".join([tables(races), *pictures(ROOT, races, sweeps)]),
        BENCHMARKS: measured.page([*found(ROOT), *found(ROOT, SWEEPS)]),
    }
    status = 0
    for name, between in pages.items():
        before = (ROOT / name).read_text()
        after = replaced(before, between)
        if arguments.check and before != after:
            print(f"{name}: its tables are not those of {RESULTS}; run `make tables`", file=sys.stderr)
            status = 1
        elif before != after:
            (ROOT / name).write_text(after)
    return status


def found(root: Path, prefix: str = "") -> list[tuple[Path, dict[str, Any]]]:
    """Every committed file of races, or of sweeps, by its path from the root."""
    paths = sorted((root / RESULTS).glob("*/*.json"))
    wanted = [path for path in paths if path.parent.name != UNKEPT and path.stem.startswith(SWEEPS) == bool(prefix)]
    files = ((path.relative_to(root), report.load(path)) for path in wanted)
    return [(path, results) for path, results in files if "records" in results]


def pictures(root: Path, races: Iterable[tuple[Path, Any]], sweeps: Iterable[tuple[Path, Any]]) -> list[str]:
    """The plots of these files that are there: a heading for each kind, and a picture for each file."""
    kinds: dict[str, dict[Path, str]] = {}
    for path, results in sweeps:
        name, device = path.stem.removeprefix(SWEEPS), results["machine"]["device"]
        plot = path.parent / PLOTS / f"growth-{name}.svg"
        kinds.setdefault("How the cost grows", {})[plot] = f"Time of {name} against each parameter, {device}"
    for path, results in races:
        device = results["machine"]["device"]
        ratios, roofline = (path.parent / PLOTS / f"{name}.svg" for name in (f"ratios-{path.stem}", "roofline"))
        kinds.setdefault("What others take", {})[ratios] = f"Times of the rivals of {path.stem} over ours, {device}"
        kinds.setdefault("Under the roof of the machine", {})[roofline] = f"Rate against arithmetic a byte, {device}"
    parts = []
    for heading, plots in kinds.items():
        there = {plot: text for plot, text in plots.items() if (root / plot).exists()}
        if there:
            parts += [f"### {heading}", *(f"![{text}]({plot.as_posix()})" for plot, text in there.items())]
    return parts


def newest(files: Iterable[tuple[Path, dict[str, Any]]]) -> list[tuple[Path, dict[str, Any]]]:
    """One file for each operator and kind of machine, in order of their names."""
    latest: dict[tuple[str, str], tuple[Path, dict[str, Any]]] = {}
    for path, results in files:
        key = (path.stem, results["machine"]["kind"])
        if key not in latest or results["machine"]["date"] > latest[key][1]["machine"]["date"]:
            latest[key] = (path, results)
    return [latest[key] for key in sorted(latest)]


def tables(files: Iterable[tuple[Path, dict[str, Any]]]) -> str:
    return "\n\n".join(
        f"### {path.stem}\n\n{table(path, results)} From `{path.as_posix()}`." for path, results in files
    )


def table(path: Path, results: dict[str, Any]) -> str:
    return models.markdown(results) if path.stem == "models" else report.markdown(results)


def replaced(text: str, between: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"a page has no lines {BEGIN} and {END}, between which what was measured goes")
    return f"{before}{BEGIN}\n\n{between}\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())

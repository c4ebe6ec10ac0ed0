"""The speed tables of the README, made from the committed results: `python -m benchmarks.tables [--check]`.

For each operator, and for the networks, the newest whole run of each kind of machine, CPU and GPU, in
benchmarks/results/<machine>/. They stand between the lines `<!-- speeds -->` and `<!-- /speeds -->` and are replaced
whole, so nobody edits them by hand: `--check`, part of `make lint`, fails when they are not what the results say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import models, report

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = Path("benchmarks") / "results", "README.md"
BEGIN, END = "<!-- speeds -->", "<!-- /speeds -->"
UNKEPT, SWEEPS = "local", "sweeps-"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if the README differs")
    arguments = parser.parse_args()
    path = ROOT / README
    before = path.read_text()
    after = replaced(before, tables(newest(found(ROOT))))
    if arguments.check and before != after:
        print(f"{README}: its speed tables are not those of {RESULTS}; run `make tables`", file=sys.stderr)
        return 1
    if before != after:
        path.write_text(after)
    return 0


def found(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every committed file of races, by its path from the root."""
    paths = sorted((root / RESULTS).glob("*/*.json"))
    kept = [path for path in paths if path.parent.name != UNKEPT and not path.stem.startswith(SWEEPS)]
    return [(path.relative_to(root), report.load(path)) for path in kept]


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
        raise SystemExit(f"{README} has no lines {BEGIN} and {END}, between which its speed tables go")
    return f"{before}{BEGIN}\n\n{between}\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())

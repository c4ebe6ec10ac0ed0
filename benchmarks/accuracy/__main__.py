"""`python -m benchmarks.accuracy run | table`, see the package."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import __doc__ as DESCRIPTION
from benchmarks.accuracy import cells


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data", type=Path, default=os.environ.get("PROSMA_DATA"), help="by default $PROSMA_DATA")
    parser.add_argument("--runs", type=Path, default=Path("build/accuracy"), help="where trainings are (%(default)s)")
    parser.add_argument("--results", type=Path, help="where results are (by default beside this file)")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N runs")
    parser.add_argument("--only", metavar="WORD", help="only runs whose name has this in it, such as hippocampus-0.05")
    options = parser.parse_args(arguments)
    wanted = [run for run in cells.runs()[: options.first] if options.only is None or options.only in str(run)]
    if not wanted:
        parser.error(f"--only is {options.only!r}, which is in the name of no run; one is {cells.runs()[0]}")

    from benchmarks.accuracy import queue, table

    results = options.results or queue.RESULTS
    if options.command == "table":
        print(table.text(table.read(results), wanted), end="")
        return 0
    if options.data is None:
        parser.error("--data or PROSMA_DATA has to name the folder that holds the data sets")
    for name in dict.fromkeys(run.data for run in wanted):
        if not (options.data / name).is_dir():
            parser.error(f"{options.data} has no folder {name}")
    return go(wanted, options.data, options.runs, results)


def go(wanted: Sequence[cells.Run], data: Path, runs: Path, results: Path) -> int:
    from rich.console import Console

    from benchmarks.accuracy import queue

    stopped = queue.work(wanted, data, runs, results, Console())
    if stopped is None:
        return 0
    print(f"stopped at step {stopped.step} of {stopped.run.path.name}; the same command goes on from there")
    return 128 + stopped.signal


if __name__ == "__main__":
    sys.exit(main())

"""Everything on this machine: a process for each allocator setting, one results file an operator, and the tables."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prosma_ops import doctor

from . import machine, report, revisions

HERE = Path(__file__).resolve().parent
# The compiler's log of one work is thousands of lines.
QUIET = ("-q", "-p", "no:cacheprovider", "--benchmark-quiet", "--disable-warnings", "--show-capture=no", "--tb=short")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("operators", nargs="*", help="names of operators (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--short", action="store_true", default=os.environ.get("PROSMA_BENCH") == "short")
    parser.add_argument("--keyword", default="", help="only works that pytest's -k selects")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks/results/<device>)")
    parser.add_argument("--base", metavar="REV", help="compare with this revision, in turn; nothing is kept")
    arguments = parser.parse_args()
    if arguments.base:
        return revisions.main(arguments, doctor.usable_cores())

    status, found = 0, []
    for allocator, threads in settings(arguments.device, arguments.short):
        code, result = measure(arguments, allocator, threads)
        status = status or code
        if result is not None:
            found.append(result)
    if not found:
        return status or 1
    merged = {"machine": found[0]["machine"], "records": [one for result in found for one in result["records"]]}
    print(report.text(merged))
    save(merged, arguments)
    return status


def settings(device: str, short: bool) -> list[tuple[str, str]]:
    """(allocator, thread counts): one thread and the default allocator are reported beside the main setting."""
    if device == "cuda":
        return [("default", "")]
    count = doctor.usable_cores()
    if short or count == 1:
        return [("raised", str(count))]
    return [("raised", f"{count},1"), ("default", str(count))]


def measure(arguments: argparse.Namespace, allocator: str, threads: str) -> tuple[int, dict[str, Any] | None]:
    # Written after every work, so that what a run had measured is there when it is stopped.
    path = HERE / "results" / "local" / f"unfinished-{arguments.device}-{allocator}.json"
    path.unlink(missing_ok=True)
    targets = [str(HERE / f"{name}.py") for name in arguments.operators] or [str(HERE)]
    command = [sys.executable, "-m", "pytest", *targets, *QUIET]
    command += ["--device", arguments.device, "--threads", threads, "--results", str(path)]
    command += ["--short"] * arguments.short + (["-k", arguments.keyword] if arguments.keyword else [])
    print(f"{machine.ALLOCATORS[allocator]}, threads: {threads or 'all'}", flush=True)
    code = subprocess.run(command, cwd=HERE.parent, env=machine.environment(allocator)).returncode
    if not path.exists():
        return code or 1, None
    found = json.loads(path.read_text())
    path.unlink()
    return code, found


def save(merged: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Whole runs are kept beside the code; short and partial ones in results/local, which git ignores."""
    partial = arguments.short or arguments.keyword
    kept = HERE / "results" / ("local" if partial else merged["machine"]["slug"])
    folder = arguments.output or kept
    folder.mkdir(parents=True, exist_ok=True)
    for operator in dict.fromkeys(record["operator"] for record in merged["records"]):
        records = [record for record in merged["records"] if record["operator"] == operator]
        path = folder / f"{operator}.json"
        path.write_text(json.dumps({"machine": merged["machine"], "records": records}, indent=1) + "\n")
        print(f"kept in {path.relative_to(HERE.parent) if path.is_relative_to(HERE.parent) else path}")
    if not partial:
        report.draw(folder)


if __name__ == "__main__":
    sys.exit(main())

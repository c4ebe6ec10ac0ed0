"""Another revision against the files at hand: `python -m benchmarks --base REV` builds it, and times both in turn.

The revision's package is built from a git worktree in build/base/<commit>, with a CMake folder of its own, and kept.
Each revision has a process that holds its operators and times one round when it is asked to; the two are asked in turn,
so that both meet the same weather. The benchmark code is the same in both, that of the files at hand: a revision whose
operators take other arguments cannot be compared, and says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import machine, report

BUILDS = machine.ROOT / "build" / "base"
BASE, NEW = "base", "new"
# Seconds of rounds for one work, and how many rounds at least and at most.
BUDGET, FEWEST, MOST = 4.0, 7, 41
BUDGET_OF_SHORT, MOST_OF_SHORT = 1.0, 9
# An editable installation is of the files at hand, and would come before the path of another revision.
FORGET = "sys.meta_path[:] = [one for one in sys.meta_path if not type(one).__module__.startswith('_editable_')]; "


class RevisionError(Exception):
    """A revision that cannot be built or run."""


def run(command: Sequence[str | Path], where: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise RevisionError(f"{' '.join(map(str, command))} failed:\n{last}")
    return done.stdout.strip()


def commit_of(revision: str) -> str:
    return run(["git", "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}"], machine.ROOT)


def build(revision: str, builds: Path = BUILDS) -> Path:
    """The folder to import from: the revision's package, built, beside our benchmarks."""
    commit = commit_of(revision)
    folder = builds / commit[:12]
    source, path = folder / "source", folder / "path"
    if not source.exists():
        # One that was deleted is still in git's list until it is pruned.
        run(["git", "worktree", "prune"], machine.ROOT)
        run(["git", "worktree", "add", "--detach", source, commit], machine.ROOT)
    if not any((source / "prosma_ops").glob("_native*")):
        compile_library(source, folder / "cmake")
    path.mkdir(exist_ok=True)
    for name, target in (("prosma_ops", source / "prosma_ops"), ("benchmarks", machine.ROOT / "benchmarks")):
        link = path / name
        if not link.is_symlink():
            link.symlink_to(target)
    return path


def compile_library(source: Path, folder: Path) -> None:
    print(f"compiling {source}, which takes minutes", flush=True)
    found = run([sys.executable, "-m", "pybind11", "--cmakedir"], source)
    cmake = tool("cmake")
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={found}", "-DCMAKE_BUILD_TYPE=Release"]
    with contextlib.suppress(RevisionError):
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    run([cmake, "-S", source, "-B", folder, *options], source)
    run([cmake, "--build", folder, "--parallel"], source)
    (library,) = folder.glob("_native*")
    shutil.copy2(library, source / "prosma_ops" / library.name)


def tool(name: str) -> str:
    """Beside the Python that runs this, as in .venv, or on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RevisionError(f"{name} is not there; `make install` puts it into .venv")
    return found


class Worker:
    """A process of one revision, which answers a line for each line that it gets: see `serve`."""

    def __init__(self, path: Path, device: str, threads: int):
        forget = "" if path == machine.ROOT else FORGET
        start = "sys.path.insert(0, sys.argv[1]); from benchmarks import revisions; revisions.serve()"
        environment = machine.environment("raised") | {"PYTHONPATH": str(path)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; {forget}{start}", str(path), device, str(threads)],
            cwd=path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise RevisionError("the process of a revision has ended; its last words are above") from None
        answer = self.process.stdout.readline()
        if not answer:
            raise RevisionError("the process of a revision has ended; its last words are above")
        return json.loads(answer)

    def end(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=60)
        if self.process.stdout is not None:
            self.process.stdout.close()


def serve() -> None:
    """A worker's side: {"package": null} -> where it is, and its library; {"prepare": [operator, work]} -> the
    check of ours; {"round": null} -> seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is not an answer
    import torch

    import prosma_ops
    from prosma_ops import native

    from . import harness, timing
    from .work import works_of

    device, threads = sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    current: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        if "package" in question:
            answer: Any = [str(Path(prosma_ops.__file__).resolve().parent), native.load().reason]
        elif "prepare" in question:
            current = None
            operator, name = question["prepare"]
            work = works_of(operator, device)[name]
            problem = work.problem(torch.device(device))
            answer = harness.check(problem, work.ours, harness.expectation_of(work, problem))
            if not answer["wrong"]:
                current = timing.timer(work, work.ours, timing.rotated(work, problem))
                answer["trial"] = current.trial * current.calls
        else:
            answer = current.seconds()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def compare(workers: Mapping[str, Worker], operator: str, name: str, short: bool) -> dict[str, Any]:
    """One work: both checked, then timed in turn, each first in every second round."""
    found = {which: worker.ask(prepare=[operator, name]) for which, worker in workers.items()}
    wrong = {which: one["wrong"] for which, one in found.items() if one["wrong"]}
    record: dict[str, Any] = {"operator": operator, "work": name, "wrong": wrong}
    if wrong:
        return record
    budget, most = (BUDGET_OF_SHORT, MOST_OF_SHORT) if short else (BUDGET, MOST)
    rounds = max(FEWEST, min(most, int(budget / sum(one["trial"] for one in found.values()))))
    times: dict[str, list[float]] = {which: [] for which in workers}
    for number in range(rounds):
        for which in sorted(workers, reverse=bool(number % 2)):
            times[which].append(workers[which].ask(round=None))
    ratios = sorted(old / new for old, new in zip(times[BASE], times[NEW], strict=True))
    quarter = len(ratios) // 4
    return record | {
        "medians": {which: statistics.median(own) for which, own in times.items()},
        "ratio": statistics.median(ratios),
        "quartiles": [ratios[quarter], ratios[-1 - quarter]],
        "rounds": rounds,
    }


def table(records: Sequence[Mapping[str, Any]]) -> list[report.Row]:
    rows: list[report.Row] = [("work", BASE, NEW, "base / new", "the middle half of the rounds")]
    for record in records:
        title = f"{record['operator']}: {record['work']}"
        if record["wrong"]:
            rows.append((title, *("WRONG" if which in record["wrong"] else "" for which in (BASE, NEW))))
            continue
        low, high = record["quartiles"]
        times = (report.duration(record["medians"][which]) for which in (BASE, NEW))
        rows.append((title, *times, report.ratio(record["ratio"]), f"{low:.3f} to {high:.3f}"))
    return rows


@contextlib.contextmanager
def both(paths: Mapping[str, Path], device: str, threads: int) -> Iterator[dict[str, Worker]]:
    workers = {which: Worker(path, device, threads) for which, path in paths.items()}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


def main(arguments: argparse.Namespace, threads: int) -> int:
    """The whole comparison, as `python -m benchmarks --base REV` asks for it."""
    from .work import rooms, works_of

    try:
        paths = {BASE: build(arguments.base), NEW: machine.ROOT}
        print(f"base: {arguments.base} ({commit_of(arguments.base)[:12]}); new: {machine.commit()}", flush=True)
        records = []
        with both(paths, arguments.device, threads) as workers:
            for which, worker in workers.items():
                print(f"{which}: {' '.join(worker.ask(package=None))}", flush=True)
            for operator in arguments.operators or rooms():
                for name, work in works_of(operator, arguments.device).items():
                    if arguments.keyword in name and (work.short or not arguments.short):
                        records.append(compare(workers, operator, name, arguments.short))
                        print("  ".join(table(records[-1:])[1]), flush=True)
    except RevisionError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(["", *report.aligned(table(records))]))
    print("Ratios are medians over rounds; above 1 the files at hand are faster.")
    return int(not records or any(record["wrong"] for record in records))

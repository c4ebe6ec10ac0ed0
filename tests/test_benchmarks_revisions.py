"""`python -m benchmarks --base REV`: both revisions are held in processes, checked, and timed in turn."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, proximal_gate, revisions
from benchmarks.revisions import BASE, NEW, RevisionError
from prosma_ops import native
from tests.conftest import need_native

IN_GIT = (machine.ROOT / ".git").exists() and shutil.which("git") is not None
need_git = pytest.mark.skipif(not IN_GIT, reason="this is no git checkout")


class Answers:
    """Stands for a worker: a check, then its times in turn."""

    def __init__(self, name: str, seconds: list[float], log: list[str], wrong: str = ""):
        self.name, self.seconds, self.log, self.wrong = name, seconds, log, wrong

    def ask(self, **question: Any) -> Any:
        if "prepare" in question:
            return {"wrong": self.wrong, "error": 0.1, "first": 1.0, "trial": 1.0}
        self.log.append(self.name)
        return self.seconds[self.log.count(self.name) - 1]


def test_rounds_alternate_and_the_ratio_is_that_of_each_round() -> None:
    log: list[str] = []
    base, new = ([seconds * weather for weather in (1, 1, 9, 1, 1, 1, 2)] for seconds in (0.3, 0.1))
    found = revisions.compare({BASE: Answers(BASE, base, log), NEW: Answers(NEW, new, log)}, "gate", "forward", True)  # type: ignore[dict-item]
    assert log[:6] == [BASE, NEW, NEW, BASE, BASE, NEW]
    assert found["rounds"] == revisions.FEWEST
    assert found["ratio"] == pytest.approx(3)
    assert found["quartiles"] == [pytest.approx(3), pytest.approx(3)]
    assert revisions.table([found])[1] == ("gate: forward", "300 ms", "100 ms", "3.00x", "3.000 to 3.000")


def test_a_wrong_revision_gets_no_time() -> None:
    log: list[str] = []
    workers: Any = {BASE: Answers(BASE, [], log, wrong="differs"), NEW: Answers(NEW, [], log)}
    found = revisions.compare(workers, "gate", "forward", short=True)
    assert log == []
    assert revisions.table([found])[1] == ("gate: forward", "WRONG", "")


@need_git
def test_a_revision_that_is_none_is_named() -> None:
    with pytest.raises(RevisionError, match="no-such-revision"):
        revisions.commit_of("no-such-revision")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """HEAD in a worktree, with the library that is here in place of one that would take minutes to compile."""
    need_native()
    module = native.load().module
    assert module is not None

    def copy(source: Path, folder: Path) -> None:
        library = Path(module.__file__)
        shutil.copy2(library, source / "prosma_ops" / library.name)

    monkeypatch.setattr(revisions, "compile_library", copy)
    yield revisions.build("HEAD", tmp_path)
    for source in tmp_path.glob("*/source"):
        revisions.run(["git", "worktree", "remove", "--force", source], machine.ROOT)


@need_git
def test_a_revision_runs_its_own_package(base: Path) -> None:
    """And the benchmarks at hand; building it again takes what is there."""
    assert revisions.build("HEAD", base.parents[1]) == base
    with revisions.both({BASE: base, NEW: machine.ROOT}, "cpu", 1) as workers:
        packages = {which: worker.ask(package=None) for which, worker in workers.items()}
        assert packages[BASE][0] == str(base.parent / "source" / "prosma_ops")
        assert packages[NEW][0] == str(machine.ROOT / "prosma_ops")
        assert packages[BASE][1] == packages[NEW][1]
        name = next(work.key for work in proximal_gate.works("cpu") if work.calls > 1)
        found = revisions.compare(workers, "proximal_gate", name, short=True)
    assert found["wrong"] == {}
    assert found["rounds"] >= revisions.FEWEST
    # The same sources: how near 1 is for a quiet machine to say, but not tenfold.
    assert 0.1 < found["ratio"] < 10


@need_git
def test_a_process_that_ends_is_told(tmp_path: Path) -> None:
    """Here because its benchmarks have no workers; a package without its own file would leave room for another's."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    worker = revisions.Worker(tmp_path, "cpu", 1)
    try:
        with pytest.raises(RevisionError, match="has ended"):
            worker.ask(package=None)
    finally:
        worker.end()


def test_what_cannot_be_built_is_told_and_exits_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(revision: str) -> Path:
        raise RevisionError(f"{revision} does not compile")

    monkeypatch.setattr(revisions, "build", fails)
    arguments = argparse.Namespace(base="old", device="cpu", operators=[], keyword="", short=True)
    assert revisions.main(arguments, 1) == 1
    assert capsys.readouterr().err == "old does not compile\n"


def test_a_failed_command_shows_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match=r"ls not-there failed:\n.*not-there"):
        revisions.run(["ls", "not-there"], tmp_path)

"""A training that was stopped or killed goes on bit for bit, and there is always a whole checkpoint to go on from."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prosma_ops.data import BadFileError
from prosma_ops.training import RunFolder, TrainingError, storage
from prosma_ops.training.checkpoint import Checkpoints
from prosma_ops.training.engine import Training
from prosma_ops.training.validation import Validator
from tests.small_training import EVERYTHING, log, resumed, same, trained


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert trained(path, **EVERYTHING).step == 12
    return path


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Something that happens while a step is made."""
    make = Training._step

    def acting(self: Training, loader: Any) -> None:
        if self.at.step == step:
            act()
        make(self, loader)

    monkeypatch.setattr(Training, "_step", acting)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is written any more."""


def kill() -> None:
    raise Killed


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 5), (signal.SIGTERM, 7), (signal.SIGINT, 0)])
def test_a_signal_writes_a_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: int
) -> None:
    """Within an epoch; in its last step, whose validation is then made up for; and at once."""
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: signal.raise_signal(number))
        outcome = trained(tmp_path / "run", **EVERYTHING)
    assert (outcome.signal, outcome.step) == (number, step + 1)
    assert [entry["step"] for entry in log(tmp_path / "run") if entry["kind"] == "validation"] == [4][: step // 4]
    assert signal.getsignal(signal.SIGINT) is before
    assert resumed(tmp_path / "run").step == 12
    same(tmp_path / "run", whole)


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 5, twice)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run")
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").paths()] == [
        "step-00000004.safetensors"
    ]


def test_killed_between_checkpoints(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 10, kill)
        with pytest.raises(Killed):
            trained(tmp_path / "run", **EVERYTHING)
    assert log(tmp_path / "run")[-1]["step"] == 9
    resumed(tmp_path / "run")
    same(tmp_path / "run", whole)


@pytest.mark.parametrize("write", [2, 6])
def test_killed_while_a_file_is_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """Half of a file is there: of one before the first checkpoint, so that the run begins anew; or of the second."""
    count, save = 0, storage.save_file

    def torn(tensors: Any, path: Path, metadata: Any) -> None:
        nonlocal count
        save(tensors, path, metadata)
        count += 1
        if count == write:
            os.truncate(path, path.stat().st_size // 2)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage, "save_file", torn)
        with pytest.raises(Killed):
            trained(tmp_path / "run", **EVERYTHING)
    resumed(tmp_path / "run")
    same(tmp_path / "run", whole)


def test_a_damaged_checkpoint_is_passed_over(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prosma_ops.cli import main

    with monkeypatch.context() as patch:
        at_step(patch, 9, kill)
        with pytest.raises(Killed):
            trained(tmp_path / "run", **EVERYTHING)
    newest, older = Checkpoints(tmp_path / "run" / "checkpoints").paths()
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert f"passed over: {newest}: is damaged" in said
    assert f"goes on from {older}, step 4 of 12" in said
    same(tmp_path / "run", whole)


def test_where_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    trained(tmp_path / "run", epochs=2)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"has no checkpoint that is whole: .*step-00000008.*step-00000004"):
        resumed(tmp_path / "run")


def test_what_a_resumed_run_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 5, lambda: signal.raise_signal(signal.SIGINT))
    trained(tmp_path / "run")
    with pytest.raises(ValueError, match="was begun with epochs 3, seed 0; --resume goes on with that"):
        trained(tmp_path / "run", resume=True, epochs=5, seed=1)
    with pytest.raises(ValueError, match=r"phantom:cases=3,size=16 does not have the cases that .* was begun with"):
        trained(tmp_path / "run", resume=True, data="phantom:cases=3,size=16")
    with pytest.raises(ValueError, match=r"seed is \{'x': 1\}; a whole number is needed"):
        trained(tmp_path / "run", resume=True, seed={"x": 1})
    assert trained(tmp_path / "run", resume=True, workers=1).step == 12


def test_a_run_that_has_ended_stays_so(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    before = log(tmp_path / "run")
    assert resumed(tmp_path / "run").step == 12
    assert log(tmp_path / "run") == before


def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    save = storage.save_file

    def filling(tensors: Any, path: Path, metadata: Any) -> None:
        if name in path.name:
            path.write_bytes(b"some of it")
            raise storage.SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path, metadata)

    monkeypatch.setattr(storage, "save_file", filling)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        full_disk(patch, "step-00000008")
        with pytest.raises(
            TrainingError, match=r"No space left on device.*has stopped at step 8\. The last good check"
        ):
            trained(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004.safetensors"]
    resumed(tmp_path / "run")
    same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The system's own refusal, as of a full disk: what was there stays, and nothing else."""
    resource = pytest.importorskip("resource")
    torch = pytest.importorskip("torch")
    storage.write(tmp_path / "some.safetensors", {"a": torch.ones(3)})
    before = (tmp_path / "some.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(BadFileError, match=r"some\.safetensors: could not be written \(.*[Ff]ile too large"):
            storage.write(tmp_path / "some.safetensors", {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "some.safetensors").read_bytes() == before
    assert len([*tmp_path.iterdir()]) == 1


def test_the_log_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunFolder, entry: Any) -> None:
        raise BadFileError(self.path / "log.jsonl", "could not be written (No space left on device)")

    at_step(monkeypatch, 6, lambda: monkeypatch.setattr(RunFolder, "add_to_log", full))
    with pytest.raises(TrainingError, match=r"log.jsonl: could not be written .* stopped at step 7\. The last good"):
        trained(tmp_path / "run")


def test_a_signal_in_a_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        original = Validator.__call__

        def disturbed(self: Validator, network: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return original(self, network)

        patch.setattr(Validator, "__call__", disturbed)
        assert trained(tmp_path / "run").step == 4
    assert not (tmp_path / "run" / "best.safetensors").exists()
    resumed(tmp_path / "run")
    same(tmp_path / "run", tmp_path / "undisturbed")


CHILD = """
import os, signal
from pathlib import Path
from prosma_ops.training import storage, train

count, save = 0, storage.save_file

def killed(tensors, path, metadata):
    global count
    save(tensors, path, metadata)
    count += 1
    if count == {write}:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

storage.save_file = killed
train({settings!r}, Path("run"))
"""


@pytest.mark.slow
def test_killed_by_the_system_while_it_writes(whole: Path, tmp_path: Path, python: Callable[..., Any]) -> None:
    done = python(CHILD.format(write=6, settings=EVERYTHING), OMP_NUM_THREADS="1")
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "run" / "checkpoints"
    assert len([*folder.iterdir()]) == 2, "a whole one, and a part beside it"
    resumed(tmp_path / "run")
    same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 2, 3, 4, 5, 7, 8])
def test_killed_by_the_system_at_every_write(
    whole: Path, tmp_path: Path, python: Callable[..., Any], write: int
) -> None:
    done = python(CHILD.format(write=write, settings=EVERYTHING), OMP_NUM_THREADS="1")
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed(tmp_path / "run")
    same(tmp_path / "run", whole)

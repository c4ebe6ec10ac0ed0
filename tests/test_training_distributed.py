"""Two processes that torchrun starts compute the losses of one with the whole batch, and only the first writes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prosma_ops.training import Devices, RunFolder
from prosma_ops.training import train as begin
from tests.small_training import EVERYTHING, SMALL, log, trained

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prosma_ops", "train"]
# Dice over the whole batch, a codebook that all processes learn together, steps of two batches.
SPREAD: dict[str, Any] = {
    **EVERYTHING,
    "data": "phantom:cases=20,size=16",
    "batch_size": 4,
    "epochs": 2,
    "log_every": 1,
}


def spread(python: Callable[..., Any], out: Path, settings: dict[str, Any]) -> None:
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings))
    done = python([*TORCHRUN, "--config", str(file), "--out", str(out)], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained for 8 steps") == 1, done.stdout


def alike(one: Path, other: Path) -> None:
    mine, theirs = log(one), log(other)
    assert [entry["kind"] for entry in mine] == [entry["kind"] for entry in theirs]
    for entry, twin in zip(mine, theirs, strict=True):
        if entry["kind"] == "step":
            for key in ("loss", "auxiliary", "gradient_norm"):
                assert entry[key] == pytest.approx(twin[key], rel=1e-5, abs=1e-5), (entry["step"], key)
        else:
            assert entry["dice"] == pytest.approx(twin["dice"], abs=2e-3)


def test_two_processes_learn_what_one_learns(python: Callable[..., Any], tmp_path: Path) -> None:
    trained(tmp_path / "one", **SPREAD)
    spread(python, tmp_path / "two", SPREAD)
    alike(tmp_path / "one", tmp_path / "two")
    one, two = (RunFolder.open(tmp_path / name).model("last").state_dict() for name in ("one", "two"))
    assert max(float((one[name].double() - two[name].double()).abs().max()) for name in one) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dice_ce", "deep_supervision", "mutation"])
@pytest.mark.parametrize("model", ["prosma_unet", "l2g_net"])
def test_every_loss(python: Callable[..., Any], tmp_path: Path, loss: str, model: str) -> None:
    options = {"widths": [2, 4, 4], "norm": "instance"}
    settings = {**SMALL, "model": model, "model_options": options, "loss": loss, "batch_size": 4, "epochs": 2}
    trained(tmp_path / "one", **settings)
    spread(python, tmp_path / "two", settings)
    alike(tmp_path / "one", tmp_path / "two")


def test_a_batch_that_two_cannot_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prosma_ops.training.planning import with_numbers

    configuration = RunFolder.open(trained(tmp_path / "run", steps=1).run.path).configuration
    with pytest.raises(ValueError, match="batch_size is 2; it must be a multiple of the 3 processes that share it"):
        with_numbers(configuration, cases=7, processes=3)


SIGNALLED = """
import os, signal
from pathlib import Path
from prosma_ops.training import train
from prosma_ops.training.engine import Training

make = Training._step

def disturbed(self, loader):
    if self.fabric.global_rank == 1 and self.at.step == 2:
        signal.raise_signal(signal.SIGTERM)
    make(self, loader)

Training._step = disturbed
outcome = train({settings!r}, Path("run"))
print(f"rank {{os.environ['RANK']}}: signal {{outcome.signal}} at step {{outcome.step}}", flush=True)
"""


@pytest.mark.slow
def test_a_signal_to_one_process_is_told_by_all(python: Callable[..., Any], tmp_path: Path) -> None:
    """The first is the one that speaks: without a signal it would say that the training has come to its end."""
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED.format(settings=SMALL))
    done = python([*TORCHRUN[:5], str(script)], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    told = {f"rank {rank}: signal {signal.SIGTERM.value} at step 3" for rank in (0, 1)}
    assert told <= set(done.stdout.splitlines()), done.stdout


REFUSED = {
    "half precision on a CPU": (Devices("cpu"), {"precision": "16-mixed"}, "16-mixed, which needs a GPU; on a CPU 32"),
    "FSDP on CPUs": (Devices("cpu", 2, "fsdp"), {}, "strategy is fsdp, which shards over GPUs; on CPUs ddp will do"),
    "a device like no other": (Devices("tpu"), {}, "device is 'tpu'; it must be auto, cpu or cuda"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_device_cannot_do_is_refused(tmp_path: Path, what: str) -> None:
    devices, changes, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        begin({**SMALL, **changes}, tmp_path / "run", devices=devices)
    assert not (tmp_path / "run").exists()

"""Trainings of a few steps on images of a few pixels, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prosma_ops.training import Outcome, RunFolder, storage, train

PHANTOM = "phantom:cases=10,size=16"

SMALL: dict[str, Any] = {
    "data": PHANTOM,
    "model_options": {"widths": [2, 4], "norm": "instance"},
    "batch_size": 2,
    "epochs": 3,
    "epoch_steps": 4,
    "log_every": 1,
    "workers": 0,
    "tensorboard": False,
}

# Of a codebook whose dead codes are replaced by random tokens, an average of weights, and steps of two batches: all
# that a checkpoint has to hold.
EVERYTHING: dict[str, Any] = {
    **SMALL,
    "model": "vq_unet",
    "model_options": {
        "widths": [2, 4],
        "norm": "instance",
        "bottleneck_options": {
            "codes": 8,
            "dim": 4,
            "quantizer": {"update": "ema", "restart_dead_codes": 0.9, "init": "kmeans"},
        },
    },
    "accumulation": 2,
    "ema": 0.9,
    "log_every": 3,  # no divisor of an epoch: a checkpoint falls between two lines
    "workers": 1,
}


def trained(out: Path, resume: bool = False, **changes: Any) -> Outcome:
    return train({**SMALL, **changes}, out, resume=resume)


def resumed(out: Path) -> Outcome:
    return train({}, out, resume=True)


def learned(run: RunFolder | Path) -> dict[str, torch.Tensor]:
    """All that the newest checkpoint of a run holds, and its weights."""
    path = run if isinstance(run, Path) else run.path
    newest = max((path / "checkpoints").iterdir())
    found, values = storage.read(newest)
    assert values["at"]["step"] == int(newest.stem.removeprefix("step-"))
    for name in ("best", "last"):
        tensors, _ = storage.read(path / f"{name}.safetensors")
        found |= {f"{name}/{key}": tensor for key, tensor in tensors.items()}
    return found


def log(path: Path) -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    entries = RunFolder.open(path).log()
    return [{k: v for k, v in entry.items() if k not in ("wait_share", "step_seconds")} for entry in entries]


def same(one: Path, other: Path) -> None:
    """Two runs have learned the same, to the last bit."""
    mine, theirs = learned(one), learned(other)
    assert list(mine) == list(theirs)
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert log(one) == log(other)

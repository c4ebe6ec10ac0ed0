"""Runs as a training leaves them, without the training: for the tests of what is done with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prosma_ops.data import Preparation, recognise, split, survey
from prosma_ops.training.configuration import Configuration
from prosma_ops.training.run_folder import RunFolder

SMALL = {"widths": [4, 8], "norm": "instance"}


class Brightness(nn.Module):
    """Segments what is brighter than `threshold`, whatever window it is seen in: what it says is known beforehand."""

    def __init__(self, outputs: int = 2, threshold: float = 0.0) -> None:
        super().__init__()
        self.outputs = outputs
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        logits = [torch.zeros_like(x[:, :1])] * self.outputs
        logits[-1] = 9 * (x[:, :1] - self.threshold)
        return torch.cat(logits, 1)


def run_folder(path: Path, data: Path | str, **changes: Any) -> RunFolder:
    """A run on `data` with random weights, "best" and "last"."""
    collection = recognise(data)
    found, parts = survey(collection), split(collection)
    preparation = Preparation.of(found, parts.train)
    settings = {"model": "unet", "model_options": SMALL, "patch_size": (16,) * preparation.dimensions, **changes}
    run = RunFolder.create(path, Configuration(data=str(data), **settings), preparation, parts)
    torch.manual_seed(0)
    model = run.new_model()
    for weights in ("best", "last"):
        run.write_weights(weights, model.state_dict(), {})
    return run

"""Dice on the validation cases: whole images by sliding windows, on the grid of the prepared images.

Under several processes each takes its share of the cases, and each case counts once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from ..data import PreparedCases
from ..inference.precisions import autocast
from ..inference.scoring import dice
from ..inference.segmenting import Segmenter
from .configuration import Configuration


class Validation(NamedTuple):
    """The mean Dice over cases and classes, that of each class over the cases that have it, and of each case."""

    dice: float
    per_class: dict[str, float]
    per_case: dict[str, list[float]]


class Validator:
    """Measures a network on the cases of a split.

    Arguments:
        cases: to be measured on.
        configuration: for the windows.
        fabric: the device, and the processes that share the cases.
        interrupted: asked between two cases; where it says yes the measurement ends without a result.
    """

    def __init__(
        self, cases: PreparedCases, configuration: Configuration, fabric: Fabric, interrupted: Callable[[], bool]
    ) -> None:
        self.cases = cases
        self.configuration = configuration
        self.fabric = fabric
        self.interrupted = interrupted

    def __call__(self, network: nn.Module) -> Validation | None:
        preparation = self.cases.preparation
        segmenter = Segmenter(
            network,
            preparation,
            patch_size=self.configuration.patch_size or (),
            overlap=self.configuration.overlap,
            device=self.fabric.device,
            autocast=autocast(self.configuration.precision),
        )
        found = np.full((len(self.cases), len(preparation.scheme.foreground)), np.nan)
        for index in range(self.fabric.global_rank, len(self.cases), self.fabric.world_size):
            if self.interrupted():
                return None
            case = self.cases[index]
            found[index] = dice(segmenter.predicted(case["image"]), case["label"], preparation.scheme)
        return self._summary(self._of_all_processes(found))

    def _of_all_processes(self, found: np.ndarray) -> np.ndarray:
        """The rows of the others; a class that is in neither mask is NaN, as it is here, and no sum is to make it 0."""
        if self.fabric.world_size == 1:
            return found
        everyone: Any = self.fabric.all_gather(torch.from_numpy(found).to(self.fabric.device))
        rows = [everyone[index % self.fabric.world_size, index].cpu().numpy() for index in range(len(found))]
        return np.stack(rows)

    def _summary(self, found: np.ndarray) -> Validation:
        scheme = self.cases.preparation.scheme
        names = [scheme.names[output] for output in scheme.foreground]
        columns = [column[~np.isnan(column)] for column in found.T]
        means = [float(column.mean()) if len(column) else float("nan") for column in columns]
        per_class = dict(zip(names, means, strict=True))
        classes = [value for value in per_class.values() if value == value]
        mean = float(np.mean(classes)) if classes else float("nan")
        per_case = {case.name: row.tolist() for case, row in zip(self.cases.cases, found, strict=True)}
        return Validation(mean, per_class, per_case)

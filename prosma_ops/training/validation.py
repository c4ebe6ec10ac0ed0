"""Dice on the validation cases: whole images by sliding windows, on the grid of the prepared images.

Under several processes each takes its share of the cases, and each case counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from lightning_fabric import Fabric
from torch import nn

from ..data import PreparedCases
from ..inference.bootstrap import mean_of_known
from ..inference.precisions import autocast
from ..inference.processes import Processes
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
        here = Processes(self.fabric.global_rank, self.fabric.world_size)
        done: list[tuple[int, np.ndarray]] = []
        for index in here.share(range(len(self.cases))):
            if self.interrupted():
                return None
            case = self.cases[index]
            done.append((index, dice(segmenter.predicted(case["image"]), case["label"], preparation.scheme)))
        return self._summary(dict(here.gathered(done)))

    def _summary(self, found: Mapping[int, np.ndarray]) -> Validation:
        """Of the Dice of each class, by the case's number."""
        scheme = self.cases.preparation.scheme
        names = [scheme.names[output] for output in scheme.foreground]
        rows = [found[index].tolist() for index in range(len(self.cases))]
        per_class = {name: mean_of_known(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        per_case = {case.name: row for case, row in zip(self.cases.cases, rows, strict=True)}
        return Validation(mean_of_known(per_class.values()), per_class, per_case)

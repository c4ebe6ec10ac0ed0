"""The runs: which data, how much of it, which network, which loss, which seed; and how each of them is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

SEEDS = (0, 1, 2)
ONE_OUTPUT = "dice_ce"
LOSS_NAMES = {
    ONE_OUTPUT: "one output",
    "lomix": "LoMix",
    "mutation": "MUTATION",
    "deep_supervision": "deep supervision",
}

# The same for every network, loss, seed and share of a data set; all else is the default. A step on two volumes of
# 40x56x40 took one core 1.4 s with `prosma_unet` and LoMix, 0.9 s with `unet` and one output (Cascade Lake, 2.5 GHz).
TRAININGS: dict[str, dict[str, Any]] = {
    "hippocampus": {"steps": 1000, "epoch_steps": 250},
    "usgra": {"size": [256, 256], "steps": 1000, "epoch_steps": 250},
}


@dataclass(frozen=True)
class Run:
    """One training. `share` is that of the training set."""

    data: str
    share: float
    model: str
    loss: str
    seed: int

    def __str__(self) -> str:
        return f"{self.data}-{self.share:g}-{self.model}-{self.loss}-{self.seed}"

    @property
    def cell(self) -> tuple[str, float, str, str]:
        return self.data, self.share, self.model, self.loss

    def settings(self) -> dict[str, Any]:
        """The keys of its configuration, but for where the images are."""
        named = {"model": self.model, "loss": self.loss, "seed": self.seed, "train_share": self.share}
        return {**TRAININGS[self.data], **named, "tensorboard": False}


def runs() -> list[Run]:
    """All, in the order in which they are made: the first 24 answer what LoMix and the proximal gate do for a U-Net,
    with much data and with little."""
    return list(dict.fromkeys(_runs()))


def _runs() -> Iterator[Run]:
    both = ("unet", "prosma_unet")
    for seed, share, model, loss in product(SEEDS, (1.0, 0.05), both, (ONE_OUTPUT, "lomix")):
        yield Run("hippocampus", share, model, loss, seed)
    for seed, model, loss in product(SEEDS, ("attention_unet", "l2g_net", "vq_unet"), (ONE_OUTPUT, "lomix")):
        yield Run("hippocampus", 1.0, model, loss, seed)
    for seed, model, loss in product(SEEDS, both, (ONE_OUTPUT, "lomix")):
        yield Run("usgra", 1.0, model, loss, seed)
    for seed, model, loss in product(SEEDS, both, ("deep_supervision", "mutation")):
        yield Run("hippocampus", 1.0, model, loss, seed)
    for seed, model, loss in product(SEEDS, both, (ONE_OUTPUT, "lomix")):
        yield Run("hippocampus", 0.1, model, loss, seed)

"""What moves the weights: AdamW or SGD, a learning rate that follows from the step alone, and an average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .configuration import Configuration

# Of nnU-Net's polynomial decay.
POWER = 0.9


def optimizer(module: nn.Module, configuration: Configuration) -> torch.optim.Optimizer:
    """Weights decay; biases, norms, thresholds, codebooks and the weights of a loss's mixtures do not."""
    rate, decay = configuration.learning_rate, configuration.weight_decay
    assert rate is not None
    assert decay is not None
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        weight = parameter.dim() > 1 and "codebook" not in name and not name.startswith("criterion.")
        (decaying if weight else others).append(parameter)
    both = ((decaying, decay), (others, 0.0))
    groups = [{"params": parameters, "weight_decay": own} for parameters, own in both if parameters]
    if configuration.optimizer == "sgd":
        return torch.optim.SGD(groups, rate, configuration.momentum, nesterov=configuration.momentum > 0)
    return torch.optim.AdamW(groups, rate)


def learning_rate(configuration: Configuration, step: int) -> float:
    """Of step 0 and on: rising linearly through the warm-up, then constant, or falling to 0 at the last step."""
    highest, steps, warmup = configuration.learning_rate, configuration.steps, configuration.warmup
    assert highest is not None
    assert steps is not None
    assert warmup is not None
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if configuration.schedule == "poly":
        return highest * math.pow(1 - done, POWER)
    if configuration.schedule == "cosine":
        return highest * (1 + math.cos(math.pi * done)) / 2
    return highest


class AveragedWeights:
    """A running average of a module's parameters: average = decay * average + (1 - decay) * parameter, each step.

    The decay rises to its value, (1 + step) / (10 + step) at first, so that the start is soon forgotten. Buffers are no
    part of it: running statistics and learned codebooks are averages already.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(module.named_parameters())
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [self.parameters[name].detach() for name in self.average]
        get_ema_multi_avg_fn(decay)(list(self.average.values()), current, None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages are the module's parameters meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.average.items():
            current = self.parameters[name].detach().clone()
            self.parameters[name].copy_(average)
            average.copy_(current)

    @torch.no_grad()
    def take(self) -> None:
        """The averages become what the parameters are now."""
        for name, average in self.average.items():
            average.copy_(self.parameters[name])

"""What `benchmarks.models` runs: networks, their inference and training steps, and what is counted in one pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from prosma_ops import backends
from prosma_ops.models import SegmentationModel, SegmentationOutput, create_model
from prosma_ops.nn import MixedLogitLoss
from prosma_ops.testing.torchvision import declare_operators

declare_operators()  # before the first encoder of timm is made
OPERATORS = "prosma_ops::"


@dataclass(frozen=True)
class Network:
    """A model at one size, (B, C, *spatial)."""

    name: str
    size: tuple[int, ...]
    classes: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        batch, channels, side, *_ = self.size
        return f"{self.name}, {batch}x{channels}x{side}^{self.spatial_dims}"

    @property
    def spatial_dims(self) -> int:
        return len(self.size) - 2

    def model(self, deep_supervision: bool = False) -> SegmentationModel:
        torch.manual_seed(0)
        return create_model(
            self.name,
            in_channels=self.size[1],
            classes=self.classes,
            spatial_dims=self.spatial_dims,
            deep_supervision=deep_supervision,
            **self.options,
        )

    def data(self) -> tuple[Tensor, Tensor]:
        """Images and labels."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(self.classes, (self.size[0], *self.size[2:]), generator=generator)
        return torch.randn(self.size, generator=generator), labels

    def counted(self) -> dict[str, int]:
        """Parameters, and the multiply-adds of convolutions and matrix products for one image.

        Counted on shapes alone, in the definitions of the operators, which are plain PyTorch.
        """
        with torch.device("meta"):
            model = self.model().eval()
            image = torch.empty(1, *self.size[1:])
            counter = FlopCounterMode(display=False)
            with mock.patch("torch.compiler.is_exporting", return_value=True), torch.no_grad(), counter:
                model(image)
        parameters = sum(values.numel() for values in model.parameters())
        return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 2}


def loss_of_finest(output: SegmentationOutput, labels: Tensor) -> Tensor:
    """torch's own cross-entropy, so that a step compares what the network is made of."""
    logits = output.logits[-1]
    if logits.shape[2:] != labels.shape[1:]:
        mode = "bilinear" if logits.dim() == 4 else "trilinear"
        logits = F.interpolate(logits, size=labels.shape[1:], mode=mode)
    return F.cross_entropy(logits, labels) + output.auxiliary


class Training:
    """Steps of gradient descent on one batch. With `loss`, "mixed" or "single": LoMix on all maps, or its plain terms,
    cross-entropy and Dice, on the finest; else cross-entropy of the finest."""

    def __init__(self, network: Network, loss: str = "") -> None:
        self.model = network.model(deep_supervision=loss == "mixed").train()
        self.images, self.labels = network.data()
        self.loss = self._loss(loss, network.classes)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)

    def _loss(self, kind: str, classes: int) -> Callable[[SegmentationOutput, Tensor], Tensor]:
        if not kind:
            return loss_of_finest
        levels = len(self.model.heads)
        operators = {} if kind == "mixed" else {"operators": (), "weights": "fixed"}
        mixed = MixedLogitLoss(levels, classes, **operators)
        return lambda output, labels: mixed(output.logits, labels) + output.auxiliary

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    def gradients(self) -> Tensor:
        """All of them, in one vector."""
        self.optimizer.zero_grad()
        self.loss(self.model(self.images), self.labels).backward()
        found = [values.grad.flatten() for values in self.model.parameters() if values.grad is not None]
        return torch.cat(found).double()


class Inference:
    def __init__(self, network: Network) -> None:
        self.model = network.model().eval()
        self.images, _ = network.data()

    @torch.no_grad()
    def all_images(self) -> Tensor:
        result: Tensor = self.model(self.images)
        return result

    @torch.no_grad()
    def one_image(self) -> Tensor:
        result: Tensor = self.model(self.images[:1])
        return result


@dataclass(frozen=True)
class Runner:
    """One contestant: what it runs, on which backend, and what of its result is compared with the reference's."""

    run: Callable[[], Any]
    backend: str = "auto"
    result: Callable[[], Tensor] | None = None
    rival: bool = True

    def seconds(self) -> float:
        with backends.use_backend(self.backend):
            start = time.perf_counter()
            self.run()
            return time.perf_counter() - start

    def compared(self) -> Tensor | None:
        with backends.use_backend(self.backend):
            return None if self.result is None else self.result().double()


def shares(run: Callable[[], Any], operators: Mapping[str, Sequence[str]], repetitions: int = 3) -> dict[str, float]:
    """The share of the run's time that is spent inside our operators, by name: the operators that begin like it.

    The median of some repetitions under torch's profiler, whose own cost is small beside operators of a millisecond.
    """
    run()
    found: dict[str, list[float]] = {name: [] for name in operators}
    for _ in range(repetitions):
        with profile(use_kineto=False) as watched:
            start = time.perf_counter()
            run()
            whole = time.perf_counter() - start
        spent = _seconds_by_operator(watched)
        for name, prefixes in operators.items():
            part = sum(seconds for operator, seconds in spent.items() if operator.startswith(tuple(prefixes)))
            found[name].append(part / whole)
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}


def _seconds_by_operator(watched: profile) -> dict[str, float]:
    """Of calls that no other operator of ours made."""
    spent: dict[str, float] = {}
    for event in watched.function_events or ():
        if not event.name.startswith(OPERATORS):
            continue
        parent = event.cpu_parent
        while parent is not None and not parent.name.startswith(OPERATORS):
            parent = parent.cpu_parent
        if parent is None:
            name = event.name.removeprefix(OPERATORS)
            spent[name] = spent.get(name, 0.0) + event.cpu_time_total * 1e-6
    return spent


def relative_error(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.norm())
    error = float((found - expected).norm())
    return error / scale if scale else error


def megabytes(count: float | None) -> float | None:
    return None if count is None or math.isnan(count) else count / 2**20

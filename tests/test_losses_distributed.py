"""Losses of a batch that is spread over two processes: the loss and the gradients of one process with all of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prosma_ops.nn import DeepSupervisionLoss, DiceCELoss, DiceLoss, MixedLogitLoss, MutationLoss
from prosma_ops.nn.reductions import sum_over_processes
from tests import two_processes

BATCH, CLASSES, SIZE = 4, 3, (8, 10)
INDICES = {"to_onehot_y": True, "ignore_index": 255}

LOSSES: dict[str, Callable[[bool], nn.Module]] = {
    "mixed": lambda spread: MixedLogitLoss(3, CLASSES, ignore_index=255, weights="normalized", distributed=spread),
    "mixed, sigmoid": lambda spread: MixedLogitLoss(
        3, CLASSES, activation="sigmoid", ignore_index=255, tied_attention=False, distributed=spread
    ),
    "mutation": lambda spread: MutationLoss(3, CLASSES, ignore_index=255, distributed=spread),
    "deep supervision": lambda spread: DeepSupervisionLoss(
        DiceCELoss(softmax=True, batch=True, **INDICES, distributed=spread), resize="logits"
    ),
    "dice over the batch": lambda spread: Single(DiceLoss(softmax=True, batch=True, **INDICES, distributed=spread)),
    "dice of each image": lambda spread: Single(DiceLoss(sigmoid=True, **INDICES, distributed=spread)),
    "dice, summed": lambda spread: Single(DiceLoss(softmax=True, reduction="sum", **INDICES, distributed=spread)),
    "weights and smoothing": lambda spread: Single(
        DiceCELoss(softmax=True, weight=[0.5, 1, 2], label_smoothing=0.1, **INDICES, distributed=spread)
    ),
    "not fused": lambda spread: Single(
        DiceCELoss(other_act=torch.tanh, batch=True, squared_pred=True, **INDICES, distributed=spread)
    ),
}


class Single(nn.Module):
    """A loss of one map: here the sum of all, so that every parameter takes part."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, maps: list[Tensor], target: Tensor) -> Tensor:
        return self.loss(sum(F.interpolate(values, SIZE) for values in maps), target)


class Supervised(nn.Module):
    """A network of three heads with its loss inside, as DistributedDataParallel is to see it."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv2d(2, CLASSES, 3, padding=1) for _ in range(3)])
        self.loss = loss

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        maps = [head(F.avg_pool2d(images, 4 >> level)) for level, head in enumerate(self.heads)]
        return self.loss(maps, target)


def supervised(name: str, spread: bool) -> Supervised:
    torch.manual_seed(0)
    return Supervised(LOSSES[name](spread)).double()


def data() -> tuple[Tensor, Tensor]:
    """Far more is ignored in the second half of the batch, and one of its classes is missing."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, CLASSES, (BATCH, 1, *SIZE), generator=generator)
    target[0, :, :1] = 255
    target[2:, :, :6] = 255
    target[2:][target[2:] == 1] = 2
    return torch.randn(BATCH, 2, *SIZE, dtype=torch.float64, generator=generator), target


def learned(network: nn.Module, images: Tensor, target: Tensor) -> dict[str, Any]:
    loss = network(images, target)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {"loss": loss.detach()} | {re.sub(r"^(module|_orig_mod)\.", "", name): g for name, g in gradients.items()}


def half_of_the_batch(rank: int) -> dict[str, Any]:
    images, target = (values.chunk(two_processes.COUNT)[rank] for values in data())
    found: dict[str, Any] = {}
    for name in LOSSES:
        found[name] = learned(DistributedDataParallel(supervised(name, True)), images, target)
    values = torch.arange(6.0).reshape(2, 3) + rank
    found["sums"] = sum_over_processes(values, torch.tensor(rank + 1, dtype=torch.int64))
    found["opcheck"] = torch.library.opcheck(torch.ops.prosma_ops.sum_over_processes, (values.requires_grad_(),))
    leaf = torch.full((2,), rank + 1.0, requires_grad=True)
    (squared,) = sum_over_processes(leaf)
    (first,) = torch.autograd.grad(squared.square().sum(), leaf, create_graph=True)
    found["derivatives"] = (first.detach(), *torch.autograd.grad(first.sum(), leaf))
    found["compiled"] = compiled(images, target)
    return found


def compiled(images: Tensor, target: Tensor) -> list[dict[str, Any]]:
    network = supervised("mixed", True)
    whole = torch.compile(supervised("mixed", True), fullgraph=True, backend="aot_eager")
    return [learned(network, images, target), learned(whole, images, target)]


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    results = two_processes.run(half_of_the_batch, tmp_path)
    for name in LOSSES:
        expected = learned(supervised(name, False), *data())
        for found in results:
            assert set(found[name]) == set(expected)
            for part, values in expected.items():
                torch.testing.assert_close(
                    found[name][part], values, rtol=1e-9, atol=1e-12, msg=lambda text, w=(name, part): f"{w}: {text}"
                )
    for rank, found in enumerate(results):
        sums, counts = found["sums"]
        assert torch.equal(sums.detach(), 2 * torch.arange(6.0).reshape(2, 3) + 1)
        assert counts.dtype is torch.int64
        assert counts == 3
        assert set(found["opcheck"].values()) == {"SUCCESS"}, rank
        # L = (1 + 2)^2 in each process: both losses' gradients reach each, 2 * 3 + 2 * 3; and once more, 2 * 2 * 2.
        first, second = found["derivatives"]
        assert first.tolist() == [12, 12]
        assert second.tolist() == [8, 8]
        eager, whole = found["compiled"]
        for part, values in eager.items():
            torch.testing.assert_close(whole[part], values)


@pytest.mark.parametrize("name", LOSSES)
def test_in_one_process_distributed_changes_nothing(name: str) -> None:
    found, expected = learned(supervised(name, True), *data()), learned(supervised(name, False), *data())
    assert all(torch.equal(found[part], values) for part, values in expected.items())

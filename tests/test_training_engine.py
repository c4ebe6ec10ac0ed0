"""The loop as a whole: every loss teaches, the log tells, and schedules and averages are what they say."""

from __future__ import annotations

import json
import math
import time
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from prosma_ops.data import LabelScheme, recognise
from prosma_ops.models import create_model
from prosma_ops.training import Configuration, RunFolder, train
from prosma_ops.training.engine import Meter
from prosma_ops.training.losses import Supervised
from prosma_ops.training.optimisation import AveragedWeights, learning_rate, optimizer
from tests.small_training import SMALL, learned, log, trained
from tests.test_training_bad_input import pictures

LOSSES = ("dice_ce", "deep_supervision", "mutation", "lomix")
CLASSES = LabelScheme(("background", "a", "b"), ((0,), (1,), (2,)), ignore=(255,))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), regions=True, ignore=(9,))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_teaches(tmp_path: Path, loss: str) -> None:
    changes = {"steps": 40, "epoch_steps": 40, "learning_rate": 0.03, "batch_size": 4, "augmentation": {"affine": 0}}
    outcome = trained(tmp_path / "run", loss=loss, **changes)
    steps = [entry["loss"] for entry in log(tmp_path / "run") if entry["kind"] == "step"]
    assert 0.3 < steps[0] < 2, "the size of one map's loss"
    assert sum(steps[-10:]) / 10 < 0.8 * sum(steps[:5]) / 5
    assert outcome.best is not None
    assert outcome.best > 0.1


def test_what_the_log_tells(tmp_path: Path) -> None:
    trained(tmp_path / "run", model_options={"widths": [2, 4, 4], "norm": "instance"}, log_every=2)
    run = RunFolder.open(tmp_path / "run")
    entries = run.log()
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert [entry["step"] for entry in steps] == [2, 4, 6, 8, 10, 12]
    for entry in steps:
        assert 0 <= entry["wait_share"] <= 1
        assert set(entry["sparsity"]) == {"gates.0", "gates.1"}
        assert all(0 <= share <= 1 for share in entry["sparsity"].values())
        assert len(entry["loss_weights"]) == 2 + 4
        assert sum(entry["loss_weights"].values()) == pytest.approx(6 * math.log(2))
    validations = [entry for entry in entries if entry["kind"] == "validation"]
    assert [entry["step"] for entry in validations] == [4, 8, 12]
    assert [entry["epoch"] for entry in validations] == [1, 2, 3]
    assert set(validations[0]["dice_per_class"]) == {"organ", "core", "neighbour"}
    best = max(entry["dice"] for entry in validations)
    assert [entry["dice"] for entry in validations if entry["best"]][-1] == best


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        trained(tmp_path / name, seed=seed, steps=3)
    assert log(tmp_path / "one") == log(tmp_path / "two") != log(tmp_path / "other")


def test_volumes(tmp_path: Path) -> None:
    changes = {"data": "phantom:dimensions=3,cases=6,size=16", "steps": 2, "epoch_steps": 2}
    outcome = trained(tmp_path / "run", **changes)
    assert outcome.run.configuration.patch_size == (16, 16, 16)
    assert outcome.run.configuration.model_options["strides"] == [[1, 1, 1], [2, 2, 2]]
    assert outcome.run.model("last")(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 4, 16, 16, 16)


def test_half_precision_and_tensorboard(tmp_path: Path) -> None:
    trained(tmp_path / "run", steps=2, precision="bf16-mixed", tensorboard=True, ema=0.9)
    assert len([*(tmp_path / "run" / "tensorboard").iterdir()]) == 1
    assert all(math.isfinite(entry["loss"]) for entry in log(tmp_path / "run") if entry["kind"] == "step")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_last_weights_are_those_of_the_checkpoint(tmp_path: Path, ema: float) -> None:
    """Averaged where there is an average."""
    trained(tmp_path / "run", steps=3, ema=ema)
    found = learned(tmp_path / "run")
    part = "average" if ema else "module"
    last = {name.removeprefix("last/"): tensor for name, tensor in found.items() if name.startswith("last/")}
    assert set(last) == set(RunFolder.open(tmp_path / "run").new_model().state_dict())
    assert all(torch.equal(tensor, found[f"{part}/network.{name}"]) for name, tensor in last.items())
    assert any(not torch.equal(tensor, found[f"module/network.{name}"]) for name, tensor in last.items()) == bool(ema)


def test_only_steps_of_this_process_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint between two lines of the log holds losses whose time nobody knows."""
    clock = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    meter = Meter()
    meter.losses, meter.extras = [2.0, 3.0], [0.0, 0.0]
    meter.start()
    with meter.waiting():
        clock = 1.0
    meter.add(4.0, 3.0)
    with meter.paused():
        clock = 11.0
    clock = 14.0
    assert meter.taken() == {"loss": 3.0, "auxiliary": 1.0, "wait_share": 0.25, "step_seconds": 4.0}
    assert (meter.losses, meter.waited, meter.timed) == ([], 0.0, 0)


def test_patience(tmp_path: Path) -> None:
    outcome = trained(tmp_path / "run", patience=2, epochs=20, learning_rate=0.0)
    assert outcome.step == 3 * 4, "the first validation is the best so far, and none is better"


def test_part_of_the_training_set(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", steps=1, train_share=0.3).run
    assert len(run.cases["train"]) == 2
    parts = run.splits(recognise(SMALL["data"]))
    assert [len(parts[name]) for name in ("train", "val", "test")] == [2, 1, 2]


def test_what_is_open_is_decided(tmp_path: Path) -> None:
    open_keys = {"batch_size": None, "epoch_steps": None, "model_options": {}, "epochs": 1}
    run = trained(tmp_path / "run", **{**open_keys, "data": "phantom:cases=10,size=32", "steps": 1}).run
    decided = RunFolder.open(run.path).configuration.as_mapping()
    assert decided["model_options"] == {
        "norm": "instance",
        "preset": "small",
        "strides": [[1, 1], *[[2, 2]] * 3, [1, 1]],
    }
    assert (decided["patch_size"], decided["batch_size"], decided["epoch_steps"]) == ([32, 32], 8, 25)
    assert (decided["learning_rate"], decided["weight_decay"], decided["warmup"]) == (0.001, 0.01, 0)
    assert [name for name, value in decided.items() if value is None] == ["spacing", "size"]


def configured(**keys: Any) -> Configuration:
    return Configuration(**{"steps": 100, "warmup": 9, "learning_rate": 1.0, "weight_decay": 0.1, **keys})


@pytest.mark.parametrize(
    ("schedule", "half", "end"),
    [("constant", 1.0, 1.0), ("poly", 0.5**0.9, (1 / 91) ** 0.9), ("cosine", 0.5, math.sin(math.pi / 182) ** 2)],
)
def test_learning_rates(schedule: str, half: float, end: float) -> None:
    rates = [learning_rate(configured(schedule=schedule), step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert (rates[54] + rates[55]) / 2 == pytest.approx(half, rel=1e-3)
    assert rates[-1] == pytest.approx(end)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_decays(name: str) -> None:
    model = create_model("prosma_unet", in_channels=1, classes=3, widths=[2, 4], norm="instance")
    groups = optimizer(Supervised(model, "lomix", CLASSES), configured(optimizer=name)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decaying, others = ({id(each) for each in group["params"]} for group in groups)
    named = dict(model.named_parameters())
    assert id(named["encoder.levels.0.0.weight"]) in decaying
    assert id(named["gates.0.raw_threshold"]) in others


def test_an_average_of_weights() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    average = AveragedWeights(module, 0.5)
    nn.init.constant_(module.weight, 3.0)
    average.update(1000)
    with average.in_place():
        assert float(module.weight.detach()) == 2.0
    assert float(module.weight.detach()) == 3.0
    average.take()
    assert float(average.average["weight"]) == 3.0
    average = AveragedWeights(module, 0.5)
    nn.init.constant_(module.weight, 4.0)
    average.update(0)
    assert float(average.average["weight"]) == pytest.approx(3.9), "a decay of 1/10 at first"


@pytest.mark.parametrize("scheme", [CLASSES, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_count_nowhere(loss: str, scheme: LabelScheme) -> None:
    torch.manual_seed(0)
    model = create_model("unet", in_channels=1, classes=scheme.outputs, widths=[2, 4, 4], norm="instance")
    supervised = Supervised(model, loss, scheme)
    image = torch.randn(2, 1, 16, 16)
    shape = (2, scheme.outputs if scheme.regions else 1, 16, 16)
    label = torch.randint(0, 2 if scheme.regions else 3, shape, dtype=torch.uint8)
    label[..., :8, :] = 255
    found, auxiliary = supervised(image, label)
    found.backward()
    assert float(auxiliary) == 0
    assert 0.1 < float(found.detach()) < 2
    shown = model.heads[-1].weight.grad
    other = model(image).logits
    for values in other:
        values.retain_grad()
    maps = [values[..., : values.shape[-2] // 2 - 2, :] for values in other]
    criterion = supervised.criterion(other[-supervised.levels :] if supervised.levels > 1 else other[-1], label)
    criterion.backward()
    assert shown is not None
    for values, part in zip(other[-1:], maps[-1:], strict=True):
        assert values.grad is not None
        assert torch.all(values.grad[..., : part.shape[-2], :] == 0), "well inside of what is ignored"
        assert torch.any(values.grad != 0)


def test_maps_beyond_the_fourth_have_no_part_in_it() -> None:
    model = create_model("unet", in_channels=1, classes=3, widths=[2] * 7, norm="instance")
    supervised = Supervised(model, "lomix", CLASSES)
    assert supervised.levels == 4
    loss, _ = supervised(torch.randn(1, 1, 128, 128), torch.zeros(1, 1, 128, 128, dtype=torch.uint8))
    loss.backward()
    gradients = [head.weight.grad for head in model.heads]
    assert all(gradient is not None for gradient in gradients)
    assert [bool(gradient.any()) for gradient in gradients if gradient is not None] == [False] * 2 + [True] * 4


def test_regions_with_ignored_pixels(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "grey"}, "labels": labels}))
    mask = np.zeros((16, 16), np.uint8)
    mask[3:12, 2:13], mask[5:9, 4:9], mask[12:] = 1, 2, 3
    Image.fromarray(mask).save(folder / "masks" / "02.png")
    outcome = trained(tmp_path / "run", data=str(folder), steps=4, batch_size=4)
    assert outcome.run.scheme.regions
    validations = [entry for entry in log(tmp_path / "run") if entry["kind"] == "validation"]
    assert set(validations[0]["dice_per_class"]) == {"whole", "core"}
    assert 0 <= validations[0]["dice_per_class"]["whole"] <= 1


def test_what_a_terminal_shows(tmp_path: Path) -> None:
    shown = StringIO()
    console = Console(file=shown, force_terminal=True, width=140)
    train({**SMALL, "steps": 5}, tmp_path / "run", console=console)
    text = shown.getvalue()
    for part in ("prosma_unet,", "parameters, lomix, on cpu; 7 train, 1 val, 2 test; 5 steps of 2 samples of 16x16"):
        assert part in text
    for part in ("5/5", "loss 0.", "Dice 0.", "waiting ", "left", "step 4/5", "best so far"):
        assert part in text

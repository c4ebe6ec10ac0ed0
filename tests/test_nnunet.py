"""nnU-Net's own trainer with LoMix and with ProSMA-UNet: a step, validation, a checkpoint; labels and regions."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prosma_ops.nn import MixedLogitLoss

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: pip install 'prosma-ops[nnunet]'")
# The warnings of nnU-Net and of what it imports are its own matter.
pytestmark = pytest.mark.filterwarnings("ignore")

STRIDES = [[1, 1], [2, 2], [2, 1], [2, 2], [2, 2], [1, 2]]
ARCHITECTURE: dict[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 6,
        "features_per_stage": [4, 6, 8, 8, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 6,
        "strides": STRIDES,
        "n_conv_per_stage": [1] * 6,
        "n_conv_per_stage_decoder": [1] * 5,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
LABELS: dict[str, dict[str, Any]] = {
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "labels and ignore": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3},
    "regions": {"background": 0, "whole": [1, 2], "core": 2},
    "regions and ignore": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
}
SIZE = (32, 32)


@pytest.fixture
def integration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With nnU-Net's folders, and a preprocessed data set in them that has a file to tell its format by."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    data = tmp_path / "nnUNet_preprocessed" / "Dataset001_Test" / "nnUNetPlans_2d"
    data.mkdir(parents=True)
    (data / "case.npz").touch()
    return importlib.import_module("prosma_ops.integrations.nnunet")


def trainer(integration: ModuleType, name: str, labels: str, architecture: dict[str, Any] | None = None) -> Any:
    torch.manual_seed(0)
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "batch_size": 2,
        "patch_size": list(SIZE),
        "batch_dice": True,
        "architecture": copy.deepcopy(architecture or ARCHITECTURE),
    }
    plans = {
        "dataset_name": "Dataset001_Test",
        "plans_name": "nnUNetPlans",
        "configurations": {"2d": configuration},
        "label_manager": "LabelManager",
        "continue_training": False,
    }
    dataset = {"channel_names": {"0": "CT"}, "labels": LABELS[labels], "regions_class_order": [1, 2]}
    made = getattr(integration, name)(plans, "2d", 0, dataset, device=torch.device("cpu"))
    made.initialize()
    return made


def batch(labels: str) -> dict[str, Any]:
    """As nnU-Net's loader gives it: a target for each scale, int16 labels or boolean regions, the ignored one last."""
    generator = torch.Generator().manual_seed(1)
    classes = 4 if "ignore" in labels else 3
    found = torch.randint(0, classes, (2, 1, *SIZE), generator=generator)
    if "regions" in labels:
        found = torch.cat([(found == 1) | (found == 2), found == 2, found == 3], dim=1)[:, : classes - 1]
    targets, scale = [], [1, 1]
    for stride in STRIDES[:-1]:
        scale = [before * step for before, step in zip(scale, stride, strict=True)]
        size = [length // step for length, step in zip(SIZE, scale, strict=True)]
        small = F.interpolate(found.float(), size=size, mode="nearest-exact")
        targets.append(small.bool() if "regions" in labels else small.to(torch.int16))
    return {"data": torch.randn(2, 1, *SIZE, generator=generator), "target": targets}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", ["nnUNetTrainerLoMix", "nnUNetTrainerProSMA", "nnUNetTrainerProSMALoMix"])
def test_it_trains_and_validates(integration: ModuleType, name: str, labels: str) -> None:
    made = trainer(integration, name, labels)
    made.network.train()
    losses = [float(made.train_step(batch(labels))["loss"]) for _ in range(8)]
    assert min(losses[-3:]) < losses[0]
    assert all(parameter.isfinite().all() for parameter in made.network.parameters())
    made.network.eval()
    with torch.no_grad():
        found = made.validation_step(batch(labels))
    assert found["tp_hard"].shape == (2,)
    if "LoMix" in name:
        weights = torch.tensor([*made.loss.loss.weights().values()])
        assert weights.max() - weights.min() > 0


@pytest.mark.parametrize("labels", LABELS)
def test_the_loss_is_lomix_of_the_four_finest_maps(integration: ModuleType, labels: str) -> None:
    made, data = trainer(integration, "nnUNetTrainerLoMix", labels), batch(labels)
    maps = made.network(data["data"])
    assert len(maps) == 5
    target, ignored = data["target"][0], 3 if "ignore" in labels else None
    if "regions" in labels:
        kept = target[:, :2].to(torch.uint8)
        target, ignored = (kept.masked_fill(target[:, 2:], 9), 9) if ignored else (kept, None)
    plain = MixedLogitLoss(
        4, maps[0].shape[1], activation="sigmoid" if "regions" in labels else "softmax", ignore_index=ignored
    )
    plain.load_state_dict(made.loss.loss.state_dict())
    expected = plain(maps[3::-1], target.long() if "regions" not in labels else target) / len(plain.names)
    torch.testing.assert_close(made.loss(maps, data["target"]), expected)


def test_a_checkpoint_keeps_what_the_loss_learned(integration: ModuleType, tmp_path: Path) -> None:
    one, other = (trainer(integration, "nnUNetTrainerLoMix", "labels") for _ in range(2))
    one.train_step(batch("labels"))
    one.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    other.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    states = (one.loss.state_dict(), other.loss.state_dict())
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())
    assert float(one.train_step(batch("labels"))["loss"]) == float(other.train_step(batch("labels"))["loss"])


def test_the_network_follows_the_plans_and_the_switch(integration: ModuleType) -> None:
    made = trainer(integration, "nnUNetTrainerProSMA", "labels")
    network, x = made.network.eval(), batch("labels")["data"]
    maps = network(x)
    assert [values.shape[2:] for values in maps] == [t.shape[2:] for t in batch("labels")["target"]]
    made.set_deep_supervision_enabled(False)
    assert torch.equal(network(x), maps[0])
    assert isinstance(network.train()(x), Tensor)
    made.set_deep_supervision_enabled(True)
    assert len(network(x)) == 5


def test_plans_name_the_network(integration: ModuleType) -> None:
    """The line of the documentation, with nnU-Net's own trainer."""
    architecture = ARCHITECTURE | {"network_class_name": "prosma_ops.integrations.nnunet.PlannedProSMAUNet"}
    made = trainer(integration, "nnUNetTrainer", "labels", architecture)
    assert type(made.network) is integration.PlannedProSMAUNet
    made.network.train()
    assert made.train_step(batch("labels"))["loss"] > 0


def test_without_deep_supervision(integration: ModuleType) -> None:
    loss, data = integration.LoMixLoss(1, 3), batch("labels")
    logits = torch.randn(2, 3, *SIZE)
    expected = MixedLogitLoss(1, 3, weights="normalized")([logits], data["target"][0].long())
    torch.testing.assert_close(loss(logits, data["target"][0]), expected)


def test_nnunet_finds_the_trainers(integration: ModuleType) -> None:
    """In the folder that the documentation names: it imports the file under another name."""
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = str(Path(integration.__file__).parent)
    found = recursive_find_python_class(folder, "nnUNetTrainerProSMALoMix", None, base_folder=folder)
    assert found is not integration.nnUNetTrainerProSMALoMix
    assert [base.__name__ for base in found.__mro__[1:4]] == [
        "nnUNetTrainerLoMix",
        "nnUNetTrainerProSMA",
        "nnUNetTrainer",
    ]

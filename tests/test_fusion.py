"""fuse and unfuse: other packages' modules compute the same with the fused operators, in place."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai import losses as monai
from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.layers.vector_quantizer import VectorQuantizer as MonaiQuantizer
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

import prosma_ops

CLASSES, SIZE = 3, (7, 9)
INDICES = {"to_onehot_y": True, "softmax": True}
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "dice": lambda: monai.DiceLoss(**INDICES),
    "dice, squared, over the batch": lambda: monai.DiceLoss(
        squared_pred=True, batch=True, include_background=False, **INDICES
    ),
    "jaccard, unreduced": lambda: monai.DiceLoss(jaccard=True, reduction="none", **INDICES),
    "dice with weights": lambda: monai.DiceLoss(weight=[1.0, 2.0, 0.5], reduction="sum", **INDICES),
    "dice that ignores": lambda: monai.DiceLoss(to_onehot_y=True, sigmoid=True, ignore_index=1),
    "dice of regions": lambda: monai.DiceLoss(sigmoid=True),
    "dice and cross-entropy": lambda: monai.DiceCELoss(lambda_ce=0.5, label_smoothing=0.1, **INDICES),
    "with weights": lambda: monai.DiceCELoss(
        weight=torch.tensor([1.0, 2.0, 0.5]), include_background=False, batch=True, **INDICES
    ),
}
QUANTIZERS: dict[str, Callable[[], VectorQuantize]] = {
    "as it comes": lambda: VectorQuantize(4, 8),
    "straight-through": lambda: VectorQuantize(4, 8, rotation_trick=False, commitment_weight=0.25),
    "cosine": lambda: VectorQuantize(4, 8, use_cosine_sim=True),
    "heads and projections": lambda: VectorQuantize(4, 8, heads=2, codebook_dim=3),
    "learnable": lambda: VectorQuantize(4, 8, learnable_codebook=True, ema_update=False),
    "k-means and dead codes": lambda: VectorQuantize(4, 8, kmeans_init=True, threshold_ema_dead_code=2),
    "orthogonal": lambda: VectorQuantize(4, 8, orthogonal_reg_weight=0.1, ema_update=False, learnable_codebook=True),
    "frozen": lambda: VectorQuantize(4, 8, freeze_codebook=True),
}


def twins(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A module, and a fused copy of it."""
    torch.manual_seed(0)
    plain = make()
    fused = copy.deepcopy(plain)
    assert prosma_ops.fuse(fused).replaced
    return plain, fused


def ran(module: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """Two calls: results and gradients of the second, and the state that they leave."""
    torch.manual_seed(3)
    module(*inputs)
    module.zero_grad()
    leaf = inputs[0].clone().requires_grad_()
    found = module(leaf, *inputs[1:])
    results = list(found) if isinstance(found, tuple) else [found]
    sum(result.square().sum() for result in results if result.requires_grad).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"results": results, "image": leaf.grad, "gradients": gradients, "state": module.state_dict()}


def target(*size: int) -> Tensor:
    return torch.randint(0, CLASSES, (2, 1, *size), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", LOSSES)
def test_monais_losses(backend: str, name: str) -> None:
    plain, fused = twins(LOSSES[name])
    labels = target(*SIZE)
    if name == "dice of regions":
        labels = torch.cat([labels == 1, labels > 0, labels == 2], dim=1).float()
    logits = torch.randn(2, CLASSES, *SIZE)
    torch.testing.assert_close(ran(fused, logits, labels), ran(plain, logits, labels), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [None, [1.0, 0.3, 0.2]])
def test_monais_deep_supervision(backend: str, weights: list[float] | None) -> None:
    def make() -> nn.Module:
        return monai.DeepSupervisionLoss(monai.DiceCELoss(**INDICES), weights=weights)

    plain, fused = twins(make)
    maps = [torch.randn(2, CLASSES, size, size + 2) for size in (12, 6, 3)]
    labels = target(12, 14)
    torch.testing.assert_close(fused(maps, labels), plain(maps, labels.float()), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fused(maps[0], labels), plain(maps[0], labels.float()), rtol=1e-4, atol=1e-6)
    assert type(fused.loss) is not type(plain.loss)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_monais_quantizer(backend: str, spatial_dims: int) -> None:
    plain, fused = twins(lambda: MonaiQuantizer(EMAQuantizer(spatial_dims, 8, 4, decay=0.9)))
    x = torch.randn(2, 4, *(5, 3, 2)[:spatial_dims])
    torch.testing.assert_close(ran(fused, x), ran(plain, x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.perplexity, plain.perplexity)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
    assert torch.equal(fused.quantize(x), plain.quantize(x))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_vector_quantize_pytorch(backend: str, name: str) -> None:
    plain, fused = twins(QUANTIZERS[name])
    x = torch.randn(2, 30, 4)
    torch.testing.assert_close(ran(fused, x), ran(plain, x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


def test_calls_that_are_not_fused_are_the_originals() -> None:
    plain, fused = twins(lambda: VectorQuantize(4, 8, accept_image_fmap=False))
    x = torch.randn(2, 6, 4)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    torch.testing.assert_close(fused(x, mask=mask), plain(x, mask=mask))
    codes = torch.randint(0, 8, (2, 6))
    torch.testing.assert_close(fused(x, codes), plain(x, codes))
    torch.testing.assert_close(fused.eval()(x, topk=2), plain.eval()(x, topk=2))


def network() -> nn.Module:
    return nn.ModuleDict(
        {
            "quantizer": MonaiQuantizer(EMAQuantizer(2, 8, 4)),
            "tokens": nn.Sequential(nn.Linear(4, 4), VectorQuantize(4, 8), VectorQuantize(4, 8, affine_param=True)),
            "loss": monai.DiceCELoss(**INDICES),
            "soft": monai.DiceLoss(sigmoid=True, soft_label=True),
            "regions": monai.DiceLoss(sigmoid=True),
        }
    )


def test_the_report_and_back() -> None:
    model = network()
    classes = {path: type(module) for path, module in model.named_modules()}
    before = {name: values.data_ptr() for name, values in model.state_dict().items()}
    report = prosma_ops.fuse(model)
    assert set(report.replaced) == {"quantizer.quantizer", "tokens.1", "loss", "regions"}
    assert set(report.kept) == {"tokens.2", "soft"}
    assert "affine_param" in report.kept["tokens.2"]
    lines = str(report).splitlines()
    assert "fused tokens.1: VectorQuantize" in lines
    assert "fused regions: DiceLoss: its target must hold nothing but 0 and 1" in lines
    assert len(lines) == 6
    assert {name: values.data_ptr() for name, values in model.state_dict().items()} == before
    assert all(isinstance(module, classes[path]) for path, module in model.named_modules())
    assert not prosma_ops.fuse(model).replaced
    assert set(prosma_ops.unfuse(model)) == {*report.replaced, "tokens.1._codebook", "loss.dice"}
    assert {path: type(module) for path, module in model.named_modules()} == classes
    assert prosma_ops.unfuse(model) == []


def test_a_fused_model_is_copied_saved_and_hooked() -> None:
    model, seen = network(), []
    model["loss"].register_forward_hook(lambda *_: seen.append("loss"))
    prosma_ops.fuse(model)
    twin = copy.deepcopy(model)
    twin.load_state_dict(network().state_dict())
    model["loss"](torch.randn(2, CLASSES, *SIZE), target(*SIZE))
    assert seen == ["loss"]
    assert set(prosma_ops.unfuse(twin)) == set(prosma_ops.unfuse(model))


def test_a_subclass_is_left_alone() -> None:
    class Other(monai.DiceLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return super().forward(input, target) * 2

    report = prosma_ops.fuse(Other(**INDICES))
    assert not report.replaced
    assert str(report) == "nothing to fuse"


def test_what_is_not_there_is_not_imported(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = python("""
        import sys, torch, prosma_ops
        print(prosma_ops.fuse(torch.nn.Linear(2, 2)))
        print([name for name in ("monai", "vector_quantize_pytorch") if name in sys.modules])
    """)
    assert done.stdout == "nothing to fuse\n[]\n", done.stderr

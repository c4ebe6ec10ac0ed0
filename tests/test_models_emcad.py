"""EMCAD: its parts against their formulas, its parameters against the published counts, and encoders of timm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prosma_ops.models import EMCAD, SegmentationModel, create_model
from prosma_ops.models.emcad_decoder import (
    ChannelAttention,
    EfficientUpConvolution,
    MultiScaleConvolution,
    SpatialAttention,
)
from prosma_ops.models.gates import LargeKernelGate
from prosma_ops.models.timm_encoder import TimmEncoder
from prosma_ops.testing import torchvision
from tests import model_checks
from tests.conftest import INDUCTOR_WARNS, ONNX_WARNS

SIZE = (64, 64)
SMALL: dict[str, Any] = {"encoder": "convolutional", "widths": (8, 12, 16, 24)}
PYRAMID: dict[str, Any] = {"encoder": "pvt_v2_b0"}
# Of the convolutions in the gate, each before a normalization.
IDLE = r"^gates\.\d\.\w+\.0\.bias$|^encoder\.to_colours\.0\.bias$"
ENCODERS = pytest.mark.parametrize("options", [SMALL, PYRAMID], ids=lambda options: options["encoder"])


def emcad(in_channels: int = 3, classes: int = 3, **options: Any) -> SegmentationModel:
    return create_model("emcad", in_channels=in_channels, classes=classes, **options)


# Parameters.


@pytest.mark.parametrize(
    ("in_channels", "classes", "parameters"), [(1, 1, 26_764_411), (1, 9, 26_772_635), (3, 9, 26_772_635 - 12)]
)
def test_it_has_the_published_number_of_parameters(in_channels: int, classes: int, parameters: int) -> None:
    model = emcad(in_channels, classes)
    assert model_checks.count(model) == parameters
    assert model_checks.count(model.decoder, model.gates) == 1_913_515
    encoder = model.encoder
    assert isinstance(encoder, TimmEncoder)
    assert model_checks.count(encoder.body) == 24_849_856


def test_convolutions_of_the_decoder_start_small() -> None:
    model = emcad(**SMALL)
    for part in (model.decoder, model.gates):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                if module.weight.numel() >= 100:  # so many that their spread is that of the distribution
                    assert 0.015 < module.weight.std() < 0.025
                assert module.bias is None or not module.bias.any()


# The decoder's parts, written out.


def normalized(values: Tensor) -> Tensor:
    """What a batch normalization that was never trained makes of it in training mode."""
    return F.batch_norm(values, None, None, training=True)


def shared_perceptron(part: ChannelAttention, pooled: Tensor) -> Tensor:
    first, second = (next(layer.parameters()).flatten(1) for layer in (part.reduce, part.expand))
    return F.relu(pooled @ first.T) @ second.T


def test_channel_attention_is_its_formula() -> None:
    part, x = ChannelAttention(32), torch.randn(2, 32, 5, 4)
    factors = shared_perceptron(part, x.mean((2, 3))) + shared_perceptron(part, x.flatten(2).max(2).values)
    torch.testing.assert_close(part(x), x * factors.sigmoid()[:, :, None, None])


def test_spatial_attention_is_its_formula() -> None:
    part, x = SpatialAttention(), torch.randn(2, 6, 9, 8)
    pooled = torch.stack([x.mean(1), x.max(1).values], dim=1)
    torch.testing.assert_close(part(x), x * F.conv2d(pooled, part.convolution.weight, padding=3).sigmoid())


def test_multi_scale_convolution_is_its_formula() -> None:
    """The shuffle, which the module applies to the weights, applied to the features here."""
    part, x = MultiScaleConvolution(6), torch.randn(2, 6, 9, 8)
    inner = F.relu6(normalized(F.conv2d(x, part.expand[0].weight)))
    total = torch.zeros_like(inner)
    for size, scale in zip((1, 3, 5), part.scales, strict=True):
        total += F.relu6(normalized(F.conv2d(inner, scale[0].weight, padding=size // 2, groups=12)))
    shuffled = total.unflatten(1, (6, 2)).transpose(1, 2).flatten(1, 2)  # six groups of two
    torch.testing.assert_close(shuffled, torch.channel_shuffle(total, 6))
    torch.testing.assert_close(part(x), x + normalized(F.conv2d(shuffled, part.reduce.weight)))


def test_up_convolution_is_its_formula() -> None:
    part, x = EfficientUpConvolution(6, 4), torch.randn(2, 6, 5, 3)
    enlarged = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    inner = F.relu(normalized(F.conv2d(enlarged, part.smooth[0].weight, padding=1, groups=6)))
    torch.testing.assert_close(part(x), F.conv2d(inner, part.project.weight, part.project.bias))


def test_the_gate_is_its_formula() -> None:
    gate, skip, gating = LargeKernelGate(8, 8), torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 6)
    first, second = (
        normalized(F.conv2d(values, part[0].weight, part[0].bias, padding=1, groups=4))
        for values, part in ((skip, gate.project_skip), (gating, gate.project_gating))
    )
    raw = normalized(F.conv2d(F.relu(first + second), gate.attention[0].weight, gate.attention[0].bias))
    torch.testing.assert_close(gate(skip, gating), skip * raw.sigmoid())


def test_the_gate_fits_any_decoder() -> None:
    """Volumes, odd channels, and coarser gating features with channels of their own."""
    gate = LargeKernelGate(5, 12, spatial_dims=3)
    assert gate(torch.randn(1, 5, 4, 4, 6), torch.randn(1, 12, 2, 2, 3)).shape == (1, 5, 4, 4, 6)
    model = create_model("unet", in_channels=1, classes=2, widths=(4, 6, 8), gate="large_kernel")
    model_checks.gradients_reach_every_parameter(model, (16, 16), idle=IDLE)


def test_one_spatial_attention_serves_all_levels() -> None:
    model = emcad(**SMALL)
    assert sum(isinstance(module, SpatialAttention) for module in model.modules()) == 1


# The whole network.


@pytest.mark.parametrize("size", [(64, 64), (33, 70)], ids=str)
@pytest.mark.parametrize("in_channels", [1, 3, 4])
@ENCODERS
def test_shapes(options: dict[str, Any], in_channels: int, size: tuple[int, ...]) -> None:
    model_checks.shapes(emcad(in_channels, **options), size)


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_norms(norm: str) -> None:
    model_checks.gradients_reach_every_parameter(emcad(norm=norm, **SMALL), SIZE, idle=IDLE)


@pytest.mark.parametrize("in_channels", [1, 3])
@ENCODERS
def test_gradients_reach_every_parameter(options: dict[str, Any], in_channels: int) -> None:
    model_checks.gradients_reach_every_parameter(emcad(in_channels, **options), SIZE, idle=IDLE)


@ENCODERS
def test_a_checkpoint_rebuilds_it(options: dict[str, Any]) -> None:
    model_checks.can_be_rebuilt(emcad(1, **options), SIZE)


def test_the_options_are_part_of_its_config() -> None:
    options = {"kernels": (3, 5), "gate": "attention", "gate_options": {"hidden": 4}, "bottleneck": "codebook"}
    bottleneck = {"bottleneck_options": {"codes": 8, "dim": 4}, "deep_supervision": False, "norm": "group"}
    model = emcad(**SMALL, **options, **bottleneck)
    model_checks.can_be_rebuilt(model, SIZE)
    model_checks.gradients_reach_every_parameter(model, SIZE)
    assert len(model_checks.output(model, model_checks.image(model, *SIZE)).logits) == 1


def test_only_the_finest_head_predicts() -> None:
    model_checks.only_the_finest_head_predicts(emcad(**SMALL), SIZE)


@ENCODERS
def test_channels_last_is_kept(options: dict[str, Any]) -> None:
    model_checks.keeps_channels_last(emcad(**options), SIZE)


@ENCODERS
def test_bfloat16(options: dict[str, Any]) -> None:
    model_checks.runs_in_bfloat16(emcad(1, **options), SIZE)


@pytest.mark.usefixtures("native_library")
def test_backends_agree() -> None:
    """With the gates and the bottleneck that are made of operators."""
    options = {"gate": "proximal", "bottleneck": "transport", "bottleneck_options": {"codes": 8, "dim": 4}}
    model_checks.backends_agree(emcad(norm="group", **SMALL, **options), SIZE)


@pytest.mark.parametrize("options", [SMALL, pytest.param(PYRAMID, marks=pytest.mark.slow)], ids=["small", "pyramid"])
def test_it_learns_a_batch_by_heart(options: dict[str, Any]) -> None:
    model_checks.learns_by_heart(emcad(1, 2, **options), SIZE, steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@ENCODERS
def test_it_compiles_whole(options: dict[str, Any], training: bool) -> None:
    model_checks.compiles_whole(emcad(**options), SIZE, training=training, backend="aot_eager")


@pytest.mark.slow
@INDUCTOR_WARNS
@ENCODERS
def test_it_compiles_whole_with_inductor(options: dict[str, Any]) -> None:
    model_checks.compiles_whole(emcad(**options), SIZE, training=False, backend="inductor")


@ENCODERS
def test_it_goes_into_a_folder_and_back(options: dict[str, Any], tmp_path: Path) -> None:
    model_checks.goes_into_a_folder_and_back(emcad(1, **options), SIZE, tmp_path)


@ENCODERS
def test_a_sliding_window(options: dict[str, Any]) -> None:
    model_checks.slides_over_a_large_image(emcad(**options), SIZE)


@pytest.mark.slow
@ENCODERS
def test_two_processes_train_it(options: dict[str, Any], tmp_path: Path) -> None:
    model_checks.trains_in_two_processes(emcad(**options), SIZE, tmp_path)


@pytest.mark.slow
@ONNX_WARNS
@ENCODERS
def test_onnxruntime_gives_the_same_logits(options: dict[str, Any], tmp_path: Path) -> None:
    model_checks.agrees_with_onnxruntime(emcad(**options), (40, 64), tmp_path)


@pytest.mark.slow
@ENCODERS
def test_it_exports(options: dict[str, Any]) -> None:
    model_checks.exports(emcad(**options), SIZE)


# Encoders of timm.


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_other_encoders_of_timm(name: str) -> None:
    """Convolutional ones have features at stride 2 too, which are left out."""
    model = emcad(encoder=name)
    model_checks.shapes(model, (40, 64))
    model_checks.gradients_reach_every_parameter(model, SIZE, idle=IDLE)


def test_an_encoder_whose_channels_come_last() -> None:
    small = {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    model = emcad(encoder="swin_tiny_patch4_window7_224", encoder_options=small)
    model_checks.shapes(model, SIZE)
    assert all(values.is_contiguous() for values in model.encoder(torch.randn(1, 3, *SIZE)))
    model_checks.can_be_rebuilt(model, SIZE)


def test_an_encoder_needs_four_scales() -> None:
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_224'.* strides \(16, 16, 16, 16\).* \(4, 8, 16, 32\)"):
        emcad(encoder="vit_tiny_patch16_224")


def test_pretrained_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    create = timm.create_model

    def spy(name: str, *, pretrained: bool, **options: Any) -> Any:
        asked.append({"name": name, "pretrained": pretrained, **options})
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", spy)
    model = emcad(encoder="pvt_v2_b0", pretrained=True, encoder_options={"drop_path_rate": 0.1})
    assert asked[0]["name"] == "pvt_v2_b0"
    assert asked[0]["pretrained"] is True
    assert asked[0]["drop_path_rate"] == 0.1
    create_model(**model.config())
    assert asked[1]["pretrained"] is False  # a checkpoint is rebuilt without a download


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)


@pytest.mark.usefixtures("without_timm")
def test_without_timm_it_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"pip install 'prosma-ops\[emcad\]'"):
        emcad()
    model_checks.shapes(emcad(**SMALL), SIZE)


def test_a_torchvision_for_another_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("prosma_ops.models.timm_encoder.importlib.import_module", fail)
    with pytest.raises(ImportError, match=r"torchvision::nms.*a build for another torch"):
        emcad()


def test_operators_of_torchvision_are_declared_once() -> None:
    assert torchvision.declare_operators() == []
    assert torch.ops.torchvision.nms is not None


# Bad arguments.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 3}, "spatial_dims is 3; emcad is for 2"),
        ({"encoder": "no_such_network"}, "encoder is 'no_such_network'.*'convolutional'"),
        ({**SMALL, "widths": (8, 8)}, "widths is .*4 entries"),
        ({**SMALL, "pretrained": True}, "pretrained is True, but encoder='convolutional'"),
        ({**SMALL, "encoder_options": {"depth": 3}}, "encoder_options is .* but encoder='convolutional'"),
        ({**SMALL, "kernels": (1, 2)}, r"kernels is \(1, 2\).*odd"),
        ({**SMALL, "kernels": ()}, r"kernels is \(\)"),
        ({**SMALL, "gate": "open"}, "gate is 'open'"),
        ({**SMALL, "norm": "layer"}, "norm is 'layer'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMCAD(3, 2, **options)

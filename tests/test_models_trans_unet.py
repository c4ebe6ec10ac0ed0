"""TransUNet: its numbers against timm's hybrid transformer, its parameters against the public code's, its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from prosma_ops.models import TransUNet, create_model
from prosma_ops.models.residual_encoder import StandardizedConvolution
from prosma_ops.models.vision_transformer import TransformerBottleneck
from tests import model_checks
from tests.conftest import INDUCTOR_WARNS, ONNX_WARNS

SIZE = (32, 32)
TINY: dict[str, Any] = {
    "stem": 8,
    "blocks": (1, 2, 1),
    "width": 24,
    "layers": 2,
    "heads": 3,
    "hidden": 32,
    "entry": 16,
    "widths": (16, 12, 8, 4),
    "image_size": 32,
}
# What timm must be told for a transformer of these sizes; its ResNet stages stay those of R50.
HYBRID: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 32 / 24, "num_classes": 0}
AS_HYBRID: dict[str, Any] = {**TINY, "stem": 64, "blocks": (3, 4, 9)}


def trans_unet(in_channels: int = 3, classes: int = 3, **options: Any) -> TransUNet:
    model = create_model("trans_unet", in_channels=in_channels, classes=classes, **(TINY | options))
    assert isinstance(model, TransUNet)
    return model


def hybrid(**options: Any) -> Any:
    """timm's R50-ViT with a small transformer and random weights."""
    model = timm.create_model("vit_base_r50_s16_224", **(HYBRID | {"img_size": 32} | options)).eval()
    with torch.no_grad():
        for values in model.parameters():  # no weight of one and no bias of zero that could hide a wrong place
            values.add_(0.02 * torch.randn_like(values))
    return model


def test_it_has_the_parameters_of_the_public_code() -> None:
    """105,276,066 with a 3x3 head of two classes there; 1x1 heads, one a scale, here."""
    with torch.device("meta"):
        model = create_model("trans_unet", in_channels=3, classes=2)
    assert model_checks.count(model) - model_checks.count(model.heads) == 105_276_066 - 2 * (16 * 9 + 1)
    with torch.device("meta"):
        small = create_model("trans_unet", in_channels=1, classes=2, preset="small")
    assert model_checks.count(small) < 2_000_000


def test_weights_are_standardized() -> None:
    layer, x = StandardizedConvolution(3, 5, 3, stride=2), torch.randn(2, 3, 8, 6)
    mean, deviation = (
        layer.weight.mean((1, 2, 3), keepdim=True),
        layer.weight.std((1, 2, 3), keepdim=True, correction=0),
    )
    padded = F.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(layer(x), F.conv2d(padded, (layer.weight - mean) / deviation, stride=2))


@torch.no_grad()
def test_the_encoder_computes_what_timm_computes() -> None:
    theirs, model = hybrid(), trans_unet(**AS_HYBRID)
    model.load_timm_weights(theirs.state_dict())
    x = torch.randn(2, 3, 64, 32)
    expected = theirs.patch_embed.backbone.forward_intermediates(x, intermediates_only=True)
    for ours, reference in zip(model.encoder(x), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_transformer_computes_what_timm_computes() -> None:
    """Without its class token, which a segmentation has no use for."""
    theirs = hybrid(class_token=False, global_pool="avg", fc_norm=False)
    model = trans_unet(**AS_HYBRID).eval()
    assert model.load_timm_weights(theirs.state_dict()).missing == []
    x = torch.randn(2, 3, 32, 32)
    ours, auxiliary = model.bottleneck(model.encoder(x)[-1])
    torch.testing.assert_close(ours.flatten(2).transpose(1, 2), theirs.forward_features(x), rtol=1e-3, atol=1e-4)
    assert auxiliary == 0


# Weights of timm.


def test_a_hybrid_transformer_fills_encoder_and_transformer() -> None:
    model = trans_unet(**AS_HYBRID)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    found = model.load_timm_weights(hybrid(num_classes=5).state_dict())
    assert found.missing == []
    assert sorted(found.unused) == ["cls_token", "head.bias", "head.weight"]
    assert set(found.loaded) == {name for name in before if name.startswith(("encoder.", "bottleneck."))}
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(found.loaded)


def test_positions_are_interpolated_to_the_grid() -> None:
    weights = hybrid(img_size=64).state_dict()  # 4x4 and the class token
    model = trans_unet(**AS_HYBRID)  # 2x2
    model.load_timm_weights(weights)
    image = weights["pos_embed"][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(2, 2), mode="bicubic").flatten(2).transpose(1, 2)
    bottleneck = model.bottleneck
    assert isinstance(bottleneck, TransformerBottleneck)
    torch.testing.assert_close(bottleneck.pos_embed.detach(), expected)


def test_more_channels_take_the_weights_of_the_colours_in_turn() -> None:
    weights = hybrid().state_dict()
    model = trans_unet(4, **AS_HYBRID)
    assert model.load_timm_weights(weights).missing == []
    stem = weights["patch_embed.backbone.stem.conv.weight"]
    assert torch.equal(model.encoder.stem.conv.weight, stem[:, [0, 1, 2, 0]])


@torch.no_grad()
def test_a_grey_image_is_one_of_three_equal_colours() -> None:
    weights = hybrid().state_dict()
    colours, grey = trans_unet(3, **AS_HYBRID), trans_unet(1, **AS_HYBRID)
    colours.load_timm_weights(weights)
    grey.load_timm_weights(weights)
    x = torch.randn(1, 1, 32, 32)
    for ours, expected in zip(grey.encoder(x), colours.encoder(x.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(ours, expected)


def test_a_transformer_without_stages_fills_its_layers() -> None:
    """What does not fit is named: the patches of ViT-B/16 are no features of a ResNet."""
    theirs = timm.create_model("vit_base_patch16_224", img_size=32, **HYBRID)
    model = trans_unet()
    found = model.load_timm_weights(theirs.state_dict())
    assert "bottleneck.blocks.1.attn.qkv.weight" in found.loaded
    assert found.unused == ["cls_token", "patch_embed.proj.weight"]
    assert "encoder.stem.conv.weight" in found.missing


def test_pretrained_asks_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    weights = hybrid()

    def spy(name: str, *, pretrained: bool) -> Any:
        asked.append((name, pretrained))
        return weights

    monkeypatch.setattr(timm, "create_model", spy)
    model = trans_unet(pretrained=True, **AS_HYBRID)
    assert torch.equal(model.encoder.stem.conv.weight, weights.patch_embed.backbone.stem.conv.weight)
    trans_unet(pretrained="another", **AS_HYBRID)
    assert asked == [("vit_base_r50_s16_224.orig_in21k", True), ("another", True)]
    create_model(**model.config())  # a checkpoint is rebuilt without a download
    assert len(asked) == 2


def test_the_name_that_pretrained_stands_for_has_weights() -> None:
    from prosma_ops.models.trans_unet import PRETRAINED

    assert PRETRAINED in timm.list_pretrained("vit_base_r50_s16_224.*")


# The whole network.


@pytest.mark.parametrize("size", [(32, 32), (33, 70)], ids=str)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_shapes(in_channels: int, size: tuple[int, ...]) -> None:
    model_checks.shapes(trans_unet(in_channels), size)


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_gradients_reach_every_parameter(norm: str) -> None:
    model_checks.gradients_reach_every_parameter(trans_unet(norm=norm), (64, 32))


@pytest.mark.parametrize("gate", ["none", "attention", "proximal", "large_kernel"])
def test_a_checkpoint_rebuilds_it(gate: str) -> None:
    model = trans_unet(1, gate=gate, dropout=0.2)
    model_checks.can_be_rebuilt(model, SIZE)
    model_checks.gradients_reach_every_parameter(model, SIZE)


def test_one_map_without_deep_supervision() -> None:
    model = trans_unet(deep_supervision=False)
    model_checks.can_be_rebuilt(model, SIZE)
    (only,) = model_checks.output(model, model_checks.image(model, *SIZE)).logits
    assert only.shape == (2, 3, *SIZE)


def test_only_the_finest_head_predicts() -> None:
    model_checks.only_the_finest_head_predicts(trans_unet(), SIZE)


def test_channels_last_is_kept() -> None:
    model_checks.keeps_channels_last(trans_unet(), SIZE)


def test_bfloat16() -> None:
    model_checks.runs_in_bfloat16(trans_unet(), SIZE)


@pytest.mark.usefixtures("native_library")
def test_backends_agree() -> None:
    """With the gate that is an operator, and without dropout, whose numbers differ from run to run."""
    model_checks.backends_agree(trans_unet(gate="proximal", norm="group", dropout=0), SIZE)


def test_it_learns_a_batch_by_heart() -> None:
    model_checks.learns_by_heart(trans_unet(1, 2), SIZE, steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_it_compiles_whole(training: bool) -> None:
    model_checks.compiles_whole(trans_unet(dropout=0), (48, 64), training=training, backend="aot_eager")


@pytest.mark.slow
@INDUCTOR_WARNS
def test_it_compiles_whole_with_inductor() -> None:
    model_checks.compiles_whole(trans_unet(dropout=0), (48, 64), training=False, backend="inductor")


def test_it_goes_into_a_folder_and_back(tmp_path: Path) -> None:
    model_checks.goes_into_a_folder_and_back(trans_unet(1), SIZE, tmp_path)


def test_a_sliding_window() -> None:
    model_checks.slides_over_a_large_image(trans_unet(), SIZE)


@pytest.mark.slow
def test_two_processes_train_it(tmp_path: Path) -> None:
    model_checks.trains_in_two_processes(trans_unet(), SIZE, tmp_path)


@pytest.mark.slow
@ONNX_WARNS
@pytest.mark.parametrize("size", [(32, 32), (64, 48)], ids=str)
def test_onnxruntime_gives_the_same_logits(size: tuple[int, ...], tmp_path: Path) -> None:
    """At the size that the position embedding is learned for, and at another."""
    model_checks.agrees_with_onnxruntime(trans_unet(), size, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (64, 48)], ids=str)
def test_it_exports(size: tuple[int, ...]) -> None:
    model_checks.exports(trans_unet(), size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 3}, "spatial_dims is 3; trans_unet is for 2"),
        ({"preset": "huge"}, "preset is 'huge'"),
        ({"heads": 5}, "heads is 5; it must divide width, 24"),
        ({"widths": (8, 8)}, r"widths is \(8, 8\); it must have 4"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"image_size": 0}, "image_size is 0"),
        ({"gate": "open"}, "gate is 'open'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trans_unet(**options)

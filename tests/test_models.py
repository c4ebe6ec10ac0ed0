"""The skeleton and the convolutional models: shapes, sizes, heads, parameters, parts, config, and what they refuse."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets.attentionunet import AttentionBlock
from torch import Tensor, nn

import prosma_ops
from prosma_ops import models
from prosma_ops.models import AttentionGate, SegmentationOutput, create_model, list_models
from prosma_ops.models.layers import cropped, padded
from prosma_ops.nn import ProximalGate
from tests.small_models import CHANNELS, CLASSES, CONVOLUTIONAL, OPTIONS, images, made

SIZES = {2: [(16, 8), (9, 11), (5, 3)], 3: [(8, 8, 4), (5, 9, 7)]}
# Of the default preset, with one input channel and four classes.
PARAMETERS = {
    "unet": {2: 7_763_888, 3: 16_545_520},
    "attention_unet": {2: 7_895_656, 3: 16_652_712},
    "prosma_unet": {2: 8_074_028, 3: 16_819_360},
    "vq_unet": {2: 8_288_944, 3: 16_972_080},
    "synergy_net": {2: 9_212_592, 3: 17_846_576},
    "l2g_net": {2: 8_339_120, 3: 17_022_256},
}

each_model = pytest.mark.parametrize("name", CONVOLUTIONAL)
each_rank = pytest.mark.parametrize("spatial_dims", [2, 3])


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@each_model
@each_rank
def test_logits_of_the_images_size_and_a_map_a_scale(backend: str, name: str, spatial_dims: int) -> None:
    model = made(name, spatial_dims)
    for size in SIZES[spatial_dims]:
        output = model.train()(images(*size))
        assert isinstance(output, SegmentationOutput)
        half = tuple(-(-length // 2) for length in size)
        assert [values.shape for values in output.logits] == [(2, CLASSES, *half), (2, CLASSES, *size)]
        assert output.auxiliary.shape == ()
        assert (output.auxiliary > 0) == ("codes" in OPTIONS[name].get("bottleneck_options", {}))
        assert model.eval()(images(*size)).shape == (2, CLASSES, *size)


@each_rank
def test_the_image_is_continued_at_the_far_end(spatial_dims: int) -> None:
    """So that pixels stay where they are: an odd size is the corner of the next even one."""
    model = made("unet", spatial_dims).eval()
    size, whole = {2: ((9, 11), (12, 12)), 3: ((5, 9, 7), (8, 12, 8))}[spatial_dims]
    larger = padded(images(*size), (4,) * spatial_dims)
    assert larger.shape[2:] == whole
    assert torch.equal(larger[..., -1], larger[..., size[-1] - 1])
    assert torch.equal(model(images(*size)), cropped(model(larger), size))


@each_model
def test_evaluation_runs_no_head_but_the_finest(name: str) -> None:
    model, calls = made(name, widths=(4, 6, 8, 10)), Counter[int]()
    for number, head in enumerate(model.heads):
        head.register_forward_hook(lambda *_, number=number: calls.update([number]))
    model.eval()(images(8, 8))
    assert calls == {2: 1}
    model.train()(images(8, 8))
    assert calls == {0: 1, 1: 1, 2: 2}


@each_model
@each_rank
def test_parameters_of_the_default_preset(name: str, spatial_dims: int) -> None:
    model = create_model(name, in_channels=1, classes=4, spatial_dims=spatial_dims)
    assert count(model) == PARAMETERS[name][spatial_dims]


def test_the_parameters_of_unet_are_those_of_its_layers() -> None:
    """Two convolutions a level, each with a scale and a shift; transposed ones without bias; heads with bias."""
    widths, taps = (4, 6, 8), 9

    def block(inputs: int, outputs: int) -> int:
        return taps * outputs * (inputs + outputs) + 4 * outputs

    encoder = block(CHANNELS, 4) + block(4, 6) + block(6, 8)
    decoder = 4 * 8 * 6 + block(12, 6) + 4 * 6 * 4 + block(8, 4)
    heads = (6 + 1) * CLASSES + (4 + 1) * CLASSES
    assert count(made("unet", widths=widths)) == encoder + decoder + heads


@each_model
@each_rank
def test_config_is_plain_and_makes_the_model_again(name: str, spatial_dims: int) -> None:
    model = made(name, spatial_dims, norm="group", strides=[1, (2, 1, 2)[:spatial_dims], 2], preset="small").eval()
    config = json.loads(json.dumps(model.config()))
    other = create_model(**config).eval()
    assert config == other.config()
    assert type(other) is type(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images(*SIZES[spatial_dims][1])), other(images(*SIZES[spatial_dims][1])))


def test_config_is_a_copy() -> None:
    model = made("l2g_net")
    model.config()["bottleneck_options"]["codes"] = 5
    assert model.config()["bottleneck_options"]["codes"] == 8


def test_config_is_what_a_file_gives() -> None:
    model = made("prosma_unet", gate_options={"dilations": (1, 2)}, strides=(1, 2, 2))
    assert model.config()["gate_options"] == {"dilations": [1, 2]}
    assert json.loads(json.dumps(model.config())) == model.config()
    with pytest.raises(TypeError, match="not JSON serializable"):
        made("unet", deep_supervision=torch.tensor(True))


def test_the_names() -> None:
    assert list_models()[: len(CONVOLUTIONAL)] == list(CONVOLUTIONAL)
    assert prosma_ops.models is models
    for name in models.__all__:
        assert inspect.getdoc(getattr(models, name)), name


@pytest.mark.parametrize("gate", ["none", "attention", "proximal"])
@pytest.mark.parametrize("bottleneck", ["none", "codebook", "transport", "synergy"])
def test_parts_are_combined_by_keyword(gate: str, bottleneck: str) -> None:
    options = {} if bottleneck == "none" else {"codes": 8, "dim": 8}
    model = made("unet", gate=gate, bottleneck=bottleneck, bottleneck_options=options)
    output = model(images(9, 11))
    assert output.logits[-1].shape == (2, CLASSES, 9, 11)
    assert model.config()["gate"] == gate
    assert model.config()["bottleneck"] == bottleneck


def test_a_papers_model_takes_another_part_and_options_for_its_own() -> None:
    model = made("prosma_unet", gate_options={"initial_threshold": 0.5, "activation": "tanh"}, bottleneck="codebook")
    assert all(isinstance(gate, ProximalGate) and gate.activation == "tanh" for gate in model.gates)
    assert model.bottleneck.quantizer.codes == 1024
    plain = made("prosma_unet", gate="none", gate_options=None)
    assert not [module for module in plain.modules() if isinstance(module, ProximalGate)]


def test_thick_slices() -> None:
    """A volume whose slices are four times as far apart as its pixels: the first steps stay within a slice."""
    options = {"strides": [1, (1, 2, 2), (1, 2, 2), 2], "kernel_sizes": [(1, 3, 3), (1, 3, 3), 3, 3]}
    model = made("prosma_unet", 3, widths=(4, 6, 8, 10), **options)
    assert [values.shape[2:] for values in model(images(6, 16, 16)).logits] == [(6, 4, 4), (6, 8, 8), (6, 16, 16)]
    assert model.encoder.strides[-1] == (2, 8, 8)
    assert model.eval()(images(5, 13, 9)).shape == (2, CLASSES, 5, 13, 9)


def test_a_coarse_finest_level_is_enlarged_in_evaluation() -> None:
    model = made("unet", strides=(4, 2, 2))
    assert [values.shape[2:] for values in model(images(20, 9)).logits] == [(3, 2), (5, 3)]
    assert model.eval()(images(20, 9)).shape == (2, CLASSES, 20, 9)


def test_without_deep_supervision_there_is_one_head() -> None:
    model = made("unet", deep_supervision=False)
    assert len(model.heads) == 1
    assert [values.shape[2:] for values in model(images(9, 11)).logits] == [(9, 11)]
    assert create_model(**model.config()).config()["deep_supervision"] is False


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_norms(norm: str) -> None:
    model = made("prosma_unet", norm=norm, preset="small").eval()
    found = {type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}
    assert found == {"BatchNorm2d" if norm == "batch" else "GroupNorm"}
    assert model(images(8, 8)).isfinite().all()


def test_presets() -> None:
    small = create_model("unet", in_channels=1, classes=2, preset="small").config()["widths"]
    large = create_model("unet", in_channels=1, classes=2).config()["widths"]
    assert small == [16, 32, 64, 128, 256]
    assert large == [32, 64, 128, 256, 512]
    assert (
        create_model("unet", in_channels=1, classes=2, spatial_dims=3, preset="small").config()["widths"] == small[:4]
    )


def test_the_attention_gate_is_monais() -> None:
    """With gating on the skip's grid, and its biases, which a normalization undoes, at zero."""
    theirs = AttentionBlock(2, f_int=4, f_g=6, f_l=8)
    ours = AttentionGate(8, 6, hidden=4)
    layers = (
        (theirs.W_x[0], ours.project_skip[0]),
        (theirs.W_g[0], ours.project_gating),
        (theirs.psi[0], ours.attention[0]),
    )
    for their, our in layers:
        our.weight.data.copy_(their.conv.weight)
        nn.init.zeros_(their.conv.bias)
    skip, gating = torch.randn(2, 8, 5, 7), torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(ours(skip, gating), theirs(g=gating, x=skip))


def test_an_empty_batch() -> None:
    for name in CONVOLUTIONAL:
        assert made(name, norm="group").eval()(torch.zeros(0, CHANNELS, 9, 11)).shape == (0, CLASSES, 9, 11)


def test_a_metatensor_is_taken_for_its_values() -> None:
    model, x = made("prosma_unet").eval(), images(9, 11)
    found = model(MetaTensor(x))
    assert type(found) is Tensor
    assert torch.equal(found, model(x))


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"name": "u_net"}, ValueError, "^name is 'u_net'; it must be one of 'unet', "),
    ({"in_channels": 0}, ValueError, "^in_channels "),
    ({"classes": 2.0}, TypeError, "^classes "),
    ({"spatial_dims": 4}, ValueError, "^spatial_dims "),
    ({"preset": "tiny"}, ValueError, "^preset "),
    ({"widths": (8,)}, ValueError, "^widths "),
    ({"widths": (8, 0)}, ValueError, "^widths "),
    ({"strides": (1, 2)}, ValueError, "^strides has 2 entries; it must have 3"),
    ({"strides": (1, (2, 2, 2), 2)}, ValueError, "^strides is "),
    ({"kernel_sizes": 4}, ValueError, "^kernel_size "),
    ({"convolutions": 0}, ValueError, "^convolutions "),
    ({"norm": "layer"}, ValueError, "^norm "),
    ({"gate": "proximate"}, ValueError, "^gate "),
    ({"gate_options": {"dilations": (1,)}}, TypeError, "^gate_options has 'dilations'; gate='none' takes none"),
    ({"gate": "attention", "gate_options": {"norm": "group"}}, TypeError, "^gate_options .* takes hidden"),
    ({"bottleneck": "vq"}, ValueError, "^bottleneck "),
    ({"bottleneck": "codebook", "bottleneck_options": {"code": 5}}, TypeError, "^bottleneck_options has 'code'; "),
    ({"bottleneck": "synergy", "bottleneck_options": {"heads": 3, "dim": 8}}, ValueError, "^heads is 3; "),
    ({"bottleneck": "transport", "bottleneck_options": {"epsilon": 0}}, ValueError, "^epsilon "),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED, ids=str)
def test_what_no_model_is_made_of(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"name": "unet", "in_channels": CHANNELS, "classes": CLASSES, "widths": (4, 6, 8)}
    with pytest.raises(error, match=message):
        create_model(**(arguments | changes))


@pytest.mark.parametrize("shape", [(2, CHANNELS, 8), (2, CHANNELS, 8, 8, 8), (2, 5, 8, 8), (2, CHANNELS, 0, 8)])
def test_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^x "):
        made("unet")(torch.zeros(shape))

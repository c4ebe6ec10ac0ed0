"""MixedLogitLoss and MutationLoss: the formulas, the weights, the parameters, and what they refuse."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor, nn

from prosma_ops import map_names
from prosma_ops.nn import DeepSupervisionLoss, DiceCELoss, MixedLogitLoss, MutationLoss

CLASSES = 3
SIZES = {2: [(2, 2), (3, 4), (5, 7), (9, 11)], 3: [(1, 2, 2), (2, 3, 3), (3, 4, 4), (4, 5, 6)]}
OPERATORS = ("add", "multiply", "concat", "attention")


def data(dims: int = 2, dtype: torch.dtype = torch.float64, classes: int = CLASSES) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = [torch.randn(2, classes, *size, dtype=dtype, generator=generator) for size in SIZES[dims]]
    return logits, torch.randint(0, max(classes, 2), (2, *SIZES[dims][-1]), generator=generator)


def made(levels: int = 4, classes: int = CLASSES, **keywords: Any) -> MixedLogitLoss:
    """With alphas that differ, so that no two weights are alike."""
    torch.manual_seed(0)
    loss = MixedLogitLoss(levels, classes, **keywords)
    if loss.alpha is not None:
        nn.init.normal_(loss.alpha)
    return loss


def subsets(levels: int) -> list[tuple[int, ...]]:
    return [s for size in range(2, levels + 1) for s in itertools.combinations(range(levels), size)]


def plain_maps(loss: MixedLogitLoss, logits: list[Tensor], size: torch.Size, align_corners: bool) -> list[Tensor]:
    """All maps from the formulas, with the parameters of the loss."""
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    levels = [F.interpolate(values, size, mode=mode, align_corners=align_corners) for values in logits]
    parts = levels
    if loss.domain == "probabilities":
        parts = [z.softmax(1) if loss.activation == "softmax" else z.sigmoid() for z in levels]
    maps = list(levels)
    for operator in loss.operators:
        column = row = 0
        for number, subset in enumerate(subsets(len(logits))):
            chosen = [parts[i] for i in subset]
            if operator == "add":
                maps.append(torch.stack(chosen).sum(0))
            elif operator == "multiply":
                maps.append(torch.stack(chosen).prod(0))
            elif operator == "concat":
                width = loss.classes * len(subset)
                weight = loss.concat_weight[:, column : column + width]
                column += width
                mixed = torch.einsum("oc,bc...->bo...", weight, torch.cat(chosen, 1))
                maps.append(mixed + loss.concat_bias[:, number].reshape(1, -1, *(1,) * len(size)))
            else:
                first = sum(range(2, len(subset))) if loss.tied_attention else row
                row += len(subset)
                scores = [
                    torch.einsum("c,bc...->b...", loss.attention_weight[first + place], part)
                    + loss.attention_bias[first + place]
                    for place, part in enumerate(chosen)
                ]
                shares = torch.stack(scores).softmax(0)
                maps.append(sum(share.unsqueeze(1) * part for share, part in zip(shares, chosen, strict=True)))
    return maps


def plain_loss(loss: MixedLogitLoss, logits: list[Tensor], target: Tensor, align_corners: bool = False) -> Tensor:
    """The whole loss from the formulas, map by map."""
    dims = logits[0].dim() - 2
    maps = plain_maps(loss, logits, target.shape[-dims:], align_corners)
    weights = torch.ones(len(maps), dtype=maps[0].dtype)
    if loss.weighting != "fixed":
        weights = F.softplus(loss.alpha)
    if loss.weighting == "normalized":
        weights = len(maps) * math.log(2) * weights / weights.sum()
    valid = torch.ones_like(target, dtype=torch.bool) if loss.ignore_index is None else target != loss.ignore_index
    if target.dim() == dims + 2:
        truth, valid = target.where(valid, 0).to(maps[0]), valid.to(maps[0])
    elif loss.classes == 1:
        truth, valid = target.where(valid, 0).unsqueeze(1).to(maps[0]), valid.unsqueeze(1).to(maps[0])
    else:
        truth = F.one_hot(target.where(valid, 0).long(), loss.classes).movedim(-1, 1).to(maps[0])
        valid = valid.unsqueeze(1).to(maps[0])
    truth = truth * valid
    axes = (0, *range(2, 2 + dims))
    terms = []
    for weight, values in zip(weights, maps, strict=True):
        if loss.activation == "softmax":
            probability = values.softmax(1)
            entropy = -(values.log_softmax(1) * truth).sum() / valid.sum().clamp(min=1)
        else:
            probability = values.sigmoid()
            every = F.binary_cross_entropy_with_logits(values, truth, reduction="none")
            counted = valid.expand_as(every)
            entropy = (every * counted).sum() / counted.sum().clamp(min=1)
        square = (probability.square() * valid).sum(axes)
        scores = 1 - (2 * (probability * truth).sum(axes) + loss.smooth) / (square + truth.sum(axes) + loss.smooth)
        scores = scores if loss.include_background else scores[1:]
        terms.append(weight * (loss.cross_entropy * entropy + loss.dice * scores.mean()))
    return torch.stack(terms).sum()


def gradients(value: Tensor, loss: nn.Module, logits: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(value, [*logits, *loss.parameters()]))


def agree(loss: MixedLogitLoss, logits: list[Tensor], target: Tensor, **tolerance: float) -> None:
    logits = [values.detach().clone().requires_grad_() for values in logits]
    found, expected = loss(logits, target), plain_loss(loss, logits, target, loss.align_corners)
    torch.testing.assert_close(found, expected, **tolerance)
    names = [*map(str, range(len(logits))), *(name for name, _ in loss.named_parameters())]
    pairs = zip(names, gradients(found, loss, logits), gradients(expected, loss, logits), strict=True)
    for name, one, other in pairs:
        torch.testing.assert_close(one, other, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("weights", ["softplus", "normalized", "fixed"])
def test_all_48_maps_from_the_formulas(backend: str, weights: str, dims: int) -> None:
    loss = made(weights=weights).double()
    assert len(loss.names) == 48
    agree(loss, *data(dims), **EXACT)


@pytest.mark.parametrize(
    "keywords",
    [
        {"domain": "probabilities"},
        {"tied_attention": False},
        {"include_background": False, "smooth": 0.5},
        {"align_corners": True, "cross_entropy": 1.0, "dice": 0.0},
        {"ignore_index": 1, "cross_entropy": 0.0, "dice": 2.0},
        {"ignore_index": 255},
        {"operators": ("attention", "add")},
        {"operators": ("concat",), "levels": 3},
        {"operators": (), "weights": "fixed"},
        {"activation": "sigmoid"},
        {"activation": "sigmoid", "domain": "probabilities", "ignore_index": 2},
        {"activation": "sigmoid", "classes": 1},
        {"levels": 1},
        {"levels": 2},
    ],
    ids=str,
)
def test_every_keyword_from_the_formulas(backend: str, keywords: dict[str, Any]) -> None:
    loss = made(**keywords).double()
    logits, target = data(classes=loss.classes)
    if loss.ignore_index == 255:
        target[:, :, ::3] = 255
    agree(loss, logits[-loss.levels :], target, **EXACT)


@pytest.mark.parametrize("ignore_index", [None, 255, -1, 1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
def test_regions_that_overlap(backend: str, ignore_index: int | None, dtype: torch.dtype) -> None:
    loss = made(activation="sigmoid", operators=("add", "attention"), ignore_index=ignore_index).double()
    logits, _ = data()
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, 2, (2, CLASSES, *SIZES[2][-1]), generator=generator)
    if ignore_index == 255 or (ignore_index == -1 and dtype is not torch.uint8):
        target[:, 1, 2:5] = ignore_index
        target[0, :, 7:] = ignore_index
    logits = [values.requires_grad_() for values in logits]
    found, expected = loss(logits, target.to(dtype)), plain_loss(loss, logits, target)
    torch.testing.assert_close(found, expected, **EXACT)
    for one, other in zip(gradients(found, loss, logits), gradients(expected, loss, logits), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_float32(backend: str) -> None:
    agree(made(), *data(dtype=torch.float32), rtol=1e-4, atol=1e-5)


def test_a_target_with_a_channel_axis_is_the_same(backend: str) -> None:
    loss, (logits, target) = made(), data()
    assert torch.equal(loss(logits, target), loss(tuple(logits), target.unsqueeze(1)))
    assert torch.equal(loss(logits, target), loss(logits, target.to(torch.uint8)))


def test_one_level_may_come_without_a_list(backend: str) -> None:
    loss, (logits, target) = made(levels=1), data()
    assert torch.equal(loss(logits[-1], target), loss(logits[-1:], target))


def test_without_operators_it_is_deep_supervision(backend: str) -> None:
    loss, (logits, target) = MixedLogitLoss(4, CLASSES, operators=(), weights="fixed"), data()
    assert not list(loss.parameters())
    inner = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, squared_pred=True, lambda_dice=0.7, lambda_ce=0.3)
    other = DeepSupervisionLoss(inner, "same", resize="logits")
    torch.testing.assert_close(loss(logits, target), other(logits, target.unsqueeze(1)), **EXACT)


def test_mutation_is_every_sum_with_weight_one(backend: str) -> None:
    loss, (logits, target) = MutationLoss(4, CLASSES), data()
    assert not list(loss.parameters())
    assert loss.names == map_names(4, ["add"])
    assert loss.weights() == dict.fromkeys(loss.names, 1.0)
    torch.testing.assert_close(loss(logits, target), plain_loss(loss, logits, target), **EXACT)
    keywords = {"cross_entropy": 1.0, "dice": 0.5, "activation": "sigmoid", "include_background": False, "smooth": 1.0}
    keywords |= {"ignore_index": 2, "align_corners": True, "domain": "probabilities"}
    agree(MutationLoss(4, CLASSES, **keywords), logits, target, **EXACT)


@pytest.mark.parametrize("weights", ["softplus", "normalized", "fixed"])
def test_the_table_of_weights(weights: str) -> None:
    loss = MixedLogitLoss(3, CLASSES, weights=weights)
    start = 1.0 if weights == "fixed" else math.log(2)
    assert list(loss.weights()) == map_names(3, OPERATORS)
    assert loss.weights() == pytest.approx(dict.fromkeys(loss.names, start))
    if loss.alpha is None:
        return
    nn.init.normal_(loss.alpha)
    raw = F.softplus(loss.alpha.detach().double())
    expected = raw if weights == "softplus" else raw * len(raw) * math.log(2) / raw.sum()
    assert loss.weights() == pytest.approx(dict(zip(loss.names, expected.tolist(), strict=True)), rel=1e-6)
    total = sum(loss.weights().values())
    assert weights == "softplus" or total == pytest.approx(len(raw) * math.log(2))


def test_softplus_weights_only_fall(backend: str) -> None:
    """As the docstring says: the gradient of every alpha is above zero."""
    loss, (logits, target) = made(weights="softplus"), data()
    (gradient,) = torch.autograd.grad(loss(logits, target), loss.alpha)
    assert (gradient > 0).all()


def test_the_shapes_of_the_parameters() -> None:
    tied, free = MixedLogitLoss(4, CLASSES), MixedLogitLoss(4, CLASSES, tied_attention=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in tied.named_parameters()}
    assert shapes == {
        "alpha": (48,),
        "concat_weight": (CLASSES, CLASSES * 28),
        "concat_bias": (CLASSES, 11),
        "attention_weight": (9, CLASSES),
        "attention_bias": (9,),
    }
    assert free.attention_weight.shape == (28, CLASSES)
    assert set(MixedLogitLoss(1, CLASSES).state_dict()) == {"alpha"}
    assert set(MixedLogitLoss(4, CLASSES, operators=("concat",), weights="fixed").state_dict()) == {
        "concat_weight",
        "concat_bias",
    }


def test_the_parameters_start_as_convolutions_do() -> None:
    loss = MixedLogitLoss(4, 9)
    assert not loss.alpha.any()
    widths = [9 * len(subset) for subset in subsets(4)]
    for weight, bias in zip(loss.concat_weight.split(widths, 1), loss.concat_bias.unbind(1), strict=True):
        bound = weight.shape[1] ** -0.5
        assert 0.9 * bound < weight.abs().max() <= bound
        assert bias.abs().max() <= bound
    assert 0.25 < loss.attention_weight.abs().max() <= 1 / 3
    before = copy.deepcopy(loss.state_dict())
    loss.reset_parameters()
    assert not torch.equal(loss.concat_weight, before["concat_weight"])


def test_state_goes_into_a_file_and_back(backend: str) -> None:
    loss, (logits, target) = made(), data()
    buffer = io.BytesIO()
    torch.save(loss.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(1)
    other = MixedLogitLoss(4, CLASSES)
    assert not torch.equal(other(logits, target), loss(logits, target))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(logits, target), loss(logits, target))
    assert other.weights() == loss.weights()
    assert torch.equal(copy.deepcopy(loss)(logits, target), loss(logits, target))


def test_the_signature_is_the_contract() -> None:
    parameters = inspect.signature(MixedLogitLoss).parameters
    assert list(parameters)[:2] == ["levels", "classes"]
    assert {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == {
        "operators": OPERATORS,
        "weights": "softplus",
        "cross_entropy": 0.3,
        "dice": 0.7,
        "activation": "softmax",
        "domain": "logits",
        "tied_attention": True,
        "include_background": True,
        "ignore_index": None,
        "align_corners": False,
        "distributed": False,
        "smooth": 1e-5,
    }


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("domain", ["logits", "probabilities"])
def test_large_logits_give_no_nan(backend: str, activation: str, domain: str) -> None:
    loss, (logits, target) = made(activation=activation, domain=domain), data(dtype=torch.float32)
    logits = [(values * 1e4).clamp(-1e4, 1e4).requires_grad_() for values in logits]
    value = loss(logits, target)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(value, loss, logits))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_all_pixels_ignored_and_an_empty_batch_give_zero(backend: str, activation: str) -> None:
    loss, (logits, target) = made(activation=activation, ignore_index=255), data()
    for part, labels in ((logits, torch.full_like(target, 255)), ([values[:0] for values in logits], target[:0])):
        leaves = [values.clone().requires_grad_() for values in part]
        value = loss(leaves, labels)
        assert value == 0
        assert not any(gradient.any() for gradient in gradients(value, loss, leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_a_float32_loss(backend: str, dtype: torch.dtype) -> None:
    loss, (logits, target) = made(), data(dtype=torch.float32)
    half = [values.to(dtype).requires_grad_() for values in logits]
    found = loss(half, target)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, loss([values.float() for values in half], target), rtol=1e-5, atol=0)
    found.backward()
    assert all(values.grad.dtype is dtype and values.grad.isfinite().all() for values in half)
    assert all(parameter.grad.dtype is torch.float32 for parameter in loss.parameters())


def test_under_autocast(backend: str) -> None:
    loss, (_, target) = made(), data()
    heads = [nn.Conv2d(4, CLASSES, 1) for _ in SIZES[2]]
    features = [torch.randn(2, 4, *size) for size in SIZES[2]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = [head(values) for head, values in zip(heads, features, strict=True)]
        found = loss(logits, target)
    assert logits[0].dtype is torch.bfloat16
    assert found.dtype is torch.float32
    assert torch.equal(found, loss(logits, target))
    found.backward()
    assert all(parameter.grad.dtype is torch.float32 for parameter in loss.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_loss_has_the_dtype_of_the_logits(backend: str, dtype: torch.dtype) -> None:
    logits, target = data(dtype=dtype)
    assert made()(logits, target).dtype is dtype
    assert made(operators=("add",)).double()(logits, target).dtype is dtype


def test_metatensors(backend: str) -> None:
    loss, (logits, target) = made(), data()
    found = loss([MetaTensor(values) for values in logits], MetaTensor(target))
    assert type(found) is Tensor
    assert torch.equal(found, loss(logits, target))
    regions = torch.ones(2, CLASSES, *SIZES[2][-1])
    loss = made(activation="sigmoid", ignore_index=7)
    assert torch.equal(loss(logits, MetaTensor(regions)), loss(logits, regions))


@pytest.mark.parametrize("weights", ["softplus", "normalized", "fixed"])
def test_it_compiles_whole(weights: str) -> None:
    torch.compiler.reset()
    loss, (logits, target) = made(weights=weights, ignore_index=1), data()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = [values.requires_grad_() for values in logits]
    value, expected = compiled(leaves, target), loss(leaves, target)
    torch.testing.assert_close(value, expected)
    for one, other in zip(gradients(value, loss, leaves), gradients(expected, loss, leaves), strict=True):
        torch.testing.assert_close(one, other)
    torch.compiler.reset()


def test_it_is_the_same_on_every_run(backend: str) -> None:
    loss, (logits, target) = made(), data(dtype=torch.float32)
    leaves = [values.requires_grad_() for values in logits]
    runs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        value = loss(leaves, target)
        runs.append([value, *gradients(value, loss, leaves)])
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0], strict=True))


@pytest.mark.parametrize(
    ("keywords", "error", "name"),
    [
        ({"levels": 0}, ValueError, "levels"),
        ({"levels": 7}, ValueError, "levels"),
        ({"levels": 2.0}, TypeError, "levels"),
        ({"classes": 0}, ValueError, "classes"),
        ({"classes": 1}, ValueError, "classes"),
        ({"classes": 1, "activation": "sigmoid", "include_background": False}, ValueError, "classes"),
        ({"operators": ("add", "add")}, ValueError, "operators"),
        ({"operators": ("minus",)}, ValueError, "an entry of operators"),
        ({"weights": "equal"}, ValueError, "weights"),
        ({"activation": "tanh"}, ValueError, "activation"),
        ({"domain": "scores"}, ValueError, "domain"),
        ({"cross_entropy": -1.0}, ValueError, "cross_entropy"),
        ({"dice": "0.7"}, TypeError, "dice"),
        ({"smooth": 0}, ValueError, "smooth"),
    ],
    ids=str,
)
def test_what_it_cannot_be_made_of(keywords: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name} "):
        MixedLogitLoss(**({"levels": 4, "classes": CLASSES} | keywords))


def test_what_it_cannot_supervise(backend: str) -> None:
    loss, (logits, target) = made(), data()
    with pytest.raises(ValueError, match=r"^logits has 3 maps"):
        loss(logits[:3], target)
    with pytest.raises(ValueError, match=r"^logits has a map .* 3 classes"):
        loss([values[:, :2] for values in logits], target)
    with pytest.raises(TypeError, match=r"^logits is"):
        loss([None, *logits[1:]], target)
    with pytest.raises(ValueError, match=r"^target "):
        loss(logits, target[:1])
    with pytest.raises(ValueError, match=r"^target "):
        loss(logits, target + 1)
    with pytest.raises(TypeError, match=r"^target "):
        loss(logits, target.tolist())

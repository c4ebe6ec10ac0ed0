"""DiceLoss and DiceCELoss: the numbers of MONAI's losses over their keywords, and what goes beyond those."""

from __future__ import annotations

import functools
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai import losses as monai
from monai.data import MetaTensor
from torch import Tensor, nn

from prosma_ops.nn import DiceCELoss, DiceLoss, comparison
from tests.conftest import told

CLASSES = 4
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-6}, torch.float64: {"rtol": 1e-9, "atol": 1e-12}}
SHAPES = {2: (3, 5, 6), 3: (2, 3, 4, 5)}


def logits(dtype: torch.dtype = torch.float64, dims: int = 2, classes: int = CLASSES) -> Tensor:
    batch, *size = SHAPES[dims]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, classes, *size, dtype=dtype, generator=generator) * 2


def indices(dims: int = 2, classes: int = CLASSES, dtype: torch.dtype = torch.int64) -> Tensor:
    """Labels (B, 1, *size); the last class is absent from the first image."""
    batch, *size = SHAPES[dims]
    labels = torch.randint(0, classes, (batch, 1, *size), generator=torch.Generator().manual_seed(2))
    labels[0] = labels[0].clamp(max=classes - 2)
    return labels.to(dtype)


def regions(dims: int = 2, classes: int = CLASSES, dtype: torch.dtype = torch.float64) -> Tensor:
    """Zeros and ones in channels that overlap; some pixels are in none."""
    batch, *size = SHAPES[dims]
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(batch, classes, *size, generator=generator) < 0.35).to(dtype)


def result(loss: nn.Module, values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of a weighted sum of it."""
    values = values.detach().clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(single channel prediction|one channel).*")
        found = loss(values, target)
    weights = torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).reshape(found.shape)
    (gradient,) = torch.autograd.grad((found * weights).sum(), values)
    return found.detach(), gradient


def agree(
    ours: nn.Module, theirs: nn.Module, values: Tensor, target: Tensor, keywords: dict[str, Any], same: Any = None
) -> None:
    found, gradient = result(ours, values, target)
    expected, expected_gradient = result(theirs, values, target if same is None else same)
    assert found.shape == expected.shape, keywords
    for name, one, other in (("loss", found, expected), ("gradient", gradient, expected_gradient)):
        torch.testing.assert_close(
            one.to(other), other, **TOLERANCE[values.dtype], msg=lambda text, name=name: f"{name} of {keywords}: {text}"
        )


def grid(**choices: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    for chosen in product(*choices.values()):
        yield dict(zip(choices, chosen, strict=True))


@pytest.fixture(autouse=True)
def _monai_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI makes its one-hot target float32, and the norms of squared_pred with it: 1e-7 off in a float64 loss."""
    monkeypatch.setattr(monai.dice, "one_hot", functools.partial(monai.dice.one_hot, dtype=torch.float64))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keywords of every call of the operator."""
    found: list[dict[str, Any]] = []
    operator = comparison.mixed_logit_statistics

    def spy(*arguments: Any, **keywords: Any) -> Any:
        found.append(keywords)
        return operator(*arguments, **keywords)

    monkeypatch.setattr(comparison, "mixed_logit_statistics", spy)
    return found


DICE = {
    "include_background": (True, False),
    "squared_pred": (False, True),
    "jaccard": (False, True),
    "reduction": ("mean", "sum", "none"),
    "batch": (False, True),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_dice_of_class_indices(backend: str, calls: list[dict[str, Any]], activation: str, dims: int) -> None:
    runs = 0
    for keywords in grid(**DICE):
        keywords |= {activation: True, "to_onehot_y": True}
        agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(dims=dims), indices(dims), keywords)
        runs += 1
    assert len(calls) == runs


@pytest.mark.parametrize("dims", [2, 3])
def test_dice_of_regions(backend: str, calls: list[dict[str, Any]], dims: int) -> None:
    runs = 0
    for keywords in grid(**DICE):
        keywords |= {"sigmoid": True}
        agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(dims=dims), regions(dims), keywords)
        runs += 1
    assert len(calls) == runs


@pytest.mark.parametrize("activation", [{"softmax": True}, {"other_act": torch.tanh}, {}], ids=told)
def test_dice_that_is_not_fused(calls: list[dict[str, Any]], activation: dict[str, Any]) -> None:
    """Softmax beside channels, an activation of the user's, and none."""
    for keywords in grid(**DICE, to_onehot_y=(False, True)):
        if keywords["to_onehot_y"] and "softmax" in activation:
            continue
        keywords |= activation
        target = indices() if keywords["to_onehot_y"] else regions()
        agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(), target, keywords)
    assert not calls


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_dice_of_soft_labels(calls: list[dict[str, Any]], activation: str) -> None:
    target = torch.rand(logits().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for keywords in grid(**DICE):
        keywords |= {activation: True, "soft_label": True}
        agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(), target, keywords)
    assert not calls
    keywords = {"softmax": True, "to_onehot_y": True, "soft_label": True}
    agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(), indices(), keywords)
    assert len(calls) == 1


@pytest.mark.parametrize("smooth", [(0.0, 1e-5), (1e-5, 0.1), (1.0, 1.0)], ids=told)
def test_smoothing(backend: str, smooth: tuple[float, float]) -> None:
    for keywords in grid(squared_pred=(False, True), jaccard=(False, True), batch=(False, True)):
        keywords |= {"softmax": True, "to_onehot_y": True, "smooth_nr": smooth[0], "smooth_dr": smooth[1]}
        agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(), indices(), keywords)


@pytest.mark.parametrize(
    "weight", [2.0, 3, (0.0, 1.0, 2.5), [1.0, 0.2, 0.7, 2.0], torch.tensor([0.5, 1, 2, 4])], ids=told
)
def test_weights_of_classes(backend: str, weight: Any) -> None:
    background = not isinstance(weight, tuple)
    for keywords in grid(batch=(False, True), reduction=("mean", "sum", "none"), activation=("softmax", "sigmoid")):
        keywords |= {keywords.pop("activation"): True, "to_onehot_y": True}
        keywords |= {"weight": weight, "include_background": background}
        agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(), indices(), keywords)


@pytest.mark.parametrize("index", [0, 2, 255, -1, 7])
def test_ignored_pixels(backend: str, index: int) -> None:
    labels = indices()
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(5)) < 0.3] = index
    for keywords in grid(**(DICE | {"reduction": ("mean", "none")}), activation=("softmax", "sigmoid")):
        keywords |= {keywords.pop("activation"): True, "to_onehot_y": True, "ignore_index": index}
        agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(), labels, keywords)


@pytest.mark.parametrize("index", [0, 2, 255, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8], ids=told)
def test_ignored_pixels_of_regions(backend: str, calls: list[dict[str, Any]], index: int, dtype: torch.dtype) -> None:
    target = regions()
    for keywords in grid(**(DICE | {"reduction": ("mean", "none")})):
        keywords |= {"sigmoid": True, "ignore_index": index}
        agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(), target.to(dtype), keywords, same=target)
    assert calls
    for keywords in grid(squared_pred=(False, True), softmax=(False, True)):
        keywords |= {"ignore_index": index}
        agree(DiceLoss(**keywords), monai.DiceLoss(**keywords), logits(), target.to(dtype), keywords, same=target)


def test_an_ignored_index_that_the_labels_cannot_hold(backend: str) -> None:
    """uint8 labels have no -1; torch compares them with 255 then, which here is no label either."""
    loss, whole = DiceLoss(softmax=True, to_onehot_y=True, ignore_index=-1), DiceLoss(softmax=True, to_onehot_y=True)
    labels = indices(dtype=torch.uint8)
    assert torch.equal(loss(logits(), labels), whole(logits(), labels))
    plain = DiceLoss(to_onehot_y=True, ignore_index=-1)
    with pytest.raises(ValueError, match="255"):
        plain(logits(), labels.masked_fill(labels == 3, 255))


@pytest.mark.parametrize(
    "keywords", [{"sigmoid": True}, {"softmax": True}, {}, {"sigmoid": True, "weight": 3.0}], ids=told
)
def test_one_channel(backend: str, keywords: dict[str, Any]) -> None:
    target = regions(classes=1)
    for more in grid(include_background=(True, False), to_onehot_y=(False, True), batch=(False, True)):
        more |= keywords
        agree(DiceLoss(**more), monai.DiceLoss(**more), logits(classes=1), target, more)


@pytest.mark.parametrize("loss", [DiceLoss, DiceCELoss])
def test_one_channel_warns_of_keywords_that_do_nothing(loss: Callable[..., nn.Module]) -> None:
    with pytest.warns(UserWarning, match="softmax=True"):
        loss(softmax=True)(logits(classes=1), regions(classes=1))
    with pytest.warns(UserWarning, match="include_background=False"):
        loss(include_background=False)(logits(classes=1), regions(classes=1))


ENTROPY = {
    "weight": (None, torch.tensor([0.3, 1.0, 2.0, 0.5], dtype=torch.float64)),
    "label_smoothing": (0.0, 0.2),
    "include_background": (True, False),
    "batch": (False, True),
    "reduction": ("mean", "sum"),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_dice_and_cross_entropy(backend: str, calls: list[dict[str, Any]], activation: str, dims: int) -> None:
    passes = 1 if activation == "softmax" else 2
    for keywords in grid(**ENTROPY):
        keywords |= {activation: True, "to_onehot_y": True, "lambda_dice": 0.7, "lambda_ce": 0.3}
        calls.clear()
        agree(DiceCELoss(**keywords), monai.DiceCELoss(**keywords), logits(dims=dims), indices(dims), keywords)
        assert len(calls) == passes


@pytest.mark.parametrize(
    "keywords", [{"squared_pred": True}, {"jaccard": True}, {"squared_pred": True, "jaccard": True}]
)
def test_dice_and_cross_entropy_of_the_other_overlaps(backend: str, keywords: dict[str, Any]) -> None:
    for more in grid(weight=ENTROPY["weight"], batch=(False, True)):
        more |= keywords | {"softmax": True, "to_onehot_y": True}
        agree(DiceCELoss(**more), monai.DiceCELoss(**more), logits(), indices(), more)


@pytest.mark.parametrize("activation", [{"softmax": True}, {"sigmoid": True}, {"other_act": torch.tanh}, {}], ids=told)
def test_dice_and_cross_entropy_of_channels(backend: str, activation: dict[str, Any]) -> None:
    """Targets with channels are probabilities to the cross-entropy, hard or soft."""
    soft = torch.rand(logits().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).softmax(1)
    for target, is_soft in ((regions(), False), (soft, True)):
        for keywords in grid(**ENTROPY):
            keywords |= activation
            ours = DiceCELoss(**keywords, soft_label=is_soft)
            theirs = monai.DiceCELoss(**keywords)
            theirs.dice.soft_label = is_soft
            agree(ours, theirs, logits(), target, keywords)


@pytest.mark.parametrize("activation", [{"other_act": torch.tanh}, {}], ids=told)
def test_cross_entropy_of_class_indices_is_fused_whatever_dice_does(
    backend: str, calls: list[dict[str, Any]], activation: dict[str, Any]
) -> None:
    for keywords in grid(**ENTROPY):
        calls.clear()
        keywords |= activation | {"to_onehot_y": True}
        agree(DiceCELoss(**keywords), monai.DiceCELoss(**keywords), logits(), indices(), keywords)
        assert [call["activation"] for call in calls] == ["softmax"]


@pytest.mark.parametrize("weight", [None, torch.tensor([3.0], dtype=torch.float64)], ids=told)
@pytest.mark.parametrize("soft", [False, True])
def test_dice_and_binary_cross_entropy(backend: str, calls: list[dict[str, Any]], weight: Any, soft: bool) -> None:
    target = regions(classes=1)
    if soft:
        target = torch.rand(target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for keywords in grid(sigmoid=(True, False), reduction=("mean", "sum"), batch=(False, True)):
        calls.clear()
        keywords |= {"weight": weight}
        ours, theirs = DiceCELoss(**keywords, soft_label=soft), monai.DiceCELoss(**keywords)
        theirs.dice.soft_label = soft
        agree(ours, theirs, logits(classes=1), target, keywords)
        # Sums per class do not hold the positives' part of the cross-entropy alone, which a weight needs.
        assert len(calls) == (0 if soft or (weight is not None and not keywords["sigmoid"]) else 1)


def test_one_dimension_is_not_fused(calls: list[dict[str, Any]]) -> None:
    values, labels = torch.randn(2, 4, 30, dtype=torch.float64), torch.randint(0, 4, (2, 1, 30))
    for keywords in grid(**ENTROPY):
        keywords |= {"softmax": True, "to_onehot_y": True}
        agree(DiceCELoss(**keywords), monai.DiceCELoss(**keywords), values, labels, keywords)
    assert not calls


@pytest.mark.parametrize("ignored", [255, 2, -1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32], ids=told)
def test_ignored_pixels_in_both_parts(backend: str, ignored: int, dtype: torch.dtype) -> None:
    """MONAI's loss has no ignore_index for its cross-entropy: it is torch's here."""
    if ignored < 0 and dtype is torch.uint8:
        return
    labels = indices()
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(5)) < 0.3] = ignored

    class Expected(nn.Module):
        def __init__(self, **keywords: Any) -> None:
            super().__init__()
            self.keywords = keywords
            self.dice = monai.DiceLoss(True, True, softmax=True, weight=keywords["weight"], ignore_index=ignored)

        def forward(self, values: Tensor, target: Tensor) -> Tensor:
            entropy = F.cross_entropy(values, target[:, 0].long(), ignore_index=ignored, **self.keywords)
            return 2 * self.dice(values, target) + 0.5 * entropy

    for keywords in grid(weight=ENTROPY["weight"], label_smoothing=(0.0, 0.1)):
        ours = DiceCELoss(True, True, softmax=True, ignore_index=ignored, lambda_dice=2, lambda_ce=0.5, **keywords)
        agree(ours, Expected(**keywords), logits(), labels.to(dtype), keywords, same=labels)
        keywords |= {"other_act": lambda values: values.softmax(1)}
        plain = DiceCELoss(True, True, ignore_index=ignored, lambda_dice=2, lambda_ce=0.5, **keywords)
        agree(plain, ours, logits(), labels.to(dtype), keywords)


@pytest.mark.parametrize("dims", [2, 3])
def test_float32(backend: str, dims: int) -> None:
    for keywords in grid(activation=("softmax", "sigmoid"), batch=(False, True), squared_pred=(False, True)):
        keywords |= {keywords.pop("activation"): True, "to_onehot_y": True}
        agree(
            DiceCELoss(**keywords), monai.DiceCELoss(**keywords), logits(torch.float32, dims), indices(dims), keywords
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=told)
@pytest.mark.parametrize("keywords", [{"softmax": True}, {"sigmoid": True}, {"other_act": torch.tanh}, {}], ids=told)
def test_half_precision_gives_a_float32_loss(backend: str, dtype: torch.dtype, keywords: dict[str, Any]) -> None:
    values = logits(torch.float32).to(dtype).requires_grad_()
    loss = DiceCELoss(to_onehot_y=True, **keywords)
    found = loss(values, indices())
    found.backward()
    assert found.dtype is torch.float32
    assert values.grad.dtype is dtype
    torch.testing.assert_close(found, loss(values.float(), indices()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("keywords", [{"softmax": True}, {"sigmoid": True}, {"other_act": torch.tanh}], ids=told)
def test_under_autocast(backend: str, keywords: dict[str, Any]) -> None:
    layer = nn.Conv2d(3, CLASSES, 1)
    images = torch.randn(3, 3, 5, 6)
    loss = DiceCELoss(to_onehot_y=True, weight=[1.0, 2.0, 3.0, 4.0], label_smoothing=0.1, **keywords)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = layer(images)
        found = loss(values, indices())
    assert values.dtype is torch.bfloat16
    assert found.dtype is torch.float32
    assert torch.equal(found, loss(values, indices()))
    found.backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("loss", [DiceLoss, DiceCELoss])
@pytest.mark.parametrize("keywords", [{"softmax": True}, {"sigmoid": True}, {"other_act": torch.sigmoid}], ids=told)
def test_all_pixels_ignored_give_zero(backend: str, loss: Callable[..., nn.Module], keywords: dict[str, Any]) -> None:
    labels = torch.full_like(indices(), 255)
    for batch in (False, True):
        found, gradient = result(loss(to_onehot_y=True, ignore_index=255, batch=batch, **keywords), logits(), labels)
        assert found == 0
        assert not gradient.any()


@pytest.mark.parametrize("loss", [DiceLoss, DiceCELoss])
@pytest.mark.parametrize("keywords", [{"softmax": True}, {"sigmoid": True}, {}], ids=told)
def test_an_empty_batch_gives_zero(backend: str, loss: Callable[..., nn.Module], keywords: dict[str, Any]) -> None:
    for batch in (False, True):
        found, gradient = result(loss(to_onehot_y=True, batch=batch, **keywords), logits()[:0], indices()[:0])
        assert found == 0
        assert gradient.shape == (0, CLASSES, 5, 6)


def test_labels_without_a_channel_axis(backend: str) -> None:
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    assert torch.equal(loss(logits(), indices()[:, 0]), loss(logits(), indices()))


def test_metatensors(backend: str) -> None:
    for keywords in ({"softmax": True}, {}):
        loss = DiceCELoss(to_onehot_y=True, **keywords)
        found = loss(MetaTensor(logits()), MetaTensor(indices()))
        assert type(found) is Tensor
        assert torch.equal(found, loss(logits(), indices()))


@pytest.mark.parametrize("keywords", [{"softmax": True, "label_smoothing": 0.1}, {"sigmoid": True}, {}], ids=told)
def test_it_compiles_whole(keywords: dict[str, Any]) -> None:
    torch.compiler.reset()
    loss = DiceCELoss(to_onehot_y=True, weight=[1.0, 2.0, 3.0, 4.0], ignore_index=1, **keywords)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    agree(compiled, loss, logits(), indices(), keywords)
    torch.compiler.reset()


def test_its_second_derivative_is_right(backend: str) -> None:
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    values = logits()[:1, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: loss(v, indices()[:1, :, :2, :2]), (values,))


def test_weights_are_no_parameters_and_are_saved() -> None:
    loss = DiceCELoss(softmax=True, weight=[1.0, 2.0, 3.0, 4.0], include_background=False)
    assert not list(loss.parameters())
    buffer = io.BytesIO()
    torch.save(loss.state_dict(), buffer)
    buffer.seek(0)
    other = DiceCELoss(softmax=True, weight=[0.0] * 4, include_background=False)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.class_weight.tolist() == [1, 2, 3, 4]
    assert other.dice.class_weight.tolist() == [2, 3, 4]


@pytest.mark.parametrize(("ours", "theirs"), [(DiceLoss, monai.DiceLoss), (DiceCELoss, monai.DiceCELoss)])
def test_the_signature_is_that_of_monai(ours: type, theirs: type) -> None:
    """Names, order and defaults of theirs; ours may have more behind."""
    expected = [(p.name, p.default) for p in inspect.signature(theirs).parameters.values()]
    found = [(p.name, p.default) for p in inspect.signature(ours).parameters.values()]
    assert [(name, str(value)) for name, value in found[: len(expected)]] == [
        (name, str(getattr(value, "value", value))) for name, value in expected
    ]
    assert [name for name, _ in found[len(expected) :]] == ["soft_label", "ignore_index", "distributed"][
        -len(found) + len(expected) :
    ]


@pytest.mark.parametrize(
    ("keywords", "error", "name"),
    [
        ({"sigmoid": True, "softmax": True}, ValueError, "sigmoid, softmax and other_act"),
        ({"softmax": True, "other_act": torch.tanh}, ValueError, "sigmoid, softmax and other_act"),
        ({"other_act": "tanh"}, TypeError, "other_act"),
        ({"reduction": "median"}, ValueError, "reduction"),
        ({"smooth_nr": -1.0}, ValueError, "smooth_nr"),
        ({"smooth_dr": "0"}, TypeError, "smooth_dr"),
        ({"weight": [1.0, -1.0]}, ValueError, "weight"),
        ({"weight": torch.ones(2, 2)}, ValueError, "weight"),
    ],
    ids=told,
)
@pytest.mark.parametrize("loss", [DiceLoss, DiceCELoss])
def test_what_it_cannot_be_made_of(
    loss: Callable[..., nn.Module], keywords: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=f"^{name} "):
        loss(**keywords)


@pytest.mark.parametrize(
    ("keywords", "error", "name"),
    [
        ({"reduction": "none"}, ValueError, "reduction"),
        ({"lambda_dice": -0.1}, ValueError, "lambda_dice"),
        ({"lambda_ce": float("inf")}, ValueError, "lambda_ce"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing"),
        ({"label_smoothing": None}, TypeError, "label_smoothing"),
    ],
    ids=told,
)
def test_what_dice_and_cross_entropy_cannot_be_made_of(
    keywords: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=f"^{name} "):
        DiceCELoss(**keywords)


@pytest.mark.parametrize(
    ("keywords", "values", "target", "name"),
    [
        ({"to_onehot_y": False}, (2, 4, 5, 6), (2, 1, 5, 6), "target"),
        ({}, (2, 4, 5, 6), (2, 4, 5, 6), "target"),
        ({}, (2, 4, 5, 6), (3, 1, 5, 6), "target"),
        ({}, (2, 4, 5, 6), (2, 1, 5, 7), "target"),
        ({}, (2, 4, 5, 6), (2, 1, 1, 5, 6), "target"),
        ({}, (2, 4), (2, 1), "input"),
        ({}, (2, 4, 1, 1, 1, 1), (2, 1, 1, 1, 1, 1), "input"),
        ({"weight": [1.0, 2.0]}, (2, 4, 5, 6), (2, 1, 5, 6), "weight"),
        ({"to_onehot_y": False}, (2, 4, 5, 6), (2, 3, 5, 6), "target"),
    ],
    ids=told,
)
@pytest.mark.parametrize("loss", [DiceLoss, DiceCELoss])
@pytest.mark.parametrize("activation", [{"softmax": True}, {"other_act": torch.tanh}], ids=told)
def test_what_it_cannot_compare(
    loss: Callable[..., nn.Module],
    activation: dict[str, Any],
    keywords: dict[str, Any],
    values: tuple[int, ...],
    target: tuple[int, ...],
    name: str,
) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        loss(**({"to_onehot_y": True} | activation | keywords))(torch.randn(values), torch.zeros(target))


@pytest.mark.parametrize("activation", [{"softmax": True}, {"sigmoid": True}, {"other_act": torch.tanh}], ids=told)
@pytest.mark.parametrize("label", [4, 200, -1])
def test_labels_out_of_range(backend: str, activation: dict[str, Any], label: int) -> None:
    labels = indices()
    labels[1, 0, 2, 3] = label
    for loss in (DiceLoss, DiceCELoss):
        with pytest.raises(ValueError, match="target"):
            loss(to_onehot_y=True, **activation)(logits(), labels)


def test_other_things_than_tensors() -> None:
    with pytest.raises(TypeError, match=r"^target "):
        DiceLoss(softmax=True)(logits(), indices().numpy())
    with pytest.raises(TypeError, match=r"^input "):
        DiceLoss(softmax=True)([1.0], indices())
    with pytest.raises(TypeError, match=r"^input "):
        DiceLoss(softmax=True, to_onehot_y=True)(indices().expand(3, 4, 5, 6), indices())
    with pytest.raises(ValueError, match=r"^other_act's result "):
        DiceLoss(other_act=lambda values: values[:, :2], to_onehot_y=True)(logits(), indices())

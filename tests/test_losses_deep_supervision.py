"""DeepSupervisionLoss: MONAI's numbers with a shrunk target, and enlarged maps in one pass."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai import losses as monai
from monai.data import MetaTensor
from torch import Tensor, nn

from prosma_ops.nn import DeepSupervisionLoss, DiceCELoss, DiceLoss, comparison
from tests.conftest import told

CLASSES = 3
SIZES = {2: [(13, 16), (7, 8), (3, 4), (2, 2)], 3: [(6, 7, 8), (3, 4, 4), (2, 2, 2)]}
DICE_CE = {"softmax": True, "to_onehot_y": True}


def maps(dims: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Fine to coarse."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, CLASSES, *size, dtype=dtype, generator=generator) for size in SIZES[dims]]


def labels(dims: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """In float32, as MONAI can shrink them."""
    return torch.randint(0, CLASSES, (2, 1, *SIZES[dims][0]), generator=torch.Generator().manual_seed(2)).to(dtype)


def result(loss: nn.Module, values: list[Tensor], target: Tensor) -> tuple[Tensor, ...]:
    values = [tensor.detach().clone().requires_grad_() for tensor in values]
    found = loss(values, target)
    return found.detach(), *torch.autograd.grad(found, values)


def agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], **tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "weighting", [{}, {"weight_mode": "same"}, {"weight_mode": "two"}, {"weights": [3, 2, 1, 0.5]}]
)
@pytest.mark.parametrize("inner", ["DiceLoss", "DiceCELoss"])
def test_a_shrunk_target_gives_the_numbers_of_monai(
    backend: str, dims: int, weighting: dict[str, Any], inner: str
) -> None:
    ours = {"DiceLoss": DiceLoss, "DiceCELoss": DiceCELoss}[inner]
    loss = DeepSupervisionLoss(ours(**DICE_CE), **weighting)
    theirs = monai.DeepSupervisionLoss(getattr(monai, inner)(**DICE_CE), **weighting)
    expected = result(theirs, maps(dims), labels(dims))
    agree(result(loss, maps(dims), labels(dims)), expected, rtol=2e-5, atol=1e-6)
    agree(result(loss, maps(dims), labels(dims, torch.uint8)), expected, rtol=2e-5, atol=1e-6)
    coarse_first = result(loss, maps(dims)[::-1], labels(dims, torch.int64))
    agree((coarse_first[0], *coarse_first[:0:-1]), expected, rtol=2e-5, atol=1e-6)


def test_another_loss(backend: str) -> None:
    target = F.one_hot(labels()[:, 0].long(), CLASSES).movedim(-1, 1).float()
    loss, theirs = DeepSupervisionLoss(nn.MSELoss()), monai.DeepSupervisionLoss(nn.MSELoss())
    agree(result(loss, maps(), target), result(theirs, maps(), target))
    enlarged = sum(
        weight * F.mse_loss(F.interpolate(values, size=SIZES[2][0], mode="bilinear"), target)
        for weight, values in zip([1, 0.5, 0.25, 0.125], maps(), strict=True)
    )
    torch.testing.assert_close(DeepSupervisionLoss(nn.MSELoss(), resize="logits")(maps(), target), enlarged)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "keywords",
    [
        DICE_CE,
        DICE_CE | {"batch": True, "squared_pred": True, "label_smoothing": 0.1, "weight": [0.5, 1.0, 2.0]},
        {"sigmoid": True, "to_onehot_y": True, "ignore_index": 1},
        {"other_act": torch.tanh, "to_onehot_y": True, "include_background": False},
    ],
    ids=told,
)
def test_enlarged_maps(backend: str, dims: int, align_corners: bool, keywords: dict[str, Any]) -> None:
    inner = DiceCELoss(**keywords)

    class Expected(nn.Module):
        def forward(self, values: list[Tensor], target: Tensor) -> Tensor:
            mode = {2: "bilinear", 3: "trilinear"}[dims]
            return sum(
                weight * inner(F.interpolate(tensor, SIZES[dims][0], mode=mode, align_corners=align_corners), target)
                for weight, tensor in zip([1, 0.5, 0.25, 0.125], values, strict=False)
            )

    loss = DeepSupervisionLoss(inner, resize="logits", align_corners=align_corners)
    values, target = maps(dims, torch.float64), labels(dims)
    expected = result(Expected(), values, target)
    agree(result(loss, values, target), expected, rtol=1e-9, atol=1e-12)
    coarse_first = result(loss, values[::-1], target)
    agree((coarse_first[0], *coarse_first[:0:-1]), expected, rtol=1e-9, atol=1e-12)


def test_enlarged_maps_take_one_pass(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    operator = comparison.mixed_logit_statistics
    monkeypatch.setattr(
        comparison,
        "mixed_logit_statistics",
        lambda values, *rest, **k: counts.append(len(values)) or operator(values, *rest, **k),
    )
    DeepSupervisionLoss(resize="logits")(maps(), labels())
    assert counts == [4]


def test_reduction_none(backend: str) -> None:
    """An image and a class each: MONAI cannot add these up."""
    keywords = {"softmax": True, "to_onehot_y": True}
    for resize in ("logits", "target"):
        loss = DeepSupervisionLoss(DiceLoss(reduction="none", **keywords), resize=resize)
        whole = DeepSupervisionLoss(DiceLoss(**keywords), resize=resize)
        found = loss(maps(), labels())
        assert found.shape == (2, CLASSES, 1, 1)
        torch.testing.assert_close(found.mean(), whole(maps(), labels()))


@pytest.mark.parametrize("resize", ["logits", "target"])
def test_the_order_of_the_list(backend: str, resize: str) -> None:
    values, target = maps(), labels()
    auto = DeepSupervisionLoss(resize=resize)(values, target)
    given = {order: DeepSupervisionLoss(resize=resize, order=order) for order in ("fine_to_coarse", "coarse_to_fine")}
    assert torch.equal(given["fine_to_coarse"](values, target), auto)
    assert torch.equal(given["coarse_to_fine"](values[::-1], target), auto)
    assert not torch.allclose(given["coarse_to_fine"](values, target), auto)
    same_size = [torch.randn(2, CLASSES, 13, 16) for _ in range(3)]
    found = DeepSupervisionLoss(resize=resize)(same_size, target)
    assert torch.equal(found, given["fine_to_coarse"](same_size, target))


@pytest.mark.parametrize("resize", ["logits", "target"])
def test_one_map_is_the_loss_alone(backend: str, resize: str) -> None:
    loss, inner = DeepSupervisionLoss(resize=resize), DiceCELoss(**DICE_CE)
    expected = inner(maps()[0], labels())
    assert torch.equal(loss(maps()[0], labels()), expected)
    assert torch.equal(loss(maps()[:1], labels()), expected)
    assert torch.equal(loss(tuple(maps()[:1]), labels()), expected)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool], ids=told
)
def test_labels_of_every_dtype_shrink_alike(dtype: torch.dtype) -> None:
    loss, values = DeepSupervisionLoss(), maps()
    target = labels().clamp(max=1)
    assert torch.equal(loss(values, target.to(dtype)), loss(values, target))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 16, 31, 64])
def test_the_nearest_pixel_is_that_of_torch(length: int) -> None:
    from prosma_ops.nn.deep_supervision import nearest

    values = torch.rand(2, 1, 17, 23)
    expected = F.interpolate(values, size=(length, length + 3), mode="nearest-exact")
    assert torch.equal(nearest(values, (length, length + 3)), expected)


@pytest.mark.parametrize("resize", ["logits", "target"])
def test_dtypes_and_subclasses(backend: str, resize: str) -> None:
    loss = DeepSupervisionLoss(resize=resize)
    plain = loss(maps(), labels())
    half = loss([values.bfloat16() for values in maps()], labels())
    assert half.dtype is torch.float32
    torch.testing.assert_close(half, plain, rtol=0.02, atol=0)
    assert loss(maps(dtype=torch.float64), labels()).dtype is torch.float64
    found = loss([MetaTensor(values) for values in maps()], MetaTensor(labels()))
    assert type(found) is Tensor
    assert torch.equal(found, plain)


@pytest.mark.parametrize("resize", ["logits", "target"])
def test_all_pixels_ignored_and_an_empty_batch_give_zero(backend: str, resize: str) -> None:
    loss = DeepSupervisionLoss(DiceCELoss(ignore_index=9, **DICE_CE), resize=resize)
    for values, target in ((maps(), torch.full_like(labels(), 9)), ([m[:0] for m in maps()], labels()[:0])):
        found, *gradients = result(loss, values, target)
        assert found == 0
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("resize", ["logits", "target"])
def test_it_compiles_whole(resize: str) -> None:
    torch.compiler.reset()
    loss = DeepSupervisionLoss(resize=resize)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    agree(result(compiled, maps(), labels()), result(loss, maps(), labels()))
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("keywords", "error", "name"),
    [
        ({"weight_mode": "linear"}, ValueError, "weight_mode"),
        ({"resize": "both"}, ValueError, "resize"),
        ({"order": "finest"}, ValueError, "order"),
        ({"weights": [1, -1]}, ValueError, "weights"),
        ({"weights": ["1"]}, TypeError, "weights"),
    ],
    ids=told,
)
def test_what_it_cannot_be_made_of(keywords: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name} "):
        DeepSupervisionLoss(**keywords)


def test_what_it_cannot_sum() -> None:
    with pytest.raises(ValueError, match=r"^weights has 2 "):
        DeepSupervisionLoss(weights=[1, 0.5])(maps(), labels())
    with pytest.raises(ValueError, match=r"^input is empty"):
        DeepSupervisionLoss()([], labels())
    with pytest.raises(ValueError, match=r"^input has maps of .* order"):
        DeepSupervisionLoss()([maps()[1], maps()[0], maps()[2]], labels())
    with pytest.raises(TypeError, match=r"^input "):
        DeepSupervisionLoss()([None, maps()[0]], labels())
    for resize in ("logits", "target"):
        with pytest.raises(ValueError, match=r"^input has maps of shapes|^target "):
            DeepSupervisionLoss(resize=resize)([maps()[0], maps()[1][:1]], labels())


def test_the_weights_of_monai() -> None:
    for mode in ("exp", "same", "two"):
        for levels in range(1, 8):
            ours, theirs = DeepSupervisionLoss(weight_mode=mode), monai.DeepSupervisionLoss(None, weight_mode=mode)
            assert ours.get_weights(levels) == theirs.get_weights(levels)
    assert DeepSupervisionLoss(weights=[4, 2, 1]).get_weights(2) == [4, 2]


def test_nothing_warns(backend: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeepSupervisionLoss(resize="logits")(maps(), labels())

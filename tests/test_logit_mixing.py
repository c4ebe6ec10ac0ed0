"""mixed_logit_statistics computes what LoMix writes: all 48 maps from the formulas, and the numbers at the edges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prosma_ops
from prosma_ops import errors, map_names, mixed_logit_statistics
from prosma_ops.reference import logit_mixing as reference
from prosma_ops.testing import Problem, compare, parity
from prosma_ops.testing.logit_mixing import PARAMETERS, example
from prosma_ops.testing.parity import Implementation

SUMS = ("cross_entropy", "intersection", "probability", "square")


def changed(problem: Problem, **inputs: Tensor) -> Problem:
    return replace(problem, inputs=dict(problem.inputs) | inputs)


# LoMix, written from the formulas, one map after the other, with torch's own losses.


def maps_of_lomix(levels: list[Tensor], size: tuple[int, int], parameters: dict[str, Tensor], domain: str) -> Iterator:
    """(name, map), each by its own rule."""
    z = [F.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in levels]
    p = z if domain == "logits" else [F.softmax(each, dim=1) for each in z]
    classes, count = z[0].shape[1], len(z)
    yield from ((str(number), each) for number, each in enumerate(z))
    subsets = [s for n in range(2, count + 1) for s in itertools.combinations(range(count), n)]
    for s in subsets:
        yield f"add({','.join(map(str, s))})", torch.stack([p[i] for i in s]).sum(dim=0)
    for s in subsets:
        yield f"multiply({','.join(map(str, s))})", torch.stack([p[i] for i in s]).prod(dim=0)
    column = 0
    for number, s in enumerate(subsets):
        kernel = parameters["concat_weight"][:, column : column + classes * len(s)]
        column += classes * len(s)
        bias = parameters["concat_bias"][:, number]
        name = f"concat({','.join(map(str, s))})"
        yield name, F.conv2d(torch.cat([p[i] for i in s], dim=1), kernel[:, :, None, None], bias)
    row = 0
    for s in subsets:
        scores = []
        for i in s:
            vector, bias = parameters["attention_weight"][row], parameters["attention_bias"][row]
            scores.append(F.conv2d(p[i], vector[None, :, None, None], bias[None]))
            row += 1
        shares = F.softmax(torch.cat(scores, dim=1), dim=1)
        name = f"attention({','.join(map(str, s))})"
        yield name, sum(shares[:, k : k + 1] * p[i] for k, i in enumerate(s))


def plain_losses(values: Tensor, labels: Tensor, ignore_index: int | None) -> Tensor:
    """0.3 CE + 0.7 Dice: batch-wise, squared denominator, smooth 1e-5, background included."""
    classes, kept = values.shape[1], torch.ones_like(labels, dtype=torch.bool)
    if ignore_index is not None:
        kept = labels != ignore_index
    cross_entropy = F.cross_entropy(values, labels, ignore_index=-100 if ignore_index is None else ignore_index)
    p = F.softmax(values, dim=1).movedim(1, -1)[kept]
    y = F.one_hot(labels[kept], classes).to(p)
    dice = 1 - (2 * (p * y).sum(dim=0) + 1e-5) / (p.square().sum(dim=0) + y.sum(dim=0) + 1e-5)
    return 0.3 * cross_entropy + 0.7 * dice.mean()


def losses_of(statistics: prosma_ops.LogitStatistics) -> Tensor:
    """The same of every map, from the sums: (U,)."""
    pixels = statistics.pixels.clamp(min=1)
    denominator = statistics.square + statistics.target + 1e-5
    dice = 1 - (2 * statistics.intersection + 1e-5) / denominator
    return 0.3 * statistics.cross_entropy.sum(dim=-1) / pixels + 0.7 * dice.mean(dim=-1)


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("domain", ["logits", "probabilities"])
def test_all_48_maps_of_lomix(implementation: Implementation, domain: str, ignore_index: int | None) -> None:
    problem = example((2, 4, 16, 16), ((2, 2), (4, 4), (8, 8), (16, 16)), torch.float64, ignore_index=ignore_index)
    labels = problem.inputs["target"]
    results = []
    for ours in (True, False):
        levels = [problem.inputs[f"level{i}"].clone().requires_grad_() for i in range(4)]
        parameters = {name: problem.inputs[name].clone().requires_grad_() for name in PARAMETERS}
        alpha = torch.linspace(-1, 1, 48, dtype=torch.float64, requires_grad=True)
        if ours:
            settings = {"domain": domain, "ignore_index": ignore_index}
            names = map_names(4, ("add", "multiply", "concat", "attention"))
            losses = losses_of(mixed_logit_statistics(levels, labels.to(torch.uint8), **parameters, **settings))
        else:
            names, values = zip(*maps_of_lomix(levels, (16, 16), parameters, domain), strict=True)
            losses = torch.stack([plain_losses(each, labels, ignore_index) for each in values])
        loss = (F.softplus(alpha) * losses).sum()
        inputs = [*levels, *parameters.values(), alpha]
        results.append((list(names), losses.detach(), torch.autograd.grad(loss, inputs)))
    (names, losses, gradients), (expected_names, expected_losses, expected_gradients) = results
    assert names == expected_names
    assert len(names) == 48
    torch.testing.assert_close(losses, expected_losses, rtol=1e-9, atol=1e-9)
    for found, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_names_are_those_of_the_rows() -> None:
    assert map_names(1, ("add", "concat")) == ["0"]
    assert map_names(3, ("multiply",)) == ["0", "1", "2", *(f"multiply({s})" for s in ("0,1", "0,2", "1,2", "0,1,2"))]
    assert map_names(2, ()) == ["0", "1"]
    assert [len(map_names(levels)) for levels in range(1, 7)] == [1, 6, 19, 48, 109, 234]


def test_the_written_gradient_is_that_of_autograd() -> None:
    """The reference's gradient formulas against autograd through the reference's forward, to float64 rounding."""
    variants = [
        {"log_probability": True},
        {"domain": "probabilities", "ignore_index": 255, "per_sample": True},
        {"activation": "sigmoid", "regions": True},
        {"activation": "sigmoid", "domain": "probabilities", "align_corners": True},
    ]
    sizes = [((2, 3, 7, 6), ((2, 2), (4, 6), (9, 5))), ((1, 2, 4, 5, 3), ((2, 1, 2), (4, 5, 3)))]
    for (size, levels), changes in itertools.product(sizes, variants):
        problem = example(size, levels, torch.float64, **changes)
        expected = parity.evaluate(problem, problem.definition)
        with prosma_ops.use_backend("reference"):
            found = parity.evaluate(problem, problem.function)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-12, atol=1e-12, msg=f"{name} of {changes}")


# Up-sampling.


def pixel_by_pixel(level: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """The up-sampled map, read off through the sums: one image a pixel, every other pixel ignored."""
    pixels = math.prod(size)
    target = torch.full((pixels, pixels), 9, dtype=torch.uint8).fill_diagonal_(0).reshape(pixels, *size)
    levels = [level.expand(pixels, *level.shape[1:])]
    settings: dict[str, Any] = {"activation": "sigmoid", "per_sample": True, "align_corners": align_corners}
    p = mixed_logit_statistics(levels, target, operators=(), ignore_index=9, **settings).probability
    return p.logit().reshape(size)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("coarse", "size"),
    [
        *[((3, 4), (7, 9)), ((1, 1), (4, 5)), ((5, 2), (5, 9)), ((7, 6), (4, 5)), ((1, 6), (3, 1)), ((4, 4), (16, 16))],
        *[((2, 3, 2), (5, 4, 3)), ((1, 1, 1), (2, 3, 2)), ((2, 3, 4), (2, 3, 4)), ((5, 3, 4), (3, 4, 5))],
    ],
    ids=str,
)
def test_upsampling_is_that_of_torch(
    implementation: Implementation, coarse: tuple[int, ...], size: tuple[int, ...], align_corners: bool
) -> None:
    mode = "bilinear" if len(size) == 2 else "trilinear"
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 3e-6)):
        level = torch.randn(1, 1, *coarse, dtype=dtype)
        expected = F.interpolate(level, size=size, mode=mode, align_corners=align_corners)[0, 0]
        found = pixel_by_pixel(level, size, align_corners)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_a_level_of_full_size_is_taken_as_it_is(implementation: Implementation) -> None:
    """The same numbers as if every level had been up-sampled before."""
    problem = example((2, 3, 12, 10), ((3, 2), (6, 5)), torch.float64)
    levels = [problem.inputs["level0"], problem.inputs["level1"]]
    enlarged = [F.interpolate(level, size=(12, 10), mode="bilinear") for level in levels]
    others = {name: problem.inputs[name] for name in PARAMETERS}
    low = mixed_logit_statistics(levels, problem.inputs["target"], **others)
    high = mixed_logit_statistics(enlarged, problem.inputs["target"], **others)
    for name in SUMS:
        torch.testing.assert_close(getattr(low, name), getattr(high, name), rtol=1e-12, atol=1e-12)


# Targets.

WIDTHS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("width", [*WIDTHS, torch.float64], ids=str)
def test_labels_of_every_dtype_give_the_same_bits(
    implementation: Implementation, width: torch.dtype, activation: str
) -> None:
    problem = example((2, 5, 9, 11), ((3, 4), (9, 11)), activation=activation, ignore_index=100)
    expected = parity.evaluate(problem, problem.function)
    other = changed(problem, target=problem.inputs["target"].to(width))
    for name, values in parity.evaluate(other, other.function).items():
        assert torch.equal(values, expected[name]), name


def test_a_target_with_a_channel_axis(implementation: Implementation) -> None:
    for activation, classes in (("softmax", 3), ("sigmoid", 3), ("sigmoid", 1)):
        problem = example((2, classes, 5, 6), ((2, 3), (5, 6)), activation=activation)
        with_axis = changed(problem, target=problem.inputs["target"].unsqueeze(1))
        expected = parity.evaluate(problem, problem.function)
        for name, values in parity.evaluate(with_axis, with_axis.function).items():
            assert torch.equal(values, expected[name]), name


def test_regions_without_overlap_are_class_indices(implementation: Implementation) -> None:
    problem = example((2, 3, 5, 6), ((2, 3), (5, 6)), activation="sigmoid")
    one_hot = F.one_hot(problem.inputs["target"], 3).movedim(-1, 1)
    regions = changed(problem, target=one_hot)
    expected = parity.evaluate(problem, problem.function)
    for name, values in parity.evaluate(regions, regions.function).items():
        torch.testing.assert_close(values, expected[name], rtol=1e-6, atol=1e-5)


def test_counts(implementation: Implementation) -> None:
    target = torch.tensor([[[0, 1, 1], [255, 2, 0]], [[2, 2, 2], [255, 255, 1]]], dtype=torch.uint8)
    levels = [torch.randn(2, 4, 1, 2)]
    whole = mixed_logit_statistics(levels, target, operators=(), ignore_index=255)
    assert whole.target.tolist() == [2, 3, 4, 0]
    assert (whole.pixels.tolist(), whole.invalid.tolist(), whole.log_probability) == (9, 0, None)
    each = mixed_logit_statistics(levels, target, operators=(), ignore_index=255, per_sample=True)
    assert each.target.tolist() == [[2, 2, 1, 0], [0, 1, 3, 0]]
    assert (each.pixels.tolist(), each.invalid.tolist()) == ([5, 4], [0, 0])
    for name in SUMS:
        torch.testing.assert_close(getattr(each, name).sum(dim=0), getattr(whole, name))


def test_regions_may_ignore_channel_by_channel(implementation: Implementation) -> None:
    """A pixel counts as long as one of its channels does."""
    target = torch.tensor([[[[0, 1, 9, 9]], [[9, 1, 9, 0]]]])
    logits = torch.full((1, 2, 1, 4), math.log(3.0))
    found = mixed_logit_statistics([logits], target, operators=(), activation="sigmoid", ignore_index=9)
    assert (found.target.tolist(), found.pixels.item()) == ([1, 1], 3)
    torch.testing.assert_close(found.probability, torch.tensor([[1.5, 1.5]]))
    torch.testing.assert_close(found.intersection, torch.tensor([[0.75, 0.75]]))
    expected = math.log(4.0) + math.log(4.0 / 3.0)
    torch.testing.assert_close(found.cross_entropy, torch.tensor([[expected, expected]]))


# Labels that are no class.

WRONG = {
    "above": (torch.tensor(3), "softmax", 3),
    "far above in uint8": (torch.tensor(255, dtype=torch.uint8), "softmax", 3),
    "negative": (torch.tensor(-1), "softmax", 3),
    "negative in int8": (torch.tensor(-1, dtype=torch.int8), "sigmoid", 3),
    "beyond 32 bits": (torch.tensor((1 << 32) + 1), "softmax", 3),
    "a fraction": (torch.tensor(1.5), "softmax", 3),
    "a fraction in half precision": (torch.tensor(0.5, dtype=torch.float16), "softmax", 3),
    "NaN": (torch.tensor(math.nan), "softmax", 3),
    "infinity": (torch.tensor(math.inf, dtype=torch.float64), "sigmoid", 3),
    "2 beside one class": (torch.tensor(2), "sigmoid", 1),
}


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are kept until somebody asks, as on a GPU."""
    monkeypatch.setattr(errors, "raises_at_once", lambda device: False)
    monkeypatch.setattr(errors, "_flags", errors.Flags())


def spoiled(wrong: Tensor, classes: int) -> tuple[list[Tensor], Tensor]:
    target = torch.randint(0, max(classes, 2), (2, 5, 6)).to(wrong.dtype)
    target[1, 2:4, 3] = wrong
    return [torch.randn(2, classes, 2, 3), torch.randn(2, classes, 5, 6)], target


@pytest.mark.parametrize(("wrong", "activation", "classes"), WRONG.values(), ids=WRONG)
def test_a_label_that_is_no_class_raises(
    implementation: Implementation, wrong: Tensor, activation: str, classes: int
) -> None:
    levels, target = spoiled(wrong, classes)
    allowed = "0 or 1" if classes == 1 else "a whole number from 0 to 2"
    with pytest.raises(ValueError, match=f"target has labels that are no class; each must be {allowed}$"):
        mixed_logit_statistics(levels, target, operators=("add",), activation=activation)
    leaf = levels[0].requires_grad_()
    with pytest.raises(ValueError, match="or ignore_index = 77"):
        mixed_logit_statistics([leaf], target, operators=(), activation=activation, ignore_index=77)


@pytest.mark.parametrize(("wrong", "activation", "classes"), WRONG.values(), ids=WRONG)
def test_on_a_gpu_it_counts_nowhere_but_in_invalid(
    implementation: Implementation, deferred: None, wrong: Tensor, activation: str, classes: int
) -> None:
    levels, target = spoiled(wrong, classes)
    found = mixed_logit_statistics(levels, target, operators=("add",), activation=activation, per_sample=True)
    with pytest.raises(ValueError, match="target has labels that are no class"):
        prosma_ops.check_errors()
    assert found.invalid.tolist() == [0, 2]
    without = target.long().clone()
    without[1, 2:4, 3] = 99
    settings: dict[str, Any] = {"operators": ("add",), "activation": activation, "ignore_index": 99}
    expected = mixed_logit_statistics(levels, without, per_sample=True, **settings)
    for name in (*SUMS, "target", "pixels"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.pixels.tolist() == [30, 28]


def test_a_region_that_is_neither_zero_nor_one(implementation: Implementation, deferred: None) -> None:
    target = torch.zeros(2, 3, 4, 5)
    target[0, 1, 2, 3], target[0, 2, 2, 3] = 0.5, 2
    found = mixed_logit_statistics([torch.randn(2, 3, 4, 5)], target, operators=(), activation="sigmoid")
    assert found.invalid.item() == 2
    assert found.pixels.item() == 40
    with pytest.raises(ValueError, match="each must be 0 or 1"):
        prosma_ops.check_errors()


def test_a_uint8_of_255_is_not_an_ignore_index_of_minus_one(implementation: Implementation) -> None:
    target = torch.full((1, 2, 2), 255, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no class"):
        mixed_logit_statistics([torch.randn(1, 3, 2, 2)], target, operators=(), ignore_index=-1)


def test_an_ignore_index_that_no_label_can_have(implementation: Implementation) -> None:
    levels, target = [torch.randn(1, 3, 2, 2)], torch.ones(1, 2, 2, dtype=torch.uint8)
    expected = mixed_logit_statistics(levels, target, operators=())
    for ignore_index in (-1, 1000, 1 << 40, -(1 << 40)):
        found = mixed_logit_statistics(levels, target, operators=(), ignore_index=ignore_index)
        assert torch.equal(found.cross_entropy, expected.cross_entropy)
        assert found.pixels.item() == 4


# The edges.


@pytest.mark.parametrize("changes", [{}, {"domain": "probabilities"}, {"activation": "sigmoid"}], ids=str)
def test_huge_logits(implementation: Implementation, changes: dict[str, Any]) -> None:
    """+-1e4, where products of four reach 1e16: no NaN, no infinity, the numbers of float64."""
    problem = example((1, 3, 8, 8), ((1, 1), (2, 2), (4, 4), (8, 8)), **changes)
    problem = changed(problem, **{f"level{i}": 1e4 * problem.inputs[f"level{i}"].sign() for i in range(4)})
    # On a grid, so that float32 holds the maps themselves: one unit of rounding at 1e4 is a thousandth of a logit.
    learned = [name for name in problem.inputs if name.startswith(("concat", "attention"))]
    problem = changed(problem, **{name: (64 * problem.inputs[name]).round() / 64 for name in learned})
    expected = parity.expectation(problem)
    for name, values in parity.evaluate(problem, problem.function).items():
        assert values.isfinite().all(), name
        if name in (*SUMS, "target", "pixels"):
            verdict = compare(values, expected.reference[name], expected.eager(name))
            assert verdict.ok, f"{name}: {verdict.reason}"


def test_everything_ignored_is_zero(implementation: Implementation) -> None:
    for changes in ({}, {"domain": "probabilities"}, {"activation": "sigmoid", "per_sample": True}):
        problem = example((2, 3, 5, 6), ((2, 3), (5, 6)), ignore_index=255, ignored=1.0, **changes)
        for name, values in parity.evaluate(problem, problem.function).items():
            assert not values.any(), (name, changes)


def test_a_nan_at_an_ignored_pixel_reaches_nothing(implementation: Implementation) -> None:
    for changes in ({}, {"domain": "probabilities"}, {"activation": "sigmoid"}):
        problem = example((1, 3, 4, 5), ((4, 5), (4, 5)), ignore_index=255, **changes)
        problem.inputs["target"][0, 1, 2] = 255
        expected = parity.evaluate(problem, problem.function)
        level = problem.inputs["level0"].clone()
        level[0, :, 1, 2] = math.nan
        for name, values in parity.evaluate(changed(problem, level0=level), problem.function).items():
            assert torch.equal(values, expected[name]), (name, changes)


def test_a_nan_that_only_ignored_pixels_see_reaches_nothing(implementation: Implementation) -> None:
    """In a coarse level's first row, when all rows that are interpolated from it are ignored."""
    for changes in ({}, {"domain": "probabilities"}, {"activation": "sigmoid"}):
        problem = example((1, 3, 8, 8), ((2, 2), (4, 4)), ignore_index=255, **changes)
        problem.inputs["target"][0, :4] = 255
        expected = parity.evaluate(problem, problem.function)
        level = problem.inputs["level1"].clone()
        level[0, :, 0, 0] = math.nan
        for name, values in parity.evaluate(changed(problem, level1=level), problem.function).items():
            assert torch.equal(values, expected[name]), (name, changes)


def test_a_nan_elsewhere_is_not_hidden(implementation: Implementation) -> None:
    problem = example((2, 3, 4, 5), ((4, 5), (4, 5)), per_sample=True)
    level = problem.inputs["level0"].clone()
    level[1, 2, 1, 2] = math.nan
    found = parity.evaluate(changed(problem, level0=level), problem.function)
    rows = [0, *range(2, 6)]  # the second map is the other level
    assert found["probability"][1, rows].isnan().all()
    assert found["probability"][0].isfinite().all()
    assert found["probability"][1, 1].isfinite().all()
    assert found["gradient of level0"][1, :, 1, 2].isnan().any()


def test_a_class_that_is_absent(implementation: Implementation) -> None:
    problem = example((2, 4, 5, 6), ((2, 3), (5, 6)), absent=2)
    found = parity.evaluate(problem, problem.function)
    assert found["target"][2] == 0
    assert not found["cross_entropy"][:, 2].any()
    assert not found["intersection"][:, 2].any()
    assert (found["probability"][:, 2] > 0).all()


def test_one_class(implementation: Implementation) -> None:
    logits, target = torch.randn(2, 1, 6, 7), torch.randint(0, 2, (2, 6, 7))
    found = mixed_logit_statistics([logits], target, operators=(), activation="sigmoid")
    y = target.unsqueeze(1).float()
    expected = F.binary_cross_entropy_with_logits(logits, y, reduction="sum").reshape(1, 1)
    torch.testing.assert_close(found.cross_entropy, expected)
    torch.testing.assert_close(found.intersection, (logits.sigmoid() * y).sum().reshape(1, 1))
    assert found.target.tolist() == [int(target.sum())]


def test_an_empty_batch(implementation: Implementation) -> None:
    for per_sample, changes in itertools.product((False, True), ({}, {"activation": "sigmoid"})):
        levels = [torch.randn(0, 3, 2, 2, requires_grad=True), torch.randn(0, 3, 4, 5, requires_grad=True)]
        weight = torch.randn(3, 6, requires_grad=True)
        target = torch.zeros(0, 4, 5, dtype=torch.uint8)
        settings: dict[str, Any] = {"operators": ("concat",), "per_sample": per_sample, **changes}
        found = mixed_logit_statistics(levels, target, concat_weight=weight, **settings)
        assert found.cross_entropy.shape == ((0, 3, 3) if per_sample else (3, 3))
        assert not found.cross_entropy.any()
        assert found.pixels.sum() == 0
        gradients = torch.autograd.grad(found.cross_entropy.sum(), [*levels, weight])
        assert [gradient.shape for gradient in gradients] == [(0, 3, 2, 2), (0, 3, 4, 5), (3, 6)]
        assert not gradients[2].any()


def test_the_reference_transposes_what_it_interpolates() -> None:
    """<up(a), b> = <a, up^T(b)>, and up^T is torch's own backward."""
    for align_corners, (coarse, size) in itertools.product(
        (False, True), [((3, 4), (7, 5)), ((5, 6), (4, 4)), ((2, 3, 1), (4, 3, 5))]
    ):
        level = torch.randn(2, 3, *coarse, dtype=torch.float64, requires_grad=True)
        up = reference.upsample(level, size, align_corners)
        grad = torch.randn_like(up)
        (expected,) = torch.autograd.grad(up, level, grad)
        found = reference.upsample_transposed(grad, coarse, align_corners)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)

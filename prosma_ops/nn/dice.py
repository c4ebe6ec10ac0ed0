"""DiceLoss and DiceCELoss: MONAI's losses by their keywords, from one pass over the logits.

With p the activation of the logits, y the target and sums over pixels (over the batch too, with `batch`),
Dice    = 1 - (2 sum p y + smooth_nr) / (sum p + sum y + smooth_dr)                     squared_pred: p^2 and y^2 below
Jaccard = 1 - (2 sum p y + smooth_nr) / (2 (sum p + sum y - sum p y) + smooth_dr)
and the cross-entropy with class weights w and smoothing s, over pixels i labelled y_i, is
sum_i ((1 - s) w_{y_i} (-log p_{y_i}) + s / C sum_c w_c (-log p_c)) / sum_i w_{y_i}.
All are functions of a few sums a class. `mixed_logit_statistics` forms those in one pass and makes the logits' gradient
in another: neither probabilities nor a one-hot target are ever stored. What these sums do not hold (soft targets, no
activation or one of the user's, a weight of positives) is computed in plain PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks
from .comparison import Comparison
from .layers import number
from .reductions import sum_over_processes

REDUCTIONS = ("mean", "sum", "none")


class Overlap(NamedTuple):
    """What Dice and Jaccard are made of, each (B, maps, classes) or, over the batch, (maps, classes)."""

    shared: Tensor
    predicted: Tensor
    actual: Tensor


class DiceLoss(nn.Module):
    """One minus the Dice coefficient, or the Jaccard index: MONAI's `DiceLoss`, keyword by keyword.

    Fused where `softmax` stands beside class indices, or `sigmoid` beside class indices or a target of zeros and ones
    with the logits' channels; 2-D and 3-D. Everything else is computed in plain PyTorch, to the same numbers.

    Arguments:
        include_background: whether channel 0 counts.
        to_onehot_y: the target is class indices, (B, 1, *size) or (B, *size); else it has the channels of the logits.
        sigmoid, softmax, other_act: the activation, at most one of them.
        squared_pred: squares in the denominator.
        jaccard: the Jaccard index instead of Dice.
        reduction: "mean" or "sum" over classes (and images), or "none": (B, C, 1, 1), with `batch` (C, 1, 1).
        smooth_nr, smooth_dr: added to the numerator and to the denominator.
        batch: sum over the batch before dividing; else each image has its own Dice.
        weight: a factor a class, one number or as many as there are classes that count.
        soft_label: the target with channels holds values between 0 and 1. Without it they must be 0 or 1: another
            value raises on the CPU, and on a GPU counts nowhere and is reported by `prosma_ops.check_errors()`.
        ignore_index: the class index whose pixels count nowhere. In a target with channels these are the pixels where
            that channel is set, or, if there is no such channel, where none is.
        distributed: the batch is spread over the processes of torch.distributed: the loss is that of the whole batch
            in each process, and its gradients are right after DistributedDataParallel has averaged them.

    The loss is float32, or float64 for float64 logits, under autocast too.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | float | Tensor | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
        *,
        distributed: bool = False,
    ) -> None:
        super().__init__()
        if other_act is not None and not callable(other_act):
            raise TypeError(f"other_act is a {type(other_act).__name__}; it must be callable or None")
        if sigmoid + softmax + (other_act is not None) > 1:
            raise ValueError("sigmoid, softmax and other_act are alternatives; at most one of them may be given")
        checks.choice("reduction", reduction, REDUCTIONS)
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.activation = "sigmoid" if sigmoid else "softmax" if softmax else None
        self.other_act = other_act
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.reduction = reduction
        self.smooth_nr = number("smooth_nr", smooth_nr)
        self.smooth_dr = number("smooth_dr", smooth_dr)
        self.batch = batch
        self.soft_label = soft_label
        self.ignore_index = ignore_index
        self.distributed = distributed
        self.register_buffer("class_weight", class_weights(weight))
        self.class_weight: Tensor | None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (B, C, *size) and their target -> the loss."""
        same_size(input, target)
        return self.per_map([input], target).squeeze(0)

    def per_map(self, maps: Sequence[Tensor], target: Tensor, align_corners: bool = False) -> Tensor:
        """The loss of each map (B, C, *any size), up-sampled to the target's size: in one pass where fused."""
        return self.of(self.compare(maps, target, align_corners))

    def compare(
        self, maps: Sequence[Tensor], target: Tensor, align_corners: bool = False, log_probability: bool = False
    ) -> Comparison:
        comparison = Comparison(
            maps,
            target,
            to_onehot_y=self.to_onehot_y,
            soft_label=self.soft_label,
            ignore_index=self.ignore_index,
            per_sample=not self.batch,
            log_probability=log_probability,
            align_corners=align_corners,
        )
        if comparison.classes == 1:
            self._warn_of_one_channel()
        return comparison

    def of(self, comparison: Comparison) -> Tensor:
        """The loss of each map of a comparison."""
        scores = self._scores(comparison)
        if self.reduction == "none":
            by_map = scores if self.batch else scores.transpose(0, 1)
            return by_map.reshape(*by_map.shape, *(1,) * len(comparison.size))
        axes = (-1,) if self.batch else (0, -1)
        total, count = scores.sum(axes), scores.shape[-1] * (1 if self.batch else scores.shape[0])
        if self.distributed and not self.batch:
            total, counts = sum_over_processes(total, torch.full_like(total, count))
            return total if self.reduction == "sum" else mean(total, counts)
        return total if self.reduction == "sum" else total / max(count, 1)

    def _scores(self, comparison: Comparison) -> Tensor:
        """The weighted loss of each class, (B, maps, classes) or, over the batch, (maps, classes)."""
        if comparison.fused(self.activation):
            overlap = self._fused_overlap(comparison)
        else:
            overlap = self._plain_overlap(comparison)
        if self.distributed and self.batch:
            overlap = Overlap(*sum_over_processes(*overlap))
        shared, predicted, actual = overlap
        denominator = 2 * (predicted + actual - shared) if self.jaccard else predicted + actual
        scores = 1 - (2 * shared + self.smooth_nr) / (denominator + self.smooth_dr)
        classes = scores.shape[-1]
        if self.class_weight is None or classes == 1:
            return scores
        if self.class_weight.dim() == 1 and len(self.class_weight) != classes:
            raise ValueError(f"weight has {len(self.class_weight)} entries; it must have {classes}: one a class")
        return scores * self.class_weight.to(scores)

    def _fused_overlap(self, comparison: Comparison) -> Overlap:
        assert self.activation is not None
        sums = comparison.statistics(self.activation)
        predicted = sums.square if self.squared_pred else sums.probability
        actual = sums.target.unsqueeze(-2).to(predicted).expand_as(predicted)
        start = self._first_class(comparison)
        overlap = Overlap(sums.intersection, predicted, actual)
        return Overlap(*(values[..., start:] for values in overlap)) if start else overlap

    def _plain_overlap(self, comparison: Comparison) -> Overlap:
        start, valid = self._first_class(comparison), comparison.valid()
        target = comparison.channels()[:, start:]
        target = target if valid is None else target * valid
        found = []
        for values in comparison.full_size():
            prediction = self._activated(values)[:, start:]
            if prediction.shape != target.shape:
                checks.wrong_shape("other_act's result", prediction, target.shape, "the shape of its argument")
            found.append(self._overlap(prediction if valid is None else prediction * valid, target))
        return Overlap(*(torch.stack(values, dim=-2) for values in zip(*found, strict=True)))

    def _overlap(self, prediction: Tensor, target: Tensor) -> Overlap:
        axes = (*((0,) if self.batch else ()), *range(2, prediction.dim()))
        if self.soft_label and not self.squared_pred:
            # Min(p, y) in place of p y, as (|p| + |y| - |p - y|) / 2: right for soft targets too.
            predicted, actual = prediction.abs().sum(axes), target.abs().sum(axes)
            return Overlap((predicted + actual - (prediction - target).abs().sum(axes)) / 2, predicted, actual)
        shared = (prediction * target).sum(axes)
        if self.squared_pred:
            return Overlap(shared, prediction.square().sum(axes), target.square().sum(axes))
        return Overlap(shared, prediction.sum(axes), target.sum(axes))

    def _activated(self, values: Tensor) -> Tensor:
        if self.other_act is not None:
            return self.other_act(values).to(values.dtype)
        if self.activation == "sigmoid":
            return values.sigmoid()
        return values.softmax(1) if self.activation == "softmax" and values.shape[1] > 1 else values

    def _warn_of_one_channel(self) -> None:
        idle = {
            "softmax=True": self.activation == "softmax",
            "to_onehot_y=True": self.to_onehot_y,
            "include_background=False": not self.include_background,
        }
        for keyword, given in idle.items():
            if given:
                warnings.warn(f"input has one channel: {keyword} does nothing", stacklevel=2)

    def _first_class(self, comparison: Comparison) -> int:
        return 0 if self.include_background or comparison.classes == 1 else 1

    def extra_repr(self) -> str:
        return f"activation={self.other_act or self.activation}, batch={self.batch}, reduction={self.reduction!r}"


class DiceCELoss(nn.Module):
    """lambda_dice * Dice + lambda_ce * cross-entropy: MONAI's `DiceCELoss`, keyword by keyword.

    The activation is that of Dice alone. The cross-entropy is the softmax one where there are two channels or more, and
    the binary one, with `weight` as the weight of positives, where there is one. With softmax and class indices both
    parts come from one pass; with sigmoid and class indices from one pass each.

    Arguments:
        include_background: whether channel 0 counts in Dice; it does in the cross-entropy.
        reduction: "mean" or "sum".
        weight: a factor a class, in both; that of channel 0 is left out of Dice with the background.
        lambda_dice, lambda_ce: factors of the two parts.
        label_smoothing: of the softmax cross-entropy, 0 to 1.
        soft_label, ignore_index, distributed, and all others: as in `DiceLoss`; `ignore_index` holds for both parts.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | float | Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        *,
        soft_label: bool = False,
        ignore_index: int | None = None,
        distributed: bool = False,
    ) -> None:
        super().__init__()
        checks.choice("reduction", reduction, ("mean", "sum"))
        factors = class_weights(weight)
        of_dice = factors[1:] if factors is not None and factors.dim() == 1 and not include_background else factors
        self.dice = DiceLoss(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            squared_pred=squared_pred,
            jaccard=jaccard,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            batch=batch,
            weight=of_dice,
            soft_label=soft_label,
            ignore_index=ignore_index,
            distributed=distributed,
        )
        self.lambda_dice = number("lambda_dice", lambda_dice)
        self.lambda_ce = number("lambda_ce", lambda_ce)
        self.label_smoothing = number("label_smoothing", label_smoothing, largest=1)
        self.register_buffer("class_weight", factors)
        self.class_weight: Tensor | None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (B, C, *size) and their target -> the loss."""
        same_size(input, target)
        return self.per_map([input], target).squeeze(0)

    def per_map(self, maps: Sequence[Tensor], target: Tensor, align_corners: bool = False) -> Tensor:
        """The loss of each map (B, C, *any size), up-sampled to the target's size: in one pass where fused."""
        comparison = self.dice.compare(maps, target, align_corners, log_probability=self.label_smoothing > 0)
        overlap = self.dice.of(comparison)
        return scaled(overlap, self.lambda_dice) + scaled(self._cross_entropy(comparison), self.lambda_ce)

    def _cross_entropy(self, comparison: Comparison) -> Tensor:
        weight = self._weight(comparison)
        if comparison.classes > 1:
            fused = comparison.fused("softmax")
            total, count = (self._softmax_sums if fused else self._plain_softmax)(comparison, weight)
        else:
            fused = comparison.fused("sigmoid") and weight is None
            total, count = (self._sigmoid_sums if fused else self._plain_sigmoid)(comparison, weight)
        if self.dice.distributed:
            total, count = sum_over_processes(total, count)
        return total if self.dice.reduction == "sum" else mean(total, count)

    def _softmax_sums(self, comparison: Comparison, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """From the operator's sums: the total of each map, (maps,), and what a mean divides by."""
        sums = comparison.statistics("softmax")
        entropy, log_probability, target = sums.cross_entropy, sums.log_probability, sums.target.to(comparison.dtype)
        if weight is not None:
            entropy, target = entropy * weight, target * weight
        total = _total(entropy, comparison)
        if log_probability is not None:
            if weight is not None:
                log_probability = log_probability * weight
            spread = self.label_smoothing / comparison.classes * _total(log_probability, comparison)
            total = (1 - self.label_smoothing) * total - spread
        return total, target.sum()

    def _sigmoid_sums(self, comparison: Comparison, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        sums = comparison.statistics("sigmoid")
        return _total(sums.cross_entropy, comparison), sums.pixels.sum().to(comparison.dtype)

    def _plain_softmax(self, comparison: Comparison, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        valid = comparison.valid()
        target = comparison.labels() if comparison.indices else comparison.channels()
        counted = torch.ones_like(comparison.target[:, 0], dtype=comparison.dtype) if valid is None else valid[:, 0]
        totals = [
            F.cross_entropy(values, target, weight, reduction="none", label_smoothing=self.label_smoothing)
            for values in comparison.full_size()
        ]
        total = torch.stack([(values * counted).sum() for values in totals])
        # Class weights count in the divisor where each pixel has one class: so it is in torch.
        return total, (counted if weight is None or not comparison.indices else counted * weight[target]).sum()

    def _plain_sigmoid(self, comparison: Comparison, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        valid, target = comparison.valid(), comparison.channels()
        counted = torch.ones_like(target) if valid is None else valid
        totals = [
            F.binary_cross_entropy_with_logits(values, target, reduction="none", pos_weight=weight)
            for values in comparison.full_size()
        ]
        return torch.stack([(values * counted).sum() for values in totals]), counted.sum()

    def _weight(self, comparison: Comparison) -> Tensor | None:
        """The class weights, one a channel, in the dtype of the loss."""
        if self.class_weight is None:
            return None
        if self.class_weight.dim() == 1 and len(self.class_weight) != comparison.classes:
            raise ValueError(
                f"weight has {len(self.class_weight)} entries; it must have {comparison.classes}: one a channel"
            )
        return self.class_weight.to(comparison.target.device, comparison.dtype).expand(comparison.classes)

    def extra_repr(self) -> str:
        return f"lambda_dice={self.lambda_dice}, lambda_ce={self.lambda_ce}, label_smoothing={self.label_smoothing}"


def class_weights(weight: Any) -> Tensor | None:
    if weight is None:
        return None
    found = torch.as_tensor(weight).detach().clone()
    found = found if found.is_floating_point() else found.float()
    if found.dim() > 1:
        raise ValueError(f"weight has shape {tuple(found.shape)}; it must be one number or one a class")
    if not (found >= 0).all():
        raise ValueError(f"weight is {weight!r}; no entry may be below 0")
    return found


def same_size(input: Any, target: Any) -> None:
    """One map has the size of its target: a loss that resized it silently would hide a mistake."""
    if not isinstance(input, Tensor) or not isinstance(target, Tensor):
        for name, value in (("input", input), ("target", target)):
            checks.plain(name, value)
    if input.dim() > 2 and target.shape[-(input.dim() - 2) :] != input.shape[2:]:
        raise ValueError(
            f"target has shape {tuple(target.shape)} and input {tuple(input.shape)}; their spatial sizes must agree"
        )


def scaled(values: Tensor, factor: float) -> Tensor:
    """factor * values; each step of a small loss costs about 10 us, forward and backward."""
    return values if factor == 1 else factor * values


def mean(total: Tensor, count: Tensor) -> Tensor:
    """total / count, and 0 where nothing counts."""
    return total / torch.where(count > 0, count, 1)


def _total(values: Tensor, comparison: Comparison) -> Tensor:
    """Of each map, over its classes and images."""
    return values.sum((0, -1) if comparison.per_sample else -1)

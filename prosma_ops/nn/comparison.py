"""Maps of logits beside a target, as the overlap losses ask about them.

A target is class indices, (B, 1, ...) or (B, ...), or it has a channel for each of the logits. Whether the operator can
form the sums under an activation is decided by the shapes and the keywords, never by the target's values: nothing here
waits for a device. What it cannot form is computed from `channels`, `valid` and the resized maps in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import checks
from ..ops.logit_mixing import MOST_CLASSES, LogitStatistics, mixed_logit_statistics
from ..reference.precision import compute_dtype

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
# Marks what is ignored in a target of zeros and ones: a value that every dtype holds and no channel means.
MARK = 127


class Comparison:
    """Some maps (B, C, *size_l), up-sampled to the target's size, beside that target."""

    def __init__(
        self,
        maps: Sequence[Tensor],
        target: Tensor,
        *,
        to_onehot_y: bool,
        soft_label: bool,
        ignore_index: int | None,
        per_sample: bool,
        log_probability: bool = False,
        align_corners: bool = False,
    ) -> None:
        self.maps = [checks.plain("input", values) for values in maps]
        self.target = checks.plain("target", target)
        self.ignore_index = ignore_index
        self.per_sample = per_sample
        self.log_probability = log_probability
        self.align_corners = align_corners
        self._check(to_onehot_y)
        first = self.maps[0]
        self.classes = first.shape[1]
        self.dtype = compute_dtype(first.dtype)
        self.size = self.target.shape[-(first.dim() - 2) :]
        if self.target.dim() < first.dim():
            self.target = self.target.unsqueeze(1)
        self.indices = self.target.shape[1] == 1
        self.soft = soft_label and not (self.indices and self.classes > 1)
        self._statistics: dict[str, LogitStatistics] = {}

    def fused(self, activation: str | None) -> bool:
        """Whether the operator forms the sums under this activation."""
        if activation is None or self.soft or len(self.size) == 1 or self.classes > MOST_CLASSES:
            return False
        return activation == "sigmoid" or (self.classes > 1 and self.indices)

    def statistics(self, activation: str) -> LogitStatistics:
        """The operator's sums, which it forms once however often they are asked for."""
        if activation not in self._statistics:
            target, ignore_index = self.target, self.ignore_index
            valid = self.valid()
            if valid is not None and not self.indices:
                target = target.to(torch.uint8) if target.dtype is torch.bool else target
                target, ignore_index = target.masked_fill(valid == 0, MARK), MARK
            self._statistics[activation] = mixed_logit_statistics(
                self.maps,
                target,
                operators=(),
                activation=activation,
                ignore_index=ignore_index,
                align_corners=self.align_corners,
                per_sample=self.per_sample,
                log_probability=self.log_probability and activation == "softmax",
            )
        return self._statistics[activation]

    def full_size(self) -> list[Tensor]:
        """The maps up-sampled, in the dtype that losses are computed in."""
        return [resized(values.to(self.dtype), self.size, self.align_corners) for values in self.maps]

    def labels(self) -> Tensor:
        """The class indices (B, *size), int64; what is ignored is 0."""
        labels = self.target[:, 0].long()
        valid = self.valid()
        labels = labels if valid is None else labels.masked_fill(valid[:, 0] == 0, 0)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = labels[(labels < 0) | (labels >= self.classes)]
            if wrong.numel():
                raise ValueError(f"target holds the label {int(wrong[0])}; labels must be 0 to {self.classes - 1}")
        return labels

    def channels(self) -> Tensor:
        """The target with a channel for each of the logits, (B, C, *size)."""
        if not self.indices or self.classes == 1:
            return self.target.to(self.dtype)
        labels = self.labels().unsqueeze(1)
        one_hot = torch.zeros((len(labels), self.classes, *self.size), dtype=self.dtype, device=labels.device)
        return one_hot.scatter_(1, labels, 1)

    def valid(self) -> Tensor | None:
        """1 where a pixel counts and 0 where not, (B, 1, *size); None where all count.

        As in MONAI: a target with channels is ignored where the channel of that index is set, or, if there is no such
        channel, where no channel is set.
        """
        if self.ignore_index is None:
            return None
        if self.indices:
            return 1 - equal(self.target, self.ignore_index).to(self.dtype)
        if 0 <= self.ignore_index < self.classes:
            return 1 - self.target[:, self.ignore_index : self.ignore_index + 1].to(self.dtype)
        return (self.target.sum(dim=1, keepdim=True) > 0).to(self.dtype)

    def _check(self, to_onehot_y: bool) -> None:
        first, target = self.maps[0], self.target
        for values in self.maps:
            checks.floating("input", values)
            if values.dim() < 3 or values.dim() > 5:
                checks.wrong_rank("input", values, "(B, C, *size) with 1, 2 or 3 spatial sizes")
            if values.shape[:2] != first.shape[:2] or values.dim() != first.dim():
                raise ValueError(
                    f"input has maps of shapes {tuple(first.shape)} and {tuple(values.shape)};"
                    " they must agree in all but their spatial sizes"
                )
        classes = first.shape[1]
        if target.dim() not in (first.dim(), first.dim() - 1):
            checks.wrong_rank("target", target, "(B, 1, *size), (B, *size) or (B, C, *size), as input has it")
        if target.shape[0] != first.shape[0]:
            raise ValueError(f"target has a batch of {target.shape[0]} and input of {first.shape[0]}; they must agree")
        checks.same_device("target", target, "input", first)
        channels = 1 if target.dim() < first.dim() else target.shape[1]
        if classes > 1 and to_onehot_y and channels != 1:
            raise ValueError(f"target has {channels} channels; with to_onehot_y=True it must be class indices, with 1")
        if channels != classes and not to_onehot_y:
            raise ValueError(
                f"target has {channels} channels and input {classes}; they must agree, or to_onehot_y=True must say"
                " that the target is class indices"
            )


def equal(values: Tensor, number: int) -> Tensor:
    """values == number, also where the dtype cannot hold the number: torch would compare uint8 255 equal to -1."""
    if values.dtype is torch.bool or values.is_floating_point():
        return values == number
    limits = torch.iinfo(values.dtype)
    return values == number if limits.min <= number <= limits.max else torch.zeros_like(values, dtype=torch.bool)


def resized(values: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Linear interpolation to a spatial size, as the operator does it inside."""
    if values.shape[2:] == tuple(size):
        return values
    return F.interpolate(values, size=tuple(size), mode=LINEAR[len(size)], align_corners=align_corners)

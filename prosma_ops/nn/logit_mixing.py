"""MixedLogitLoss and MutationLoss: every mixture of a decoder's maps is supervised, after LoMix and MUTATION.

With M_u the maps that `mixed_logit_statistics` defines (the L originals, and for each operator every subset of two
levels or more), and sums over all pixels of the batch,
loss = sum_u w_u (cross_entropy * CE_u + dice * Dice_u)
CE_u   = mean over pixels of -log p_y              (sigmoid: the binary cross-entropy, a mean over channels too)
Dice_u = mean over classes of 1 - (2 sum p y + smooth) / (sum p^2 + sum y + smooth)
The sums of all maps come from one pass over the maps as they are, so 48 maps cost little more than the four.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks
from ..ops.logit_mixing import ACTIVATIONS, DOMAINS, OPERATORS, LogitStatistics, map_names, mixed_logit_statistics
from ..reference.logit_mixing import subsets
from .comparison import equal
from .dice import mean
from .layers import number, one_or_more, positive_integer
from .reductions import sum_over_processes

WEIGHTS = ("softplus", "normalized", "fixed")


class MixedLogitLoss(nn.Module):
    """Cross-entropy and Dice of every mixture of the maps, each with a learned weight: LoMix (arXiv 2510.22995).

    The formulas and factors are the paper's and its public code's. Where these differ, or misbehave, there is a choice:

    - `weights`. "softplus" is the paper's: w_u = softplus(alpha_u), alpha_u = 0 at the start, so all weights start as
      ln 2. The gradient of alpha_u is sigmoid(alpha_u) * L_u, which is never negative: nothing holds a weight up, all
      of them only fall, and with Adam, which divides by the gradient's size, all fall alike, alpha_u = -lr * steps,
      whatever the map. "normalized", U ln 2 softplus(alpha_u) / sum softplus(alpha), keeps their sum; what moves is
      then their ratio, and it moves towards the maps that are easiest. "fixed" gives every map the weight 1.
    - `domain`. "logits" mixes logits, as the public code does; a product of raw logits is unbounded. "probabilities"
      mixes the activations, as the paper's section 3.2 has it, and is bounded; but there a product cannot exceed 1,
      so with 9 classes it gives none of them a probability above 0.254.
    - `tied_attention`. True is the public code's: one vector and one bias for each size of a subset and each position
      in it, shared by all subsets of that size. False gives each subset its own.
    - The concat convolutions are parameters here and are learned, with the start of a 1x1 convolution for each subset.
      In the public code they are made anew, at random, in every call.

    The loss has parameters: give them to the optimizer, `[*network.parameters(), *loss.parameters()]`, and move the
    loss to the device of the logits. Nothing of it is needed for prediction.

    Arguments:
        levels: how many maps, 1 to 6. With one, or without operators, the loss is plain (deep) supervision.
        classes: channels of each map, at least 2 with softmax.
        operators: of "add", "multiply", "concat" and "attention".
        weights: "softplus", "normalized" or "fixed", see above.
        cross_entropy, dice: factors of the two parts.
        activation: "softmax", or "sigmoid": each channel is its own yes or no, and they may overlap.
        domain: "logits" or "probabilities", see above.
        tied_attention: see above.
        include_background: whether Dice counts class 0; the cross-entropy always does.
        ignore_index: the label of pixels that count nowhere.
        align_corners: of the up-sampling.
        distributed: the batch is spread over the processes of torch.distributed: the sums are taken over all of them,
            the loss is that of the whole batch in each, and gradients are right after DistributedDataParallel has
            averaged them. The loss must then be part of what DistributedDataParallel wraps, or its parameters'
            gradients be averaged likewise.
        smooth: added to the numerator and to the denominator of Dice, above 0.
    """

    alpha: nn.Parameter | None
    concat_weight: nn.Parameter | None
    concat_bias: nn.Parameter | None
    attention_weight: nn.Parameter | None
    attention_bias: nn.Parameter | None

    def __init__(
        self,
        levels: int,
        classes: int,
        *,
        operators: Sequence[str] = OPERATORS,
        weights: str = "softplus",
        cross_entropy: float = 0.3,
        dice: float = 0.7,
        activation: str = "softmax",
        domain: str = "logits",
        tied_attention: bool = True,
        include_background: bool = True,
        ignore_index: int | None = None,
        align_corners: bool = False,
        distributed: bool = False,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.levels = positive_integer("levels", levels)
        self.classes = positive_integer("classes", classes)
        self.operators = tuple(operators)
        self.names = map_names(self.levels, self.operators)
        checks.choice("weights", weights, WEIGHTS)
        checks.choice("activation", activation, ACTIVATIONS)
        checks.choice("domain", domain, DOMAINS)
        if classes == 1 and (activation == "softmax" or not include_background):
            raise ValueError("classes is 1; that takes activation='sigmoid' and include_background=True")
        self.weighting = weights
        self.cross_entropy = number("cross_entropy", cross_entropy)
        self.dice = number("dice", dice)
        self.activation = activation
        self.domain = domain
        self.tied_attention = tied_attention
        self.include_background = include_background
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.distributed = distributed
        self.smooth = number("smooth", smooth)
        if smooth == 0:
            raise ValueError("smooth is 0; it must be above 0, or a batch with every pixel ignored divides 0 by 0")
        self._make_parameters()
        self.reset_parameters()

    def _make_parameters(self) -> None:
        self._subsets = subsets(self.levels)
        members = sum(map(len, self._subsets))
        concat, attention = (name in self.operators and members > 0 for name in ("concat", "attention"))
        rows = sum(range(2, self.levels + 1)) if self.tied_attention else members

        self._register("alpha", self.weighting != "fixed", len(self.names))
        self._register("concat_weight", concat, self.classes, self.classes * members)
        self._register("concat_bias", concat, self.classes, len(self._subsets))
        self._register("attention_weight", attention, rows, self.classes)
        self._register("attention_bias", attention, rows)
        # Rows of the tied parameters run by size, then position; subsets of one size all take the same ones.
        first_row = {size: size * (size - 1) // 2 - 1 for size in range(2, self.levels + 1)}
        tied = [first_row[len(subset)] + place for subset in self._subsets for place in range(len(subset))]
        self.register_buffer("_tied_rows", torch.tensor(tied, dtype=torch.int64), persistent=False)
        self._tied_rows: Tensor

    def _register(self, name: str, wanted: bool, *shape: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape)) if wanted else None)

    def reset_parameters(self) -> None:
        """Every alpha 0; concat and attention as 1x1 convolutions start, uniform within 1 / sqrt(inputs)."""
        if self.alpha is not None:
            nn.init.zeros_(self.alpha)
        if self.concat_weight is not None and self.concat_bias is not None:
            columns = self.concat_weight.split([self.classes * len(subset) for subset in self._subsets], dim=1)
            for weight, bias in zip(columns, self.concat_bias.unbind(1), strict=True):
                bound = weight.shape[1] ** -0.5
                for values in (weight, bias):
                    nn.init.uniform_(values, -bound, bound)
        for values in (self.attention_weight, self.attention_bias):
            if values is not None:
                nn.init.uniform_(values, -(self.classes**-0.5), self.classes**-0.5)

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Maps (B, classes, *size_l), coarse to fine, and the target, (B, *size) or (B, 1, *size) -> the loss.

        With sigmoid the target may be (B, classes, *size) zeros and ones instead.
        """
        maps = one_or_more(logits)
        self._check(maps)
        losses = self._losses(self._statistics(maps, target), maps[0], target)
        return (self._weights().to(losses) * losses).sum()

    def weights(self) -> dict[str, float]:
        """The weight of each map's loss, by the names of `prosma_ops.map_names`."""
        with torch.no_grad():
            return dict(zip(self.names, self._weights().expand(len(self.names)).tolist(), strict=True))

    def _weights(self) -> Tensor:
        if self.alpha is None:
            return torch.ones(())
        raw = F.softplus(self.alpha if self.alpha.dtype is torch.float64 else self.alpha.float())
        if self.weighting == "softplus":
            return raw
        return len(self.names) * math.log(2) * raw / raw.sum()

    def _statistics(self, maps: Sequence[Tensor], target: Tensor) -> LogitStatistics:
        weight, bias = (
            values[self._tied_rows] if self.tied_attention and values is not None else values
            for values in (self.attention_weight, self.attention_bias)
        )
        return mixed_logit_statistics(
            maps,
            target,
            operators=self.operators,
            concat_weight=self.concat_weight,
            concat_bias=self.concat_bias,
            attention_weight=weight,
            attention_bias=bias,
            activation=self.activation,
            domain=self.domain,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
        )

    def _losses(self, sums: LogitStatistics, first: Tensor, target: Tensor) -> Tensor:
        """The loss of each map, (maps,), from its sums."""
        entropy, shared, square = sums.cross_entropy, sums.intersection, sums.square
        count, actual = self._counted(sums, first, target).to(square.dtype), sums.target.to(square.dtype)
        if self.distributed:
            entropy, shared, square, actual, count = sum_over_processes(entropy, shared, square, actual, count)
        scores = 1 - (2 * shared + self.smooth) / (square + actual + self.smooth)
        scores = scores if self.include_background else scores[:, 1:]
        return self.cross_entropy * mean(entropy.sum(1), count) + self.dice * scores.mean(1)

    def _counted(self, sums: LogitStatistics, first: Tensor, target: Tensor) -> Tensor:
        """What the mean cross-entropy divides by: pixels, with sigmoid each channel of each."""
        if self.activation == "softmax":
            return sums.pixels
        if self.ignore_index is None or self.classes == 1 or target.dim() < first.dim() or target.shape[1] == 1:
            return sums.pixels * self.classes
        # A target with channels is ignored channel by channel.
        return (~equal(checks.plain("target", target), self.ignore_index)).sum()

    def _check(self, maps: Sequence[Tensor]) -> None:
        if len(maps) != self.levels:
            raise ValueError(f"logits has {len(maps)} maps; this loss was made for {self.levels}")
        for values in maps:
            if checks.plain("logits", values).dim() < 2 or values.shape[1] != self.classes:
                raise ValueError(
                    f"logits has a map of shape {tuple(values.shape)}; this loss was made for {self.classes} classes,"
                    " in dimension 1"
                )

    def extra_repr(self) -> str:
        return (
            f"{self.levels}, {self.classes}, operators={self.operators}, weights={self.weighting!r},"
            f" cross_entropy={self.cross_entropy}, dice={self.dice}, activation={self.activation!r},"
            f" domain={self.domain!r}"
        )


class MutationLoss(MixedLogitLoss):
    """Every map, and the sum of every subset of maps, with weight 1: MUTATION, of MERIT (arXiv 2303.16892) and EMCAD.

    Arguments as in `MixedLogitLoss`. It has no parameters.
    """

    def __init__(
        self,
        levels: int,
        classes: int,
        *,
        cross_entropy: float = 0.3,
        dice: float = 0.7,
        activation: str = "softmax",
        domain: str = "logits",
        include_background: bool = True,
        ignore_index: int | None = None,
        align_corners: bool = False,
        distributed: bool = False,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(
            levels,
            classes,
            operators=("add",),
            weights="fixed",
            cross_entropy=cross_entropy,
            dice=dice,
            activation=activation,
            domain=domain,
            include_background=include_background,
            ignore_index=ignore_index,
            align_corners=align_corners,
            distributed=distributed,
            smooth=smooth,
        )

"""mixed_logit_statistics, as it is defined.

    Z_i = the logits of level i, up-sampled to the target's size (bilinear or trilinear)
    P_i = Z_i (domain "logits"), or the softmax or sigmoid of Z_i (domain "probabilities")
    maps: every Z_i; then, for each operator and each subset S of two levels or more, by size, then lexicographically,
        add: sum_i P_i        multiply: prod_i P_i        concat: W_S [P_i]_{i in S} + b_S
        attention: sum_i a_i P_i with a = softmax_{i in S}(<v_{S,i}, P_i> + c_{S,i})
    softmax:  p = softmax_c(map);    cross_entropy_c = sum over pixels labelled c of -log p_c
    sigmoid:  p = 1 / (1 + e^-map);  cross_entropy_c = sum over pixels of softplus(map_c) - y_c map_c
    intersection_c = sum p_c y_c;  probability_c = sum p_c;  square_c = sum p_c^2;  log_probability_c = sum log p_c

Columns of the concat weight and rows of the attention weight: by subset, then level ascending, then (concat) class.
A target of class indices has y_c = [label = c]; with one class the labels are 0 and 1, and y = [label = 1]. A pixel
whose label is `ignore_index` counts nowhere; nor does one whose label is no class, which is counted as invalid.

The gradients are written out, for the reasons given in `proximal_gate.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import compute_dtype, without_autocast

OPERATORS = ("add", "multiply", "concat", "attention")
ACTIVATIONS = ("softmax", "sigmoid")
DOMAINS = ("logits", "probabilities")


def subsets(levels: int) -> list[tuple[int, ...]]:
    """Every subset of two levels or more, by size, then lexicographically."""
    return [subset for size in range(2, levels + 1) for subset in itertools.combinations(range(levels), size)]


# The target.


class Labels(NamedTuple):
    one_hot: Tensor  # (B, C, *spatial) bool: y_c, false where the pixel does not count
    counted: Tensor  # (B, 1 or C, *spatial) bool
    present: Tensor  # (B, 1, *spatial) bool: counted in any channel
    invalid: Tensor  # (B,) int64


def read_labels(target: Tensor, classes: int, dimensions: int, ignore_index: int | None) -> Labels:
    """`target` of as many dimensions as the logits is one yes or no a channel, else it holds class indices."""
    # Compared as numbers: a uint8 of 255 is not -1.
    values = target.to(compute_dtype(target.dtype) if target.dtype.is_floating_point else torch.int64)
    per_channel = target.dim() == dimensions
    values = values if per_channel else values.unsqueeze(1)
    ignored = torch.zeros_like(values, dtype=torch.bool) if ignore_index is None else values == ignore_index
    largest = 1 if per_channel else max(classes - 1, 1)
    known = (values >= 0) & (values <= largest)
    if values.dtype.is_floating_point:
        known = known & (values == values.floor())
    counted = known & ~ignored
    if per_channel or classes == 1:
        one_hot = counted & (values == 1)
    else:
        names = torch.arange(classes, device=values.device).reshape(1, -1, *(1,) * (dimensions - 2))
        one_hot = counted & (values == names)
    invalid = (~known & ~ignored).flatten(1).sum(dim=1)
    return Labels(one_hot, counted, counted.any(dim=1, keepdim=True), invalid)


# The maps.


def upsample(level: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(level, size=tuple(size), mode=mode, align_corners=align_corners)


def upsample_transposed(grad: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """The transpose of `upsample` to levels of `size`: along each axis a product with the matrix that interpolates it.

    Unlike torch's own backward it is deterministic on every device.
    """
    for axis, coarse in enumerate(size, start=2):
        unit = torch.eye(coarse, dtype=grad.dtype, device=grad.device).unsqueeze(1)
        responses = F.interpolate(unit, size=grad.shape[axis], mode="linear", align_corners=align_corners).squeeze(1)
        grad = (grad.movedim(axis, -1) @ responses.t()).movedim(-1, axis)
    return grad


def activate(values: Tensor, activation: str) -> Tensor:
    return values.softmax(dim=1) if activation == "softmax" else values.sigmoid()


def activate_backward(grad: Tensor, activated: Tensor, activation: str) -> Tensor:
    if activation == "sigmoid":
        return activated * (1 - activated) * grad
    return activated * (grad - (activated * grad).sum(dim=1, keepdim=True))


class Parameters(NamedTuple):
    """Those of one subset: concat (S, C, C) and (C,), attention (S, C) and (S,)."""

    concat: Tensor | None = None
    concat_bias: Tensor | None = None
    attention: Tensor | None = None
    attention_bias: Tensor | None = None


def per_subset(
    concat_weight: Tensor | None,
    concat_bias: Tensor | None,
    attention_weight: Tensor | None,
    attention_bias: Tensor | None,
    levels: int,
    dtype: torch.dtype,
) -> dict[tuple[int, ...], Parameters]:
    """The parameters as they are stored, cut into those of each subset."""
    found = {}
    start = 0
    for number, subset in enumerate(subsets(levels)):
        rows = slice(start, start + len(subset))
        start += len(subset)
        concat = None
        if concat_weight is not None:
            classes = concat_weight.shape[0]
            columns = concat_weight[:, classes * rows.start : classes * rows.stop]
            concat = columns.to(dtype).reshape(classes, len(subset), classes).transpose(0, 1)
        found[subset] = Parameters(
            concat,
            None if concat_bias is None else concat_bias[:, number].to(dtype),
            None if attention_weight is None else attention_weight[rows].to(dtype),
            None if attention_bias is None else attention_bias[rows].to(dtype),
        )
    return found


def weighted(weight: Tensor, values: Tensor) -> Tensor:
    """(O, C) x (B, C, *spatial) -> (B, O, *spatial)."""
    return torch.einsum("oc,bc...->bo...", weight, values)


def attend(parts: Sequence[Tensor], parameters: Parameters) -> tuple[Tensor, ...]:
    """The share of each part at each pixel, (B, 1, *spatial)."""
    assert parameters.attention is not None
    scores = [weighted(row.unsqueeze(0), part) for row, part in zip(parameters.attention, parts, strict=True)]
    stacked = torch.stack(scores, dim=-1)
    if parameters.attention_bias is not None:
        stacked = stacked + parameters.attention_bias
    return stacked.softmax(dim=-1).unbind(dim=-1)


def total(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0])


def product(factors: Sequence[Tensor]) -> Tensor:
    return math.prod(factors[1:], start=factors[0])


def mix(operator: str, parts: Sequence[Tensor], parameters: Parameters) -> Tensor:
    if operator == "add":
        return total(parts)
    if operator == "multiply":
        return product(parts)
    if operator == "attention":
        return total([share * part for share, part in zip(attend(parts, parameters), parts, strict=True)])
    assert parameters.concat is not None
    mixed = total([weighted(weight, part) for weight, part in zip(parameters.concat, parts, strict=True)])
    return mixed if parameters.concat_bias is None else mixed + per_class(parameters.concat_bias, mixed)


def per_class(values: Tensor, like: Tensor) -> Tensor:
    """(C,) or (B, C) -> broadcastable against (B, C, *spatial)."""
    leading = values.shape if values.dim() == 2 else (1, *values.shape)
    return values.to(like.dtype).reshape(*leading, *(1,) * (like.dim() - 2))


class Work(NamedTuple):
    """What forward and backward both start from."""

    labels: Labels
    levels: list[Tensor]  # Z
    parts: list[Tensor]  # P
    parameters: dict[tuple[int, ...], Parameters]

    def maps(self, operators: Sequence[str]) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        """(operator, subset, map) in the order of the result; an original has no operator."""
        for number, level in enumerate(self.levels):
            yield "", (number,), level
        for operator in operators:
            for subset, parameters in self.parameters.items():
                yield operator, subset, mix(operator, [self.parts[i] for i in subset], parameters)


def prepare(
    logits: Sequence[Tensor],
    target: Tensor,
    parameters: Sequence[Tensor | None],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
) -> Work:
    dimensions = logits[0].dim()
    dtype = compute_dtype(logits[0].dtype)
    size = target.shape[2 - dimensions :]
    labels = read_labels(target, logits[0].shape[1], dimensions, ignore_index)
    # Zero where nothing counts: whatever stands there, NaN too, then reaches neither sums nor gradients.
    levels = [upsample(level.to(dtype), size, align_corners).where(labels.present, 0) for level in logits]
    parts = levels if domain == "logits" else [activate(level, activation) for level in levels]
    concat_weight, concat_bias, attention_weight, attention_bias = parameters
    cut = per_subset(concat_weight, concat_bias, attention_weight, attention_bias, len(logits), dtype)
    return Work(labels, levels, parts, cut)


# The sums.


def sum_pixels(values: Tensor, counted: Tensor) -> Tensor:
    """(B, C, *spatial) -> (B, C), over the pixels that count."""
    return values.where(counted, 0).flatten(2).sum(dim=2)


def sums(values: Tensor, labels: Labels, activation: str) -> tuple[Tensor, ...]:
    """cross_entropy, intersection, probability, square and log_probability of one map, each (B, C)."""
    log_p = values.log_softmax(dim=1) if activation == "softmax" else F.logsigmoid(values)
    p = log_p.exp()
    cross_entropy = sum_pixels(-log_p, labels.one_hot)
    if activation == "sigmoid":
        cross_entropy = cross_entropy + sum_pixels(-F.logsigmoid(-values), labels.counted & ~labels.one_hot)
    intersection = sum_pixels(p, labels.one_hot)
    rest = (sum_pixels(each, labels.counted) for each in (p, p.square(), log_p))
    return cross_entropy, intersection, *rest


@without_autocast
def mixed_logit_statistics(
    logits: Sequence[Tensor],
    target: Tensor,
    concat_weight: Tensor | None,
    concat_bias: Tensor | None,
    attention_weight: Tensor | None,
    attention_bias: Tensor | None,
    operators: Sequence[str],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
    per_sample: bool,
    log_probability: bool,
) -> tuple[Tensor, ...]:
    """cross_entropy, intersection, probability, square and log_probability, each (U, C) or (B, U, C), the last of no
    size if not asked for; the pixels of each class, (C,) or (B, C); all pixels and the invalid labels, () or (B,)."""
    parameters = (concat_weight, concat_bias, attention_weight, attention_bias)
    work = prepare(logits, target, parameters, activation, domain, ignore_index, align_corners)
    rows = [sums(values, work.labels, activation) for _, _, values in work.maps(operators)]
    tables = [torch.stack(column, dim=1) for column in zip(*rows, strict=True)]
    counts = (work.labels.one_hot.flatten(2).sum(dim=2), work.labels.present.flatten(1).sum(dim=1), work.labels.invalid)
    results = [values if per_sample else values.sum(dim=0) for values in (*tables, *counts)]
    if not log_probability:
        results[4] = results[4].new_empty(0)
    return tuple(results)


# The gradients.


class SumGradients(NamedTuple):
    """Of the sums of one map, each broadcastable against (B, C, *spatial)."""

    cross_entropy: Tensor
    intersection: Tensor
    probability: Tensor
    square: Tensor
    log_probability: Tensor


def map_gradient(values: Tensor, labels: Labels, grads: SumGradients, activation: str) -> Tensor:
    """G, the gradient of one map."""
    y = labels.one_hot.to(values.dtype)
    p = activate(values, activation)
    d = grads.intersection * y + grads.probability + 2 * grads.square * p
    if activation == "softmax":
        at_label = (grads.cross_entropy * y).sum(dim=1, keepdim=True)
        all_classes = grads.log_probability.sum(dim=1, keepdim=True)
        g = activate_backward(d, p, activation) + at_label * (p - y) + grads.log_probability - p * all_classes
    else:
        g = activate_backward(d, p, activation) + grads.cross_entropy * (p - y) + grads.log_probability * (1 - p)
    return g.where(labels.counted, 0)


class MixGradients(NamedTuple):
    """Of one mixed map: of its parts, and of the parameters of its subset, in the shapes of `Parameters`."""

    parts: list[Tensor]
    weight: Tensor | None = None
    bias: Tensor | None = None


def sum_to_classes(values: Tensor) -> Tensor:
    return values.sum(dim=(0, *range(2, values.dim())))


def outer(left: Tensor, right: Tensor) -> Tensor:
    """(B, O, *spatial) and (B, C, *spatial) -> (O, C), summed over images and pixels."""
    return left.transpose(0, 1).flatten(1) @ right.transpose(0, 1).flatten(1).t()


def mix_backward(
    operator: str, g: Tensor, mixed: Tensor, parts: Sequence[Tensor], parameters: Parameters
) -> MixGradients:
    if operator == "add":
        return MixGradients([g] * len(parts))
    if operator == "multiply":
        others = [[*parts[:i], *parts[i + 1 :]] for i in range(len(parts))]
        return MixGradients([g * product(rest) for rest in others])
    if operator == "concat":
        assert parameters.concat is not None
        dparts = [weighted(weight.t(), g) for weight in parameters.concat]
        return MixGradients(dparts, torch.stack([outer(g, part) for part in parts]), sum_to_classes(g))
    assert parameters.attention is not None
    shares = attend(parts, parameters)
    tilts = [  # the gradients of the scores
        share * (g * (part - mixed)).sum(dim=1, keepdim=True) for share, part in zip(shares, parts, strict=True)
    ]
    dparts = [
        share * g + per_class(row, g) * tilt
        for share, row, tilt in zip(shares, parameters.attention, tilts, strict=True)
    ]
    dweight = torch.stack([sum_to_classes(tilt * part) for tilt, part in zip(tilts, parts, strict=True)])
    return MixGradients(dparts, dweight, torch.stack([tilt.sum() for tilt in tilts]))


@without_autocast
def mixed_logit_statistics_backward(
    grad_cross_entropy: Tensor | None,
    grad_intersection: Tensor | None,
    grad_probability: Tensor | None,
    grad_square: Tensor | None,
    grad_log_probability: Tensor | None,
    logits: Sequence[Tensor],
    target: Tensor,
    concat_weight: Tensor | None,
    concat_bias: Tensor | None,
    attention_weight: Tensor | None,
    attention_bias: Tensor | None,
    operators: Sequence[str],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
    per_sample: bool,
    needed: Sequence[bool],
) -> list[Tensor]:
    """The gradients of the levels and of the four parameters, each in its input's dtype; of no size if not needed."""
    parameters = (concat_weight, concat_bias, attention_weight, attention_bias)
    work = prepare(logits, target, parameters, activation, domain, ignore_index, align_corners)
    given = (grad_cross_entropy, grad_intersection, grad_probability, grad_square, grad_log_probability)
    zero = work.levels[0].new_zeros(1, 1)

    dlevels = [torch.zeros_like(level) for level in work.levels]
    dparts = [torch.zeros_like(part) for part in work.parts]
    of_parameters: dict[str, list[MixGradients]] = {}
    for number, (operator, subset, values) in enumerate(work.maps(operators)):
        rows = (zero if g is None else g[:, number] if per_sample else g[number].unsqueeze(0) for g in given)
        g = map_gradient(values, work.labels, SumGradients(*(per_class(row, values) for row in rows)), activation)
        if not operator:
            dlevels[number] = g
            continue
        found = mix_backward(operator, g, values, [work.parts[i] for i in subset], work.parameters[subset])
        for i, dpart in zip(subset, found.parts, strict=True):
            dparts[i] = dparts[i] + dpart
        of_parameters.setdefault(operator, []).append(found)

    if domain == "probabilities":
        dparts = [activate_backward(dp, p, activation) for dp, p in zip(dparts, work.parts, strict=True)]
    gradients: list[Tensor | None] = [
        upsample_transposed(dlevel + dpart, level.shape[2:], align_corners)
        for dlevel, dpart, level in zip(dlevels, dparts, logits, strict=True)
    ]
    gradients += parameter_gradients(of_parameters)
    inputs = (*logits, *parameters)
    return [
        _delivered(gradient, tensor) if wanted and tensor is not None else logits[0].new_empty(0)
        for wanted, tensor, gradient in zip(needed, inputs, gradients, strict=True)
    ]


def _delivered(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    """In the dtype of its tensor; with one level there is no mixed map, and parameters have no gradient."""
    return torch.zeros_like(tensor) if gradient is None else gradient.to(tensor.dtype)


def parameter_gradients(found: dict[str, list[MixGradients]]) -> list[Tensor | None]:
    """Those of all subsets side by side, as the parameters are stored."""

    def joined(operator: str, name: str, join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
        values = [getattr(each, name) for each in found.get(operator, ())]
        return join(values) if values else None

    return [
        joined("concat", "weight", lambda weights: torch.cat([w.transpose(0, 1).flatten(1) for w in weights], dim=1)),
        joined("concat", "bias", lambda biases: torch.stack(biases, dim=1)),
        joined("attention", "weight", torch.cat),
        joined("attention", "bias", torch.cat),
    ]

"""mixed_logit_statistics: its cases, and the plain formulas as a user writes them.

A problem's inputs are tensors by name, so the levels are "level0", "level1", ...

Gradients of weights and biases are single sums over all pixels. Drawn symmetrically their terms would cancel, to
anything, and leave no scale to judge rounding by. So finer levels favour class 0, which few labels are, and the
incoming gradients have the signs that those of Dice and cross-entropy have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.logit_mixing import LogitStatistics, mixed_logit_statistics, named
from ..reference import logit_mixing as reference
from . import numbers
from .case import DTYPES, Case, Problem, Suite
from .layouts import LAYOUTS, lay_out, moved

PARAMETERS = ("concat_weight", "concat_bias", "attention_weight", "attention_bias")
BIASES = ("concat_bias", "attention_bias")
ALL = reference.OPERATORS


@dataclass(frozen=True)
class Shape:
    """One case in words: what `problem` builds in any layout and dtype."""

    name: str
    size: tuple[int, ...]  # (B, C, *spatial), the spatial size being the target's
    levels: tuple[tuple[int, ...], ...]
    operators: tuple[str, ...] = ALL
    activation: str = "softmax"
    domain: str = "logits"
    labels: torch.dtype = torch.int64
    regions: bool = False  # a yes or no a channel instead of class indices
    ignore_index: int | None = None
    ignored: float = 0.2  # the share of the labels that are ignore_index
    absent: int | None = None  # a class without a pixel
    align_corners: bool = False
    per_sample: bool = False
    log_probability: bool = False
    missing: tuple[str, ...] = ()
    deviation: float = 1.0  # of the logits
    parameters: torch.dtype | None = None  # where they do not have the dtype of the logits


UINT8 = torch.uint8
SIGMOID: dict[str, Any] = {"activation": "sigmoid"}
REGIONS: dict[str, Any] = {"activation": "sigmoid", "regions": True}
PROBABILITIES: dict[str, Any] = {"domain": "probabilities"}
IGNORE: dict[str, Any] = {"labels": UINT8, "ignore_index": 255}

PLAIN = (
    Shape("2-D", (2, 3, 9, 11), ((2, 3), (5, 6)), log_probability=True),
    Shape("2-D probabilities, ignoring", (2, 3, 9, 11), ((3, 3), (5, 11), (9, 11)), **PROBABILITIES, **IGNORE),
    Shape("2-D sigmoid", (2, 2, 7, 9), ((3, 4), (4, 9)), **SIGMOID, labels=UINT8),
    Shape("2-D regions", (2, 3, 8, 7), ((2, 2), (4, 4)), **REGIONS, labels=UINT8, per_sample=True),
    Shape("3-D", (2, 3, 5, 6, 7), ((2, 2, 3), (5, 6, 7)), labels=torch.int32, log_probability=True),
    Shape("3-D regions, probabilities", (1, 2, 4, 5, 6), ((2, 3, 3), (4, 2, 6)), **REGIONS, **PROBABILITIES),
)
SIX = tuple((n, n + 1) for n in range(1, 7))
SPECIAL = (
    Shape("2-D, 48 maps", (2, 4, 16, 16), ((2, 2), (4, 4), (8, 8), (16, 16)), labels=UINT8),
    Shape("2-D, 48 maps of probabilities", (1, 9, 16, 12), ((2, 2), (4, 3), (8, 6), (16, 12)), **PROBABILITIES),
    Shape("2-D, six levels", (1, 2, 7, 8), SIX, deviation=0.5),
    Shape("2-D, six levels of probabilities", (1, 2, 7, 8), SIX, ALL[1::2], **SIGMOID, **PROBABILITIES),
    Shape("2-D, five levels, per sample", (2, 3, 6, 7), SIX[:5], ("concat", "add"), per_sample=True),
    Shape("3-D, four levels", (1, 3, 8, 4, 6), ((1, 1, 1), (2, 2, 2), (4, 2, 3), (8, 4, 6)), per_sample=True),
    Shape("2-D, one level of full size", (3, 5, 9, 13), ((9, 13),), (), labels=UINT8, log_probability=True),
    Shape("2-D, one coarse level", (2, 5, 9, 13), ((3, 5),), (), per_sample=True),
    Shape("2-D, one level, all operators", (2, 2, 4, 5), ((2, 3),), ("multiply", "add")),
    Shape("3-D, one level of full size", (1, 4, 5, 6, 7), ((5, 6, 7),), (), labels=UINT8),
    Shape("2-D, deep supervision", (2, 3, 12, 10), ((2, 2), (3, 5), (6, 5)), (), log_probability=True),
    Shape("2-D add", (2, 3, 9, 7), ((3, 2), (5, 4), (9, 7)), ("add",), labels=torch.int16),
    Shape("2-D multiply", (2, 3, 9, 7), ((3, 2), (5, 4), (9, 7)), ("multiply",), labels=torch.int8),
    Shape("2-D concat", (2, 3, 9, 7), ((3, 2), (5, 4), (9, 7)), ("concat",), labels=torch.float32),
    Shape("2-D attention", (2, 3, 9, 7), ((3, 2), (5, 4), (9, 7)), ("attention",), labels=torch.float64),
    Shape("2-D, operators in another order", (1, 3, 6, 7), ((3, 2), (5, 4)), ("attention", "multiply", "concat")),
    Shape("2-D without biases", (2, 3, 6, 7), ((3, 2), (5, 4)), missing=BIASES, labels=torch.float16),
    Shape("2-D aligned corners", (2, 3, 9, 11), ((1, 3), (5, 6), (9, 11)), align_corners=True),
    Shape("3-D aligned corners", (1, 2, 5, 6, 7), ((2, 1, 3), (4, 6, 5)), ("add",), align_corners=True),
    Shape("2-D, one class", (2, 1, 9, 7), ((3, 2), (9, 7)), **SIGMOID, labels=torch.bool),
    Shape("2-D, one class, ignoring", (2, 1, 9, 7), ((3, 2), (9, 7)), ALL[:3], **SIGMOID, **IGNORE, per_sample=True),
    Shape("2-D regions, ignoring", (2, 3, 8, 7), ((2, 2), (4, 4)), **REGIONS, **IGNORE),
    Shape("2-D regions of floats", (1, 4, 8, 7), ((2, 2), (4, 4)), **REGIONS, labels=torch.bfloat16),
    Shape("2-D, boolean labels", (2, 2, 5, 7), ((2, 2), (4, 4)), labels=torch.bool),
    Shape("2-D, a class ignored", (2, 3, 9, 7), ((3, 2), (9, 7)), ignore_index=1, labels=torch.int8),
    Shape("2-D, all ignored", (2, 3, 5, 6), ((3, 2), (5, 6)), **IGNORE, ignored=1.0, log_probability=True),
    Shape("2-D, an absent class", (2, 4, 5, 6), ((3, 2), (5, 6)), ALL[:3], absent=2, log_probability=True),
    Shape("2-D, 17 classes", (1, 17, 6, 9), ((3, 4), (6, 9)), labels=UINT8),
    Shape("2-D, 33 classes, sigmoid", (1, 33, 6, 9), ((3, 4), (5, 9)), ("add", "attention"), **SIGMOID),
    Shape("2-D, 128 classes", (1, 128, 4, 5), ((2, 3), (4, 5)), labels=UINT8),
    Shape("2-D, a level finer than the target", (1, 3, 5, 6), ((3, 2), (11, 13)), ("add", "multiply")),
    Shape("3-D, a level finer than the target", (1, 2, 3, 4, 5), ((2, 2, 2), (7, 5, 9)), ("add",)),
    Shape("2-D, one pixel", (3, 3, 1, 1), ((1, 1), (2, 3))),
    Shape("2-D, one row", (2, 3, 1, 37), ((1, 5), (1, 19))),
    Shape("2-D, one column", (2, 3, 41, 1), ((7, 1), (41, 1))),
    Shape("2-D wide", (1, 5, 7, 83), ((3, 11), (7, 42)), labels=UINT8),
    Shape("2-D many pixels", (1, 3, 101, 103), ((13, 13), (51, 52)), labels=UINT8),
    Shape("3-D many voxels", (1, 3, 19, 23, 17), ((3, 4, 3), (10, 12, 9)), ("add", "concat"), labels=UINT8),
    Shape("2-D large logits", (2, 3, 7, 9), ((3, 4), (7, 9)), ("add",), deviation=8.0),
    Shape("2-D float32 parameters", (2, 3, 9, 11), ((3, 3), (5, 6)), parameters=torch.float32),
)
COMMON = ("contiguous", "channels_last")
# A millisecond each when compiled, and up to seconds under Triton's interpreter. The first is in every layout.
TINY = (
    Shape("2-D", (2, 2, 3, 5), ((2, 2), (3, 4)), log_probability=True),
    # The gradients of two attention biases are each other's opposite, and here near 0: no scale to be judged by.
    Shape(
        "3-D probabilities, ignoring",
        (1, 3, 2, 3, 3),
        ((1, 2, 2), (2, 3, 3)),
        **PROBABILITIES,
        **IGNORE,
        missing=("attention_bias",),
    ),
    Shape("2-D regions, per sample", (2, 2, 3, 4), ((1, 2), (2, 3)), **REGIONS, labels=UINT8, per_sample=True),
    Shape("2-D, three levels, no biases", (1, 3, 4, 4), ((1, 1), (2, 2), (4, 4)), missing=BIASES),
    Shape("2-D, one level", (2, 3, 3, 4), ((2, 3),), (), labels=UINT8),
    Shape("3-D sigmoid, aligned corners", (1, 2, 2, 3, 4), ((1, 2, 2), (2, 2, 3)), **SIGMOID, align_corners=True),
    Shape("2-D float32 parameters", (1, 3, 3, 4), ((2, 2), (3, 3)), parameters=torch.float32),
)


def cases(size: str) -> list[Case]:
    if size == "tiny":
        chosen = [(TINY[0], layout) for layout in LAYOUTS]
        chosen += [(shape, "channels_last" if shape is TINY[1] else "contiguous") for shape in TINY[1:]]
    else:
        chosen = [(shape, layout) for shape in PLAIN for layout in LAYOUTS]
        chosen += [(shape, layout) for shape in SPECIAL for layout in (COMMON if len(shape.levels) < 4 else COMMON[:1])]
    return [
        Case("mixed_logit_statistics", shape.name, layout, dtype, partial(problem, shape, layout, dtype))
        for shape, layout in chosen
        for dtype in DTYPES
        if (shape.parameters is None or dtype.itemsize == 2)
        and (_worth_interpreting if size == "tiny" else _worth_running)(shape, layout, dtype)
    ]


def _worth_running(shape: Shape, layout: str, dtype: torch.dtype) -> bool:
    """Special shapes in channels_last are a question of addresses, so two dtypes will do."""
    return shape in PLAIN or layout == "contiguous" or dtype in (torch.float32, torch.bfloat16)


def _worth_interpreting(shape: Shape, layout: str, dtype: torch.dtype) -> bool:
    """Of the tiny cases float32 has all; the others what their loads and stores can get wrong."""
    return dtype is torch.float32 or shape.parameters is not None or (shape is TINY[0] and layout in COMMON)


def problem(shape: Shape, layout: str, dtype: torch.dtype, device: torch.device) -> Problem:
    random = numbers.generator(shape, dtype)
    batch, classes = shape.size[:2]
    drawn: dict[str, Tensor | None] = {}
    for number, size in enumerate(shape.levels):
        values = shape.deviation * numbers.normal((batch, classes, *size), random)
        values[:, 0] += (1 + math.log(classes)) * number / max(1, len(shape.levels) - 1)
        drawn[f"level{number}"] = values.to(dtype)
    drawn["target"] = _labels(shape, random)
    drawn |= dict.fromkeys(PARAMETERS)
    for name, parameter_size in _parameter_sizes(shape).items():
        values = numbers.normal(parameter_size, random) / math.sqrt(parameter_size[-1])
        drawn[name] = values.to(shape.parameters or dtype)
    inputs = {
        name: None if values is None else moved(lay_out(values, layout, name), device) for name, values in drawn.items()
    }
    maps = len(shape.levels) + len(shape.operators) * len(reference.subsets(len(shape.levels)))
    table = (batch, maps, classes) if shape.per_sample else (maps, classes)
    results = torch.float64 if dtype is torch.float64 else torch.float32
    signs = (1, -1, 1, 1, -1)[: 5 if shape.log_probability else 4]
    grads = [sign * (0.5 + torch.rand(table, generator=random, dtype=torch.float64)) for sign in signs]
    settings = ("operators", "activation", "domain", "ignore_index", "align_corners", "per_sample", "log_probability")
    return Problem(
        inputs=inputs,
        settings={name: getattr(shape, name) for name in settings},
        function=by_name(mixed_logit_statistics),
        definition=by_name(definition),
        eager=by_name(eager),
        leader="level0",
        grads=tuple(grad.to(device, results) for grad in grads),
        constant=frozenset({"target"}),
    )


def _labels(shape: Shape, random: torch.Generator) -> Tensor:
    batch, classes, *spatial = shape.size
    size = shape.size if shape.regions else (batch, *spatial)
    labels = torch.randint(0, 2 if shape.regions else max(classes, 2), size, generator=random)
    if shape.regions or classes == 1:
        labels[torch.rand(size, generator=random) < 0.5] = 0
    else:
        labels[(labels == 0) & (torch.rand(size, generator=random) < 0.7)] = 1
    if shape.absent is not None:
        labels[labels == shape.absent] = (shape.absent + 1) % classes
    if shape.ignore_index is not None:
        labels[torch.rand(labels.shape, generator=random) < shape.ignored] = shape.ignore_index
    return labels.to(shape.labels)


def _parameter_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    subsets, classes = reference.subsets(len(shape.levels)), shape.size[1]
    entries = sum(map(len, subsets))
    sizes = {
        "concat_weight": (classes, classes * entries),
        "concat_bias": (classes, len(subsets)),
        "attention_weight": (entries, classes),
        "attention_bias": (entries,),
    }
    return {k: v for k, v in sizes.items() if k.split("_")[0] in shape.operators and k not in shape.missing}


def by_name(run: Callable[..., LogitStatistics]) -> Callable[..., LogitStatistics]:
    """`run` with its levels as keywords."""

    def call(**tensors_and_settings: Any) -> LogitStatistics:
        names = sorted(name for name in tensors_and_settings if name.startswith("level"))
        levels = [tensors_and_settings.pop(name) for name in names]
        return run(levels, tensors_and_settings.pop("target"), **tensors_and_settings)

    return call


def definition(logits: Sequence[Tensor], target: Tensor, **others: Any) -> LogitStatistics:
    parameters = [others.pop(name) for name in PARAMETERS]
    return named(reference.mixed_logit_statistics(logits, target, *parameters, **others))


def eager(
    logits: Sequence[Tensor],
    target: Tensor,
    concat_weight: Tensor | None = None,
    concat_bias: Tensor | None = None,
    attention_weight: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    operators: Sequence[str] = ALL,
    activation: str = "softmax",
    domain: str = "logits",
    ignore_index: int | None = None,
    align_corners: bool = False,
    per_sample: bool = False,
    log_probability: bool = False,
) -> LogitStatistics:
    """The formulas in eager PyTorch, in the dtype of the logits: the rival of the benchmarks as well.

    Well written: each level is up-sampled once, each map has one softmax, and all maps share one one-hot target.
    """
    size = tuple(target.shape[2 - logits[0].dim() :])
    mode = "bilinear" if len(size) == 2 else "trilinear"
    levels = [
        z if z.shape[2:] == size else F.interpolate(z, size=size, mode=mode, align_corners=align_corners)
        for z in logits
    ]
    act = torch.sigmoid if activation == "sigmoid" else partial(torch.softmax, dim=1)
    parts = levels if domain == "logits" else [act(z) for z in levels]
    mixed = mixed_maps(parts, operators, concat_weight, concat_bias, attention_weight, attention_bias)
    one_hot, counted = one_hot_of(target, logits[0], ignore_index)
    kept = counted.to(one_hot.dtype) if ignore_index is not None else None
    axes = tuple(range(2, one_hot.dim())) if per_sample else (0, *range(2, one_hot.dim()))
    rows = [_sums(m, one_hot, kept, activation, axes, log_probability) for m in (*levels, *mixed)]
    tables = [torch.stack(column, dim=-2) for column in zip(*rows, strict=True)]
    cross_entropy, intersection, probability, square = tables[:4]
    labelled = one_hot.bool().sum(dim=axes)
    pixels = counted.any(dim=1).flatten(1).sum(dim=1)
    pixels = pixels if per_sample else pixels.sum()
    asked_for = tables[4] if log_probability else None
    none = torch.zeros_like(pixels)
    return LogitStatistics(cross_entropy, intersection, probability, square, labelled, pixels, asked_for, none)


def mixed_maps(
    parts: Sequence[Tensor],
    operators: Sequence[str],
    concat_weight: Tensor | None,
    concat_bias: Tensor | None,
    attention_weight: Tensor | None,
    attention_bias: Tensor | None,
) -> list[Tensor]:
    subsets, classes = reference.subsets(len(parts)), parts[0].shape[1]
    ends = [sum(len(subset) for subset in subsets[: number + 1]) for number in range(len(subsets))]
    convolution = F.conv2d if parts[0].dim() == 4 else F.conv3d
    ones = (1,) * (parts[0].dim() - 2)
    found = []
    for operator in operators:
        for number, (subset, end) in enumerate(zip(subsets, ends, strict=True)):
            chosen, rows = [parts[i] for i in subset], slice(end - len(subset), end)
            if operator == "add":
                found.append(reduce(torch.add, chosen))
            elif operator == "multiply":
                found.append(reduce(torch.mul, chosen))
            elif operator == "concat":
                assert concat_weight is not None
                kernel = concat_weight[:, classes * rows.start : classes * rows.stop].reshape(classes, -1, *ones)
                bias = None if concat_bias is None else concat_bias[:, number]
                found.append(convolution(torch.cat(chosen, dim=1), kernel, bias))
            else:
                assert attention_weight is not None
                bias = None if attention_bias is None else attention_bias[rows]
                kernels = attention_weight[rows].reshape(-1, 1, classes, *ones)
                scores = torch.cat([convolution(p, kernel) for p, kernel in zip(chosen, kernels, strict=True)], dim=1)
                if bias is not None:
                    scores = scores + bias.reshape(1, -1, *ones)
                shares = scores.softmax(dim=1).unbind(dim=1)
                terms = [share.unsqueeze(1) * part for share, part in zip(shares, chosen, strict=True)]
                found.append(reduce(torch.add, terms))
    return found


def one_hot_of(target: Tensor, like: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """(B, C, *spatial) in the dtype of the logits; and which count."""
    labels = target.long()
    labels = labels if labels.dim() == like.dim() else labels.unsqueeze(1)
    counted = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
    if target.dim() == like.dim() or like.shape[1] == 1:
        return (counted & (labels == 1)).to(like.dtype), counted
    one_hot = torch.zeros(labels.shape[0], like.shape[1], *labels.shape[2:], dtype=like.dtype, device=like.device)
    return one_hot.scatter_(1, labels.where(counted, 0), counted.to(like.dtype)), counted


def _sums(
    values: Tensor, y: Tensor, kept: Tensor | None, activation: str, axes: tuple[int, ...], log_probability: bool
) -> list[Tensor]:
    """Of one map. `kept` is 1 where a pixel counts, None where all do."""

    def total(each: Tensor) -> Tensor:
        return (each if kept is None else each * kept).sum(dim=axes)

    if activation == "softmax":
        log_p = values.log_softmax(dim=1)
        p = log_p.exp()
        cross_entropy = -(log_p * y).sum(dim=axes)
    else:
        p = values.sigmoid()
        cross_entropy = total(F.binary_cross_entropy_with_logits(values, y, reduction="none"))
    found = [cross_entropy, (p * y).sum(dim=axes), total(p), total(p * p)]
    return [*found, total(log_p)] if log_probability else found


def example(
    size: tuple[int, ...],
    levels: Sequence[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    **changes: object,
) -> Problem:
    """One problem of this shape on the CPU, for tests that need any: `changes` are the other fields of `Shape`."""
    shape = replace(Shape("example", size, tuple(levels)), **changes)  # type: ignore[arg-type]
    return problem(shape, layout, dtype, torch.device("cpu"))


SUMS = ("cross_entropy", "intersection", "probability", "square", "log_probability")
SUITE = Suite(
    cases,
    results={
        # In the order in which an implementation returns them; on the CPU invalid labels raise, so there are none.
        "forward": (*SUMS, "target", "pixels"),
        "backward": tuple(f"gradient of {name}" for name in ("level0", "level1", *PARAMETERS)),
    },
)
SUITES = {"mixed_logit_statistics": SUITE}

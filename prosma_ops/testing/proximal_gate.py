"""proximal_gate: its cases, and the plain formula as a user writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import proximal_gate
from ..reference import proximal_gate as reference
from . import numbers, soft_threshold
from .case import DTYPES, Case, Problem, Suite
from .layouts import LAYOUTS, lay_out, moved

OPTIONAL = ("skip", "channel_gate", "bias")


@dataclass(frozen=True)
class Shape:
    """One case in words: what `problem` builds in any layout and dtype."""

    name: str
    size: tuple[int, ...]  # (B, C, *spatial)
    dilations: tuple[int, ...] = (1, 2, 3)
    kernel_size: int = 3
    activation: str = "identity"
    missing: tuple[str, ...] = ()
    drawn: str = "grid"  # or "normal" or "exact", see numbers.py
    negative: bool = False  # a third of the thresholds below zero, a third at zero
    parameters: torch.dtype | None = None  # where they do not have the dtype of the field


PLAIN = (
    Shape("2-D", (2, 3, 9, 11)),
    Shape("2-D tanh", (2, 3, 9, 11), activation="tanh"),
    Shape("2-D relu", (2, 3, 9, 11), activation="relu"),
    Shape("3-D", (2, 3, 5, 6, 7)),
    Shape("2-D float32 parameters", (2, 3, 9, 11), parameters=torch.float32),
    Shape("2-D normal numbers", (2, 3, 9, 11), drawn="normal"),
)
WIDE = (
    Shape("2-D wide", (1, 5, 13, 83), activation="tanh"),
    Shape("2-D many channels", (1, 37, 7, 9), activation="relu"),
    Shape("3-D wide", (1, 5, 5, 6, 37)),
    Shape("3-D many channels", (1, 19, 4, 5, 6), activation="tanh"),
    Shape("3-D normal numbers", (1, 5, 6, 7, 9), drawn="normal"),
    Shape("3-D float32 parameters", (1, 3, 4, 5, 6), activation="relu", parameters=torch.float32),
)
SPECIAL = (
    Shape("2-D one kernel, nothing optional", (2, 3, 8, 8), (4,), missing=OPTIONAL),
    Shape("2-D no skip", (2, 3, 5, 7), missing=("skip",)),
    Shape("2-D no channel gate", (2, 3, 5, 7), missing=("channel_gate",), activation="relu"),
    Shape("2-D no bias", (2, 3, 5, 7), missing=("bias",)),
    Shape("3-D nothing optional", (1, 5, 4, 5, 6), missing=OPTIONAL),
    Shape("2-D kernel 1", (2, 3, 5, 7), (1,), 1),
    Shape("2-D kernel 5", (2, 3, 11, 13), (1, 2), 5),
    Shape("3-D kernel 5", (1, 5, 5, 6, 7), (1,), 5),
    Shape("2-D five kernels", (1, 5, 7, 8), (1, 2, 3, 4, 5)),
    Shape("2-D unordered, repeated dilations", (2, 5, 7, 9), (3, 1, 3)),
    Shape("2-D smaller than its dilations", (2, 3, 4, 3), (1, 3, 7)),
    Shape("3-D smaller than its dilations", (2, 3, 2, 3, 1), (1, 3, 7)),
    Shape("2-D one pixel", (2, 3, 1, 1)),
    Shape("2-D one channel", (3, 1, 6, 6), drawn="exact"),
    Shape("2-D primes", (1, 5, 13, 17)),
    Shape("2-D many pixels", (1, 5, 128, 131)),
    Shape("3-D many voxels", (1, 5, 19, 23, 29), activation="relu"),
    Shape("2-D negative thresholds", (2, 6, 9, 11), negative=True),
)
COMMON = ("contiguous", "channels_last")
# A millisecond each when compiled, and up to seconds under Triton's interpreter. The first is in every layout.
TINY = (
    Shape("2-D", (2, 2, 3, 4), (1, 2)),
    Shape("2-D tanh, three kernels", (1, 3, 4, 5), activation="tanh"),
    Shape("3-D relu", (1, 2, 3, 2, 4), (1, 2), activation="relu"),
    Shape("2-D nothing optional", (1, 2, 5, 4), (2,), missing=OPTIONAL),
    Shape("2-D smaller than its dilations", (1, 2, 2, 3), (1, 5)),
    Shape("2-D float32 parameters", (1, 3, 3, 4), (1, 2), parameters=torch.float32),
)


def cases(size: str) -> list[Case]:
    if size == "tiny":
        chosen = [(TINY[0], layout) for layout in LAYOUTS]
        chosen += [(shape, layout) for shape in TINY[1:3] for layout in COMMON]
        chosen += [(shape, "contiguous") for shape in TINY[3:]]
    else:
        chosen = [(shape, layout) for shape in (*PLAIN, *WIDE) for layout in LAYOUTS]
        chosen += [(shape, layout) for shape in SPECIAL for layout in COMMON]
    return [
        Case("proximal_gate", shape.name, layout, dtype, partial(problem, shape, layout, dtype))
        for shape, layout in chosen
        for dtype in DTYPES
        if _makes_sense(shape, layout, dtype) and (size == "full" or _worth_interpreting(shape, layout, dtype))
    ]


def _makes_sense(shape: Shape, layout: str, dtype: torch.dtype) -> bool:
    """Other parameters only beside half types; thresholds in a gap of z only where the layout keeps every number."""
    return (shape.parameters is None or dtype.itemsize == 2) and (shape.drawn != "normal" or layout != "expanded")


def _worth_interpreting(shape: Shape, layout: str, dtype: torch.dtype) -> bool:
    """Of the tiny cases float32 has all; the others what their loads and stores can get wrong. It halves a minute."""
    if dtype is torch.float32 or shape.parameters is not None:
        return True
    return (shape is TINY[0] and layout in COMMON) or (shape is TINY[2] and layout == "contiguous")


def problem(shape: Shape, layout: str, dtype: torch.dtype, device: torch.device) -> Problem:
    random = numbers.generator(shape, dtype)
    channels, kernels, spatial = shape.size[1], len(shape.dilations), len(shape.size) - 2
    weight_shape = (kernels, channels, *(shape.kernel_size,) * spatial)
    big = {"field": shape.size, "skip": shape.size, "grad": shape.size}
    small = {"weight": weight_shape, "bias": (channels,), "channel_gate": (shape.size[0], channels)}
    drawn = {name: _draw(shape, name, size, dtype, random) for name, size in (big | small).items()}
    drawn = {name: values.to(dtype) for name, values in drawn.items()}
    drawn = {name: lay_out(values, layout, name) for name, values in drawn.items() if name not in shape.missing}
    drawn["threshold"] = lay_out(_threshold(shape, drawn, random).to(dtype), _of_threshold(layout, shape), "threshold")
    if shape.parameters is not None:
        drawn = {name: v if name in big else v.to(shape.parameters) for name, v in drawn.items()}
    placed = {name: moved(values, device) for name, values in drawn.items()}
    grad = placed.pop("grad")
    names = ("field", "weight", "threshold", *OPTIONAL)
    return Problem(
        inputs={name: placed.get(name) for name in names},
        settings={"dilations": shape.dilations, "activation": shape.activation},
        function=proximal_gate,
        definition=definition,
        eager=eager,
        leader="field",
        grads=() if shape.drawn == "normal" and dtype.itemsize == 2 else (grad,),
    )


GRIDS = {"field": (1 / 4, 4), "weight": (1 / 16, 3), "bias": (1 / 64, 8)}


def _draw(shape: Shape, name: str, size: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """In float64 skip, gate and gradient are on a grid too: so the float64 reference of every sum is exact."""
    if shape.drawn == "exact" and name not in GRIDS:
        return numbers.grid(size, 1 / 2, 3, random)
    if shape.drawn == "normal" or (name not in GRIDS and dtype is not torch.float64):
        return numbers.normal(size, random)
    return numbers.grid(size, *GRIDS.get(name, (1 / 8, 16)), random)


def _threshold(shape: Shape, drawn: dict[str, Tensor], random: torch.Generator) -> Tensor:
    if shape.drawn != "normal":
        threshold = numbers.between_grid_points(shape.size[1], random)
        if shape.negative:
            threshold[::3] *= -1
            threshold[1::3] = 0
        return threshold
    field, weight = drawn["field"].double(), drawn["weight"].double()
    bias = drawn["bias"].double() if "bias" in drawn else None
    return numbers.in_widest_gap(reference.convolve(field, weight, bias, shape.dilations))


def _of_threshold(layout: str, shape: Shape) -> str:
    return "contiguous" if layout == "expanded" and shape.negative else layout


def definition(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    *,
    dilations: Sequence[int],
    activation: str,
) -> Tensor:
    return reference.proximal_gate(field, weight, threshold, skip, channel_gate, bias, dilations, activation)


def eager(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None = None,
    channel_gate: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    dilations: Sequence[int],
    activation: str,
) -> Tensor:
    """The formula in eager PyTorch, in the dtype of its tensors: the rival of the benchmarks as well."""
    convolution = F.conv2d if field.dim() == 4 else F.conv3d
    reach = (weight.shape[-1] - 1) // 2
    responses = [
        convolution(field, kernel.unsqueeze(1), padding=d * reach, dilation=d, groups=field.shape[1])
        for kernel, d in zip(weight, dilations, strict=True)
    ]
    z = responses[0]
    for response in responses[1:]:
        z = z + response
    channel = (1, -1, *(1,) * (field.dim() - 2))
    if bias is not None:
        z = z + bias.view(channel)
    u = z.sign() * (z.abs() - threshold.clamp(min=0).view(channel)).relu()
    y = u if activation == "identity" else getattr(torch, activation)(u)
    if skip is not None:
        y = skip * y
    if channel_gate is not None:
        y = y * channel_gate.reshape(*channel_gate.shape, *channel[2:])
    return y


def example(
    size: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: str = "contiguous", **changes: object
) -> Problem:
    """One problem of this shape on the CPU, for tests that need any: `changes` are the other fields of `Shape`."""
    shape = replace(Shape("example", size), **changes)  # type: ignore[arg-type]
    return problem(shape, layout, dtype, torch.device("cpu"))


GATE = Suite(
    cases,
    results={
        "forward": ("result",),
        "backward": tuple(
            f"gradient of {name}" for name in ("field", "weight", "threshold", "skip", "channel_gate", "bias")
        ),
    },
)
SUITES = {"proximal_gate": GATE, "soft_threshold": soft_threshold.SUITE}

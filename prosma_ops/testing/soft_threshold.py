"""soft_threshold: its cases, and the plain formula as a user writes it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..ops import soft_threshold
from ..reference import proximal_gate as reference
from . import numbers
from .case import DTYPES, Case, Problem, Suite
from .layouts import LAYOUTS, lay_out, moved

# name -> (B, C, *spatial)
SHAPES = {
    "2-D": (2, 3, 9, 11),
    "2-D wide": (1, 2, 5, 83),
    "2-D many channels": (2, 37, 5, 7),
    "3-D": (2, 3, 5, 6, 7),
}
FLAT = {
    "(B, C)": (5, 7),
    "1-D": (2, 3, 41),
    "4-D": (2, 3, 2, 3, 2, 3),
    "one pixel": (2, 3, 1, 1),
    "negative": (2, 6, 4, 5),
}
TINY = {"2-D": (2, 3, 4, 5), "3-D": (1, 2, 3, 4, 5), "(B, C)": (3, 2)}


def cases(size: str) -> list[Case]:
    if size == "tiny":
        chosen = [(name, layout) for name in TINY for layout in ("contiguous", "channels_last")]
        chosen += [("2-D", layout) for layout in LAYOUTS if layout not in ("contiguous", "channels_last")]
    else:
        chosen = [(name, layout) for name in SHAPES for layout in LAYOUTS]
        chosen += [(name, layout) for name in FLAT for layout in ("contiguous", "sliced")]
    sizes = TINY if size == "tiny" else SHAPES | FLAT
    return [
        Case("soft_threshold", name, layout, dtype, partial(problem, name, sizes[name], layout, dtype))
        for name, layout in chosen
        for dtype in DTYPES
    ]


def problem(name: str, size: tuple[int, ...], layout: str, dtype: torch.dtype, device: torch.device) -> Problem:
    random = numbers.generator(name, size, dtype)
    x = numbers.grid(size, numbers.UNIT, 64, random).to(dtype)
    exact = dtype is torch.float64  # so that the float64 reference of the sums is exact
    grad = (numbers.grid(size, 1 / 8, 16, random) if exact else numbers.normal(size, random)).to(dtype)
    threshold = numbers.between_grid_points(size[1], random).to(dtype)
    if name == "negative":
        threshold[::3] *= -1
        threshold[1::3] = 0
    return Problem(
        inputs={
            "x": moved(lay_out(x, layout, "x"), device),
            "threshold": moved(lay_out(threshold, layout, "threshold"), device),
        },
        settings={},
        function=soft_threshold,
        definition=definition,
        eager=eager,
        leader="x",
        grads=(moved(lay_out(grad, layout, "grad"), device),),
    )


def definition(x: Tensor, threshold: Tensor) -> Tensor:
    return reference.soft_threshold(x, threshold)


def eager(x: Tensor, threshold: Tensor) -> Tensor:
    channel = (1, -1, *(1,) * (x.dim() - 2))
    return x.sign() * (x.abs() - threshold.clamp(min=0).view(channel)).relu()


SUITE = Suite(cases, results={"forward": ("result",), "backward": ("gradient of x", "gradient of threshold")})

"""nearest_code and code_statistics: their cases, and the plain formulas as a user writes them.

An index is right or wrong, with no tolerance, so no case may hang on rounding.

grid     Tokens and codes are small integers: all arithmetic is exact, and ties abound; the lowest index must win.
axes     The same, with every code along an axis, for ties under "cosine": its length, and so its row, is exact.
normal   Normally distributed, and only tokens are kept whose nearest code is nearer than the second by a thousandth of
         the scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import code_statistics, nearest_code
from ..ops.codebook import CodeStatistics, NearestCode
from ..reference import codebook as reference
from . import numbers
from .case import DTYPES, Case, Problem, Suite
from .layouts import LAYOUTS, lay_out, moved


@dataclass(frozen=True)
class Shape:
    """One case in words: what `problem` builds in any layout and dtype."""

    name: str
    size: tuple[int, ...]  # (..., D)
    codes: int
    metric: str = "euclidean"
    drawn: str = "grid"  # or "axes" or "normal"
    origin: int = 0  # where the codes lie around, in every dimension
    equal: bool = False  # every code is there three times
    codebook: torch.dtype | None = None  # where it does not have the dtype of the tokens

    @property
    def leading(self) -> tuple[int, ...]:
        return self.size[:-1]


PLAIN = (
    Shape("of an image", (2, 5, 7, 6), 11),
    Shape("of a volume", (2, 3, 2, 5, 9), 7),
    Shape("normal numbers", (3, 4, 9, 16), 37, drawn="normal"),
    Shape("cosine", (2, 5, 7, 6), 11, "cosine", drawn="normal"),
    Shape("float32 codebook", (2, 3, 4, 5), 9, codebook=torch.float32),
)
SPECIAL = (
    Shape("a list", (41, 3), 5),
    Shape("one token", (17,), 23),
    Shape("one code", (2, 9, 4), 1),
    Shape("one dimension", (3, 50, 1), 4),
    Shape("equal codes", (130, 5), 30, equal=True),
    Shape("parallel codes", (130, 5), 30, "cosine", drawn="axes"),
    Shape("more codes than a tile", (1, 67, 8), 203),
    Shape("more tokens than a tile", (5, 61, 7), 13),
    Shape("many dimensions", (1, 37, 300), 19),
    Shape("codes far away", (2, 40, 8), 33, drawn="normal", origin=96),
    Shape("cosine of many codes", (70, 12), 150, "cosine", drawn="normal"),
    Shape("cosine, float32 codebook", (30, 6), 12, "cosine", drawn="normal", codebook=torch.float32),
)
COMMON = ("contiguous", "channels_last")
# Up to a second each under Triton's interpreter. The first is in every layout.
TINY = (
    Shape("of an image", (2, 2, 3, 4), 5),
    Shape("cosine", (7, 3), 4, "cosine", drawn="normal"),
    Shape("normal numbers", (9, 5), 6, drawn="normal"),
    Shape("float32 codebook", (5, 2), 3, codebook=torch.float32),
)


def _makes_sense(shape: Shape, dtype: torch.dtype) -> bool:
    """A codebook of another dtype only beside half types; and bfloat16 cannot tell codes far away from each other."""
    return (shape.codebook is None or dtype.itemsize == 2) and (shape.origin == 0 or dtype is not torch.bfloat16)


def _worth_interpreting(shape: Shape, layout: str, dtype: torch.dtype) -> bool:
    """Of the tiny cases float32 has all; the others what their loads and stores can get wrong. It halves a minute."""
    return dtype is torch.float32 or shape.codebook is not None or (shape is TINY[0] and layout == "contiguous")


def _chosen(size: str) -> list[tuple[Shape, str]]:
    if size == "tiny":
        return [(TINY[0], layout) for layout in LAYOUTS] + [(shape, "contiguous") for shape in TINY[1:]]
    chosen = [(shape, layout) for shape in PLAIN for layout in LAYOUTS]
    return chosen + [(shape, layout) for shape in SPECIAL for layout in ("contiguous", "sliced")]


def nearest_cases(size: str) -> list[Case]:
    return [
        Case("nearest_code", shape.name, layout, dtype, partial(problem, shape, layout, dtype))
        for shape, layout in _chosen(size)
        for dtype in DTYPES
        if _makes_sense(shape, dtype) and (size == "full" or _worth_interpreting(shape, layout, dtype))
    ]


def statistics_cases(size: str) -> list[Case]:
    """The same tokens; the metric and the codebook play no part, so the shapes that differ in them are left out."""
    return [
        Case("code_statistics", shape.name, layout, dtype, partial(statistics_problem, shape, layout, dtype))
        for shape, layout in _chosen(size)
        for dtype in DTYPES
        if shape.metric == "euclidean" and shape.codebook is None and not shape.origin
        if size == "full" or _worth_interpreting(shape, layout, dtype)
    ]


def draw(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens and codebook in float64, of numbers that `dtype` holds exactly."""
    random = numbers.generator(shape, dtype)
    wanted, dimensions = math.prod(shape.leading), shape.size[-1]
    kinds = shape.codes // 3 if shape.equal else shape.codes
    if shape.drawn != "normal":
        tokens, codes = (numbers.grid((count, dimensions), 1, 4, random) for count in (wanted, kinds))
        if shape.drawn == "axes":
            codes *= F.one_hot(torch.randint(dimensions, (kinds,), generator=random), dimensions)
    else:
        codes = (numbers.normal((kinds, dimensions), random) + shape.origin).to(dtype).double()
        near = codes[torch.randint(kinds, (4 * wanted,), generator=random)]
        drawn = (near + numbers.normal(near.shape, random) / 2).to(dtype).double()
        tokens = clear(drawn, codes, shape.metric)[:wanted]
        assert tokens.shape[0] == wanted, f"{shape}: too few tokens that are clearly nearest to one code"
    return tokens.reshape(shape.size), codes.repeat(3, 1) if shape.equal else codes


def clear(tokens: Tensor, codes: Tensor, metric: str) -> Tensor:
    """The tokens whose choice no rounding of float32 can change."""
    if codes.shape[0] == 1:
        return tokens
    scores = costs(tokens, codes, metric)
    least = scores.topk(2, dim=1, largest=False).values
    scale = scores.amax(dim=1) if metric == "euclidean" else tokens.norm(dim=1)
    return tokens[least[:, 1] - least[:, 0] > 1e-3 * scale]


def costs(tokens: Tensor, codes: Tensor, metric: str) -> Tensor:
    """(N, D) and (K, D) -> (N, K), of which the least in a row is wanted: by differences, one dimension at a time."""
    if metric == "cosine":
        return -tokens @ F.normalize(codes, dim=1, eps=0.0).nan_to_num().T
    total = tokens.new_zeros(tokens.shape[0], codes.shape[0])
    for token, code in zip(tokens.T, codes.T, strict=True):
        total += (token[:, None] - code[None, :]).square()
    return total


def problem(shape: Shape, layout: str, dtype: torch.dtype, device: torch.device) -> Problem:
    tokens, codes = draw(shape, dtype)
    # In float64 the gradient is on a grid, so that the reference of its sums is exact.
    random = numbers.generator(shape, dtype, "grad")
    grad = numbers.grid(shape.size, 1 / 8, 16, random) if dtype is torch.float64 else numbers.normal(shape.size, random)
    codebook = codes.to(shape.codebook or dtype)
    return Problem(
        inputs={
            "tokens": moved(lay_out(tokens.to(dtype), layout, "tokens"), device),
            "codebook": moved(lay_out(codebook, "contiguous" if layout == "expanded" else layout, "codebook"), device),
        },
        settings={"metric": shape.metric},
        function=nearest_code,
        definition=definition,
        eager=eager,
        leader="tokens",
        grads=(moved(lay_out(grad.to(dtype), layout, "grad"), device),),
        constant=frozenset({"tokens"}),
    )


def definition(tokens: Tensor, codebook: Tensor, *, metric: str) -> NearestCode:
    return NearestCode(*reference.nearest_code(tokens, codebook, metric))


def eager(tokens: Tensor, codebook: Tensor, *, metric: str) -> NearestCode:
    """What users write: all distances at once. On the CPU half types have none, so they are formed in float32."""
    flat, codes = tokens.detach().reshape(-1, tokens.shape[-1]), codebook.detach()
    if tokens.dtype.itemsize == 2:
        flat, codes = flat.float(), codes.float()
    if metric == "cosine":
        index = (F.normalize(flat, dim=1) @ F.normalize(codes, dim=1).T).argmax(dim=1)
    else:
        index = torch.cdist(flat, codes).argmin(dim=1)
    index = index.reshape(tokens.shape[:-1])
    return NearestCode(codebook[index], index)


def statistics_problem(shape: Shape, layout: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """One token in nine counts nowhere."""
    tokens, _ = draw(shape, dtype)
    random = numbers.generator(shape, dtype, "index")
    index = torch.randint(shape.codes, shape.leading, generator=random)
    index = index.where(torch.rand(shape.leading, generator=random) > 1 / 9, -1)
    return Problem(
        inputs={
            "tokens": moved(lay_out(tokens.to(dtype), layout, "tokens"), device),
            "index": moved(_index_laid_out(index, layout), device),
        },
        settings={"codes": shape.codes},
        function=code_statistics,
        definition=statistics_definition,
        eager=eager_statistics,
        leader="tokens",
    )


def _index_laid_out(index: Tensor, layout: str) -> Tensor:
    """Layouts fill what lies beside a view with NaN, which integers do not have."""
    if layout == "expanded":
        return index[:1].expand_as(index)
    return index if layout == "contiguous" else index.repeat_interleave(2, dim=-1)[..., ::2] if index.dim() else index


def statistics_definition(tokens: Tensor, index: Tensor, *, codes: int) -> CodeStatistics:
    total, count = reference.code_statistics(tokens, index, codes)
    return CodeStatistics(count, total)


def eager_statistics(tokens: Tensor, index: Tensor, *, codes: int) -> CodeStatistics:
    """What users write: a one-hot, and its product with the tokens."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    flat = flat if tokens.dtype is torch.float64 else flat.float()
    one_hot = (index.reshape(-1, 1) == torch.arange(codes, device=index.device)).to(flat.dtype)
    return CodeStatistics(one_hot.sum(dim=0).to(torch.int64), one_hot.T @ flat)


def example(
    size: tuple[int, ...],
    codes: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    **changes: object,
) -> Problem:
    """One problem of this shape on the CPU, for tests that need any: `changes` are the other fields of `Shape`."""
    shape = replace(Shape("example", size, codes), **changes)  # type: ignore[arg-type]
    return problem(shape, layout, dtype, torch.device("cpu"))


def statistics_example(
    size: tuple[int, ...], codes: int, dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> Problem:
    return statistics_problem(Shape("example", size, codes), layout, dtype, torch.device("cpu"))


SUITES = {
    "nearest_code": Suite(
        nearest_cases, results={"forward": ("quantized", "index"), "backward": ("gradient of codebook",)}
    ),
    "code_statistics": Suite(statistics_cases, results={"forward": ("sum", "count")}),
}

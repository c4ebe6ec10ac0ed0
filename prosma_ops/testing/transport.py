"""sinkhorn, transport_plan, transport_align and apply_plan: their cases, and the plain loops as a user writes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import transport as operators
from ..ops.transport import Potentials
from ..ops.transport_arguments import masses_of, with_heads
from ..reference import transport as reference_of
from . import numbers
from .case import DTYPES, Case, Problem, Suite
from .layouts import LAYOUTS, lay_out, moved

MASSES = ("row_mass", "column_mass", "mask")
OPERATORS = ("sinkhorn", "transport_plan", "transport_align", "apply_plan")


@dataclass(frozen=True)
class Shape:
    """One case in words: what `problem` builds in any layout and dtype."""

    name: str
    size: tuple[int, int, int]  # B, n, p
    features: int = 5  # of tokens; plans of scores have none
    heads: int = 0  # 0: a reference without the axis of heads
    epsilon: float = 0.7
    iterations: int = 6
    masses: str = ""  # "shared" by all items, "item": one for each, "zeros": some of these are 0
    mask: str = ""  # "ragged": of every item others are masked out, "nothing": of the last item all
    stops: bool = False  # with a tolerance, at which some items stop early
    gradient: str = "unrolled"
    score: str = "dot"
    side: str = "columns"
    deviation: float = 1.0  # of the scores
    parameters: torch.dtype | None = None  # of the reference, where it has not the dtype of the tokens


EUCLIDEAN: dict[str, Any] = {"score": "negative_squared_distance", "epsilon": 3.0}
# Converged to float64 rounding: then it is the gradient of the loop.
IMPLICIT: dict[str, Any] = {"gradient": "implicit", "iterations": 40, "epsilon": 2.5}
PLAIN = (
    Shape("plain", (2, 7, 9)),
    Shape("masses of every item, ragged", (3, 9, 5), masses="item", mask="ragged", heads=2),
    Shape("Euclidean, heads", (2, 5, 11), heads=3, **EUCLIDEAN),
    Shape("rows", (2, 9, 7), heads=2, side="rows"),
)
SPECIAL = (
    Shape("one iteration", (2, 7, 9), iterations=1),
    Shape("two iterations, one head", (2, 6, 9), iterations=2, heads=1),
    Shape("many iterations", (2, 6, 5), iterations=25),
    Shape("shared masses", (2, 7, 9), masses="shared"),
    Shape("zero masses", (3, 11, 8), masses="zeros", heads=2),
    Shape("zero masses, rows", (3, 11, 8), masses="zeros", side="rows", **EUCLIDEAN),
    Shape("ragged", (4, 9, 6), mask="ragged", heads=2),
    Shape("ragged, Euclidean, rows", (4, 9, 6), mask="ragged", side="rows", **EUCLIDEAN),
    Shape("an item without a token", (3, 5, 6), mask="nothing"),
    Shape("tolerance", (5, 7, 6), iterations=16, stops=True, heads=2),
    Shape("tolerance, ragged, masses", (4, 9, 6), iterations=20, stops=True, mask="ragged", masses="item"),
    Shape("implicit", (2, 7, 5), **IMPLICIT),
    # 30 iterations: after 40 rounding has added up in float64 to 5e-15, in the reference as much as in the kernels.
    Shape(
        "implicit, ragged, zero masses",
        (3, 8, 9),
        **IMPLICIT | {"iterations": 30},
        mask="ragged",
        masses="zeros",
        heads=2,
    ),
    Shape("implicit, tall", (1, 37, 4), **IMPLICIT, heads=1),
    Shape("one row", (2, 1, 9)),
    Shape("one column", (2, 9, 1), side="rows"),
    Shape("one of each", (3, 1, 1), features=1),
    Shape("no multiple of anything", (1, 37, 67), features=19, heads=2, epsilon=2.0),
    Shape("whole vectors", (1, 32, 64), features=32, epsilon=3.0),
    Shape("tall", (1, 151, 7), features=3, side="rows"),
    Shape("wide", (1, 5, 301), features=3),
    Shape("wide, Euclidean", (1, 5, 131), features=2, heads=2, side="rows", **EUCLIDEAN),
    # On a GPU a warp keeps 1024 columns in its registers, and no more.
    Shape("very wide, tolerance, ragged", (3, 4, 1060), 2, iterations=9, stops=True, mask="ragged", masses="item"),
    Shape("many items", (19, 5, 6), mask="ragged"),
    Shape("sharp", (2, 12, 11), epsilon=0.05, deviation=0.5),
    Shape("sharp, tolerance", (2, 7, 6), epsilon=0.1, iterations=30, deviation=0.5, stops=True),
    Shape("blunt", (2, 7, 6), epsilon=10.0),
    Shape("float32 reference", (2, 7, 6), heads=2, parameters=torch.float32),
)
COMMON = ("contiguous", "channels_last")
# A millisecond each when compiled, and up to seconds under Triton's interpreter. The first is in every layout.
TINY = (
    Shape("plain", (2, 3, 4), features=3, iterations=2),
    Shape("Euclidean, heads, ragged, rows", (2, 4, 3), 2, 2, iterations=2, mask="ragged", side="rows", **EUCLIDEAN),
    Shape("tolerance, zero masses", (3, 4, 5), features=2, iterations=9, masses="zeros", stops=True),
    Shape("implicit", (1, 3, 3), features=2, **IMPLICIT),
    Shape("one iteration, shared masses", (1, 3, 2), features=2, iterations=1, masses="shared"),
    Shape("float32 reference", (1, 3, 2), features=2, iterations=2, parameters=torch.float32),
)


def cases(operator: str, size: str) -> list[Case]:
    if size == "tiny":
        chosen = [(TINY[0], layout) for layout in LAYOUTS]
        chosen += [(shape, "contiguous") for shape in TINY[1:]]
    else:
        chosen = [(shape, layout) for shape in PLAIN for layout in LAYOUTS]
        chosen += [(shape, layout) for shape in SPECIAL for layout in COMMON]
    return [
        Case(operator, shape.name, layout, dtype, partial(problem, operator, shape, layout, dtype))
        for shape, layout in chosen
        for dtype in DTYPES
        if _makes_sense(operator, shape, dtype)
        and (_worth_interpreting if size == "tiny" else _worth_running)(shape, layout, dtype)
    ]


def _makes_sense(operator: str, shape: Shape, dtype: torch.dtype) -> bool:
    if shape.parameters is not None and (dtype.itemsize != 2 or operator in ("sinkhorn", "transport_plan")):
        return False
    if 1 in shape.size[1:] and operator in ("sinkhorn", "transport_align"):
        return False  # potentials and gradients that are 0 but for rounding have no scale to be judged by
    if operator == "sinkhorn":
        return shape.gradient == "unrolled"
    return operator != "apply_plan" or not (shape.stops or shape.gradient == "implicit")


def _worth_running(shape: Shape, layout: str, dtype: torch.dtype) -> bool:
    """Where only addresses differ, float32 and one half type will do."""
    return layout == "contiguous" or dtype in (torch.float32, torch.bfloat16)


def _worth_interpreting(shape: Shape, layout: str, dtype: torch.dtype) -> bool:
    """Of the tiny cases float32 has all; the others what their loads and stores can get wrong."""
    return dtype is torch.float32 or shape.parameters is not None or (shape is TINY[0] and layout in COMMON)


class Aligned(NamedTuple):
    """What transport_align returns, flat."""

    aligned: Tensor
    row: Tensor
    column: Tensor


def problem(operator: str, shape: Shape, layout: str, dtype: torch.dtype, device: torch.device) -> Problem:
    if operator == "apply_plan":
        return _problem_of_apply(shape, layout, dtype, device)
    random = numbers.generator(operator, shape, dtype)
    of_tokens = operator == "transport_align"
    inputs = _tokens(shape, dtype, random) if of_tokens else {"scores": _scores(shape, dtype, random)}
    inputs = {name: arranged(values, layout, name) for name, values in inputs.items()}
    masses = _masses(shape, random)
    settings: dict[str, Any] = {"epsilon": shape.epsilon, "iterations": shape.iterations, "tolerance": 0.0}
    if of_tokens:
        settings["score"] = shape.score
    if shape.stops:
        settings["tolerance"] = _tolerance(shape, inputs, masses)
    if operator != "sinkhorn":
        settings["gradient"] = shape.gradient
    grads = [arranged(grad, layout, "grad") for grad in _grads(operator, shape, dtype, random, masses)]
    placed = {name: None if t is None else moved(t, device) for name, t in (inputs | masses).items()}
    functions = FUNCTIONS[operator]
    return Problem(
        inputs=placed,
        settings=settings,
        function=functions[0],
        definition=functions[1],
        eager=functions[2],
        leader="tokens" if of_tokens else "scores",
        grads=tuple(moved(grad, device) for grad in grads),
        constant=frozenset(MASSES),
    )


def _problem_of_apply(shape: Shape, layout: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """Potentials as `transport_align` finds them, in its dtype."""
    random = numbers.generator("apply_plan", shape, dtype)
    tokens = _tokens(shape, dtype, random)
    masses = _masses(shape, random)
    settings: dict[str, Any] = {"epsilon": shape.epsilon, "score": shape.score}
    exact = {name: values.double() for name, values in tokens.items()}
    found = define_align(
        exact["tokens"],
        exact["reference"],
        *(masses[name] for name in MASSES),
        score=shape.score,
        epsilon=shape.epsilon,
        iterations=shape.iterations,
    )
    exactness = torch.float64 if dtype is torch.float64 else torch.float32
    (batch, rows, columns), features = shape.size, shape.features + 1
    columns_side = shape.side == "columns"
    of_supports = (batch, shape.heads, columns, features) if shape.heads else (batch, columns, features)
    of_tokens = (batch, rows, features)
    values, grad = (
        numbers.normal(size, random).to(dtype)
        for size in ((of_tokens, of_supports) if columns_side else (of_supports, of_tokens))
    )
    inputs = tokens | {"row": found.row.to(exactness), "column": found.column.to(exactness), "values": values}
    return Problem(
        inputs={name: moved(arranged(values, layout, name), device) for name, values in inputs.items()},
        settings=settings | {"side": shape.side},
        function=apply,
        definition=define_apply,
        eager=eager_apply,
        leader="tokens",
        grads=(moved(arranged(grad, layout, "grad"), device),),
    )


def example(
    operator: str,
    size: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    **changes: object,
) -> Problem:
    """One problem of this size on the CPU, for tests that need any: `changes` are the other fields of `Shape`."""
    shape = replace(Shape("example", size), **changes)  # type: ignore[arg-type]
    return problem(operator, shape, layout, dtype, torch.device("cpu"))


# The layouts that sequences come in: (B, n, D) is as often a feature map, flattened and transposed.

_MIXED = {"scores": "contiguous", "tokens": "channels_last", "values": "chunk", "grad": "sliced"}


def arranged(values: Tensor, layout: str, role: str) -> Tensor:
    if layout == "mixed":
        layout = _MIXED.get(role, "transposed")
    if layout == "expanded" and role == "reference":
        layout = "sliced"  # supports that are all the same have potentials of 0, and no scale to be judged by
    if values.dim() != 3 or layout in ("contiguous", "expanded", "sliced"):
        return lay_out(values, layout, role)
    order = {"channels_last": (0, 2, 1), "transposed": (1, 0, 2), "channels_last_chunk": (0, 2, 1), "chunk": (0, 1, 2)}
    axes = order[layout]
    stored = values.permute(axes).contiguous()  # each order is its own inverse
    if layout.endswith("chunk"):
        whole = torch.full((stored.shape[0], stored.shape[1] + 5, stored.shape[2]), math.nan, dtype=values.dtype)
        whole[:, 2:-3] = stored
        stored = whole[:, 2:-3]
    return stored.permute(axes)


# The numbers.


def _scores(shape: Shape, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    return (shape.deviation * numbers.normal(shape.size, random)).to(dtype)


def _tokens(shape: Shape, dtype: torch.dtype, random: torch.Generator) -> dict[str, Tensor]:
    """Scaled so that scores have the deviation asked for, whatever the number of features."""
    batch, rows, columns = shape.size
    supports = (columns, shape.features) if shape.heads == 0 else (shape.heads, columns, shape.features)
    scale = math.sqrt(shape.deviation) * shape.features**-0.25
    tokens = scale * numbers.normal((batch, rows, shape.features), random)
    reference = scale * numbers.normal(supports, random)
    return {"tokens": tokens.to(dtype), "reference": reference.to(shape.parameters or dtype)}


def _masses(shape: Shape, random: torch.Generator) -> dict[str, Tensor | None]:
    """Float64, as they are used; the rows' have the total of the columns' after the mask."""
    batch, rows, columns = shape.size
    mask = None
    if shape.mask:
        mask = torch.rand((batch, rows), generator=random) < 0.7
        mask[:, 0] = True
        if shape.mask == "nothing":
            mask[-1] = False
    if not shape.masses:
        return {"row_mass": None, "column_mass": None, "mask": mask}
    leading = () if shape.masses == "shared" else (batch,)
    row_mass = 0.2 + torch.rand((*leading, rows), generator=random, dtype=torch.float64)
    column_mass = 0.2 + torch.rand((*leading, columns), generator=random, dtype=torch.float64)
    if shape.masses == "zeros":
        row_mass[..., 1::3] = 0
        column_mass[..., 2::4] = 0
    taking_part = row_mass if mask is None else row_mass * mask
    row_mass = row_mass * column_mass.sum(dim=-1, keepdim=True) / taking_part.sum(dim=-1, keepdim=True)
    return {"row_mass": row_mass, "column_mass": column_mass, "mask": mask}


def _grads(
    operator: str, shape: Shape, dtype: torch.dtype, random: torch.Generator, masses: dict[str, Tensor | None]
) -> list[Tensor]:
    batch, rows, columns = shape.size
    heads = (shape.heads,) if shape.heads and operator == "transport_align" else ()
    exactness = torch.float64 if dtype is torch.float64 else torch.float32
    grads = []
    if operator == "transport_plan" and 1 in shape.size[1:]:
        return []
    if operator == "transport_plan":
        return [numbers.normal(shape.size, random).to(dtype)]
    if operator == "transport_align":
        grads.append(numbers.normal((batch, *heads, columns, shape.features), random).to(dtype))
    of_rows = numbers.grid((batch, *heads, rows), 1 / 8, 16, random)
    of_columns = numbers.grid((batch, *heads, columns), 1 / 8, 16, random)
    if shape.gradient == "implicit":
        _balance(of_rows, of_columns, shape, masses)
    return [*grads, of_rows.to(exactness), of_columns.to(exactness)]


def _balance(of_rows: Tensor, of_columns: Tensor, shape: Shape, masses: dict[str, Tensor | None]) -> None:
    """What asks for the constant between rows and columns has no gradient at the fixed point: equal totals, exactly."""
    leader = of_rows.new_empty(shape.size)
    row_mass, column_mass = masses_of(leader, shape.size[2], *(masses[name] for name in MASSES))
    for mass, grad in ((row_mass, of_rows), (column_mass, of_columns)):
        grad *= (mass if grad.dim() == 2 else mass.unsqueeze(1)) > 0
    of_rows[..., 0] += of_columns.sum(dim=-1) - of_rows.sum(dim=-1)


def _tolerance(shape: Shape, inputs: dict[str, Tensor], masses: dict[str, Tensor | None]) -> float:
    """In the widest gap between the errors of all items and iterations: no rounding changes who stops when."""
    leader = next(iter(inputs.values()))
    row_mass, column_mass = masses_of(leader, shape.size[2], *(masses[name] for name in MASSES))
    if "scores" in inputs:
        mass = reference_of.marginals(row_mass, column_mass)
        scores = reference_of.only(inputs["scores"].double(), mass.pairs)
    else:
        supports = inputs["reference"] if shape.heads else inputs["reference"].unsqueeze(0)
        mass = reference_of.marginals(*reference_of.headed(row_mass, column_mass, max(shape.heads, 1)))
        pair = reference_of.pair_of(inputs["tokens"], supports, mass)
        scores = reference_of.scores_of(pair, operators.SCORES.index(shape.score))
    column, errors = torch.zeros_like(mass.column_mass), []
    for _ in range(shape.iterations):
        row = reference_of.row_update(scores, column, mass, shape.epsilon)
        column = reference_of.column_update(scores, row, mass, shape.epsilon)
        plan = reference_of.plan_of(scores, row, mass, shape.epsilon)
        errors.append(reference_of.row_error(plan, mass).flatten())
    sizes = torch.cat(errors).log()
    sizes = sizes[(sizes > math.log(1e-4)) & (sizes < math.log(0.3))].sort().values
    assert len(sizes) > 1, f"{shape} converges at once"
    widest = int(sizes.diff().argmax())
    return math.exp(float(sizes[widest] + sizes[widest + 1]) / 2)


# The public functions, and the definition, which autograd differentiates.


def sinkhorn(**arguments: Any) -> Potentials:
    return operators.sinkhorn(**arguments)


def plan(**arguments: Any) -> Tensor:
    return operators.transport_plan(**arguments)


def align(**arguments: Any) -> Aligned:
    aligned, (row, column) = operators.transport_align(**arguments, return_potentials=True)
    return Aligned(aligned, row, column)


def apply(tokens: Tensor, reference: Tensor, row: Tensor, column: Tensor, values: Tensor, **settings: Any) -> Tensor:
    return operators.apply_plan(tokens, reference, Potentials(row, column), values, **settings)


def define_plan(
    scores: Tensor,
    row_mass: Tensor | None,
    column_mass: Tensor | None,
    mask: Tensor | None,
    *,
    epsilon: float,
    iterations: int,
    tolerance: float,
    gradient: str,
) -> Tensor:
    both = masses_of(scores, scores.shape[2], row_mass, column_mass, mask)
    return reference_of.plan_forward(scores, *both, epsilon, iterations, tolerance, 1, True)[0]


def define_sinkhorn(
    scores: Tensor,
    row_mass: Tensor | None,
    column_mass: Tensor | None,
    mask: Tensor | None,
    *,
    epsilon: float,
    iterations: int,
    tolerance: float,
) -> Potentials:
    both = masses_of(scores, scores.shape[2], row_mass, column_mass, mask)
    found = reference_of.plan_forward(scores, *both, epsilon, iterations, tolerance, 1, False)
    return Potentials(found[1], found[2])


def define_align(
    tokens: Tensor,
    reference: Tensor,
    row_mass: Tensor | None,
    column_mass: Tensor | None,
    mask: Tensor | None,
    *,
    score: str,
    epsilon: float,
    iterations: int,
    tolerance: float = 0.0,
    gradient: str = "unrolled",
) -> Aligned:
    supports = with_heads(reference)
    both = masses_of(tokens, supports.shape[1], row_mass, column_mass, mask)
    which = operators.SCORES.index(score)
    found = reference_of.align_forward(tokens, supports, *both, which, epsilon, iterations, tolerance, 1)[:3]
    return Aligned(*(result if reference.dim() == 3 else result.squeeze(1) for result in found))


def define_apply(
    tokens: Tensor,
    reference: Tensor,
    row: Tensor,
    column: Tensor,
    values: Tensor,
    *,
    side: str,
    score: str,
    epsilon: float,
) -> Tensor:
    columns_side, flat = side == "columns", reference.dim() == 2
    if flat:
        row, column = row.unsqueeze(1), column.unsqueeze(1)
        values = values if columns_side else values.unsqueeze(1)
    both = (tokens, with_heads(reference), row, column, values)
    found = reference_of.apply_forward(*both, columns_side, operators.SCORES.index(score), epsilon)
    return found.squeeze(1) if flat and columns_side else found


# The loops as a user writes them, in the dtype of their tensors: the rivals of the benchmarks as well.


def eager_potentials(
    scores: Tensor,
    row_mass: Tensor | None = None,
    column_mass: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    epsilon: float,
    iterations: int,
    tolerance: float = 0.0,
) -> Potentials:
    """scores (..., n, p), masses and mask broadcastable against (..., n) and (..., p).

    The formula, and where a mass is 0 a potential of -inf: of columns from the start, or the first f would see them.
    """
    a = scores.new_full(scores.shape[-2:-1], 1 / scores.shape[-2]) if row_mass is None else row_mass
    b = scores.new_full(scores.shape[-1:], 1 / scores.shape[-1]) if column_mass is None else column_mass
    if mask is not None:
        a = a * mask if row_mass is not None else mask.to(scores.dtype) / mask.sum(dim=-1, keepdim=True)
    f, g = scores.new_zeros(scores.shape[:-1]), scores.new_zeros((*scores.shape[:-2], scores.shape[-1]))
    g = torch.where(b > 0, g, -math.inf)
    running = None
    for _ in range(iterations):
        logits = (scores + g.unsqueeze(-2)) / epsilon
        next_f = torch.where(a > 0, epsilon * (a.log() - logits.logsumexp(dim=-1)), -math.inf)
        logits = (scores + next_f.unsqueeze(-1)) / epsilon
        next_g = torch.where(b > 0, epsilon * (b.log() - logits.logsumexp(dim=-2)), -math.inf)
        if running is None:
            f, g = next_f, next_g
        else:
            f, g = torch.where(running, next_f, f), torch.where(running, next_g, g)
        if tolerance > 0:
            rows = eager_exponential(scores, f, g, epsilon).sum(dim=-1)
            error = torch.where(a > 0, (rows - a).abs() / a, 0.0).amax(dim=-1, keepdim=True)
            running = (error >= tolerance) if running is None else running & (error >= tolerance)
    return Potentials(f, g)


def eager_exponential(scores: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    return ((scores + f.unsqueeze(-1) + g.unsqueeze(-2)) / epsilon).exp()


def eager_plan(
    scores: Tensor,
    row_mass: Tensor | None = None,
    column_mass: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    epsilon: float,
    iterations: int,
    tolerance: float = 0.0,
    gradient: str = "unrolled",
) -> Tensor:
    settings: dict[str, Any] = {"epsilon": epsilon, "iterations": iterations, "tolerance": tolerance}
    return eager_exponential(scores, *eager_potentials(scores, row_mass, column_mass, mask, **settings), epsilon)


def eager_scores(tokens: Tensor, reference: Tensor, score: str) -> Tensor:
    """(B, n, p), or (B, m, n, p) where the reference has heads."""
    x = tokens if reference.dim() == 2 else tokens.unsqueeze(1)
    scores = x @ reference.mT
    if score == "dot":
        return scores
    return 2 * scores - x.square().sum(dim=-1, keepdim=True) - reference.square().sum(dim=-1).unsqueeze(-2)


def _for_heads(mass: Tensor | None, reference: Tensor) -> Tensor | None:
    return mass if mass is None or mass.dim() == 1 or reference.dim() == 2 else mass.unsqueeze(1)


def eager_align(
    tokens: Tensor,
    reference: Tensor,
    row_mass: Tensor | None = None,
    column_mass: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    score: str,
    epsilon: float,
    iterations: int,
    tolerance: float = 0.0,
    gradient: str = "unrolled",
) -> Aligned:
    scores = eager_scores(tokens, reference, score)
    masses = (_for_heads(mass, reference) for mass in (row_mass, column_mass, mask))
    found = eager_potentials(scores, *masses, epsilon=epsilon, iterations=iterations, tolerance=tolerance)
    moved_plan = eager_exponential(scores, *found, epsilon).mT
    return Aligned(moved_plan @ (tokens if reference.dim() == 2 else tokens.unsqueeze(1)), *found)


def eager_apply(
    tokens: Tensor,
    reference: Tensor,
    row: Tensor,
    column: Tensor,
    values: Tensor,
    *,
    side: str,
    score: str,
    epsilon: float,
) -> Tensor:
    moving = eager_exponential(eager_scores(tokens, reference, score), row, column, epsilon)
    if side == "columns":
        return moving.mT @ (values if reference.dim() == 2 else values.unsqueeze(1))
    return moving @ values if reference.dim() == 2 else (moving @ values).sum(dim=1)


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "sinkhorn": (sinkhorn, define_sinkhorn, eager_potentials),
    "transport_plan": (plan, define_plan, eager_plan),
    "transport_align": (align, define_align, eager_align),
}


def _gradients_of(*names: str) -> tuple[str, ...]:
    return tuple(f"gradient of {name}" for name in names)


RESULTS: dict[str, dict[str, tuple[str, ...]]] = {
    "sinkhorn": {"forward": ("row", "column"), "backward": _gradients_of("scores")},
    "transport_plan": {"forward": ("result",), "backward": _gradients_of("scores")},
    "transport_align": {"forward": Aligned._fields, "backward": _gradients_of("tokens", "reference")},
    "apply_plan": {
        "forward": ("result",),
        "backward": _gradients_of("tokens", "reference", "row", "column", "values"),
    },
}
SUITES = {operator: Suite(partial(cases, operator), RESULTS[operator]) for operator in OPERATORS}

"""What the operators of transport ask of their arguments, and what they make of masses and masks.

Masses and mask become two float64 tensors of masses, (B, n) and (B, p), in which what takes no part has mass 0: no
backend sees defaults or masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import errors
from ..reference.precision import compute_dtype
from ..reference.transport import SCORES
from . import checks

# Totals of masses may differ by this share of the larger one: what float16 makes of 1/n, added up.
TOTALS_DIFFER = 1e-3


Masses = tuple[Tensor | None, Tensor | None, Tensor | None]  # row_mass, column_mass, mask


def leader_and_masses(
    leader: Any, row_mass: Any, column_mass: Any, mask: Any, name: str = "scores"
) -> tuple[Tensor, Masses]:
    """The arguments that are tensors, plain."""
    found = checks.plain(name, leader)
    masses = {
        "row_mass": checks.optional("row_mass", row_mass),
        "column_mass": checks.optional("column_mass", column_mass),
    }
    for role, mass in masses.items():
        if mass is not None and mass.requires_grad:
            raise ValueError(f"{role} requires a gradient, and masses have none; give {role}.detach()")
    return found, (masses["row_mass"], masses["column_mass"], checks.optional("mask", mask))


def positive_epsilon(value: Any) -> float:
    found = checks.number("epsilon", value)
    if not 0 < found < math.inf:
        raise ValueError(f"epsilon is {value!r}; it must be a finite number above 0")
    return found


def plain_numbers(epsilon: Any, iterations: Any, tolerance: Any) -> tuple[float, int, float]:
    if not isinstance(iterations, int) or isinstance(iterations, bool):
        raise TypeError(f"iterations is {iterations!r}; it must be an integer of at least 1")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be an integer of at least 1")
    largest_error = checks.number("tolerance", tolerance)
    if not 0 <= largest_error < math.inf:
        raise ValueError(f"tolerance is {tolerance!r}; it must be a finite number, above 0 or 0 for none")
    return positive_epsilon(epsilon), iterations, largest_error


def history_length(iterations: int, gradient: str, *tensors: Tensor) -> int:
    """How many column potentials the forward keeps: those of every iteration only to go back through them."""
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return iterations if wanted and gradient == "unrolled" else 1


def with_heads(reference: Tensor) -> Tensor:
    if reference.dim() not in (2, 3):
        checks.wrong_rank("reference", reference, "(p, D), or (m, p, D) with heads")
    return reference.unsqueeze(0) if reference.dim() == 2 else reference


def pair(name: str, values: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(values, Sequence) or len(values) != 2:
        raise TypeError(f"{name} is a {type(values).__name__}; it must be Potentials(row, column)")
    return checks.plain(f"{name}.row", values[0]), checks.plain(f"{name}.column", values[1])


def one_head(name: str, values: Tensor, rank: int) -> Tensor:
    if values.dim() != rank:
        checks.wrong_rank(name, values, f"of {rank} dimensions beside a reference of (p, D)")
    return values.unsqueeze(1)


# Every way into an operator passes these, real tensors and traced ones: no kernel sees unchecked arguments.


def _check_numbers(epsilon: float, iterations: int, tolerance: float, keep: int) -> None:
    plain_numbers(epsilon, iterations, tolerance)
    if keep not in (1, iterations):
        raise ValueError(f"keep is {keep}; it must be 1, or iterations = {iterations}")


def _check_masses(
    leader_name: str,
    leader: Tensor,
    columns: int,
    row_mass: Tensor | None,
    column_mass: Tensor | None,
    mask: Tensor | None,
) -> None:
    batch, rows = leader.shape[:2]
    for name, mass, count, letter in (("row_mass", row_mass, rows, "n"), ("column_mass", column_mass, columns, "p")):
        if mass is None:
            continue
        checks.floating(name, mass)
        checks.same_device(name, mass, leader_name, leader)
        if mass.dim() not in (1, 2):
            checks.wrong_rank(name, mass, f"({letter},) or (B, {letter})")
        expected = (count,) if mass.dim() == 1 else (batch, count)
        if mass.shape != expected:
            checks.wrong_shape(name, mass, expected, f"({letter},) or (B, {letter}) of {leader_name}")
    if mask is not None:
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask is {mask.dtype}; it must be torch.bool, True where a token takes part")
        checks.same_device("mask", mask, leader_name, leader)
        if mask.shape != (batch, rows):
            checks.wrong_shape("mask", mask, (batch, rows), f"(B, n) of {leader_name}")


def check_plan(
    scores: Tensor,
    row_mass: Tensor | None,
    column_mass: Tensor | None,
    mask: Tensor | None,
    epsilon: float,
    iterations: int,
    tolerance: float,
    keep: int,
) -> None:
    checks.floating("scores", scores)
    if scores.dim() != 3:
        checks.wrong_rank("scores", scores, "(B, n, p)")
    if 0 in scores.shape[1:]:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; it must have 1 row or more, and 1 column or more")
    _check_masses("scores", scores, scores.shape[2], row_mass, column_mass, mask)
    _check_numbers(epsilon, iterations, tolerance, keep)


def _check_tokens(tokens: Tensor, reference: Tensor) -> None:
    checks.floating("tokens", tokens)
    if tokens.dim() != 3:
        checks.wrong_rank("tokens", tokens, "(B, n, D)")
    if 0 in tokens.shape[1:]:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; it must have 1 token or more, of 1 feature or more")
    checks.companion("reference", reference, "tokens", tokens)
    if reference.dim() != 3:
        checks.wrong_rank("reference", reference, "(p, D), or (m, p, D) with heads")
    if 0 in reference.shape:
        raise ValueError(
            f"reference has shape {tuple(reference.shape)}; it must have 1 head or more, and 1 support or more"
        )
    if reference.shape[2] != tokens.shape[2]:
        raise ValueError(
            f"reference has {reference.shape[2]} features and tokens {tokens.shape[2]}; D must be the same in both"
        )


def check_align(
    tokens: Tensor,
    reference: Tensor,
    row_mass: Tensor | None,
    column_mass: Tensor | None,
    mask: Tensor | None,
    score: str,
    epsilon: float,
    iterations: int,
    tolerance: float,
    keep: int,
) -> None:
    _check_tokens(tokens, reference)
    checks.choice("score", score, SCORES)
    _check_masses("tokens", tokens, reference.shape[1], row_mass, column_mass, mask)
    _check_numbers(epsilon, iterations, tolerance, keep)


def check_apply(
    tokens: Tensor,
    reference: Tensor,
    row: Tensor,
    column: Tensor,
    values: Tensor,
    columns_side: bool,
    score: str,
    epsilon: float,
) -> None:
    _check_tokens(tokens, reference)
    checks.choice("score", score, SCORES)
    positive_epsilon(epsilon)
    (batch, rows), (heads, columns) = tokens.shape[:2], reference.shape[:2]
    dtype = compute_dtype(tokens.dtype)
    for name, potential, count in (("potentials.row", row, rows), ("potentials.column", column, columns)):
        checks.floating(name, potential)
        checks.same_device(name, potential, "tokens", tokens)
        if potential.dtype is not dtype:
            raise TypeError(f"{name} is {potential.dtype}; it must be {dtype}, as transport_align returns it")
        if potential.shape != (batch, heads, count):
            meaning = "one a token and head" if count == rows else "one a support and head"
            checks.wrong_shape(name, potential, (batch, heads, count), f"{meaning}, (B[, m], {count})")
    checks.floating("values", values)
    checks.same_device("values", values, "tokens", tokens)
    if values.dtype is not tokens.dtype:
        raise TypeError(f"values is {values.dtype}; it must have the dtype of tokens, {tokens.dtype}")
    leading = (batch, rows) if columns_side else (batch, heads, columns)
    if values.shape[:-1] != leading or values.dim() != len(leading) + 1 or values.shape[-1] < 1:
        meaning = "(B, n, E) for side='columns'" if columns_side else "(B[, m], p, E) for side='rows'"
        raise ValueError(f"values has shape {tuple(values.shape)}; it must be {meaning} = {(*leading, 'E')}")


def check_history(history: Tensor, count: Tensor, items: tuple[int, ...], columns: int) -> None:
    """What the forward keeps for the backward."""
    if history.dtype is not torch.float64 or count.dtype is not torch.int32:
        raise TypeError(
            f"history is {history.dtype} and count {count.dtype}; they must be as the forward returned them"
        )
    shape = history.shape
    if len(shape) != len(items) + 2 or shape[:-2] != items or shape[-1] != columns or count.shape != items:
        raise ValueError(
            f"history has shape {tuple(shape)} and count {tuple(count.shape)}; they must be (*items, keep, p) and"
            f" items, with items = {items} and p = {columns}"
        )


def check_gradient(name: str, grad: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if grad is None:
        return
    if grad.dtype is not dtype:
        raise TypeError(f"{name} is {grad.dtype}; it must be {dtype}")
    if grad.shape != shape:
        checks.wrong_shape(name, grad, shape, "the shape of the result")


# Masses and mask, resolved.


def masses_of(
    leader: Tensor, columns: int, row_mass: Tensor | None, column_mass: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(B, n) and (B, p) in float64, the last stride 1; 0 where nothing takes part."""
    batch, rows = leader.shape[:2]
    if row_mass is not None:
        a = _of_every_item(row_mass, batch, rows)
        a = a if mask is None else torch.where(mask, a, 0.0)
    elif mask is not None:
        a = mask.double() / mask.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        a = _uniform(leader, batch, rows)
    b = _uniform(leader, batch, columns) if column_mass is None else _of_every_item(column_mass, batch, columns)
    return a, b


def _uniform(leader: Tensor, batch: int, count: int) -> Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64, device=leader.device).expand(batch, count)


def _of_every_item(mass: Tensor, batch: int, count: int) -> Tensor:
    """In memory one item after the other, or one for all."""
    exact = mass.double()
    if exact.dim() == 2 and batch > 1 and exact.stride(0) == 0:
        exact = exact[0]
    return exact.contiguous().expand(batch, count)


def checked_masses(
    leader: Tensor, columns: int, row_mass: Tensor | None, column_mass: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The masses, their values checked: at once on the CPU, by `check_errors` elsewhere."""
    a, b = masses_of(leader, columns, row_mass, column_mass, mask)
    if row_mass is None and column_mass is None:
        return a, b
    row_total, column_total = a.sum(dim=1), b.sum(dim=1)
    empty = torch.zeros_like(row_total, dtype=torch.bool) if mask is None else ~mask.any(dim=1)
    for name, given, mass, total in (
        ("row_mass", row_mass, a, row_total),
        ("column_mass", column_mass, b, column_total),
    ):
        if given is not None:
            errors.record((mass < 0).any(), f"{name} has a negative entry; masses must be at least 0")
            errors.record(~total.isfinite().all(), f"{name} has an entry that is not finite; masses must be finite")
            without = (total == 0) & ~empty if name == "row_mass" else total == 0
            errors.record(without.any(), f"{name} is all zero for an item; some mass must be above 0")
    apart = (row_total - column_total).abs() > TOTALS_DIFFER * torch.maximum(row_total, column_total)
    errors.record(
        (apart & ~empty).any(),
        "row_mass and column_mass have totals that differ by more than a thousandth; they must be the same for every "
        "item, after the mask (the default masses have total 1)",
    )
    return a, b


def balanced(
    grad_row: Tensor | None, grad_column: Tensor | None, row_mass: Tensor, column_mass: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of potentials for the implicit gradient, with equal totals.

    The fixed point fixes potentials up to a constant moved from rows to columns, and what asks for that constant has
    no gradient there. The excess of one total over the other is taken off both, in proportion to the masses.
    """
    if grad_row is None and grad_column is None:
        return None, None
    a, b = row_mass.unsqueeze(1), column_mass.unsqueeze(1)
    of_rows = torch.zeros_like(a) if grad_row is None else torch.where(a > 0, grad_row.double(), 0.0)
    of_columns = torch.zeros_like(b) if grad_column is None else torch.where(b > 0, grad_column.double(), 0.0)
    excess = of_rows.sum(dim=-1, keepdim=True) - of_columns.sum(dim=-1, keepdim=True)
    smallest = torch.finfo(torch.float64).tiny
    share_a = a / a.sum(dim=-1, keepdim=True).clamp(min=smallest)
    share_b = b / b.sum(dim=-1, keepdim=True).clamp(min=smallest)
    dtype = next(grad.dtype for grad in (grad_row, grad_column) if grad is not None)
    return (of_rows - share_a * excess / 2).to(dtype), (of_columns + share_b * excess / 2).to(dtype)

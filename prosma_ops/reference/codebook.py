"""nearest_code and code_statistics, as they are defined.

    index      the first k with the least |x - c_k|^2                   metric "euclidean"
               the first k with the greatest <x, c_k> / |c_k|           metric "cosine"; a zero code counts as 0
    quantized  c_index, the row as it is stored
    count_k    how many tokens have index k;  sum_k  their sum          an index of -1 counts nowhere

|x|^2 is the same for all codes, and of a code's own terms each metric leaves one row and one number, so that what is
compared is one matrix product:

    score_k = offset_k - <x - shift, row_k>          euclidean: row = c - shift, offset = |row|^2 / 2
                                                     cosine:    row = c / |c|, offset = shift = 0

The shift keeps float32 exact where it matters: of codes around 10^4 and 1 apart |c|^2 / 2 has an error of 6, and their
distances are 1. It moves codes that lie on one side of zero up to it, and leaves others alone.

A score that is not finite counts as infinite. So a code that holds NaN or infinity is never chosen where there is
another, and a token that does, or whose products overflow, has no finite score and gets index 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .precision import compute_dtype, without_autocast

METRICS = ("euclidean", "cosine")
# Scores that stand in memory at once: 4 MiB in float32.
MOST_SCORES = 1 << 20


class Prepared(NamedTuple):
    """What a score is made of: rows (K, D), offset (K,), shift (D,)."""

    rows: Tensor
    offset: Tensor
    shift: Tensor


def shift_of(codes: Tensor) -> Tensor:
    """In each dimension the finite value nearest to zero, if all lie on one side of it; else 0.

    So no row is longer than its code, and where the codes are on a grid, so are the rows: exact ties stay exact.
    """
    finite = codes.isfinite()
    least = codes.where(finite, math.inf).amin(dim=0)
    most = codes.where(finite, -math.inf).amax(dim=0)
    shift = least.clamp(min=0) + most.clamp(max=0)
    return shift.where(shift.isfinite(), 0.0)


def prepare(codes: Tensor, metric: str) -> Prepared:
    """`codes` in the dtype of the scores; norms are formed in float64, so that parallel codes tie under "cosine"."""
    if metric == "cosine":
        exact = codes.double()
        norm = exact.norm(dim=1, keepdim=True)
        rows = (exact / norm.where(norm != 0, 1.0)).to(codes.dtype)
        return Prepared(rows, codes.new_zeros(codes.shape[0]), codes.new_zeros(codes.shape[1]))
    shift = shift_of(codes)
    rows = codes - shift
    return Prepared(rows, rows.double().square().sum(dim=1).to(codes.dtype) / 2, shift)


def first_least(tokens: Tensor, prepared: Prepared) -> Tensor:
    """(N, D) -> (N,). `min` takes the first of equals."""
    scores = torch.addmm(prepared.offset, tokens - prepared.shift, prepared.rows.T, alpha=-1)
    return torch.nan_to_num(scores, nan=math.inf, posinf=math.inf, neginf=math.inf).min(dim=1).indices


@without_autocast
def nearest_index(tokens: Tensor, codebook: Tensor, metric: str) -> Tensor:
    dtype = compute_dtype(tokens.dtype)
    prepared = prepare(codebook.to(dtype), metric)
    flat = tokens.reshape(-1, tokens.shape[-1])
    if torch.compiler.is_exporting():  # the number of parts would be baked in
        index = first_least(flat.to(dtype), prepared)
    else:
        parts = flat.split(max(1, MOST_SCORES // codebook.shape[0]))
        index = torch.cat([first_least(part.to(dtype), prepared) for part in parts])
    return index.reshape(tokens.shape[:-1])


def rows_at(table: Tensor, index: Tensor) -> Tensor:
    """table (K, D), index (...) -> (..., D)."""
    return table.index_select(0, index.reshape(-1)).reshape(*index.shape, table.shape[1])


def nearest_code(tokens: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    index = nearest_index(tokens.detach(), codebook.detach(), metric)
    return rows_at(codebook, index).to(tokens.dtype), index


def nearest_code_backward(grad: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> Tensor:
    """The gradient of the codebook: of each code, the sum over the tokens that chose it."""
    return code_statistics(grad, index, codes)[0].to(dtype)


@without_autocast
def code_statistics(tokens: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """sum and count; in the making the last row of both is that of index -1."""
    flat = tokens.reshape(-1, tokens.shape[-1]).to(compute_dtype(tokens.dtype))
    place = index.reshape(-1)
    place = place.where(place >= 0, codes)
    count = place.new_zeros(codes + 1).index_add(0, place, torch.ones_like(place))
    total = flat.new_zeros(codes + 1, flat.shape[1]).index_add(0, place, flat)
    return total[:codes], count[:codes]


def code_statistics_backward(grad: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the tokens: each has that of its code's sum."""
    rows = rows_at(grad, index.clamp(min=0))
    return torch.where((index >= 0).unsqueeze(-1), rows, torch.zeros_like(rows)).to(dtype)

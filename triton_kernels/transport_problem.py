"""What the host functions of transport tell the kernels: the two sides of a problem, and how it is cut into tiles.

Every choice here is a plain function of n, p, D and dtype, never of the batch: an item gets the same bits in any.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .launch import TRITON_DTYPES, compute_dtype, extent, needs_int64, power_of_two
from .transport_tiles import Tile

SCORES = ("dot", "negative_squared_distance")
# An item of up to so many scores is one program's, in one launch: 20 sweeps over 2^20 take about a millisecond, as long
# as 40 launches take to be started from Python.
LARGEST_WHOLE = 1 << 20
WIDEST_WHOLE = 4096
# 16 numbers a thread of scores and of column sums: see the registers in transport.py.
WHOLE_NUMBERS = 4096
WHOLE_NUMBERS_EXACT = 2048
WHOLE_WARPS = 8
# A side of the tiles that everything else works on: scores, dT, dS and what is moved are in registers at once, which
# at 64 takes 255 of them and spills.
SIDE = 32
DEPTH = 16
# The columns of what is moved that a program makes.
WIDEST = 64
WARPS = 4
MOVE_WARPS = 8
# Scratch of n x p numbers, in bytes.
MOST_SCRATCH = 64 << 20


def bits(value: float) -> int:
    """A Python float reaches a kernel as float32; so its 64 bits travel as an integer."""
    found: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return found


# With its strides (batch, head, line, column); None has strides of 0.
Matrix = tuple[Tensor | None, tuple[int, ...]]
NOTHING: Matrix = (None, (0, 0, 0, 0))


class Side(NamedTuple):
    """The problem as one side of it sees it: `own` lines, and the `other` ones over which it sums."""

    own: Tensor
    other: Tensor | None
    strides_own: tuple[int, ...]  # batch, head, own line, and D or other line
    strides_other: tuple[int, ...]
    own_size: int
    other_size: int
    depth: int
    heads: int
    batch: int
    score: str

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.own_size, self.other_size, self.depth, self.heads

    @property
    def items(self) -> int:
        return self.batch * self.heads


@dataclass(frozen=True)
class Problem:
    """Scores (B, heads, n, p), or tokens (B, n, D) and a reference (heads, p, D) that make them."""

    scores: Tensor | None
    tokens: Tensor | None
    reference: Tensor | None
    score: str
    row_mass: Tensor | None
    column_mass: Tensor | None
    epsilon: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, heads, n, p)"""
        if self.scores is not None:
            return tuple(self.scores.shape)  # type: ignore[return-value]
        assert self.tokens is not None
        assert self.reference is not None
        return self.tokens.shape[0], self.reference.shape[0], self.tokens.shape[1], self.reference.shape[1]

    @property
    def leader(self) -> Tensor:
        leader = self.scores if self.scores is not None else self.tokens
        assert leader is not None
        return leader

    @property
    def dtype(self) -> torch.dtype:
        """What everything over n x p is computed in."""
        return compute_dtype(self.leader.dtype)

    @property
    def compute(self) -> object:
        return TRITON_DTYPES[self.dtype]

    @property
    def masses(self) -> tuple[Tensor, Tensor]:
        assert self.row_mass is not None
        assert self.column_mass is not None
        return self.row_mass, self.column_mass

    @property
    def epsilon_bits(self) -> int:
        return bits(self.epsilon)

    def new(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.leader.device)

    def side(self, rows: bool) -> Side:
        batch, heads, n, p = self.shape
        own_size, other_size = (n, p) if rows else (p, n)
        if self.scores is not None:
            strides = self.scores.stride()
            strides = strides if rows else (*strides[:2], strides[3], strides[2])
            return Side(self.scores, None, strides, (0,) * 4, own_size, other_size, 0, heads, batch, "given")
        assert self.tokens is not None
        assert self.reference is not None
        pair = [token_matrix(self.tokens), reference_matrix(self.reference)]
        (own, strides_own), (other, strides_other) = pair if rows else pair[::-1]
        assert own is not None
        depth = self.tokens.shape[2]
        return Side(own, other, strides_own, strides_other, own_size, other_size, depth, heads, batch, self.score)

    @property
    def is_whole(self) -> bool:
        """Whether one program does all iterations of an item."""
        _, _, n, p = self.shape
        return self.scores is not None and p <= WIDEST_WHOLE and n * p <= LARGEST_WHOLE

    def batches(self, first: int, last: int) -> Problem:
        """The same problem for some items of the batch."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[first:last]

        return replace(
            self,
            scores=cut(self.scores),
            tokens=cut(self.tokens),
            row_mass=cut(self.row_mass),
            column_mass=cut(self.column_mass),
        )


def token_matrix(tokens: Tensor) -> Matrix:
    """(B, n, D), shared by the heads."""
    batch, line, depth = tokens.stride()
    return tokens, (batch, 0, line, depth)


def reference_matrix(reference: Tensor) -> Matrix:
    """(heads, p, D), shared by the batch."""
    head, line, depth = reference.stride()
    return reference, (0, head, line, depth)


def headed_matrix(values: Tensor) -> Matrix:
    """(B, heads, lines, D)."""
    return values, values.stride()


def transposed(matrix: Matrix) -> Matrix:
    tensor, (batch, head, line, column) = matrix
    return tensor, (batch, head, column, line)


def width_block(width: int) -> int:
    return _block(width, WIDEST)


def groups(problem: Problem, numbers: int) -> list[tuple[int, int]] | None:
    """Parts of the batch that fit the scratch, at `numbers` numbers an item; None where one item does not."""
    batch, heads = problem.shape[:2]
    step = MOST_SCRATCH // (heads * max(numbers, 1) * problem.dtype.itemsize)
    if step == 0:
        return None
    return [(first, min(first + step, batch)) for first in range(0, batch, step)]


def product_precision(tensors: Sequence[Tensor]) -> str:
    """How `tl.dot` multiplies: TF32 where torch's own float32 products may use it, or where it is exact."""
    if torch.version.hip is not None or any(tensor.dtype is torch.float64 for tensor in tensors):
        return "ieee"
    # A product of two half numbers has few enough bits for TF32, and its sum is float32.
    exact = all(tensor.dtype.itemsize == 2 for tensor in tensors)
    return "tf32" if exact or torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _block(size: int, most: int) -> int:
    return min(max(power_of_two(size), 16), most)


def pair_tile(side: Side, *more: Matrix, out: Matrix = NOTHING) -> Tile:
    """The tile for everything but the iterations in one launch; `more` are the other matrices that are multiplied."""
    most = SIDE * 4 // compute_dtype(side.own.dtype).itemsize
    own, other = _block(side.own_size, most), _block(side.other_size, most)
    matrices = [(side.own, side.strides_own), (side.other, side.strides_other), *more]
    reach = max(extent((max(own, other, WIDEST),) * 2, strides[2:]) for _, strides in [*matrices, out])
    multiplied = matrices[1:] if side.score == "given" else matrices
    precision = product_precision([tensor for tensor, _ in multiplied if tensor is not None])
    return Tile(
        own=own,
        other=other,
        depth=DEPTH,
        score=side.score,
        precision=precision,
        # A plan is no half number: three products in TF32 make one in float32, nearly.
        moving="tf32x3" if precision == "tf32" and torch.backends.cuda.matmul.fp32_precision != "tf32" else precision,
        wide=needs_int64(reach),
    )


def whole_tile(side: Side, most: int | None = None) -> Tile:
    """As many whole rows as fit the registers."""
    numbers = (most or WHOLE_NUMBERS) * 4 // compute_dtype(side.own.dtype).itemsize
    other = max(power_of_two(side.other_size), 16)
    own = max(1, min(numbers // other, power_of_two(side.own_size)))
    wide = needs_int64(extent((own, other), side.strides_own[2:]))
    return Tile(own=own, other=other, depth=0, score="given", precision="ieee", moving="ieee", wide=wide)


def whole_warps(tile: Tile) -> int:
    """8 numbers a thread, or 16 where more warps would be needed for that."""
    return max(1, min(WHOLE_WARPS, tile.own * tile.other // 256))

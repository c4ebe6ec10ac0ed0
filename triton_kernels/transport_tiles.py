"""What the transport kernels are made of: a tile of scores, and exponentials that stay exact however large the scores.

A tile stands between an own side, whose numbers a program makes, and the other side, over which it sums: rows and
columns change places by changing the pointers. Scores are loaded, or made from tokens and reference by `tl.dot`.

Potentials are float64 vectors. Over a tile everything is float32 (float64 for float64 input), so a potential enters it
as two float32 numbers, high + low, and S + high is formed with its rounding error beside it: 6 additions that make the
exponent as exact as if it had been formed in float64, where consumer GPUs are 64 times slower. Sums are of exponentials
with the maximum taken out, so nothing overflows; a potential of -inf, or no mass, says that a line takes no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl


@dataclass(frozen=True)
class Tile:
    """own x other numbers a program works on at a time."""

    own: int
    other: int
    depth: int  # how much of D a product takes at a time
    score: str  # "given", "dot" or "negative_squared_distance"
    precision: str  # of products that make scores
    moving: str  # of products with the plan
    wide: bool  # offsets inside a tile take 64 bits


@triton.jit
def from_bits(bits):
    """A Python float reaches a kernel as float32; so its 64 bits travel as an integer."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def place(tiles, heads):
    """(batch, head, tile) of this program: the tiles of one item stand side by side."""
    program = tl.program_id(0)
    item = program // tiles
    return item // heads, item % heads, program % tiles


@triton.jit
def at(batch, head, strides):
    return tl.cast(batch, tl.int64) * strides[0] + tl.cast(head, tl.int64) * strides[1]


@triton.jit
def masses(ptr, first, size, BLOCK: tl.constexpr):
    """BLOCK masses in float64, and which of these lines take part."""
    offs = first + tl.arange(0, BLOCK)
    mass = tl.load(ptr + offs, mask=offs < size, other=0.0).to(tl.float64)
    return mass, mass > 0


@triton.jit
def log_masses(ptr, first, size, BLOCK: tl.constexpr):
    mass, taking = masses(ptr, first, size, BLOCK)
    return tl.log(tl.where(taking, mass, 1.0))


@triton.jit
def potentials(ptr, first, size, taking, BLOCK: tl.constexpr):
    """BLOCK potentials in float64, 0 where a line takes no part, and which do."""
    offs = first + tl.arange(0, BLOCK)
    value = tl.load(ptr + offs, mask=taking & (offs < size), other=float("-inf")).to(tl.float64)
    taking = value > float("-inf")
    return tl.where(taking, value, 0.0), taking


@triton.jit
def halves(value, COMPUTE: tl.constexpr):
    """A float64 number as the sum of two of COMPUTE."""
    high = value.to(COMPUTE)
    return high, (value - high.to(tl.float64)).to(COMPUTE)


@triton.jit
def added(x, y, COMPUTE: tl.constexpr):
    """x + y, and what rounding took from it (Knuth's two-sum)."""
    total = x + y
    if tl.float64 == COMPUTE:
        return total, tl.zeros_like(total)
    else:
        part = total - x
        return total, (x - (total - part)) + (y - part)


@triton.jit
def matrix_tile(
    ptr, strides, batch, head, first_own, first_other, own, other, WIDE: tl.constexpr, COMPUTE: tl.constexpr
):
    """Numbers of a matrix with strides (batch, head, own, other); only of the lines `own` and `other` is one read."""
    offs_own = tl.arange(0, own.shape[0])
    offs_other = tl.arange(0, other.shape[0])
    if WIDE:
        offs_own = offs_own.to(tl.int64)
        offs_other = offs_other.to(tl.int64)
    origin = ptr + at(batch, head, strides)
    origin += tl.cast(first_own, tl.int64) * strides[2] + tl.cast(first_other, tl.int64) * strides[3]
    offs = (offs_own * strides[2])[:, None] + (offs_other * strides[3])[None, :]
    return tl.load(origin + offs, mask=own[:, None] & other[None, :], other=0.0).to(COMPUTE)


@triton.jit
def store_tile(ptr, strides, batch, head, first_own, first_other, owns, others, value, WIDE: tl.constexpr):
    """The other way: the tile of `value` into a matrix of owns x others."""
    offs_own = tl.arange(0, value.shape[0])
    offs_other = tl.arange(0, value.shape[1])
    inside = (first_own + offs_own < owns)[:, None] & (first_other + offs_other < others)[None, :]
    if WIDE:
        offs_own = offs_own.to(tl.int64)
        offs_other = offs_other.to(tl.int64)
    origin = ptr + at(batch, head, strides)
    origin += tl.cast(first_own, tl.int64) * strides[2] + tl.cast(first_other, tl.int64) * strides[3]
    offs = (offs_own * strides[2])[:, None] + (offs_other * strides[3])[None, :]
    tl.store(origin + offs, value.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def product_tile(
    ptr_own,
    ptr_other,
    strides_own,
    strides_other,
    batch,
    head,
    first_own,
    first_other,
    own,
    other,
    depth,
    DISTANCE: tl.constexpr,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """<x, y>, or with DISTANCE -|x - y|^2, of the lines `own` of one matrix and `other` of another."""
    product = tl.zeros((own.shape[0], other.shape[0]), COMPUTE)
    square_own = tl.zeros((own.shape[0],), COMPUTE)
    square_other = tl.zeros((other.shape[0],), COMPUTE)
    start = 0
    while start < depth:
        inside = start + tl.arange(0, TILE.depth) < depth
        x = matrix_tile(ptr_own, strides_own, batch, head, first_own, start, own, inside, TILE.wide, COMPUTE)
        swapped = (strides_other[0], strides_other[1], strides_other[3], strides_other[2])
        y = matrix_tile(ptr_other, swapped, batch, head, start, first_other, inside, other, TILE.wide, COMPUTE)
        product = tl.dot(x, y, product, input_precision=TILE.precision, out_dtype=COMPUTE)
        if DISTANCE:
            square_own += tl.sum(x * x, axis=1)
            square_other += tl.sum(y * y, axis=0)
        start += TILE.depth
    if DISTANCE:
        product = (2.0 * product - square_own[:, None]) - square_other[None, :]
    return product


@triton.jit
def score_tile(
    ptr_own,
    ptr_other,
    strides_own,
    strides_other,
    batch,
    head,
    first_own,
    first_other,
    own,
    other,
    depth,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Scores as they are given, in the place of the own matrix, or of the lines of two matrices."""
    if TILE.score == "given":
        return matrix_tile(ptr_own, strides_own, batch, head, first_own, first_other, own, other, TILE.wide, COMPUTE)
    else:
        return product_tile(
            ptr_own,
            ptr_other,
            strides_own,
            strides_other,
            batch,
            head,
            first_own,
            first_other,
            own,
            other,
            depth,
            TILE.score == "negative_squared_distance",
            TILE,
            COMPUTE,
        )


@triton.jit
def _logits(scores, potential, own, other, scale, AXIS: tl.constexpr, COMPUTE: tl.constexpr):
    """S + potential as two numbers; -inf where a line takes no part. The potential belongs to the lines along AXIS.

    The second is bounded by what makes a factor of 2: where |S| / epsilon passes 10^7 it would be larger, and the
    greatest of the first numbers, which is taken out, would not be the greatest of the sums.
    """
    high, low = halves(potential, COMPUTE)
    logits, lost = added(scores, tl.expand_dims(high, 1 - AXIS), COMPUTE)
    rest = tl.minimum(tl.maximum(lost + tl.expand_dims(low, 1 - AXIS), -1.0 / scale), 1.0 / scale)
    return tl.where(own[:, None] & other[None, :], logits, float("-inf")), rest


@triton.jit
def exponentials(scores, potential, own, other, scale, AXIS: tl.constexpr, COMPUTE: tl.constexpr):
    """exp((S + potential - top) / epsilon) and top, the maximum along AXIS, of the lines that take part."""
    logits, rest = _logits(scores, potential, own, other, scale, AXIS, COMPUTE)
    top = tl.max(logits, axis=AXIS)
    safe = tl.expand_dims(tl.where(top == float("-inf"), 0.0, top), AXIS)
    return tl.exp2(((logits - safe) + rest) * scale), top


@triton.jit
def exponentials_under(scores, potential, top, own, other, scale, AXIS: tl.constexpr, COMPUTE: tl.constexpr):
    """As `exponentials`, with a maximum that is known already."""
    logits, rest = _logits(scores, potential, own, other, scale, AXIS, COMPUTE)
    safe = tl.expand_dims(tl.where(top == float("-inf"), 0.0, top), AXIS)
    return tl.exp2(((logits - safe) + rest) * scale)


@triton.jit
def shares(scores, by_own, by_other, own, other, scale, MOST: tl.constexpr, COMPUTE: tl.constexpr):
    """exp((S + by_own + by_other) / epsilon), at most 2^MOST, of the lines that take part.

    A share of a row or of a column is at most 1. Where S is so large that float64 potentials are no better than noise,
    the bound keeps everything finite.
    """
    high, low = halves(by_own, COMPUTE)
    logits, lost = added(scores, high[:, None], COMPUTE)
    high_other, low_other = halves(by_other, COMPUTE)
    logits, lost_again = added(logits, high_other[None, :], COMPUTE)
    exponent = (logits + ((lost + lost_again) + (low[:, None] + low_other[None, :]))) * scale
    return tl.where(own[:, None] & other[None, :], tl.exp2(tl.minimum(exponent, MOST)), 0.0)


@triton.jit
def merged(top, total, more_top, more, scale):
    """Two sums of exponentials with the maxima taken out, as one."""
    highest = tl.maximum(top, more_top)
    safe = tl.where(highest == float("-inf"), 0.0, highest)
    return highest, total * tl.exp2((top - safe) * scale) + more * tl.exp2((more_top - safe) * scale)


@triton.jit
def new_potential(mass, top, total, epsilon):
    """epsilon * (log mass - log of the sum); -inf where a line has no mass or meets none."""
    taking = (mass > 0) & (total > 0)
    log_mass = tl.log(tl.where(taking, mass, 1.0))
    log_total = tl.log(tl.where(taking, total, 1.0).to(tl.float64))
    return tl.where(taking, epsilon * (log_mass - log_total) - tl.where(taking, top, 0.0), float("-inf"))

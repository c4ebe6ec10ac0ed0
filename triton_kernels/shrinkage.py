"""The soft threshold, the activations and their slopes, on numbers in registers.

Comparisons are asked such that a NaN, in the number or in the threshold, is never silenced.
"""

import triton
import triton.language as tl


@triton.jit
def _tanh(u):
    # Below 0.625 the continued fraction x / (1 + x^2 / (3 + x^2 / (5 + ...))) keeps the relative accuracy that
    # 1 - exp(-2|u|) would lose; above it the exponential is at most 0.29 and nothing cancels.
    # The convergents are summed by their recurrence: one division, and every term positive.
    LEVELS: tl.constexpr = 10 if u.dtype == tl.float64 else 6
    square = u * u
    above, below = tl.full(u.shape, 1.0, u.dtype), tl.full(u.shape, 1.0, u.dtype)
    above_before, below_before = tl.zeros_like(u), tl.full(u.shape, 1.0, u.dtype)
    for level in tl.static_range(2, LEVELS + 1):
        above, above_before = (2 * level - 1) * above + square * above_before, above
        below, below_before = (2 * level - 1) * below + square * below_before, below
    size = tl.abs(u)
    decay = tl.exp(-2.0 * size)
    large = (1.0 - decay) / (1.0 + decay)
    return tl.where(size < 0.625, u * (above / below), tl.where(u < 0, -large, large))


@triton.jit
def sign(z):
    return tl.where(z > 0, 1.0, tl.where(z < 0, -1.0, 0.0)).to(z.dtype)


@triton.jit
def shrink(z, t):
    # Asked this way round a NaN, in z or in t, is never silenced.
    return tl.where(tl.abs(z) <= t, 0.0, z - t * sign(z))


@triton.jit
def activate(u, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        return _tanh(u)
    elif ACTIVATION == "relu":
        return tl.where(u <= 0, 0.0, u)
    else:
        return u


@triton.jit
def slope(u, gate, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        return 1.0 - gate * gate
    elif ACTIVATION == "relu":
        return tl.where(u <= 0, 0.0, 1.0).to(u.dtype)
    else:
        return tl.full(u.shape, 1.0, u.dtype)

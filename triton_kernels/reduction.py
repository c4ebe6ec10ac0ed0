"""The sums of the tiles, added up in fixed order: the last, small launch of a backward."""

import triton
import triton.language as tl

from .stencil import count, entry


@triton.jit
def _row_sum(ptr, columns, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    total = tl.zeros((BLOCK,), DTYPE)
    start = 0
    # `range` over a number known at run time does not pass the interpreter of Triton 3.6 with today's NumPy.
    while start < columns:
        offs = start + tl.arange(0, BLOCK)
        total += tl.load(ptr + offs, mask=offs < columns, other=0.0)
        start += BLOCK
    return tl.sum(total)


@triton.jit
def finish_kernel(ptr_partial, ptr_sums, ptr_dweight, ptr_dthreshold, ptr_dbias, ptr_dgate, channels, batches,
                   columns_weight, columns_sums, ORDER: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
                   DTYPE: tl.constexpr):
    """One program a number: the sum of a row of a workspace. First the weights, then threshold, bias and gate."""
    rest = tl.program_id(0)
    ROWS: tl.constexpr = 0 if ORDER is None else count(ORDER)
    per_channel = (columns_sums * batches).to(tl.int64)
    if ptr_dweight is not None:
        if rest < channels * ROWS:
            row = rest % ROWS
            channel = rest // ROWS
            total = _row_sum(ptr_partial + rest.to(tl.int64) * columns_weight, columns_weight, BLOCK, DTYPE)
            index = row
            for i in tl.static_range(ROWS):
                index = tl.where(row == i, entry(ORDER, i), index)
            offs = ((index // PLACES) * channels + channel) * PLACES + index % PLACES
            tl.store(ptr_dweight + offs, total.to(ptr_dweight.dtype.element_ty))
        rest = rest - channels * ROWS
    if ptr_dthreshold is not None:
        if (rest >= 0) & (rest < channels):
            total = _row_sum(ptr_sums + rest * per_channel, columns_sums * batches, BLOCK, DTYPE)
            tl.store(ptr_dthreshold + rest, total.to(ptr_dthreshold.dtype.element_ty))
        rest = rest - channels
    if ptr_dbias is not None:
        if (rest >= 0) & (rest < channels):
            total = _row_sum(ptr_sums + (channels + rest) * per_channel, columns_sums * batches, BLOCK, DTYPE)
            tl.store(ptr_dbias + rest, total.to(ptr_dbias.dtype.element_ty))
        rest = rest - channels
    if ptr_dgate is not None:
        if rest >= 0:
            row = 2 * channels * batches + rest % channels * batches + rest // channels
            total = _row_sum(ptr_sums + row.to(tl.int64) * columns_sums, columns_sums, BLOCK, DTYPE)
            tl.store(ptr_dgate + rest, total.to(ptr_dgate.dtype.element_ty))

"""The sums of the tiles, added up in fixed order: the last, small launch of a backward."""

import triton
import triton.language as tl


@triton.jit
def _sum_row(ptr_sums, ptr_result, row, rows, columns, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """result[row] = the sum of a row of `columns` numbers. Returns what `row` is in the next table."""
    if ptr_result is not None:
        if (row >= 0) & (row < rows):
            ptr_row = ptr_sums + row.to(tl.int64) * columns
            total = tl.zeros((BLOCK,), COMPUTE)
            start = 0
            # `range` over a number known at run time does not pass the interpreter of Triton 3.6 with today's NumPy.
            while start < columns:
                offs = start + tl.arange(0, BLOCK)
                total += tl.load(ptr_row + offs, mask=offs < columns, other=0.0)
                start += BLOCK
            tl.store(ptr_result + row, tl.sum(total).to(ptr_result.dtype.element_ty))
        row = row - rows
    return row


@triton.jit
def finish_kernel(
    ptr_partial,
    ptr_dweight,
    weights,
    columns_weight,
    ptr_sums,
    ptr_dthreshold,
    ptr_dbias,
    ptr_dgate,
    channels,
    batches,
    tiles,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One program a number: first the weights, from (weights, columns_weight), then threshold, bias and gate.

    `ptr_sums` holds three tables: (channels, batches, tiles) for threshold and bias, (batches, channels, tiles) for the
    gate.
    """
    row = tl.program_id(0)
    table = tl.cast(channels * batches, tl.int64) * tiles
    row = _sum_row(ptr_partial, ptr_dweight, row, weights, columns_weight, BLOCK, COMPUTE)
    row = _sum_row(ptr_sums, ptr_dthreshold, row, channels, batches * tiles, BLOCK, COMPUTE)
    row = _sum_row(ptr_sums + table, ptr_dbias, row, channels, batches * tiles, BLOCK, COMPUTE)
    _sum_row(ptr_sums + 2 * table, ptr_dgate, row, channels * batches, tiles, BLOCK, COMPUTE)

"""nearest_code and code_statistics in Triton.

nearest_code: index = the first k with the least offset_k - <x - shift, row_k>, in three launches: the shift (D
numbers); the rows and offsets of all codes, so that lengths and quotients are formed once, in float64; then a tile of
tokens a program, which passes all codes by `tl.dot` with a running least score and its index in registers, and at the
end copies the chosen rows. Floor: 2 N K D flops at the rate of the dot's precision; 2 N D numbers moved, once
the codebook is in L2. Products are exact float32 unless `torch.set_float32_matmul_precision` allows TF32.

code_statistics: no atomics, so the same bits every time. The tokens are sorted by index (torch.sort, stable); each
code's list is cut into chunks of CHUNK tokens, a program sums one chunk in order, and a second launch adds the chunks
of each code. A code that every token has chosen so costs no more than many that share them. How many chunks there are
depends on the data, but it is at most N / CHUNK + K, so the host need not know.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TRITON_DTYPES, compute_dtype, launch, power_of_two

CHUNK = 256


class Tile(NamedTuple):
    """Tokens and codes of a program's product, the numbers that it multiplies at a time, its warps and its stages."""

    tokens: int
    codes: int
    numbers: int
    warps: int
    stages: int


# With exact float32 (and float64) the product runs on the ordinary units, whose operands stand in registers too: larger
# tiles spill on one architecture or another.
TENSOR_UNITS = Tile(tokens=128, codes=128, numbers=32, warps=8, stages=3)
ORDINARY_UNITS = Tile(tokens=64, codes=32, numbers=16, warps=4, stages=3)
WIDE_NUMBERS = Tile(tokens=32, codes=32, numbers=16, warps=4, stages=2)


@triton.jit
def _shift_kernel(ptr_codebook, ptr_shift, CODES: tl.constexpr, DIMENSIONS: tl.constexpr, COMPUTE: tl.constexpr):
    """Of 32 dimensions the finite value nearest to zero, if all codes lie on one side of it; else 0."""
    offs_number = tl.program_id(0) * 32 + tl.arange(0, 32)
    mask_number = offs_number < DIMENSIONS
    infinite = float("inf")
    least = tl.full((32,), infinite, COMPUTE)
    most = tl.full((32,), -infinite, COMPUTE)
    for start in range(0, CODES, 32):
        offs_code = start + tl.arange(0, 32)
        mask = (offs_code < CODES)[:, None] & mask_number[None, :]
        ptrs = ptr_codebook + offs_code.to(tl.int64)[:, None] * DIMENSIONS + offs_number[None, :]
        values = tl.load(ptrs, mask=mask, other=infinite).to(COMPUTE)
        finite = tl.abs(values) < infinite
        least = tl.minimum(least, tl.min(tl.where(finite, values, infinite), axis=0))
        most = tl.maximum(most, tl.max(tl.where(finite, values, -infinite), axis=0))
    shift = tl.where(least > 0, least, tl.where(most < 0, most, 0.0))
    shift = tl.where(least <= most, shift, 0.0)
    tl.store(ptr_shift + offs_number, shift, mask=mask_number)


@triton.jit
def _rows_kernel(
    ptr_codebook,
    ptr_shift,
    ptr_rows,
    ptr_offsets,
    ptr_lost,
    CODES: tl.constexpr,
    DIMENSIONS: tl.constexpr,
    COMPUTE: tl.constexpr,
    COSINE: tl.constexpr,
):
    """Rows and offsets of 16 codes; lengths are formed in float64, so that parallel codes have equal rows, and tie."""
    offs_code = tl.program_id(0) * 16 + tl.arange(0, 16)
    mask_code = offs_code < CODES
    place = offs_code.to(tl.int64)[:, None] * DIMENSIONS
    square = tl.zeros((16,), tl.float64)
    for start in range(0, DIMENSIONS, 64):
        offs_number = start + tl.arange(0, 64)
        mask = mask_code[:, None] & (offs_number < DIMENSIONS)[None, :]
        values = tl.load(ptr_codebook + place + offs_number[None, :], mask=mask, other=0.0).to(COMPUTE)
        if not COSINE:
            values -= tl.load(ptr_shift + offs_number, mask=offs_number < DIMENSIONS, other=0.0)[None, :]
            tl.store(ptr_rows + place + offs_number[None, :], values, mask=mask)
        square += tl.sum(tl.where(mask, values.to(tl.float64) * values.to(tl.float64), 0.0), axis=1)
    if COSINE:
        length = tl.where(square == 0, 1.0, tl.sqrt(square))
        for start in range(0, DIMENSIONS, 64):
            offs_number = start + tl.arange(0, 64)
            mask = mask_code[:, None] & (offs_number < DIMENSIONS)[None, :]
            values = tl.load(ptr_codebook + place + offs_number[None, :], mask=mask, other=0.0).to(tl.float64)
            tl.store(ptr_rows + place + offs_number[None, :], (values / length[:, None]).to(COMPUTE), mask=mask)
        square = tl.zeros((16,), tl.float64)
    tl.store(ptr_offsets + offs_code, square.to(COMPUTE) * 0.5, mask=mask_code)
    if tl.program_id(0) == 0:
        tl.store(ptr_lost, 0)


@triton.jit
def _nearest_kernel(
    ptr_tokens,
    ptr_codebook,
    ptr_shift,
    ptr_rows,
    ptr_offsets,
    ptr_quantized,
    ptr_index,
    ptr_lost,
    tokens,
    per_batch,
    stride_batch,
    stride_token,
    stride_number,
    CODES: tl.constexpr,
    DIMENSIONS: tl.constexpr,
    COMPUTE: tl.constexpr,
    TILE: tl.constexpr,
    SHIFTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`ptr_lost` becomes 1 if a token has no finite score: every program that writes there writes the same."""
    TOKENS: tl.constexpr = TILE[0]
    TILE_CODES: tl.constexpr = TILE[1]
    NUMBERS: tl.constexpr = TILE[2]
    infinite = float("inf")
    offs_token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    mask_token = offs_token < tokens
    ptrs_token = ptr_tokens + (offs_token // per_batch) * stride_batch + (offs_token % per_batch) * stride_token
    best = tl.full((TOKENS,), infinite, COMPUTE)
    index = tl.zeros((TOKENS,), tl.int32)
    for first in range(0, CODES, TILE_CODES):
        offs_code = first + tl.arange(0, TILE_CODES)
        mask_code = offs_code < CODES
        ptrs_row = ptr_rows + offs_code.to(tl.int64) * DIMENSIONS
        products = tl.zeros((TOKENS, TILE_CODES), COMPUTE)
        for start in range(0, DIMENSIONS, NUMBERS):
            offs_number = start + tl.arange(0, NUMBERS)
            mask_number = offs_number < DIMENSIONS
            ptrs = ptrs_token[:, None] + offs_number.to(tl.int64)[None, :] * stride_number
            x = tl.load(ptrs, mask=mask_token[:, None] & mask_number[None, :], other=0.0).to(COMPUTE)
            if SHIFTED:
                x -= tl.load(ptr_shift + offs_number, mask=mask_number, other=0.0)[None, :]
            ptrs = ptrs_row[None, :] + offs_number[:, None]
            rows = tl.load(ptrs, mask=mask_code[None, :] & mask_number[:, None], other=0.0)
            products = tl.dot(x, rows, products, input_precision=PRECISION, out_dtype=COMPUTE)
        scores = tl.load(ptr_offsets + offs_code, mask=mask_code, other=infinite)[None, :] - products
        scores = tl.where(tl.abs(scores) < infinite, scores, infinite)
        least = tl.min(scores, axis=1)
        found = tl.min(tl.where(scores == least[:, None], offs_code[None, :], CODES), axis=1)
        index = tl.where(least < best, found, index)
        best = tl.minimum(least, best)
    tl.store(ptr_index + offs_token, index.to(tl.int64), mask=mask_token)
    lost = tl.max((mask_token & (best == infinite)).to(tl.int32), axis=0)
    if lost > 0:
        tl.store(ptr_lost, 1)
    ptrs_code = ptr_codebook + index.to(tl.int64) * DIMENSIONS
    for start in range(0, DIMENSIONS, NUMBERS):
        offs_number = start + tl.arange(0, NUMBERS)
        mask = mask_token[:, None] & (offs_number < DIMENSIONS)[None, :]
        values = tl.load(ptrs_code[:, None] + offs_number[None, :], mask=mask, other=0.0)
        ptrs = ptr_quantized + offs_token[:, None] * DIMENSIONS + offs_number[None, :]
        tl.store(ptrs, values.to(ptr_quantized.dtype.element_ty), mask=mask)


@triton.jit
def _chunks_kernel(
    ptr_tokens,
    ptr_order,
    ptr_first,
    ptr_chunks,
    ptr_owner,
    ptr_partial,
    codes,
    per_batch,
    stride_batch,
    stride_token,
    stride_number,
    parts,
    DIMENSIONS: tl.constexpr,
    COMPUTE: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """The sum of one chunk of one code's tokens over NUMBERS dimensions. Chunks beyond the last have no owner."""
    pid_chunk = tl.program_id(0) // parts
    offs_number = (tl.program_id(0) % parts) * NUMBERS + tl.arange(0, NUMBERS)
    mask_number = offs_number < DIMENSIONS
    code = tl.load(ptr_owner + pid_chunk)
    if code < codes:
        start = tl.load(ptr_first + code) + (pid_chunk - tl.load(ptr_chunks + code)) * CHUNK
        end = tl.minimum(start + CHUNK, tl.load(ptr_first + code + 1))
        total = tl.zeros((TOKENS, NUMBERS), COMPUTE)
        for step in range(0, CHUNK, TOKENS):
            offs_place = start + step + tl.arange(0, TOKENS)
            mask_place = offs_place < end
            token = tl.load(ptr_order + offs_place, mask=mask_place, other=0)
            ptrs = ptr_tokens + (token // per_batch) * stride_batch + (token % per_batch) * stride_token
            ptrs = ptrs[:, None] + offs_number.to(tl.int64)[None, :] * stride_number
            total += tl.load(ptrs, mask=mask_place[:, None] & mask_number[None, :], other=0.0).to(COMPUTE)
        ptrs = ptr_partial + pid_chunk.to(tl.int64) * DIMENSIONS + offs_number
        tl.store(ptrs, tl.sum(total, axis=0), mask=mask_number)


@triton.jit
def _sums_kernel(
    ptr_partial,
    ptr_chunks,
    ptr_sum,
    parts,
    DIMENSIONS: tl.constexpr,
    COMPUTE: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """sum[code] = its chunks, added in order."""
    code = tl.program_id(0) // parts
    offs_number = (tl.program_id(0) % parts) * NUMBERS + tl.arange(0, NUMBERS)
    mask_number = offs_number < DIMENSIONS
    chunk = tl.load(ptr_chunks + code)
    end = tl.load(ptr_chunks + code + 1)
    total = tl.zeros((NUMBERS,), COMPUTE)
    while chunk < end:
        total += tl.load(ptr_partial + chunk * DIMENSIONS + offs_number, mask=mask_number, other=0.0)
        chunk += 1
    ptrs = ptr_sum + code.to(tl.int64) * DIMENSIONS + offs_number
    tl.store(ptrs, total.to(ptr_sum.dtype.element_ty), mask=mask_number)


def nearest_code(tokens: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """quantized, index, and whether a token had no finite score: an int32 of no dimensions on the device."""
    quantized = tokens.new_empty(tokens.shape)
    index = tokens.new_empty(tokens.shape[:-1], dtype=torch.int64)
    codes, dimensions = codebook.shape
    dtype = compute_dtype(tokens.dtype)
    cosine = metric == "cosine"
    codebook = codebook.contiguous()
    shift = torch.empty(dimensions, dtype=dtype, device=tokens.device)
    rows, offsets = codebook.new_empty(codebook.shape, dtype=dtype), codebook.new_empty(codes, dtype=dtype)
    lost = torch.empty((), dtype=torch.int32, device=tokens.device)
    constants: dict[str, Any] = {"CODES": codes, "DIMENSIONS": dimensions, "COMPUTE": TRITON_DTYPES[dtype]}
    if not cosine:
        launch(_shift_kernel, -(-dimensions // 32), codebook, shift, device=tokens.device, num_warps=4, **constants)
    launch(
        _rows_kernel,
        -(-codes // 16),
        codebook,
        shift,
        rows,
        offsets,
        lost,
        device=tokens.device,
        COSINE=cosine,
        num_warps=4,
        **constants,
    )
    tokens, place = _placed(tokens)
    tile, precision = _tile(dtype)
    launch(
        _nearest_kernel,
        -(-index.numel() // tile.tokens),
        tokens,
        codebook,
        shift,
        rows,
        offsets,
        quantized,
        index,
        lost,
        index.numel(),
        *place,
        device=tokens.device,
        TILE=tuple(tile),
        SHIFTED=not cosine,
        PRECISION=precision,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **constants,
    )
    return quantized, index, lost


def _tile(dtype: torch.dtype) -> tuple[Tile, str]:
    """The product's shape and precision: TF32 where torch's own float32 products may use it."""
    if dtype is torch.float64:
        return WIDE_NUMBERS, "ieee"
    exact = torch.get_float32_matmul_precision() == "highest"
    return (ORDINARY_UNITS, "ieee") if exact else (TENSOR_UNITS, "tf32")


def _placed(vectors: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The tensor, and (per_batch, stride_batch, stride_token, stride_number) by which vector n is found.

    Leading dimensions are merged to two; the tensor is copied only if strides do not allow that.
    """
    sizes, strides = [1], [0]
    for size, stride in zip(vectors.shape[:-1], vectors.stride()[:-1], strict=True):
        if size == 1:
            continue
        if sizes[-1] == 1 or strides[-1] == size * stride:
            sizes[-1], strides[-1] = sizes[-1] * size, stride
        else:
            sizes.append(size)
            strides.append(stride)
    if len(sizes) > 2:
        return _placed(vectors.contiguous())
    batch = strides[0] if len(sizes) == 2 else 0
    return vectors, (max(sizes[-1], 1), batch, strides[-1], vectors.stride(-1))


def code_statistics(tokens: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """sum and count; every index is -1 or that of a code."""
    return _statistics(tokens, index, codes, compute_dtype(tokens.dtype))


def nearest_code_backward(grad: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> Tensor:
    return _statistics(grad, index, codes, dtype)[0]


def _statistics(tokens: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    dimensions, device = tokens.shape[-1], tokens.device
    total = torch.empty(codes, dimensions, dtype=dtype, device=device)
    found, order = index.reshape(-1).sort(stable=True)
    numbers = torch.arange(codes + 1, device=device)
    first = torch.searchsorted(found, numbers)
    count = first.diff()
    chunks = torch.nn.functional.pad(((count + CHUNK - 1) // CHUNK).cumsum(0), (1, 0))
    most = found.numel() // CHUNK + min(codes, found.numel())
    owner = torch.searchsorted(chunks[1:], torch.arange(most, device=device), right=True)
    partial = torch.empty(most, dimensions, dtype=compute_dtype(tokens.dtype), device=device)
    tokens, place = _placed(tokens)
    block = min(power_of_two(dimensions), 128)
    parts = -(-dimensions // block)
    constants: dict[str, Any] = {"DIMENSIONS": dimensions, "COMPUTE": TRITON_DTYPES[partial.dtype], "NUMBERS": block}
    launch(
        _chunks_kernel,
        most * parts,
        tokens,
        order,
        first,
        chunks,
        owner,
        partial,
        codes,
        *place,
        parts,
        device=device,
        CHUNK=CHUNK,
        TOKENS=16,
        num_warps=4,
        **constants,
    )
    launch(_sums_kernel, codes * parts, partial, chunks, total, parts, device=device, num_warps=4, **constants)
    return total, count

"""nearest_code and code_statistics: schema, shape rule, gradient, and the choice of implementation.

The mathematics stands in `prosma_ops/reference/codebook.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, errors, native
from ..backends import Implementation
from ..reference import codebook as reference
from ..reference.precision import compute_dtype
from . import checks
from .library import define

METRICS = reference.METRICS
# Kernels number the codes in 32 bits.
MOST_CODES = 2**31 - 1
OUT_OF_RANGE = "index holds a value that is neither -1 nor one of 0 to codes - 1"
NOT_FINITE = "nearest_code was given tokens that hold NaN or infinity, or whose squares overflow; their index is 0"


class NearestCode(NamedTuple):
    """`quantized` (..., D) in the dtype of the tokens, and `index` (...), int64."""

    quantized: Tensor
    index: Tensor  # type: ignore[assignment]  # the method of tuples of that name is given up


class CodeStatistics(NamedTuple):
    """`count` (codes,), int64, and `sum` (codes, D), float32 (float64 for float64 tokens)."""

    count: Tensor  # type: ignore[assignment]
    sum: Tensor


def nearest_code(tokens: Tensor, codebook: Tensor, *, metric: str = "euclidean") -> NearestCode:
    """The code nearest to each token: (quantized, index), without a matrix of distances or a one-hot in memory.

    index is the first k with the least |token - codebook[k]|, or with metric="cosine" the greatest cosine of the angle
    between them (that with a zero code counts as 0); quantized is codebook[index], as it is stored.

    Arguments:
        tokens: (..., D), float32, float64, float16 or bfloat16, of any strides. They have no gradient here; the
            straight-through estimator stands in `prosma_ops.nn.VectorQuantizer`.
        codebook: (K, D), K >= 1, of the dtype of `tokens` or float32.
        metric: "euclidean" or "cosine".

    `quantized` has the dtype of `tokens` and is differentiable, twice too, in the codebook: its gradient is the sum
    over the tokens that chose a code, formed in a fixed order. Scores are float32 inside (float64 for float64), the
    distances are right wherever the codebook lies, and the code chosen is the nearest to within the rounding of
    float32; on a GPU the product follows `torch.set_float32_matmul_precision`. Codes that hold NaN or infinity are
    never chosen while there are others.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it and says what would do.
    """
    tokens = checks.plain("tokens", tokens)
    codebook = checks.plain("codebook", codebook)
    if tokens.requires_grad:
        tokens = tokens.detach()
    if torch.compiler.is_exporting():
        _check_nearest(tokens, codebook, metric)
        return NearestCode(*reference.nearest_code(tokens, codebook, metric))
    return NearestCode(*_nearest_code(tokens, codebook, metric))


def code_statistics(tokens: Tensor, index: Tensor, codes: int) -> CodeStatistics:
    """How many tokens have each index, and their sum: (count, sum), for updating a codebook by averages.

    Arguments:
        tokens: (..., D), float32, float64, float16 or bfloat16, of any strides.
        index: (...), int64 or int32; -1 counts nowhere.
        codes: how many codes there are, at least 1.

    Sums run in a fixed order: the same bits on every run and for any number of threads. Differentiable in `tokens`,
    twice too.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it and says what would do. An index
            below -1 or beyond the codes raises on the CPU; on a GPU it counts nowhere, and
            `prosma_ops.check_errors()` raises.
    """
    tokens = checks.plain("tokens", tokens)
    index = checks.plain("index", index)
    if index.dtype is torch.int32:
        index = index.to(torch.int64)
    if torch.compiler.is_exporting():
        _check_statistics(tokens, index, codes)
        total, count = reference.code_statistics(tokens, index, codes)
    else:
        total, count = _code_statistics(tokens, index, codes)
    return CodeStatistics(count, total)


def _check_tokens(tokens: Tensor) -> None:
    checks.floating("tokens", tokens)
    if tokens.dim() < 1:
        checks.wrong_rank("tokens", tokens, "(..., D), of 1 dimension or more")
    if tokens.shape[-1] < 1:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; it must be (..., D) with D >= 1")


def _check_nearest(tokens: Tensor, codebook: Tensor, metric: str) -> None:
    """Every way into the operator passes here, real tensors and traced ones: no kernel sees unchecked arguments."""
    _check_tokens(tokens)
    checks.companion("codebook", codebook, "tokens", tokens)
    if codebook.dim() != 2:
        checks.wrong_rank("codebook", codebook, "(K, D)")
    if not 1 <= codebook.shape[0] <= MOST_CODES:
        raise ValueError(f"codebook has {codebook.shape[0]} codes; it must have 1 or more, and fewer than 2^31")
    if codebook.shape[1] != tokens.shape[-1]:
        expected = (codebook.shape[0], tokens.shape[-1])
        checks.wrong_shape("codebook", codebook, expected, "(K, D) with the D of tokens")
    checks.choice("metric", metric, METRICS)


def _check_index(index: Tensor, name: str, values: Tensor) -> None:
    if index.dtype is not torch.int64 or index.layout is not torch.strided:
        raise TypeError(f"index is {index.dtype}, {index.layout}; it must be a dense tensor of int64 or int32")
    checks.same_device("index", index, name, values)
    if index.shape != values.shape[:-1]:
        checks.wrong_shape("index", index, values.shape[:-1], f"the shape of {name} without its last dimension")


def _check_codes(codes: Any) -> None:
    if not isinstance(codes, (int, torch.SymInt)) or isinstance(codes, bool):
        raise TypeError(f"codes is {codes!r}; it must be an integer of at least 1")
    if not 1 <= codes <= MOST_CODES:
        raise ValueError(f"codes is {codes}; it must be at least 1, and below 2^31")


def _check_statistics(tokens: Tensor, index: Tensor, codes: int) -> None:
    _check_tokens(tokens)
    _check_index(index, "tokens", tokens)
    _check_codes(codes)


def _check_nearest_backward(grad: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> None:
    checks.floating("grad", grad)
    if grad.dim() < 1 or grad.shape[-1] < 1:
        checks.wrong_rank("grad", grad, "(..., D) with D >= 1")
    _check_index(index, "grad", grad)
    _check_codes(codes)


def _in_range(index: Tensor, codes: int) -> Tensor:
    """`index`, of which what is out of range counts nowhere; on the CPU it raises."""
    wrong = (index < -1) | (index >= codes)
    errors.record(wrong.any(), OUT_OF_RANGE)
    return index if errors.raises_at_once(index.device) else index.where(~wrong, -1)


# Backend "reference".


def _reference_nearest(tokens: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    errors.note(~tokens.isfinite().all(), NOT_FINITE)
    return reference.nearest_code(tokens, codebook, metric)


def _reference_nearest_backward(grad: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> Tensor:
    return reference.nearest_code_backward(grad, _in_range(index, codes), codes, dtype)


def _reference_statistics(tokens: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    return reference.code_statistics(tokens, _in_range(index, codes), codes)


# Backend "cpu": the native library sees pointers and strides, and the codebook in the dtype that it computes in.

LEADING = 4


def _merged(vectors: Tensor, most: int = LEADING) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides with the dimensions before the last merged where strides allow it, and filled up to LEADING.

    The tensor itself is copied only if more than `most` of them stay: a slice of each of five dimensions, say.
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
    if len(sizes) > most:
        return _merged(vectors.contiguous(), most)
    missing = LEADING - len(sizes)
    return vectors, (*(1,) * missing, *sizes, vectors.shape[-1]), (*(0,) * missing, *strides, vectors.stride(-1))


def _cpu_nearest(tokens: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    quantized, index = _fake_nearest(tokens, codebook, metric)
    dtype, threads, _ = native.work(tokens)
    tokens, sizes, strides = _merged(tokens)
    codes = codebook.to(compute_dtype(tokens.dtype)).contiguous()
    lost = native.required().nearest_code_forward(
        dtype,
        threads,
        tokens.data_ptr(),
        sizes,
        strides,
        codes.data_ptr(),
        codes.shape[0],
        METRICS.index(metric),
        quantized.data_ptr(),
        index.data_ptr(),
    )
    if lost:
        errors.note(torch.tensor(True), NOT_FINITE)
    return quantized, index


def _cpu_statistics(tokens: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    total, count = _fake_statistics(tokens, index, codes)
    dtype, threads, _ = native.work(tokens)
    tokens, sizes, strides = _merged(tokens)
    index = index.contiguous()
    wrong = native.required().code_statistics_forward(
        dtype, threads, tokens.data_ptr(), sizes, strides, index.data_ptr(), codes, count.data_ptr(), total.data_ptr()
    )
    if wrong:
        raise ValueError(OUT_OF_RANGE)
    return total, count


def _cpu_nearest_backward(grad: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> Tensor:
    return _cpu_statistics(grad, index, codes)[0].to(dtype)


# Backend "cuda": tokens of two leading dimensions at most. For the sums they are sorted by code, and each code's list
# is cut into chunks; how many depends on the data, but it is at most tokens / CHUNK + codes: the host need not know.

CHUNK = 256


def _cuda_nearest(tokens: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    module = native.required()
    quantized, index = _fake_nearest(tokens, codebook, metric)
    dtype, device, stream, _ = native.queued(tokens)
    tokens, sizes, strides = _merged(tokens, 2)
    codes = codebook.to(compute_dtype(tokens.dtype)).contiguous()
    lost = torch.empty((), dtype=torch.int32, device=tokens.device)
    workspace = native.workspace(module.nearest_code_cuda_workspace(dtype, sizes, strides, codes.shape[0]), tokens)
    module.nearest_code_cuda_forward(
        dtype,
        device,
        stream,
        tokens.data_ptr(),
        sizes,
        strides,
        codes.data_ptr(),
        codes.shape[0],
        METRICS.index(metric),
        torch.get_float32_matmul_precision() == "highest",
        *native.pointers((quantized, index, lost, workspace)),
    )
    errors.note(lost, NOT_FINITE)
    return quantized, index


def _cuda_statistics(tokens: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    index = _in_range(index, codes)
    total, _ = _fake_statistics(tokens, index, codes)
    found, order = index.reshape(-1).sort(stable=True)
    numbers = torch.arange(codes + 1, device=index.device)
    first = torch.searchsorted(found, numbers)
    count = first.diff()
    chunks = torch.nn.functional.pad(((count + CHUNK - 1) // CHUNK).cumsum(0), (1, 0))
    most = found.numel() // CHUNK + min(codes, found.numel())
    owner = torch.searchsorted(chunks[1:], torch.arange(most, device=index.device), right=True)
    partial = total.new_empty(most, total.shape[-1])
    dtype, device, stream, _ = native.queued(tokens)
    tokens, sizes, strides = _merged(tokens, 2)
    native.required().code_statistics_cuda_forward(
        dtype,
        device,
        stream,
        tokens.data_ptr(),
        sizes,
        strides,
        codes,
        *native.pointers((order, first, chunks, owner)),
        CHUNK,
        most,
        *native.pointers((total, partial)),
    )
    return total, count


def _cuda_nearest_backward(grad: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> Tensor:
    return _cuda_statistics(grad, index, codes)[0].to(dtype)


# Backend "triton": imported when it is first chosen.


def _triton_nearest(tokens: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    from ..triton_kernels import codebook as kernels

    quantized, index, lost = kernels.nearest_code(tokens, codebook, metric)
    errors.note(lost, NOT_FINITE)
    return quantized, index


def _triton_nearest_backward(grad: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> Tensor:
    from ..triton_kernels import codebook as kernels

    return kernels.nearest_code_backward(grad, _in_range(index, codes), codes, dtype)


def _triton_statistics(tokens: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    from ..triton_kernels import codebook as kernels

    return kernels.code_statistics(tokens, _in_range(index, codes), codes)


# The choice, and the registration.

_NEAREST = backends.register(
    "nearest_code",
    "codebook",
    {
        "reference": Implementation(
            backends.reference_can_run,
            {"forward": _reference_nearest, "backward": _reference_nearest_backward},
        ),
        "cpu": Implementation(backends.cpu_can_run, {"forward": _cpu_nearest, "backward": _cpu_nearest_backward}),
        "triton": Implementation(
            backends.triton_can_run, {"forward": _triton_nearest, "backward": _triton_nearest_backward}
        ),
        "cuda": Implementation(
            backends.cuda_can_run("nearest_code"), {"forward": _cuda_nearest, "backward": _cuda_nearest_backward}
        ),
    },
)
_STATISTICS = backends.register(
    "code_statistics",
    "codebook",
    {
        "reference": Implementation(backends.reference_can_run, {"forward": _reference_statistics}),
        "cpu": Implementation(backends.cpu_can_run, {"forward": _cpu_statistics}),
        "triton": Implementation(backends.triton_can_run, {"forward": _triton_statistics}),
        "cuda": Implementation(backends.cuda_can_run("code_statistics"), {"forward": _cuda_statistics}),
    },
)


def _nearest(tokens: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    _check_nearest(tokens, codebook, metric)
    result: tuple[Tensor, Tensor] = _NEAREST.run("forward", (tokens,), (tokens, codebook, metric))
    return result


def _nearest_backward(grad: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> Tensor:
    _check_nearest_backward(grad, index, codes, dtype)
    result: Tensor = _NEAREST.run("backward", (grad,), (grad, index, codes, dtype))
    return result


def _statistics(tokens: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    _check_statistics(tokens, index, codes)
    result: tuple[Tensor, Tensor] = _STATISTICS.run("forward", (tokens,), (tokens, index, codes))
    return result


def _fake_nearest(tokens: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    _check_nearest(tokens, codebook, metric)
    return tokens.new_empty(tokens.shape), tokens.new_empty(tokens.shape[:-1], dtype=torch.int64)


def _fake_nearest_backward(grad: Tensor, index: Tensor, codes: int, dtype: torch.dtype) -> Tensor:
    _check_nearest_backward(grad, index, codes, dtype)
    return grad.new_empty((codes, grad.shape[-1]), dtype=dtype)


def _fake_statistics(tokens: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    _check_statistics(tokens, index, codes)
    total = tokens.new_empty((codes, tokens.shape[-1]), dtype=compute_dtype(tokens.dtype))
    return total, index.new_empty((codes,))


def _save_nearest(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """The index alone: a codebook that is updated in place before the backward does no harm."""
    ctx.save_for_backward(output[1])
    ctx.codes, ctx.dtype = inputs[1].shape[0], inputs[1].dtype


def _gradient_of_nearest(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    (index,) = ctx.saved_tensors
    return None, _nearest_code_backward(grad, index, ctx.codes, ctx.dtype), None


def _save_nearest_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.dtype = inputs[0].dtype


def _second_gradient_of_nearest(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradient is linear in what flows in, so its own is a gather."""
    (index,) = ctx.saved_tensors
    return reference.code_statistics_backward(grad, index, ctx.dtype), None, None, None


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.dtype = inputs[0].dtype


def _gradient_of_statistics(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    (index,) = ctx.saved_tensors
    return reference.code_statistics_backward(grad, index, ctx.dtype), None, None


_nearest_code = define(
    "nearest_code(Tensor tokens, Tensor codebook, str metric) -> (Tensor, Tensor)",
    _nearest,
    _fake_nearest,
    setup_context=_save_nearest,
    backward=_gradient_of_nearest,
)
_nearest_code_backward = define(
    "nearest_code_backward(Tensor grad, Tensor index, SymInt codes, ScalarType dtype) -> Tensor",
    _nearest_backward,
    _fake_nearest_backward,
    setup_context=_save_nearest_backward,
    backward=_second_gradient_of_nearest,
)
_code_statistics = define(
    "code_statistics(Tensor tokens, Tensor index, SymInt codes) -> (Tensor, Tensor)",
    _statistics,
    _fake_statistics,
    setup_context=_save_statistics,
    backward=_gradient_of_statistics,
)

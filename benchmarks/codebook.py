"""nearest_code and code_statistics: what they are measured on, and against what.

Four images of 56 x 56 tokens with 256 features, and a codebook of 1,024. Floors, with N tokens, K codes and D features
of s bytes:

    nearest_code       2 N D s bytes (tokens, quantized)      N K D multiply-adds, by which it is bound
    code_statistics    N D s bytes (tokens)                   none to speak of

Every token is drawn near a code, so that the nearest is no matter of rounding, and a rival's index is right or wrong.
Memory is the peak above what stood before, in MB, the results of 12.9 MB included; the matrix of distances has 51 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prosma_ops import CodeStatistics, NearestCode, code_statistics, nearest_code
from prosma_ops.testing import Problem, numbers
from prosma_ops.testing.codebook import definition, eager, eager_statistics, statistics_definition

from . import harness
from .targets import BEST, OURS, Target
from .work import Contestant, Inputs, Work

CODES = 1024
EAGER, COMPILED, VQ, MONAI = "cdist and argmin", "torch.compile", "vector-quantize-pytorch", "MONAI"
ONE_HOT, INDEX_ADD = "one-hot product", "bincount and index_add"
MEGABYTE = 10**6


def build(metric: str, size: tuple[int, ...], dtype: torch.dtype, device: torch.device, codes: int = CODES) -> Problem:
    random = numbers.generator("benchmark", size)
    codebook = torch.randn(codes, size[-1], generator=random)
    near = codebook[torch.randint(codes, size[:-1], generator=random)]
    tokens = near + torch.randn(size, generator=random) / 4
    return Problem(
        inputs={"tokens": tokens.to(device, dtype), "codebook": codebook.to(device, dtype)},
        settings={"metric": metric},
        function=nearest_code,
        definition=definition,
        eager=eager,
        leader="tokens",
        grads=(torch.randn(size, generator=random).to(device, dtype),),
        constant=frozenset({"tokens"}),
    )


def build_statistics(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
    random = numbers.generator("benchmark", size)
    return Problem(
        inputs={
            "tokens": torch.randn(size, generator=random).to(device, dtype),
            "index": torch.randint(CODES, size[:-1], generator=random).to(device),
        },
        settings={"codes": CODES},
        function=code_statistics,
        definition=statistics_definition,
        eager=eager_statistics,
        leader="tokens",
    )


def with_their_module(inputs: Inputs) -> Inputs:
    """vector-quantize-pytorch's quantiser in eval mode, holding our codebook."""
    from vector_quantize_pytorch import VectorQuantize

    codebook: Tensor = inputs.pop("codebook")
    cosine = inputs.get("metric") == "cosine"
    module = VectorQuantize(dim=codebook.shape[1], codebook_size=codebook.shape[0], use_cosine_sim=cosine)
    module._codebook.embed.data = codebook.detach().unsqueeze(0).clone()
    return inputs | {"module": module.eval()}


def vector_quantize(tokens: Tensor, module: Any, metric: str) -> NearestCode:
    quantized, index, _ = module(tokens.flatten(1, -2))
    return NearestCode(quantized.view(tokens.shape), index.view(tokens.shape[:-1]))


def with_monai_module(inputs: Inputs) -> Inputs:
    """MONAI's quantiser in eval mode, and the tokens as the images that it takes."""
    from monai.networks.layers.vector_quantizer import EMAQuantizer

    codebook: Tensor = inputs.pop("codebook")
    module = EMAQuantizer(2, codebook.shape[0], codebook.shape[1]).eval()
    module.embedding.weight.data = codebook.detach().clone()
    return inputs | {"tokens": inputs["tokens"].movedim(-1, 1).contiguous(), "module": module}


def monai_quantize(tokens: Tensor, module: Any, metric: str) -> NearestCode:
    quantized, _, index = module(tokens)
    return NearestCode(quantized.movedim(1, -1), index)


def bincount_and_index_add(tokens: Tensor, index: Tensor, *, codes: int) -> CodeStatistics:
    flat, place = tokens.reshape(-1, tokens.shape[-1]).float(), index.reshape(-1)
    total = flat.new_zeros(codes, flat.shape[1]).index_add_(0, place, flat)
    return CodeStatistics(torch.bincount(place, minlength=codes), total)


def compiled_eager(**arguments: Any) -> NearestCode:
    found: NearestCode = _compiled(**arguments)
    return found


_compiled = torch.compile(eager, fullgraph=True, dynamic=False)


def label(what: str, size: tuple[int, ...]) -> str:
    return f"{what}, {'x'.join(map(str, size))}, {CODES} codes"


def costs(size: tuple[int, ...], dtype: torch.dtype) -> dict[str, float]:
    tokens = torch.Size(size[:-1]).numel()
    return {
        "moved_bytes": 2 * tokens * size[-1] * dtype.itemsize,
        "multiply_adds": tokens * size[-1] * CODES,
    }


def nearest(size: tuple[int, ...], metric: str = "euclidean", targets: Sequence[Target] = (), **options: Any) -> Work:
    dtype = options.get("dtype", torch.float32)
    rivals = [Contestant(EAGER, eager)]
    if metric == "euclidean" and dtype is torch.float32:
        theirs = Contestant(VQ, vector_quantize, prepare=with_their_module)
        monai = Contestant(MONAI, monai_quantize, prepare=with_monai_module)
        compiled = Contestant(COMPILED, compiled_eager, compiled=True, short=False, every_setting=False)
        rivals = [theirs, *rivals, monai, compiled]
    return Work(
        name=label(f"nearest code, {metric}", size),
        build=partial(build, metric),
        size=size,
        contestants=[Contestant(OURS, nearest_code), *rivals],
        targets=targets,
        field_bytes=MEGABYTE if targets else 0,
        memory_unit="MB",
        **costs(size, dtype),
        **options,
    )


def training(size: tuple[int, ...], **options: Any) -> Work:
    """The gradient of the codebook with it."""
    dtype = options.get("dtype", torch.float32)
    work = costs(size, dtype)
    return Work(
        name=label("nearest code and its gradient", size),
        build=partial(build, "euclidean"),
        size=size,
        contestants=[Contestant(OURS, nearest_code), Contestant(EAGER, eager)],
        training=True,
        moved_bytes=1.5 * work["moved_bytes"],
        multiply_adds=work["multiply_adds"],
        **options,
    )


def statistics(size: tuple[int, ...], **options: Any) -> Work:
    dtype = options.get("dtype", torch.float32)
    return Work(
        name=label("statistics", size),
        build=build_statistics,
        size=size,
        contestants=[
            Contestant(OURS, code_statistics),
            Contestant(ONE_HOT, eager_statistics),
            Contestant(INDEX_ADD, bincount_and_index_add),
        ],
        moved_bytes=costs(size, dtype)["moved_bytes"] / 2,
        **options,
    )


IMAGE = (4, 56, 56, 256)


def works(device: str) -> list[Work]:
    """The targets are for the CPU, float32, all threads, raised allocator thresholds."""
    targets = [
        Target("speedup", VQ, at_least=2),
        Target("speedup", BEST, at_least=1),
        Target("floor", "fma", at_least=0.7),
        Target("memory", OURS, at_most=16),
    ]
    rest: dict[str, Any] = {"short": False, "every_setting": False}
    found = [
        nearest(IMAGE, targets=targets, profiled=True),
        statistics(IMAGE),
        nearest(IMAGE, "cosine", **rest),
        training(IMAGE, short=False),
        nearest(IMAGE, dtype=torch.bfloat16, **rest),
    ]
    if device == "cuda":
        large = (16, 128, 128, 256)
        return [*found, nearest(large, profiled=True), nearest(large, dtype=torch.bfloat16), statistics(large)]
    return found


def test_speed(benchmark: Any, work: Work, setting: harness.Setting, results: harness.Results) -> None:
    results.race(benchmark, work, setting)

"""proximal_gate: what it is measured on, and against what.

Forward with dilations 1, 2, 3, threshold, skip and channel gate, without a bias; forward + backward with the gradients
of field, weight, threshold, skip and channel gate. Floors, with n elements of s bytes and t distinct taps (25 in 2-D,
79 in 3-D, the three centres being one):

    forward     3 n s bytes (field, skip, result)           t n multiply-adds
    backward    5 n s more (gradient, field, skip, and      4 t n with the forward: forward, recomputation and the
                the gradients of both)                      two correlations that give the gradients
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prosma_ops import proximal_gate
from prosma_ops.testing import Problem
from prosma_ops.testing.proximal_gate import Shape, eager, problem

from . import harness
from .targets import BEST, OURS, Target
from .work import Contestant, Inputs, Work

DILATIONS = (1, 2, 3)
EAGER, EAGER_CHANNELS_LAST, COMPILED, MERGED = "eager", "eager channels_last", "torch.compile", "merged + torch.compile"


def merge(weight: Tensor, dilations: Sequence[int]) -> Tensor:
    """(M, C, k, ...) -> (C, 1, K, ...): the dilated kernels as one dense kernel."""
    spatial, size = weight.dim() - 2, weight.shape[-1]
    reach = max(dilations) * (size - 1) // 2
    dense = weight.new_zeros(weight.shape[1], 1, *(2 * reach + 1,) * spatial)
    for kernel, dilation in zip(weight, dilations, strict=True):
        margin = reach - dilation * (size - 1) // 2
        taps: tuple[Any, ...] = (slice(None), 0, *(slice(margin, 2 * reach + 1 - margin, dilation),) * spatial)
        dense[taps] = dense[taps] + kernel
    return dense


def gate_with_one_kernel(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor,
    channel_gate: Tensor,
    bias: None,
    *,
    dilations: Sequence[int],
    activation: str,
) -> Tensor:
    """`weight` is dense already: (C, 1, K, ...)."""
    one = weight.movedim(1, 0)
    return eager(field, one, threshold, skip, channel_gate, bias, dilations=(1,), activation=activation)


def gate_that_merges(
    field: Tensor, weight: Tensor, *, dilations: Sequence[int], activation: str, **others: Any
) -> Tensor:
    dense = merge(weight, dilations)
    return gate_with_one_kernel(field, dense, dilations=dilations, activation=activation, **others)


def with_merged_weight(inputs: Inputs) -> Inputs:
    return inputs | {"weight": merge(inputs["weight"], DILATIONS)}


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def rivals(training: bool, volume: bool) -> list[Contestant]:
    """Where weights do not change they are merged once, beforehand; in training merging belongs to every step.

    In 3-D, where neither compiling nor merging pays, short runs leave the compiled ones out; and as 343 taps take
    seconds, the merged kernel is measured in the main setting only.
    """
    merged = Contestant(
        MERGED,
        compiled(gate_that_merges if training else gate_with_one_kernel),
        compiled=True,
        prepare=None if training else with_merged_weight,
        short=not volume,
        every_setting=not volume,
    )
    return [
        Contestant(EAGER, eager),
        Contestant(EAGER_CHANNELS_LAST, eager, layout="channels_last"),
        Contestant(COMPILED, compiled(eager), compiled=True, short=not volume),
        merged,
    ]


def build(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
    return problem(Shape("benchmark", size, DILATIONS, missing=("bias",)), "contiguous", dtype, device)


def costs(size: tuple[int, ...], dtype: torch.dtype, training: bool) -> dict[str, Any]:
    """What the floors count."""
    elements, taps = math.prod(size), 25 if len(size) == 4 else 79
    return {
        "moved_bytes": (8 if training else 3) * elements * dtype.itemsize,
        "multiply_adds": (4 if training else 1) * taps * elements,
    }


def label(size: tuple[int, ...], training: bool) -> str:
    extents = f"{size[2]}^{len(size) - 2}" if len(set(size[2:])) == 1 else "x".join(map(str, size[2:]))
    return f"{'forward + backward' if training else 'forward'}, {size[0]}x{size[1]}x{extents}"


def speed(
    size: tuple[int, ...],
    training: bool,
    targets: Sequence[Target] = (),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Work:
    others = rivals(training, len(size) == 5)
    if dtype.itemsize == 2 and len(size) == 5:
        others = others[:2]  # the compiled ones take 10 s a call
    return Work(
        name=label(size, training),
        build=build,
        size=size,
        contestants=[Contestant(OURS, proximal_gate), *others],
        dtype=dtype,
        training=training,
        targets=targets,
        field_bytes=math.prod(size) * dtype.itemsize if training else 0,
        **costs(size, dtype, training),
        **options,
    )


def layouts(size: tuple[int, ...], training: bool, **options: Any) -> Work:
    """channels_last against our own contiguous kernel, on the same numbers."""
    return Work(
        name=f"{label(size, training)}, channels_last",
        build=build,
        size=size,
        contestants=[
            Contestant(OURS, proximal_gate, layout="channels_last"),
            Contestant("ours, contiguous", proximal_gate),
        ],
        training=training,
        targets=[Target("slowdown", "ours, contiguous", at_most=1.3)],
        every_setting=False,
        **costs(size, torch.float32, training),
        **options,
    )


def softshrink(field: Tensor, **others: object) -> Tensor:
    return F.softshrink(field)


def call() -> Work:
    """What a call costs when there is nothing to compute."""
    return Work(
        name="one call, 1x2x4x4, no gradient",
        build=build,
        size=(1, 2, 4, 4),
        contestants=[
            Contestant(OURS, proximal_gate),
            Contestant(EAGER, eager),
            Contestant("softshrink", softshrink, rival=False),
        ],
        targets=[Target("excess", "softshrink", at_most=10)],
        calls=200,
    )


IMAGE, VOLUME = (4, 64, 128, 128), (1, 32, 64, 64, 64)


def against(eager_factor: float, best_factor: float, *more: Target) -> list[Target]:
    return [Target("speedup", EAGER, at_least=eager_factor), Target("speedup", BEST, at_least=best_factor), *more]


def works(device: str) -> list[Work]:
    """The targets are for the CPU, float32, all threads, raised allocator thresholds."""
    memory = Target("memory", OURS, at_most=4)
    image = [
        speed(IMAGE, False, against(6, 4, Target("floor", "largest", at_least=0.65))),
        layouts(IMAGE, False),
        speed(IMAGE, True, against(12, 8, memory)),
        layouts(IMAGE, True, short=False),
    ]
    volume = [
        speed(VOLUME, False, against(25, 5)),
        layouts(VOLUME, False),
        speed(VOLUME, True, against(18, 10, Target("floor", "fma", at_least=0.3), memory)),
        layouts(VOLUME, True, short=False),
    ]
    if device == "cuda":
        return [call(), *image, *volume, *large()]
    half: dict[str, Any] = {"dtype": torch.bfloat16, "short": False, "every_setting": False}
    sizes = (IMAGE, VOLUME)
    return [*image, *volume, call(), *(speed(size, training, **half) for size in sizes for training in (False, True))]


def large() -> list[Work]:
    """Sizes that fill a GPU, and one that its launches bound."""
    sizes = (
        ((16, 64, 256, 256), torch.float32),
        ((16, 64, 256, 256), torch.bfloat16),
        ((2, 32, 128, 128, 128), torch.float32),
        ((16, 512, 16, 16), torch.bfloat16),
    )
    return [
        speed(size, training, dtype=dtype, profiled=training and dtype is torch.float32)
        for size, dtype in sizes
        for training in (False, True)
    ]


def test_speed(benchmark: Any, work: Work, setting: harness.Setting, results: harness.Results) -> None:
    results.race(benchmark, work, setting)

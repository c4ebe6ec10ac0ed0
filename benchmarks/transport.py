"""transport_plan and transport_align: what they are measured on, and against what.

A plan of 16 images of 196 tokens with 512 supports, as a network's coarse level has them, and tokens aligned to 1,024
supports, where storing the plan is what costs. Floors, with e = B n p entries of s bytes, T iterations and D features:

    plan, forward       2 e s bytes (scores, plan)          2 T e multiply-adds, the scores exponentiated once
    plan, backward      3 e s more (scores, gradient, and   5 T e more: two dots and an axpy an iteration, and the
                        the gradient of the scores)         products of the iterations' scalings
    align               the tokens and their gradient       those, and 2 D e forward, 5 D e backward

GeomLoss cools down to epsilon and reaches it in its last iteration only, so that its plan differs by some percent from
that of the loop: it is shown as wrong where it takes part, and not timed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prosma_ops import transport_align, transport_plan, use_backend
from prosma_ops.testing import Problem
from prosma_ops.testing.transport import Shape, eager_align, eager_plan, problem

from . import harness
from .targets import BEST, OURS, Target
from .work import Contestant, Work

EAGER, COMPILED, SUPERGLUE, POT, GEOMLOSS = "eager", "torch.compile", "SuperGlue's loop", "POT, batched", "GeomLoss"


def superglue_plan(scores: Tensor, *, epsilon: float, iterations: int, **_: Any) -> Tensor:
    """The loop of SuperGlue and its descendants: scores scaled once, potentials in units of epsilon."""
    scaled = scores / epsilon
    batch, rows, columns = scores.shape
    u, v = scores.new_zeros((batch, rows)), scores.new_zeros((batch, columns))
    log_a, log_b = -math.log(rows), -math.log(columns)
    for _iteration in range(iterations):
        u = log_a - torch.logsumexp(scaled + v.unsqueeze(1), dim=2)
        v = log_b - torch.logsumexp(scaled + u.unsqueeze(2), dim=1)
    return (scaled + u.unsqueeze(2) + v.unsqueeze(1)).exp()


def pot_plan(scores: Tensor, *, epsilon: float, iterations: int, **_: Any) -> Tensor:
    """Its batched solver in the log domain, which updates in our order; every tenth iteration it looks at the error."""
    from ot.batch import solve_batch

    found = solve_batch(-scores, epsilon, max_iter=iterations, tol=-1.0, method="log_sinkhorn", grad="autodiff")
    plan: Tensor = found.plan
    return plan


def geomloss_plan(scores: Tensor, *, epsilon: float, iterations: int, **_: Any) -> Tensor:
    from geomloss.ot import solve_batch

    plan: Tensor = solve_batch(-scores, reg=epsilon, max_iter=iterations).plan
    return plan


def eager_aligned(**arguments: Any) -> Tensor:
    return eager_align(**arguments).aligned


def pot_aligned(tokens: Tensor, reference: Tensor, *, score: str, **settings: Any) -> Tensor:
    assert score == "dot"
    return pot_plan(tokens @ reference.mT, **settings).mT @ tokens


def within_reference(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The reference in float64 with its written-out gradient: autograd through the loop would keep 100 plans of it."""

    def run(**arguments: Any) -> Tensor:
        with use_backend("reference"):
            return function(**arguments)

    return run


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def plan_problem(
    epsilon: float, iterations: int, size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Problem:
    shape = Shape("benchmark", (size[0], size[1], size[2]), epsilon=epsilon, iterations=iterations)
    found = problem("transport_plan", shape, "contiguous", dtype, device)
    return dataclasses.replace(found, function=transport_plan, definition=within_reference(transport_plan))


def align_problem(
    features: int, iterations: int, size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Problem:
    shape = Shape("benchmark", (size[0], size[1], size[2]), features, epsilon=0.5, iterations=iterations)
    found = problem("transport_align", shape, "contiguous", dtype, device)
    functions: dict[str, Any] = {"function": transport_align, "definition": within_reference(transport_align)}
    return dataclasses.replace(found, **functions, eager=eager_aligned, grads=found.grads[:1])


def plan_rivals() -> list[Contestant]:
    return [
        Contestant(EAGER, eager_plan),
        Contestant(SUPERGLUE, superglue_plan),
        Contestant(POT, pot_plan),
        Contestant(COMPILED, compiled(eager_plan), compiled=True, short=False, every_setting=False),
        Contestant(GEOMLOSS, geomloss_plan, short=False, every_setting=False),
    ]


def align_rivals() -> list[Contestant]:
    return [
        Contestant(EAGER, eager_aligned),
        Contestant(POT, pot_aligned, every_setting=False),
        Contestant(COMPILED, compiled(eager_aligned), compiled=True, short=False, every_setting=False),
    ]


PLAIN, SHARP = (partial(plan_problem, epsilon, 20) for epsilon in (0.5, 0.01))
FEATURES, ALIGN_ITERATIONS = 64, 10
TOKENS = partial(align_problem, FEATURES, ALIGN_ITERATIONS)
COARSE, LARGE = (16, 196, 512), (4, 4096, 1024)


def label(what: str, size: tuple[int, ...], training: bool) -> str:
    return f"{what}, {'forward + backward' if training else 'forward'}, {'x'.join(map(str, size))}"


def plan(
    size: tuple[int, ...], training: bool, targets: Sequence[Target] = (), sharp: bool = False, **options: Any
) -> Work:
    entries, dtype = size[0] * size[1] * size[2], options.get("dtype", torch.float32)
    return Work(
        name=label(f"plan at epsilon {0.01 if sharp else 0.5}", size, training),
        build=SHARP if sharp else PLAIN,
        size=size,
        contestants=[Contestant(OURS, transport_plan), *plan_rivals()],
        training=training,
        targets=targets,
        moved_bytes=(5 if training else 2) * entries * dtype.itemsize,
        multiply_adds=(7 if training else 2) * 20 * entries,
        field_bytes=entries * dtype.itemsize if training else 0,
        **options,
    )


def align(size: tuple[int, ...], training: bool, targets: Sequence[Target] = (), **options: Any) -> Work:
    (batch, rows, columns), dtype = size, options.get("dtype", torch.float32)
    entries = batch * rows * columns
    return Work(
        name=label(f"align, {FEATURES} features", size, training),
        build=TOKENS,
        size=size,
        contestants=[Contestant(OURS, transport_align), *align_rivals()],
        training=training,
        targets=targets,
        moved_bytes=(3 if training else 1) * batch * rows * FEATURES * dtype.itemsize,
        multiply_adds=((7 if training else 2) * ALIGN_ITERATIONS + (7 if training else 2) * FEATURES) * entries,
        field_bytes=entries * dtype.itemsize if training else 0,
        **options,
    )


def works(device: str) -> list[Work]:
    """The targets are for the CPU, float32, all threads, raised allocator thresholds; memory is counted in plans."""
    found = [
        plan(COARSE, False, [Target("speedup", EAGER, at_least=25)]),
        plan(
            COARSE,
            True,
            [
                Target("speedup", EAGER, at_least=22),
                Target("speedup", BEST, at_least=5),
                Target("memory", OURS, at_most=3),
            ],
        ),
        plan(COARSE, False, [Target("speedup", EAGER, at_least=8)], sharp=True),
        plan(COARSE, True, sharp=True, short=False, every_setting=False),
        align(LARGE, False, short=False, every_setting=False),
        align(
            LARGE,
            True,
            [Target("speedup", EAGER, at_least=8), Target("memory share", EAGER, at_most=0.1)],
            profiled=True,
        ),
    ]
    if device == "cuda":
        half: dict[str, Any] = {"dtype": torch.bfloat16, "profiled": True}
        return [*found, *(plan((64, 1024, 1024), training) for training in (False, True)), align(LARGE, True, **half)]
    half = {"dtype": torch.bfloat16, "short": False, "every_setting": False}
    return [*found, plan(COARSE, True, **half), align(LARGE, True, **half)]


def test_speed(benchmark: Any, work: Work, setting: harness.Setting, results: harness.Results) -> None:
    results.race(benchmark, work, setting)

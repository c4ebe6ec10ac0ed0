"""mixed_logit_statistics under Triton's interpreter, cut as large problems are: many tiles, programs and launches."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

CODE = """
    import torch

    from prosma_ops.reference import logit_mixing as reference
    from prosma_ops.triton_kernels import logit_mixing as kernels

    batch, classes, full, sizes, operators, per_sample, cut = %r
    torch.set_num_threads(1)
    torch.manual_seed(0)
    launches, start = [], kernels.launch


    def counted(kernel, programs, *arguments, **others):
        launches.append((kernel.__name__, programs))
        start(kernel, programs, *arguments, **others)


    kernels.launch = counted
    kernels.TILE, kernels.WARPS, kernels.WORKSPACE = cut
    kernels.needs_int64 = lambda distance: True


    def drawn(*shape):
        return torch.randn(shape, dtype=torch.float64)


    levels = len(sizes)
    subsets, pairs = 2**levels - 1 - levels, levels * (2 ** (levels - 1) - 1)
    logits = [drawn(batch, classes, *size) for size in sizes]
    target = torch.randint(0, classes, (batch, *full), dtype=torch.uint8)
    target[torch.rand(target.shape) < 0.2] = 255
    concat = (drawn(classes, classes * pairs), drawn(classes, subsets)) if "concat" in operators else (None, None)
    attention = (drawn(pairs, classes), drawn(pairs)) if "attention" in operators else (None, None)
    tensors = (logits, target, *concat, *attention)
    settings = (operators, "softmax", "probabilities", 255, False, per_sample)
    expected = reference.mixed_logit_statistics(*tensors, *settings, True)
    grads = [torch.randn_like(table) for table in expected[:5]]
    needed = [True] * (levels + 4)
    gradients = reference.mixed_logit_statistics_backward(*grads, *tensors, *settings, needed)


    def results():
        return [*kernels.forward(*tensors, *settings, True), *kernels.backward(*grads, *tensors, *settings, needed)]


    found = results()
    for number, (a, b) in enumerate(zip(found, [*expected, *gradients], strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype, number
        if a.numel():
            assert (a - b).abs().max() <= 1e-11 * (1 + b.abs().max()), (number, a, b)
    print([each for each in launches if each[0] in ("statistics_kernel", "gradient_kernel")])
"""
# batch, classes, size, sizes of the levels, operators, per_sample; pixels of a tile, warps and bytes at work.
ALL = ("attention", "multiply", "concat", "add")
CUT = {
    "one program takes all tiles of an image": (
        (2, 3, (5, 7), ((2, 3), (5, 4)), ALL, False, (8, 1, 1)),
        [("statistics_kernel", 1)] * 2 + [("gradient_kernel", 1)] * 2,
    ),
    "a program a tile, all images at once": (
        (2, 2, (2, 3, 5), ((1, 2, 2), (2, 3, 5)), ("multiply",), True, (6, 100, 1 << 27)),
        [("statistics_kernel", 10), ("gradient_kernel", 12)],
    ),
    "products of several blocks": (
        (1, 33, (2, 3), ((2, 2), (1, 3)), ("concat",), False, (256, 8, 1 << 27)),
        [("statistics_kernel", 1), ("gradient_kernel", 1)],
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_the_tiles_of_a_large_problem(python: Run, name: str) -> None:
    problem, launches = CUT[name]
    done = python(CODE % (problem,), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == str(launches)

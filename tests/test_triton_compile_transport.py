"""The Triton kernels of transport, compiled for GPUs that this machine does not have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.triton_compile import TARGETS, Launch, compile_without_spills, run

pytest.importorskip("triton", reason="Triton is not installed")

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


def empty(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def saved(heads: tuple[int, ...], steps: int, columns: int) -> tuple[Tensor, Tensor]:
    """A history of column potentials, and how many iterations ran: the host functions gather by the second."""
    return torch.zeros(*heads, steps, columns, dtype=F64), torch.full(heads, steps, dtype=torch.int32)


def plan(n: int, p: int, dtype: torch.dtype, tolerance: float = 0.0, unrolled: bool = True, steps: int = 2) -> None:
    from prosma_ops.triton_kernels import transport as kernels

    scores, masses = empty(2, n, p, dtype=dtype), (empty(2, n), empty(2, p))
    potential = torch.promote_types(dtype, F32)
    grads = (scores, empty(2, n, dtype=potential), empty(2, p, dtype=potential))
    kernels.plan_forward(scores, *masses, 0.5, steps, tolerance, steps, True)
    history, count = saved((2,), steps if unrolled else 1, p)
    kernels.plan_backward(*grads, scores, *masses, history, count, 0.5, unrolled)


def align(n: int, p: int, dtype: torch.dtype, score: int = 0, unrolled: bool = True) -> None:
    from prosma_ops.triton_kernels import transport as kernels

    tokens, reference, masses = empty(2, n, 64, dtype=dtype), empty(2, p, 64, dtype=dtype), (empty(2, n), empty(2, p))
    kernels.align_forward(tokens, reference, *masses, score, 0.5, 2, 0.0, 2)
    history, count = saved((2, 2), 2 if unrolled else 1, p)
    incoming = empty(2, 2, p, 64, dtype=dtype)
    arguments = (tokens, reference, *masses, history, count, score, 0.5, unrolled, [True, True])
    kernels.align_backward(incoming, None, None, *arguments)


def move(n: int, p: int, dtype: torch.dtype, score: int, columns_side: bool) -> None:
    from prosma_ops.triton_kernels import transport as kernels

    tokens, reference = empty(2, n, 64, dtype=dtype), empty(2, p, 64, dtype=dtype)
    potentials = [empty(2, 2, size, dtype=torch.promote_types(dtype, F32)) for size in (n, p)]
    rows, columns = empty(2, n, 32, dtype=dtype), empty(2, 2, p, 32, dtype=dtype)
    values, incoming = (rows, columns) if columns_side else (columns, rows)
    kernels.apply_forward(tokens, reference, *potentials, values, columns_side, score, 0.5)
    arguments = (tokens, reference, *potentials, values, columns_side, score, 0.5)
    kernels.apply_backward(incoming, *arguments, [True] * 5)


CASES: dict[str, Callable[[], None]] = {
    "plan fp32": lambda: plan(196, 512, F32),
    "plan fp32 of few columns": lambda: plan(197, 10, F32),
    "plan fp32 to a tolerance": lambda: plan(196, 512, F32, tolerance=1e-3),
    "plan fp32 implicit": lambda: plan(196, 512, F32, unrolled=False),
    "plan fp32 of one score": lambda: plan(1, 1, F32, steps=1),
    "plan bf16": lambda: plan(196, 512, BF16),
    "plan fp64": lambda: plan(196, 512, F64),
    "plan fp64 implicit": lambda: plan(196, 512, F64, unrolled=False),
    "plan fp32 by halves": lambda: plan(2048, 1024, F32, tolerance=1e-3),
    "plan fp32 by halves, implicit": lambda: plan(2048, 1024, F32, unrolled=False),
    "align fp32": lambda: align(196, 512, F32),
    "align fp32 of distances": lambda: align(196, 512, F32, score=1),
    "align fp32 recomputed": lambda: align(8192, 2048, F32),
    "align bf16": lambda: align(196, 512, BF16),
    "align fp64": lambda: align(196, 512, F64),
    "apply fp32 to columns": lambda: move(196, 512, F32, 0, True),
    "apply fp32 to rows": lambda: move(196, 512, F32, 1, False),
    "apply bf16 to columns": lambda: move(196, 512, BF16, 1, True),
}
# Bytes a thread that stay on the stack, whatever the number of warps: what one kernel lost another gained.
KNOWN_SPILLS = {"whole_kernel": 8, "whole_solve_kernel": 48, "move_kernel": 16}
QUICK = [("sm_90", "plan fp32"), ("sm_90", "apply fp32 to columns")]
EVERYWHERE = ("plan fp32", "plan fp32 implicit", "plan fp32 by halves", "align fp32", "align bf16")
SLOW = [(target, case) for target in TARGETS for case in CASES if target == "sm_90" or case in EVERYWHERE]


def recorded_launches(case: str, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the host functions start, once each; the scores of a large problem take no memory that is touched."""
    from prosma_ops.triton_kernels import transport_backward, transport_forward

    launches: dict[str, Launch] = {}

    def record(kernel: object, programs: int, *arguments: object, device: torch.device, **constants: object) -> None:
        launch = Launch(kernel, arguments, constants)
        # The steps of a loop differ in numbers that Triton would specialise on: those of the first are representative.
        launches.setdefault(f"{kernel} {sorted(constants.items(), key=str)}", launch)

    for module in (transport_forward, transport_backward):
        monkeypatch.setattr(module, "launch", record)
    CASES[case]()
    return list(launches.values())


def check(target: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if target.startswith("gfx"):
        monkeypatch.setattr(torch.version, "hip", "7")  # what the host functions ask where that is the GPU
    launches = recorded_launches(case, monkeypatch)
    assert launches
    for launch in launches:
        compile_without_spills(launch, target, case, KNOWN_SPILLS)


@pytest.mark.parametrize(("target", "case"), QUICK, ids=[f"{target}-{case}" for target, case in QUICK])
def test_compiles(target: str, case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(request, tmp_path, partial(check, target, case))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "case"), SLOW, ids=[f"{target}-{case}" for target, case in SLOW])
def test_compiles_everywhere(target: str, case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(request, tmp_path, partial(check, target, case))

"""The Triton kernels of proximal_gate, compiled for GPUs that this machine does not have."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton_compile import (
    TARGETS,
    Launch,
    compile_without_spills,
    recorded,
    run,
)

pytest.importorskip("triton", reason="Triton is not installed")

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
# shape, dtype, channels_last, kernel size, dilations
CASES: dict[str, tuple[tuple[int, ...], torch.dtype, bool, int, tuple[int, ...]]] = {
    "2d fp32 of one dilation": ((4, 64, 128, 128), F32, False, 3, (2,)),
    "2d fp32": ((4, 64, 128, 128), F32, False, 3, (1, 2, 3)),
    "2d bf16": ((4, 64, 128, 128), BF16, False, 3, (1, 2, 3)),
    "2d fp64": ((4, 64, 128, 128), F64, False, 3, (1, 2)),
    "2d fp32 channels_last": ((4, 64, 128, 128), F32, True, 3, (1, 2, 3)),
    "2d bf16 channels_last": ((4, 64, 128, 128), BF16, True, 3, (1, 2, 3)),
    "2d fp32 of odd width": ((4, 64, 127, 127), F32, False, 3, (1, 2, 3)),
    # Triton compiles a 1 among the arguments in, which is of another type.
    "2d fp32 of one pixel": ((1, 1, 1, 1), F32, False, 1, (1,)),
    "3d fp32 of one voxel": ((1, 1, 1, 1, 1), F32, False, 3, (1,)),
    "2d fp32 of 16x16": ((16, 512, 16, 16), F32, False, 3, (1, 2, 3)),
    "3d fp32": ((1, 32, 64, 64, 64), F32, False, 3, (1, 2, 3)),
    "3d fp32 channels_last": ((1, 32, 64, 64, 64), F32, True, 3, (1, 2, 3)),
    "3d bf16": ((1, 32, 64, 64, 64), BF16, False, 3, (1, 2, 3)),
    "3d bf16 channels_last": ((1, 32, 64, 64, 64), BF16, True, 3, (1, 2, 3)),
    "3d fp64": ((1, 32, 64, 64, 64), F64, False, 3, (1, 2)),
    "3d fp32 kernel 7": ((1, 32, 64, 64, 64), F32, False, 7, (1,)),
    "3d fp32 of 9 kernels": ((1, 32, 64, 64, 64), F32, False, 7, tuple(range(1, 10))),
}
QUICK = [("sm_90", "2d fp32"), ("gfx942", "3d fp32 channels_last")]
DIMENSIONS, TYPES = ("2d", "3d"), ("fp32", "bf16", "fp32 channels_last")
EVERYWHERE = [f"{dimensions} {kind}" for dimensions in DIMENSIONS for kind in TYPES]
SLOW = [(target, case) for target in TARGETS for case in CASES if target == "sm_90" or case in EVERYWHERE]


def recorded_launches(case: str, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    from prosma_ops.triton_kernels import proximal_gate as kernels

    shape, dtype, channels_last, kernel_size, dilations = CASES[case]
    spatial, channels = len(shape) - 2, shape[1]
    field = torch.empty(shape, dtype=dtype)
    if channels_last:
        field = field.contiguous(memory_format=torch.channels_last if spatial == 2 else torch.channels_last_3d)
    weight = torch.empty(len(dilations), channels, *(kernel_size,) * spatial, dtype=dtype)
    inputs = (
        field,
        weight,
        torch.empty(channels, dtype=dtype),
        torch.empty_like(field),
        torch.empty(shape[0], channels, dtype=dtype),
        torch.empty(channels, dtype=dtype),
    )
    launches = recorded(monkeypatch, kernels)
    kernels.forward(*inputs, dilations, "identity")
    kernels.backward(torch.empty_like(field), *inputs, dilations, "identity", [True] * 6)
    return launches


def tile_loads(kernel: Any, numbers: int) -> set[tuple[int, int]]:
    """(channels, columns) that a thread takes side by side in the loads of whole tiles."""
    text = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"(#\w+) = #ttg\.blocked<\{sizePerThread = \[([\d, ]+)\]", text))
    found = re.findall(r"tt\.load .* : tensor<(\d+)x(\d+)x!tt\.ptr<\w+>, (#\w+)>", text)
    assert found, "a kernel without loads"
    whole = [layouts[layout] for channels, positions, layout in found if int(channels) * int(positions) == numbers]
    return {tuple(map(int, layout.split(", "))) for layout in whole}  # type: ignore[misc]


def check(target: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = recorded_launches(case, monkeypatch)
    assert len(launches) == 4, "one launch forward, two backward, and one that adds up the sums of the tiles"
    for launch in launches:
        kernel = compile_without_spills(launch, target, case)
        if "TILE" in launch.constants:
            name, tile = launch.kernel.__name__, launch.constants["TILE"]
            loads = tile_loads(kernel, tile.channels * tile.positions)
            # Neighbouring threads load neighbouring numbers: one each, or along the channels up to 16 bytes.
            assert all(columns == 1 for _, columns in loads), f"{name}: {loads}"
            if case.endswith("channels_last"):
                assert all(channels > 1 for channels, _ in loads), f"{name}: {loads}"


@pytest.mark.parametrize(("target", "case"), QUICK, ids=[f"{target}-{case}" for target, case in QUICK])
def test_compiles(target: str, case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(request, tmp_path, partial(check, target, case))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "case"), SLOW, ids=[f"{target}-{case}" for target, case in SLOW])
def test_compiles_everywhere(target: str, case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(request, tmp_path, partial(check, target, case))

"""The Triton kernels of nearest_code and code_statistics, compiled for GPUs that this machine does not have."""

from __future__ import annotations

from functools import partial
from pathlib import Path

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
# tokens, codes, dtype of the tokens and of the codebook, channels first, metric, torch's float32 precision
CASES = {
    "fp32": ((12544, 256), 1024, F32, F32, False, "euclidean", "highest"),
    "tf32": ((12544, 256), 1024, F32, F32, False, "euclidean", "high"),
    "fp32 of an image": ((4, 56, 56, 256), 1024, F32, F32, True, "euclidean", "highest"),
    "tf32 of an image": ((4, 56, 56, 256), 1024, F32, F32, True, "euclidean", "high"),
    "bf16": ((12544, 256), 1024, BF16, BF16, False, "euclidean", "high"),
    "bf16, fp32 codebook": ((12544, 256), 1024, BF16, F32, False, "cosine", "highest"),
    "fp64": ((12544, 256), 1024, F64, F64, False, "euclidean", "highest"),
    # Triton compiles a 1 among the arguments in, which is of another type.
    "one number": ((1, 1), 1, F32, F32, False, "euclidean", "highest"),
    "odd sizes": ((3, 57, 31), 77, F32, F32, False, "cosine", "high"),
    "large": ((4096, 1024), 16384, F32, F32, False, "euclidean", "high"),
}
QUICK = [("sm_90", "tf32"), ("gfx942", "fp32")]
EVERYWHERE = ("fp32", "tf32", "bf16", "fp64", "fp32 of an image")
SLOW = [(target, case) for target in TARGETS for case in CASES if target == "sm_90" or case in EVERYWHERE]


def recorded_launches(case: str, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    from prosma_ops.triton_kernels import codebook as kernels

    size, codes, dtype, of_codebook, channels_first, metric, precision = CASES[case]
    tokens = torch.zeros(size, dtype=dtype)
    if channels_first:
        tokens = tokens.movedim(-1, 1).contiguous().movedim(1, -1)
    codebook = torch.zeros(codes, size[-1], dtype=of_codebook)
    launches = recorded(monkeypatch, kernels)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        kernels.nearest_code(tokens, codebook, metric)
    finally:
        torch.set_float32_matmul_precision(before)
    index = torch.zeros(size[:-1], dtype=torch.int64)
    kernels.code_statistics(tokens, index, codes)
    kernels.nearest_code_backward(tokens, index, codes, of_codebook)
    return launches


def check(target: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = recorded_launches(case, monkeypatch)
    metric = CASES[case][5]
    assert len(launches) == (7 if metric == "euclidean" else 6), "the shift, the rows, the product; and twice two"
    seen: set[str] = set()
    for launch in launches:
        kernel = compile_without_spills(launch, target, case)
        seen.add(launch.kernel.__name__)
        if launch.kernel.__name__ == "_nearest_kernel" and target == "sm_90":
            on_tensor_units = "wgmma" in kernel.asm["ptx"] or "mma.sync" in kernel.asm["ptx"]
            assert on_tensor_units == (launch.constants["PRECISION"] == "tf32" or CASES[case][2] is F64)
    assert {"_rows_kernel", "_nearest_kernel", "_chunks_kernel", "_sums_kernel"} <= seen


@pytest.mark.parametrize(("target", "case"), QUICK, ids=[f"{target}-{case}" for target, case in QUICK])
def test_compiles(target: str, case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(request, tmp_path, partial(check, target, case))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "case"), SLOW, ids=[f"{target}-{case}" for target, case in SLOW])
def test_compiles_everywhere(target: str, case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(request, tmp_path, partial(check, target, case))

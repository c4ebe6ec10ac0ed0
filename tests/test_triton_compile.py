"""Compiles the Triton kernels for GPUs that this machine does not have, and reads what they need of them.

The launches are those that the host functions really make: they are recorded on CPU tensors, and each is compiled
with the specialisations (alignment, divisibility, constants) that Triton would find at run time. Registers, stack and
spills come from the code made for the GPU itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
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
POINTERS = {F32: "*fp32", F64: "*fp64", torch.float16: "*fp16", BF16: "*bf16"}


class Resources(NamedTuple):
    registers: int
    spills: int  # bytes of stack on NVIDIA, registers on AMD
    shared: int  # bytes


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


def recorded_launches(case: str, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    from prosma_ops.triton_kernels import proximal_gate as kernels

    launches: list[Launch] = []

    def record(kernel: Any, programs: int, *arguments: Any, device: torch.device, **constants: Any) -> None:
        launches.append(Launch(kernel, arguments, constants))

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
    monkeypatch.setattr(kernels, "launch", record)
    kernels.forward(*inputs, dilations, "identity")
    kernels.backward(torch.empty_like(field), *inputs, dilations, "identity", [True] * 6)
    return launches


def described(value: Any, path: tuple[int, ...], constants: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
    """The type of one argument as Triton's launcher would name it; notes what it would specialise on."""
    if value is None or (type(value) is int and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, tuple):
        return tuple(described(item, (*path, i), constants, attributes) for i, item in enumerate(value))
    if isinstance(value, torch.Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return POINTERS[value.dtype]
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compiled(launch: Launch, target: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    types = {names[i]: described(value, (i,), constants, attributes) for i, value in enumerate(launch.arguments)}
    options = {name: value for name, value in launch.constants.items() if name not in names}
    for name, value in launch.constants.items():
        if name in names:
            types[name] = "constexpr"
            constants[(names.index(name),)] = value
    source = ASTSource(
        fn=launch.kernel, signature={name: types[name] for name in names}, constexprs=constants, attrs=attributes
    )
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


def resources(kernel: Any) -> Resources:
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        number = {key: int(re.search(rf"\.{key}:\s+(\d+)", text)[1]) for key in AMD_KEYS}
        spills = number["vgpr_spill_count"] + number["sgpr_spill_count"]
        return Resources(number["vgpr_count"], spills, kernel.metadata.shared)
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage.stdout)
    assert found, usage.stdout
    registers, stack, shared, local = map(int, found.groups())
    return Resources(registers, stack + local, shared)


AMD_KEYS = ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")


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
        start = time.perf_counter()
        kernel = compiled(launch, target)
        seconds = time.perf_counter() - start
        used = resources(kernel)
        name = launch.kernel.__name__
        row = f"{target:7} {case:24} {name:24} compiled in {seconds:4.1f} s"
        print(f"{row}  registers {used.registers:3}  spills {used.spills:3}  shared {used.shared}")
        assert used.spills == 0, f"{name} spills"
        if "TILE" in launch.constants:
            tile = launch.constants["TILE"]
            loads = tile_loads(kernel, tile.channels * tile.positions)
            # Neighbouring threads load neighbouring numbers: one each, or along the channels up to 16 bytes.
            assert all(columns == 1 for _, columns in loads), f"{name}: {loads}"
            if case.endswith("channels_last"):
                assert all(channels > 1 for channels, _ in loads), f"{name}: {loads}"


def check_in_child(target: str, case: str) -> None:
    """Kernels defined under TRITON_INTERPRET=1 cannot be compiled, so that a new process defines them anew."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    name = "test_compiles_everywhere" if (target, case) in SLOW else "test_compiles"
    test = f"{__file__}::{name}[{target}-{case}]"
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", "slow or not slow", test]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    print(child.stdout)
    assert child.returncode == 0, child.stdout + child.stderr


def run(target: str, case: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    if os.environ.get("TRITON_INTERPRET") == "1":
        check_in_child(target, case)
    else:
        check(target, case, monkeypatch)


@pytest.mark.parametrize(("target", "case"), QUICK, ids=[f"{target}-{case}" for target, case in QUICK])
def test_compiles(target: str, case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(target, case, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "case"), SLOW, ids=[f"{target}-{case}" for target, case in SLOW])
def test_compiles_everywhere(target: str, case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(target, case, monkeypatch, tmp_path)

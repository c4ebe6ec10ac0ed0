"""Compiles Triton kernels for GPUs that this machine does not have, and reads what they need of them.

The launches are those that the host functions really make: they are recorded on CPU tensors, and each is compiled
with the specialisations (alignment, divisibility, constants) that Triton would find at run time. Registers, stack and
spills come from the code made for the GPU itself. `tests/test_triton_compile_<operator>.py` lists what is compiled.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Resources(NamedTuple):
    registers: int
    spills: int  # bytes of memory a thread; on AMD, scalars that wait in a vector register's lanes are none
    shared: int  # bytes


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


def recorded(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType) -> list[Launch]:
    """The list into which `kernels.launch` now writes, instead of starting anything."""
    launches: list[Launch] = []

    def record(kernel: Any, programs: int, *arguments: Any, device: torch.device, **constants: Any) -> None:
        launches.append(Launch(kernel, arguments, constants))

    monkeypatch.setattr(kernels, "launch", record)
    return launches


def described(value: Any, path: tuple[int, ...], constants: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
    """The type of one argument as Triton's launcher would name it; notes what it would specialise on."""
    if value is None or (type(value) is int and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, tuple):
        return tuple(described(item, (*path, i), constants, attributes) for i, item in enumerate(value))
    if isinstance(value, float):
        return "fp32"
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
        return Resources(number["vgpr_count"], number["private_segment_fixed_size"], kernel.metadata.shared)
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


AMD_KEYS = ("vgpr_count", "private_segment_fixed_size")


def compile_without_spills(launch: Launch, target: str, case: str, known: Mapping[str, int] | None = None) -> Any:
    """The compiled kernel, after a line about what it needs. `known`: what a kernel is known to spill at most."""
    start = time.perf_counter()
    kernel = compiled(launch, target)
    seconds = time.perf_counter() - start
    used = resources(kernel)
    name = launch.kernel.__name__
    row = f"{target:7} {case:28} {name:28} compiled in {seconds:4.1f} s"
    print(f"{row}  registers {used.registers:3}  spills {used.spills:3}  shared {used.shared}")
    assert used.spills <= (known or {}).get(name, 0), f"{name} spills {used.spills} bytes a thread"
    return kernel


def _interpreted() -> bool:
    """Kernels defined under TRITON_INTERPRET=1 cannot be compiled: a new process has to define them anew."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _again_in_child(test: str) -> None:
    """Run `test`, a node's id, where the kernels are compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", "slow or not slow", test]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    print(child.stdout)
    assert child.returncode == 0, child.stdout + child.stderr


def _settle(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """What every compilation here is done under; an empty cache, so that it is one."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))


def run(request: pytest.FixtureRequest, cache: Path, check: Callable[[pytest.MonkeyPatch], None]) -> None:
    """`check`, the body of the test that asks, where kernels can be compiled."""
    monkeypatch = request.getfixturevalue("monkeypatch")
    _settle(monkeypatch, cache)
    if _interpreted():
        _again_in_child(f"{request.path}::{request.node.name}")
    else:
        check(monkeypatch)

"""Builds CUDA kernels as ordinary C++ and runs their operators' cases, with sanitizers: see tests/emulation/README.md.

`build` makes a Python module of the kernels of one room, and `run` starts a process with AddressSanitizer in it, which
loads that module in the place of the native library and compares every case of `prosma_ops.testing` with float64.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EMULATION = ROOT / "tests/emulation"
# The kernels of each room that has any.
KERNELS = {
    "proximal_gate": "[ps]*.cu",
    "codebook": "code*.cu",
    "logit_mixing": "logit_mixing*.cu",
    "transport": "transport_*.cu",
}
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1")
# Python and torch keep memory to their end; fibers have stacks that the sanitizer does not know of beforehand.
OPTIONS = "detect_leaks=0:detect_stack_use_after_return=0:alloc_dealloc_mismatch=0"


def compiler() -> str:
    """g++, whose sanitizers can be loaded into a Python that was built without them."""
    found = os.environ.get("CXX") or shutil.which("g++")
    if found is None or "g++" not in Path(found).name:
        pytest.skip("there is no g++")
    return found


def build(room: str, folder: Path, *, few_types: bool = False, sanitized: bool = True) -> Path:
    """The module of the room's kernels. `few_types`: float32 and the half types that are no instantiation of their own.

    Without the sanitizers the compiler takes a third of the time: then only what goes wrong in the results is found.
    The bindings, which take as long as all kernels of a room, are always the same, and compiled once a folder.
    """
    import pybind11

    flags = ["-std=c++20", "-fPIC", "-fvisibility=hidden", f"-I{EMULATION}", f"-I{ROOT / 'csrc'}", "-Wno-attributes"]
    python = [f"-I{pybind11.get_include()}", f"-I{_python_headers()}", "-O0", f"-DPROSMA_ROOM={room}_cuda"]
    python += [f'-DPROSMA_BINDINGS="{ROOT / f"csrc/bindings/{room}_cuda.cpp"}"']
    kernels = sorted((ROOT / "csrc/cuda").glob(KERNELS[room]))
    assert kernels, f"{room} has no kernels in csrc/cuda"
    own = folder / ("sanitized" if sanitized else "plain") / ("few" if few_types else "all")
    own.mkdir(parents=True, exist_ok=True)
    flags_of_kernels = [*(SANITIZERS if sanitized else ["-O0"]), *(["-DPROSMA_FEW_TYPES"] if few_types else [])]
    bindings = folder / "bindings.o"
    if not bindings.exists():
        _compile(EMULATION / "module.cpp", bindings, *flags, *python)
    objects = [bindings]
    for source in (*kernels, EMULATION / "settings.cpp"):
        objects.append(own / f"{source.stem}.o")
        _compile(source, objects[-1], *flags, *flags_of_kernels)
    module = own / "emulated.so"
    link = [compiler(), "-shared", *(SANITIZERS if sanitized else ()), *map(str, objects), "-o", str(module)]
    subprocess.run(link, check=True)
    return module


def _compile(source: Path, to: Path, *flags: str) -> None:
    command = [compiler(), *flags, "-x", "c++", "-c", str(source), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:6000]


def _python_headers() -> str:
    import sysconfig

    return sysconfig.get_paths()["include"]


def run(
    module: Path,
    operators: Sequence[str],
    *,
    size: str = "tiny",
    orders: Sequence[int] = (0,),
    dtypes: Sequence[str] = (),
    chip: str = "9.0",
    cases: str = "",
    sanitized: bool = True,
    timeout: int = 400,
) -> list[dict[str, Any]]:
    """The records of every case that ran, one of `orders` after another by turns; fails if the sanitizers do.

    `orders`: 0 forwards, -1 backwards, else the seed of a shuffle. `cases`: only those whose name holds this.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROSMA_")}
    if sanitized:
        environment |= {"LD_PRELOAD": _preloaded(), "ASAN_OPTIONS": OPTIONS, "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    settings = {"module": str(module), "operators": list(operators), "size": size, "orders": list(orders)}
    settings |= {"dtypes": list(dtypes), "chip": [int(number) for number in chip.split(".")], "cases": cases}
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulation.run", json.dumps(settings)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:8000]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _preloaded() -> str:
    """The sanitizer, and the library in which it looks, at its start, for how exceptions are thrown."""

    def path(name: str) -> str:
        command = [compiler(), f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return f"{path('libasan.so')} {path('libstdc++.so')}"


def failures(records: Sequence[dict[str, Any]]) -> list[str]:
    names = ("operator", "case", "layout", "dtype", "tensor", "error", "bound", "reason")
    return [", ".join(str(record[name]) for name in names) for record in records if not record["ok"]]

"""The native CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, at every level that can run here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = {
    "portable": [],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1"]
CASES = 150
# The program that calls an operator's kernels, and the files that hold them.
KERNELS = {
    "proximal_gate": "[ps]*.cpp",
    "logit_mixing": "logit_mixing*.cpp",
    "codebook": "code*.cpp",
    "transport": "transport_*.cpp",
}


@pytest.mark.slow
@pytest.mark.parametrize("operator", KERNELS)
@pytest.mark.parametrize("level", FLAGS)
def test_the_kernels_touch_only_what_is_theirs(
    level: str, operator: str, native_library: ModuleType, tmp_path: Path
) -> None:
    if level not in native_library.runnable_levels:
        pytest.skip(f"this processor does not have level {level}")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "the native library is here, and the compiler that made it is not"
    program = tmp_path / "sanitized"
    sources = [ROOT / f"tests/sanitizers/{operator}.cpp", *(ROOT / "csrc/cpu").glob(KERNELS[operator])]
    command = [compiler, "-std=c++17", *SANITIZERS, *FLAGS[level], f"-DPROSMA_LEVEL={level}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([program, str(CASES)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{4 * CASES} cases\n"

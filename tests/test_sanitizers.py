"""The native CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, at every level that can run here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = {
    "portable": [],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1"]
# A failed check of UBSan as a trap, and every check of memory as a call: with the code of both in place the compiler
# takes about twice as long. A trap is told as an illegal instruction, with its file and line.
SHORT = ["-fsanitize-undefined-trap-on-error", "--param=asan-instrumentation-with-call-threshold=0"]
TOLD = "handle_sigill=1"
CASES = 150
# The program that calls an operator's kernels, the files that hold them, and how they are compiled. At -O0 the compiler
# takes a third of the time: right for the gate, whose code is long and whose cases are small. Transport's run takes
# twice as long then; logit_mixing's takes more than the 400 s that it has when its checks are calls besides.
KERNELS = {
    "proximal_gate": ("[ps]*.cpp", ["-O0", *SHORT]),
    "logit_mixing": ("logit_mixing*.cpp", ["-O1"]),
    "codebook": ("code*.cpp", ["-O1"]),
    "transport": ("transport_*.cpp", ["-O1", *SHORT]),
}


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    assert found, "the native library is here, and the compiler that made it is not"
    return found


def build(sources: Sequence[Path], program: Path, *options: str) -> None:
    if "clang" in compiler():
        options = tuple(option for option in options if option not in SHORT)
    command = [compiler(), "-std=c++17", *SANITIZERS, *options, f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)


def run(program: Path, argument: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ASAN_OPTIONS": TOLD}
    return subprocess.run([program, argument], capture_output=True, text=True, timeout=400, env=environment)


FAULTS = """
#include <climits>
#include <cstdlib>

int main(int, char** arguments) {
    const int kind = std::atoi(arguments[1]);
    int* numbers = new int[4 + kind / 3]();
    int sum = kind == 1 ? INT_MAX : 0;
    sum += numbers[kind == 2 ? 4 : 3] + 1;
    delete[] numbers;
    return sum > 1;
}
"""


@pytest.mark.parametrize("optimisation", ["-O0", "-O1"])
def test_traps_and_calls_are_told_with_their_line(
    optimisation: str, native_library: ModuleType, tmp_path: Path
) -> None:
    source = tmp_path / "faults.cpp"
    source.write_text(FAULTS)
    if "clang" in compiler():
        pytest.skip("clang compiles without traps and calls")
    build([source], tmp_path / "faults", optimisation, *SHORT)
    assert run(tmp_path / "faults", "0").returncode == 0
    for kind, message in (("1", "ILL on unknown address"), ("2", "heap-buffer-overflow")):
        done = run(tmp_path / "faults", kind)
        assert done.returncode != 0
        assert message in done.stderr
        assert "faults.cpp:9" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("operator", KERNELS)
@pytest.mark.parametrize("level", FLAGS)
def test_the_kernels_touch_only_what_is_theirs(
    level: str, operator: str, native_library: ModuleType, tmp_path: Path
) -> None:
    if level not in native_library.runnable_levels:
        pytest.skip(f"this processor does not have level {level}")
    pattern, options = KERNELS[operator]
    sources = [ROOT / f"tests/sanitizers/{operator}.cpp", *(ROOT / "csrc/cpu").glob(pattern)]
    program = tmp_path / "sanitized"
    build(sources, program, *options, *FLAGS[level], f"-DPROSMA_LEVEL={level}")
    done = run(program, str(CASES))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{4 * CASES} cases\n"

"""The CUDA kernels, compiled by nvcc for GPUs that this machine does not have: spills, and what they need of a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))
TARGETS = ("80", "86", "89", "90a", "100", "120")
REGISTERS = 65536  # of a multiprocessor
# Of a multiprocessor: warps, blocks, and bytes of shared memory, of which each block costs 1 KiB more than it asks for.
LIMITS = {
    "80": (64, 32, 164 << 10),
    "86": (48, 16, 100 << 10),
    "89": (48, 24, 100 << 10),
    "90a": (64, 32, 228 << 10),
    "100": (64, 32, 228 << 10),
    "120": (48, 24, 100 << 10),
}
# What must be in the machine code for sm_90a of the kernels with this in their names: 16 bytes an access.
WIDE = {
    "soft_threshold": {
        r"planes_kernel.*float, 4": ("LDG.E.128", "STG.E.128"),
        r"pixels_kernel.*__half, 8": ("LDG.E.128",),
    },
    "proximal_gate": {
        r"gate_forward_stencil<float, 2, false>": ("LDG.E.128", "STG.E.128", "LDS.128", "STS.128"),
        r"gate_forward_stencil<Bits16, 3, false>": ("LDG.E.128", "STG.E.128", "LDS.128"),
        r"gate_forward_stencil<float, 3, true>": ("LDG.E.128", "STS.128"),
    },
    "proximal_gate_backward": {
        r"gate_backward_stencil<float, 2, false>": ("LDG.E.128", "STG.E.128", "LDS.128"),
        r"gate_gradients_stencil<Bits16, 3, false>": ("LDG.E.128", "STG.E.128", "LDS.128"),
    },
    "codebook": {
        r"nearest_kernel<true, float>": ("LDG.E.128", "LDS.128", "HMMA"),
        r"nearest_kernel<true, double>": ("LDG.E.128", "LDS.128", "DMMA"),
    },
    "transport_forward": {
        r"half_step_kernel<float>": ("LDG.E.128", "LDS.128", "STS.128"),
        r"write_kernel<float, false>": ("LDG.E.128", "STG.E.128", "LDS.128"),
        r"move_kernel<float, false>": ("LDG.E.128", "STG.E.128", "LDS.128", "STS.128"),
        r"chip_kernel<float, 16>": ("LDG.E.128", "STG.E.128", "LDS.128", "STS.128"),
    },
    "transport_backward": {
        r"(rows|columns)_back_kernel<(float|double)>": ("LDG.E.128", "LDS.128", "STS.128"),
        r"sums_kernel<float, (true|false)>": ("LDG.E.128", "LDS.128"),
        r"write_kernel<float, true>": ("LDG.E.128", "STG.E.128", "LDS.128"),
        r"move_kernel<(float|double), true>": ("LDG.E.128", "STG.E.128", "LDS.128", "STS.128"),
        r"chip_back_kernel<float, 16>": ("LDG.E.128", "STG.E.128", "LDS.128", "STS.128"),
    },
    "logit_mixing": {
        r"statistics_kernel<float>": ("LDS.128", "STS.128"),
        r"gradient_kernel<float>": ("LDS.128", "STS.128"),
    },
}


class Resources(NamedTuple):
    kernel: str
    target: str
    registers: int
    shared: int  # bytes that are fixed; what a launch asks for comes on top
    spills: int  # bytes a thread
    threads: int  # at most, by its launch bounds; 0 where it has none

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's warps that the registers and the fixed shared memory leave room for."""
        warps, blocks, shared = LIMITS[self.target]
        of_block = -(-(self.threads or 256) // 32)
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * 32) // of_block
        by_shared = shared // (self.shared + 1024)
        return min(warps // of_block, blocks, by_registers, by_shared) * of_block / warps


def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("nvcc is not there")
    return found


def cuobjdump() -> Path:
    triton = pytest.importorskip("triton", reason="Triton, whose package has cuobjdump, is not installed")
    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def demangled(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    found = subprocess.run([tool], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    return [short(name) for name in found.splitlines()]


def short(name: str) -> str:
    """A kernel's name with its template arguments alone."""
    name = re.sub(r"prosma::(cuda::)?|\(anonymous namespace\)::|^void ", "", name)
    name = re.sub(r"\((?:bool|int)\)(\d)", r"\1", name).split("(")[0]
    for flag in ("false", "true"):
        name = name.replace(f"(bool){int(flag == 'true')}", flag)
    return name


def compiled(source: str, targets: tuple[str, ...], folder: Path, *options: str) -> tuple[Path, str]:
    """The machine code for these GPUs, and what the assembler says of it."""
    binary = folder / f"{source}.fatbin"
    command = [nvcc(), "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-fatbin", *options]
    command += [f"-gencode=arch=compute_{target},code=sm_{target}" for target in targets]
    command += [str(ROOT / f"csrc/cuda/{source}.cu"), "-o", str(binary)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return binary, done.stdout + done.stderr


def parsed(report: str, bounds: dict[str, int]) -> list[Resources]:
    entry = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    rows = entry.findall(report)
    names = demangled([row[0] for row in rows])
    found = []
    for name, (mangled, target, _, stores, loads, registers, rest) in zip(names, rows, strict=True):
        shared = re.search(r"(\d+) bytes smem", rest)
        fixed = int(shared[1]) if shared else 0
        found.append(Resources(name, target, int(registers), fixed, int(stores) + int(loads), bounds.get(mangled, 0)))
    return found


def launch_bounds(binary: Path) -> dict[str, int]:
    """The most threads of each kernel, which stand among the binary's attributes."""
    text = subprocess.run([cuobjdump(), "-elf", binary], check=True, capture_output=True, text=True).stdout
    found = {}
    for section in re.split(r"\n(?=\.nv\.info\.)", text):
        kernel, most = (
            re.match(r"\.nv\.info\.(\w+)", section),
            re.search(r"EIATTR_MAX_THREADS\s+Format:[^\n]*\n\s*Value:\s*0x(\w+)", section),
        )
        if kernel and most:
            found[kernel[1]] = int(most[1], 16)
    return found


def functions(binary: Path, target: str) -> dict[str, str]:
    """The machine code of each kernel for one GPU."""
    command = [cuobjdump(), "-sass", "-arch", f"sm_{target}", binary]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = re.split(r"Function : (\w+)", text)[1:]
    return dict(zip(demangled(parts[::2]), parts[1::2], strict=True))


def check(source: str, targets: tuple[str, ...], folder: Path, *options: str) -> Path:
    binary, report = compiled(source, targets, folder, *options)
    found = parsed(report, launch_bounds(binary))
    assert {row.target for row in found} == set(targets)
    print(f"\n{'kernel':78} {'GPU':>4} {'registers':>9} {'shared':>7} {'spills':>6} {'occupancy':>9}")
    for row in sorted(found):
        print(f"{row.kernel:78} {row.target:>4} {row.registers:9} {row.shared:7} {row.spills:6} {row.occupancy:9.0%}")
    spilling = [row for row in found if row.spills]
    assert not spilling, "\n".join(map(str, spilling))
    return binary


def test_compiles_for_hopper(tmp_path: Path) -> None:
    check("soft_threshold", ("90a",), tmp_path, "-DPROSMA_FEW_TYPES")


@pytest.mark.slow
@pytest.mark.parametrize("source", KERNELS)
def test_compiles_everywhere_without_spills(source: str, tmp_path: Path) -> None:
    binary = check(source, TARGETS, tmp_path)
    code = functions(binary, "90a")
    for pattern, instructions in WIDE.get(source, {}).items():
        matching = {name: text for name, text in code.items() if re.search(pattern, name)}
        assert matching, f"no kernel is like {pattern}: {list(code)}"
        for name, text in matching.items():
            missing = [instruction for instruction in instructions if instruction not in text]
            assert not missing, f"{name} has no {missing}"

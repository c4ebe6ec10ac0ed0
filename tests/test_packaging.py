"""What is installed, from what, and what happens where something is missing; and that the documents tell the truth.

The slow tests build as a user does, in pip's isolated environment, which they fill from the package index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import prosma_ops
from prosma_ops import backends, nn

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("CMakeLists.txt", "LICENSE", "README.md", "csrc", "prosma_ops", "pyproject.toml", "triton_kernels")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
# Runs from an unpacked wheel, whatever else of that name is installed beside it.
ALONE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_editable_skbc_prosma_ops"]
sys.path.insert(0, sys.argv[1])
"""
USER = """
import prosma_ops
import torch
from prosma_ops import proximal_gate, soft_threshold
from prosma_ops.nn import ProximalGate

x = torch.zeros(1, 2, 4, 4)
with prosma_ops.use_backend("reference"):
    first: torch.Tensor = prosma_ops.proximal_gate(x, x.new_zeros(1, 2, 3, 3), x.new_zeros(2), dilations=(1,))
    second: torch.Tensor = proximal_gate(x, x.new_zeros(1, 2, 3, 3), x.new_zeros(2), dilations=(1,))
    third: torch.Tensor = soft_threshold(x, x.new_zeros(2))
chosen: str | None = prosma_ops.explain("proximal_gate", x).chosen
share: float = ProximalGate(2, 2).sparsity()
"""


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_readme_run(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(EXAMPLES[number], f"README.md, example {number}", "exec"), {})
    assert capsys.readouterr().out


def test_readme_has_an_example_for_everything_public() -> None:
    functions = [operator for operator in backends.OPERATORS if hasattr(prosma_ops, operator)]
    for name in (*functions, *nn.__all__):
        assert any(re.search(rf"import .*\b{name}\b", example) for example in EXAMPLES), name


def test_version_is_the_same_everywhere() -> None:
    version = prosma_ops.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("workflow", sorted(path.name for path in (ROOT / ".github/workflows").glob("*.yml")))
def test_workflows_run_nothing_but_make(workflow: str) -> None:
    """So that whatever fails there can be repeated here by the same two words."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"\brun: *(.*)", (ROOT / ".github/workflows" / workflow).read_text())
    assert commands
    for command in commands:
        make, target = command.split()
        assert make == "make"
        assert target in targets


class Built(NamedTuple):
    wheel: Path
    objects: Path
    log: str

    def names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def run(self, folder: Path, code: str) -> str:
        """What `code` prints, run with the unpacked wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            archive.extractall(folder)
        command = [sys.executable, "-c", ALONE + code, str(folder)]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def pip_wheel(
    source: Path, folder: Path, *settings: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], Path]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PROSMA_", "SKBUILD_"))}
    objects = folder / "objects"
    options = [f"--config-settings={setting}" for setting in (f"build-dir={objects}", *settings)]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        *options,
        str(source),
    ]
    return run(command, folder, {**inherited, **environment}), objects


def run(command: list[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    together = subprocess.STDOUT
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=together, text=True, errors="replace"
    )


def build(source: Path, folder: Path, *settings: str, **environment: str) -> Built:
    done, objects = pip_wheel(source, folder, *settings, **environment)
    assert done.returncode == 0, done.stdout
    (wheel,) = folder.glob("*.whl")
    return Built(wheel, objects, done.stdout)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    done = run([sys.executable, "-m", "build", "--sdist", "--outdir", str(folder), str(ROOT)], folder, os.environ)
    assert done.returncode == 0, done.stdout
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder)
    # By its first name pip would take it for a release, and keep the wheel for the next time.
    return (folder / f"prosma_ops-{prosma_ops.__version__}").rename(folder / "source")


@pytest.fixture(scope="module")
def built(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel with the native library, built from the sdist."""
    return build(sdist, tmp_path_factory.mktemp("wheel"), PROSMA_REQUIRE_NATIVE="1")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The sources with a mistake in every C++ file."""
    copy = tmp_path / "broken"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    for path in (copy / "csrc").rglob("*.cpp"):
        path.write_text("this is not C++\n")
    return copy


@pytest.mark.slow
def test_sdist_holds_the_sources_and_no_more(sdist: Path) -> None:
    held = {path.relative_to(sdist).parts[0] for path in sdist.rglob("*") if path.is_file()}
    assert {"CMakeLists.txt", "LICENSE", "README.md", "csrc", "prosma_ops", "pyproject.toml", "tests"} <= held
    assert not held & {"build", "dist", ".venv", ".github"}
    assert not list(sdist.rglob("*.so"))
    assert not [path for path in sdist.rglob("*") if path.is_symlink()]


@pytest.mark.slow
def test_wheel_installs_the_package_and_nothing_beside_it(built: Built) -> None:
    dist_info = f"prosma_ops-{prosma_ops.__version__}.dist-info"
    names = built.names()
    assert {name.split("/")[0] for name in names} == {"prosma_ops", dist_info}
    assert {"prosma_ops/py.typed", f"{dist_info}/licenses/LICENSE"} <= names
    assert len([name for name in names if name.startswith("prosma_ops/_native.")]) == 1
    modules = {f"prosma_ops/{path.relative_to(ROOT / 'prosma_ops')}" for path in (ROOT / "prosma_ops").rglob("*.py")}
    kernels = {f"prosma_ops/{path.relative_to(ROOT)}" for path in (ROOT / "triton_kernels").rglob("*.py")}
    assert kernels
    assert {name for name in names if name.endswith(".py")} == modules | kernels
    with zipfile.ZipFile(built.wheel) as archive:
        assert "prosma-ops = prosma_ops.cli:main" in archive.read(f"{dist_info}/entry_points.txt").decode()


@pytest.mark.slow
def test_building_asks_for_no_torch(built: Built) -> None:
    installed = {name for line in re.findall(r"Successfully installed (.*)", built.log) for name in line.split()}
    assert [name for name in installed if name.startswith("pybind11-")]
    assert not [name for name in installed if name.startswith(("torch-", "numpy-", "triton-"))]


@pytest.mark.slow
def test_native_library_of_the_wheel_loads(built: Built, tmp_path: Path) -> None:
    printed = built.run(tmp_path, "from prosma_ops import native; print(native.load().module.__file__)")
    assert printed.startswith(str(tmp_path))


@pytest.mark.slow
def test_what_is_public_has_types(built: Built, tmp_path: Path) -> None:
    """As mypy sees the installed package; the function and the module of its name are easily confused."""
    built.run(tmp_path / "unpacked", "")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"]
    done = run(command, tmp_path, {**os.environ, "MYPYPATH": str(tmp_path / "unpacked")})
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("level", ["v3", "v4"])
def test_code_of_a_level_stays_in_its_namespace(built: Built, level: str) -> None:
    """A standard inline function compiled for AVX-512 could be the copy that the linker keeps for every processor."""
    files = [str(path) for path in built.objects.rglob("*.o") if f"prosma_{level}.dir" in path.parts]
    if not files:
        pytest.skip(f"this processor or compiler has no level {level}")
    listing = subprocess.run(["nm", "-C", "--defined-only", *files], capture_output=True, text=True, check=True).stdout
    symbols = re.findall(r"^[0-9a-f]+ ([A-Zuvw]) (.*)$", listing, re.MULTILINE)
    assert [name for _, name in symbols if f"prosma::{level}::" in name]
    pointers_to_data = ("DW.ref.__gxx_personality_v0",)
    assert [name for _, name in symbols if f"prosma::{level}::" not in name and name not in pointers_to_data] == []


@pytest.mark.slow
def test_without_a_compiler_it_is_pure_python(built: Built, tmp_path: Path) -> None:
    pure = build(ROOT, tmp_path, **NO_COMPILER)
    assert pure.wheel.name.endswith("-py3-none-any.whl")
    assert pure.names() == {name for name in built.names() if not name.startswith("prosma_ops/_native.")}
    code = """
import torch, warnings
import prosma_ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        result = prosma_ops.soft_threshold(torch.tensor([[2.0, -2.0]]), torch.tensor([0.5, 3.0]))
print(result.tolist(), len(caught), caught[0].category.__name__, "doctor" in str(caught[0].message))
"""
    assert pure.run(tmp_path / "unpacked", code) == "[[1.5, 0.0]] 1 RuntimeWarning True\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"PROSMA_REQUIRE_NATIVE": "1"}, {"PROSMA_CUDA": "1"}], ids=lambda e: next(iter(e))
)
def test_broken_kernels_fail_where_they_are_asked_for(
    broken: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    done, _ = pip_wheel(broken, tmp_path, CUDACXX="/nonexistent/nvcc", **environment)
    assert done.returncode != 0
    assert "The native library of prosma_ops did not build" in done.stdout
    assert ("nvcc was not found" if "PROSMA_CUDA" in environment else "this is not C++") in done.stdout
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.slow
def test_broken_kernels_elsewhere_leave_pure_python(broken: Path, tmp_path: Path) -> None:
    done = build(broken, tmp_path)
    assert done.wheel.name.endswith("-py3-none-any.whl")
    assert "installed without its native library" in done.log


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")
def test_cuda_sources_compile(tmp_path: Path) -> None:
    """Only them, and for one architecture: the rest of the library is compiled by the other tests."""
    only = ("build.targets=prosma_cuda", "install.components=none")
    done = build(ROOT, tmp_path, *only, PROSMA_CUDA="1", CUDAARCHS="90")
    compiled = {path.name for path in done.objects.rglob("*.cu.o")}
    assert compiled == {f"{path.name}.o" for path in (ROOT / "csrc/cuda").glob("*.cu")}

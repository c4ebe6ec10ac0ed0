"""Importing is light, and works without Triton, without the native library, and without either."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
from collections.abc import Callable

import pytest

import prosma_ops

Run = Callable[..., subprocess.CompletedProcess[str]]

USE = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import warnings
import torch
import prosma_ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        field = torch.randn(2, 3, 5, 6, requires_grad=True)
        y = prosma_ops.proximal_gate(field, torch.randn(2, 3, 3, 3), torch.rand(3), dilations=(1, 2))
        y.sum().backward()
        prosma_ops.soft_threshold(field, torch.rand(3)).sum().backward()
print(len(caught), *(str(warning.message) for warning in caught))
print(prosma_ops.explain("proximal_gate", field).chosen)
print(prosma_ops.explain("proximal_gate", field)["triton"].reason)
"""


@pytest.mark.parametrize(
    "blocked",
    [("prosma_ops._native",), ("triton",), ("prosma_ops._native", "triton")],
    ids=["without native", "without Triton", "without either"],
)
def test_everything_runs_without(python: Run, blocked: tuple[str, ...]) -> None:
    done = python(USE.format(blocked=blocked))
    assert done.returncode == 0, done.stderr
    warned, chosen, _ = done.stdout.strip().splitlines()
    if "prosma_ops._native" in blocked:
        assert chosen == "reference"
        assert warned.startswith("1 ")
        assert "prosma-ops doctor" in warned


def test_triton_asked_for_and_not_there(python: Run) -> None:
    done = python(USE.format(blocked=("triton",)), PROSMA_OPS_BACKEND="triton", TRITON_INTERPRET="1")
    assert done.returncode == 1
    assert "'triton' was asked for and cannot run: Triton does not import" in done.stderr


def test_a_native_library_that_does_not_load_is_told(python: Run) -> None:
    """As after a broken build: the import raises, and the reason is kept."""
    done = python("""
        import importlib, sys
        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "prosma_ops._native":
                    raise ImportError("libgomp.so.1: cannot open shared object file")
        sys.meta_path.insert(0, Broken())
        from prosma_ops import native
        print(native.load().reason)
    """)
    assert "libgomp.so.1: cannot open shared object file" in done.stdout, done.stderr


LIGHT = "import sys; {code}; print([m for m in ('torch', 'triton', 'numpy', 'prosma_ops._native') if m in sys.modules])"


@pytest.mark.parametrize(
    "code",
    ["import prosma_ops; dir(prosma_ops); prosma_ops.__version__", "import prosma_ops.cli", "import prosma_ops.doctor"],
)
def test_importing_does_not_import_torch(python: Run, code: str) -> None:
    done = python(LIGHT.format(code=code))
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["check", "--help"],
        ["doctor", "--help"],
        ["inspect", "--help"],
        ["train", "--help"],
        [],
    ],
)
def test_help_does_not_import_torch(python: Run, arguments: list[str]) -> None:
    code = f"""
        import sys
        from prosma_ops.cli import main
        try:
            status = main({arguments!r})
        except SystemExit as end:
            status = end.code
        assert "torch" not in sys.modules
        sys.exit(status)
    """
    done = python(code)
    assert done.returncode == (0 if arguments else 2), done.stderr
    assert done.stdout.startswith("prosma-ops 0" if arguments == ["--version"] else "usage: prosma-ops")


def test_importing_the_operators_does_not_import_triton(python: Run) -> None:
    done = python("import sys, prosma_ops; prosma_ops.proximal_gate, prosma_ops.nn; print('triton' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_python_m_is_the_command(python: Run) -> None:
    done = python(["-m", "prosma_ops", "--version"])
    assert done.stdout.strip() == f"prosma-ops {prosma_ops.__version__}", done.stderr


@pytest.mark.parametrize("name", ["prosma_ops", "prosma_ops.data", "prosma_ops.inference", "prosma_ops.training"])
def test_every_public_name_is_there(name: str) -> None:
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", ["prosma_ops.data", "prosma_ops.inference", "prosma_ops.training"])
def test_no_public_name_is_that_of_a_module(name: str) -> None:
    """Whoever imports a module sets it as an attribute of its package, and the name would stand for the module then."""
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules.intersection(package.__all__)

"""Fixtures that all tests share: the implementations that this machine has, and Python in a child process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import prosma_ops
from prosma_ops import native, ops
from prosma_ops.testing import parity
from prosma_ops.testing.case import DTYPES, Case, Problem, dtype_name, suite
from prosma_ops.testing.parity import Expectation, Implementation
from prosma_ops.testing.torchvision import declare_operators

declare_operators()  # before a test imports timm
assert ops  # imported so that every operator is registered, whatever a test imports itself

INDUCTOR_WARNS = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of itself, when it is imported
ONNX_WARNS = pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # torch's exporter, of itself

IMPLEMENTATIONS = {
    "reference": Implementation("reference"),
    **{f"cpu-{level}": Implementation("cpu", level) for level in ("portable", "v3", "v4")},
}

# Files that take a minute and more on two cores, the longest first, of the slow tests and of the others: a process that
# came to one of them last would run on alone. pytest-xdist's own order, by the number of tests, has these at the end.
LONG = (
    "test_sanitizers",
    "test_cuda_compile",
    "test_cuda_emulation",
    "test_triton_interpreter",
    "test_proximal_gate",
    "test_transport_operators",
    "test_training_distributed",
    "test_training_resume",
    "test_triton_transport",
    "test_packaging",
    "test_logit_mixing_framework",
    "test_opcheck",
    "test_nn",
    "test_triton_logit_mixing",
    "test_check",
    "test_triton_compile_transport",
    "test_losses_distributed",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def told(value: object) -> str:
    """A name for pytest of a value that may hold functions: their addresses differ between two processes."""
    return re.sub(r" (of type object )?at 0x[0-9a-f]+", "", str(value))


def need_native() -> None:
    """Without the native library: fail where it must be there, else skip with the reason."""
    module, reason = native.load()
    if module is None and os.environ.get("PROSMA_REQUIRE_NATIVE") == "1":
        pytest.fail(f"PROSMA_REQUIRE_NATIVE=1, but {reason}")
    if module is None:
        pytest.skip(reason)


def need_level(level: str) -> None:
    need_native()
    if level not in native.required().runnable_levels:
        pytest.skip(f"this processor or this build has no level {level}")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Before what the tests of a file share is made: a training with two threads ends in other bits."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """One thread: shapes here are tiny, and waiting for a second one takes longer. test_threads.py sets its own."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(params=("reference", "cpu"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that runs on the CPU, chosen while the test runs; `cpu` at the level of this processor."""
    if request.param == "cpu":
        need_native()
    with prosma_ops.use_backend(request.param):
        yield request.param


# For what takes seconds and hardly depends on the backend: opcheck of a backward operator traces the second derivative,
# which goes through the reference whichever is chosen, and aot_eager compiles the same graph.
REFERENCE_IS_SLOW = pytest.mark.parametrize(
    "backend", ["cpu", pytest.param("reference", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each backend that runs on the CPU, the native one at each level, chosen while the test runs."""
    found = IMPLEMENTATIONS[request.param]
    if found.level is not None:
        need_level(found.level)
    with found.chosen():
        yield found


@pytest.fixture(params=("portable", "v3", "v4"))
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level of the native library, chosen while the test runs."""
    need_level(request.param)
    with Implementation("cpu", request.param).chosen():
        yield request.param


@pytest.fixture(params=DTYPES, ids=dtype_name)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def native_library() -> object:
    need_native()
    return native.required()


@cache
def prepared(operator: str, size: str, dtype: torch.dtype) -> list[tuple[Case, Problem, Expectation]]:
    """The cases of an operator with what is expected of them: computed once for all implementations."""
    cpu = torch.device("cpu")
    chosen = [(case, case.build(cpu)) for case in suite(operator).cases(size) if case.dtype is dtype]
    return [(case, problem, parity.expectation(problem)) for case, problem in chosen]


@pytest.fixture
def cases() -> Callable[[str, str, torch.dtype], list[tuple[Case, Problem, Expectation]]]:
    return prepared


def child_environment(**changes: str) -> dict[str, str]:
    """This package in a child process, whatever its folder, with no setting of ours inherited."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PROSMA_", "TRITON_INTERPRET"))}
    parent = str(Path(prosma_ops.__file__).resolve().parents[1])
    path = os.pathsep.join([parent, *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path} | changes


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python(code, VARIABLE="value")` runs code in a child process; `python(["-m", ...])` runs arguments."""

    def run(code: str | list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        arguments = ["-c", textwrap.dedent(code)] if isinstance(code, str) else code
        return subprocess.run(
            [sys.executable, *arguments],
            env=child_environment(**environment),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run

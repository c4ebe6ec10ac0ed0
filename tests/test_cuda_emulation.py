"""The CUDA kernels without a GPU: as ordinary C++ under sanitizers, against the float64 reference."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import cuda_emulation

OPERATORS = {
    "proximal_gate": ("proximal_gate", "soft_threshold"),
    "codebook": ("nearest_code", "code_statistics"),
    "logit_mixing": ("mixed_logit_statistics",),
    "transport": ("sinkhorn", "transport_plan", "transport_align", "apply_plan"),
}
# What a room is run on besides: the size of the cases, a part of their names, and the GPU whose limits hold. Transport
# goes another way where a row has more columns than a warp keeps, and has no clusters before 9.0.
BESIDES = {"transport": (("full", "very wide", "9.0"), ("tiny", "tolerance", "8.0"), ("full", "no multiple", "9.0"))}
# Forwards, backwards, and two shuffles.
ORDERS = (0, -1, 1, 2)
BACKWARDS_AND_SHUFFLED = (-1, 1)  # for what takes a minute in all four, which the slow tests run


Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A room's module, which all tests of this file share."""

    @functools.cache
    def built(room: str, sanitized: bool, few_types: bool = True) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"emulated_{room}"
        return cuda_emulation.build(room, folder, few_types=few_types, sanitized=sanitized)

    return built


@pytest.mark.parametrize("room", OPERATORS)
def test_tiny_cases(room: str, build: Build) -> None:
    """Without the sanitizers, which compile for a minute; of the types those that cover the others' code."""
    module = build(room, sanitized=False)
    dtypes = ("float32", "bfloat16")
    records = cuda_emulation.run(module, OPERATORS[room], orders=ORDERS, dtypes=dtypes, sanitized=False)
    assert {record["operator"] for record in records} == set(OPERATORS[room])
    assert not cuda_emulation.failures(records)
    for size, cases, chip in BESIDES.get(room, ()):
        chosen = {"size": size, "cases": cases, "chip": chip, "orders": BACKWARDS_AND_SHUFFLED, "dtypes": dtypes[:1]}
        records = cuda_emulation.run(module, OPERATORS[room], sanitized=False, **chosen)
        assert records
        assert not cuda_emulation.failures(records)


@pytest.mark.slow
@pytest.mark.parametrize("room", OPERATORS)
def test_tiny_cases_under_sanitizers(room: str, build: Build) -> None:
    module = build(room, sanitized=True)
    for orders in ((0,), (-1,), (1, 2)):
        records = cuda_emulation.run(
            module, OPERATORS[room], orders=orders, dtypes=("float32", "bfloat16"), timeout=1500
        )
        assert {record["operator"] for record in records} == set(OPERATORS[room])
        assert not cuda_emulation.failures(records)


@pytest.mark.slow
@pytest.mark.parametrize("room", ["codebook", "transport"])
def test_tiny_cases_in_float64(room: str, build: Build) -> None:
    """Where it is tiled otherwise than float32."""
    module = build(room, sanitized=False, few_types=False)
    records = cuda_emulation.run(
        module, OPERATORS[room], orders=BACKWARDS_AND_SHUFFLED, dtypes=("float64",), sanitized=False
    )
    assert {record["operator"] for record in records} == set(OPERATORS[room])
    assert not cuda_emulation.failures(records)


@pytest.mark.slow
@pytest.mark.parametrize("room", OPERATORS)
def test_full_cases(room: str, build: Build) -> None:
    """Of float32: the sanitizers would take five times as long."""
    module = build(room, sanitized=False)
    records = cuda_emulation.run(
        module, OPERATORS[room], size="full", orders=ORDERS, dtypes=("float32",), sanitized=False, timeout=1500
    )
    assert {record["operator"] for record in records} == set(OPERATORS[room])
    assert not cuda_emulation.failures(records)


# What each kernel of tests/emulation/faults.cu must be told of, in one of the orders at least.
FAULTS = {
    "no_barrier": "a result is",
    "no_warp_barrier": "a result is",
    "beyond_shared": "heap-buffer-overflow",
    "beyond_global": "heap-buffer-overflow",
    "unwritten": "a result is",
    "one_lane_elsewhere": "the threads wait for one another",
    "two_barriers": "threads wait at different barriers",
    "lane_has_ended": "a lane of the mask has ended",
    "copy_not_awaited": "a result is",
    "misaligned": "misaligned address",
    "cluster_without_barrier": "a result is",
}


def test_faults_are_found_and_nothing_else(tmp_path: Path) -> None:
    program = tmp_path / "faults"
    command = [cuda_emulation.compiler(), "-std=c++20", *cuda_emulation.SANITIZERS, f"-I{cuda_emulation.EMULATION}"]
    command += [f"-I{cuda_emulation.ROOT / 'csrc'}", "-x", "c++", str(cuda_emulation.EMULATION / "faults.cu")]
    subprocess.run([*command, "-o", str(program)], check=True)

    def told(name: str) -> list[str]:
        runs = [subprocess.run([program, name, str(order)], capture_output=True, text=True) for order in ORDERS]
        return [done.stderr for done in runs if done.returncode != 0]

    for name in ("right", "cluster_sum"):
        assert not told(name)
    for name, message in FAULTS.items():
        assert any(message in text for text in told(name)), (name, told(name))

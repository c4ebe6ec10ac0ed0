"""Triton's kernels under its interpreter, in one child process: parity and the self-test on tiny cases."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prosma_ops.testing import parity
from prosma_ops.testing.case import DTYPES, dtype_name, suite
from prosma_ops.testing.check import INTERPRETED_SELF_TEST

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def report(python: Run, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "report.json"
    command = ["-m", "prosma_ops", "check", "--device", "cpu", "--backend", "triton", "--json", str(path), *arguments]
    done = python(command, TRITON_INTERPRET="1")
    assert path.exists(), done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_parity(python: Run, tmp_path: Path) -> None:
    found = report(python, tmp_path)
    assert found["passed"]
    for operator in parity.operators():
        records = [record for record in found["records"] if record["operator"] == operator]
        assert {record["implementation"] for record in records} == {"triton"}
        assert {record["dtype"] for record in records} == {dtype_name(dtype) for dtype in DTYPES}
        assert {record["tensor"] for record in records} == {n for ns in suite(operator).results.values() for n in ns}
        assert all(record["ok"] for record in records)


@pytest.mark.slow
def test_self_test(python: Run, tmp_path: Path) -> None:
    found = report(python, tmp_path, "--self-test")
    tensors = sum(len(names) for operator in parity.operators() for names in suite(operator).results.values())
    assert len(found["planted"]) == tensors * 3 * len(INTERPRETED_SELF_TEST)
    assert all(plant["reported"] for plant in found["planted"])


@pytest.mark.slow
def test_check_without_a_gpu_covers_triton(python: Run, tmp_path: Path) -> None:
    """As a user calls it: no variable set, one operator."""
    path = tmp_path / "report.json"
    arguments = ["check", "--device", "cpu", "--operator", "soft_threshold", "--size", "tiny", "--json", str(path)]
    done = python(["-m", "prosma_ops", *arguments])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "triton" in {record["implementation"] for record in json.loads(path.read_text())["records"]}

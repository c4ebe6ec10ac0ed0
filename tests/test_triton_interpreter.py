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
        assert {record["tensor"] for record in records} >= {n for ns in suite(operator).results.values() for n in ns}
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


FORCED_TILES = """
    import sys
    from dataclasses import replace

    import torch

    from prosma_ops.testing import parity
    from prosma_ops.testing.case import Case
    from prosma_ops.testing.proximal_gate import example
    from prosma_ops.triton_kernels import proximal_gate as kernels
    from prosma_ops.triton_kernels import stencil

    LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
    tiny, large, layout = %r
    used = []


    def tile_of_a_large_field(tensors, dilations, kernel_size, budget):
        like = torch.empty(large, dtype=tensors[0].dtype, device="meta")
        if layout == "channels_last":
            like = like.contiguous(memory_format=LAST[like.dim()])
        tile = stencil.gate_tile((like,), dilations, kernel_size, budget)
        used.append((tile.channels, tile.depths, tile.rows, tile.columns))
        return replace(tile, even=False, wide=wide)


    kernels.gate_tile = tile_of_a_large_field
    torch.set_num_threads(1)
    records = []
    for wide in (False, True):
        dilations = (1, 3) if len(tiny) == 4 else (2,)
        # Numbers on a grid: every sum is exact in any order, so a wrong tile cannot pass for rounding.
        problem = example(tiny, torch.float32, layout, dilations=dilations, activation="relu", drawn="exact")
        case = Case("proximal_gate", f"wide={wide}", layout, torch.float32, lambda device: problem)
        records += parity.judge(case, problem, parity.expectation(problem), parity.Implementation("triton"))
    print(sorted(set(used)))
    print(sum(record.error == 0 for record in records), "exact")
    sys.exit("\\n".join(f"{r.case} {r.tensor}: {r.reason}" for r in records if not r.ok) or 0)
"""
# A tiny field of several tiles, the field whose tiles it is given, and those: channels, depths, rows, columns.
FORCED = {
    "2-D": ((1, 1, 9, 35), (4, 64, 128, 128), [(1, 1, 8, 32), (1, 1, 32, 32)]),
    "2-D channels_last": ((1, 33, 3, 5), (4, 64, 128, 128), [(32, 1, 1, 8), (32, 1, 4, 8)]),
    "3-D": ((1, 1, 2, 9, 33), (1, 32, 64, 64, 64), [(1, 1, 8, 32), (1, 4, 8, 32)]),
    "3-D channels_last": ((1, 33, 2, 2, 3), (1, 32, 64, 64, 64), [(32, 1, 1, 8), (32, 1, 4, 8)]),
}


@pytest.mark.parametrize("name", FORCED)
def test_the_tiles_of_a_large_field(python: Run, name: str) -> None:
    """Tiny fields have small tiles; here they are cut as a GPU's fields are, with 32-bit and with 64-bit offsets."""
    tiny, large, tiles = FORCED[name]
    layout = "channels_last" if name.endswith("channels_last") else "contiguous"
    done = python(FORCED_TILES % ((tiny, large, layout),), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [str(tiles), "14 exact"]


def test_nan_and_infinity(python: Run) -> None:
    """They reach what they reach in the reference, and NumPy, which the interpreter computes with, does not warn."""
    code = """
        import itertools
        import warnings

        import torch

        import prosma_ops
        from prosma_ops.testing.proximal_gate import example
        from prosma_ops.triton_kernels import proximal_gate

        warnings.simplefilter("error")
        torch.set_num_threads(1)


        def results(backend, name, value):
            problem = example((1, 2, 7, 7), dilations=(1, 2), activation="tanh")
            place = (0, 1, 3, 3)  # every tap sees it
            tensors = dict(problem.inputs, grad=problem.grads[0])
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
            tensors[name][place[: tensors[name].dim()] if name != "threshold" else (1,)] = value
            grad = tensors.pop("grad")
            leaves = {key: tensor.requires_grad_() for key, tensor in tensors.items()}
            with prosma_ops.use_backend(backend):
                y = problem.function(**leaves, **problem.settings)
                y.backward(grad)
            return [("result", y.detach()), *((key, leaf.grad) for key, leaf in leaves.items())]


        inputs = ("field", "skip", "grad", "threshold")
        for name, value in itertools.product(inputs, (float("nan"), float("inf"), float("-inf"))):
            pairs = zip(results("triton", name, value), results("reference", name, value), strict=True)
            for (key, found), (_, expected) in pairs:
                same = torch.equal(found.isnan(), expected.isnan())
                same = same and torch.allclose(found.nan_to_num(), expected.nan_to_num(), atol=1e-4)
                assert same, (name, value, key, found, expected)
        print("done")
    """
    done = python(code, TRITON_INTERPRET="1")
    assert done.stdout == "done\n", done.stdout + done.stderr

"""The choice between CUDA C++ and Triton by what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prosma_ops import backends, tuned
from prosma_ops.backends import Implementation, Verdict

SECONDS = {
    "proximal_gate": {
        "float32": [
            {"numbers": 1000, "cuda": 2.0, "triton": 1.0},
            {"numbers": 100000, "cuda": 1.0, "triton": 2.0},
        ],
        "bfloat16": [{"numbers": 1000, "cuda": None, "triton": 1.0}],
    }
}


def test_the_nearest_size_by_its_ratio_decides() -> None:
    chosen = {numbers: tuned.fastest(SECONDS, "proximal_gate", "float32", numbers) for numbers in (1, 9999, 10001)}
    assert chosen == {1: "triton", 9999: "triton", 10001: "cuda"}
    assert tuned.fastest(SECONDS, "proximal_gate", "bfloat16", 5) == "triton"


@pytest.mark.parametrize(
    ("operator", "dtype", "numbers"),
    [("nearest_code", "float32", 5), ("proximal_gate", "float64", 5), ("proximal_gate", "float32", 0)],
)
def test_what_was_not_measured_decides_nothing(operator: str, dtype: str, numbers: int) -> None:
    assert tuned.fastest(SECONDS, operator, dtype, numbers) is None


def test_a_table_is_found_by_the_name_of_the_gpu(tmp_path: Path) -> None:
    assert tuned.read("NVIDIA H200", tmp_path) == {}
    path = tuned.path_of("NVIDIA H200", tmp_path)
    assert path.name == "nvidia-h200.json"
    path.write_text(json.dumps({"device": "NVIDIA H200", "seconds": SECONDS}))
    assert tuned.read("NVIDIA H200", tmp_path) == SECONDS


def test_tables_that_are_installed_are_whole() -> None:
    for path in tuned.FOLDER.glob("*.json"):
        table = json.loads(path.read_text())
        assert tuned.path_of(table["device"]) == path
        for dtypes in table["seconds"].values():
            for entries in dtypes.values():
                assert all(entry["numbers"] > 0 and set(tuned.RIVALS) <= set(entry) for entry in entries)


def on_gpu(numbers: int) -> SimpleNamespace:
    """What the choice asks of a tensor, on a GPU that is not there."""
    device = torch.device("cuda", 0)
    return SimpleNamespace(is_cpu=False, is_cuda=True, device=device, dtype=torch.float32, numel=lambda: numbers)


@pytest.mark.parametrize(
    ("measured", "built", "numbers", "expected"),
    [
        (SECONDS, ("cuda", "triton"), 1000, "triton"),
        (SECONDS, ("cuda", "triton"), 100000, "cuda"),
        (SECONDS, ("triton",), 100000, "triton"),
        (SECONDS, ("cuda",), 1000, "cuda"),
        ({}, ("cuda", "triton"), 1000, "cuda"),
        ({}, ("triton",), 1000, "triton"),
        ({}, (), 1000, "reference"),
    ],
)
def test_auto_takes_the_fastest_that_can_run(
    measured: tuned.Seconds, built: tuple[str, ...], numbers: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "of_device", lambda index: measured)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.delenv(backends.BACKEND_VARIABLE, raising=False)

    def implementation(name: str) -> Implementation:
        runs = name in built or name == "reference"
        return Implementation(lambda tensors: Verdict(runs, ""), {"name": lambda: name})

    operator = backends.Operator("proximal_gate", "proximal_gate", {n: implementation(n) for n in backends.BACKENDS})
    assert operator.run("name", (on_gpu(numbers),), ()) == expected  # type: ignore[arg-type]

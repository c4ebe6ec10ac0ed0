"""The example scripts run, print their tables, and show what they say they show."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from examples import gate_ablation, gate_sparsity
from examples.lesions import CLASSES, SIZE, generated


def test_generated_images_hold_every_class_and_the_same_seed_makes_the_same() -> None:
    images, labels = generated(8, torch.Generator().manual_seed(0))
    assert images.shape == labels.shape == (8, 1, SIZE, SIZE)
    assert labels.unique().tolist() == list(range(CLASSES))
    assert torch.equal(images, generated(8, torch.Generator().manual_seed(0))[0])


def test_sparsity(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gates.png"
    monkeypatch.setattr(sys, "argv", ["gate_sparsity", "--steps", "2", "--picture", str(path)])
    gate_sparsity.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 2 * (len(gate_sparsity.WIDTHS) - 1)
    # A frame of one pixel around each of four rows of three panels and one a skip connection.
    columns = 3 + len(gate_sparsity.WIDTHS) - 1
    expected = (columns * (SIZE + 2) * gate_sparsity.ENLARGED, 4 * (SIZE + 2) * gate_sparsity.ENLARGED)
    with Image.open(path) as found:
        assert found.size == expected


def test_ablation_continues_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    command = ["gate_ablation", "--steps", "2", "--results", str(path), "--only", "tanh", "no channel gate", "no gate"]
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "1"])
    gate_ablation.main()
    first = json.loads(path.read_text())
    monkeypatch.setattr(sys, "argv", [*command[:-2], "--seeds", "2"])
    gate_ablation.main()
    second = json.loads(path.read_text())
    assert {variant: len(runs) for variant, runs in second.items()} == {"tanh": 2, "no channel gate": 1, "no gate": 1}
    assert second["tanh"][0] == first["tanh"][0]
    assert 0 < first["tanh"][0]["zeros"] < 1
    assert first["no gate"][0]["zeros"] is None
    printed = capsys.readouterr().out
    assert printed.count("| no channel gate |") == 2


def test_variants_are_what_they_are_called() -> None:
    assert all(gate_ablation.made(variant, 0).gates for variant in gate_ablation.VARIANTS)
    gate = gate_ablation.made("threshold 0.1", 0).gates[0]
    torch.testing.assert_close(gate.threshold, torch.full_like(gate.threshold, 0.1))
    open_gate = gate_ablation.made("no channel gate", 0).gates[0].channel_gate
    assert open_gate(torch.zeros(2, 5)).tolist() == [[1.0] * 32] * 2

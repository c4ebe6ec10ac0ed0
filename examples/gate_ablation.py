"""What ProSMA-UNet's abstract leaves open, measured: activation, dilations, threshold at the start, channel gate.

    python -m examples.gate_ablation [--steps 300] [--seeds 3] [--only tanh ...] [--results results.json]

Each row is `prosma_unet` with one choice changed, trained on generated images from several seeds. Dice is of images
that no training has seen, with its range over the seeds; zeros are the share of the gate that is exactly zero, over all
skip connections. With --results, rows that the file holds already are not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from examples.lesions import CLASSES, dice, generated, train
from prosma_ops.models import SegmentationModel, create_model

WIDTHS = (8, 16, 32, 64)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "as it comes": ("prosma_unet", {}),
    "tanh": ("prosma_unet", {"activation": "tanh"}),
    "relu": ("prosma_unet", {"activation": "relu"}),
    "dilation 1": ("prosma_unet", {"dilations": [1]}),
    "dilations 1, 2": ("prosma_unet", {"dilations": [1, 2]}),
    "dilations 1, 2, 4": ("prosma_unet", {"dilations": [1, 2, 4]}),
    "threshold 0.001": ("prosma_unet", {"initial_threshold": 0.001}),
    "threshold 0.1": ("prosma_unet", {"initial_threshold": 0.1}),
    "threshold 0.5": ("prosma_unet", {"initial_threshold": 0.5}),
    "no channel gate": ("prosma_unet", {}),
    "attention gate": ("attention_unet", {}),
    "no gate": ("unet", {}),
}


class Open(nn.Module):
    """A channel gate that lets every channel pass whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, values: Tensor) -> Tensor:
        return values.new_ones(values.shape[0], self.channels)


def made(variant: str, seed: int) -> SegmentationModel:
    torch.manual_seed(seed)
    name, options = VARIANTS[variant]
    model = create_model(name, in_channels=1, classes=CLASSES, widths=WIDTHS, gate_options=options)
    if variant == "no channel gate":
        for gate in model.gates:
            gate.channel_gate = Open(gate.channels)
    return model


@torch.no_grad()
def zeros(model: SegmentationModel) -> float | None:
    """The share of exact zeros in the gates of all skip connections together; None if it has no such gates."""
    gates = [gate for gate in model.gates if hasattr(gate, "sparsity")]
    if not gates:
        return None
    model.eval()(generated(16, torch.Generator().manual_seed(10_001))[0])
    # A level has a quarter of the pixels of the next, and twice its channels.
    sizes = [gate.channels * 4**level for level, gate in enumerate(gates)]
    return sum(gate.sparsity() * size for gate, size in zip(gates, sizes, strict=True)) / sum(sizes)


def measured(variant: str, steps: int, seed: int) -> dict[str, Any]:
    model = made(variant, seed)
    loss = train(model, steps, seed)
    organ, lesion = dice(model)
    return {"loss": loss, "organ": organ, "lesion": lesion, "zeros": zeros(model)}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| variant | Dice of organs | Dice of lesions | zeros | loss |", "| --- | --- | --- | --- | --- |"]
    for variant, runs in results.items():
        cells = [
            f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            for values in ([run[part] for run in runs] for part in ("organ", "lesion"))
        ]
        share = "" if runs[0]["zeros"] is None else f"{mean(run['zeros'] for run in runs):.1%}"
        lines.append(f"| {variant} | {' | '.join(cells)} | {share} | {mean(run['loss'] for run in runs):.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of training, each with 8 images")
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of each")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--results", type=Path, help="a JSON file, continued if it is there")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text()) if arguments.results and arguments.results.exists() else {}
    for variant in arguments.only:
        runs = results.setdefault(variant, [])
        for seed in range(len(runs), arguments.seeds):
            runs.append(measured(variant, arguments.steps, seed))
            if arguments.results:
                arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()

"""What a proximal gate removes: `prosma_unet` is trained on generated images, and its gates are looked at.

    python -m examples.gate_sparsity [--steps 300] [--picture gates.png]

Prints, for each skip connection from coarse to fine, the share of places where the gate is exactly zero, and how much
the gated features change when noise is added to the skip connection, beside an `attention_unet` trained alike:
change = |gate(skip + noise) - gate(skip)| / |gate(skip)|, noise of half the skip's standard deviation. The picture
shows images, labels, predictions, and for each skip connection the share of channels that pass at each place.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.lesions import CLASSES, dice, generated, train
from prosma_ops.models import SegmentationModel, create_model
from prosma_ops.nn import ProximalGate

WIDTHS = (8, 16, 32, 64)
NOISE = 0.5
ENLARGED = 3


class Seen(NamedTuple):
    """What a gate was given, and what it made of that."""

    skip: Tensor
    gating: Tensor
    result: Tensor


@torch.no_grad()
def watched(model: SegmentationModel, images: Tensor) -> tuple[Tensor, list[Seen]]:
    """The logits in evaluation mode, and what each gate saw, coarse to fine."""
    seen: list[Seen] = []
    hooks = [
        gate.register_forward_hook(lambda _, given, result: seen.append(Seen(*given, result))) for gate in model.gates
    ]
    logits = model.eval()(images)
    for hook in hooks:
        hook.remove()
    return logits, seen


@torch.no_grad()
def change(gate: nn.Module, seen: Seen, seed: int = 0) -> float:
    """Of the gated features under noise on the skip connection, relative to them."""
    noise = torch.randn(seen.skip.shape, generator=torch.Generator().manual_seed(seed)) * seen.skip.std() * NOISE
    return float((gate(seen.skip + noise, seen.gating) - seen.result).norm() / seen.result.norm())


def trained(name: str, steps: int, seed: int) -> SegmentationModel:
    torch.manual_seed(seed)
    model = create_model(name, in_channels=1, classes=CLASSES, widths=WIDTHS)
    train(model, steps, seed)
    return model


def report(models: dict[str, SegmentationModel], images: Tensor) -> str:
    """A table of both networks, level by level."""
    lines = ["| network | skip | zeros in the gate | change under noise |", "| --- | --- | --- | --- |"]
    for name, model in models.items():
        for gate, seen in zip(model.gates, watched(model, images)[1], strict=True):
            zeros = f"{gate.sparsity():.1%}" if isinstance(gate, ProximalGate) else "0 %"
            size = "x".join(map(str, seen.skip.shape[2:]))
            lines.append(f"| {name} | {seen.skip.shape[1]} channels, {size} | {zeros} | {change(gate, seen):.3f} |")
    scores = {name: dice(model) for name, model in models.items()}
    lines += [""] + [
        f"{name}: Dice {organ:.3f} (organ), {lesion:.3f} (lesion)" for name, (organ, lesion) in scores.items()
    ]
    return "\n".join(lines)


@torch.no_grad()
def picture(model: SegmentationModel, images: Tensor, labels: Tensor, path: Path) -> None:
    """A row an image: itself, its labels, the prediction, and what passes at each skip connection, coarse to fine."""
    from PIL import Image

    logits = model.eval()(images)
    size = images.shape[2:]
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    panels = [(images - low) / (high - low), labels / (CLASSES - 1), logits.argmax(1, keepdim=True) / (CLASSES - 1)]
    passed = [(gate.last_gate() != 0).float().mean(1, keepdim=True) for gate in model.gates]
    panels += [F.interpolate(values, size=size, mode="nearest") for values in passed]
    whole = torch.cat([F.pad(values[:, 0], (1, 1, 1, 1), value=1.0) for values in panels], dim=2).flatten(0, 1)
    shown = Image.fromarray((255 * whole).to(torch.uint8).numpy())
    shown.resize((shown.width * ENLARGED, shown.height * ENLARGED), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of training, each with 8 images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="a PNG to write; needs Pillow")
    arguments = parser.parse_args()
    models = {name: trained(name, arguments.steps, arguments.seed) for name in ("prosma_unet", "attention_unet")}
    images, labels = generated(16, torch.Generator().manual_seed(10_001))
    print(report(models, images))
    if arguments.picture is not None:
        picture(models["prosma_unet"], images[:4], labels[:4], arguments.picture)


if __name__ == "__main__":
    main()

"""`prosma-ops train`: a network trained on a folder of images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..inference.precisions import PRECISIONS
from .parsers import needing_the_extra

if TYPE_CHECKING:
    from .parsers import Commands

DESCRIPTION = """Train a network on a folder of images, or on generated ones, and write what `evaluate` and `predict`
need into a folder. Every key of the configuration has a default; those that depend on the data are decided from it,
and what was decided is in RUN/configuration.yaml, with a line on each key. Ctrl-C and SIGTERM write a checkpoint;
--resume goes on from the newest one that is whole, as if nothing had happened. `torchrun --nproc_per_node N -m
prosma_ops train ...` trains in N processes, on one machine or many."""


def add(commands: Commands) -> None:
    train = commands.add_parser("train", help="train a network on a folder of images", description=DESCRIPTION)
    train.add_argument("--data", metavar="DIR", help="a folder of images, or `phantom` for generated ones")
    train.add_argument("--out", type=Path, metavar="RUN", required=True, help="the folder of the run")
    train.add_argument("--model", metavar="NAME", help="unet, attention_unet, vq_unet, ... (default: prosma_unet)")
    train.add_argument("--loss", metavar="NAME", help="dice_ce, deep_supervision, mutation, lomix (default: lomix)")
    train.add_argument("--config", type=Path, metavar="FILE", help="a YAML file of keys of the configuration")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="epochs=50, patch_size=[64,64], model_options.preset=large, augmentation.flip=0, ... (may be repeated)",
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument("--precision", metavar="NAME", help=f"{', '.join(PRECISIONS)} (default: 32)")
    train.add_argument("--seed", type=int, help="of everything random (default: 0)")
    train.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda (default: auto)")
    train.add_argument("--devices", type=int, metavar="N", help="processes, a GPU each (torchrun has its own option)")
    train.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp", help="of several processes (default: ddp)")
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needing_the_extra("train"):
        from rich.console import Console

        from ..training import Devices, TrainingError, train
        from ..training.configuration import gathered

    named = {name: getattr(options, name) for name in ("data", "model", "loss", "precision", "seed")}
    console = Console()
    try:
        outcome = train(
            gathered(options.config, options.settings, named),
            options.out,
            resume=options.resume,
            devices=Devices(options.device, options.devices, options.strategy),
            console=console,
        )
    except TrainingError as error:
        print(f"prosma-ops train: {error}", file=sys.stderr)
        return 1
    status = 128 + outcome.signal if outcome.signal else 0
    if not outcome.first:
        return status
    out, data = outcome.run.path, outcome.run.configuration.data
    best = "" if outcome.best is None else f"; best Dice {outcome.best:.4f} at step {outcome.best_step}"
    if outcome.signal:
        told = f"stopped at step {outcome.step}{best}; to go on: prosma-ops train --resume --out {out}"
    else:
        told = f"trained for {outcome.step} steps{best}; next: prosma-ops evaluate --run {out} --data {data}"
    console.print(told, highlight=False, soft_wrap=True, markup=False)
    return status

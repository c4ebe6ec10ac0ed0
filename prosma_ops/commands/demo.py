"""`prosma-ops demo`: two small networks trained on generated images, and a page about them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .parsers import needing_the_extra

if TYPE_CHECKING:
    from .parsers import Commands


def add(commands: Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="train on generated images for a few minutes, and write a page about it",
        description="Train prosma_unet with LoMix and a unet with one output on generated images, evaluate both, and"
        " write report.html: one file with scores, learning curves, overlays, the gates' zeros and LoMix's weights.",
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="(default: demo)")
    demo.add_argument("--steps", type=int, metavar="N", help="of each training (default: 250)")
    demo.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a key of the configuration of both trainings (may be repeated)",
    )
    demo.add_argument("--parity", type=Path, metavar="FILE", help="what `prosma-ops check --json` wrote, for the page")
    demo.add_argument("--speeds", type=Path, nargs="*", default=[], metavar="FILE", help="results of the benchmarks")
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needing_the_extra("train"):
        from rich.console import Console

        from ..report.demonstration import STEPS, Wanted, demonstrate
        from ..training import TrainingError
        from ..training.configuration import gathered

    steps = STEPS if options.steps is None else options.steps
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    console = Console()
    settings = gathered(None, options.settings, {})
    try:
        path = demonstrate(Wanted(options.out, steps, settings, options.parity, options.speeds), console)
    except TrainingError as error:
        print(f"prosma-ops demo: {error}", file=sys.stderr)
        return 1
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
    return 0

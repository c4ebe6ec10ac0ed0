"""`prosma-ops inspect`: what a folder of images holds, and what is wrong with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .parsers import needing_the_extra, write_json

if TYPE_CHECKING:
    from .parsers import Commands


def add(commands: Commands) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="what a folder of images holds, and what is wrong with it",
        description="Read every image and mask of a folder and print what was found: counts, sizes, spacings, labels"
        " and their shares, ranges of intensity, splits, problems. Exit status 1 if anything could not be trained on.",
    )
    inspect.add_argument("data", metavar="DIR", help="a folder of images, or `phantom` for generated ones")
    inspect.add_argument("--json", type=Path, metavar="FILE", help="also write everything, case by case, to FILE")
    inspect.add_argument("--seed", type=int, default=0, help="of the split, where the folder has none (default: 0)")
    inspect.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needing_the_extra("train"):
        from rich.console import Console

        from ..data import inspection, inspection_text

    found = inspection.inspect(options.data, options.seed, progress=inspection_text.track)
    inspection_text.show(found, Console())
    if options.json is not None:
        write_json(options.json, inspection.as_json(found))
    return 1 if found.errors else 0

"""What `evaluate` and `predict` share: the options of a segmentation, and the run that is opened with them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..inference.precisions import PRECISIONS, autocast, require_possible
from .parsers import usable_device

if TYPE_CHECKING:
    import torch

    from ..inference import Segmenter
    from ..training.run_folder import RunFolder


def add_segmenting(parser: argparse.ArgumentParser) -> None:
    # torchrun takes --run for an abbreviation of its own --run-path, even behind the name of the program.
    parser.add_argument(
        "--run",
        "--run-folder",
        dest="folder",
        type=Path,
        metavar="RUN",
        required=True,
        help="what `train` wrote; under torchrun only the longer name works",
    )
    parser.add_argument("--weights", choices=("best", "last"), default="best", help="of the training (default: best)")
    parser.add_argument("--flips", action="store_true", help="average over flipped images: 4 or 8 times the time")
    parser.add_argument(
        "--overlap", type=float, default=0.5, help="of neighbouring windows, as a share of their size (default: 0.5)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="windows at a time (default: 4, of volumes 1)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)")
    parser.add_argument("--precision", choices=PRECISIONS, default="32", help="of the network (default: 32)")


def opened(options: argparse.Namespace) -> tuple[RunFolder, Segmenter]:
    """Raises ValueError for a folder that holds no run, and for a device that cannot be used."""
    from ..inference import Segmenter
    from ..training.run_folder import RunFolder

    device = _device(options.device)
    require_possible(options.precision, device.type)
    run = RunFolder.open(options.folder)
    if run.configuration.patch_size is None:
        raise ValueError(f"{run.path} has no patch_size in its configuration, which `train` writes there")
    segmenter = Segmenter(
        run.model(options.weights, device=str(device)),
        run.preparation,
        patch_size=run.configuration.patch_size,
        overlap=options.overlap,
        flips=_flips(run) if options.flips else False,
        batch_size=options.batch_size,
        device=device,
        autocast=autocast(options.precision),
    )
    return run, segmenter


def _device(name: str | None) -> torch.device:
    """By default a GPU of this process's own, if there is one."""
    import torch

    if name is None and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return usable_device(name or "cpu")


def _flips(run: RunFolder) -> bool | tuple[int, ...]:
    """The axes that the training flipped; a network that never saw flipped images is not asked about them."""
    augmentation = run.configuration.augmentation
    if not augmentation.flip:
        raise ValueError(f"--flips: the training of {run.path} flipped no images (augmentation.flip is 0)")
    return True if augmentation.flip_axes is None else augmentation.flip_axes

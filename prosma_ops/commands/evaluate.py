"""`prosma-ops evaluate`: a run's network on images with masks."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .parsers import needing_the_extra
from .segmenting import add_segmenting, opened

if TYPE_CHECKING:
    from ..data import Case
    from ..inference import CaseScores
    from ..inference.processes import Processes
    from ..training.run_folder import RunFolder
    from .parsers import Commands

SPLITS = ("train", "val", "test", "all")


def add(commands: Commands) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="scores of a run's network: Dice, IoU, distances of borders",
        description="Segment every image of a split and compare it with its mask, on the grid of its file: Dice, IoU,"
        " 95 % Hausdorff and average surface distance, for each class and case, with bootstrap intervals. Writes"
        " scores.csv and scores.json. Under torchrun each process does its share. Exit status 1 if a file could not be"
        " read.",
    )
    add_segmenting(evaluate)
    evaluate.add_argument("--data", metavar="DIR", required=True, help="a folder of images with masks, or `phantom`")
    evaluate.add_argument(
        "--split", choices=SPLITS, default="test", help="as the run was split; all: every image with a mask"
    )
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="(default: evaluation-SPLIT in the run)")
    evaluate.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needing_the_extra("train"):
        from rich.console import Console

        from ..inference.evaluation import evaluate
        from ..inference.evaluation_files import show, write
        from ..inference.processes import processes

    out = options.out or options.folder / f"evaluation-{options.split}"
    with processes() as here:
        folder, segmenter = opened(options)
        cases = chosen(options, folder)
        bar = Bar(here)
        evaluation = evaluate(segmenter, cases, processes=here, progress=bar.track, told=bar.tell)
        if not here.first:
            return 0
    about = {name: getattr(options, name) for name in ("data", "split", "weights", "flips", "overlap", "precision")}
    files = write(evaluation, out, {"run": str(options.folder), **about})
    console = Console()
    show(evaluation, console)
    console.print(f"written to {files[0]} and {files[1].name}", soft_wrap=True, highlight=False)
    return 1 if evaluation.problems else 0


def chosen(options: argparse.Namespace, folder: RunFolder) -> Sequence[Case]:
    """The cases of the split. Raises ValueError if there are none, or if they are of other dimensions."""
    from ..data import recognise

    collection = recognise(options.data)
    if collection.dimensions != folder.preparation.dimensions:
        wanted = folder.preparation.dimensions
        raise ValueError(f"{options.data} holds {collection.dimensions}-D images; the run segments {wanted}-D ones")
    if options.split != "all":
        return folder.splits(collection).required(options.split)
    if not collection.labelled():
        raise ValueError(f"{options.data} has no image with a mask; `prosma-ops predict` segments images without")
    return collection.labelled()


class Bar:
    """Progress on the terminal's error channel: cases of this process, time left, and the mean Dice so far."""

    def __init__(self, processes: Processes) -> None:
        self.shown = processes.first
        self.dice: list[float] = []

    def tell(self, scores: CaseScores) -> None:
        dice = scores.mean("dice")
        self.dice += [dice] if dice == dice else []

    def track(self, cases: Iterable[Case], total: int) -> Iterator[Case]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("evaluating"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not self.shown) as progress:
            task = progress.add_task("", total=total)
            for case in cases:
                yield case
                mean = f"Dice {sum(self.dice) / len(self.dice):.3f}" if self.dice else ""
                progress.update(task, advance=1, description=mean)

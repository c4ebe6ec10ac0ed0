"""`prosma-ops predict`: masks of images that nobody has labelled."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .parsers import needing_the_extra
from .segmenting import add_segmenting, opened

if TYPE_CHECKING:
    from ..data import Case, Problem
    from ..inference import Segmenter
    from .parsers import Commands

INTERRUPTED = 130


def add(commands: Commands) -> None:
    predict = commands.add_parser(
        "predict",
        help="masks of images, by a run's network",
        description="Segment images and write masks like the training's: NIfTI with the affine and header of its"
        " source, PNG with a palette; and overlays, in a folder of their own. Where the run has several channels, files"
        " x_0000, x_0001, ... are one image. Exit status 1 if an image could not be read.",
    )
    predict.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="images, and folders of them")
    add_segmenting(predict)
    predict.add_argument("--out", type=Path, metavar="DIR", required=True)
    predict.add_argument("--probabilities", action="store_true", help="write them, too: NIfTI, of pictures .npz")
    predict.add_argument("--no-overlays", dest="overlays", action="store_false", help="write masks only")
    predict.add_argument("--continue", dest="rest", action="store_true", help="only images without a mask in --out")
    predict.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needing_the_extra("train"):
        from ..data import inputs
        from ..inference.prediction import remaining, require_other_files
        from ..inference.processes import processes

    with processes() as here:
        folder, segmenter = opened(options)
        cases = inputs(options.inputs, len(folder.preparation.channels))
        require_other_files(cases, options.out)
        if options.rest:
            cases = remaining(cases, options.out, here)
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"--out is {options.out}, which is a file; a folder is needed")
        done, problems = predicted(options, segmenter, here.share(cases), here.first)
        done, problems = here.gathered(done), here.gathered(problems)
        if not here.first:
            return 0
    return told(len(done), len(cases), problems, options.out)


def predicted(
    options: argparse.Namespace, segmenter: Segmenter, cases: Sequence[Case], shown: bool
) -> tuple[list[str], list[Problem]]:
    """The names of the images that have been segmented, and what was wrong with the others."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..inference import predict

    done: list[str] = []
    problems: list[Problem] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
            images = progress.add_task("images", total=len(cases))
            windows = progress.add_task("windows of this one", visible=False)

            def window(number: int, total: int) -> None:
                progress.update(windows, completed=number, total=total, visible=total > 1)

            segmenter.progress = window
            chosen = {"probabilities": options.probabilities, "overlays": options.overlays}
            for prediction in predict(segmenter, cases, options.out, **chosen):
                progress.advance(images)
                if prediction.problem is None:
                    done.append(prediction.case.name)
                else:
                    problems.append(prediction.problem)
    except KeyboardInterrupt:
        print(
            f"interrupted: {len(done)} of {len(cases)} images are segmented, each whole, in {options.out};"
            " the same command with --continue does the others",
            file=sys.stderr,
        )
        raise SystemExit(INTERRUPTED) from None
    return done, problems


def told(done: int, wanted: int, problems: Iterable[Problem], out: Path) -> int:
    found = list(problems)
    for problem in found:
        print(f"{problem.severity}: {problem.file}: {problem.message}", file=sys.stderr)
    images = f"{done} image{'s' if done != 1 else ''}"
    print(f"{images} segmented, in {out}" if not found else f"{done} of {wanted} images segmented, in {out}")
    return 1 if found else 0

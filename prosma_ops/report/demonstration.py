"""The demonstration: two small networks trained on generated images, evaluated, and a page about them.

`prosma_unet` with LoMix and `unet` with one output see the same images in the same order for the same number of steps.
The task: ultrasound-like phantoms of 96x96 pixels with three organs, of which the first two are hard to tell apart by
brightness, since clutter of the same brightness lies around.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import __version__, native
from ..data import Case, recognise
from ..data.writing import replacing
from ..inference import Segmenter, evaluate
from ..inference.evaluation_files import show, write
from ..training import Outcome, train
from ..training.run_folder import CONFIGURATION
from . import contents, measurements, page
from .contents import Contestant
from .page import Section

DATA = "phantom:dimensions=2,cases=160,size=96,seed=7"
STEPS = 250
EPOCH = 25
COMMON = {"data": DATA, "model_options": {"preset": "small"}, "batch_size": 8, "learning_rate": 2e-3, "log_every": 5}
NETWORKS = {
    "ProSMA-UNet, LoMix": {"model": "prosma_unet", "loss": "lomix"},
    "U-Net, one output": {"model": "unet", "loss": "dice_ce"},
}
PAGE = "report.html"


@dataclass(frozen=True)
class Wanted:
    """What the demonstration is asked for.

    settings: keys of the configuration of both trainings, in place of what stands above.
    parity, speeds: JSON of `prosma-ops check` and of the benchmarks, which then are on the page.
    """

    out: Path
    steps: int = STEPS
    settings: Mapping[str, Any] = field(default_factory=dict)
    parity: Path | None = None
    speeds: Sequence[Path] = ()


def demonstrate(wanted: Wanted, console: Console) -> Path:
    """Trains, evaluates, and writes the page; returns its path. Raises ValueError, and KeyboardInterrupt."""
    parity = None if wanted.parity is None else measurements.read_parity(wanted.parity)
    speeds = [measurements.read_speeds(path) for path in wanted.speeds]
    started = time.monotonic()
    contestants = [contestant(title, choice, wanted, console) for title, choice in NETWORKS.items()]
    cases = {case.name: case for case in recognise(_configuration(wanted, {})["data"]).cases}
    text = written(contestants, cases, wanted, parity, speeds, time.monotonic() - started)
    path = wanted.out / PAGE
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


def _configuration(wanted: Wanted, choice: Mapping[str, Any]) -> dict[str, Any]:
    epoch = min(EPOCH, wanted.steps)
    return {**COMMON, "steps": wanted.steps, "epoch_steps": epoch, "tensorboard": False, **wanted.settings, **choice}


def contestant(title: str, choice: Mapping[str, Any], wanted: Wanted, console: Console) -> Contestant:
    """One network, trained into a folder of its own and evaluated on the test images."""
    console.print(f"[bold]{title}[/bold]")
    started = time.monotonic()
    outcome = trained(wanted.out / str(choice["model"]), _configuration(wanted, choice), console)
    seconds = time.monotonic() - started
    run = outcome.run
    model = run.model("best")
    patch = run.configuration.patch_size
    assert patch is not None
    segmenter = Segmenter(model, run.preparation, patch_size=patch)
    evaluation = evaluate(segmenter, run.splits(recognise(run.configuration.data)).required("test"))
    write(evaluation, run.path / "evaluation-test", {"run": str(run.path), "split": "test", "weights": "best"})
    show(evaluation, console)
    parameters = sum(values.numel() for values in model.parameters())
    return Contestant(title, segmenter, evaluation, run.log(), parameters, seconds)


def trained(folder: Path, configuration: Mapping[str, Any], console: Console) -> Outcome:
    """A training from its beginning, which takes the place of an earlier demonstration's."""
    discard(folder)
    outcome = train(configuration, folder, console=console)
    if outcome.signal:
        raise KeyboardInterrupt
    return outcome


def discard(folder: Path) -> None:
    """Removes the run of an earlier demonstration; raises ValueError where something else stands in its place."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIGURATION).exists()):
        raise ValueError(f"{folder} is no run of an earlier demonstration; choose another folder by --out")
    shutil.rmtree(folder)


def written(
    contestants: Sequence[Contestant],
    cases: Mapping[str, Case],
    wanted: Wanted,
    parity: Mapping[str, Any] | None,
    speeds: Sequence[Mapping[str, Any]],
    seconds: float,
) -> str:
    """The page."""
    first = contestants[0]
    shown = cases[first.evaluation.by_dice()[-1].name]
    sections = [
        Section("Scores on images that no training has seen", contents.scores(contestants)),
        Section("Learning curves", contents.curves(contestants)),
        Section("Images, truth and predictions", contents.overlays(contestants, cases)),
        Section(
            "The gates",
            page.paragraph(
                "Each skip connection of ProSMA-UNet passes a gate that is exactly zero where a response stays below a"
                " learned threshold: the first chart shows in what share of all places and channels. The pictures show"
                " at each place the share of channels that pass, dark for the least and bright for the most."
            )
            + contents.sparsity(first)
            + contents.gates(first, shown),
        ),
        Section(
            "The weights of LoMix",
            page.paragraph(
                "LoMix supervises the decoder's maps and every mixture of them, each with a learned weight. Here the"
                " weights keep their sum, so that what moves is their ratio."
            )
            + contents.weights(first),
        ),
        *_measured(parity, speeds),
    ]
    return page.page("prosma_ops: a demonstration", _introduction(first, wanted, seconds), sections, _end())


def _introduction(first: Contestant, wanted: Wanted, seconds: float) -> str:
    configuration = _configuration(wanted, {})
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    trainings = (
        f"Two small networks were trained for {wanted.steps} steps of {configuration['batch_size']} images, in"
        f" {seconds / 60:.1f} minutes with training and evaluation of both, on {threads}: ProSMA-UNet with proximal"
        " gates, supervised by LoMix at all scales, and the same U-Net without gates, with a Dice and cross-entropy"
        " loss on its one output. Both saw the same images in the same order."
    )
    task = (
        f"The images are generated (`{configuration['data']}`): an organ with a core nested in it and a neighbour that"
        " touches it, with blurred borders of low contrast, under speckle, shadows and clutter of the same brightness."
        f" {len(first.evaluation.cases)} images were kept for the scores below. It is a task that takes minutes, not a"
        " claim about patients: how the networks compare on real images is measured elsewhere."
    )
    return page.paragraph(trainings) + page.paragraph(task)


def _measured(parity: Mapping[str, Any] | None, speeds: Sequence[Mapping[str, Any]]) -> list[Section]:
    rule = (
        "Every implementation is compared with the float64 reference, forward and each gradient. An error may be 8"
        " units of rounding at the scale of the result, or twice that of eager PyTorch in the same dtype."
    )
    if parity is None:
        checked = page.paragraph("Not part of this page: `make demo` puts it in, `prosma-ops check` prints it.")
    else:
        checked = page.paragraph(rule) + measurements.parity(parity)
        checked += page.paragraph(f"Measured on {parity.get('device', 'an unknown device')}.", note=True)
    if not speeds:
        fast = page.paragraph("Not part of this page: `make demo` puts it in, `python -m benchmarks` prints it.")
    else:
        fast = page.paragraph("Times of the fused operators, and how many times longer others take for the same.")
        fast += measurements.speeds(speeds)
        fast += page.paragraph(f"Measured on {'; '.join(measurements.machines(speeds))}.", note=True)
    return [Section("Parity", checked), Section("Speed", fast)]


def _end() -> str:
    library = "with its native library" if native.load()[0] is not None else "without its native library"
    where = f"{platform.machine()}, {platform.system()}"
    return page.paragraph(
        f"prosma_ops {__version__} {library}, torch {torch.__version__}, {where}; {time.strftime('%Y-%m-%d')}."
        " `prosma-ops demo` makes this page.",
        note=True,
    )

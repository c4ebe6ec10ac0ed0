"""The queue: each run that has no result is trained, or gone on with, measured on the test split, and written."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import prosma_ops
from benchmarks.accuracy.cells import Run
from prosma_ops.data import recognise
from prosma_ops.data.writing import replacing
from prosma_ops.inference.scoring import scores
from prosma_ops.inference.segmenting import Segmenter
from prosma_ops.training import Outcome, RunFolder, train
from prosma_ops.training.run_folder import CONFIGURATION

RESULTS = Path(__file__).parent / "results"


def work(
    runs: Sequence[Run], data: Path, folder: Path, results: Path, console: Console | None = None
) -> Outcome | None:
    """Makes the runs that have no result in `results`; trainings are in `folder`.

    Returns the outcome of the training that a signal stopped, None if all are done.
    """
    for number, run in enumerate(runs):
        path = results / f"{run}.json"
        if path.exists():
            continue
        if console is not None:
            console.print(f"{run}, {number + 1} of {len(runs)}", highlight=False)
        outcome = trained(run, data, folder / str(run), console)
        if outcome.signal:
            return outcome
        result = measured(run, outcome.run)
        with replacing(path) as aside:
            aside.write_text(json.dumps(result, indent=1) + "\n")
        if console is not None:
            console.print(f"{run}: test Dice {result['dice']:.4f}", highlight=False)
    return None


def trained(run: Run, data: Path, folder: Path, console: Console | None) -> Outcome:
    """To its end, or until a signal; from its newest checkpoint, if there is one."""
    begun = (folder / CONFIGURATION).exists()
    settings = {**run.settings(), "data": str(data / run.data)}
    return train({} if begun else settings, folder, resume=begun, console=console)


def measured(run: Run, folder: RunFolder) -> dict[str, Any]:
    """Scores on the test cases, of the weights that were best on the validation cases."""
    configuration, preparation = folder.configuration, folder.preparation
    cases = folder.splits(recognise(configuration.data)).required("test")
    segmenter = Segmenter(folder.model("best"), preparation, patch_size=configuration.patch_size or ())
    each = {}
    for case in cases:
        prepared = preparation.image(case)
        truth = preparation.truth(case, prepared.source)
        found = scores(segmenter.labels(prepared), truth, preparation.scheme, prepared.source.spacing)
        each[case.name] = {score.name: {"dice": score.dice, "hd95": score.hd95} for score in found}
    log = folder.log()
    steps = [entry for entry in log if entry["kind"] == "step"]
    return {
        "run": {"data": run.data, "share": run.share, "model": run.model, "loss": run.loss, "seed": run.seed},
        "dice": mean_of(each, "dice"),
        "hd95": mean_of(each, "hd95"),
        "dice_per_class": {name: mean_of(each, "dice", name) for name in next(iter(each.values()))},
        "each": {name: {label: _plain(score) for label, score in of.items()} for name, of in each.items()},
        "validation": [[entry["step"], entry["dice"]] for entry in log if entry["kind"] == "validation"],
        "training_seconds": sum(entry["step_seconds"] for entry in steps) * configuration.log_every,
        "wait_share": float(np.mean([entry["wait_share"] for entry in steps])),
        "training_cases": len(folder.cases["train"]),
        "configuration": {key: value for key, value in configuration.as_mapping().items() if key != "data"},
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": {"prosma_ops": prosma_ops.__version__, "torch": torch.__version__},
    }


def mean_of(each: dict[str, dict[str, dict[str, float]]], score: str, label: str | None = None) -> float:
    """Over the cases that have a class, and over the classes; a class that no case has is left out."""
    labels = [label] if label is not None else list(next(iter(each.values())))
    means = []
    for name in labels:
        values = [of[name][score] for of in each.values() if of[name][score] == of[name][score]]
        means += [float(np.mean(values))] if values else []
    return float(np.mean(means)) if means else float("nan")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _plain(score: dict[str, float]) -> dict[str, float | None]:
    """NaN, which JSON has not, as None."""
    return {name: None if value != value else value for name, value in score.items()}

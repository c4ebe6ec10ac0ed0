"""The queue: each run that has no result is trained, or gone on with, measured on the test split, and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import prosma_ops
from benchmarks.accuracy.cells import Run
from benchmarks.machine import cpu_name
from prosma_ops.data import recognise
from prosma_ops.data.writing import replacing
from prosma_ops.inference.bootstrap import mean_of_known
from prosma_ops.inference.evaluation import Evaluation, scored
from prosma_ops.inference.scoring import ClassScores
from prosma_ops.inference.segmenting import Segmenter
from prosma_ops.training import Outcome, RunFolder, train
from prosma_ops.training.run_folder import CONFIGURATION

RESULTS = Path(__file__).parent / "results"
# Of those that a class has.
SCORES = ("dice", "hd95")


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
    evaluation = Evaluation(tuple(scored(segmenter, case) for case in cases))
    names = [each.name for each in evaluation.cases[0].classes]
    by_class = {score: {name: mean_of_known(evaluation.values(name, score)) for name in names} for score in SCORES}
    log = folder.log()
    steps = [entry for entry in log if entry["kind"] == "step"]
    return {
        "run": {"data": run.data, "share": run.share, "model": run.model, "loss": run.loss, "seed": run.seed},
        **{score: mean_of_known(means.values()) for score, means in by_class.items()},
        "dice_per_class": by_class["dice"],
        "each": {case.name: {each.name: _chosen(each) for each in case.classes} for case in evaluation.cases},
        "validation": [[entry["step"], entry["dice"]] for entry in log if entry["kind"] == "validation"],
        "training_seconds": sum(entry["step_seconds"] for entry in steps) * configuration.log_every,
        "wait_share": float(np.mean([entry["wait_share"] for entry in steps])),
        "training_cases": len(folder.cases["train"]),
        "configuration": {key: value for key, value in configuration.as_mapping().items() if key != "data"},
        "machine": {"processor": cpu_name(), "threads": torch.get_num_threads()},
        "versions": {"prosma_ops": prosma_ops.__version__, "torch": torch.__version__},
    }


def _chosen(scores: ClassScores) -> dict[str, float | None]:
    plain = scores.as_json()
    return {score: plain[score] for score in SCORES}

"""Tables of the results: the mean over seeds and their spread, and differences between runs that differ in one thing.

A difference is taken seed by seed, and within a seed case by case. Its interval is that of the mean over cases (each
case's own mean over the seeds), by the bootstrap: it says what another test set would have shown, not other seeds,
whose spread stands beside it. Cells without all of their runs say so.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.cells import LOSS_NAMES, ONE_OUTPUT, Run
from prosma_ops.inference.bootstrap import interval, mean_of_known

Results = Mapping[Run, Mapping[str, Any]]
RESAMPLES = 10_000


def read(folder: Path) -> dict[Run, dict[str, Any]]:
    """The results in a folder; raises ValueError that names a file that is none."""
    return dict(_result(path) for path in sorted(folder.glob("*.json")))


def _result(path: Path) -> tuple[Run, dict[str, Any]]:
    try:
        content = json.loads(path.read_text())
        return Run(**content["run"]), content
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of this benchmark ({type(error).__name__}: {error})") from None


def text(results: Results, runs: Sequence[Run]) -> str:
    """Markdown: a table of cells, and one of differences."""
    lines = ["| data | training set | network | loss | test Dice | by class | HD95 | minutes | runs |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    cells = list(dict.fromkeys(run.cell for run in runs))
    lines += [_row(cell, [run for run in runs if run.cell == cell], results) for cell in cells]
    lines += [
        "",
        "| difference in test Dice | mean | of each seed | 95 % over cases | pairs |",
        "|---|---|---|---|---|",
    ]
    lines += [_difference(title, pairs, results) for title, pairs in differences(runs)]
    return "\n".join(lines) + "\n"


def _row(cell: tuple[str, float, str, str], runs: Sequence[Run], results: Results) -> str:
    data, share, model, loss = cell
    there = [results[run] for run in runs if run in results]
    columns = [data, f"{share:.0%}", f"`{model}`", LOSS_NAMES[loss]]
    if not there:
        return _line([*columns, *["not run yet"], "", "", "", f"0 of {len(runs)}"])
    dice = [result["dice"] for result in there]
    labels = there[0]["dice_per_class"]
    by_class = ", ".join(
        f"{name} {statistics.mean(result['dice_per_class'][name] for result in there):.3f}" for name in labels
    )
    distance = statistics.mean(result["hd95"] for result in there)
    minutes = statistics.mean(result["training_seconds"] for result in there) / 60
    done = f"{len(there)} of {len(runs)}" + ("" if len(there) == len(runs) else ", unfinished")
    return _line([*columns, spread(dice), by_class, f"{distance:.2f}", f"{minutes:.1f}", done])


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, where there are several."""
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def differences(runs: Sequence[Run]) -> Iterator[tuple[str, list[tuple[Run, Run]]]]:
    """Each loss against one output, and each network against the U-Net, all else equal: a title, and pairs of runs."""
    for data, share, model, loss in dict.fromkeys(run.cell for run in runs):
        if loss != ONE_OUTPUT:
            title = f"{data}, {share:.0%}, `{model}`: {LOSS_NAMES[loss]} - {LOSS_NAMES[ONE_OUTPUT]}"
            yield from _pairs(title, runs, (data, share, model, loss), lambda run: {"loss": ONE_OUTPUT})
        if model != "unet":
            title = f"{data}, {share:.0%}, {LOSS_NAMES[loss]}: `{model}` - `unet`"
            yield from _pairs(title, runs, (data, share, model, loss), lambda run: {"model": "unet"})


def _pairs(
    title: str, runs: Sequence[Run], cell: tuple[str, float, str, str], change: Callable[[Run], dict[str, str]]
) -> Iterator[tuple[str, list[tuple[Run, Run]]]]:
    known = set(runs)
    pairs = []
    for run in runs:
        other = Run(**{**vars(run), **change(run)})
        if run.cell == cell and other in known:
            pairs.append((run, other))
    if pairs:
        yield title, pairs


def _difference(title: str, pairs: Sequence[tuple[Run, Run]], results: Results) -> str:
    there = [(results[one], results[other]) for one, other in pairs if one in results and other in results]
    done = f"{len(there)} of {len(pairs)}" + ("" if len(there) == len(pairs) else ", unfinished")
    if not there:
        return _line([title, "not run yet", "", "", done])
    each = [one["dice"] - other["dice"] for one, other in there]
    cases = list(there[0][0]["each"])
    by_case = [mean_of_known(case_dice(one, name) - case_dice(other, name) for one, other in there) for name in cases]
    between = interval(by_case, resamples=RESAMPLES)
    shown = "too few cases" if between is None else f"{between[0]:+.4f} to {between[1]:+.4f}"
    seeds = ", ".join(f"{value:+.4f}" for value in each)
    return _line([title, f"{statistics.mean(each):+.4f}", seeds, shown, done])


def case_dice(result: Mapping[str, Any], case: str) -> float:
    """The mean over the classes that the case has; NaN if it has none."""
    found = [score["dice"] for score in result["each"][case].values()]
    return mean_of_known(math.nan if dice is None else dice for dice in found)


def _line(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"

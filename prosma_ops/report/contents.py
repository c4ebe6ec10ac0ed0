"""What the demonstration's page says of two runs: scores, learning curves, pictures, gates, and the loss's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Case, LabelScheme, overlay
from ..data.writing import as_bytes
from ..inference import CaseScores, Evaluation, Segmenter, interval
from ..inference.bootstrap import mean_of_known
from ..inference.evaluation import ALL
from ..inference.evaluation_files import TITLES, cell
from ..nn import ProximalGate
from . import charts, page, pictures
from .charts import Series

OPERATORS = ("one map", "add", "multiply", "concat", "attention")
SHOWN = ("lowest", "median", "highest")


@dataclass(frozen=True)
class Contestant:
    """A network that was trained and evaluated. `log` holds the lines of its run's log.jsonl."""

    title: str
    segmenter: Segmenter
    evaluation: Evaluation
    log: Sequence[Mapping[str, Any]]
    parameters: int
    seconds: float

    def steps(self) -> list[Mapping[str, Any]]:
        return [entry for entry in self.log if entry["kind"] == "step"]

    def validations(self) -> list[Mapping[str, Any]]:
        return [entry for entry in self.log if entry["kind"] == "validation"]


def scores(contestants: Sequence[Contestant]) -> str:
    """The means of both by class, and what a paired comparison of the first with the second says."""
    names = contestants[0].evaluation.names()
    shown = ("dice", "hd95")
    units = {"dice": "", "hd95": f", {contestants[0].evaluation.unit}"}
    rows = [
        (name, each.title, *(cell(each.evaluation.summary(name, score)).replace(" [", "\n[") for score in shown))
        for name in names
        for each in contestants
    ]
    head = ("class", "network", *(TITLES[score] + units[score] for score in shown))
    strong = [number for number, row in enumerate(rows) if row[0] == ALL]
    costs = [
        (each.title, f"{each.parameters:,}", f"{each.seconds:.0f} s", f"{_waiting(each):.1%}") for each in contestants
    ]
    cost_head = ("network", "parameters", "training", "data wait")
    return (
        page.table(head, rows, numbers=(2, 3), strong=strong)
        + page.paragraph(_compared(*contestants[:2]))
        + page.table(cost_head, costs, numbers=(1, 2, 3))
    )


def _waiting(contestant: Contestant) -> float:
    """The share of the training's time that was spent waiting for data."""
    return mean_of_known(entry["wait_share"] for entry in contestant.steps())


def _compared(first: Contestant, second: Contestant) -> str:
    pairs = zip(first.evaluation.cases, second.evaluation.cases, strict=True)
    found = [one.mean("dice") - other.mean("dice") for one, other in pairs]
    known = [value for value in found if not math.isnan(value)]
    better = sum(value > 0 for value in known)
    between = interval(found)
    spread = f", 95 % interval {between[0]:+.3f} to {between[1]:+.3f}" if between else ""
    return (
        f"Dice of {first.title} less that of {second.title}, image by image: {mean_of_known(found):+.3f} on"
        f" average{spread}; it is higher in {better} of {len(known)} images. Intervals tell how much other images would"
        " move these numbers, not what another seed of the training would do."
    )


def curves(contestants: Sequence[Contestant]) -> str:
    """Validation Dice of both, and how far the loss of each has come down."""
    dice = [
        Series(each.title, [(entry["step"], entry["dice"]) for entry in each.validations()], number)
        for number, each in enumerate(contestants, 1)
    ]
    losses = []
    for number, each in enumerate(contestants, 1):
        found = [(entry["step"], entry["loss"]) for entry in each.steps()]
        losses.append(Series(each.title, [(step, loss / found[0][1]) for step, loss in found], number))
    by_class = [
        Series(name, [(entry["step"], entry["dice_per_class"].get(name, math.nan)) for entry in first], number)
        for first in [contestants[0].validations()]
        for number, name in enumerate(first[0]["dice_per_class"] if first else (), 3)
    ]
    return page.charts(
        [
            charts.line_chart("Dice of the validation images, mean of the classes", dice, "step", low=0, high=1),
            charts.line_chart(f"The same by class: {contestants[0].title}", by_class, "step", low=0, high=1),
            charts.line_chart("Training loss, relative to its first value", losses, "step", low=0),
        ]
    )


def overlays(contestants: Sequence[Contestant], cases: Mapping[str, Case]) -> str:
    """Three test images, chosen by the first network's Dice: the lowest, the middle one, the highest."""
    scheme = contestants[0].segmenter.preparation.scheme
    ordered = contestants[0].evaluation.by_dice()
    parts = [pictures.swatches([scheme.names[output] for output in scheme.foreground], _colours(scheme))]
    for word, place in zip(SHOWN, (0, len(ordered) // 2, -1), strict=True):
        case = cases[ordered[place].name]
        prepared = contestants[0].segmenter.preparation.image(case)
        source = prepared.source
        truth = scheme.decode(contestants[0].segmenter.preparation.truth(case, source))
        row = [
            pictures.picture(as_bytes(source.values), case.name, f"{word} Dice"),
            pictures.picture(overlay(source.values, truth, scheme), "truth"),
        ]
        for each in contestants:
            codes = each.segmenter.codes(each.segmenter.preparation.image(case))
            dice = f"Dice {_of(each.evaluation, case.name).mean('dice'):.3f}"
            row.append(pictures.picture(overlay(source.values, codes, scheme), each.title, dice))
        parts.append(pictures.row(row))
    return "".join(parts)


def _of(evaluation: Evaluation, name: str) -> CaseScores:
    return next(case for case in evaluation.cases if case.name == name)


def _colours(scheme: LabelScheme) -> list[tuple[int, int, int]]:
    palette = scheme.palette()
    return [palette[(scheme.written or tuple(codes[0] for codes in scheme.codes))[out]] for out in scheme.foreground]


def sparsity(contestant: Contestant) -> str:
    """The share of exact zeros in each gate, from step to step."""
    entries = [entry for entry in contestant.steps() if entry.get("sparsity")]
    names = list(entries[-1]["sparsity"]) if entries else []
    series = [
        Series(_level(place, len(names)), [(entry["step"], entry["sparsity"][name]) for entry in entries], place + 1)
        for place, name in enumerate(names)
    ]
    title = "Exact zeros in each skip connection's gate"
    return page.charts([charts.line_chart(title, series, "step", low=0, percent=True)])


def _level(place: int, count: int) -> str:
    """Gates run from coarse to fine, as the decoder goes."""
    return {0: "coarsest", count - 1: "finest"}.get(place, f"level {place + 1}")


@torch.no_grad()
def gates(contestant: Contestant, case: Case) -> str:
    """What passes the gates of one image: at each place the share of channels that are not exactly zero."""
    segmenter = contestant.segmenter
    prepared = segmenter.preparation.image(case)
    segmenter.model(prepared.image[None].to(segmenter.device))
    found = [module for module in segmenter.model.modules() if isinstance(module, ProximalGate)]
    row = [pictures.picture(as_bytes(prepared.source.values), case.name)]
    for place, gate in enumerate(found):
        passed = (gate.last_gate() != 0).float().mean(1)[0]
        row.append(pictures.picture(_enlarged(passed, prepared.image), _level(place, len(found)), _size(passed)))
    return pictures.row(row, 180)


def _enlarged(values: Tensor, image: Tensor) -> np.ndarray:
    """To the size of the image, each value a square, from black at the least to white at the most."""
    whole = torch.nn.functional.interpolate(values[None, None].cpu(), size=image.shape[1:], mode="nearest")[0, 0]
    low, high = float(whole.min()), float(whole.max())
    return np.asarray((whole - low) / max(high - low, 1e-6))


def _size(passed: Tensor) -> str:
    size = "x".join(map(str, passed.shape))
    return f"{size}, {float(passed.min()):.0%} to {float(passed.max()):.0%}"


def weights(contestant: Contestant) -> str:
    """LoMix's weights: each mixture as a thin line, the mean of each operator as a thick one, and who ended where."""
    entries = [entry for entry in contestant.steps() if entry.get("loss_weights")]
    if not entries:
        return page.paragraph("The loss of this run has no weights.")
    names = list(entries[-1]["loss_weights"])
    paths = {name: [(entry["step"], entry["loss_weights"][name]) for entry in entries] for name in names}
    faint, means = [], []
    for number, operator in enumerate(OPERATORS, 1):
        own = [paths[name] for name in names if operator_of(name) == operator]
        faint += [Series(operator, path, number, faint=True) for path in own]
        if own:
            points = [(step, float(np.mean([path[at][1] for path in own]))) for at, (step, _) in enumerate(own[0])]
            means.append(Series(operator, points, number))
    last = sorted(entries[-1]["loss_weights"].items(), key=lambda item: -item[1])
    rows = [(name, f"{weight:.3f}", other, f"{less:.3f}") for (name, weight), (other, less) in _ends(last)]
    chart = charts.line_chart("Weight of each map's loss: thin, each mixture; thick, means", faint + means, "step")
    head = ("largest at the end", "weight", "smallest at the end", "weight")
    return page.charts([chart]) + page.table(head, rows, numbers=(1, 3))


def _ends(ordered: Sequence[tuple[str, float]], most: int = 4) -> list[tuple[tuple[str, float], tuple[str, float]]]:
    return list(zip(ordered[:most], ordered[::-1][:most], strict=True))


def operator_of(name: str) -> str:
    """ "add" of "add(0,2)", and "one map" of "0"."""
    return name.partition("(")[0] if "(" in name else OPERATORS[0]

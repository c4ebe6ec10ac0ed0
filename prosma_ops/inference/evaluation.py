"""Scores of many cases: each segmented on its source's grid, compared with its mask, and summarised by class.

The mean of a case is over its classes that have a score; the mean of a class, and that of all classes, is over cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import BadFileError, Case, Problem
from .bootstrap import CONFIDENCE, RESAMPLES, interval, mean_of_known
from .processes import Processes
from .scoring import SCORES, ClassScores, scores
from .segmenting import Segmenter

#: The name, among the classes, of the mean over all of them.
ALL = "mean"
LOWER_IS_BETTER = ("hd95", "surface_distance")

Progress = Callable[[Iterable[Case], int], Iterable[Case]]


@dataclass(frozen=True)
class CaseScores:
    """Of one case: each class, and the unit of its distances, "mm" or "pixels"."""

    name: str
    subject: str | None
    unit: str
    classes: tuple[ClassScores, ...]

    def mean(self, score: str) -> float:
        """Over the classes that have it; NaN if none has."""
        return mean_of_known(getattr(each, score) for each in self.classes)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "subject": self.subject,
            "unit": self.unit,
            "classes": [each.as_json() for each in self.classes],
        }


@dataclass(frozen=True)
class Summary:
    """A score of a class, or of `ALL`, over cases: how many have it, its mean with an interval, its spread."""

    name: str
    score: str
    cases: int
    mean: float
    interval: tuple[float, float] | None
    deviation: float
    median: float

    def as_json(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("mean", "deviation", "median")}
        return {
            "name": self.name,
            "score": self.score,
            "cases": self.cases,
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
            "interval": self.interval,
        }


@dataclass(frozen=True)
class Evaluation:
    """The scores of all cases, in the order of their names, and the files that could not be read."""

    cases: tuple[CaseScores, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def unit(self) -> str:
        return " or ".join(sorted({case.unit for case in self.cases}))

    def names(self) -> list[str]:
        """Of the classes, and of their mean where there are several."""
        classes = [each.name for each in self.cases[0].classes] if self.cases else []
        return [*classes, ALL] if len(classes) > 1 else classes

    def values(self, name: str, score: str) -> list[float]:
        """Of each case."""
        if name == ALL:
            return [case.mean(score) for case in self.cases]
        place = [each.name for each in self.cases[0].classes].index(name)
        return [getattr(case.classes[place], score) for case in self.cases]

    def summary(self, name: str, score: str) -> Summary:
        values = np.array(self.values(name, score))
        known = values[~np.isnan(values)]
        spread = float(known.std(ddof=1)) if len(known) > 1 else math.nan
        middle = float(np.median(known)) if len(known) else math.nan
        subjects = [case.subject or case.name for case in self.cases]
        return Summary(
            name, score, len(known), mean_of_known(known), interval(values.tolist(), subjects), spread, middle
        )

    def counts(self, name: str) -> tuple[int, int]:
        """In how many cases a class was missed, and in how many invented; of `ALL`, the sums."""
        chosen = [each for case in self.cases for each in case.classes if name in (ALL, each.name)]
        return sum(each.missed for each in chosen), sum(each.invented for each in chosen)

    def by_dice(self) -> list[CaseScores]:
        """The cases that have one, that with the lowest mean Dice first."""
        scored = [case for case in self.cases if not math.isnan(case.mean("dice"))]
        return sorted(scored, key=lambda case: case.mean("dice"))

    def worst(self, most: int = 3) -> list[CaseScores]:
        return self.by_dice()[:most]

    def as_json(self) -> dict[str, Any]:
        counts = {name: self.counts(name) for name in self.names()}
        return {
            "unit": self.unit,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "summary": [self.summary(name, score).as_json() for name in self.names() for score in SCORES],
            "missed": {name: missed for name, (missed, _) in counts.items()},
            "invented": {name: invented for name, (_, invented) in counts.items()},
            "cases": [case.as_json() for case in self.cases],
            "problems": [problem._asdict() for problem in self.problems],
        }


def evaluate(
    segmenter: Segmenter,
    cases: Sequence[Case],
    *,
    processes: Processes | None = None,
    progress: Progress = lambda cases, _: cases,
    told: Callable[[CaseScores], None] = lambda _: None,
) -> Evaluation:
    """The scores of `cases`, which have masks. With several processes each does its share, and all get the whole.

    A file that cannot be read becomes a problem of the evaluation; its case has no scores.

    `progress` may wrap the cases of this process; `told` hears of each case's scores at once.
    """
    here = processes or Processes()
    share = here.share(cases)
    done: list[CaseScores] = []
    problems: list[Problem] = []
    for case in progress(share, len(share)):
        try:
            done.append(scored(segmenter, case))
        except BadFileError as error:
            problems.append(Problem("error", error.path, error.reason))
            continue
        told(done[-1])
    every = here.gathered(done)
    return Evaluation(tuple(sorted(every, key=lambda case: case.name)), tuple(sorted(here.gathered(problems))))


def scored(segmenter: Segmenter, case: Case) -> CaseScores:
    """One case. Raises `BadFileError`."""
    preparation = segmenter.preparation
    prepared = preparation.image(case)
    truth = preparation.truth(case, prepared.source)
    labels = segmenter.labels(prepared)
    spacing = prepared.source.spacing
    found = scores(labels, truth, preparation.scheme, spacing)
    return CaseScores(case.name, case.subject, "pixels" if spacing is None else "mm", tuple(found))

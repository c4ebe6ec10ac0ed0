"""`prosma-ops inspect`: what a folder of images holds, before anything is trained on it.

Counts, sizes, spacings, labels and their shares, ranges of intensity, splits, and every problem with its file's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .case import SPLITS, BadFileError, Problem
from .findings import Finding, Progress, Survey, silent, survey
from .formats import recognise
from .labels import LabelScheme
from .splits import Splits, split


@dataclass(frozen=True)
class Inspection:
    """A survey, its splits, and the problems of both."""

    survey: Survey
    splits: Splits | None
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")


def inspect(
    location: str | Path,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> Inspection:
    """Looks at everything in a folder (or a phantom). Raises ValueError if it is none of the formats."""
    collection = recognise(location)
    found = survey(collection, workers, progress)
    try:
        splits = split(collection, seed)
    except BadFileError as error:
        return Inspection(found, None, (*found.problems, Problem("error", error.path, error.reason)))
    problems = tuple(dict.fromkeys([*found.problems, *splits.problems]))
    return Inspection(found, splits, problems)


def sizes(findings: Sequence[Finding]) -> dict[str, Any]:
    """Smallest, median and largest size along each axis, and the commonest shapes."""
    shapes = [finding.shape for finding in findings if not finding.case.stack]
    stacks = [finding.shape for finding in findings if finding.case.stack]
    counted = Counter(shapes + stacks).most_common()
    described: dict[str, Any] = {"shapes": [{"shape": list(shape), "cases": number} for shape, number in counted]}
    for name, group in (("", shapes), ("stacks_", stacks)):
        if group:
            described[name + "smallest"] = np.min(group, axis=0).tolist()
            described[name + "median"] = np.median(group, axis=0).tolist()
            described[name + "largest"] = np.max(group, axis=0).tolist()
    return described


def spacings(findings: Sequence[Finding]) -> dict[str, Any] | None:
    """Smallest, median and largest spacing along each axis in mm; None for pictures."""
    known = [finding.spacing for finding in findings if finding.spacing is not None]
    if not known:
        return None
    return {
        "smallest": np.min(known, axis=0).tolist(),
        "median": np.median(known, axis=0).tolist(),
        "largest": np.max(known, axis=0).tolist(),
        "orientations": dict(Counter(finding.orientation for finding in findings if finding.orientation)),
    }


def label_shares(findings: Iterable[Finding], scheme: LabelScheme) -> list[dict[str, Any]]:
    """For each output: its share of all pixels, and in how many masks it occurs."""
    masks = [finding for finding in findings if finding.codes]
    pixels = sum(sum(finding.codes.values()) for finding in masks)
    rows = []
    for name, codes in scheme.items():
        counts = [sum(finding.codes.get(code, 0) for code in codes) for finding in masks]
        share = sum(counts) / pixels if pixels else 0.0
        cases = sum(count > 0 for count in counts)
        rows.append({"name": name, "codes": list(codes), "share": share, "cases": cases, "of": len(masks)})
    return rows


def intensities(survey: Survey, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """For each channel: the range over all images, and where the middle 99 % of most of them lie."""
    rows = []
    for number, name in enumerate(survey.channel_names()[: min(len(finding.channels) for finding in findings)]):
        channels = [finding.channels[number] for finding in findings]
        quantiles = np.median([channel.quantiles for channel in channels], axis=0)
        rows.append(
            {
                "name": name,
                "lowest": min(channel.low for channel in channels),
                "highest": max(channel.high for channel in channels),
                "highest_range": [min(channel.high for channel in channels), max(channel.high for channel in channels)],
                "median_of_quantiles": quantiles.tolist(),
                "mean_range": [min(channel.mean for channel in channels), max(channel.mean for channel in channels)],
            }
        )
    return rows


def as_json(inspection: Inspection) -> dict[str, Any]:
    found = inspection.survey
    collection = found.collection
    usable = [finding for finding in found.findings if finding.usable]
    scheme = found.scheme
    return {
        "location": collection.location,
        "format": collection.format,
        "dimensions": collection.dimensions,
        "cases": len(collection.cases),
        "labelled": len(collection.labelled()),
        "usable": len(usable),
        "subjects": len({case.subject or case.name for case in collection.cases}),
        "kinds": dict(Counter(finding.kind for finding in usable)),
        "pixels": collection.pixels,
        "grey": all(finding.grey for finding in usable),
        "sizes": sizes(usable) if usable else None,
        "spacing": spacings(usable),
        "scheme": scheme.as_json() if scheme is not None else None,
        "labels": label_shares(usable, scheme) if scheme is not None else [],
        "intensities": intensities(found, usable) if usable else [],
        "splits": _splits(inspection.splits),
        "problems": [problem._asdict() for problem in inspection.problems],
        "each": [_each(finding) for finding in found.findings],
    }


def _splits(splits: Splits | None) -> dict[str, Any] | None:
    if splits is None:
        return None
    sizes_of = {name: len(splits[name]) for name in SPLITS}
    return {"origin": splits.origin, "sizes": sizes_of, "left_out": list(splits.left_out), **splits.as_json()}


def _each(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.case.name,
        "file": str(finding.case),
        "subject": finding.case.subject,
        "shape": list(finding.shape),
        "spacing": list(finding.spacing) if finding.spacing is not None else None,
        "codes": {str(code): count for code, count in finding.codes.items()},
        "range": [[channel.low, channel.high] for channel in finding.channels],
    }

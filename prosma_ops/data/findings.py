"""Reads every case of a collection once: what it measures, and what is wrong with it, before anything is trained.

From the findings come the label scheme of masks that nobody described, the common spacing, and the statistics that
intensities are normalised by.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import nibabel
import numpy as np

from . import labels
from .case import BadFileError, Case, Collection, Problem
from .labels import LabelScheme
from .reading import Array, read_image, read_label, require_same_space

# Quantiles are of so many pixels of an image, evenly spread: a thousandth of them lies beyond the outermost.
SAMPLED = 100_000
# And so many of its foreground are kept, for the statistics of CT.
SAMPLED_FOREGROUND = 5_000
QUANTILES = (0.005, 0.5, 0.995)
# A class that so few cases have, of so many or more, is rather a slip of somebody's pen.
RARE, MANY = 1, 20
# Hounsfield units reach -1024 or so in air, which every CT shows, and no other modality has negative values as low.
AIR = -700


@dataclass(frozen=True)
class Channel:
    """The intensities of a channel of an image."""

    low: float
    high: float
    mean: float
    deviation: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """What one case holds. With errors among the problems, some of the rest may be missing."""

    case: Case
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] | None = None
    orientation: str = ""
    kind: str = ""
    channels: tuple[Channel, ...] = ()
    codes: Mapping[int, int] = field(default_factory=dict)
    coloured: bool = False
    palette: tuple[labels.Colour, ...] = ()
    digest: str = ""
    grey: bool = True
    foreground: np.ndarray | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def usable(self) -> bool:
        return not any(problem.severity == "error" for problem in self.problems)


# Findings as they come, and how many there will be; the same findings, with something shown meanwhile.
Progress = Callable[[Iterable[Finding], int], Iterable[Finding]]


def silent(findings: Iterable[Finding], total: int) -> Iterable[Finding]:
    return findings


@dataclass(frozen=True)
class Survey:
    """The findings of a collection, and what follows from all of them."""

    collection: Collection
    findings: tuple[Finding, ...]
    scheme: LabelScheme | None
    problems: tuple[Problem, ...]

    def usable(self) -> tuple[Finding, ...]:
        """Of the cases without errors; raises ValueError if there are none."""
        found = tuple(finding for finding in self.findings if finding.usable)
        if not found:
            first = next((problem for problem in self.problems if problem.severity == "error"), None)
            raise ValueError(f"{self.collection.location} has no usable case" + (f"; {first}" if first else ""))
        return found

    def required_scheme(self) -> LabelScheme:
        if self.scheme is None:
            first = next((problem for problem in self.problems if problem.severity == "error"), None)
            raise ValueError(f"{self.collection.location} has no labels" + (f"; {first}" if first else ""))
        return self.scheme

    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    def channel_names(self) -> tuple[str, ...]:
        """As dataset.json has them; without it, "CT" where values reach down to air, else nothing telling."""
        if self.collection.channels:
            return self.collection.channels
        found = self.usable()
        lows = np.median([[channel.low for channel in finding.channels] for finding in found], axis=0)
        return tuple("CT" if low <= AIR else f"channel {number}" for number, low in enumerate(lows))


def survey(collection: Collection, workers: int | None = None, progress: Progress = silent) -> Survey:
    """Reads every case, `workers` at a time; `progress` may wrap the findings as they come, in order."""
    if not collection.cases:
        problem = Problem("error", collection.location, f"holds no images ({collection.format or 'of any format'})")
        return Survey(collection, (), collection.scheme, (*collection.problems, problem))
    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda case: look(collection, case), collection.cases)
        findings = _with_odd_channels(list(progress(found, len(collection.cases))), len(collection.channels))
    scheme, about_labels = _scheme(collection, findings)
    if scheme is not None:
        findings = [_judged(finding, scheme) for finding in findings]
    each = [problem for finding in findings for problem in finding.problems]
    missing = _occurrences(findings, scheme) if scheme is not None else []
    problems = tuple(dict.fromkeys([*collection.problems, *each, *about_labels, *_duplicates(findings), *missing]))
    return Survey(collection, tuple(findings), scheme, problems)


def look(collection: Collection, case: Case) -> Finding:
    """What one case holds; never raises for a bad file."""
    try:
        image = read_image(case, collection.dimensions, collection.pixels)
    except BadFileError as error:
        return Finding(case, problems=(Problem("error", error.path, error.reason),))
    finding = _of_image(case, image)
    if case.label is None or not finding.usable:
        return finding
    try:
        mask = read_label(case, collection.dimensions)
        require_same_space(case.label, mask, case.images[0], image)
    except BadFileError as error:
        return replace(finding, problems=(*finding.problems, Problem("error", error.path, error.reason)))
    return _with_mask(finding, image, mask)


def _of_image(case: Case, image: Array) -> Finding:
    values, problems = image.values, []
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        what = "NaN" if np.isnan(values).any() else "infinity"
        problems.append(Problem("error", str(case), f"has {what} in {bad} of {values.size} pixels"))
    elif values.min() == values.max():
        problems.append(Problem("warning", str(case), f"is the same everywhere: {values.flat[0]:g}"))
    if image.spacing is not None and not all(0 < size < np.inf for size in image.spacing):
        problems.append(Problem("error", str(case), f"has the spacing {image.spacing} mm, which cannot be"))
    affine = image.affine
    if affine is not None and not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12):
        problems.append(Problem("error", str(case), "has an affine that maps the volume onto nothing"))
        affine = None
    return Finding(
        case,
        shape=image.space,
        spacing=image.spacing,
        orientation="" if affine is None else _orientation(affine),
        kind=str(values.dtype),
        channels=tuple(_channel(channel) for channel in values) if not problems or problems[0][0] == "warning" else (),
        digest=hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).hexdigest(),
        grey=len(values) == 1 or bool((values == values[:1]).all()),
        problems=tuple(problems),
    )


def _orientation(affine: np.ndarray) -> str:
    return "".join(nibabel.aff2axcodes(affine))


def _sample(values: np.ndarray, most: int) -> np.ndarray:
    return values[:: max(1, len(values) // most)]


def _channel(values: np.ndarray) -> Channel:
    quantiles = np.quantile(_sample(values.ravel(), SAMPLED), QUANTILES)
    mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return Channel(float(values.min()), float(values.max()), float(mean), float(deviation), tuple(quantiles.tolist()))


def _with_mask(finding: Finding, image: Array, mask: Array) -> Finding:
    coloured = mask.values.shape != mask.space
    codes = labels.pack(mask.values) if coloured else mask.values
    distinct, counts = labels.count(codes)
    inside = codes != 0
    foreground = np.stack([_sample(channel[inside], SAMPLED_FOREGROUND) for channel in image.values])
    problems = list(finding.problems)
    if not inside.any():
        problems.append(Problem("warning", str(finding.case.label), "is a mask of nothing but background"))
    palette = () if mask.colours is None else tuple((int(r), int(g), int(b)) for r, g, b in mask.colours)
    return replace(
        finding,
        codes=dict(zip(distinct, counts, strict=True)),
        coloured=coloured,
        palette=palette,
        foreground=foreground,
        problems=tuple(problems),
    )


def _scheme(collection: Collection, findings: Sequence[Finding]) -> tuple[LabelScheme | None, list[Problem]]:
    """That of dataset.json, or the one that the masks tell."""
    masks = [finding for finding in findings if finding.codes]
    if collection.scheme is not None or not masks:
        return collection.scheme, []
    most = max(masks, key=lambda finding: len(finding.codes))
    try:
        if any(finding.coloured for finding in masks):
            return labels.found_colours(code for finding in masks for code in _packed(finding)), []
        scheme = labels.found(code for finding in masks for code in finding.codes)
    except ValueError as error:
        return None, [Problem("error", str(most.case.label), str(error))]
    palette = next((finding.palette for finding in masks if finding.palette), ())
    return replace(scheme, colours=palette[: max(scheme.known()) + 1]), []


def _packed(finding: Finding) -> dict[int, int]:
    """The colours of a mask; those of a mask of grey values or with a palette, among masks in colours, likewise."""
    if finding.coloured:
        return dict(finding.codes)
    if finding.palette:
        return {int(labels.pack(np.array(finding.palette[code]))): count for code, count in finding.codes.items()}
    return {code * 0x010101: count for code, count in finding.codes.items()}


def _judged(finding: Finding, scheme: LabelScheme) -> Finding:
    """With codes as the scheme numbers them, and an error for each that it does not know."""
    if not finding.codes:
        return finding
    codes = finding.codes
    if scheme.coloured:
        number = {int(labels.pack(np.array(colour))): code for code, colour in enumerate(scheme.colours)}
        codes = {number.get(packed, -1): count for packed, count in _packed(finding).items()}
    if not (unknown := scheme.unknown(codes)):
        return replace(finding, codes=codes)
    known = ", ".join(str(code) for code in sorted(scheme.known()))
    message = f"has the labels {labels.listed(unknown)}, which are none of the classes ({known})"
    problem = Problem("error", str(finding.case.label), message)
    return replace(finding, codes=codes, problems=(*finding.problems, problem))


def _duplicates(findings: Iterable[Finding]) -> list[Problem]:
    same = defaultdict(list)
    for finding in findings:
        if finding.digest:
            same[finding.digest, finding.shape].append(str(finding.case))
    return [
        Problem("warning", other, f"is the same image as {first}")
        for first, *others in same.values()
        for other in others
    ]


def _with_odd_channels(findings: Sequence[Finding], declared: int) -> list[Finding]:
    """With an error for each image of another number of channels than is declared, or, if none is, than is usual."""
    counts = Counter(len(finding.channels) for finding in findings if finding.channels)
    wanted = declared or (counts.most_common(1)[0][0] if counts else 0)
    why = "where dataset.json names" if declared else "where most have"
    judged = []
    for finding in findings:
        if finding.channels and len(finding.channels) != wanted:
            message = f"has {len(finding.channels)} channels, {why} {wanted}"
            problem = Problem("error", str(finding.case), message)
            finding = replace(finding, problems=(*finding.problems, problem))
        judged.append(finding)
    return judged


def _occurrences(findings: Iterable[Finding], scheme: LabelScheme) -> list[Problem]:
    masks = [finding for finding in findings if finding.codes]
    problems = []
    for output in scheme.foreground:
        having = [finding for finding in masks if any(code in finding.codes for code in scheme.codes[output])]
        if not having and masks:
            place = str(masks[0].case.label).rpartition("/")[0]
            problems.append(Problem("warning", place, f"no mask has {scheme.names[output]!r}"))
        elif len(having) <= RARE and len(masks) >= MANY:
            message = f"is the only mask of {len(masks)} that has {scheme.names[output]!r}: is that a slip?"
            problems.append(Problem("warning", str(having[0].case.label), message))
    return problems

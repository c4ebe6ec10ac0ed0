"""Masks of images that nobody has labelled, in files like those that came in.

FOLDER/name.nii.gz or .png           the mask, with the affine and header of its source, or with a palette
FOLDER/overlays/name.png             the mask over the image; of a volume, over its slice with most foreground
FOLDER/probabilities/name.nii.gz     if asked for; .npz for pictures

One volume is in memory at a time, and every file is whole or not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..data import BadFileError, Case, Prepared, Problem, write_mask, write_overlay, write_probabilities
from ..data.case import File
from .processes import Processes
from .segmenting import Segmenter

SUFFIXES = (".nii.gz", ".png")


@dataclass(frozen=True)
class Prediction:
    """What became of one image: the files that were written, or why there are none."""

    case: Case
    files: tuple[Path, ...] = ()
    problem: Problem | None = None


def predict(
    segmenter: Segmenter,
    cases: Iterable[Case],
    folder: Path,
    *,
    probabilities: bool = False,
    overlays: bool = True,
    told: Callable[[Case], None] = lambda _: None,
) -> Iterator[Prediction]:
    """Each case in turn, as soon as its files are written; an image that cannot be read is no obstacle to the others.

    Raises `BadFileError` for what cannot be written, where the others would fail likewise. `told` hears of each case
    before its turn.
    """
    for case in cases:
        told(case)
        try:
            prepared = segmenter.preparation.image(case)
        except BadFileError as error:
            yield Prediction(case, problem=Problem("error", error.path, error.reason))
            continue
        found = segmenter.probabilities(prepared)
        codes = segmenter.codes(prepared, found)
        scheme, source = segmenter.preparation.scheme, prepared.source
        beside = []
        if overlays:
            path = folder / "overlays" / f"{case.name}.png"
            beside.append(write_overlay(path, source.values, codes, scheme))
        if probabilities:
            beside.append(_write_probabilities(segmenter, folder / "probabilities" / case.name, found, prepared))
        # The last, as who goes on later takes a case with a mask for done.
        mask = write_mask(folder / case.name, codes, scheme, source)
        yield Prediction(case, (mask, *beside))


def _write_probabilities(segmenter: Segmenter, path: Path, found: Tensor, prepared: Prepared) -> Path:
    return write_probabilities(path, segmenter.preparation.restore(found, prepared).numpy(), prepared.source)


def written(case: Case, folder: Path) -> Path | None:
    """The mask of a case, where an earlier prediction left one."""
    paths = [folder / f"{case.name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if path.exists()), None)


def remaining(cases: Sequence[Case], folder: Path, processes: Processes) -> list[Case]:
    """Those without a mask. The processes ask one another, so that none begins to write before all have looked: they
    would share out different cases."""
    there = set(processes.gathered([case.name for case in cases if written(case, folder) is not None]))
    return [case for case in cases if case.name not in there]


def require_other_files(cases: Sequence[Case], folder: Path) -> None:
    """Raises ValueError where a mask would take the place of an image."""
    for case in cases:
        for suffix in SUFFIXES:
            path = (folder / f"{case.name}{suffix}").resolve()
            if any(isinstance(source, File) and source.path.resolve() == path for source in case.images):
                raise ValueError(f"{path} is an image, and its mask would be written over it; choose another folder")

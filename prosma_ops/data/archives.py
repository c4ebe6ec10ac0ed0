"""Slices and volumes in .npz and .h5 files with lists, as the TransUNet family keeps Synapse and ACDC.

A file holds `image` and `label`. The lists (`train.txt`, `test_vol.txt`, `val.list`, ...) name the files of each split,
one a line, without suffix. Training files are slices (row, column), test files often stacks (slice, row, column).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .case import BadFileError, Case, Collection, File, Problem
from .names import files, split_of, subjects
from .reading import ARCHIVES, named, open_archive, stem_of, suffix_of

IMAGES = ("image", "img", "data")
LABELS = ("label", "mask", "seg")
LISTS = (".txt", ".list", ".lst")
DEPTH = 3


@dataclass(frozen=True)
class Contents:
    """What an archive holds: the names of its arrays and the dimensions of its label (of its image, without one)."""

    image: str
    label: str
    dimensions: int


def recognise(folder: Path) -> Collection | None:
    """None if there are no archives."""
    folders = [folder, *_folders(folder, DEPTH)]
    by_stem: dict[str, list[Path]] = {}
    for place in folders:
        for path in files(place, ARCHIVES):
            by_stem.setdefault(stem_of(path), []).append(path)
    if not by_stem:
        return None
    problems: list[Problem] = []
    chosen = _listed(folders, by_stem, problems) or _unlisted(folder, by_stem)
    contents = _contents(chosen, problems)
    dimensions = min((held.dimensions for held in contents.values()), default=2)
    known = subjects(stem_of(path) for path in chosen)
    cases = []
    for path, split in chosen.items():
        held = contents.get(_group(path), Contents("image", "label", dimensions))
        stem = stem_of(path)
        label = File(path, held.label) if held.label else None
        stack = held.dimensions > dimensions
        cases.append(Case(stem, (File(path, held.image),), label, split, known[stem] or stem, stack))
    every = {stem_of(path) for path in chosen}
    return Collection(
        location=str(folder),
        format="archives",
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        dimensions=dimensions,
        problems=tuple(problems),
        left_out=tuple(sorted(set(by_stem) - every)),
        folder=folder,
    )


def _folders(folder: Path, depth: int) -> Iterable[Path]:
    for path in sorted(folder.iterdir()) if depth else ():
        if path.is_dir() and not path.name.startswith("."):
            yield path
            yield from _folders(path, depth - 1)


def _listed(folders: Iterable[Path], by_stem: dict[str, list[Path]], problems: list[Problem]) -> dict[Path, str | None]:
    """The files that lists name. Of two lists for a split (train.list, train_slices.list) that of slices is taken."""
    lists: dict[str, Path] = {}
    every = (path for place in folders for path in place.iterdir() if path.suffix.lower() in LISTS)
    for path in sorted(every, key=lambda path: ("slice" not in path.stem.lower(), path.name)):
        if split := split_of(path.stem):
            lists.setdefault(split, path)
    chosen: dict[Path, str | None] = {}
    for split, path in lists.items():
        with named(path):
            entries = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        for entry in entries:
            stem = stem_of(Path(entry))
            found = by_stem.get(stem) or by_stem.get(Path(entry).name)
            if not found:
                problems.append(Problem("error", str(path), f"lists {entry}, but there is no such .npz or .h5 file"))
                continue
            file = found[0]
            if chosen.setdefault(file, split) != split:
                problems.append(Problem("error", str(file), f"is listed in {chosen[file]} and in {split}"))
        if not entries:
            problems.append(Problem("error", str(path), f"is empty: there is nothing in the split {split}"))
    return chosen


def _unlisted(folder: Path, by_stem: dict[str, list[Path]]) -> dict[Path, str | None]:
    """Without lists, every file, in the split that its folder is named after."""

    def split(path: Path) -> str | None:
        places = path.relative_to(folder).parts[:-1]
        return next((found for place in places if (found := split_of(place))), None)

    return {path: split(path) for paths in by_stem.values() for path in paths}


def _group(path: Path) -> tuple[Path, str]:
    return path.parent, suffix_of(path)


def _contents(paths: Iterable[Path], problems: list[Problem]) -> dict[tuple[Path, str], Contents]:
    """What the first file that opens, of each kind in each folder, holds: the others are made the same way."""
    contents: dict[tuple[Path, str], Contents] = {}
    for path in paths:
        if _group(path) in contents:
            continue
        try:
            contents[_group(path)] = _look(path)
        except BadFileError:  # told by name when it is read
            continue
    return contents


def _look(path: Path) -> Contents:
    with named(path), open_archive(path) as (names, get):
        image = next((name for name in IMAGES if name in names), "")
        label = next((name for name in LABELS if name in names), "")
        if not image:
            held = ", ".join(sorted(names)) or "nothing"
            raise BadFileError(path, f"has no array named {' or '.join(IMAGES)}; it holds {held}")
        return Contents(image, label, get(label or image).ndim)

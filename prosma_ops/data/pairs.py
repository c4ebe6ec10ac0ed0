"""Pairs images with masks by their names, and files with the image that they are a channel of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .case import Case, File, Problem
from .names import CHANNEL, files, split_of, subjects, without_mask_suffix
from .reading import NIFTI, PICTURES, stem_of

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
LABEL_FOLDERS = ("masks", "labels", "mask", "label", "segmentations", "annotations", "gt", "ground_truth")


@dataclass
class Pairs:
    """The cases of the folders seen so far, with each its place (a split, a subject, or ""), and what was odd."""

    format: str = ""
    found: list[tuple[str, Case]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.found or self.problems)

    def cases(self) -> list[Case]:
        """In the order of their names, with subjects. A name that several places have is led by its place's:
        "train/0001", "test/0001"."""
        often = Counter(case.name for _, case in self.found)
        known = subjects(case.name for _, case in self.found)
        whole = []
        for place, case in self.found:
            name = f"{place}/{case.name}" if place and often[case.name] > 1 else case.name
            subject = place if place and not split_of(place) else known[case.name]
            whole.append(replace(case, name=name, subject=subject))
        return sorted(whole, key=lambda case: case.name)

    def error(self, path: Path, message: str) -> None:
        self.problems.append(Problem("error", str(path), message))

    def warn(self, path: Path, message: str) -> None:
        self.problems.append(Problem("warning", str(path), message))

    def add(
        self,
        images: Path,
        masks: Path | None,
        suffixes: Sequence[str],
        split: str | None = None,
        place: str = "",
        channels: bool = False,
    ) -> None:
        """The images of a folder, each with the mask of its name; `channels`: every file is one, as nnU-Net has it."""
        of_image: dict[str, Path] = {}
        for path in files(masks, suffixes) if masks else ():
            for stem in dict.fromkeys((stem_of(path), without_mask_suffix(stem_of(path)))):
                of_image.setdefault(stem, path)
        groups = self.channels(files(images, suffixes), of_image, channels)
        for name, paths in groups.items():
            if name not in of_image and masks is not None:
                self.error(paths[0], f"has no mask in {masks}")
            label = File(of_image[name]) if name in of_image else None
            self.found.append((place, Case(name, tuple(File(path) for path in paths), label, split)))
        used = {of_image[name] for name in groups if name in of_image}
        for path in dict.fromkeys(of_image.values()):
            if path not in used:
                self.warn(path, f"is a mask without an image in {images}")
        if masks is None and split is None:
            self.error(images, f"has no masks beside it; a folder {' or '.join(LABEL_FOLDERS[:4])} is looked for")

    def channels(self, paths: Iterable[Path], masks: Mapping[str, Path], always: bool) -> dict[str, list[Path]]:
        """Files by their image's name: x_0000 is a channel of x if `always`, or if there is a mask x, none x_0000."""
        groups: dict[str, dict[str, Path]] = {}
        for path in paths:
            stem = stem_of(path)
            match = CHANNEL.match(stem)
            split = match is not None and (always or (stem not in masks and match["name"] in masks))
            name, channel = (match["name"], match["channel"]) if match and split else (stem, "")
            if channel in groups.setdefault(name, {}):
                self.error(path, f"has the same name as {groups[name][channel].name}")
            groups[name].setdefault(channel, path)
        most = max((len(found) for found in groups.values()), default=0)
        for name, found in groups.items():
            if len(found) < most:
                first = next(iter(found.values()))
                self.error(first, f"is of an image {name} with {len(found)} channels, where others have {most}")
        return {name: [found[channel] for channel in sorted(found)] for name, found in groups.items()}


def paired(folder: Path) -> Pairs:
    """Every folder of images with one of masks: side by side at the top or within train, val and test; or with folders
    of the same names in both, which are splits or subjects."""
    pairs = Pairs()
    for parent, split in _parents(folder):
        by_name = {path.name.lower(): path for path in parent.iterdir() if path.is_dir()}
        images = next((by_name[name] for name in IMAGE_FOLDERS if name in by_name), None)
        masks = next((by_name[name] for name in LABEL_FOLDERS if name in by_name), None)
        if images is None:
            continue
        _add(pairs, images, masks, split, split or "")
        for inner in sorted(path for path in images.iterdir() if path.is_dir()):
            beside = masks / inner.name if masks is not None and (masks / inner.name).is_dir() else None
            within = split_of(inner.name)
            _add(pairs, inner, beside, split or within, within or inner.name)
    return pairs


def _add(pairs: Pairs, images: Path, masks: Path | None, split: str | None, place: str) -> None:
    suffixes = NIFTI if files(images, NIFTI) else PICTURES
    if files(images, suffixes):
        pairs.format = "nifti" if suffixes == NIFTI else "pictures"
        pairs.add(images, masks, suffixes, split, place)


def _parents(folder: Path) -> Iterator[tuple[Path, str | None]]:
    yield folder, None
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (split := split_of(path.name)):
            yield path, split


def inputs(paths: Iterable[Path], channels: int = 1) -> list[Case]:
    """Images without masks, to be predicted: files, and all that folders hold. With several channels, files x_0000,
    x_0001, ... are one image; a file that holds all channels is one, too. Raises ValueError."""
    pairs = Pairs()
    listed: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist; an image or a folder of images is needed")
        listed += files(path, (*NIFTI, *PICTURES)) if path.is_dir() else [path]
    if not listed:
        raise ValueError(f"there are no images in {', '.join(str(path) for path in paths)}")
    numbered = channels > 1 and all(CHANNEL.match(stem_of(path)) for path in listed)
    groups = pairs.channels(listed, {}, numbered)
    if pairs.problems:
        raise ValueError(f"{pairs.problems[0].file} {pairs.problems[0].message}")
    return [Case(name, tuple(File(path) for path in found)) for name, found in groups.items()]

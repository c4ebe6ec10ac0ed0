"""Recognises, by looking, what a folder holds, and lists its cases.

- pictures: `images/` and `masks/` of PNG, TIFF or JPEG, at the top or in `train/`, `val/`, `test/`
- nifti: `images/` and `labels/` of .nii or .nii.gz, likewise
- decathlon, nnunet: `dataset.json` with `imagesTr/`, `labelsTr/`, and perhaps `imagesTs/`, `labelsTs/`
- archives: .npz and .h5 files with `image` and `label`, slices or volumes, and lists (`train.txt`, `test_vol.txt`)
- phantom: the word, with options, in place of a folder

A `dataset.json` in the manner of nnU-Net is honoured in the first two as well: it names channels, labels and regions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
from PIL import Image

from . import archives, labels
from .case import BadFileError, Case, Collection, File, Pixels, Problem
from .names import CHANNEL, files, split_of, subjects, without_mask_suffix
from .phantom import Phantom
from .reading import DAMAGED, NIFTI, PICTURES, stem_of, suffix_of

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "imagestr")
LABEL_FOLDERS = ("masks", "mask", "labels", "label", "segmentations", "annotations", "gt", "ground_truth", "labelstr")
COLOURED = frozenset({"CMYK", "HSV", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"})
EXPECTED = """\
  images/ and masks/ of PNG, TIFF or JPEG pictures of the same names
  images/ and labels/ of .nii.gz volumes of the same names
  dataset.json, imagesTr/ and labelsTr/ (Medical Segmentation Decathlon, nnU-Net)
  .npz or .h5 files with the arrays image and label, and lists (train.txt, test_vol.txt)
  the word `phantom` in place of a folder: generated images"""


def recognise(location: str | Path) -> Collection:
    """The cases at `location`, a folder or "phantom[:option=value,...]"; ValueError if it is none of the formats.

    Few files are opened: what is wrong inside them is told by `prosma_ops.data.inspection.inspect`.
    """
    folder = Path(location)
    if not folder.exists() and Phantom.describes(str(location)):
        return Phantom.parse(str(location)).collection()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}; the data is a folder with one of these in it:\n{EXPECTED}")
    description = _description(folder)
    named = (folder / "imagesTr").is_dir()
    listed = _decathlon(folder, description) if named else _paired(folder)
    if not listed:
        collection = archives.recognise(folder)
        if collection is None:
            held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise ValueError(f"{folder} holds none of the formats that are read, but {held}. These are:\n{EXPECTED}")
        return replace(collection, **_declared(folder, description))
    return _collection(folder, listed, description)


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadFileError(path, f"is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise BadFileError(path, f"holds a {type(content).__name__}, not an object with names")
    return content


def _declared(folder: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a collection that a dataset.json sets."""
    fields: dict[str, Any] = {}
    channels = description.get("channel_names", description.get("modality"))
    if isinstance(channels, Mapping):
        fields["channels"] = tuple(str(channels[key]) for key in sorted(channels, key=int))
    if isinstance(description.get("labels"), Mapping):
        try:
            fields["scheme"] = labels.declared(description["labels"], description.get("regions_class_order"))
        except ValueError as error:
            raise BadFileError(folder / "dataset.json", str(error)) from None
    return fields


class _Listed:
    """Files that were paired, and what was odd about them."""

    def __init__(self, format_name: str) -> None:
        self.format = format_name
        self.cases: list[Case] = []
        self.problems: list[Problem] = []

    def __bool__(self) -> bool:
        return bool(self.cases or self.problems)

    def add(self, cases: Iterable[Case]) -> None:
        self.cases.extend(cases)

    def error(self, path: Path, message: str) -> None:
        self.problems.append(Problem("error", str(path), message))

    def warn(self, path: Path, message: str) -> None:
        self.problems.append(Problem("warning", str(path), message))


def _collection(folder: Path, listed: _Listed, description: Mapping[str, Any]) -> Collection:
    cases = _distinct(listed.cases)
    known = subjects(case.name.rpartition("/")[2] for case in cases)
    cases = [replace(case, subject=known[case.name.rpartition("/")[2]]) for case in cases]
    images = [source.path for case in cases for source in case.images if isinstance(source, File)]
    pictures = [path for path in images if suffix_of(path) in PICTURES]
    return Collection(
        location=str(folder),
        format=listed.format,
        cases=tuple(cases),
        dimensions=2 if pictures or _flat(images) else 3,
        pixels=_pixels(pictures),
        problems=tuple(listed.problems),
        folder=folder,
        **_declared(folder, description),
    )


def _distinct(cases: Sequence[Case]) -> list[Case]:
    """Names that occur in more than one split are led by their split's: "train/0001", "test/0001"."""
    often = Counter(case.name for case in cases)
    led = [replace(case, name=f"{case.split}/{case.name}") if often[case.name] > 1 else case for case in cases]
    return sorted(led, key=lambda case: case.name)


def _pixels(pictures: Iterable[Path]) -> Pixels:
    """Colours, unless some pictures are grey: ultrasound is often stored as either, and means the same by it."""
    modes = {_mode(path) for path in pictures} - {""}
    return "colour" if modes and modes <= COLOURED else "grey"


def _mode(path: Path) -> str:
    """Pillow's name for how the pixels are stored; "" for a damaged file, which is told by name when it is read."""
    try:
        with Image.open(path) as opened:
            return str(opened.mode)
    except DAMAGED:
        return ""


def _flat(images: Iterable[Path]) -> bool:
    """Whether the first volume that opens is a single slice."""
    for path in images:
        try:
            opened = nibabel.load(path)
        except DAMAGED:
            continue
        if not isinstance(opened, nibabel.dataobj_images.DataobjImage):
            continue
        shape = opened.shape
        return len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
    return False


def _decathlon(folder: Path, description: Mapping[str, Any]) -> _Listed:
    """imagesTr and labelsTr, and imagesTs and labelsTs. Files _0000, _0001 are channels of one image, as in nnU-Net."""
    suffixes = (*NIFTI, *PICTURES)
    images = files(folder / "imagesTr", suffixes)
    channels = "channel_names" in description or "file_ending" in description
    channels = channels or bool(images and all(CHANNEL.match(stem_of(path)) for path in images))
    listed = _Listed("nnunet" if channels else "decathlon")
    if not (folder / "labelsTr").is_dir():
        listed.error(folder, "has imagesTr, but no labelsTr")
    for images_name, labels_name, split in (("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test")):
        if (folder / images_name).is_dir():
            labels_folder = folder / labels_name if (folder / labels_name).is_dir() else None
            _pair(listed, folder / images_name, labels_folder, suffixes, split, channels)
    _compare(listed, folder, description)
    return listed


def _compare(listed: _Listed, folder: Path, description: Mapping[str, Any]) -> None:
    """What dataset.json lists for training and is not there; files that it does not list are left in."""
    there = {source.path.name for case in listed.cases for source in case.images if isinstance(source, File)}
    training = description.get("training")
    for entry in training if isinstance(training, list) else ():
        name = entry.get("image") if isinstance(entry, dict) else entry
        if isinstance(name, str) and Path(name).name not in there and listed.format == "decathlon":
            listed.error(folder / name, "is listed in dataset.json, but there is no such file")


def _paired(folder: Path) -> _Listed:
    """Every folder of images beside one of labels: at the top, or within train, val and test."""
    listed = _Listed("")
    for parent, split in _parents(folder):
        by_name = {path.name.lower(): path for path in parent.iterdir() if path.is_dir()}
        images = next((by_name[name] for name in IMAGE_FOLDERS if name in by_name), None)
        masks = next((by_name[name] for name in LABEL_FOLDERS if name in by_name), None)
        if images is None:
            continue
        suffixes = NIFTI if files(images, NIFTI) else PICTURES
        if files(images, suffixes):
            listed.format = "nifti" if suffixes == NIFTI else "pictures"
            _pair(listed, images, masks, suffixes, split, channels=False)
    return listed


def _parents(folder: Path) -> Iterator[tuple[Path, str | None]]:
    yield folder, None
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (split := split_of(path.name)):
            yield path, split


def _pair(
    listed: _Listed,
    images: Path,
    masks: Path | None,
    suffixes: Sequence[str],
    split: str | None,
    channels: bool,
) -> None:
    """Adds the images of a folder, each with the mask of its name."""
    of_image: dict[str, Path] = {}
    for path in files(masks, suffixes) if masks else ():
        for stem in dict.fromkeys((stem_of(path), without_mask_suffix(stem_of(path)))):
            of_image.setdefault(stem, path)
    groups = _channels(listed, files(images, suffixes), of_image, channels)
    for name, paths in groups.items():
        if name not in of_image and masks is not None:
            listed.error(paths[0], f"has no mask in {masks}")
        label = File(of_image[name]) if name in of_image else None
        listed.add([Case(name, tuple(File(path) for path in paths), label, split)])
    used = {of_image[name] for name in groups if name in of_image}
    for path in dict.fromkeys(of_image.values()):
        if path not in used:
            listed.warn(path, f"is a mask without an image in {images}")
    if masks is None and split is None:
        listed.error(images, f"has no folder of masks beside it; one of {', '.join(LABEL_FOLDERS[:4])} is looked for")


def _channels(listed: _Listed, paths: Iterable[Path], masks: Mapping[str, Path], always: bool) -> dict[str, list[Path]]:
    """Files by their image's name: x_0000 is a channel of x if `always`, or if there is a mask x and none x_0000."""
    groups: dict[str, dict[str, Path]] = {}
    for path in paths:
        stem = stem_of(path)
        match = CHANNEL.match(stem)
        split = match is not None and (always or (stem not in masks and match["name"] in masks))
        name, channel = (match["name"], match["channel"]) if match and split else (stem, "")
        if channel in groups.setdefault(name, {}):
            listed.error(path, f"has the same name as {groups[name][channel].name}")
        groups[name].setdefault(channel, path)
    most = max((len(found) for found in groups.values()), default=0)
    for name, found in groups.items():
        if len(found) < most:
            first = next(iter(found.values()))
            listed.error(first, f"is of an image {name} with {len(found)} channels, where others have {most}")
    return {name: [found[channel] for channel in sorted(found)] for name, found in groups.items()}

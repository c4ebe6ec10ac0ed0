"""Recognises, by looking, what a folder holds, and lists its cases.

- pictures: `images/` and `masks/` of PNG, TIFF or JPEG, at the top or in `train/`, `val/`, `test/`
- nifti: `images/` and `labels/` of .nii or .nii.gz, likewise; in both, folders within them are splits or subjects
- decathlon, nnunet: `dataset.json` with `imagesTr/`, `labelsTr/`, and perhaps `imagesTs/`, `labelsTs/`
- archives: .npz and .h5 files with `image` and `label`, slices or volumes, and lists (`train.txt`, `test_vol.txt`)
- phantom: the word, with options, in place of a folder

A `dataset.json` in the manner of nnU-Net is honoured in the first two as well: it names channels, labels and regions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
from PIL import Image

from . import archives, labels
from .case import BadFileError, Collection, File, Pixels
from .names import CHANNEL, files
from .pairs import Pairs, paired
from .phantom import Phantom
from .reading import NIFTI, PICTURES, stem_of, suffix_of

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
    pairs = _decathlon(folder, description) if named else paired(folder)
    if not pairs:
        collection = archives.recognise(folder)
        if collection is None:
            held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise ValueError(f"{folder} holds none of the formats that are read, but {held}. These are:\n{EXPECTED}")
        return replace(collection, **_declared(folder, description))
    return _collection(folder, pairs, description)


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
    try:
        if isinstance(channels, Mapping):
            fields["channels"] = tuple(str(channels[key]) for key in sorted(channels, key=int))
        if isinstance(description.get("labels"), Mapping):
            fields["scheme"] = labels.declared(description["labels"], description.get("regions_class_order"))
    except ValueError as error:
        raise BadFileError(folder / "dataset.json", str(error)) from None
    return fields


def _collection(folder: Path, pairs: Pairs, description: Mapping[str, Any]) -> Collection:
    cases = pairs.cases()
    images = [source.path for case in cases for source in case.images if isinstance(source, File)]
    pictures = [path for path in images if suffix_of(path) in PICTURES]
    return Collection(
        location=str(folder),
        format=pairs.format,
        cases=tuple(cases),
        dimensions=2 if pictures or _flat(images) else 3,
        pixels=_pixels(pictures),
        problems=tuple(pairs.problems),
        folder=folder,
        **_declared(folder, description),
    )


def _pixels(pictures: Iterable[Path]) -> Pixels:
    """Colours, unless some pictures are grey: ultrasound is often stored as either, and means the same by it."""
    modes = {_mode(path) for path in pictures} - {""}
    return "colour" if modes and modes <= COLOURED else "grey"


def _mode(path: Path) -> str:
    """Pillow's name for how the pixels are stored; "" for a damaged file, which is told by name when it is read."""
    try:
        with Image.open(path) as opened:
            return str(opened.mode)
    except Exception:  # as in `reading.named`
        return ""


def _flat(images: Iterable[Path]) -> bool:
    """Whether the first volume that opens is a single slice."""
    for path in images:
        try:
            opened = nibabel.load(path)
        except Exception:  # told by name when it is read
            continue
        if not isinstance(opened, nibabel.dataobj_images.DataobjImage):
            continue
        shape = opened.shape
        return len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
    return False


def _decathlon(folder: Path, description: Mapping[str, Any]) -> Pairs:
    """imagesTr and labelsTr, and imagesTs and labelsTs. Files _0000, _0001 are channels of one image, as in nnU-Net."""
    suffixes = (*NIFTI, *PICTURES)
    images = files(folder / "imagesTr", suffixes)
    channels = "channel_names" in description or "file_ending" in description
    channels = channels or bool(images and all(CHANNEL.match(stem_of(path)) for path in images))
    pairs = Pairs("nnunet" if channels else "decathlon")
    if not (folder / "labelsTr").is_dir():
        pairs.error(folder, "has imagesTr, but no labelsTr")
    for images_name, labels_name, split in (("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test")):
        if (folder / images_name).is_dir():
            labels_folder = folder / labels_name if (folder / labels_name).is_dir() else None
            pairs.add(folder / images_name, labels_folder, suffixes, split, split or "", channels)
    _compare(pairs, folder, description)
    return pairs


def _compare(pairs: Pairs, folder: Path, description: Mapping[str, Any]) -> None:
    """What dataset.json lists for training and is not there; files that it does not list are left in."""
    there = {source.path.name for _, case in pairs.found for source in case.images if isinstance(source, File)}
    training = description.get("training")
    for entry in training if isinstance(training, list) else ():
        name = entry.get("image") if isinstance(entry, dict) else entry
        if isinstance(name, str) and Path(name).name not in there and pairs.format == "decathlon":
            pairs.error(folder / name, "is listed in dataset.json, but there is no such file")

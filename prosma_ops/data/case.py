"""What a folder of images holds: cases, each an image and perhaps a label, and what was found wrong with them.

Nothing here opens a file: `prosma_ops.data.formats` lists cases, `prosma_ops.data.reading` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from .labels import LabelScheme
    from .phantom import Phantom

SPLITS = ("train", "val", "test")

Member = Literal["image", "label"]
Pixels = Literal["grey", "colour", "codes"]


class BadFileError(ValueError):
    """A file that cannot be used; the message names it and says what is wrong."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadFileError], tuple[str, str]]:
        return BadFileError, (self.path, self.reason)  # so that it survives the way out of a worker process


@dataclass(frozen=True)
class File:
    """An array in a file: the whole file, or the member of that name in an .npz or .h5 archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}[{self.member}]" if self.member else str(self.path)


@dataclass(frozen=True)
class Generated:
    """An array that a phantom makes."""

    phantom: Phantom
    index: int
    member: Member

    def __str__(self) -> str:
        return f"{self.phantom}[{self.index}].{self.member}"


Source = File | Generated


@dataclass(frozen=True)
class Case:
    """One image to be segmented.

    name: unique in its collection; what a prediction is called.
    images: one source a channel, or one that holds all channels.
    label: None where there is none, as in a test set without masks.
    split: "train", "val" or "test" where the layout of the folder says it.
    subject: whom it shows, where the name tells; cases of one subject are never parted by a split.
    stack: a stack of slices (slice, row, column) of an otherwise two-dimensional collection.
    """

    name: str
    images: tuple[Source, ...]
    label: Source | None = None
    split: str | None = None
    subject: str | None = None
    stack: bool = False

    def __str__(self) -> str:
        return str(self.images[0])


class Problem(NamedTuple):
    """Something wrong with a file. An error stops a training before it starts; a warning does not."""

    severity: Literal["error", "warning"]
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.file}: {self.message}"


@dataclass(frozen=True)
class Collection:
    """The cases of a folder, or of a phantom.

    location: the folder, or the phantom's description.
    format: "pictures", "decathlon", "nnunet", "nifti", "archives" or "phantom".
    dimensions: 2 or 3, of the images that a network sees.
    channels: their names as dataset.json gives them ("CT", "FLAIR", ...), or ().
    scheme: the labels as dataset.json declares them; None where the masks alone tell.
    pixels: how pictures are read: "grey" if any of them is grey, else "colour".
    problems: what was wrong with the listing, before any image was read.
    left_out: files that no list names.
    folder: None of a phantom.
    """

    location: str
    format: str
    cases: tuple[Case, ...]
    dimensions: int
    channels: tuple[str, ...] = ()
    scheme: LabelScheme | None = None
    pixels: Pixels = "grey"
    problems: tuple[Problem, ...] = ()
    left_out: tuple[str, ...] = ()
    folder: Path | None = None

    def labelled(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.label is not None)

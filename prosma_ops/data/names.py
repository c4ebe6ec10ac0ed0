"""What file names tell: which mask belongs to which image, which files are channels of one image, and whom it shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .reading import suffix_of

# "liver_12_0003": channel 3 of the image "liver_12", as nnU-Net names it.
CHANNEL = re.compile(r"^(?P<name>.+)_(?P<channel>\d{4})$")
MASK = re.compile(
    r"[-_. ](?:mask|seg|segmentation|label|labels|gt|groundtruth|ground[-_]truth|lesion|anno)$", re.IGNORECASE
)
SPLIT = re.compile(
    r"^(?:(?P<train>train|training|tr)|(?P<val>val|valid|validation)|(?P<test>test|testing|ts))(?![a-z])", re.IGNORECASE
)

# Names that begin with a subject, as BIDS, ACDC, Synapse and many others write them.
SUBJECTS = (
    re.compile(r"^(sub-[A-Za-z0-9]+)"),
    re.compile(r"^((?:patient|case|subject|subj|pat|volunteer|donor|animal|p|s)[-_ ]?\d+)(?=[-_ .])", re.IGNORECASE),
    re.compile(
        r"^(.+?)[-_ ](?:slice|frame|view|visit|ses|session|time|z|t)[-_ ]?[A-Za-z]{0,3}[-_ ]?\d+", re.IGNORECASE
    ),
)
# "12_3", "12_4", "13_1": a number of a subject and one of an image, if the first repeats.
NUMBERED = re.compile(r"^(.*\d)[-_]\d+$")
FEWEST_SUBJECTS = 5


def files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of these kinds in the order of their names, without hidden ones (archives from macOS hold "._x")."""
    found = (path for path in folder.iterdir() if not path.name.startswith(".") and suffix_of(path) in suffixes)
    return sorted(path for path in found if path.is_file())


def split_of(name: str) -> str | None:
    """ "train", "val" or "test" if that is how the name of a folder or a list begins."""
    match = SPLIT.match(name)
    return match.lastgroup if match else None


def without_mask_suffix(stem: str) -> str:
    return MASK.sub("", stem)


def subjects(stems: Iterable[str]) -> dict[str, str | None]:
    """Whom each image shows, where its name tells; None where it does not."""
    known = {stem: next((match[1] for pattern in SUBJECTS if (match := pattern.match(stem))), None) for stem in stems}
    if known and not any(known.values()):
        matches = {stem: NUMBERED.match(stem) for stem in known}
        groups = {match[1] for match in matches.values() if match}
        if all(matches.values()) and FEWEST_SUBJECTS <= len(groups) < len(known):
            return {stem: match[1] for stem, match in matches.items() if match}
    return known

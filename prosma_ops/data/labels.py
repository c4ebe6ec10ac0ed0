"""What the values of masks mean: classes that exclude one another, or regions that may overlap, and pixels to ignore.

A mask has codes: the integers, indices or colours in its file. A scheme maps codes to what a network is trained on
(`encode`: class numbers, or one channel a region) and predictions back to codes (`decode`), both by a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

IGNORED = 255  # what `encode` writes where the label is to be ignored; the losses take it as `ignore_index`
BINARY = (0, 255)
# Codes up to here are taken for class numbers even where some of them occur in no mask (Synapse uses 8 of 13).
LARGEST_CLASS = 63
# More distinct colours or codes are no classes: a photograph, or a JPEG with its blurred edges.
MOST_CODES = 32

COLOURS = (
    (0, 0, 0),
    (230, 75, 53),
    (77, 187, 213),
    (0, 160, 135),
    (249, 199, 79),
    (126, 97, 180),
    (243, 155, 127),
    (60, 84, 136),
    (145, 209, 94),
    (224, 122, 195),
    (160, 130, 90),
    (220, 220, 120),
    (120, 150, 170),
)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LabelScheme:
    """What a mask's codes mean.

    names: of the network's outputs: the classes, background first, or the regions.
    codes: for each output the codes that belong to it. Classes share none; regions may.
    regions: whether outputs overlap (sigmoid) or exclude one another (softmax).
    ignore: the codes of pixels that count nowhere.
    colours: the colour of code i, where masks are pictures in colours or with a palette.
    coloured: whether a mask's file holds these colours themselves rather than indices.
    written: the code that a prediction of output i is written as, later ones over earlier ones; by default its first.
    """

    names: tuple[str, ...]
    codes: tuple[tuple[int, ...], ...]
    regions: bool = False
    ignore: tuple[int, ...] = ()
    colours: tuple[Colour, ...] = ()
    coloured: bool = False
    written: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.codes) or not self.names:
            raise ValueError(f"a label scheme has {len(self.names)} names {self.names} for {len(self.codes)} outputs")
        if any(not codes for codes in self.codes):
            raise ValueError(f"every output of a label scheme needs a code; it has {dict(self.items())}")
        flat = [code for codes in self.codes for code in codes]
        if not self.regions and len(set(flat)) < len(flat):
            raise ValueError(f"classes share a code: {dict(self.items())}; what overlaps are regions")
        if set(flat) & set(self.ignore):
            raise ValueError(f"{set(flat) & set(self.ignore)} is both a class and ignored: {dict(self.items())}")
        if self.written and len(self.written) != len(self.names):
            raise ValueError(f"{len(self.names)} outputs are written as {len(self.written)} codes")

    def __str__(self) -> str:
        kind = "regions" if self.regions else "classes"
        ignored = f", ignoring {', '.join(map(str, self.ignore))}" if self.ignore else ""
        return f"{len(self.names)} {kind}{ignored}"

    def items(self) -> Iterable[tuple[str, tuple[int, ...]]]:
        return zip(self.names, self.codes, strict=True)

    @property
    def outputs(self) -> int:
        """How many channels a network needs."""
        return len(self.names)

    @property
    def foreground(self) -> tuple[int, ...]:
        """The outputs that are evaluated: all regions, or all classes but the background."""
        return tuple(range(0 if self.regions else 1, self.outputs))

    def known(self) -> frozenset[int]:
        """Every code that a mask may have."""
        background = {0} if self.regions else set()
        return frozenset({code for codes in self.codes for code in codes} | set(self.ignore) | background)

    def unknown(self, codes: Iterable[int]) -> list[int]:
        return sorted(set(codes) - self.known())

    def encode(self, mask: np.ndarray) -> np.ndarray:
        """uint8: class numbers (*spatial), or regions (outputs, *spatial) of 0 and 1; `IGNORED` where to ignore.

        Raises ValueError where the mask has a code that the scheme does not know.
        """
        codes = self.indices(mask)
        distinct, _ = count(codes)
        if unknown := self.unknown(distinct):
            known = ", ".join(str(code) for code in sorted(self.known()))
            if self.coloured:
                raise ValueError(f"has colours that are none of the classes ({', '.join(self.names)})")
            raise ValueError(f"has the labels {listed(unknown)}, which are none of the classes ({known})")
        table = np.zeros((self.outputs, max(distinct) + 1), np.uint8)
        for output, own in enumerate(self.codes):
            table[output, [code for code in own if code in distinct]] = 1
        ignored = [code for code in self.ignore if code in distinct]
        if self.regions:
            table[:, ignored] = IGNORED
            return np.stack([row[codes] for row in table])
        classes = table.argmax(0).astype(np.uint8)
        classes[ignored] = IGNORED
        encoded: np.ndarray = classes[codes]
        return encoded

    def indices(self, mask: np.ndarray) -> np.ndarray:
        """A mask in colours (*spatial, 3) as codes: the index of each colour, or -1; other masks as they are."""
        if not self.coloured:
            return mask
        if mask.shape[-1:] != (3,):
            mask = np.repeat(mask[..., None], 3, -1)
        packed = pack(mask)
        known = np.array([pack(np.array(colour)) for colour in self.colours])
        order = np.argsort(known)
        place = np.searchsorted(known, packed, sorter=order).clip(max=len(known) - 1)
        found: np.ndarray = np.where(known[order[place]] == packed, order[place], -1)
        return found

    def decode(self, prediction: np.ndarray) -> np.ndarray:
        """Class numbers (*spatial), or regions (outputs, *spatial) of 0 and 1, as codes."""
        written = self.written or tuple(codes[0] for codes in self.codes)
        kind = np.uint8 if max(written) <= 255 else np.int32
        if not self.regions:
            return np.asarray(np.array(written, kind)[prediction])
        mask = np.zeros(prediction.shape[1:], kind)
        for code, region in zip(written, prediction, strict=True):
            mask[region.astype(bool)] = code
        return mask

    def palette(self) -> tuple[Colour, ...]:
        """A colour for each code up to the largest: the masks' own where they have some, else one an output."""
        colours = [COLOURS[0]] * (max(self.known()) + 1)
        for place, output in enumerate(self.foreground):
            for code in (self.written[output],) if self.written else self.codes[output]:
                colours[code] = COLOURS[1 + place % (len(COLOURS) - 1)]
        return (*self.colours[: len(colours)], *colours[len(self.colours) :])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> LabelScheme:
        def frozen(value: Any) -> Any:
            return tuple(frozen(part) for part in value) if isinstance(value, list | tuple) else value

        return cls(**{name: frozen(value) for name, value in fields.items()})


def count(codes: np.ndarray) -> tuple[list[int], list[int]]:
    """The distinct codes of a mask, and how many pixels have each. Small ones are counted without sorting them."""
    if codes.size and codes.min() >= 0 and codes.max() <= 0xFFFF:
        counts = np.bincount(codes.ravel())
        distinct = counts.nonzero()[0]
        return distinct.tolist(), counts[distinct].tolist()
    distinct, counts = np.unique(codes, return_counts=True)
    return distinct.tolist(), counts.tolist()


def pack(colours: np.ndarray) -> np.ndarray:
    """(..., 3) colours as one integer each."""
    red, green, blue = (colours[..., channel].astype(np.int64) for channel in range(3))
    return (red << 16) | (green << 8) | blue


def unpack(packed: int) -> Colour:
    return packed >> 16, (packed >> 8) & 255, packed & 255


def listed(codes: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(str(code) for code in codes[:most])
    return f"{shown}, ... ({len(codes)} of them)" if len(codes) > most else shown


def declared(labels: Mapping[str, Any], order: Sequence[int] | None = None) -> LabelScheme:
    """The scheme of a dataset.json: {"0": "background", "1": "liver"} (Decathlon), {"background": 0, "whole": [1, 2]}
    (nnU-Net; several numbers to a name are regions), "ignore" among the names."""
    if labels and all(name.isdigit() for name in labels):
        named: dict[str, Any] = {str(name): int(code) for code, name in labels.items()}
    else:
        named = dict(labels)
    codes = {name: _codes(name, value) for name, value in named.items()}
    ignore = codes.pop("ignore", ())
    if regions := any(len(own) > 1 for own in codes.values()):
        codes = {name: own for name, own in codes.items() if own != (0,)}
        written = tuple(int(code) for code in order) if order else _written(codes)
    else:
        codes = dict(sorted(codes.items(), key=lambda item: item[1]))
        written = ()
    return LabelScheme(tuple(codes), tuple(codes.values()), regions, ignore, written=written)


def _codes(name: str, value: Any) -> tuple[int, ...]:
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"the label {name!r} is {value!r}; it must be a whole number or a list of them")
    return tuple(numbers)


def _written(codes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """For nested regions, each the code that no later one claims: (1, 2, 3), (2, 3), (3) are written 1, 2, 3."""
    remaining = list(codes.values())
    written = []
    for place, own in enumerate(remaining):
        later = {code for other in remaining[place + 1 :] for code in other}
        written.append(next((code for code in own if code not in later), own[0]))
    return tuple(written)


def found(codes: Iterable[int]) -> LabelScheme:
    """The scheme of masks that nobody described, from all codes in them.

    0 and 255 are background and foreground; 255 beside small numbers is ignored; small numbers are class numbers,
    all up to the largest; any others, few, are classes in their order. Raises ValueError for many large codes.
    """
    distinct = sorted(set(codes) | {0})
    if tuple(distinct) == BINARY:
        return LabelScheme(("background", "class 1"), ((0,), (255,)))
    ignore = (IGNORED,) if distinct[-1] == IGNORED and distinct[-2] <= LARGEST_CLASS and len(distinct) > 2 else ()
    classes = distinct[: len(distinct) - len(ignore)]
    if classes[0] >= 0 and classes[-1] <= LARGEST_CLASS:
        classes = list(range(max(classes[-1], 1) + 1))
    elif len(classes) > MOST_CODES:
        raise ValueError(f"masks have {len(classes)} different values ({listed(classes)}): these are no classes")
    names = ("background", *(f"class {number}" for number in range(1, len(classes))))
    if 0 in classes[1:]:  # negative codes; the background stays first
        classes = [0, *(code for code in classes if code)]
    return LabelScheme(names, tuple((code,) for code in classes), ignore=ignore)


def found_colours(packed: Iterable[int]) -> LabelScheme:
    """The scheme of masks in colours: black is the background, the others are classes in the order of their numbers.

    Raises ValueError for many colours.
    """
    distinct = sorted(set(packed) | {0})
    if len(distinct) > MOST_CODES:
        raise ValueError(f"masks have {len(distinct)} different colours; at most {MOST_CODES} are taken for classes")
    colours = tuple(unpack(colour) for colour in distinct)
    names = ("background", *("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours[1:]))
    codes = tuple((code,) for code in range(len(colours)))
    return LabelScheme(names, codes, colours=colours, coloured=True)

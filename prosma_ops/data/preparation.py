"""From a case's files to what a network sees, and from a network's scores back to the grid of the files.

image -> nearest axes to right, anterior, superior (volumes) -> common spacing, or common size -> normalised, float32
scores -> size of the source -> axes of the source -> codes of the masks

A preparation is decided once, on training cases, and written to the run, so that prediction does the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensity, Orientation, Resize
from torch import Tensor

from .case import BadFileError, Case, Pixels
from .findings import Finding, Survey
from .labels import LabelScheme
from .reading import Array, read_image, read_label, require_same_space

AXES = (("L", "R"), ("P", "A"), ("I", "S"))
CANONICAL = "RAS"
Number = TypeVar("Number", int, float)
LINEAR = {2: "bilinear", 3: "trilinear"}
# Pictures of several sizes are brought to the median one, but to none with longer sides than this.
LONGEST_SIDE = 512


@dataclass(frozen=True)
class Normalisation:
    """How a channel's intensities are brought to a mean of about 0 and a deviation of about 1.

    z-score: by the image's own mean and deviation; `nonzero`, over the pixels that are not 0, which stay 0.
    ct: clipped to low and high, then by mean and deviation: those of the foreground of all training images.
    """

    kind: Literal["z-score", "ct"] = "z-score"
    nonzero: bool = False
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, channel: Tensor) -> Tensor:
        if self.kind == "ct":
            clipped = channel.clamp(self.low, self.high)
            return plain(NormalizeIntensity(subtrahend=self.mean, divisor=self.deviation)(clipped))
        return plain(NormalizeIntensity(nonzero=self.nonzero)(channel))


class Prepared(NamedTuple):
    """An image as a network sees it, (channels, *space) float32, and what leads back: see `Preparation.restore`."""

    image: Tensor
    affine: Tensor
    source: Array


@dataclass(frozen=True)
class Preparation:
    """What is done to every image. `Preparation.of` decides it; the fields may then be replaced.

    dimensions: 2 or 3.
    channels: their names.
    scheme: what the network's outputs mean.
    normalisation: one a channel.
    spacing: mm a voxel and axis, of volumes; None leaves the voxels as they are.
    size: of every picture; None leaves the pixels as they are.
    pixels: how pictures are read.
    """

    dimensions: int
    channels: tuple[str, ...]
    scheme: LabelScheme
    normalisation: tuple[Normalisation, ...]
    spacing: tuple[float, ...] | None = None
    size: tuple[int, ...] | None = None
    pixels: Pixels = "grey"

    def __post_init__(self) -> None:
        if len(self.normalisation) != len(self.channels):
            raise ValueError(
                f"{len(self.channels)} channels need as many normalisations, not {len(self.normalisation)}"
            )
        for name in ("spacing", "size"):
            given = getattr(self, name)
            if given is not None and (len(given) != self.dimensions or not all(0 < part < math.inf for part in given)):
                raise ValueError(f"{name} must be {self.dimensions} positive numbers, got {given}")

    @classmethod
    def of(cls, survey: Survey, cases: Sequence[Case] | None = None) -> Preparation:
        """What suits these cases (the training split; by default all): the median spacing, or the pictures' median
        size; CT by its foreground, everything else by each image's own mean and deviation."""
        names = None if cases is None else {case.name for case in cases}
        found = [finding for finding in survey.usable() if names is None or finding.case.name in names]
        if not found:
            raise ValueError(f"none of the {len(names or ())} cases is usable; `prosma-ops inspect` tells why")
        channels = survey.channel_names()
        dimensions = survey.collection.dimensions
        return cls(
            dimensions=dimensions,
            channels=channels,
            scheme=survey.required_scheme(),
            normalisation=tuple(_normalisation(found, number, name) for number, name in enumerate(channels)),
            spacing=_spacing(found) if dimensions == 3 else None,
            size=_size(found) if dimensions == 2 else None,
            pixels=survey.collection.pixels,
        )

    def image(self, case: Case) -> Prepared:
        """Raises `BadFileError`."""
        source = read_image(case, self.dimensions, self.pixels)
        if len(source.values) != len(self.channels):
            reason = f"has {len(source.values)} channels; {len(self.channels)} are needed: {', '.join(self.channels)}"
            raise BadFileError(str(case), reason)
        values = torch.from_numpy(np.ascontiguousarray(source.values, np.float32))
        if not values.isfinite().all():
            raise BadFileError(str(case), "has NaN or infinity in it")
        turned, affine = _turned(values, _affine(source), axes_of(source), CANONICAL)
        resized = self._resized(turned, source, LINEAR[turned.ndim - 1])
        channels = [normalise(channel) for normalise, channel in zip(self.normalisation, resized, strict=True)]
        return Prepared(torch.stack(channels), affine, source)

    def label(self, case: Case, image: Array) -> Tensor:
        """On the grid of the prepared image: uint8, classes (1, *space) or regions (outputs, *space)."""
        codes = torch.from_numpy(self.truth(case, image))
        values = codes if self.scheme.regions else codes[None]
        turned, _ = _turned(values, _affine(image), axes_of(image), CANONICAL)
        return self._resized(turned, image, "nearest-exact").to(torch.uint8).contiguous()

    def truth(self, case: Case, image: Array) -> np.ndarray:
        """On the grid of the files: uint8, classes (*space) or regions (outputs, *space). Raises `BadFileError`."""
        if case.label is None:
            raise BadFileError(str(case), "has no mask")
        mask = read_label(case, self.dimensions)
        require_same_space(case.label, mask, case.images[0], image)
        try:
            return self.scheme.encode(mask.values)
        except ValueError as error:
            raise BadFileError(str(case.label), str(error)) from None

    def __call__(self, case: Case) -> dict[str, Tensor]:
        """{"image": ..., "label": ...} of one case, for a training."""
        prepared = self.image(case)
        return {"image": prepared.image, "label": self.label(case, prepared.source)}

    def restore(self, scores: Tensor, prepared: Prepared) -> Tensor:
        """Scores (outputs, *space of the prepared image), probabilities or logits, on the grid of the source."""
        if scores.shape[1:] != prepared.image.shape[1:]:
            wanted = tuple(prepared.image.shape[1:])
            raise ValueError(f"scores of shape {tuple(scores.shape)} do not belong to a prepared image of {wanted}")
        source = prepared.source
        values = _resize(scores.detach().float().cpu(), along(source.space, axes_of(source)), LINEAR[len(source.space)])
        turned, _ = _turned(values, prepared.affine, CANONICAL, axes_of(source))
        return turned.contiguous()

    def codes(self, scores: Tensor, prepared: Prepared, threshold: float = 0.5) -> np.ndarray:
        """The mask that probabilities mean, in the codes of the masks and on the grid of the source."""
        restored = self.restore(scores, prepared)
        if self.scheme.regions:
            return self.scheme.decode((restored > threshold).numpy())
        return self.scheme.decode(restored.argmax(0).numpy())

    def shape(self, shape: Sequence[int], spacing: Sequence[float] | None) -> tuple[int, ...]:
        """The shape of a prepared image, from that of its source (with its axes turned) and its spacing."""
        stacked = tuple(shape[: len(shape) - self.dimensions])
        own = tuple(shape[len(stacked) :])
        if self.size is not None:
            return stacked + tuple(self.size)
        if self.spacing is None or spacing is None:
            return stacked + own
        sizes = zip(own, spacing, self.spacing, strict=True)
        return stacked + tuple(max(1, round(size * now / wanted)) for size, now, wanted in sizes)

    def _resized(self, values: Tensor, source: Array, mode: str) -> Tensor:
        spacing = None if source.spacing is None else along(source.spacing, axes_of(source))
        return _resize(values, self.shape(values.shape[1:], spacing), mode, blur=mode in LINEAR.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Preparation:
        given = dict(fields)
        given["scheme"] = LabelScheme.from_json(given["scheme"])
        given["normalisation"] = tuple(Normalisation(**each) for each in given["normalisation"])
        for name in ("channels", "spacing", "size"):
            given[name] = None if given[name] is None else tuple(given[name])
        return cls(**given)


def plain(values: Any) -> Tensor:
    """Without what MONAI keeps of a tensor's history."""
    return torch.as_tensor(values.as_tensor() if isinstance(values, MetaTensor) else values)


def axes_of(source: Array) -> str:
    """The directions of a volume's axes, such as LPS; "" for what has no place in space, or other than 3 dimensions."""
    if source.affine is None or len(source.space) != 3:
        return ""
    return "".join(nibabel.aff2axcodes(source.affine))


def _affine(source: Array) -> Tensor:
    return torch.eye(4, dtype=torch.float64) if source.affine is None else torch.from_numpy(source.affine)


def _turned(values: Tensor, affine: Tensor, before: str, after: str) -> tuple[Tensor, Tensor]:
    """With the axes permuted and flipped, which loses nothing, and the affine that this makes."""
    if before in ("", after) or after == "":
        return values, affine
    turned = Orientation(axcodes=after, labels=AXES)(MetaTensor(values, affine))
    if not isinstance(turned, MetaTensor):
        raise TypeError("MONAI keeps no affines after set_track_meta(False); they are needed here")
    return plain(turned), plain(turned.affine)


def along(numbers: Sequence[Number], axes: str) -> tuple[Number, ...]:
    """Numbers of the axes of a source in the order of the canonical ones."""
    if not axes:
        return tuple(numbers)
    return tuple(numbers[next(i for i, axis in enumerate(axes) if axis in pair)] for pair in AXES)


def _resize(values: Tensor, size: tuple[int, ...], mode: str, blur: bool = False) -> Tensor:
    """`blur`: before shrinking, so that speckle does not turn into other speckle."""
    if tuple(values.shape[1:]) == size:
        return values
    return plain(Resize(size, mode=mode, anti_aliasing=blur)(values))


def _spacing(found: Sequence[Finding]) -> tuple[float, ...] | None:
    """The median along canonical axes; None if no file tells a spacing."""
    known = [along(finding.spacing, finding.orientation) for finding in found if finding.spacing is not None]
    return tuple(float(size) for size in np.median(known, axis=0)) if known else None


def _size(found: Sequence[Finding]) -> tuple[int, ...] | None:
    """None if all pictures are of one size that is not too long."""
    sizes = [finding.shape[-2:] for finding in found]
    median = np.median(sizes, axis=0)
    if len(set(sizes)) == 1 and median.max() <= LONGEST_SIDE:
        return None
    scaled = np.rint(median * min(1.0, LONGEST_SIDE / median.max())).astype(int)
    return tuple(scaled.tolist())


def _normalisation(found: Sequence[Finding], number: int, name: str) -> Normalisation:
    if name.strip().upper() == "CT":
        inside = [finding.foreground[number] for finding in found if finding.foreground is not None]
        values = np.concatenate(inside) if inside else np.empty(0)
        if values.size:
            low, high = np.quantile(values, (0.005, 0.995)).tolist()
            clipped = values.clip(low, high)
            deviation = float(clipped.std(dtype=np.float64)) or 1.0
            return Normalisation("ct", False, low, high, float(clipped.mean(dtype=np.float64)), deviation)
    # More than half of most images is exactly 0: the surroundings were cut away, as around a brain.
    zero = np.median([finding.channels[number].quantiles[1] == 0 for finding in found]) > 0
    return Normalisation(nonzero=bool(zero and len(found[0].shape) == 3))

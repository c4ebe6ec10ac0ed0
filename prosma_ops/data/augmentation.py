"""Random changes that make many images of one, composed of MONAI's transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from monai.transforms import (
    CenterSpatialCropd,
    MapTransform,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)

KEYS = ("image", "label")


@dataclass(frozen=True)
class Augmentation:
    """How much, and how often. Chances of 0 leave a change out.

    flip: the chance for each axis. Where left and right differ by label, name the axes that may be flipped.
    flip_axes: None for all.
    affine: the chance of a rotation of up to `rotation` degrees and a scaling of up to `scaling`.
    intensity: the chance of each of: brightness times 1 +- 0.25, brightness + 0.1 deviations, gamma 0.7 to 1.5.
    noise, blur: the chances of noise of up to 0.15 deviations and of a blur of 0.5 to 1 pixels.
    """

    flip: float = 0.5
    flip_axes: tuple[int, ...] | None = None
    affine: float = 0.3
    rotation: float = 25.0
    scaling: float = 0.25
    intensity: float = 0.2
    noise: float = 0.15
    blur: float = 0.1

    def __post_init__(self) -> None:
        for name in ("flip", "affine", "intensity", "noise", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a chance and must be between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.rotation <= 180 or not 0 <= self.scaling < 1:
            raise ValueError(f"rotation must be 0 to 180 and scaling 0 to 1, got {self.rotation} and {self.scaling}")

    def window(self, patch: Sequence[int], thick: int | None = None) -> tuple[int, ...]:
        """What is cut out to be turned, larger than the patch, so that turning it brings in little from outside."""
        margin = 1.0 + self.scaling if self.affine else 1.0
        return tuple(side if axis == thick else math.ceil(side * margin) for axis, side in enumerate(patch))

    def transforms(self, patch: Sequence[int], thick: int | None = None) -> list[MapTransform]:
        """From a window to a patch. `thick`: the axis that only flips, see `geometry.thick_axis`."""
        dimensions = len(patch)
        angle = math.radians(self.rotation)
        turns: list[float] | float = angle
        scales = [self.scaling] * dimensions
        if dimensions == 3:
            # Rotations about an axis turn the other two.
            turns = [angle if thick in (None, axis) else 0.0 for axis in range(3)]
            scales = [0.0 if axis == thick else self.scaling for axis in range(3)]
        affine = RandAffined(
            KEYS,
            prob=self.affine,
            rotate_range=turns,
            scale_range=scales,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        )
        axes = range(dimensions) if self.flip_axes is None else self.flip_axes
        flips = [RandFlipd(KEYS, self.flip, axis) for axis in axes]
        changes = [*([affine] if self.affine else []), CenterSpatialCropd(KEYS, tuple(patch)), *flips]
        if self.intensity:
            changes += [
                RandScaleIntensityd("image", 0.25, self.intensity),
                RandShiftIntensityd("image", 0.1, prob=self.intensity),
                RandAdjustContrastd("image", self.intensity, gamma=(0.7, 1.5), retain_stats=True),
            ]
        if self.blur:
            sigma = (0.5, 1.0)
            changes.append(RandGaussianSmoothd("image", sigma, sigma, sigma, prob=self.blur))
        if self.noise:
            changes.append(RandGaussianNoised("image", self.noise, 0.0, 0.15, sample_std=True))
        return changes

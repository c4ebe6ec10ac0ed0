"""Sizes that follow from the data: of patches, and of a network's strides where slices are thick."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A patch of 3-D has at most 96^3 voxels: with a U-Net of 32 channels, about 1 GB for each patch of a batch.
MOST_PIXELS = {2: 512 * 512, 3: 96**3}
SMALLEST = 8
# An axis is thick if its voxels are this much longer than the shortest side of them.
THICK = 3.0


def patch_size(shape: Sequence[float], spacing: Sequence[float] | None = None, multiple: int = 8) -> tuple[int, ...]:
    """A patch for images of this (median) shape: the whole image if it is small enough, else cut down to cover as much
    along every axis, in mm; rounded to multiples."""
    size = np.ceil(np.asarray(shape, float) / multiple) * multiple
    step = np.asarray(spacing if spacing is not None else np.ones(len(size)), float)
    most = MOST_PIXELS[len(size)]
    while size.prod() > most:
        longest = int(np.argmax(size * step * (size > multiple)))
        if size[longest] <= multiple:
            break
        size[longest] -= multiple
    return tuple(int(max(side, SMALLEST)) for side in size)


def thick_axis(spacing: Sequence[float] | None) -> int | None:
    """The axis along which voxels are so long that a rotation out of the plane would tear the image apart."""
    if spacing is None or len(spacing) < 3:
        return None
    longest = int(np.argmax(spacing))
    others = [size for axis, size in enumerate(spacing) if axis != longest]
    return longest if spacing[longest] >= THICK * max(others) else None


def strides(patch: Sequence[int], spacing: Sequence[float] | None, levels: int) -> list[tuple[int, ...]]:
    """Of each level relative to the one before, the first 1: an axis is halved once its voxels are not much longer
    than the others', and while at least 4 of them remain."""
    size = np.asarray(patch, float)
    step = np.asarray(spacing if spacing is not None else np.ones(len(size)), float)
    steps = [(1,) * len(size)]
    for _ in range(levels - 1):
        halved = (step < 2 * step[size >= 2 * 4].min(initial=np.inf)) & (size >= 2 * 4)
        stride = np.where(halved, 2, 1)
        size, step = np.ceil(size / stride), step * stride
        steps.append(tuple(int(part) for part in stride))
    return steps

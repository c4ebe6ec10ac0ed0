"""Writes predictions: NIfTI with the source's affine and header, PNG with a palette, overlays, and probabilities.

A file is written aside, synced, and renamed, so that whatever stands under its name is whole. A disk that is full, or a
folder that cannot be written to, is told with the file's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from .case import BadFileError
from .labels import LabelScheme
from .reading import Array

OPACITY = 0.4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what is there in the end becomes `path`. Raises `BadFileError`."""
    # The suffix stays at the end, because libraries go by it.
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb+") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    except OSError as error:
        raise BadFileError(path, f"could not be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def write_mask(path: Path, codes: np.ndarray, scheme: LabelScheme, source: Array) -> Path:
    """A mask in the codes of the scheme, on the grid of its source: .nii.gz where that has an affine, or is a volume;
    else .png. `path` is without suffix; returns with."""
    if source.affine is not None or codes.ndim == 3:
        return write_volume(path.with_name(path.name + ".nii.gz"), codes, source)
    return write_picture(path.with_name(path.name + ".png"), codes, scheme)


def write_volume(path: Path, values: np.ndarray, source: Array) -> Path:
    """NIfTI with the affine and the header of the source; channels, which are in front here, become its last axis."""
    spatial = values if values.ndim == len(source.space) else np.moveaxis(values, 0, -1)
    if spatial.ndim == 2 and spatial.shape == source.space:
        spatial = spatial[..., None]  # NIfTI of one slice has three axes everywhere else, too
    affine = np.eye(4) if source.affine is None else source.affine
    image = nibabel.Nifti1Image(spatial, affine, _header(source, spatial.dtype))
    with replacing(path) as aside:
        nibabel.save(image, aside)
    return path


def _header(source: Array, dtype: np.dtype) -> nibabel.Nifti1Header | None:
    """The source's, with its units, codes and times, but for what describes other values than these."""
    if not isinstance(source.header, nibabel.Nifti1Header):
        return None
    header: nibabel.Nifti1Header = nibabel.Nifti1Header.from_header(source.header)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    return header


def write_picture(path: Path, codes: np.ndarray, scheme: LabelScheme) -> Path:
    """PNG with a palette, in which a pixel's index is its code; in colours where the masks were in colours, and 16 bit
    for codes that are no byte."""
    if scheme.coloured:
        picture = Image.fromarray(np.array(scheme.palette(), np.uint8)[codes])
    elif codes.max(initial=0) > 255:
        picture = Image.fromarray(codes.astype(np.uint16))
    else:
        picture = Image.fromarray(codes.astype(np.uint8))
        picture.putpalette([part for colour in scheme.palette()[:256] for part in colour])
    with replacing(path) as aside:
        picture.save(aside)
    return path


def write_probabilities(path: Path, probabilities: np.ndarray, source: Array) -> Path:
    """(outputs, *space) as float32: NIfTI for volumes, else .npz. `path` is without suffix; returns with."""
    values = np.asarray(probabilities, np.float32)
    if source.affine is not None:
        return write_volume(path.with_name(path.name + ".nii.gz"), values, source)
    whole = path.with_name(path.name + ".npz")
    with replacing(whole) as aside:
        np.savez_compressed(aside, probabilities=values)
    return whole


def write_overlay(path: Path, image: np.ndarray, codes: np.ndarray, scheme: LabelScheme) -> Path:
    """PNG of the image with the mask's colours over it; of a volume, its slice with most foreground."""
    picture = Image.fromarray(overlay(image, codes, scheme))
    with replacing(path) as aside:
        picture.save(aside)
    return path


def overlay(
    image: np.ndarray, codes: np.ndarray, scheme: LabelScheme, opacity: float = OPACITY, index: int | None = None
) -> np.ndarray:
    """(rows, columns, 3) uint8 of an image (channels, *space) and a mask (*space): foreground is tinted, and outlined.

    Of a volume the slice `index` of the last axis, by default that with most foreground, turned as radiologists look.
    """
    background = () if scheme.regions else scheme.codes[0]
    inside = ~np.isin(codes, (0, *scheme.ignore) if scheme.regions else background)
    if codes.ndim == 3:
        index = int(inside.sum((0, 1)).argmax()) if index is None else index
        image, codes, inside = (np.rot90(part[..., index], axes=(-2, -1)) for part in (image, codes, inside))
    grey = as_bytes(image)
    tint = np.array(scheme.palette(), np.float32)[np.where(inside, codes, 0)]
    strength = np.where(outline(codes) & inside, 1.0, opacity * inside)[..., None]
    return np.asarray(np.rint(grey * (1 - strength) + tint * strength), np.uint8)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """(channels, rows, columns) of any range as (rows, columns, 3) uint8: three channels are colours, else the first is
    shown in grey. Bytes stay as they are; others are stretched so that all but 1 % of the pixels fit."""
    channels = image if len(image) == 3 and image.dtype == np.uint8 else np.repeat(image[:1], 3, 0)
    if channels.dtype != np.uint8:
        values = np.nan_to_num(channels.astype(np.float32))
        low, high = np.quantile(values, (0.005, 0.995))
        channels = ((values - low) / max(high - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)
    return np.moveaxis(channels, 0, -1)


def outline(codes: np.ndarray) -> np.ndarray:
    """True where a pixel's right, left, upper or lower neighbour has another code."""
    edge = np.zeros(codes.shape, bool)
    across, down = codes[:, 1:] != codes[:, :-1], codes[1:] != codes[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge

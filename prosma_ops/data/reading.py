"""Reads images and labels: PNG, TIFF, JPEG (Pillow), NIfTI (nibabel), .npz (numpy), .h5 (h5py), and phantoms.

Whatever a library raises for a damaged file comes out as `BadFileError`, with the file's name and the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from .case import BadFileError, Case, File, Pixels, Source

PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
NIFTI = (".nii.gz", ".nii")
ARCHIVES = (".npz", ".h5", ".hdf5")
SUFFIXES = (*PICTURES, *NIFTI, *ARCHIVES)

# Affines of a label and its image that differ by less, in mm, are rounding: some programs write them in half a dozen
# digits, or rebuild them from a quaternion in float32.
AFFINE_TOLERANCE = 1e-2
MODES_OF_CODES = ("P", "1", "L", "I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True)
class Array:
    """Values with what their file says about space.

    values: as the file has it; of `read_image` (channels, *space), of `read_label` (*space), or (*space, 3) in colours.
    spacing: mm a voxel and axis; None in a picture.
    affine: 4 x 4 from voxels to mm; None where the file has none.
    header: of NIfTI, so that a prediction can be written with it.
    colours: of a picture with a palette, (n, 3).
    space: the shape without channels and colours.
    """

    values: np.ndarray
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    header: Any = None
    colours: np.ndarray | None = None
    space: tuple[int, ...] = ()


def suffix_of(path: Path) -> str:
    """ ".nii.gz" as one, and always in small letters; "" for a file that is none of ours."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """The name without its suffix; ".npy.h5", as the TransUNet family writes it, is one suffix too."""
    stem = path.name[: len(path.name) - len(suffix_of(path))]
    return stem.removesuffix(".npy")


@contextmanager
def named(source: Source | Path) -> Iterator[None]:
    """Turns what is raised inside into an `BadFileError` that names the source."""
    try:
        yield
    except BadFileError:
        raise
    except FileNotFoundError:
        raise BadFileError(str(source), "there is no such file") from None
    except MemoryError:
        raise BadFileError(str(source), "there is not enough memory to read it") from None
    except Exception as error:  # of damaged files the libraries raise anything: KeyError, TypeError, OverflowError
        said = str(error).strip("'") if isinstance(error, KeyError) else str(error)
        reason = said.split("\n")[0] or type(error).__name__
        raise BadFileError(str(source), f"cannot be read, it is damaged or truncated ({reason})") from error


def read(source: Source, pixels: Pixels = "grey") -> Array:
    """What the source holds, as it is stored; raises `BadFileError`.

    `pixels` matters to pictures: "grey" and "colour" convert them, "codes" keeps indices and colours as they are.
    """
    with named(source):
        if not isinstance(source, File):
            image, label, spacing = source.phantom.make(source.index)
            return Array(image if source.member == "image" else label, spacing)
        suffix = suffix_of(source.path)
        if suffix in PICTURES:
            return _picture(source.path, pixels)
        if suffix in NIFTI:
            return _nifti(source.path)
        if suffix in ARCHIVES:
            return Array(_member(source.path, source.member))
    raise BadFileError(source.path, f"is of a kind that is not read here; these are: {' '.join(SUFFIXES)}")


def _picture(path: Path, pixels: Pixels) -> Array:
    with Image.open(path) as opened:
        if getattr(opened, "n_frames", 1) > 1:
            frames = opened.n_frames
            raise BadFileError(path, f"has {frames} pages; write each page, or the volume as NIfTI, to a file")
        opened.load()
        if pixels == "codes":
            return _codes(opened)
        if opened.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
            values = np.asarray(opened)
            return Array(np.repeat(values[None], 3, 0) if pixels == "colour" else values[None])
        converted = np.asarray(opened.convert("RGB" if pixels == "colour" else "L"))
    return Array(np.moveaxis(converted, -1, 0) if pixels == "colour" else converted[None])


def _codes(opened: Image.Image) -> Array:
    """A mask: indices of a palette, grey values, or colours, (rows, columns, 3), where these differ."""
    if opened.mode == "P":
        palette = opened.getpalette() or []
        return Array(np.asarray(opened), colours=np.array(palette, np.uint8).reshape(-1, 3))
    if opened.mode in MODES_OF_CODES and opened.format != "JPEG":
        return Array(np.asarray(opened).astype(np.uint8 if opened.mode == "1" else None, copy=False))
    if opened.mode == "LA":
        return Array(np.asarray(opened)[..., 0])
    if opened.format == "JPEG" and (binary := _binary(np.asarray(opened.convert("L")))) is not None:
        return Array(binary)
    colours = np.asarray(opened.convert("RGB"))
    grey = (colours[..., 0] == colours[..., 1]).all() and (colours[..., 1] == colours[..., 2]).all()
    return Array(colours[..., 0] if grey else colours)


def _binary(grey: np.ndarray) -> np.ndarray | None:
    """0 and 255, if a JPEG that was made from these is what it looks like: its edges are blurred, the rest is not."""
    near = np.count_nonzero((grey < 32) | (grey > 223))
    binary = near >= 0.95 * grey.size and grey.max() > 223
    return np.where(grey >= 128, np.uint8(255), np.uint8(0)) if binary else None


def _nifti(path: Path) -> Array:
    opened = nibabel.load(path)
    if not isinstance(opened, nibabel.Nifti1Pair | nibabel.analyze.AnalyzeImage):
        raise BadFileError(path, f"holds a {type(opened).__name__}, not NIfTI")
    values = np.asanyarray(opened.dataobj)
    if values.dtype.fields is not None:
        raise BadFileError(path, f"holds records {values.dtype}; one number a voxel is needed")
    spacing = tuple(float(size) for size in opened.header.get_zooms()[: min(3, values.ndim)])
    return Array(values, spacing, np.asarray(opened.affine, np.float64), opened.header)


def _member(path: Path, member: str) -> np.ndarray:
    with open_archive(path) as (names, get):
        if member not in names:
            raise BadFileError(path, f"has no array {member!r}; it has {', '.join(sorted(names)) or 'none'}")
        return get(member)


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[list[str], Callable[[str], np.ndarray]]]:
    """The names of an archive's arrays, and what reads one. Nothing is unpickled."""
    if suffix_of(path) == ".npz":
        # Opened here, because numpy leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            yield list(archive.files), lambda name: np.asarray(archive[name])
    else:
        import h5py

        with h5py.File(path, "r") as opened:
            yield [name for name in opened if isinstance(opened[name], h5py.Dataset)], lambda name: opened[name][()]


def read_image(case: Case, dimensions: int, pixels: Pixels = "grey") -> Array:
    """The image of a case as (channels, *spatial), of numbers; raises `BadFileError`."""
    parts = [_image_part(source, dimensions + case.stack, pixels) for source in case.images]
    first = parts[0]
    for source, part in zip(case.images[1:], parts[1:], strict=True):
        require_same_space(source, part, case.images[0], first)
    values = first.values if len(parts) == 1 else np.concatenate([part.values for part in parts])
    if not np.issubdtype(values.dtype, np.number):
        raise BadFileError(str(case), f"holds {values.dtype}, not numbers")
    return replace(first, values=values)


def _image_part(source: Source, dimensions: int, pixels: Pixels) -> Array:
    array = read(source, pixels)
    values = array.values
    if isinstance(source, File) and suffix_of(source.path) in NIFTI:
        values = _channels_first(values, source, dimensions)
    elif isinstance(source, File) and suffix_of(source.path) in ARCHIVES and values.ndim == dimensions:
        values = values[None]
    if values.ndim != dimensions + 1:
        raise BadFileError(str(source), f"has shape {values.shape}; an image of {dimensions} dimensions is needed")
    if 0 in values.shape:
        raise BadFileError(str(source), f"is empty, its shape is {values.shape}")
    spacing = None if array.spacing is None else array.spacing[:dimensions]
    return Array(values, spacing, array.affine, array.header, space=values.shape[1:])


def _channels_first(values: np.ndarray, source: Source, dimensions: int) -> np.ndarray:
    """NIfTI has channels in the 4th axis, and vectors in the 5th; axes of length 1 mean nothing."""
    spatial, rest = values.shape[:dimensions], [size for size in values.shape[dimensions:] if size != 1]
    if values.ndim < dimensions or len(rest) > 1 or (rest and values.ndim < 4):
        raise BadFileError(str(source), f"has shape {values.shape}; an image of {dimensions} dimensions is needed")
    return np.moveaxis(values.reshape(*spatial, math.prod(rest)), -1, 0)


def read_label(case: Case, dimensions: int) -> Array:
    """The label of a case as its file has it, (*spatial) or, in colours, (*spatial, 3); raises `BadFileError`."""
    if case.label is None:
        raise BadFileError(str(case), "has no mask")
    array, spatial = read(case.label, "codes"), dimensions + case.stack
    values = array.values
    if isinstance(case.label, File) and suffix_of(case.label.path) in NIFTI:
        values = values.reshape(values.shape[:spatial] + tuple(size for size in values.shape[spatial:] if size != 1))
    colours = values.ndim == spatial + 1 and values.shape[-1] == 3 and values.dtype == np.uint8
    if values.ndim != spatial and not colours:
        reason = f"has shape {array.values.shape}; a mask has one integer a pixel, in {spatial} dimensions"
        raise BadFileError(str(case.label), reason)
    whole = _whole_numbers(values, case.label)
    return replace(array, values=whole, space=values.shape[:spatial])


def _whole_numbers(values: np.ndarray, source: Source) -> np.ndarray:
    if values.dtype == np.bool_:
        return np.asarray(values, np.uint8)
    if np.issubdtype(values.dtype, np.integer):
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise BadFileError(str(source), f"is a mask of {values.dtype}; integers are needed")
    if not np.isfinite(values).all():
        raise BadFileError(str(source), "is a mask with NaN or infinity in it")
    whole = np.rint(values)
    # Scaled NIfTI stores 1 as 0.99999994; anything further from a whole number is no label.
    if np.abs(values - whole).max(initial=0) > 1e-3:
        odd = values[np.abs(values - whole) > 1e-3].flat[0]
        raise BadFileError(str(source), f"is a mask with the value {odd:g}, which is no whole number")
    return np.asarray(whole, np.int32)


def require_same_space(source: Source, array: Array, other: Source, expected: Array) -> None:
    """The arrays (of image and image, or of label and image) lie on one another; raises `BadFileError`."""
    if array.space != expected.space:
        raise BadFileError(str(source), f"has shape {array.space}, but {other} has {expected.space}")
    if array.affine is None or expected.affine is None:
        return
    difference = float(np.abs(array.affine - expected.affine).max())
    if not difference <= AFFINE_TOLERANCE:
        reason = f"its affine differs from that of {other} by up to {difference:.3g} mm: they lie elsewhere in space"
        raise BadFileError(str(source), reason)

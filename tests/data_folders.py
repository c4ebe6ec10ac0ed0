"""Small folders of images in every format that is read, for the tests of `prosma_ops.data`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import nibabel
import numpy as np
from PIL import Image

AFFINE = np.diag([1.5, 1.0, 2.0, 1.0])


def square(shape: Sequence[int], label: int = 1) -> np.ndarray:
    """A mask with `label` in its middle."""
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(size // 4, 3 * size // 4) for size in shape)] = label
    return mask


def noise(shape: Sequence[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)


def picture(path: Path, values: np.ndarray, palette: Sequence[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return path


def pictures(folder: Path, count: int = 6, size: int = 24, label: int = 1, suffix: str = ".png") -> Path:
    for i in range(count):
        picture(folder / "images" / f"{i:03}{suffix}", noise((size, size), i))
        picture(folder / "masks" / f"{i:03}.png", square((size, size), label))
    return folder


def volume(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def volumes(folder: Path, count: int = 6, names: tuple[str, str] = ("images", "labels"), stem: str = "scan_") -> Path:
    for i in range(count):
        shape = (12 + i, 14, 10)
        volume(folder / names[0] / f"{stem}{i:03}.nii.gz", noise(shape, i).astype(np.float32))
        volume(folder / names[1] / f"{stem}{i:03}.nii.gz", square(shape))
    return folder


def describe(folder: Path, **content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def archives(folder: Path) -> Path:
    """Slices of three subjects to train on, and a stack to test on, with the lists of the TransUNet family."""
    slices = [f"case{subject:04}_slice{number:03}" for subject in (1, 2, 3) for number in range(4)]
    (folder / "train_npz").mkdir(parents=True)
    (folder / "test_vol_h5").mkdir()
    (folder / "lists").mkdir()
    for seed, name in enumerate(slices):
        np.savez(folder / "train_npz" / f"{name}.npz", image=noise((16, 16), seed) / 255.0, label=square((16, 16)))
    with h5py.File(folder / "test_vol_h5" / "case0009.npy.h5", "w") as opened:
        opened["image"] = noise((5, 16, 16), 99) / 255.0
        opened["label"] = square((5, 16, 16))
    (folder / "lists" / "train.txt").write_text("\n".join(slices) + "\n")
    (folder / "lists" / "test_vol.txt").write_text("case0009\n")
    return folder

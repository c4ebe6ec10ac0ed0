"""What predicting one large volume takes: the peak of the resident set beside the model, and the time a window takes.

    python -m benchmarks.prediction                          a NIfTI volume of 240x240x155, four classes
    python -m benchmarks.prediction --channels 4 --flips     four channels in a file, eight flips

A network with random weights, windows of 96^3 with an overlap of a half, from the file to the mask and its overlay. The
limit is 2 GB, what the network needs for one window included. It runs on the first --windows only, and is taken to say
"background" of the others: neither memory nor the time a window takes depend on how many there are. Two are needed, as
the map that all windows are added to is made after the first.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor, nn

from prosma_ops.data import Normalisation, Preparation, inputs, labels
from prosma_ops.inference import Segmenter, predict
from prosma_ops.models import create_model

SHAPE = (240, 240, 155)
LIMIT = 2e9
WARM = 32


class First(nn.Module):
    """A network that runs on the first few windows of those that it is asked about."""

    def __init__(self, network: nn.Module, classes: int, windows: int) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.left = windows
        self.took = 0.0

    def forward(self, x: Tensor) -> Tensor:
        start = time.perf_counter()
        self.left -= len(x)
        if self.left < 0:
            return x.new_zeros(len(x), self.classes, *x.shape[2:])
        found: Tensor = self.network(x)
        self.took += time.perf_counter() - start
        return found


def written(folder: Path, shape: tuple[int, ...], channels: int) -> Path:
    """Noise in a file, 16 bit, channels in its last axis."""
    generator = np.random.default_rng(0)
    values = generator.integers(0, 1000, (*shape, channels) if channels > 1 else shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0])), folder / "volume.nii.gz")
    return folder / "volume.nii.gz"


def peak() -> int:
    """Bytes of this process's largest resident set so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction", description=__doc__)
    parser.add_argument("--model", default="prosma_unet")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--windows", type=int, default=4, help="that the network runs on; with flips, each flip is one")
    parser.add_argument("--flips", action="store_true")
    parser.add_argument("--probabilities", action="store_true")
    options = parser.parse_args()
    if options.windows < 2:
        parser.error(f"--windows must be at least 2, got {options.windows}")
    shape = tuple(options.shape)

    scheme = labels.found(range(options.classes))
    names = tuple(f"channel {number}" for number in range(options.channels))
    preparation = Preparation(3, names, scheme, (Normalisation(),) * options.channels, spacing=(1.0, 1.0, 1.0))
    network = create_model(options.model, in_channels=options.channels, classes=options.classes, spatial_dims=3)
    model = First(network, options.classes, options.windows)
    segmenter = Segmenter(model, preparation, patch_size=(options.patch,) * 3, flips=options.flips)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = written(folder, shape, options.channels)
        # A first call, of a small image, so that what libraries allocate once is no part of the figure.
        model.left = 0
        segmenter.labels(preparation.image(inputs([written_small(folder, options.channels)], options.channels)[0]))
        model.left, before, start = options.windows, peak(), time.perf_counter()
        (done,) = predict(segmenter, inputs([path]), folder / "out", probabilities=options.probabilities)
        took, extra = time.perf_counter() - start, peak() - before
    windows = segmenter.windows(torch.empty(options.channels, *shape)) * len(segmenter.flips)
    size = "x".join(map(str, shape))
    print(
        f"{options.model}, {size}, {options.channels} channels, {options.classes} classes, {windows} windows of"
        f" {options.patch}^3: {extra / 1e9:.2f} GB beside the model ({LIMIT / 1e9:g} allowed);"
        f" {model.took / options.windows:.1f} s a window, {took - model.took:.1f} s everything else,"
        f" {torch.get_num_threads()} threads"
    )
    return 0 if done.problem is None and extra < LIMIT else 1


def written_small(folder: Path, channels: int) -> Path:
    (folder / "small").mkdir()
    return written(folder / "small", (WARM,) * 3, channels)


if __name__ == "__main__":
    sys.exit(main())

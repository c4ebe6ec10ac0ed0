"""Segments a prepared image by overlapping windows, weighted by a Gaussian, and brings the result to the source's grid.

p(x) = sum_w g_w(x) q_w(x) / sum_w g_w(x)      q_w: softmax or sigmoid of the logits of window w, the mean over flips

The windows are MONAI's. What is averaged are probabilities rather than logits: they need no second pass over the
volume, and a mean of them is a probability again. A class map is made output by output, each resampled to the source by
itself and compared with the best so far: on the source's grid there are three maps at a time, whatever the number of
classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from ..data import Case, Preparation, Prepared

# Windows of volumes are as large as patches of a training, and one of them keeps all cores busy.
WINDOWS_AT_ONCE = {2: 4, 3: 1}
THRESHOLD = 0.5

Progress = Callable[[int, int], None]


class Segmenter:
    """A model in evaluation mode, with what leads from an image to its input and from its output back.

    Arguments:
        model: (B, channels, *patch_size) -> logits (B, outputs, *patch_size). It is moved to `device`.
        preparation: that of the training.
        patch_size: of a window. A smaller image is filled up with 0, as training patches are.
        overlap: of neighbouring windows, as a share of their size, 0 to below 1.
        flips: True averages over all flips, 4 of a picture and 8 of a volume; or the axes that may be flipped.
        batch_size: windows at a time.
        device: where windows are computed. The whole image and its probabilities stay in the memory of the CPU.
        autocast: the dtype of autocast, None for none.
        progress: called with how many windows of an image are done, and how many it has.
    """

    def __init__(
        self,
        model: nn.Module,
        preparation: Preparation,
        *,
        patch_size: Sequence[int],
        overlap: float = 0.5,
        flips: bool | Sequence[int] = False,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        autocast: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> None:
        dimensions = preparation.dimensions
        if len(patch_size) != dimensions or min(patch_size) < 1:
            raise ValueError(f"patch_size must be {dimensions} sizes of at least 1, got {tuple(patch_size)}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is a share of a window, at least 0 and below 1, got {overlap}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.preparation = preparation
        self.patch_size = tuple(int(side) for side in patch_size)
        self.overlap = overlap
        self.flips = _flips(flips, dimensions)
        self.batch_size = batch_size or WINDOWS_AT_ONCE[dimensions]
        self.autocast = autocast
        self.progress = progress

    def probabilities(self, image: Tensor | Prepared) -> Tensor:
        """(outputs, *space of the prepared image), float32 on the CPU: of a `Prepared`, or of (channels, *space)."""
        values = image.image if isinstance(image, Prepared) else image
        if not self._stacked(values):
            return self._windows(values[None])[0]
        return self._windows(values.movedim(1, 0)).movedim(0, 1)

    def predicted(self, image: Tensor | Prepared) -> Tensor:
        """Labels on the grid of the prepared image, as `Preparation.label` has them but without the ignored: uint8,
        classes (1, *space) or regions (outputs, *space)."""
        probabilities = self.probabilities(image)
        if self.preparation.scheme.regions:
            return (probabilities > THRESHOLD).to(torch.uint8)
        return probabilities.argmax(0, keepdim=True).to(torch.uint8)

    def probabilities_of(self, image: Case | Prepared) -> Tensor:
        """(outputs, *space of the source), float32. Raises `BadFileError` of a case that cannot be read."""
        prepared = self._prepared(image)
        return self.preparation.restore(self.probabilities(prepared), prepared)

    def labels(self, image: Case | Prepared, probabilities: Tensor | None = None) -> np.ndarray:
        """Labels on the grid of the source, uint8: class numbers (*space), or regions (outputs, *space) of 0 and 1.

        `probabilities`: on the grid of the prepared image, where they are known already.
        """
        prepared = self._prepared(image)
        known = self.probabilities(prepared) if probabilities is None else probabilities
        if self.preparation.scheme.regions:
            regions = [(self._restored(known, number, prepared) > THRESHOLD).numpy() for number in range(len(known))]
            return np.stack(regions).astype(np.uint8)
        best = self._restored(known, 0, prepared)
        classes = torch.zeros(best.shape, dtype=torch.uint8)
        for number in range(1, len(known)):
            other = self._restored(known, number, prepared)
            classes.masked_fill_(other > best, number)
            torch.maximum(best, other, out=best)
        return classes.numpy()

    def codes(self, image: Case | Prepared, probabilities: Tensor | None = None) -> np.ndarray:
        """The mask in the codes of the training's masks, on the grid of the source."""
        return self.preparation.scheme.decode(self.labels(image, probabilities))

    def windows(self, image: Tensor | Prepared) -> int:
        """How many windows an image has."""
        values = image.image if isinstance(image, Prepared) else image
        number = values.shape[1] if self._stacked(values) else 1
        for side, whole in zip(self.patch_size, values.shape[-len(self.patch_size) :], strict=True):
            step = max(1, int(side * (1 - self.overlap)))
            number *= 1 + math.ceil(max(0, whole - side) / step)
        return number

    def _prepared(self, image: Case | Prepared) -> Prepared:
        return self.preparation.image(image) if isinstance(image, Case) else image

    def _restored(self, probabilities: Tensor, number: int, prepared: Prepared) -> Tensor:
        return self.preparation.restore(probabilities[number : number + 1], prepared)[0]

    def _stacked(self, values: Tensor) -> bool:
        """Whether (channels, *space) is a stack of slices, (channels, slices, rows, columns), for a model of slices."""
        dimensions = self.preparation.dimensions
        if values.dim() - 1 - dimensions not in ((0, 1) if dimensions == 2 else (0,)):
            raise ValueError(f"an image of shape {tuple(values.shape)} is none of {dimensions} dimensions and channels")
        return values.dim() - 1 > dimensions

    @torch.no_grad()
    def _windows(self, batch: Tensor) -> Tensor:
        """(B, channels, *space) -> (B, outputs, *space)."""
        total = self.windows(batch[0]) * len(batch)
        done = 0

        def counted(window: Tensor) -> Tensor:
            nonlocal done
            found = self._window(window)
            done += len(window)
            if self.progress is not None:
                self.progress(done, total)
            return found

        values: Any = sliding_window_inference(
            batch.float(),
            self.patch_size,
            self.batch_size,
            counted,
            overlap=self.overlap,
            mode="gaussian",
            sw_device=self.device,
            device=torch.device("cpu"),
        )
        return torch.as_tensor(values)

    def _window(self, window: Tensor) -> Tensor:
        """Probabilities of a batch of windows, the mean over all flips."""
        total: Tensor | None = None
        for axes in self.flips:
            found = self._activated(window.flip(axes)).flip(axes) if axes else self._activated(window)
            total = found if total is None else total.add_(found)
        assert total is not None
        return total.div_(len(self.flips))

    def _activated(self, window: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            logits = self.model(window)
        scheme = self.preparation.scheme
        if logits.shape[1] != scheme.outputs:
            raise ValueError(f"the model has {logits.shape[1]} outputs; the labels have {scheme.outputs}: {scheme}")
        return torch.as_tensor(logits.float().sigmoid() if scheme.regions else logits.float().softmax(1))


def _flips(flips: bool | Sequence[int], dimensions: int) -> list[tuple[int, ...]]:
    """All sets of axes of a window (B, C, *space) to be flipped, the empty one first."""
    axes = range(dimensions) if flips is True else () if flips is False else flips
    if any(not 0 <= axis < dimensions for axis in axes):
        raise ValueError(f"flips names axes of {dimensions}, from 0 on, got {flips}")
    chosen = sorted({axis + 2 for axis in axes})
    return [found for size in range(len(chosen) + 1) for found in combinations(chosen, size)]

"""Sliding windows, flips, and the way back to the source's grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prosma_ops.data import LabelScheme, Normalisation, Preparation, Prepared, labels, recognise, survey
from prosma_ops.data.reading import Array
from prosma_ops.inference.segmenting import Segmenter
from tests.data_folders import archives, noise, square, volume, volumes

THREE = labels.found([0, 1, 2])
REGIONS = LabelScheme(("whole", "inner"), ((1, 2), (2,)), regions=True, written=(1, 2))


def prepared(image: Tensor) -> Prepared:
    space = tuple(image.shape[1:])
    return Prepared(image, torch.eye(4, dtype=torch.float64), Array(image.numpy(), space=space))


def preparation(scheme: LabelScheme = THREE, dimensions: int = 2) -> Preparation:
    return Preparation(dimensions, ("grey",), scheme, (Normalisation(),))


class Pixelwise(nn.Module):
    """Logits that depend on a pixel alone, whatever window it is in."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.slopes = torch.linspace(-1, 2, outputs)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return self.slopes.view(1, -1, *(1,) * (x.dim() - 2)) * x[:, :1]


class Sided(nn.Module):
    """The first logit grows along an axis, whatever the image: what no flip may leave as it is."""

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.arange(x.shape[-1], dtype=torch.float32).expand_as(x)
        return torch.cat([ramp, torch.zeros_like(ramp), x], 1)


@pytest.mark.parametrize("shape", [(40, 33), (10, 50), (7, 5)])
def test_windows_of_pictures_blend_to_what_each_pixel_says(shape: tuple[int, int]) -> None:
    image, model = torch.randn(1, *shape), Pixelwise()
    segmenter = Segmenter(model, preparation(), patch_size=(16, 12), overlap=0.4)
    expected = model(image[None])[0].softmax(0)
    model.seen.clear()
    torch.testing.assert_close(segmenter.probabilities(image), expected)
    assert {seen[2:] for seen in model.seen} == {(16, 12)}
    assert sum(seen[0] for seen in model.seen) == segmenter.windows(image)


def test_windows_of_volumes() -> None:
    image, model = torch.randn(1, 20, 9, 14), Pixelwise(2)
    segmenter = Segmenter(model, preparation(REGIONS, 3), patch_size=(8, 8, 8), batch_size=3)
    torch.testing.assert_close(segmenter.probabilities(image), model(image[None])[0].sigmoid())


def test_stacks_are_segmented_slice_by_slice() -> None:
    image, model = torch.randn(1, 5, 20, 18), Pixelwise()
    segmenter = Segmenter(model, preparation(), patch_size=(16, 16))
    assert segmenter.probabilities(image).shape == (3, 5, 20, 18)
    torch.testing.assert_close(segmenter.probabilities(image), Pixelwise()(image[None])[0].softmax(0))
    assert segmenter.windows(image) == 5 * 2 * 2


def test_windows_near_their_middle_count_more() -> None:
    """Of two windows that disagree, each decides about its own side, and they meet half-way."""

    class Alternating(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.cat([torch.full_like(x, 9.0 if self.calls == 1 else -9.0), torch.zeros_like(x)], 1)

    segmenter = Segmenter(Alternating(), preparation(labels.found([0, 1])), patch_size=(8, 8), batch_size=1)
    found = segmenter.probabilities(torch.zeros(1, 8, 12))[0, 4]
    assert (found[:4] > 0.99).all()
    assert (found[8:] < 0.01).all()
    assert (found.diff() <= 1e-6).all()
    torch.testing.assert_close(found[4:8] + found[4:8].flip(0), torch.ones(4))


def test_flips_are_undone_and_averaged() -> None:
    image = torch.randn(1, 8, 8)
    model = Sided()
    plain = model(image[None])[0].softmax(0)
    across = model(image[None].flip(-1))[0].softmax(0).flip(-1)
    chosen = Segmenter(model, preparation(), patch_size=(8, 8), flips=(1,))
    torch.testing.assert_close(chosen.probabilities(image), (plain + across) / 2)
    other = Segmenter(model, preparation(), patch_size=(8, 8), flips=(0,))
    torch.testing.assert_close(other.probabilities(image), plain)
    every = Segmenter(model, preparation(), patch_size=(8, 8), flips=True)
    torch.testing.assert_close(every.probabilities(image), (plain + across) / 2)
    assert len(every.flips) == 4
    assert len(Segmenter(Sided(), preparation(dimensions=3), patch_size=(8, 8, 8), flips=True).flips) == 8


@pytest.mark.parametrize("scheme", [THREE, REGIONS])
def test_labels_are_those_of_the_restored_probabilities(tmp_path: Path, scheme: LabelScheme) -> None:
    """Output by output gives what all at once would have given, on a grid with other axes and another spacing."""
    affine = np.array([[0, -1.2, 0, 7], [0, 0, 3.0, -5], [0.9, 0, 0, 2], [0, 0, 0, 1]])
    volume(tmp_path / "images" / "a.nii.gz", noise((10, 12, 14), 0).astype(np.float32), affine)
    volume(tmp_path / "labels" / "a.nii.gz", square((10, 12, 14), 2), affine)
    collection = dataclasses.replace(recognise(tmp_path), scheme=scheme)
    chosen = dataclasses.replace(Preparation.of(survey(collection)), spacing=(1.0, 1.5, 2.0))
    segmenter = Segmenter(Pixelwise(scheme.outputs), chosen, patch_size=(8, 8, 8))
    (case,) = collection.cases
    restored = segmenter.probabilities_of(case)
    assert restored.shape == (scheme.outputs, 10, 12, 14)
    found = segmenter.labels(case)
    expected = (restored > 0.5).numpy() if scheme.regions else restored.argmax(0).numpy()
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    assert len(np.unique(found)) > 1
    image = chosen.image(case)
    np.testing.assert_array_equal(segmenter.codes(image), chosen.codes(segmenter.probabilities(image), image))


def test_labels_on_the_prepared_grid(tmp_path: Path) -> None:
    collection = recognise(volumes(tmp_path, 1))
    chosen = dataclasses.replace(Preparation.of(survey(collection)), spacing=(1.0, 1.0, 1.0))
    image = chosen.image(collection.cases[0])
    segmenter = Segmenter(Pixelwise(2), chosen, patch_size=(8, 8, 8))
    found = segmenter.predicted(image)
    assert (found.shape, found.dtype) == ((1, *image.image.shape[1:]), torch.uint8)
    torch.testing.assert_close(found[0].long(), segmenter.probabilities(image.image).argmax(0))


def test_a_stack_comes_back_as_a_stack(tmp_path: Path) -> None:
    collection = recognise(archives(tmp_path))
    chosen = Preparation.of(survey(collection))
    stack = next(case for case in collection.cases if case.stack)
    assert Segmenter(Pixelwise(2), chosen, patch_size=(16, 16)).labels(stack).shape == (5, 16, 16)


def test_progress_and_autocast() -> None:
    told: list[tuple[int, int]] = []
    dtypes: list[torch.dtype] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            dtypes.append(self.layer(x).dtype)
            return self.layer(x)  # type: ignore[no-any-return]

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    segmenter = Segmenter(
        Watched(),
        preparation(),
        patch_size=(8, 8),
        overlap=0,
        batch_size=3,
        autocast=torch.bfloat16,
        progress=progress,
    )
    found = segmenter.probabilities(torch.randn(1, 16, 16))
    assert told == [(3, 4), (4, 4)]
    assert set(dtypes) == {torch.bfloat16}
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.sum(0), torch.ones(16, 16))
    assert not segmenter.model.training


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Segmenter(Pixelwise(), preparation(), patch_size=(8, 8, 8)), "patch_size must be 2 sizes"),
        (lambda: Segmenter(Pixelwise(), preparation(), patch_size=(8, 8), overlap=1.0), "overlap is a share"),
        (lambda: Segmenter(Pixelwise(), preparation(), patch_size=(8, 8), flips=(2,)), "flips names axes of 2"),
        (lambda: Segmenter(Pixelwise(), preparation(), patch_size=(8, 8), batch_size=0), "batch_size must be"),
        (
            lambda: Segmenter(Pixelwise(4), preparation(), patch_size=(8, 8)).probabilities(torch.zeros(1, 8, 8)),
            "the model has 4 outputs; the labels have 3",
        ),
        (
            lambda: Segmenter(Pixelwise(), preparation(), patch_size=(8, 8)).probabilities(torch.zeros(8, 8)),
            r"an image of shape \(8, 8\)",
        ),
    ],
)
def test_what_does_not_fit_is_told(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_segmenter_takes_what_was_prepared() -> None:
    image = torch.randn(1, 9, 11)
    segmenter = Segmenter(Pixelwise(), preparation(), patch_size=(8, 8))
    torch.testing.assert_close(segmenter.probabilities(prepared(image)), segmenter.probabilities(image))
    assert segmenter.codes(prepared(image)).shape == (9, 11)

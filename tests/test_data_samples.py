"""What a training draws: the same for the same seed, biased towards the foreground, and spread over processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prosma_ops.data import (
    Augmentation,
    Preparation,
    PreparedCases,
    TrainingSamples,
    batches,
    recognise,
    survey,
)
from prosma_ops.data.samples import window
from tests.data_folders import archives, describe, noise, picture, pictures, square, volume

STRONG = Augmentation(flip=0.5, affine=1, intensity=1, noise=1, blur=1)


def samples(where: Path | str, patch: tuple[int, ...], **options: object) -> TrainingSamples:
    found = survey(recognise(where))
    prepared = PreparedCases(found.collection.cases, Preparation.of(found))
    return TrainingSamples(prepared, patch, **options)  # type: ignore[arg-type]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in ("image", "label"))


@pytest.mark.parametrize("where", ["phantom:cases=5,size=32", "phantom:dimensions=3,cases=3,size=24"])
def test_a_number_and_a_seed_decide_everything(where: str) -> None:
    patch = (24,) * recognise(where).dimensions
    first, again = (samples(where, patch, augmentation=STRONG, seed=3) for _ in range(2))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  (what others do with it must not matter)
    expected = [first[number] for number in range(4)]
    assert all(same(again[number], expected[number]) for number in (3, 1, 0, 2))
    other = samples(where, patch, augmentation=STRONG, seed=4)
    assert not any(same(other[number], expected[number]) for number in range(4))
    assert not same(expected[0], first[len(first)])


def test_global_random_numbers_are_left_alone() -> None:
    drawn = samples("phantom:cases=2,size=24", (16, 16), augmentation=STRONG)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(batches(drawn, 2, 3, workers=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_comes_out() -> None:
    drawn = samples("phantom:dimensions=3,cases=2,size=24", (16, 24, 32), augmentation=STRONG)
    for number in range(3):
        sample = drawn[number]
        assert type(sample["image"]) is type(sample["label"]) is torch.Tensor
        assert (sample["image"].shape, sample["image"].dtype) == ((1, 16, 24, 32), torch.float32)
        assert (sample["label"].shape, sample["label"].dtype) == ((1, 16, 24, 32), torch.uint8)
        assert set(sample["label"].unique().tolist()) <= {0, 1, 2, 3}
        assert torch.isfinite(sample["image"]).all()


def test_without_augmentation_patches_are_cut_and_no_more() -> None:
    where = "phantom:cases=3,size=24"
    found = survey(recognise(where))
    preparation = Preparation.of(found)
    whole = samples(where, (24, 24))
    for number in range(3):
        expected = preparation(found.collection.cases[whole.drawn(number)[0]])
        assert same(whole[number], expected)


def test_every_case_is_drawn_once_an_epoch() -> None:
    drawn = samples("phantom:cases=7,size=16", (16, 16))
    epochs = [[drawn.drawn(number)[0] for number in range(7 * epoch, 7 * epoch + 7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_labels_turn_with_their_images(tmp_path: Path) -> None:
    """The image is its own label, so after any change they must still agree."""
    pictures(tmp_path, 2, size=48, label=1)
    for i in range(2):
        picture(tmp_path / "images" / f"{i:03}.png", square((48, 48), 200))
    turned = samples(tmp_path, (32, 32), augmentation=Augmentation(affine=1, intensity=0, noise=0, blur=0))
    shares = []
    for number in range(12):
        sample = turned[number]
        inside = sample["label"][0] == 1
        agree = (sample["image"][0] > 0.5) == inside
        shares.append(float(agree.float().mean()))
    assert min(shares) > 0.93
    assert len({float(turned[number]["image"].sum()) for number in range(12)}) > 6


def rare(folder: Path) -> Path:
    """Volumes of which one has a single voxel of class 2, and most are background."""
    for i in range(4):
        mask = np.zeros((24, 24, 24), np.uint8)
        mask[4:8, 4:8, 4:8] = 1
        if i == 2:
            mask[20, 19, 18] = 2
        volume(folder / "images" / f"{i}.nii.gz", noise((24, 24, 24), i))
        volume(folder / "labels" / f"{i}.nii.gz", mask)
    return folder


def test_patches_are_biased_towards_the_foreground(tmp_path: Path) -> None:
    rare(tmp_path)
    share = {}
    for foreground in (0.0, 1.0):
        drawn = samples(tmp_path, (6, 6, 6), foreground=foreground)
        share[foreground] = np.mean([bool(drawn[number]["label"].any()) for number in range(40)])
    assert share[1.0] == 1
    assert share[0.0] < 0.5


def test_balanced_sampling_finds_the_rare_class(tmp_path: Path) -> None:
    drawn = samples(rare(tmp_path), (6, 6, 6), foreground=1.0, balanced=True)
    having = [int((drawn[number]["label"] == 2).sum()) for number in range(60)]
    assert 15 <= sum(count > 0 for count in having) <= 45
    assert {drawn.drawn(number)[0] for number in range(60)} == {0, 1, 2, 3}


def test_a_patch_larger_than_its_image_is_filled_up() -> None:
    drawn = samples("phantom:cases=1,size=16", (24, 20))
    sample = drawn[0]
    assert sample["image"].shape == (1, 24, 20)
    assert int((sample["image"] != 0).sum()) == 256
    assert not sample["label"][0, :4].any()


def test_windows_reach_outside() -> None:
    values = torch.arange(1.0, 13).reshape(1, 3, 4)
    assert torch.equal(window(values, (1, 1), (2, 3)), values[:, 1:, 1:])
    assert window(values, (-1, 2), (3, 4))[0].tolist() == [[0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]
    assert not window(values, (5, -9), (2, 2)).any()


def test_regions_are_drawn_too(tmp_path: Path) -> None:
    describe(pictures(tmp_path, 3), labels={"background": 0, "whole": [1, 2], "core": [2]})
    picture(tmp_path / "masks" / "000.png", square((24, 24), 2))
    drawn = samples(tmp_path, (8, 8), foreground=1.0, augmentation=STRONG)
    for number in range(6):
        label = drawn[number]["label"]
        assert label.shape == (2, 8, 8)
        assert set(label.unique().tolist()) <= {0, 1}


def test_stacks_are_drawn_slice_by_slice(tmp_path: Path) -> None:
    found = survey(recognise(archives(tmp_path)))
    stacks = [case for case in found.collection.cases if case.stack]
    drawn = TrainingSamples(PreparedCases(stacks, Preparation.of(found)), (16, 16), foreground=0.5)
    assert {tuple(drawn[number]["image"].shape) for number in range(8)} == {(1, 16, 16)}


def equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_what_does_not_fit_into_memory_is_prepared_again_or_mapped(tmp_path: Path) -> None:
    found = survey(recognise("phantom:cases=6,size=32"))
    cases, preparation = found.collection.cases, Preparation.of(found)
    whole = PreparedCases(cases, preparation)
    three = sum(values.nbytes for index in range(3) for values in whole[index].values())
    a_few = PreparedCases(cases, preparation, memory=three)
    mapped = PreparedCases(cases, preparation, memory=three, folder=tmp_path / "cache")
    assert len(whole.kept) == 6
    assert len(a_few.kept) == len(mapped.kept) == 3
    for _ in range(2):
        assert all(equal(whole[i], a_few[i]) and equal(whole[i], mapped[i]) for i in range(6))
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert same(TrainingSamples(mapped, (16, 16))[5], TrainingSamples(whole, (16, 16))[5])


def test_mapped_files_of_others_are_not_taken(tmp_path: Path) -> None:
    found = survey(recognise(pictures(tmp_path / "data", 2)))
    case, preparation = found.collection.cases[0], Preparation.of(found)
    first = dict(PreparedCases([case], preparation, 0, tmp_path / "cache")[0])
    smaller = PreparedCases([case], replace(preparation, size=(12, 12)), 0, tmp_path / "cache")[0]
    assert smaller["image"].shape == (1, 12, 12)
    picture(tmp_path / "data" / "images" / "000.png", noise((24, 24), 77))
    changed = PreparedCases([case], preparation, 0, tmp_path / "cache")[0]
    assert not torch.equal(changed["image"], first["image"])
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("value", [0, 7])
def test_images_that_are_the_same_everywhere_stay_finite(tmp_path: Path, value: int) -> None:
    picture(pictures(tmp_path, 1) / "images" / "000.png", np.full((24, 24), value, np.uint8))
    drawn = samples(tmp_path, (16, 16), augmentation=STRONG)
    assert all(torch.isfinite(drawn[number]["image"]).all() for number in range(8))


def test_processes_share_a_batch() -> None:
    drawn = samples("phantom:cases=5,size=16", (16, 16), augmentation=STRONG)
    whole = list(batches(drawn, 4, 3, workers=0))
    halves = [list(batches(drawn, 2, 3, rank=rank, processes=2, workers=0)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(batch["image"], torch.cat([first["image"], second["image"]]))
        assert torch.equal(batch["label"], torch.cat([first["label"], second["label"]]))


# From Python 3.12 on forking a process with threads warns; the workers use none of what the threads may hold.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_going_on_from_a_step_and_workers_change_nothing() -> None:
    drawn = samples("phantom:cases=5,size=16", (16, 16), augmentation=STRONG)
    whole = list(batches(drawn, 2, 4, workers=0))
    rest = list(batches(drawn, 2, 4, first=2, workers=1))
    assert len(rest) == 2
    assert all(same(batch, expected) for batch, expected in zip(rest, whole[2:], strict=True))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work() -> None:
    drawn = samples("phantom:cases=5,size=16", (16, 16), augmentation=STRONG)
    loader = iter(batches(drawn, 2, 12, workers=1))
    found = [next(loader)]
    (worker,) = loader._workers  # type: ignore[attr-defined]
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    found += list(loader)
    expected = list(batches(drawn, 2, 12, workers=0))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": (8,)}, "patch must be 2 sizes"),
        ({"patch": (8, 0)}, "patch must be 2 sizes"),
        ({"foreground": 1.5}, "foreground is a share"),
        ({"prepared": None}, "no cases to draw training samples from"),
    ],
)
def test_arguments_are_checked(options: dict[str, object], message: str) -> None:
    found = survey(recognise("phantom:cases=2,size=16"))
    cases = () if "prepared" in options else found.collection.cases
    arguments = {"patch": (8, 8)} | options | {"prepared": PreparedCases(cases, Preparation.of(found))}
    with pytest.raises(ValueError, match=message):
        TrainingSamples(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"flip": 1.5}, {"noise": -1}, {"scaling": 1.0}, {"rotation": 200}])
def test_chances_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Augmentation(**options)  # type: ignore[arg-type]


def test_batches_are_checked() -> None:
    drawn = samples("phantom:cases=1,size=16", (8, 8))
    with pytest.raises(ValueError, match="rank below processes"):
        batches(drawn, 2, 3, rank=1)
    with pytest.raises(ValueError, match="steps must be at least first"):
        batches(drawn, 2, 3, first=4)

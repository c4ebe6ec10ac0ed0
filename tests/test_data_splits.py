"""Which cases are trained on, validated on and tested on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prosma_ops.data import BadFileError, Case, Collection, Phantom, recognise, split, subset
from prosma_ops.data.case import File
from prosma_ops.data.names import subjects
from tests.data_folders import archives, pictures


def collection(names: list[str], **fields: object) -> Collection:
    known = subjects(names)
    file = File(Path("a.png"))
    cases = tuple(Case(name, (file,), file, subject=known[name]) for name in names)
    return replace(Collection("somewhere", "pictures", cases, 2), **fields)  # type: ignore[arg-type]


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("sub-07_ses-02_T1w", "sub-07"),
        ("patient001_frame01_slice_3", "patient001"),
        ("case0005_slice012", "case0005"),
        ("P12 view 3", "P12"),
        ("liver-left_slice12", "liver-left"),
        ("case_001_sliceED_0", "case_001"),
        ("hippocampus_003", None),
        ("0042", None),
        ("ISIC_0000123", None),
        ("BraTS20_Training_001", None),
    ],
)
def test_subjects_of_names(name: str, subject: str | None) -> None:
    assert subjects([name]) == {name: subject}


def test_subjects_of_numbers_that_repeat() -> None:
    several = [f"{subject}_{image}" for subject in range(8) for image in range(3)]
    assert set(subjects(several).values()) == {str(subject) for subject in range(8)}
    assert set(subjects([f"2021_{image}" for image in range(8)]).values()) == {None}


def test_a_seed_gives_the_same_split_and_another_a_different_one() -> None:
    whole = Phantom(cases=50).collection()
    first, again, other = split(whole, 3), split(whole, 3), split(whole, 4)
    assert first == again
    assert first.as_json() != other.as_json()
    assert [len(first[name]) for name in ("train", "val", "test")] == [35, 5, 10]
    assert sorted(names(first.train + first.val + first.test)) == sorted(names(whole.cases))
    assert not first.problems


def test_subjects_stay_together() -> None:
    several = collection([f"case{subject:04}_slice{number:03}" for subject in range(20) for number in range(subject)])
    parts = split(several, 0)
    groups = [{case.subject for case in parts[name]} for name in ("train", "val", "test")]
    assert all(groups)
    assert sum(len(group) for group in groups) == len(set.union(*groups))
    assert len(parts.train) == pytest.approx(0.7 * len(several.cases), rel=0.15)


def test_three_cases_are_enough_for_three_splits() -> None:
    parts = split(Phantom(cases=3).collection())
    assert [len(parts[name]) for name in ("train", "val", "test")] == [1, 1, 1]


def test_a_file_is_honoured(tmp_path: Path) -> None:
    listed = {"train": ["000.png", "001", "images/002.png"], "val": ["./003.png"], "test": ["004.png"], "other": ["x"]}
    (pictures(tmp_path) / "splits.json").write_text(json.dumps(listed))
    parts = split(recognise(tmp_path), 7)
    assert parts.as_json() == {"train": ["000", "001", "002"], "val": ["003"], "test": ["004"]}
    assert parts.left_out == ("005",)
    assert parts.problems == ()
    assert parts.origin == "splits.json"


def test_folds_of_nnunet(tmp_path: Path) -> None:
    folds = [{"train": ["000", "001", "002"], "val": ["003"]}, {"train": ["003"], "val": ["000"]}]
    (pictures(tmp_path) / "splits_final.json").write_text(json.dumps(folds))
    parts = split(recognise(tmp_path))
    assert (names(parts.train), names(parts.val), parts.test) == (["000", "001", "002"], ["003"], ())
    assert [problem.severity for problem in parts.problems] == ["warning"]


def test_what_is_wrong_in_a_file_is_told(tmp_path: Path) -> None:
    (pictures(tmp_path) / "masks" / "005.png").unlink()
    listed = {
        "train": ["000.png", "001.png", "absent.png"],
        "val": ["001.png", "002.png"],
        "test": ["003.png", "005.png"],
    }
    (tmp_path / "splits.json").write_text(json.dumps(listed))
    messages = [problem.message for problem in split(recognise(tmp_path)).problems]
    assert messages == [
        "lists absent.png, but there is no such image",
        "lists 001.png in train and in val",
        "lists 005.png in test, which has no mask",
    ]


def test_names_that_two_folders_share(tmp_path: Path) -> None:
    pictures(tmp_path / "train", 3)
    pictures(tmp_path / "test", 2)
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["train/000"], "val": ["002"], "test": ["000.png"]}))
    parts = split(recognise(tmp_path))
    assert names(parts.train) == ["train/000"]
    assert "which may be test/000 or train/000" in parts.problems[0].message


@pytest.mark.parametrize("content", ["", "[]", '{"val": []}', '{"train": "000.png"}'])
def test_files_that_hold_no_splits(tmp_path: Path, content: str) -> None:
    (pictures(tmp_path) / "splits.json").write_text(content)
    with pytest.raises(BadFileError, match=r"splits\.json"):
        split(recognise(tmp_path))


def test_validation_is_taken_from_train_by_subject(tmp_path: Path) -> None:
    parts = split(recognise(archives(tmp_path)))
    assert names(parts.test) == ["case0009"]
    assert len({case.subject for case in parts.train}) == 2
    assert len({case.subject for case in parts.val}) == 1
    assert "val is a part of train" in parts.origin


def test_folders_are_splits(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("val", 2), ("test", 3)):
        pictures(tmp_path / name, count)
    parts = split(recognise(tmp_path))
    assert [len(parts[name]) for name in ("train", "val", "test")] == [4, 2, 3]


def test_only_a_test_folder_leaves_the_rest_to_the_seed(tmp_path: Path) -> None:
    pictures(tmp_path, 8)
    pictures(tmp_path / "test", 2)
    parts = split(recognise(tmp_path))
    assert names(parts.test) == ["test/000", "test/001"]
    assert [len(parts.train), len(parts.val)] == [7, 1]


def test_one_subject_in_two_splits_is_told(tmp_path: Path) -> None:
    cases = collection(["case1_slice1", "case1_slice2", "case2_slice1"], folder=tmp_path)
    listed = {"train": ["case1_slice1"], "val": ["case2_slice1"], "test": ["case1_slice2"]}
    (tmp_path / "splits.json").write_text(json.dumps(listed))
    moved = tuple(replace(case, images=(File(tmp_path / f"{case.name}.png"),)) for case in cases.cases)
    (problem,) = split(replace(cases, cases=moved)).problems
    assert (problem.severity, problem.message[:36]) == ("warning", "1 subjects are in train and test: wh")


def test_an_empty_split_that_is_needed() -> None:
    parts = split(Phantom(cases=2).collection(), shares=(0.5, 0.5, 0))
    assert len(parts.required("train")) == 1
    with pytest.raises(ValueError, match=r"the split test is empty .*train 1, val 1, test 0"):
        parts.required("test")
    with pytest.raises(ValueError, match="there is no split 'tset'"):
        parts["tset"]


def test_subsets_are_nested() -> None:
    cases = Phantom(cases=100).collection().cases
    parts = {share: set(names(subset(cases, share, 1))) for share in (0.05, 0.1, 0.5, 1.0)}
    assert [len(part) for part in parts.values()] == [5, 10, 50, 100]
    assert parts[0.05] < parts[0.1] < parts[0.5] < parts[1.0]
    assert len(subset(cases, 0.0001)) == 1
    assert subset(cases, 0.05, 1) != subset(cases, 0.05, 2)
    with pytest.raises(ValueError, match="share must be above 0"):
        subset(cases, 0)


def test_shares_are_checked() -> None:
    with pytest.raises(ValueError, match="shares must be three parts of 1"):
        split(Phantom(cases=3).collection(), shares=(0.5, 0.5, 0.5))

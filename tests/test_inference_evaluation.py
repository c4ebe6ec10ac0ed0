"""Scores of many cases: by hand on small images, in a table, in files."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from prosma_ops.data import Case, Preparation, recognise, survey
from prosma_ops.inference.evaluation import ALL, CaseScores, Evaluation, evaluate
from prosma_ops.inference.evaluation_files import show, write
from prosma_ops.inference.processes import Processes
from prosma_ops.inference.scoring import ClassScores
from prosma_ops.inference.segmenting import Segmenter
from tests import two_processes
from tests.data_folders import archives, picture, square, volume
from tests.small_runs import Brightness


def bright(folder: Path, count: int = 4) -> tuple[Segmenter, tuple[Case, ...]]:
    """Pictures of a bright square, whose masks are the square; of picture i, i columns of it are dark."""
    for i in range(count):
        image = np.where(square((16, 16)), 200, 20).astype(np.uint8)
        image[:, 4 : 4 + i] = 20
        picture(folder / "images" / f"{i}.png", image)
        picture(folder / "masks" / f"{i}.png", square((16, 16)))
    collection = recognise(folder)
    return Segmenter(Brightness(), Preparation.of(survey(collection)), patch_size=(16, 16)), collection.cases


def of_class(name: str, dice: float, predicted: int = 5, actual: int = 5) -> ClassScores:
    return ClassScores(name, predicted, actual, dice, dice / 2, 3.0, 1.0)


def two_classes(*pairs: tuple[float, float], subjects: str = "") -> Evaluation:
    cases = [
        CaseScores(f"c{i}", subjects[i] if subjects else None, "mm", (of_class("a", first), of_class("b", second)))
        for i, (first, second) in enumerate(pairs)
    ]
    return Evaluation(tuple(cases))


def said(evaluation: Evaluation) -> str:
    console = Console(width=80, file=io.StringIO())
    show(evaluation, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_every_case_is_compared_with_its_mask(tmp_path: Path) -> None:
    segmenter, cases = bright(tmp_path)
    told: list[str] = []
    evaluation = evaluate(segmenter, cases, told=lambda scores: told.append(scores.name))
    expected = [2 * (8 - i) * 8 / (64 + (8 - i) * 8) for i in range(4)]
    np.testing.assert_allclose(evaluation.values("class 1", "dice"), expected)
    assert [case.name for case in evaluation.cases] == told == ["0", "1", "2", "3"]
    assert evaluation.names() == ["class 1"]
    assert evaluation.unit == "pixels"
    assert evaluation.values("class 1", "hd95") == [0, 1, 2, 3]
    assert [case.name for case in evaluation.worst(2)] == ["3", "2"]


def one_of_two(rank: int, folder: Path) -> Evaluation:
    segmenter, cases = bright(folder / str(rank), 5)
    return evaluate(segmenter, cases, processes=Processes(rank, 2))


def test_two_processes_score_each_case_once(tmp_path: Path) -> None:
    segmenter, cases = bright(tmp_path / "both", 5)
    expected = evaluate(segmenter, cases)
    assert len(expected.cases) == 5
    assert two_processes.run(one_of_two, tmp_path, tmp_path) == [expected, expected]


def test_distances_are_in_mm_where_there_is_a_spacing(tmp_path: Path) -> None:
    shape = (12, 12, 12)
    image = np.where(square(shape), 100.0, 20.0)
    image[3] = 20
    volume(tmp_path / "images" / "a.nii.gz", image, np.diag([2.5, 1.0, 1.0, 1.0]))
    volume(tmp_path / "labels" / "a.nii.gz", square(shape), np.diag([2.5, 1.0, 1.0, 1.0]))
    collection = recognise(tmp_path)
    segmenter = Segmenter(Brightness(), Preparation.of(survey(collection)), patch_size=(8, 8, 8))
    evaluation = evaluate(segmenter, collection.cases)
    assert evaluation.unit == "mm"
    assert evaluation.values("class 1", "hd95") == [2.5]
    assert evaluation.summary("class 1", "dice").interval is None


def test_a_stack_is_scored_as_one_volume(tmp_path: Path) -> None:
    collection = recognise(archives(tmp_path))
    segmenter = Segmenter(Brightness(threshold=-99.0), Preparation.of(survey(collection)), patch_size=(16, 16))
    (case,) = (case for case in collection.cases if case.stack)
    (found,) = evaluate(segmenter, [case]).cases[0].classes
    assert (found.predicted, found.actual) == (5 * 16 * 16, square((5, 16, 16)).sum())


def test_a_file_that_cannot_be_read_is_told_and_the_others_count(tmp_path: Path) -> None:
    segmenter, cases = bright(tmp_path)
    path = tmp_path / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    evaluation = evaluate(segmenter, cases)
    assert [case.name for case in evaluation.cases] == ["0", "2", "3"]
    (problem,) = evaluation.problems
    assert problem.file == str(path)
    assert "damaged or truncated" in problem.message


def test_means_leave_out_what_has_no_score() -> None:
    evaluation = two_classes((0.8, math.nan), (0.6, 0.4), (math.nan, math.nan), (1.0, 0.0))
    assert evaluation.summary("a", "dice").mean == pytest.approx(0.8)
    assert evaluation.summary("b", "dice").cases == 2
    # The mean of a case is over the classes it has: 0.8, 0.5, none, 0.5.
    overall = evaluation.summary(ALL, "dice")
    assert (overall.cases, overall.mean, overall.median) == (3, pytest.approx(0.6), pytest.approx(0.5))
    assert overall.deviation == pytest.approx(np.std([0.8, 0.5, 0.5], ddof=1))
    assert [case.name for case in evaluation.by_dice()] == ["c1", "c3", "c0"]


def test_intervals_go_by_subject() -> None:
    pairs = [(dice, dice) for dice in (0.1, 0.12, 0.4, 0.42, 0.6, 0.62, 0.9, 0.92)]
    alone = two_classes(*pairs).summary(ALL, "dice").interval
    together = two_classes(*pairs, subjects="wwxxyyzz").summary(ALL, "dice").interval
    assert alone is not None
    assert together is not None
    assert together[0] < alone[0]
    assert together[1] > alone[1]


def test_missed_and_invented_are_counted() -> None:
    first = CaseScores("c0", None, "mm", (of_class("a", 0.0, predicted=0), of_class("b", 0.0, actual=0)))
    second = CaseScores("c1", None, "mm", (of_class("a", 0.0, predicted=0), of_class("b", 0.5)))
    evaluation = Evaluation((first, second))
    assert evaluation.counts("a") == (2, 0)
    assert evaluation.counts("b") == (0, 1)
    assert evaluation.counts(ALL) == (2, 1)
    shown = said(evaluation)
    assert "missed: a in 2 of 2 cases" in shown
    assert "invented: b in 1 of 2 cases" in shown


def test_tables_and_files(tmp_path: Path) -> None:
    evaluation = two_classes((0.8, math.nan), (0.6, 0.4), (0.7, 0.5))
    shown = said(evaluation)
    low, high = evaluation.summary("a", "dice").interval or (0, 0)
    assert "0.700" in shown
    assert f"[{low:.3f}, {high:.3f}]" in shown
    assert "missed" not in shown
    assert "distances in mm" in shown
    assert "lowest Dice: c1 0.500" in shown
    table, whole = write(evaluation, tmp_path / "new", {"run": "here"})
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 6
    assert rows[0] == {
        "case": "c0",
        "subject": "",
        "class": "a",
        "predicted": "5",
        "actual": "5",
        "dice": "0.8",
        "iou": "0.4",
        "hd95": "3",
        "surface_distance": "1",
    }
    assert rows[1]["dice"] == ""
    content = json.loads(whole.read_text())
    assert content["run"] == "here"
    assert content["cases"][0]["classes"][1]["dice"] is None
    means = {(entry["name"], entry["score"]): entry["mean"] for entry in content["summary"]}
    assert means["mean", "dice"] == pytest.approx((0.8 + 0.5 + 0.6) / 3)
    assert content["missed"] == {"a": 0, "b": 0, "mean": 0}


def test_nothing_to_score_is_no_error_of_its_own(tmp_path: Path) -> None:
    evaluation = Evaluation(())
    assert evaluation.names() == []
    assert said(evaluation) == ""
    write(evaluation, tmp_path, {})

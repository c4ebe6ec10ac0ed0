"""What the values of masks mean: classes, regions, colours, and what is ignored."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prosma_ops.data import LabelScheme, inspect, labels
from prosma_ops.data.case import Case, File
from prosma_ops.data.reading import read_label
from tests.data_folders import describe, noise, picture, pictures, square

NESTED = labels.declared({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4})


@pytest.mark.parametrize(
    ("codes", "expected", "ignore"),
    [
        ([0, 1, 2], ((0,), (1,), (2,)), ()),
        ([1, 3], ((0,), (1,), (2,), (3,)), ()),
        ([0, 255], ((0,), (255,)), ()),
        ([0, 1, 255], ((0,), (1,)), (255,)),
        ([0, 128, 255], ((0,), (128,), (255,)), ()),
        ([0, 100, 200], ((0,), (100,), (200,)), ()),
        ([0], ((0,), (1,)), ()),
    ],
)
def test_classes_are_found(codes: list[int], expected: tuple[tuple[int, ...], ...], ignore: tuple[int, ...]) -> None:
    scheme = labels.found(codes)
    assert (scheme.codes, scheme.ignore, scheme.regions) == (expected, ignore, False)


def test_many_values_are_no_classes() -> None:
    with pytest.raises(ValueError, match="101 different values"):
        labels.found(range(0, 10_001, 100))
    with pytest.raises(ValueError, match="at most 32"):
        labels.found_colours(range(100))


def test_classes_there_and_back() -> None:
    scheme = labels.found([0, 10, 100, 200, 255])
    mask = np.array([[0, 10, 200], [255, 100, 10]])
    encoded = scheme.encode(mask)
    assert encoded.dtype == np.uint8
    np.testing.assert_array_equal(scheme.decode(encoded), mask)
    with pytest.raises(ValueError, match=r"labels 7, 9, which are none of the classes \(0, 10, 100, 200, 255\)"):
        scheme.encode(np.array([0, 7, 9, 10]))


def test_ignored_pixels_are_marked() -> None:
    scheme = labels.declared({"background": 0, "organ": 1, "ignore": 7})
    np.testing.assert_array_equal(scheme.encode(np.array([0, 1, 7])), [0, 1, 255])
    np.testing.assert_array_equal(NESTED.encode(np.array([0, 2, 4])), [[0, 1, 255], [0, 1, 255], [0, 0, 255]])


def test_regions_overlap_and_are_written_from_outside_in() -> None:
    assert NESTED.regions
    assert NESTED.names == ("whole", "core", "enhancing")
    assert NESTED.foreground == (0, 1, 2)
    mask = np.array([0, 1, 2, 3])
    np.testing.assert_array_equal(NESTED.encode(mask), [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(NESTED.decode(NESTED.encode(mask)), mask)


def test_the_order_in_which_regions_are_written() -> None:
    scheme = labels.declared({"background": 0, "core": [2, 3], "whole": [1, 2, 3]}, order=[3, 1])
    assert scheme.written == (3, 1)


def test_classes_of_a_description_are_in_the_order_of_their_numbers() -> None:
    scheme = labels.declared({"2": "vessel", "0": "background", "1": "nerve"})
    assert scheme.names == ("background", "nerve", "vessel")


@pytest.mark.parametrize(
    ("names", "codes", "message"),
    [
        (("a", "b"), ((0,),), "2 names"),
        (("a", "b"), ((0,), (0, 1)), "share a code"),
        (("a", "b"), ((0,), ()), "needs a code"),
        ((), (), "0 names"),
    ],
)
def test_impossible_schemes(names: tuple[str, ...], codes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelScheme(names, codes)


@pytest.mark.parametrize("scheme", [NESTED, labels.found_colours([0xFF0000, 0x00FF00]), labels.found([0, 255])])
def test_json_there_and_back(scheme: LabelScheme) -> None:
    assert LabelScheme.from_json(json.loads(json.dumps(scheme.as_json()))) == scheme


def coloured(folder: Path, colours: Iterable[tuple[int, int, int]]) -> Path:
    pictures(folder, 4)
    for i, colour in enumerate(colours):
        picture(folder / "masks" / f"{i:03}.png", square((24, 24))[..., None] * np.array(colour, np.uint8))
    return folder


def test_masks_in_colours(tmp_path: Path) -> None:
    """The last mask has none of them, and is stored in grey."""
    coloured(tmp_path, [(255, 0, 0), (0, 255, 0), (255, 0, 0)])
    picture(tmp_path / "masks" / "003.png", np.zeros((24, 24), np.uint8))
    found = inspect(tmp_path)
    scheme = found.survey.required_scheme()
    assert scheme.names == ("background", "#00ff00", "#ff0000")
    assert not found.errors
    encoded = [scheme.encode(read_label(case, 2).values) for case in found.survey.collection.cases]
    assert [int(mask.max()) for mask in encoded] == [2, 1, 2, 0]
    assert {mask.shape for mask in encoded} == {(24, 24)}


def test_a_colour_that_a_given_scheme_does_not_know() -> None:
    scheme = labels.found_colours([0xFF0000])
    with pytest.raises(ValueError, match="has colours that are none of the classes"):
        scheme.encode(np.full((2, 2, 3), 9, np.uint8))


def test_photographs_are_no_masks(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    picture(tmp_path / "masks" / "001.png", noise((24, 24, 3), 0))
    errors = [problem for problem in inspect(tmp_path).problems if problem.severity == "error"]
    assert len(errors) == 1
    assert errors[0].file.endswith("001.png")
    assert "different colours" in errors[0].message


def test_indices_of_a_palette(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    for i in range(3):
        palette = [0, 0, 0, 200, 10, 10, 10, 200, 10]
        picture(tmp_path / "masks" / f"{i:03}.png", square((24, 24), 2), palette)
    scheme = inspect(tmp_path).survey.required_scheme()
    assert not scheme.coloured
    assert scheme.palette() == ((0, 0, 0), (200, 10, 10), (10, 200, 10))


def test_blurred_edges_of_a_jpeg_are_no_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    mask = square((76, 76), 255)
    Image.fromarray(mask).convert("RGB").save(path, quality=80)
    assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 2
    np.testing.assert_array_equal(read_label(Case("a", (), File(path)), 2).values, mask)


def test_a_description_beside_pictures_names_their_classes(tmp_path: Path) -> None:
    describe(pictures(tmp_path, 12, label=255), labels={"background": 0, "lesion": 255}, channel_names={"0": "US"})
    found = inspect(tmp_path)
    assert found.survey.required_scheme().names == ("background", "lesion")
    assert found.survey.channel_names() == ("US",)
    assert not found.problems

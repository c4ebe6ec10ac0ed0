"""The demonstration's page: charts, tables and pictures, each by itself and read back from the HTML."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from prosma_ops.data import BadFileError
from prosma_ops.report import charts, contents, measurements, page, pictures, records
from prosma_ops.report.charts import Series, line_chart

VOID = {"meta", "img", "br", "link", "input"}


class Balanced(HTMLParser):
    """Fails where an element is closed that is not open; collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> Balanced:
    reader = Balanced()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def drawing(figure: str) -> ElementTree.Element:
    match = re.search(r"<svg.*</svg>", figure, re.DOTALL)
    assert match is not None
    return ElementTree.fromstring(match.group())


def ticks(figure: str) -> tuple[list[str], list[str]]:
    """The labels of the vertical and of the horizontal axis."""
    texts = drawing(figure).findall("text")
    across = [text.text or "" for text in texts if text.get("class") == "middle"][:-1]
    return [text.text or "" for text in texts if text.get("class") == "end"], across


def test_a_line_runs_from_corner_to_corner() -> None:
    figure = line_chart("Loss", [Series("one", [(0, 0.0), (50, 5.0), (100, 10.0)], 1)], "step")
    (line,) = drawing(figure).findall("polyline")
    points = [tuple(map(float, point.split(","))) for point in (line.get("points") or "").split()]
    assert points[0] == (charts.LEFT, charts.HEIGHT - charts.BOTTOM)
    assert points[-1] == (charts.WIDTH - charts.RIGHT, charts.TOP)
    assert points[1] == ((points[0][0] + points[2][0]) / 2, (points[0][1] + points[2][1]) / 2)
    assert ticks(figure) == (["0", "2", "4", "6", "8", "10"], ["0", "20", "40", "60", "80", "100"])


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0.0, 1.0], {"low": 0, "high": 1}, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([0.12, 0.31], {"low": 0, "percent": True}, ["0 %", "10 %", "20 %", "30 %", "40 %"]),
        ([-1.0, 1.0], {}, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ([3.0, 3.0], {}, ["2.4", "2.6", "2.8", "3.0", "3.2", "3.4", "3.6"]),
        ([1e-4, 4e-4], {"low": 0}, ["0.0000", "0.0001", "0.0002", "0.0003", "0.0004"]),
    ],
)
def test_axes_have_round_numbers(values: list[float], options: dict[str, Any], expected: list[str]) -> None:
    figure = line_chart("x", [Series("one", list(enumerate(values)), 1)], "step", **options)
    assert ticks(figure)[0] == expected


def test_what_is_not_finite_is_left_out_and_one_point_is_a_dot() -> None:
    figure = line_chart("x", [Series("one", [(0, float("nan")), (1, 2.0)], 1)], "step")
    assert len(drawing(figure).findall("circle")) == 1
    assert "no values" in line_chart("x", [Series("one", [], 1)], "step")


def test_a_legend_names_the_lines_that_are_not_faint() -> None:
    lines = [Series("a <b>", [(0, 1)], 1), Series("c", [(0, 2)], 2), Series("hidden", [(0, 3)], 2, faint=True)]
    figure = line_chart("x & y", lines, "step")
    text = " ".join(parsed(figure).text)
    assert "a <b>" in text
    assert "x & y" in text
    legend = figure.partition('<ul class="legend">')[2]
    assert legend.count("<li>") == 2
    assert "hidden" not in legend


def test_pictures_hold_their_pixels() -> None:
    values = np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8)
    html = pictures.picture(values, "a & b", "<note>")
    (data,) = parsed(html).loaded
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as opened:
        assert opened.size == (16 * 8, 24 * 8)
        np.testing.assert_array_equal(np.asarray(opened)[::8, ::8], values)
    grey = pictures.picture(np.array([[0.0, 1.0], [0.5, 2.0]]), "grey")
    with Image.open(io.BytesIO(base64.b64decode(parsed(grey).loaded[0].partition(",")[2]))) as opened:
        assert np.asarray(opened)[::96, ::96].tolist() == [[0, 255], [128, 255]]


def test_tables_and_paragraphs_say_what_they_are_given() -> None:
    html = page.table(["a", "b"], [["<x>", "1"], ["y", "FAIL"]], numbers=[1], strong=[1])
    assert "&lt;x&gt;" in html
    assert '<td class="number bad">FAIL</td>' in html
    assert html.count('<tr class="strong">') == 1
    assert page.paragraph("run `make <all>` now") == "<p>run <code>make &lt;all&gt;</code> now</p>"


def test_a_page_is_whole_and_loads_nothing() -> None:
    section = page.Section("One & two", page.charts([line_chart("x", [Series("a", [(0, 1), (1, 2)], 1)], "step")]))
    html = page.page("A <page>", page.paragraph("hello"), [section])
    reader = parsed(html)
    assert reader.loaded == []
    assert "One & two" in reader.text
    assert "http" not in html
    assert "<script" not in html
    assert "url(" not in html


def parity_record(operator: str, ratio: float, ok: bool = True) -> dict[str, Any]:
    return {
        "operator": operator,
        "implementation": "cpu (v4)",
        "dtype": "float32",
        "error": ratio,
        "bound": 1,
        "ok": ok,
    }


def test_parity_shows_the_worst_of_each_operator() -> None:
    records = [parity_record("sinkhorn", 0.25), parity_record("sinkhorn", 0.5)]
    records.append(parity_record("soft_threshold", 2, ok=False))
    records.append(parity_record("sinkhorn", 0.125) | {"implementation": "triton", "dtype": "float16"})
    html = measurements.parity({"records": records})
    rows = [re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]
    note = '<br><span class="note">'
    good, bad = ' class="good"', ' class="bad"'
    assert rows == [
        [("", "operator"), ("", "cpu (v4)"), ("", "triton")],
        [("", "sinkhorn"), (good, f"pass{note}0.50</span>"), (good, f"pass{note}0.12</span>")],
        [("", "soft_threshold"), (bad, f"FAIL{note}2.00</span>"), ("", "not run")],
    ]
    assert "4 tensors in float32, float16" in html
    unbounded = measurements.parity({"records": [parity_record("sinkhorn", 1) | {"error": None, "ok": False}]})
    assert "no bound" in unbounded


def test_speeds_are_told_beside_the_best_of_the_others() -> None:
    contestants = {
        "ours": {"median": 0.002},
        "eager": {"median": 0.02},
        "compiled": {"median": 0.006},
        "a copy": {"median": 0.001, "rival": False},
        "odd": {"wrong": "differs"},
    }
    record = {"operator": "proximal_gate", "work": "forward", "dtype": "float32", "contestants": contestants}
    bad = record | {"contestants": {"ours": {"wrong": "differs"}, "eager": {"median": 1.0}}}
    html = measurements.speeds([{"records": [record, bad]}])
    rows = [re.findall(r">([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)[1:]]
    assert rows == [
        ["proximal_gate", "forward, float32", "2 ms", "10.0x", "3.00x (compiled)"],
        ["proximal_gate", "forward, float32", "WRONG", "", ""],
    ]
    machine = {"device": "CPU", "versions": {"torch": "2.13"}}
    assert measurements.machines([{"machine": machine}, {"machine": machine}]) == ["CPU, torch 2.13"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1234.0, "1234 s"), (1.5, "1.5 s"), (0.0999, "99.9 ms"), (9.996e-4, "1000 us"), (1e-7, "0.1 us"), (None, "-")],
)
def test_durations_are_read_without_exponents(seconds: float | None, expected: str) -> None:
    assert records.duration(seconds) == expected


def test_committed_results_can_be_shown() -> None:
    folder = Path(__file__).parents[1] / "benchmarks" / "results"
    paths = sorted(path for path in folder.glob("*/*.json") if not path.stem.startswith("sweeps-"))
    html = measurements.speeds([measurements.read_speeds(path) for path in paths])
    assert "proximal_gate" in html
    assert "WRONG" not in html


def test_other_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    with pytest.raises(BadFileError, match=r"parity\.json: is no JSON \(No such file"):
        measurements.read_parity(path)
    path.write_text(json.dumps({"cases": []}))
    with pytest.raises(BadFileError, match="has no records; a JSON of prosma-ops check"):
        measurements.read_parity(path)


def test_each_file_in_the_other_s_place_is_told(tmp_path: Path) -> None:
    """Before anything is trained for the page that they are for."""
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"records": [parity_record("sinkhorn", 0.25)]}))
    assert measurements.read_parity(path)["records"][0]["operator"] == "sinkhorn"
    with pytest.raises(BadFileError, match="a record without work, contestants; a JSON of python -m bench"):
        measurements.read_speeds(path)
    path.write_text(json.dumps({"records": [7]}))
    with pytest.raises(BadFileError, match="a record without operator, implementation"):
        measurements.read_parity(path)


def test_mixtures_are_known_by_their_operators() -> None:
    from prosma_ops import map_names

    names = map_names(4, ("add", "multiply", "concat", "attention"))
    found = [contents.operator_of(name) for name in names]
    assert {operator: found.count(operator) for operator in contents.OPERATORS} == {
        "one map": 4,
        "add": 11,
        "multiply": 11,
        "concat": 11,
        "attention": 11,
    }

"""The plots of results files: `python -m benchmarks.plots RESULTS.json ... [--output DIR]`, an SVG and a PNG each.

    growth-<operator>   time against the parameter of each sweep, ours, eager PyTorch and the floor (of sweeps-*.json)
    ratios-<operator>   what every rival takes, as a multiple of ours, in the main setting (of the races' files)
    roofline            the rate of each work against the arithmetic it does a byte, under what the machine can do

The same files give the same SVGs, byte for byte, so that those that are kept change with the results alone. Colours are
those of Okabe and Ito, which colour-blind readers tell apart; ours, eager and floors differ in mark and stroke as well.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
# Identifiers within an SVG are hashed with this, instead of anew in every process.
matplotlib.rcParams |= {
    "svg.hashsalt": "prosma_ops",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
}

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter  # noqa: E402

from prosma_ops.report.records import EAGER, OURS, leading  # noqa: E402

from . import report, targets  # noqa: E402
from .sweeps import SWEEPS, growth  # noqa: E402

Results = Mapping[str, Any]
Record = Mapping[str, Any]

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#666666",
)
# Of operators, and of rivals in turn: a colour and a mark each.
MARKS = ("o", "s", "^", "D", "v", "P")
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
COLUMNS = 3
DOTS_PER_INCH = 150


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="results files of one machine")
    parser.add_argument("--output", type=Path, help="folder of the plots (default: plots, beside the first file)")
    arguments = parser.parse_args()
    written = draw(arguments.results, arguments.output or arguments.results[0].parent / "plots")
    for path in written:
        print(path)
    return 0 if written else 1


def draw(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Every plot that the files give; what was written."""
    loaded = {path.stem: report.load(path) for path in paths}
    files = {name: found for name, found in loaded.items() if "records" in found}
    sweeps = {name.removeprefix(SWEEPS): found for name, found in files.items() if name.startswith(SWEEPS)}
    races = {name: found for name, found in files.items() if not name.startswith(SWEEPS) and main_records(found)}
    figures: dict[str, Figure] = {}
    for operator, results in sorted(sweeps.items()):
        if results["records"]:
            figures[f"growth-{operator}"] = growth_figure(operator, results)
    for operator, results in sorted(races.items()):
        figures[f"ratios-{operator}"] = ratios_figure(operator, results)
    if any(count.arithmetic(record) for results in races.values() for record in results["records"] for count in ROOFS):
        figures["roofline"] = roofline_figure(races)
    folder.mkdir(parents=True, exist_ok=True)
    return [path for name, figure in figures.items() for path in save(figure, folder / name)]


def save(figure: Figure, path: Path) -> list[Path]:
    vector, pixels = path.with_suffix(".svg"), path.with_suffix(".png")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    vector.write_text(repeatable(text.getvalue()), encoding="utf-8")
    figure.savefig(pixels, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return [vector, pixels]


def repeatable(svg: str) -> str:
    """Matplotlib names a clip path by the address of its object, which no salt makes the same, and gives places in
    millionths of a point, the last of which differed between two drawings of one process: a thousandth will do."""
    names = dict.fromkeys(re.findall(r'<clipPath id="(\w+)"', svg))
    numbers = {name: f"clip{number}" for number, name in enumerate(names)}
    svg = re.sub(r"\bp[0-9a-f]{10}\b", lambda found: numbers.get(found[0], found[0]), svg)
    return re.sub(r"(?<![\w.])-?\d+\.\d{4,}\b", lambda found: f"{float(found[0]):.3f}", svg)


def main_records(results: Results) -> list[Record]:
    """Those of the main setting whose result is right."""
    records = filter(leading, results["records"])
    return [one for one in records if one["contestants"][OURS].get("median") and one["operator"] != "models"]


def caption(files: Iterable[Results], records: Sequence[Record]) -> str:
    """Where and when it was measured, in the setting of most records: sweeps over threads have others too."""
    machines = [results["machine"] for results in files]
    device, torch = machines[0]["device"], machines[0]["versions"]["torch"]
    commits = ", ".join(dict.fromkeys(f"{one['commit']}, {one['date'].split()[0]}" for one in machines))
    groups = [report.group(record) for record in records]
    setting = max(dict.fromkeys(groups), key=groups.count)
    return f"{device}, torch {torch}, {setting}, float32 unless said otherwise; commit {commits}"


def frame(figure: Figure, title: str, below: str, handles: Sequence[Any], columns: int) -> None:
    """Title and legend above everything, the caption below; the panels share what is left between."""
    width, height = figure.get_size_inches()
    rows = math.ceil(len(handles) / columns)
    top, bottom = 0.42 + 0.22 * rows, 0.3
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.1 / width, bottom / height, 1 - 0.3 / width, 1 - (top + bottom) / height))
    figure.text(0.5, 1 - 0.1 / height, title, ha="center", va="top", fontsize=12, fontweight="bold")
    figure.text(0.5, 0.08 / height, below, ha="center", va="bottom", fontsize=8, color=GREY)
    place = (0.5, 1 - 0.34 / height)
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=place, ncols=min(columns, len(handles)))


def plain(text: str) -> str:
    return text.replace("^2", "²").replace("^3", "³")


# Time and memory against a parameter.


def growth_figure(operator: str, results: Results) -> Figure:
    """A panel a sweep, and one for the memory of those that have it."""
    sweeps = [points for points in growth.by_sweep(results["records"]).values() if len(points) > 1]
    panels = [(points, "time") for points in sweeps]
    panels += [(points, "memory") for points in sweeps if len(growth.series(points, OURS, "memory")) > 1]
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(11, 1 + 2.8 * rows), layout="constrained")
    grid = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, (points, quantity) in zip(grid, panels, strict=False):
        growth_panel(axes, points, quantity, results.get("fits", ()))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    known = [axes.get_legend_handles_labels() for axes in grid]
    labelled = {label: handle for handles, labels in known for handle, label in zip(handles, labels, strict=True)}
    frame(
        figure,
        f"{operator}: how the cost of a call grows",
        caption([results], results["records"]),
        list(labelled.values()),
        columns=3,
    )
    return figure


LABELS = {OURS: "ours: median, fastest to slowest round", EAGER: "eager PyTorch, likewise"}
FLOOR = "floor: memory, FMA or exp, whichever is largest"
STYLES = {OURS: (BLUE, "o"), EAGER: (VERMILION, "s")}


def growth_panel(axes: Axes, points: Sequence[Record], quantity: str, fits: Sequence[Mapping[str, Any]]) -> None:
    about = points[0]["sweep"]
    for name, (colour, mark) in STYLES.items():
        found = growth.series(points, name, quantity)
        if not found:
            continue
        axes.plot(*zip(*found, strict=True), color=colour, marker=mark, markersize=4, label=LABELS[name])
        if quantity == "time":
            low, high = spread_of(points, name)
            axes.fill_between([value for value, _ in found], low, high, color=colour, alpha=0.15, linewidth=0)
    floor = sorted((one["sweep"]["value"], max(one["floors"].values())) for one in points if one["floors"])
    if floor and quantity == "time":
        axes.plot(*zip(*floor, strict=True), color="black", linestyle="--", linewidth=1, label=FLOOR)
    scales(axes, [one["sweep"]["value"] for one in points], UNITS[quantity])
    own = [line for line in fits if (line["sweep"], line["quantity"]) == (about["name"], quantity)]
    axes.set_title(plain(about["what"]), loc="left", fontsize=8, pad=14 if own else 4)
    if own:
        powers = ", ".join(f"{line['contestant']} {growth.exponent(line)}" for line in own)
        axes.text(0, 1.015, f"power: {powers}", transform=axes.transAxes, fontsize=7, color=GREY, va="bottom")
    axes.set_xlabel(about["parameter"], fontsize=8)
    axes.set_ylabel("time of a call" if quantity == "time" else "extra peak memory", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)


def megabytes(value: float) -> str:
    return f"{value / 1e3:g} GB" if value >= 1e3 else f"{value:g} MB"


UNITS: dict[str, Callable[[float], str]] = {"time": report.duration, "memory": megabytes}


def spread_of(points: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    entries = sorted(
        (one["sweep"]["value"], one["contestants"][name])
        for one in points
        if one["contestants"].get(name, {}).get("median")
    )
    return [entry["min"] for _, entry in entries], [entry["max"] for _, entry in entries]


MOST_TICKS = 5


def scales(axes: Axes, values: Sequence[float], shown: Callable[[float], str]) -> None:
    """Logarithmic both; the ticks below are values that were measured."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wide = high / low > 200
    axes.yaxis.set_major_locator(LogLocator(numticks=8) if wide else LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xscale("log")
    chosen = sorted(set(values))
    axes.xaxis.set_major_locator(FixedLocator(chosen[:: math.ceil(len(chosen) / MOST_TICKS)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: growth.amount(value)))
    axes.xaxis.set_minor_locator(FixedLocator(chosen))
    axes.xaxis.set_minor_formatter(NullFormatter())


# What rivals take.


def ratios_figure(operator: str, results: Results) -> Figure:
    """A group of bars a work, a bar a rival, its length the rival's time over ours."""
    records = main_records(results)
    groups = [(report.title(record), rivals_of(record)) for record in records]
    groups = [(title, rivals) for title, rivals in groups if rivals]
    names = list(dict.fromkeys(name for _, rivals in groups for name, *_ in rivals))
    style = {
        name: (COLOURS[number % len(COLOURS)], HATCHES[number % len(HATCHES)]) for number, name in enumerate(names)
    }
    bars = sum(len(rivals) for _, rivals in groups) + len(groups)
    figure = Figure(figsize=(11, 1.7 + 0.24 * bars), layout="constrained")
    axes = figure.subplots()
    at, ticks, longest = 0.0, [], 1.0
    for title, rivals in groups:
        top = at
        for name, ratio, low, high in rivals:
            colour, hatch = style[name]
            axes.barh(at, ratio - 1, left=1, height=0.85, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
            axes.plot([low, high], [at, at], color="black", linewidth=0.8, solid_capstyle="butt")
            axes.annotate(
                report.ratio(ratio),
                (max(ratio, high, 1), at),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
            longest = max(longest, high)
            at += 1
        ticks.append(((top + at - 1) / 2, plain(title)))
        at += 0.8
    finish_ratios(axes, ticks, longest)
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=name) for name, (colour, hatch) in style.items()
    ]
    below = caption([results], records)
    frame(figure, f"{operator}: what others take, as a multiple of our time", below, handles, columns=5)
    return figure


HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---")


def rivals_of(record: Record) -> list[tuple[str, float, float, float]]:
    """(name, ratio of the medians, and of its fastest and slowest round to our median), without yardsticks."""
    found = targets.medians(record)
    base = found[OURS]
    return [
        (name, time / base, record["contestants"][name]["min"] / base, record["contestants"][name]["max"] / base)
        for name, time in found.items()
        if name != OURS and record["contestants"][name].get("rival", True)
    ]


def finish_ratios(axes: Axes, ticks: Sequence[tuple[float, str]], longest: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(right=longest * 1.35)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([at for at, _ in ticks], [title for _, title in ticks], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_xlabel("time / our time (bars: medians; lines: fastest to slowest round). Right of 1 is slower than ours.")


# The roofline.


@dataclass(frozen=True)
class Roof:
    """One kind of arithmetic: how much of it a record does, and the ceiling over it."""

    name: str
    key: str  # of rates and floors
    operations: str
    unit: str
    scale: float

    def rate(self, record: Record) -> float | None:
        """Operations a second at most."""
        found = record["rates"].get(self.key)
        return found * 1e9 if found else None

    def arithmetic(self, record: Record) -> float | None:
        """Operations: floors are kept as times at rates that are kept too."""
        rate, floor = self.rate(record), record["floors"].get(self.key)
        return rate * floor if rate and floor else None


ROOFS = (
    Roof("multiply-adds", "fma", "floating-point operations", "GFLOP/s", 1e9),
    Roof("exponentials", "exp", "exponentials", "1e9 exponentials/s", 1e9),
)


def moved(record: Record) -> float | None:
    rate, floor = record["rates"].get("copy"), record["floors"].get("memory")
    return rate * 1e9 * floor if rate and floor else None


def roofline_figure(races: Mapping[str, Results]) -> Figure:
    """A panel each for multiply-adds and exponentials, of those that some work does; beside it what its points are."""
    chosen = [
        (operator, record)
        for operator, results in sorted(races.items())
        for record in main_records(results)
        if moved(record) and record.get("calls", 1) == 1
    ]
    panels = [(roof, [(operator, record) for operator, record in chosen if roof.arithmetic(record)]) for roof in ROOFS]
    panels = [(roof, points) for roof, points in panels if points]
    figure = Figure(figsize=(11, 1 + 4.4 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False, width_ratios=(3, 2))
    operators = list(dict.fromkeys(operator for operator, _ in chosen))
    styles = {operator: (COLOURS[number], MARKS[number]) for number, operator in enumerate(operators)}
    for (axes, beside), (roof, points) in zip(grid, panels, strict=True):
        roofline_panel(axes, roof, points, styles)
        lines = [
            f"{number:2}  {operator}: {report.title(record)}" for number, (operator, record) in enumerate(points, 1)
        ]
        beside.axis("off")
        beside.text(0, 1, plain("\n".join(lines)), transform=beside.transAxes, va="top", fontsize=7, linespacing=1.5)
    handles = [
        Line2D([], [], linestyle="none", color=colour, marker=mark, label=operator)
        for operator, (colour, mark) in styles.items()
    ]
    files = [races[operator] for operator in operators]
    below = caption(files, [record for _, record in chosen])
    frame(figure, "The rate of each work, under what the machine can do", below, handles, columns=6)
    return figure


def roofline_panel(
    axes: Axes, roof: Roof, points: Sequence[tuple[str, Record]], styles: Mapping[str, tuple[str, str]]
) -> None:
    rates = [rate for _, record in points if (rate := roof.rate(record))]
    copies = [record["rates"]["copy"] * 1e9 for _, record in points]
    # Each point has the rates of its own minutes; the ceilings are their medians.
    ceiling, copy = statistics.median(rates), statistics.median(copies)
    found = []
    for operator, record in points:
        work, of_bytes = roof.arithmetic(record), moved(record)
        assert work is not None
        assert of_bytes is not None
        found.append((work / of_bytes, work / targets.medians(record)[OURS] / roof.scale, styles[operator]))
    left = min([x for x, *_ in found] + [ceiling / copy]) / 3
    right = max([x for x, *_ in found] + [ceiling / copy]) * 3
    line = [left, ceiling / copy, right]
    axes.plot(line, [min(ceiling, copy * x) / roof.scale for x in line], color="black", linewidth=1.5)
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(min(y for _, y, _ in found) / 2, ceiling / roof.scale * 2)
    for x, y, (colour, mark) in found:
        axes.scatter([x], [y], s=30, color=colour, marker=mark, zorder=3)
    number_points(axes, [(x, y) for x, y, _ in found])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=14))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{roof.operations} a byte that must move")
    axes.set_ylabel(roof.unit)
    rounded = f"{ceiling / roof.scale:.3g} {roof.unit}"
    axes.set_title(f"{roof.name}: at most {rounded} from registers, {copy / 1e9:.3g} GB/s copied", loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)


# Around a point, in units of its number's size, from the places that readers expect first.
PLACES = [(1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.4), (0, -1.4), (1.6, 0), (-1.6, 0)]
PLACES += [(2 * x, 2 * y) for x, y in PLACES] + [(3 * x, 3 * y) for x, y in PLACES]


def number_points(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A number beside each point, where it covers neither a point nor another number; a line to it where it is far."""
    size = 7.0
    axes.figure.draw_without_rendering()
    taken = [tuple(axes.transData.transform(point)) for point in points]
    scale = size * axes.figure.dpi / 72
    centres = list(taken)
    for number, (x, y) in enumerate(centres, 1):

        def room(place: tuple[float, float], x: float = x, y: float = y) -> float:
            at = (x + place[0] * scale, y + place[1] * scale)
            return min(math.dist(at, other) for other in taken)

        place = next((one for one in PLACES if room(one) >= 1.25 * scale), max(PLACES, key=room))
        taken.append((x + place[0] * scale, y + place[1] * scale))
        far = max(map(abs, place)) > 2
        axes.annotate(
            str(number),
            points[number - 1],
            (place[0] * size, place[1] * size),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 3, "shrinkB": 2}
            if far
            else None,
        )


if __name__ == "__main__":
    sys.exit(main())

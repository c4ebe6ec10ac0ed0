"""Line charts as SVG in a page: scales itself, speaks the page's colours, and needs no script.

A chart is 420 units wide and its letters 13, so that it reads where it is 350 pixels wide as well as where it is 550.
Colours are classes, `series-1` and so on, that the page defines for light and for dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 14, 42
TICKS = 5


@dataclass(frozen=True)
class Series:
    """A line: its name (none: it is no entry of the legend), its points, and the number of its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    faint: bool = False

    def known(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


def line_chart(
    title: str,
    series: Sequence[Series],
    across: str,
    *,
    low: float | None = None,
    high: float | None = None,
    percent: bool = False,
) -> str:
    """A figure with its title and legend. `across` names the horizontal axis; the title says what goes up.

    `low`, `high`: of the vertical axis, by default what the points need; `percent` writes 0.2 as 20 %.
    """
    points = [point for each in series for point in each.known()]
    if not points:
        return f'<figure class="chart"><figcaption>{escape(title)}</figcaption><p class="note">no values</p></figure>'
    bottom, top, ticks = _range([y for _, y in points], low, high)
    left, right, steps = _range([x for x, _ in points], min(x for x, _ in points), max(x for x, _ in points))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        _, y = at(left, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{_number(tick, ticks, percent)}</text>')
    for tick in steps:
        x, _ = at(tick, bottom)
        parts.append(f'<text class="middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}">{_number(tick, steps)}</text>')
    parts.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(across)}</text>')
    drawn = "".join(parts + [_line(each, [at(x, y) for x, y in each.known()]) for each in series if each.known()])
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{drawn}</svg>{_legend(series)}</figure>'


def _line(series: Series, places: Sequence[tuple[float, float]]) -> str:
    kind = f"line series-{series.colour}" + (" faint" if series.faint else "")
    name = f"<title>{escape(series.name)}</title>" if series.name else ""
    if len(places) == 1:
        x, y = places[0]
        return f'<circle class="{kind} dot" cx="{x:.1f}" cy="{y:.1f}" r="3">{name}</circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{kind}" points="{path}">{name}</polyline>'


def _legend(series: Sequence[Series]) -> str:
    entries = [
        f'<li><span class="key series-{each.colour}"></span>{escape(each.name)}</li>'
        for each in series
        if each.name and not each.faint
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>' if len(entries) > 1 else ""


def _range(values: Sequence[float], low: float | None, high: float | None) -> tuple[float, float, list[float]]:
    """Lower end, upper end, and round numbers between them."""
    bottom = min(values) if low is None else low
    top = max(values) if high is None else high
    if top - bottom < 1e-9 * max(1.0, abs(top)):
        bottom, top = bottom - 0.5, top + 0.5
    raw = (top - bottom) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if low is None:
        bottom = math.floor(bottom / step + 1e-9) * step
    if high is None:
        top = math.ceil(top / step - 1e-9) * step
    first = math.ceil(bottom / step - 1e-9)
    return bottom, top, [number * step for number in range(first, math.floor(top / step + 1e-9) + 1)]


def _number(value: float, ticks: Sequence[float], percent: bool = False) -> str:
    """With as many digits as tell the ticks apart."""
    scale = 100 if percent else 1
    step = scale * (ticks[1] - ticks[0] if len(ticks) > 1 else 1.0)
    digits = next((digits for digits in range(6) if abs(round(step, digits) - step) < 1e-9 * step), 6)
    return f"{scale * value:.{digits}f}".replace("-0", "0" if abs(value) < 1e-12 else "-0") + (" %" if percent else "")

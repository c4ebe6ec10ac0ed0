"""A page: sections of text, tables, charts and pictures in one HTML file, in light or dark as the reader's system is.

It reads at 400 pixels as at 1280: charts and pictures stand beside one another where there is room, and a table that is
wider than the page is moved within itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --panel: #f6f8fa;
  --good: #1a7f37; --bad: #c62828; --c1: #0b6bcb; --c2: #d9480f; --c3: #2b8a3e; --c4: #7048c6; --c5: #b0287a; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e3e8ee; --soft: #98a4b3; --line: #2b333e;
  --panel: #1a2029; --good: #4ac26b; --bad: #ff7b72; --c1: #58a6ff; --c2: #ff9a5c; --c3: #56d364; --c4: #b392f0;
  --c5: #f285c1; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 8px 0; }
h2 { font-size: 1.3rem; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
p { max-width: 78ch; margin: 8px 0; }
code { font: 0.9em ui-monospace, monospace; background: var(--panel); padding: 1px 4px; border-radius: 4px;
  overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 0.88rem; }
.wide { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; font-size: 0.92rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px 6px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; }
td .note { font-weight: 400; white-space: nowrap; }
tr.strong td { font-weight: 650; }
@media (max-width: 520px) { main { padding: 16px 12px 48px; } th, td { padding-right: 10px; } }
td.good { color: var(--good); } td.bad { color: var(--bad); font-weight: 650; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 20px;
  margin: 16px 0; }
.charts:has(> :only-child) { max-width: 500px; }
figure { margin: 0; }
figure.chart { background: var(--panel); border-radius: 8px; padding: 12px; }
figure.chart figcaption { font-weight: 600; font-size: 0.95rem; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 13px system-ui, sans-serif; fill: var(--soft); }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; } svg .faint { stroke-width: 0.9; opacity: 0.35; }
svg .dot { stroke-width: 3; }
.series-1 { stroke: var(--c1); background: var(--c1); } .series-2 { stroke: var(--c2); background: var(--c2); }
.series-3 { stroke: var(--c3); background: var(--c3); } .series-4 { stroke: var(--c4); background: var(--c4); }
.series-5 { stroke: var(--c5); background: var(--c5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 0; margin: 8px 0 0;
  font-size: 0.88rem; }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(var(--least), 46%), 1fr)); gap: 12px;
  margin: 14px 0 18px; }
.picture img { width: 100%; height: auto; display: block; border-radius: 6px; image-rendering: pixelated; }
.picture figcaption { font-size: 0.88rem; line-height: 1.35; margin-top: 4px; }
"""


@dataclass(frozen=True)
class Section:
    title: str
    body: str

    def __str__(self) -> str:
        return f"<section><h2>{escape(self.title)}</h2>{self.body}</section>"


def page(title: str, introduction: str, sections: Iterable[Section], end: str = "") -> str:
    """Everything but the title is HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{introduction}\n"
        + "\n".join(map(str, sections))
        + f"\n{end}</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, note: bool = False) -> str:
    """`words` between backticks are set as code."""
    pieces = escape(text, quote=False).split("`")
    marked = "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))
    return f'<p class="note">{marked}</p>' if note else f"<p>{marked}</p>"


def charts(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), strong: Sequence[int] = ()
) -> str:
    """`numbers`: the columns set to the right; `strong`: the rows that count most. "pass" and "FAIL" get colours, and
    what stands on a second line of a cell is set smaller."""

    def cell(kind: str, place: int, text: str) -> str:
        first, _, second = text.partition("\n")
        names = ["number"] * (place in numbers) + {"pass": ["good"], "FAIL": ["bad"]}.get(first, [])
        marked = f' class="{" ".join(names)}"' if names else ""
        more = f'<br><span class="note">{escape(second)}</span>' if second else ""
        return f"<{kind}{marked}>{escape(first)}{more}</{kind}>"

    lines = ["<tr>" + "".join(cell("th", place, text) for place, text in enumerate(head)) + "</tr>"]
    for number, row in enumerate(rows):
        marked = ' class="strong"' if number in strong else ""
        lines.append(f"<tr{marked}>" + "".join(cell("td", place, text) for place, text in enumerate(row)) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'

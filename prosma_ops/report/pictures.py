"""Pictures in a page: PNG of a few thousand pixels as data, enlarged by the browser without smoothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

# Below this many pixels a picture is enlarged here already, since small ones with outlines are hard to see.
SMALLEST = 192


def picture(values: np.ndarray, caption: str, note: str = "") -> str:
    """(rows, columns, 3) uint8, or (rows, columns) between 0 and 1 in grey, with what is written beneath it."""
    if values.dtype != np.uint8:
        values = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(values)
    factor = max(1, -(-SMALLEST // max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    held = io.BytesIO()
    image.save(held, "PNG", optimize=True)
    data = base64.b64encode(held.getvalue()).decode()
    more = f' <span class="note">{escape(note)}</span>' if note else ""
    return (
        f'<figure class="picture"><img alt="{escape(caption)}" src="data:image/png;base64,{data}"'
        f' width="{image.width}" height="{image.height}"><figcaption>{escape(caption)}{more}</figcaption></figure>'
    )


def row(pictures: Sequence[str], least: int = 220) -> str:
    """Pictures beside one another, each `least` pixels wide or more, but two of them even in the narrowest page."""
    return f'<div class="pictures" style="--least: {least}px">{"".join(pictures)}</div>'


def swatches(names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> str:
    """Which colour is what."""
    entries = [
        f'<li><span class="key" style="background:rgb{colour}"></span>{escape(name)}</li>'
        for name, colour in zip(names, colours, strict=True)
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'

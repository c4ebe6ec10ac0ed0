"""Which of `cuda` and `triton` was faster, by what was measured on the kind of GPU at hand.

`python -m benchmarks.tune` writes a table beside this file, one for each kind of GPU:

    {"device": "NVIDIA H200", "seconds": {"proximal_gate": {"float32": [
        {"numbers": 67108864, "cuda": 0.00021, "triton": 0.00034}, ...]}}}

`numbers` is the size of the operator's leading tensor. Between two sizes the nearer one, by its ratio, counts. Where
there is no table, or nothing in it, `cuda` is chosen if it was built, and else `triton`.
"""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RIVALS = ("cuda", "triton")

Seconds = dict[str, dict[str, list[dict[str, Any]]]]


def slug(name: str) -> str:
    """A device's name as files have it: in small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def path_of(device_name: str, folder: Path = FOLDER) -> Path:
    return folder / f"{slug(device_name)}.json"


def read(device_name: str, folder: Path = FOLDER) -> Seconds:
    """operator -> dtype -> measurements; empty where nothing was measured."""
    path = path_of(device_name, folder)
    found: Seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.is_file() else {}
    return found


def fastest(seconds: Seconds, operator: str, dtype: str, numbers: int) -> str | None:
    """The rival that took least time at the size nearest to this one; None where nothing was measured."""
    measured = seconds.get(operator, {}).get(dtype, [])
    if not measured or numbers < 1:
        return None
    nearest = min(measured, key=lambda entry: abs(math.log(entry["numbers"] / numbers)))
    timed = [name for name in RIVALS if nearest.get(name) is not None]
    return min(timed, key=lambda name: float(nearest[name])) if timed else None


@functools.cache
def of_device(index: int) -> Seconds:
    import torch

    return read(torch.cuda.get_device_name(index))

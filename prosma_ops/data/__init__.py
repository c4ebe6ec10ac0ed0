"""Images and their labels: formats recognised by looking, what is wrong with them, and what a network sees of them.

    collection = recognise(folder)              the cases of a folder, or of "phantom"
    found = survey(collection)                  everything read once: sizes, labels, intensities, problems
    parts = split(collection)                   train, val, test
    preparation = prepare(found)                classes, spacing, normalisation: from a file to a tensor, and back
    samples = TrainingSamples(parts.train, preparation, ...)

Each name is loaded when it is first used: looking at a folder needs neither torch nor MONAI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .case import BadFileError, Case, Collection, Problem
    from .findings import Survey, survey
    from .formats import recognise
    from .inspection import Inspection, inspect
    from .labels import LabelScheme
    from .phantom import Phantom
    from .reading import read_image, read_label
    from .splits import Splits, split, subset

_HOME = {
    "Case": ".case",
    "Collection": ".case",
    "Problem": ".case",
    "BadFileError": ".case",
    "recognise": ".formats",
    "Inspection": ".inspection",
    "inspect": ".inspection",
    "LabelScheme": ".labels",
    "Phantom": ".phantom",
    "read_image": ".reading",
    "read_label": ".reading",
    "Splits": ".splits",
    "split": ".splits",
    "subset": ".splits",
    "Survey": ".findings",
    "survey": ".findings",
}
__all__ = [
    "BadFileError",
    "Case",
    "Collection",
    "Inspection",
    "LabelScheme",
    "Phantom",
    "Problem",
    "Splits",
    "Survey",
    "inspect",
    "read_image",
    "read_label",
    "recognise",
    "split",
    "subset",
    "survey",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""From a trained network to masks and to scores.

    segmenter = Segmenter(model, preparation, patch_size=(96, 96, 96), flips=True)    sliding windows, and back
    codes = segmenter.codes(case)                                                   a mask as the training's masks are
    evaluation = evaluate(segmenter, cases)                                         Dice, IoU, distances of borders
    for done in predict(segmenter, inputs(paths), folder): ...                      files like those that came in

Each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bootstrap import interval
    from .evaluation import CaseScores, Evaluation, evaluate
    from .prediction import Prediction, predict
    from .scores import ClassScores, dice, scores
    from .segmenting import Segmenter

_HOME = {
    "CaseScores": ".evaluation",
    "ClassScores": ".scores",
    "Evaluation": ".evaluation",
    "Prediction": ".prediction",
    "Segmenter": ".segmenting",
    "dice": ".scores",
    "evaluate": ".evaluation",
    "interval": ".bootstrap",
    "predict": ".prediction",
    "scores": ".scores",
}
__all__ = [
    "CaseScores",
    "ClassScores",
    "Evaluation",
    "Prediction",
    "Segmenter",
    "dice",
    "evaluate",
    "interval",
    "predict",
    "scores",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

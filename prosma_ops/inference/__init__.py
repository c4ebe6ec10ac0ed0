"""From a trained network to masks and to scores.

    segmenter = Segmenter(model, preparation, patch_size=(96, 96, 96), flips=True)    sliding windows, and back
    codes = segmenter.codes(case)                                                   a mask as the training's masks are
    evaluation = evaluate(segmenter, cases)                                         Dice, IoU, distances of borders
    for done in predict(segmenter, inputs(paths), folder): ...                      files like those that came in

Each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import lazy

if TYPE_CHECKING:
    from .bootstrap import interval
    from .evaluation import CaseScores, Evaluation, evaluate
    from .prediction import Prediction, predict
    from .scoring import ClassScores, dice, scores
    from .segmenting import Segmenter

_HOME = {
    "CaseScores": ".evaluation",
    "ClassScores": ".scoring",
    "Evaluation": ".evaluation",
    "Prediction": ".prediction",
    "Segmenter": ".segmenting",
    "dice": ".scoring",
    "evaluate": ".evaluation",
    "interval": ".bootstrap",
    "predict": ".prediction",
    "scores": ".scoring",
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

__getattr__, __dir__ = lazy.names(__name__, __all__, _HOME)

"""Images and their labels: formats recognised by looking, what is wrong with them, and what a network sees of them.

    collection = recognise(folder)              the cases of a folder, or of "phantom"
    found = survey(collection)                  everything read once: sizes, labels, intensities, problems
    parts = split(collection)                   train, val, test
    preparation = Preparation.of(found, parts.train)    spacing, normalisation: from files to tensors, and back
    samples = TrainingSamples(PreparedCases(parts.train, preparation), patch)    what a training draws
    batches(samples, batch_size, steps)

Each name is loaded when it is first used: looking at a folder needs neither torch nor MONAI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import lazy

if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .cache import PreparedCases
    from .case import BadFileError, Case, Collection, Problem
    from .findings import Survey, survey
    from .formats import recognise
    from .geometry import patch_size, strides, thick_axis
    from .inspection import Inspection, inspect
    from .labels import IGNORED, LabelScheme
    from .pairs import inputs
    from .phantom import Phantom
    from .preparation import Normalisation, Preparation, Prepared
    from .reading import read_image, read_label
    from .samples import TrainingSamples, batches
    from .splits import Splits, split, subset
    from .writing import overlay, write_mask, write_overlay, write_probabilities

_HOME = {
    "Augmentation": ".augmentation",
    "PreparedCases": ".cache",
    "BadFileError": ".case",
    "Case": ".case",
    "Collection": ".case",
    "Problem": ".case",
    "Survey": ".findings",
    "survey": ".findings",
    "recognise": ".formats",
    "patch_size": ".geometry",
    "strides": ".geometry",
    "thick_axis": ".geometry",
    "Inspection": ".inspection",
    "inspect": ".inspection",
    "IGNORED": ".labels",
    "LabelScheme": ".labels",
    "inputs": ".pairs",
    "Phantom": ".phantom",
    "Normalisation": ".preparation",
    "Preparation": ".preparation",
    "Prepared": ".preparation",
    "read_image": ".reading",
    "read_label": ".reading",
    "TrainingSamples": ".samples",
    "batches": ".samples",
    "Splits": ".splits",
    "split": ".splits",
    "subset": ".splits",
    "overlay": ".writing",
    "write_mask": ".writing",
    "write_overlay": ".writing",
    "write_probabilities": ".writing",
}
__all__ = [
    "IGNORED",
    "Augmentation",
    "BadFileError",
    "Case",
    "Collection",
    "Inspection",
    "LabelScheme",
    "Normalisation",
    "Phantom",
    "Preparation",
    "Prepared",
    "PreparedCases",
    "Problem",
    "Splits",
    "Survey",
    "TrainingSamples",
    "batches",
    "inputs",
    "inspect",
    "overlay",
    "patch_size",
    "read_image",
    "read_label",
    "recognise",
    "split",
    "strides",
    "subset",
    "survey",
    "thick_axis",
    "write_mask",
    "write_overlay",
    "write_probabilities",
]

__getattr__, __dir__ = lazy.names(__name__, __all__, _HOME)

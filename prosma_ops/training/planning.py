"""What a configuration leaves open is decided from the data, before anything is trained, and nothing bad gets through.

patch_size     the median prepared image, in multiples of what the network halves, cut down to what fits into memory
strides        of a U-Net: an axis is halved once its voxels are not much longer than the others'
steps          epochs times the steps of one pass over the cases
"""

from __future__ import annotations

import inspect as signatures
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..data import Inspection, Preparation, Splits, patch_size, strides, subset
from ..data.findings import Finding
from ..data.preparation import along
from ..models.convolutional import PRESETS, UNet
from ..models.registry import MODELS
from .configuration import Configuration

MOST_TOLD = 10
# By dimensions. More steps of two volumes teach more than fewer of eight, in the same time.
BATCH_SIZES = {2: 8, 3: 2}
# So few steps between two validations would be spent on validating.
SHORTEST_EPOCH = 25
LONGEST_WARMUP = 100
LEARNING_RATES = {"adamw": 1e-3, "sgd": 1e-2}
WEIGHT_DECAYS = {"adamw": 1e-2, "sgd": 3e-5}


class Plan(NamedTuple):
    """A configuration without anything open, and what it decided about the images."""

    configuration: Configuration
    preparation: Preparation
    splits: Splits


def planned(configuration: Configuration, found: Inspection, processes: int = 1) -> Plan:
    """Raises ValueError for data that has errors, and for what cannot be trained."""
    require_good(found)
    assert found.splits is not None
    train = subset(found.splits.required("train"), configuration.train_share, configuration.seed)
    splits = replace(found.splits, train=train, val=found.splits.required("val"))
    preparation = prepared_as_told(Preparation.of(found.survey, train), configuration)
    names = {case.name for case in train}
    shape = median_shape([each for each in found.survey.usable() if each.case.name in names], preparation)
    configuration = with_sizes(configuration, preparation, shape)
    configuration = with_numbers(configuration, len(train), processes)
    return Plan(with_model(configuration, preparation), preparation, splits)


def require_good(found: Inspection) -> None:
    errors = found.errors
    if errors:
        shown = "".join(f"\n  {error.file}: {error.message}" for error in errors[:MOST_TOLD])
        more = f"\n  and {len(errors) - MOST_TOLD} more" if len(errors) > MOST_TOLD else ""
        count = "an error" if len(errors) == 1 else f"{len(errors)} errors"
        location = found.survey.collection.location
        raise ValueError(f"{location} has {count}, so nothing is trained on it:{shown}{more}")


def prepared_as_told(preparation: Preparation, configuration: Configuration) -> Preparation:
    told = {name: getattr(configuration, name) for name in ("spacing", "size")}
    for name, dimensions, what in (("spacing", 3, "volumes"), ("size", 2, "pictures")):
        if told[name] is not None and preparation.dimensions != dimensions:
            raise ValueError(f"{name} is {list(told[name])}, but it is for {what}, and these are none")
    return replace(preparation, **{name: value for name, value in told.items() if value is not None})


def median_shape(found: Sequence[Finding], preparation: Preparation) -> tuple[float, ...]:
    """Of the prepared images."""
    shapes = []
    for each in found:
        spacing = None if each.spacing is None else along(each.spacing, each.orientation)
        shapes.append(preparation.shape(along(each.shape, each.orientation), spacing)[-preparation.dimensions :])
    return tuple(np.median(shapes, axis=0).tolist())


def with_sizes(configuration: Configuration, preparation: Preparation, shape: Sequence[float]) -> Configuration:
    dimensions = preparation.dimensions
    size = configuration.patch_size
    if size is None:
        multiple = 16 if dimensions == 2 and min(shape) >= 64 else 8
        size = patch_size(shape, preparation.spacing, multiple)
    if len(size) != dimensions:
        raise ValueError(f"patch_size is {list(size)}; these images have {dimensions} dimensions")
    batch = configuration.batch_size or BATCH_SIZES[dimensions]
    return configuration.replaced(patch_size=size, batch_size=batch, spacing=preparation.spacing, size=preparation.size)


def with_numbers(configuration: Configuration, cases: int, processes: int) -> Configuration:
    batch = configuration.batch_size
    assert batch is not None
    if batch % processes:
        raise ValueError(f"batch_size is {batch}; it must be a multiple of the {processes} processes that share it")
    epoch_steps = configuration.epoch_steps
    if epoch_steps is None:
        epoch_steps = max(SHORTEST_EPOCH, math.ceil(cases / (batch * configuration.accumulation)))
    steps = configuration.steps or configuration.epochs * epoch_steps
    changes: dict[str, Any] = {"epoch_steps": epoch_steps, "steps": steps}
    if configuration.warmup is None:
        changes["warmup"] = min(LONGEST_WARMUP, steps // 20)
    if configuration.learning_rate is None:
        changes["learning_rate"] = LEARNING_RATES[configuration.optimizer]
    if configuration.weight_decay is None:
        changes["weight_decay"] = WEIGHT_DECAYS[configuration.optimizer]
    return configuration.replaced(**changes)


def with_model(configuration: Configuration, preparation: Preparation) -> Configuration:
    """With what suits a U-Net here: small, normalised image by image, and strides that fit thick slices."""
    if configuration.model not in MODELS:
        raise ValueError(f"model is {configuration.model!r}; it must be one of {', '.join(MODELS)}")
    kind = MODELS[configuration.model]
    options = dict(configuration.model_options)
    known = list(signatures.signature(kind).parameters)
    for name in options:
        if name not in known or name in ("in_channels", "classes", "spatial_dims"):
            free = [each for each in known if each not in ("in_channels", "classes", "spatial_dims")]
            raise ValueError(f"model_options has no key {name!r} for {configuration.model}: it has {', '.join(free)}")
    if configuration.loss == "dice_ce" and "deep_supervision" in known:
        options.setdefault("deep_supervision", False)
    if issubclass(kind, UNet):
        options.setdefault("norm", "instance")
        if "widths" not in options:
            options.setdefault("preset", "small")
        if "strides" not in options and options.get("preset", "small") in PRESETS:
            widths = options.get("widths") or PRESETS[options["preset"]][preparation.dimensions]
            found = strides(configuration.patch_size or (), preparation.spacing, len(widths))
            options["strides"] = [list(step) for step in found]
    return configuration.replaced(model_options=options)

"""Models by name: `create_model`, `list_models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .skeleton import SegmentationModel

Model = TypeVar("Model", bound=type[SegmentationModel])

MODELS: dict[str, type[SegmentationModel]] = {}


def register(name: str) -> Callable[[Model], Model]:
    """Decorates a model's class: `create_model(name, ...)` makes one."""

    def add(model: Model) -> Model:
        model.model_name = name
        MODELS[name] = model
        return model

    return add


def create_model(
    name: str, *, in_channels: int, classes: int, spatial_dims: int = 2, **options: Any
) -> SegmentationModel:
    """A network by its name, one of `list_models()`, with new parameters.

    Arguments:
        name: which.
        in_channels: of the image.
        classes: channels of the logits, the background's included.
        spatial_dims: 2 or 3; "trans_unet" and "emcad" are for 2.
        options: as the model's class takes them.

    `model.config()` is all of these in one dictionary: `create_model(**model.config())` makes another such model.
    """
    if name not in MODELS:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(map(repr, list_models()))}")
    return MODELS[name](in_channels=in_channels, classes=classes, spatial_dims=spatial_dims, **options)


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(MODELS)

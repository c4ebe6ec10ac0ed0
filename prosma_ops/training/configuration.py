"""What a training is told: every key has a default that works, and a value that cannot be is named with what would do.

A configuration comes from a YAML file, from `key=value` on the command line (`model_options.preset=large` sets one key
of a mapping), and from the arguments with names of their own; later ones win. What None stands for is decided from the
data, see `planning`; the run's folder holds the result.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ..data import Augmentation, BadFileError
from ..inference.precisions import PRECISIONS

LOSSES = ("dice_ce", "deep_supervision", "mutation", "lomix")
# They change how fast a run is, what is shown of it, or where its images are, but not what it learns: a resumed run may
# have others.
WITHOUT_EFFECT = ("data", "workers", "cache_gigabytes", "log_every", "tensorboard")


def key(default: Any, says: str, *, choices: Sequence[str] = (), low: float = -math.inf, high: float = math.inf) -> Any:
    """A key of the configuration: its default or what makes it, what it is, and what values it takes."""
    metadata = {"says": says, "choices": tuple(choices), "low": low, "high": high}
    return (
        field(default_factory=default, metadata=metadata)
        if callable(default)
        else field(default=default, metadata=metadata)
    )


@dataclass(frozen=True)
class Configuration:
    """Everything that a training depends on, but for the images."""

    data: str = key("", "a folder of images, or `phantom`")
    model: str = key("prosma_unet", "one of prosma_ops.models.list_models()")
    model_options: Mapping[str, Any] = key(dict, "keyword arguments of the model's class")
    loss: str = key("lomix", "on the maps of all scales, or dice_ce on the finest alone", choices=LOSSES)
    loss_options: Mapping[str, Any] = key(dict, "keyword arguments of the loss's class")

    train_share: float = key(1.0, "of the training cases, those that are used", low=1e-9, high=1)
    split_seed: int = key(0, "of the split, where the data has none", low=0)
    spacing: tuple[float, ...] | None = key(None, "mm a voxel and axis, of volumes; None: the median", low=1e-6)
    size: tuple[int, ...] | None = key(None, "of every picture; None: the median, if they differ", low=1)
    patch_size: tuple[int, ...] | None = key(None, "of a sample; None: the median image, cut down to what fits", low=1)
    batch_size: int | None = key(None, "samples a batch, of all processes together; None: 8 in 2-D, 2 in 3-D", low=1)
    accumulation: int = key(1, "batches whose gradients make one step", low=1)
    foreground: float = key(0.5, "the share of samples that are centred on the foreground", low=0, high=1)
    balanced: bool = key(False, "draw a class first, and then a case that has it")
    augmentation: Augmentation = key(Augmentation, "chances and strengths of random changes")  # noqa: RUF009

    epochs: int = key(100, "passes over the training cases, or so many times epoch_steps", low=1)
    epoch_steps: int | None = key(None, "steps an epoch; None: one pass over the cases, but 25 at least", low=1)
    steps: int | None = key(None, "in all; None: epochs times epoch_steps", low=1)
    optimizer: str = key("adamw", "AdamW, or SGD with Nesterov's momentum", choices=("adamw", "sgd"))
    learning_rate: float | None = key(None, "the highest; None: 0.001 for adamw, 0.01 for sgd", low=0)
    weight_decay: float | None = key(None, "of weights, not of biases and norms; None: 0.01, or 3e-5 for sgd", low=0)
    momentum: float = key(0.9, "of sgd", low=0, high=1)
    schedule: str = key("cosine", "of the learning rate", choices=("constant", "poly", "cosine"))
    warmup: int | None = key(None, "steps in which it rises from 0; None: a twentieth of all, 100 at most", low=0)
    clip: float = key(5.0, "the largest norm of the gradient; 0: any", low=0)
    ema: float = key(0.0, "decay of a running average of the weights, which is then what is used; 0: none", low=0)
    precision: str = key("32", "of the forward pass", choices=tuple(PRECISIONS))

    validate_every: int = key(1, "epochs", low=1)
    overlap: float = key(0.25, "of the windows of the validation", low=0, high=0.9)
    patience: int = key(0, "validations without a better Dice after which training ends; 0: never", low=0)
    seed: int = key(0, "of everything random", low=0)
    workers: int = key(1, "processes that prepare samples ahead, for each that trains", low=0)
    cache_gigabytes: float = key(4.0, "of prepared cases in memory; the others are mapped from files", low=0)
    log_every: int = key(10, "steps", low=1)
    tensorboard: bool = key(True, "write the curves for TensorBoard")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = _converted(entry.name, getattr(self, entry.name), str(entry.type))
            _require(entry.name, value, entry.metadata)
            object.__setattr__(self, entry.name, value)
        if self.ema >= 1:
            raise ValueError(f"ema is {self.ema}; it must be below 1, such as 0.999")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Configuration:
        _know(given, [entry.name for entry in fields(cls)], "the configuration")
        return cls(**given)

    def as_mapping(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON have them."""
        values: dict[str, Any] = _plain(asdict(self))
        return values

    def text(self) -> str:
        """YAML, each key under what it means."""
        values = self.as_mapping()
        lines = ["# The configuration of this run: prosma-ops train --config FILE takes such a file."]
        for entry in fields(self):
            braced = yaml.safe_dump({entry.name: values[entry.name]}, default_flow_style=True, width=math.inf)
            lines.append(f"# {entry.metadata['says']}{_range(entry.metadata)}\n{braced.strip()[1:-1]}")
        return "\n".join(lines) + "\n"

    def replaced(self, **changes: Any) -> Configuration:
        return replace(self, **changes)

    def differences(self, other: Configuration) -> list[str]:
        """The keys whose values differ, but for those without effect on what is learned."""
        mine, theirs = self.as_mapping(), other.as_mapping()
        return [name for name in mine if mine[name] != theirs[name] and name not in WITHOUT_EFFECT]


def gathered(
    file: Path | None = None, settings: Iterable[str] = (), named: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Keys from a YAML file, then settings `key=value`, then named values that are not None; raises ValueError."""
    given = {} if file is None else read(file)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting} has no value; --set key=value is needed")
        place, *inner = name.strip().split(".")
        target = given
        if inner:
            outer = target.get(place) or {}
            if not isinstance(outer, Mapping):
                raise ValueError(f"--set {setting} is a key of a mapping, but {place} is {outer!r}")
            target[place] = dict(outer)
            target, place = target[place], ".".join(inner)
        target[place] = _parsed(f"--set {setting}", text)
    given.update({name: value for name, value in (named or {}).items() if value is not None})
    return given


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises `BadFileError`."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadFileError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except yaml.YAMLError as error:
        raise BadFileError(path, f"is no YAML ({' '.join(str(error).split())})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadFileError(path, f"holds a {type(content).__name__}; lines `key: value` are needed")
    return content


def _parsed(where: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{where}: {text!r} is no YAML value") from None


def _know(given: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise ValueError(f"{where} has no key {name!r}; {hint}")


def _converted(name: str, value: Any, kind: str) -> Any:
    """The value as the key's type has it; raises ValueError for one that is not that."""
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind.startswith("tuple"):
        inner = kind.removeprefix("tuple[").split(",")[0]
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{name} is {value!r}; a list is needed, a number for each axis: {name}=[64, 64]")
        return tuple(_converted(name, part, inner) for part in value)
    if kind == "Augmentation":
        return _augmentation(value)
    if kind.startswith("Mapping"):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {value!r}; a mapping is needed: {name}.KEY=VALUE, or {name}={{KEY: VALUE}}")
        return dict(value)
    if kind == "float" and isinstance(value, str | int) and not isinstance(value, bool):
        value = _number(value)  # YAML takes 1e-3 for a text
    if kind == "str" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # precision: 32
    wanted = {"str": str, "int": int, "float": float, "bool": bool}[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        what = {"str": "a word", "int": "a whole number", "float": "a number", "bool": "true or false"}[kind]
        raise ValueError(f"{name} is {value!r}; {what} is needed")
    return value


def _number(value: str | int) -> float | str:
    try:
        return float(value)
    except ValueError:
        return str(value)


def _augmentation(value: Any) -> Augmentation:
    if isinstance(value, Augmentation):
        return value
    known = {entry.name: entry for entry in fields(Augmentation)}
    if not isinstance(value, Mapping):
        raise ValueError(f"augmentation is {value!r}; a mapping is needed, with the keys {', '.join(known)}")
    _know(value, list(known), "augmentation")
    found = {name: _converted(f"augmentation.{name}", each, str(known[name].type)) for name, each in value.items()}
    return Augmentation(**found)


def _require(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    for part in value if isinstance(value, tuple) else (value,):
        if rules["choices"] and part not in rules["choices"]:
            raise ValueError(f"{name} is {part!r}; it must be one of {', '.join(rules['choices'])}")
        if isinstance(part, int | float) and not (rules["low"] <= part <= rules["high"] and math.isfinite(part)):
            raise ValueError(f"{name} is {part}; it must be {_bounds(rules)}")


def _bounds(rules: Mapping[str, Any]) -> str:
    low, high = rules["low"], rules["high"]
    least = "above 0" if 0 < low < 1 else f"at least {low}"
    return least if high == math.inf else f"{least} and at most {high}"


def _range(rules: Mapping[str, Any]) -> str:
    return f" ({', '.join(rules['choices'])})" if rules["choices"] else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value

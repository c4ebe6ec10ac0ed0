"""The folder of a run: what a training writes, and all that evaluation and prediction need of it.

configuration.yaml         what the training was told, and what it decided itself
preparation.json           from files to tensors and back, the meaning of the outputs, the names of the cases by split
best.safetensors           weights at the best validation Dice
last.safetensors           weights at the last checkpoint; both are averages where the configuration asks for `ema`
log.jsonl                  a line every few steps, and one a validation
checkpoints/               what `--resume` goes on from
tensorboard/               the curves
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import BadFileError, Case, Collection, LabelScheme, Preparation, Splits, split
from ..data.case import SPLITS
from ..data.writing import replacing
from ..models import SegmentationModel, create_model
from . import storage
from .configuration import Configuration, read

CONFIGURATION, PREPARATION, LOG = "configuration.yaml", "preparation.json", "log.jsonl"
WEIGHTS = ("best", "last")


class RunFolder:
    """A run that a training has begun: `RunFolder.create` for a new one, `RunFolder.open` for one that is there."""

    def __init__(
        self,
        path: Path,
        configuration: Configuration,
        preparation: Preparation,
        cases: Mapping[str, Sequence[str]],
        origin: str,
    ) -> None:
        self.path = path
        self.configuration = configuration
        self.preparation = preparation
        self.cases = cases
        self.origin = origin

    @classmethod
    def create(
        cls, path: Path | str, configuration: Configuration, preparation: Preparation, splits: Splits
    ) -> RunFolder:
        """A new folder, or one that is there but holds no run. Raises ValueError if it holds one."""
        path = Path(path)
        cls.require_new(path)
        content = {"preparation": preparation.as_json(), "splits": splits.as_json(), "origin": splits.origin}
        _write_text(path / PREPARATION, json.dumps(content, indent=1) + "\n")
        _write_text(path / CONFIGURATION, configuration.text())
        return cls(path, configuration, preparation, splits.as_json(), splits.origin)

    @staticmethod
    def require_new(path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; a folder for the run is needed")
        if (path / CONFIGURATION).exists():
            raise ValueError(f"{path} holds a run already; --resume goes on with it, another --out begins anew")

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Raises ValueError that names what is missing or damaged."""
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"{path} is no folder; what `prosma-ops train --out` wrote is needed")
        for name in (CONFIGURATION, PREPARATION):
            if not (path / name).is_file():
                raise ValueError(f"{path} is no run of `prosma-ops train`: it has no {name}")
        try:
            configuration = Configuration.from_mapping(read(path / CONFIGURATION))
        except BadFileError:
            raise
        except ValueError as error:
            raise BadFileError(path / CONFIGURATION, str(error)) from None
        try:
            content = json.loads((path / PREPARATION).read_text())
            preparation = Preparation.from_json(content["preparation"])
            cases = {name: [str(case) for case in content["splits"][name]] for name in SPLITS}
            origin = str(content["origin"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadFileError(path / PREPARATION, f"is damaged ({type(error).__name__}: {error})") from None
        return cls(path, configuration, preparation, cases, origin)

    @property
    def scheme(self) -> LabelScheme:
        return self.preparation.scheme

    def splits(self, collection: Collection) -> Splits:
        """Those of the training where the collection has its cases; those of another collection are its own."""
        known = {case.name: case for case in collection.labelled()}
        named = [name for part in SPLITS for name in self.cases[part]]
        if not all(name in known for name in named):
            return split(collection, self.configuration.split_seed)
        parts: dict[str, tuple[Case, ...]] = {part: tuple(known[name] for name in self.cases[part]) for part in SPLITS}
        left_out = tuple(name for name in known if name not in set(named))
        return Splits(parts["train"], parts["val"], parts["test"], f"{self.path.name}: {self.origin}", left_out)

    @cached_property
    def network(self) -> dict[str, Any]:
        """The keyword arguments of `create_model` for this run's network."""
        return {
            "name": self.configuration.model,
            "in_channels": len(self.preparation.channels),
            "classes": self.scheme.outputs,
            "spatial_dims": self.preparation.dimensions,
            **self.configuration.model_options,
        }

    def new_model(self) -> SegmentationModel:
        """The network as a training starts with it; its parameters follow from torch's random numbers."""
        return create_model(**self.network)

    def model(self, weights: str = "best", device: torch.device | str = "cpu") -> SegmentationModel:
        """The trained network in evaluation mode. Raises ValueError that names what is missing or damaged."""
        path = self.weights_path(weights)
        if not path.is_file():
            others = [name for name in WEIGHTS if self.weights_path(name).is_file()]
            hint = f"; there are the weights {others[0]!r}" if others else "; its training has not come so far"
            raise ValueError(f"{path.parent} has no {path.name}{hint}")
        tensors, _ = storage.read(path)
        model = self.new_model()
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise BadFileError(path, f"does not fit the network of {CONFIGURATION} ({error})") from None
        return model.to(device).eval()

    def weights_path(self, weights: str) -> Path:
        if weights not in WEIGHTS:
            raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}")
        return self.path / f"{weights}.safetensors"

    def write_weights(self, weights: str, state: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        storage.write(self.weights_path(weights), state, values)

    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl; one that was being written when the run was killed is left out."""
        return [json.loads(line) for line in self._whole_lines()]

    def add_to_log(self, entry: Mapping[str, Any]) -> None:
        with _told(self.path / LOG), (self.path / LOG).open("a") as file:
            file.write(json.dumps(dict(entry), allow_nan=True) + "\n")

    def rewind_log(self, step: int) -> None:
        """Without what came after a step: a resumed run writes those lines again."""
        lines = [line for line in self._whole_lines() if json.loads(line)["step"] <= step]
        _write_text(self.path / LOG, "".join(f"{line}\n" for line in lines))

    def _whole_lines(self) -> list[str]:
        path = self.path / LOG
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        try:
            for line in lines:
                json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            raise BadFileError(path, f"has a line that is none of a training's: {line[:60]!r}") from None
        return lines

    def changed(self, configuration: Configuration) -> RunFolder:
        """The same run with another configuration, which is not written."""
        return RunFolder(self.path, configuration, self.preparation, self.cases, self.origin)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system says about a file, said with its name."""
    try:
        yield
    except OSError as error:
        raise BadFileError(path, f"could not be written ({error.strerror or error})") from error

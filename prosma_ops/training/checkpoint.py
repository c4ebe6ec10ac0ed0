"""Checkpoints: everything that a training goes on from, in one file each, of which the newest whole one counts.

tensors    module/...  average/...  optimizer/...  random/torch  random/cuda
values     the step and what was best so far, the optimizer's numbers, the random states of Python and numpy

State is gathered by names through torch.distributed's functions, which see through DistributedDataParallel and collect
what FSDP has spread; so a run may be resumed on another number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..data import BadFileError
from . import randomness, storage
from .optimisation import AveragedWeights

KEPT = 2
PATTERN = "step-*.safetensors"


class Found(NamedTuple):
    """A checkpoint that is whole, and what was said about damaged ones that are newer."""

    path: Path
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    passed_over: tuple[str, ...]


class Checkpoints:
    """Those of a run's folder; the two newest are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
        """Raises `BadFileError`, and then those before it are still there."""
        path = self.folder / f"step-{step:08}.safetensors"
        storage.write(path, tensors, values)
        for old in self.paths()[KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob(PATTERN), reverse=True)

    def newest(self) -> Found | None:
        """None if there is none yet; raises ValueError if there are some, but none that is whole."""
        damaged = []
        for path in self.paths():
            try:
                tensors, values = storage.read(path)
            except BadFileError as error:
                damaged.append(str(error))
                continue
            return Found(path, tensors, values, tuple(damaged))
        if damaged:
            raise ValueError(f"{self.folder} has no checkpoint that is whole: {'; '.join(damaged)}")
        return None


class State:
    """The tensors and numbers of a training, into a checkpoint and back.

    Arguments:
        module: as it is trained, wrapped for several processes or not.
        optimizer: of its parameters.
        average: of its weights, if there is one.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedWeights | None) -> None:
        self.module = module
        self.optimizer = optimizer
        self.average = average

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it, on the CPU; every process has to ask at once, and the first gets the answer."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found: dict[str, Any] = get_optimizer_state_dict(self.module, self.optimizer, options=options)
        tensors: dict[str, Tensor] = {}
        for name, state in found.get("state", {}).items():
            tensors |= {f"optimizer/{name}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        tensors |= _prefixed("module", self._of_module())
        if self.average is not None:
            with self.average.in_place():
                tensors |= _prefixed("average", self._of_module())
        tensors |= _prefixed("random", randomness.tensors())
        return tensors, {"groups": found.get("param_groups", []), "random": randomness.values()}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        parts: dict[str, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        options = StateDictOptions(full_state_dict=True)
        if self.average is not None:
            set_model_state_dict(self.module, parts["average"], options=options)
            self.average.take()
        set_model_state_dict(self.module, parts["module"], options=options)
        state: dict[str, dict[str, Tensor]] = {}
        for name, tensor in parts.get("optimizer", {}).items():
            parameter, _, key = name.rpartition("/")
            state.setdefault(parameter, {})[key] = tensor
        whole = {"state": state, "param_groups": values["groups"]}
        set_optimizer_state_dict(self.module, self.optimizer, whole, options=options)
        randomness.restore(parts["random"], values["random"])

    def network(self, everywhere: bool = False) -> dict[str, Tensor]:
        """The weights that predictions are made with: of the network alone, averaged if there is an average.

        The first process gets them, or, with `everywhere`, each.
        """
        with nullcontext() if self.average is None else self.average.in_place():
            return _part("network.", self._of_module(everywhere))

    def _of_module(self, everywhere: bool = False) -> dict[str, Tensor]:
        found = get_model_state_dict(
            self.module, options=StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
        )
        # Copies: what is gathered on the CPU are the parameters themselves, and averages are exchanged with them.
        return {name: tensor.detach().clone() for name, tensor in found.items() if isinstance(tensor, Tensor)}


def network_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`State.network` from what `State.gather` found at the same time."""
    return _part("average/network.", tensors) or _part("module/network.", tensors)


def _part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What has this prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}

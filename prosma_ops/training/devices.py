"""Where a training runs: Lightning Fabric with the device, the precision and the processes that were asked for.

`torchrun` starts the processes of one machine or many and tells them who they are; without it, `devices` of them are
started here. What a device cannot do is refused before anything is read.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.fsdp import FSDPStrategy
from lightning_fabric.strategies.strategy import Strategy

from ..inference.precisions import require_possible

STRATEGIES = ("ddp", "fsdp")


class Devices(NamedTuple):
    """device: "auto", "cpu" or "cuda". devices: processes a machine, None for one, or for as many as torchrun started.
    strategy: how several processes share the work, see `STRATEGIES`."""

    device: str = "auto"
    devices: int | None = None
    strategy: str = "ddp"


def fabric(wanted: Devices, precision: str) -> Fabric:
    """Launched: from here on there is a process for each device. Raises ValueError for what cannot be."""
    device = _device(wanted.device)
    require_possible(precision, device)
    if device == "cpu" and wanted.strategy == "fsdp":
        raise ValueError("strategy is fsdp, which shards over GPUs; on CPUs ddp will do")
    local, machines = _torchrun()
    if local and wanted.devices not in (None, local):
        raise ValueError(f"--devices is {wanted.devices}, but torchrun started {local} processes here; leave it out")
    devices = local or wanted.devices or 1
    if device == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"{devices} processes need as many GPUs; there are {torch.cuda.device_count()}")
    several = devices * machines > 1
    made = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=machines,
        strategy=_strategy(wanted.strategy) if several or wanted.strategy == "fsdp" else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    made.launch()
    return made


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; it must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no GPU here; cpu will do")
    return name


def _strategy(name: str) -> Strategy:
    if name == "fsdp":
        return FSDPStrategy(state_dict_type="full")
    return DDPStrategy()


def _torchrun() -> tuple[int | None, int]:
    """How many processes it started on this machine, and on how many machines; None and 1 if it did not."""
    if not torch.distributed.is_torchelastic_launched():
        return None, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, max(1, int(os.environ["WORLD_SIZE"]) // local)


def quiet() -> None:
    """Without Fabric's greetings, and its advice, which is for authors of training loops, not for those who run one."""
    warnings.filterwarnings("ignore", module="lightning_fabric")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

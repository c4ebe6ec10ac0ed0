"""Two processes that talk by gloo, for what must hold under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

COUNT = 2


def run(function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` returns in each of the two processes; it must be importable by its name."""
    processes.spawn(_one, (function, str(folder), arguments), nprocs=COUNT)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(COUNT)]


def _one(rank: int, function: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=COUNT)
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()

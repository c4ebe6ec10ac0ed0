"""Work that the processes of torchrun share: each takes every n-th case, and the first one writes the results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Part = TypeVar("Part")


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, parts: Sequence[Part]) -> Sequence[Part]:
        """The parts that are this process's to do; no part is two processes'."""
        return parts[self.rank :: self.count]

    def gathered(self, done: list[Part]) -> list[Part]:
        """What all processes did; each must ask."""
        if self.count == 1:
            return done
        lists: list[list[Part]] = [[] for _ in range(self.count)]
        torch.distributed.all_gather_object(lists, done)
        return [part for each in lists for part in each]

    def device(self, name: str | None) -> torch.device:
        """By default a GPU of this process's own, if there is one; raises ValueError for one that cannot be used."""
        if name is None and torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        try:
            device = torch.device(name or "cpu")
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--device is {name!r}, which cannot be used here: {reason}") from None
        return device


@contextmanager
def processes() -> Iterator[Processes]:
    """Those that torchrun started, or this one alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield Processes(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()

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

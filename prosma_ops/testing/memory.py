"""Memory that tells: what is not written is NaN, what is written outside is seen.

Every operator allocates its results with `torch.empty*`. Inside `guarded_memory()` those hand out views into a
larger buffer, with sentinels before and after; the view itself is filled with NaN (integers with their least value).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MARGIN = 256  # elements each side: a whole row of the widest case, and a multiple of every vector's length
SENTINEL = 93  # exact in every dtype
PATCHED = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty"))


@dataclass
class Guard:
    """The buffers handed out while the guard stood."""

    shift: int = 0  # elements by which the results are moved off their natural alignment
    buffers: list[tuple[Tensor, int]] = field(default_factory=list)

    def embed(self, original: Tensor, allocate: Callable[..., Tensor]) -> Tensor:
        span = 1 + sum((size - 1) * stride for size, stride in zip(original.shape, original.stride(), strict=True))
        start = MARGIN + self.shift
        buffer = allocate((start + span + MARGIN,), dtype=original.dtype, device=original.device).fill_(SENTINEL)
        unwritten = math.nan if original.dtype.is_floating_point else torch.iinfo(original.dtype).min
        buffer[start : start + span] = unwritten
        self.buffers.append((buffer, span))
        return buffer.as_strided(original.shape, original.stride(), start)

    def damaged(self) -> int:
        """How many sentinels have been overwritten."""
        start = MARGIN + self.shift
        return sum(
            int((buffer[:start] != SENTINEL).sum()) + int((buffer[start + span :] != SENTINEL).sum())
            for buffer, span in self.buffers
        )


@contextmanager
def guarded_memory(shift: int = 0) -> Iterator[Guard]:
    """Replace torch's allocating functions inside the block. Not for compiled code, nor for two threads at once."""
    guard = Guard(shift)
    originals = {(owner, name): getattr(owner, name) for owner, name in PATCHED}
    allocate = torch.empty

    def guarded(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Any, **keywords: Any) -> Tensor:
            made = original(*arguments, **keywords)
            ours = type(made) is Tensor and made.numel() and made.layout is torch.strided and made.dtype.is_signed
            plain = made.device.type != "meta" and not made.is_complex() and "out" not in keywords
            return guard.embed(made, allocate) if ours and plain else made

        return run

    for (owner, name), original in originals.items():
        setattr(owner, name, guarded(original))
    try:
        yield guard
    finally:
        for (owner, name), original in originals.items():
            if owner is Tensor:
                delattr(owner, name)  # it is inherited
            else:
                setattr(owner, name, original)

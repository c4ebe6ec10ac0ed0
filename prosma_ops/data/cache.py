"""Prepared cases, kept: in memory as long as they fit, beyond that in files that are mapped, not read.

MONAI's caches count cases, and read a whole volume from disk for every patch. Here the limit is in bytes, and of a
mapped file only the pages are read that a patch touches.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .case import Case, File
from .preparation import Preparation
from .writing import replacing

CACHE_BYTES = 4 << 30
# So many places of each class are kept to centre patches on, evenly spread.
PLACES = 10_000


class PreparedCases(Dataset[Mapping[str, Tensor]]):
    """For each case "image" (C, *space) float32, "label" (1 or outputs, *space) uint8, and where each foreground output
    is: `places(output)`, flat indices.

    Arguments:
        cases: with labels.
        preparation: from files to tensors.
        memory: the first cases are kept in memory, up to so many bytes. They are read here, and shared by processes
            that are forked later.
        folder: the others are prepared once into files here, and mapped; without it they are prepared whenever they are
            asked for. Files of other images or another preparation are never taken for them.
    """

    def __init__(
        self, cases: Sequence[Case], preparation: Preparation, memory: int = CACHE_BYTES, folder: Path | None = None
    ) -> None:
        self.cases = tuple(cases)
        self.preparation = preparation
        self.folder = folder
        self.kept: list[Mapping[str, Tensor]] = []
        self._fill(memory)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        if index < len(self.kept):
            return self.kept[index]
        return (
            self._prepared(self.cases[index]) if self.folder is None else self._mapped(self.cases[index], self.folder)
        )

    def _fill(self, memory: int) -> None:
        workers = min(4, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            for first in range(0, len(self.cases), 4 * workers):
                for prepared in pool.map(self._prepared, self.cases[first : first + 4 * workers]):
                    memory -= sum(values.nbytes for values in prepared.values())
                    if memory < 0:
                        return
                    self.kept.append(prepared)

    def _prepared(self, case: Case) -> dict[str, Tensor]:
        prepared = self.preparation(case)
        label, scheme = prepared["label"], self.preparation.scheme
        for output in scheme.foreground:
            found = (label[output] == 1 if scheme.regions else label[0] == output).flatten().nonzero().flatten()
            prepared[places(output)] = found[:: max(1, len(found) // PLACES)].clone()
        return prepared

    def _mapped(self, case: Case, folder: Path) -> dict[str, Tensor]:
        path = folder / f"{self._key(case)}.pt"
        if not path.exists():
            with replacing(path) as aside:
                torch.save(self._prepared(case), aside)
        mapped: dict[str, Tensor] = torch.load(path, mmap=True, weights_only=True)
        return mapped

    def _key(self, case: Case) -> str:
        """Of the preparation, and of the files' names, sizes and times."""
        parts = [json.dumps(self.preparation.as_json(), sort_keys=True)]
        for source in (*case.images, case.label):
            parts.append(str(source))
            if isinstance(source, File):
                status = source.path.stat()
                parts.append(f"{status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def places(output: int) -> str:
    """The name under which the places of an output are kept."""
    return f"places {output}"

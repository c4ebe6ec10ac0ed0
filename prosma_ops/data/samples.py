"""What a training draws: patch n of a seed is the same whoever asks for it, in whichever order.

Case, place and every random change follow from (seed, n) alone. So a training that stopped goes on with the samples
that it would have had, and two processes with half of each batch draw together what one would have drawn alone.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .augmentation import KEYS, Augmentation
from .cache import PreparedCases, places
from .geometry import thick_axis
from .preparation import plain

DRAWS, CHANGES = 1, 2  # two streams of random numbers from one seed
UNCHANGED = Augmentation(flip=0, affine=0, intensity=0, noise=0, blur=0)


class TrainingSamples(Dataset[dict[str, Tensor]]):
    """Patches of training cases, {"image": (C, *patch) float32, "label": (1 or outputs, *patch) uint8}, endlessly many.

    A patch that reaches beyond its image is filled up with 0 and background. Stacks are drawn from slice by slice.

    Arguments:
        prepared: the cases to draw from. Each is drawn once before any is drawn again, or, with `balanced`, first a
            class is drawn, and then one of the cases that have it.
        patch: the size of a patch.
        seed: of everything random.
        augmentation: random changes; None for none.
        foreground: the share of patches that are centred on the foreground, its classes equally often; the others lie
            anywhere.
    """

    def __init__(
        self,
        prepared: PreparedCases,
        patch: Sequence[int],
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        foreground: float = 0.5,
        balanced: bool = False,
    ) -> None:
        if not len(prepared):
            raise ValueError("there are no cases to draw training samples from: the split is empty")
        preparation = prepared.preparation
        if len(patch) != preparation.dimensions or min(patch) < 1:
            raise ValueError(f"patch must be {preparation.dimensions} sizes, got {tuple(patch)}")
        if not 0 <= foreground <= 1:
            raise ValueError(f"foreground is a share and must be between 0 and 1, got {foreground}")
        change = augmentation if augmentation is not None else UNCHANGED
        thick = thick_axis(preparation.spacing)
        self.prepared = prepared
        self.patch = tuple(int(side) for side in patch)
        self.window = change.window(self.patch, thick)
        self.seed = seed
        self.foreground = foreground
        self._outputs = preparation.scheme.foreground
        self._changes = Compose(change.transforms(self.patch, thick))
        self._having = self._cases_by_class() if balanced else []

    def __len__(self) -> int:
        """An epoch: as many samples as cases. Numbers beyond it belong to later epochs."""
        return len(self.prepared)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        generator = np.random.default_rng((self.seed, CHANGES, number))
        case, output = self.drawn(number)
        loaded = self.prepared[case]
        place = None
        if generator.random() < self.foreground:
            outputs = self._outputs if output is None else (output,)
            present = [other for other in outputs if len(loaded[places(other)])]
            place = int(generator.choice(loaded[places(int(generator.choice(present)))].numpy())) if present else None
        self._changes.set_random_state(seed=int(generator.integers(2**32)))
        changed = self._changes(self._cut(loaded, place, generator))
        image, label = (plain(changed[key]).contiguous() for key in KEYS)
        return {"image": image.float(), "label": label.to(torch.uint8)}

    def drawn(self, number: int) -> tuple[int, int | None]:
        """The index of the case that sample `number` is cut from, and the class that it is drawn for, if for one."""
        if self._having:
            generator = np.random.default_rng((self.seed, DRAWS, number))
            output, cases = self._having[generator.integers(len(self._having))]
            return int(generator.choice(cases)), output
        epoch, place = divmod(number, len(self.prepared))
        return int(np.random.default_rng((self.seed, DRAWS, epoch)).permutation(len(self.prepared))[place]), None

    def _cases_by_class(self) -> list[tuple[int, np.ndarray]]:
        present = np.zeros((len(self.prepared), len(self._outputs)), bool)
        for index in range(len(self.prepared)):
            loaded = self.prepared[index]
            present[index] = [len(loaded[places(output)]) > 0 for output in self._outputs]
        pairs = [(output, np.flatnonzero(present[:, column])) for column, output in enumerate(self._outputs)]
        return [(output, cases) for output, cases in pairs if len(cases)]

    def _cut(
        self, loaded: Mapping[str, Tensor], place: int | None, generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """A window about the patch that has `place`, a flat index, in its middle, or as near to it as keeps the patch
        within the image; None: anywhere."""
        space = loaded["image"].shape[1:]
        centre = None if place is None else np.array(np.unravel_index(place, space))
        stacked = len(space) - len(self.patch)
        number = [int(generator.integers(space[0])) if centre is None else int(centre[0])] if stacked else []
        starts = []
        for axis, (side, whole) in enumerate(zip(self.patch, space[stacked:], strict=True)):
            free = max(0, whole - side)
            wanted = generator.integers(free + 1) if centre is None else centre[stacked + axis] - side // 2
            start = min(max(int(wanted), 0), free) if whole >= side else (whole - side) // 2
            starts.append(start - (self.window[axis] - side) // 2)
        return {key: window(loaded[key][:, number[0]] if number else loaded[key], starts, self.window) for key in KEYS}


def window(values: Tensor, starts: Sequence[int], sides: Sequence[int]) -> Tensor:
    """(channels, *sides) of (channels, *space), with 0 where it reaches outside."""
    inside = [slice(None)]
    outside: list[int] = []
    for start, side, whole in zip(starts, sides, values.shape[1:], strict=True):
        first, last = min(max(start, 0), whole), max(min(start + side, whole), 0)
        inside.append(slice(first, last))
        outside = [max(0, first - start), max(0, start + side - max(last, first)), *outside]
    return F.pad(values[tuple(inside)], outside)


class _Steps(Sampler[list[int]]):
    """The numbers of the samples of each step from `first` on: of all processes' together, this one's part."""

    def __init__(self, batch_size: int, first: int, last: int, rank: int, processes: int) -> None:
        self.batch_size, self.first, self.last, self.rank, self.processes = batch_size, first, last, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            start = (step * self.processes + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))

    def __len__(self) -> int:
        return max(0, self.last - self.first)


def batches(
    samples: TrainingSamples,
    batch_size: int,
    steps: int,
    *,
    first: int = 0,
    rank: int = 0,
    processes: int = 1,
    workers: int = 1,
) -> DataLoader[dict[str, Tensor]]:
    """The batches of steps `first` to `steps` of a training, `batch_size` samples for each process.

    `workers` processes prepare them ahead; with 0 they are made when they are asked for. Neither torch's nor numpy's
    global random numbers are used or moved on.
    """
    if batch_size < 1 or not 0 <= rank < processes:
        raise ValueError(f"batch_size must be positive and rank below processes, got {batch_size}, {rank}, {processes}")
    if not 0 <= first <= steps:
        raise ValueError(f"steps must be at least first, which is not negative, got {steps} and {first}")
    # Forked workers share the memory of the prepared images; elsewhere each would have a copy.
    fork = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        samples,
        batch_sampler=_Steps(batch_size, first, steps, rank, processes),
        num_workers=workers,
        multiprocessing_context="fork" if fork else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_training,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals_to_the_training(_: int) -> None:
    """Ctrl-C, `timeout` and schedulers signal the whole group: a worker that died of it would end the training before
    its checkpoint. Workers end with their loader, or when the training is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

"""Problems of any size whose results are known: a small one, repeated along an axis on which its items do not meet.

The gate's channels, the images of a batch and the tokens of a codebook are independent. So each repetition must give
the small problem's results, which float64 gives in a second, and what is summed over the repetitions (gradients of
shared parameters, counts) must be as many times the small problem's. Nothing of the size is needed beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prosma_ops.testing import Problem, parity

from ..harness import Piece

Build = Callable[[tuple[int, ...], torch.dtype, torch.device], Problem]

# Elements of the small problem at most, if one item has no more: its reference takes under a second.
SMALL = 1 << 20
# Comparing gigabytes in float64 takes longer than all rounds: the first repetition, the last, and some between.
COMPARED = 5


@dataclass(frozen=True)
class Tiling:
    """`inputs` and `results` name the tensors that are repeated with the axis of each; the others are shared, or sums.

    Gradients that come in are repeated along the axis of the result; those of inputs along the axis of the input.
    """

    build: Build
    axis: int  # of the size
    inputs: Mapping[str, int]
    results: Mapping[str, int] = field(default_factory=dict)

    def small(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The size of the small problem: of the divisors of the number of items, the largest that is small enough."""
        count = size[self.axis]
        of_one = math.prod(size) // max(1, count)
        items = max((n for n in range(1, count + 1) if count % n == 0 and n * of_one <= SMALL), default=1)
        return (*size[: self.axis], items, *size[self.axis + 1 :])

    def repetitions(self, size: tuple[int, ...]) -> int:
        return size[self.axis] // self.small(size)[self.axis]

    def small_problem(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
        return self.build(self.small(size), dtype, device)

    def problem(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Problem:
        made, times = self.small_problem(size, dtype, device), self.repetitions(size)
        inputs = {
            name: tensor if tensor is None or name not in self.inputs else repeated(tensor, self.inputs[name], times)
            for name, tensor in made.inputs.items()
        }
        of_result = next(iter(self.results.values()), None)
        grads = made.grads if of_result is None else tuple(repeated(grad, of_result, times) for grad in made.grads)
        return dataclasses.replace(made, inputs=inputs, grads=grads)

    def axis_of(self, name: str) -> int | None:
        """Of a result, or of the gradient of an input: None for sums over all items."""
        of = name.removeprefix("gradient of ")
        return self.inputs.get(of) if of != name else self.results.get(name)

    def pieces(self, found: parity.Results, expected: parity.Expectation, times: int) -> list[Piece]:
        """What `harness.judge` is to compare: the results of `times` repetitions with what one of them must give."""
        pieces: list[Piece] = []
        for name, reference in expected.reference.items():
            result, axis = found.get(name), self.axis_of(name)
            if reference is None:
                continue
            if times == 1 or result is None:
                pieces.append((name, result, reference, expected.eager(name)))
            elif axis is None:
                attempts = [attempt * times for attempt in expected.eager(name)]
                pieces.append((name, result, reference * times, attempts))
            else:
                blocks = result.chunk(times, axis) if result.shape[axis] == times * reference.shape[axis] else [result]
                pieces += [(name, block, reference, expected.eager(name)) for block in spread(blocks)]
        return pieces


def repeated(tensor: Tensor, axis: int, times: int) -> Tensor:
    return tensor if times == 1 else tensor.repeat(*(times if at == axis else 1 for at in range(tensor.dim())))


def spread(blocks: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    last = len(blocks) - 1
    chosen = {round(last * step / (COMPARED - 1)) for step in range(COMPARED)}
    return [blocks[number] for number in sorted(chosen)]

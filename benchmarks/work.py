"""What a benchmark is made of: a piece of work, the contestants that do it, and one contestant's run on one problem."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prosma_ops.testing import Problem
from prosma_ops.testing.case import dtype_name
from prosma_ops.testing.layouts import channels_last

from .targets import OURS, Target

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """One way to do the work: a function that takes the problem's inputs and settings as keywords."""

    name: str
    function: Callable[..., Any]
    layout: str = "contiguous"
    compiled: bool = False  # its first call compiles
    prepare: Callable[[Inputs], Inputs] | None = None  # what a user would do once, not at every call
    rival: bool = True  # False: a yardstick that computes something else, and is not checked
    short: bool = True  # takes part in short runs
    every_setting: bool = True  # False: only with all threads and raised allocator thresholds

    def arrange(self, tensor: Tensor) -> Tensor:
        return channels_last(tensor) if self.layout == "channels_last" else tensor.contiguous()


@dataclass(frozen=True)
class Work:
    """`build(size, dtype, device)` makes the problem; without incoming gradients it is the forward alone."""

    name: str
    build: Callable[[tuple[int, ...], torch.dtype, torch.device], Problem]
    size: tuple[int, ...]
    contestants: Sequence[Contestant]
    dtype: torch.dtype = torch.float32
    training: bool = False
    moved_bytes: float = 0  # the least
    multiply_adds: float = 0
    exponentials: float = 0
    targets: Sequence[Target] = ()
    field_bytes: int = 0  # what extra memory is counted in; 0: memory is not measured
    memory_unit: str = "tensors"  # what `field_bytes` are: tensors of the field's size, unless said otherwise
    calls: int = 1  # a round times this many calls
    short: bool = True  # belongs to short runs
    profiled: bool = False  # worth a look with a profiler
    every_setting: bool = True  # False: only with all threads and raised allocator thresholds

    def problem(self, device: torch.device, size: tuple[int, ...] | None = None) -> Problem:
        made = self.build(size or self.size, self.dtype, device)
        return made if self.training else dataclasses.replace(made, grads=())

    @property
    def numbers(self) -> tuple[Any, ...]:
        """Equal for works whose problems are the same, so that one reference serves them."""
        return self.build, self.size, self.dtype, self.training

    @property
    def key(self) -> str:
        return f"{self.name}, {dtype_name(self.dtype)}"

    @property
    def tiny(self) -> tuple[int, ...]:
        """The same work at a size that only warms a process up."""
        return (1, 2, *(min(8, extent) for extent in self.size[2:]))

    @property
    def ours(self) -> Contestant:
        return self.contestant(OURS)

    def contestant(self, name: str) -> Contestant:
        return next(contestant for contestant in self.contestants if contestant.name == name)


def device_of(problem: Problem) -> torch.device:
    leader = problem.inputs[problem.leader]
    assert leader is not None
    return leader.device


def leaves(problem: Problem, contestant: Contestant) -> Inputs:
    """The inputs in the contestant's layout, requiring gradients where the work is training."""

    def leaf(name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = contestant.arrange(tensor).detach()
        wanted = bool(problem.grads) and name not in problem.constant and tensor.dtype.is_floating_point
        return tensor.requires_grad_() if wanted else tensor

    return {name: leaf(name, tensor) for name, tensor in problem.inputs.items()}


def runner(problem: Problem, contestant: Contestant) -> Callable[[], Any]:
    """A function of no arguments that does the work once: the forward, or the forward and all gradients."""
    inputs = leaves(problem, contestant)
    function, settings = contestant.function, problem.settings
    if contestant.prepare is not None:
        inputs = contestant.prepare(inputs)
    if not problem.grads or not contestant.rival:
        return lambda: function(**inputs, **settings)
    wanted = [tensor for tensor in inputs.values() if isinstance(tensor, Tensor) and tensor.requires_grad]
    grads = [contestant.arrange(grad) for grad in problem.grads]

    def forward_and_backward() -> tuple[Any, Sequence[Tensor]]:
        results = function(**inputs, **settings)
        outputs = [results] if isinstance(results, Tensor) else differentiable(results)
        return results, torch.autograd.grad(outputs, wanted, grads)

    return forward_and_backward


def differentiable(results: Sequence[Tensor | None]) -> list[Tensor]:
    """Those that gradients come in for: not the indices among them."""
    return [result for result in results if result is not None and result.dtype.is_floating_point]


def as_function(contestant: Contestant) -> Callable[..., Any]:
    """The contestant's function with its preparation inside, as the check calls it."""
    prepare = contestant.prepare
    if prepare is None:
        return contestant.function

    def run(**keywords: Any) -> Any:
        return contestant.function(**prepare(keywords))

    return run


def rooms() -> list[str]:
    """The names that an operator has in every room, and its file here."""
    from prosma_ops import backends, ops  # noqa: F401  (ops registers the operators)

    return list(dict.fromkeys(operator.room for operator in backends.OPERATORS.values()))


def works_of(operator: str, device: str) -> Mapping[str, Work]:
    """The works of `benchmarks/<operator>.py` for a device, or of all points of a module of sweeps, by key."""
    module = importlib.import_module(f".{operator}", __package__)
    if hasattr(module, "works"):
        return {work.key: work for work in module.works(device)}
    return {point.work.key: point.work for sweep in module.sweeps((1,)) for point in sweep.points}

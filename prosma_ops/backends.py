"""Which implementation runs, and why.

Every operator has implementations by the names below. Each has one predicate, `can_run`, which serves the silent
choice (`auto`), the loud one (`use_backend`, `PROSMA_OPS_BACKEND`: run it or raise with the reason) and `explain`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native, tuned

BACKENDS = ("reference", "cpu", "triton", "cuda")
BACKEND_VARIABLE = "PROSMA_OPS_BACKEND"
# Fastest first. The interpreter that runs Triton on CPU tensors is a proof, not a speed: never automatic.
AUTOMATIC_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


class Verdict(NamedTuple):
    can_run: bool
    reason: str


Tensors = Sequence[Tensor | None]


# A function of this prefix takes the operator's arguments unchecked, and returns None where a call is not ordinary:
# then the checked way is gone. It exists where a call with nothing to compute has to be cheap.
ORDINARY = "ordinary "


@dataclass(frozen=True)
class Implementation:
    """The functions of one backend for one operator: "forward", "backward", by the operator's own names."""

    can_run: Callable[[Tensors], Verdict]
    functions: Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Operator:
    """`room` is the file that it stands in, under the same name in every room of the house."""

    name: str
    room: str
    implementations: Mapping[str, Implementation] = field(default_factory=dict)

    def run(self, function: str, tensors: Tensors, arguments: Sequence[Any]) -> Any:
        """Call `function` of the implementation that the current setting chooses for `tensors`.

        One tensor is enough where the operator has checked that all are on one device.
        """
        return choose(self, tensors).functions[function](*arguments)

    def run_ordinary(self, function: str, arguments: Sequence[Any]) -> Any:
        """What the native library makes of a call whose arguments nobody has checked; None if it wants them checked."""
        if _override is not None:
            return None
        return self.implementations["cpu"].functions[ORDINARY + function](*arguments)


OPERATORS: dict[str, Operator] = {}


def register(name: str, room: str, implementations: Mapping[str, Implementation]) -> Operator:
    OPERATORS[name] = Operator(name, room, implementations)
    return OPERATORS[name]


def _valid(name: str, source: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}; it must be 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    return name


# One setting for the process, not one a thread: the autograd engine runs backward passes on threads of its own,
# where a choice made by the caller's thread would be lost.
_override: str | None = None


def current() -> str:
    """The backend asked for: by `use_backend`, else by the environment, else "auto"."""
    if _override is not None:
        return _override
    asked = os.environ.get(BACKEND_VARIABLE)
    return _valid(asked, BACKEND_VARIABLE) if asked else "auto"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the operators inside the `with` block, forward and backward, on this backend, or raise with the reason.

    >>> with prosma_ops.use_backend("reference"):
    ...     y = prosma_ops.proximal_gate(field, weight, threshold, dilations=(1, 2, 3))

    The setting holds for the whole process while the block runs; `"auto"` lifts an outer choice.
    """
    global _override
    previous, _override = _override, _valid(name, "use_backend's name")
    try:
        yield
    finally:
        _override = previous


def choose(operator: Operator, tensors: Tensors) -> Implementation:
    asked = current()
    if asked != "auto":
        implementation = operator.implementations[asked]
        can_run, reason = implementation.can_run(tensors)
        if not can_run:
            raise RuntimeError(f"{operator.name}: backend {asked!r} was asked for and cannot run: {reason}")
        return implementation
    for name in automatic_order(operator.name, tensors):
        implementation = operator.implementations[name]
        if implementation.can_run(tensors).can_run:
            return implementation
        if name == "cpu":
            native.warn_once()
    raise RuntimeError(f"{operator.name}: no backend can run these tensors; see prosma_ops.explain")


def automatic_order(operator: str, tensors: Tensors) -> Sequence[str]:
    """Fastest first. On a GPU whose kind was measured, what was faster at the nearest size comes first."""
    first = leader(tensors)
    if first.is_cpu:
        return AUTOMATIC_ORDER["cpu"]
    order = AUTOMATIC_ORDER.get(first.device.type, ("reference",))
    if first.is_cuda and torch.version.hip is None:
        dtype = str(first.dtype).removeprefix("torch.")
        best = tuned.fastest(tuned.of_device(first.device.index), operator, dtype, first.numel())
        if best is not None:
            return best, *(name for name in order if name != best)
    return order


def leader(tensors: Tensors) -> Tensor:
    return tensors[0] if tensors[0] is not None else next(tensor for tensor in tensors if tensor is not None)


class Explanation(dict[str, Verdict]):
    """backend -> (can it run, why or why not); printed as a small table. `chosen` is what would run now."""

    def __init__(self, operator: str, verdicts: Mapping[str, Verdict], chosen: str | None):
        super().__init__(verdicts)
        self.operator = operator
        self.chosen = chosen

    def __str__(self) -> str:
        rows = [f"{self.operator}:"]
        for name, (can_run, reason) in self.items():
            mark = "runs" if name == self.chosen else "can" if can_run else "no"
            rows.append(f"  {name:<10}{mark:<6}{reason}")
        return "\n".join(rows)


def explain(op: str | Callable[..., Any], *tensors: Tensor) -> Explanation:
    """Every backend with yes or why not, for these tensors. `op` is an operator's name or its public function.

    >>> print(prosma_ops.explain("proximal_gate", field))
    """
    from . import ops  # noqa: F401  (registers the operators)

    name = op if isinstance(op, str) else getattr(op, "__name__", str(op))
    if name not in OPERATORS:
        raise ValueError(f"op is {name!r}; it must be one of {', '.join(map(repr, OPERATORS))}")
    if not tensors:
        raise ValueError(
            "explain needs at least the operator's first tensor: the answer depends on its device and dtype"
        )
    operator = OPERATORS[name]
    verdicts = {backend: operator.implementations[backend].can_run(tensors) for backend in BACKENDS}
    asked = current()
    candidates = automatic_order(name, tensors) if asked == "auto" else (asked,)
    chosen = next((backend for backend in candidates if verdicts[backend].can_run), None)
    return Explanation(name, verdicts, chosen)


# The predicates that all operators share.

SUPPORTED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def reference_can_run(tensors: Tensors) -> Verdict:
    return Verdict(True, "plain PyTorch runs everywhere")


def cpu_can_run(tensors: Tensors) -> Verdict:
    for tensor in tensors:
        if tensor is not None and not tensor.is_cpu:
            return Verdict(False, f"the tensors are on {tensor.device}, not on the CPU")
    module, reason = native.load()
    return Verdict(module is not None, reason)


def triton_can_run(tensors: Tensors) -> Verdict:
    """Decides without importing the kernels where that can be avoided: Triton takes 0.3 s to import."""
    device = leader(tensors).device
    if device.type not in ("cuda", "cpu"):
        return Verdict(False, f"the tensors are on {device}; Triton kernels run on NVIDIA and AMD GPUs")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return Verdict(
            False, "the tensors are on the CPU: it needs a GPU, or TRITON_INTERPRET=1 set before Python starts"
        )
    kernels, reason = triton_package()
    if kernels is None:
        return Verdict(False, reason)
    return Verdict(True, "interpreted on the CPU" if device.type == "cpu" else f"compiled for {device}")


_triton: tuple[ModuleType | None, str] | None = None


def triton_package() -> tuple[ModuleType | None, str]:
    global _triton
    if _triton is None:
        try:
            import triton

            _triton = (triton, f"Triton {triton.__version__}")
        except Exception as error:  # a Triton without its driver or compiler fails in its own ways
            _triton = (None, f"Triton does not import ({type(error).__name__}: {error})")
    return _triton


def cuda_can_run(operator: str) -> Callable[[Tensors], Verdict]:
    def can_run(tensors: Tensors) -> Verdict:
        module, reason = native.load()
        if module is None:
            return Verdict(False, reason)
        if not module.cuda:
            return Verdict(False, "this build has no CUDA kernels (install with PROSMA_CUDA=1 and nvcc)")
        if not hasattr(module, f"{operator}_cuda_forward"):
            return Verdict(False, f"there is no CUDA C++ kernel for {operator}; triton serves GPUs")
        for tensor in tensors:
            if tensor is not None and tensor.device.type != "cuda":
                return Verdict(False, f"the tensors are on {tensor.device}, not on a CUDA device")
        return Verdict(True, "compiled CUDA C++")

    return can_run

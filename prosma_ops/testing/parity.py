"""Every operator x implementation that can run here x dtype x layout, forward and every gradient, against float64.

    for record in parity.run(torch.device("cpu")):
        print(record.operator, record.implementation, record.tensor, record.ratio, record.reason)

An operator that is registered and has no cases, or that no implementation ran, is a failing record.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backends, native
from .case import Case, Problem, dtype_name, suite
from .layouts import channels_last
from .memory import Guard, guarded_memory
from .tolerance import bound, compare

EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Record:
    """How one tensor of one case came out."""

    operator: str
    implementation: str  # the backend; for the native library with its level: "cpu (v3)"
    dtype: str
    layout: str
    case: str
    tensor: str
    error: float
    bound: float
    ok: bool
    reason: str = ""

    @property
    def ratio(self) -> float:
        if self.error == 0:
            return 0.0
        return self.error / self.bound if self.bound > 0 else math.inf

    def as_json(self) -> dict[str, Any]:
        """JSON has no infinity: a ratio, error or bound without end becomes null."""
        values = asdict(self) | {"ratio": self.ratio}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class Implementation:
    """A backend, and for the native library the processor level it is to run at."""

    backend: str
    level: str | None = None

    def __str__(self) -> str:
        return self.backend if self.level is None else f"{self.backend} ({self.level})"

    @contextlib.contextmanager
    def chosen(self) -> Iterator[None]:
        with backends.use_backend(self.backend):
            if self.level is None:
                yield
                return
            module = native.required()
            before = module.select_level(os.environ.get(native.LEVEL_VARIABLE, "auto"))
            module.select_level(self.level)
            try:
                yield
            finally:
                module.select_level(before)


def operators() -> list[str]:
    from .. import ops  # noqa: F401  (registers them)

    return list(backends.OPERATORS)


def implementations(
    operator: str, device: torch.device, only: Sequence[str] = backends.BACKENDS
) -> tuple[list[Implementation], dict[str, str]]:
    """Those that can run on this device, and of the other backends why they cannot."""
    probe = torch.empty(1, device=device)
    can, cannot = [], {}
    for backend in only:
        runs, reason = backends.OPERATORS[operator].implementations[backend].can_run((probe,))
        if not runs:
            cannot[backend] = reason
        elif backend == "cpu":
            can += [Implementation(backend, level) for level in native.required().runnable_levels]
        else:
            can.append(Implementation(backend))
    return can, cannot


Results = dict[str, Tensor | None]


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def evaluate(problem: Problem, function: Callable[..., Any], arrange: Callable[[Tensor], Tensor] = as_it_is) -> Results:
    """The results and the gradients by name; `arrange` is applied to every tensor first."""

    def leaf(name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = arrange(tensor).detach()
        wanted = problem.grads and name not in problem.constant and tensor.dtype.is_floating_point
        return tensor.requires_grad_() if wanted else tensor

    inputs = {name: leaf(name, tensor) for name, tensor in problem.inputs.items()}
    outputs = function(**inputs, **problem.settings)
    named = name_outputs(outputs)
    found: Results = {name: tensor.detach() for name, tensor in named.items()}
    if problem.grads:
        leaves = {name: tensor for name, tensor in inputs.items() if tensor is not None and tensor.requires_grad}
        differentiable = [tensor for tensor in named.values() if tensor.requires_grad]
        grads = [arrange(grad) for grad in problem.grads]
        gradients = torch.autograd.grad(differentiable, list(leaves.values()), grads, allow_unused=True)
        found |= {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return found


def name_outputs(outputs: Any) -> dict[str, Tensor]:
    """A single tensor is "result"; a named tuple gives its own names; None is left out."""
    if isinstance(outputs, Tensor):
        return {"result": outputs}
    names = getattr(outputs, "_fields", [f"result {i}" for i in range(len(outputs))])
    return {name: tensor for name, tensor in zip(names, outputs, strict=True) if isinstance(tensor, Tensor)}


@dataclass(frozen=True)
class Expectation:
    """What a problem's results must be: computed once, compared with every implementation."""

    reference: Results
    attempts: Sequence[Results]  # of eager PyTorch, contiguous and channels_last

    def eager(self, name: str) -> list[Tensor]:
        found = (attempt.get(name) for attempt in self.attempts)
        return [tensor for tensor in found if tensor is not None]

    def bound(self, name: str, dtype: torch.dtype) -> float:
        reference = self.reference[name]
        assert reference is not None
        return bound(dtype, reference, self.eager(name))


def expectation(problem: Problem) -> Expectation:
    """Computed on the CPU, whatever the problem's device: eager PyTorch on a GPU may use TF32.

    The float64 reference cannot measure eager float64, which rounds as much as it does itself. So that error is taken
    from eager float32 on the same numbers, and scaled by the ratio of the two eps, 2^-29.
    """

    def contiguous(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        return lambda tensor: tensor.contiguous().to("cpu", dtype if tensor.dtype.is_floating_point else tensor.dtype)

    with one_thread():
        return _expectation(problem, contiguous)


def _expectation(problem: Problem, contiguous: Callable[[torch.dtype], Callable[[Tensor], Tensor]]) -> Expectation:
    reference = evaluate(problem, problem.definition, contiguous(torch.float64))
    as_user = contiguous(torch.float32 if problem.dtype is torch.float64 else problem.dtype)
    try:
        with without_onednn(problem.dtype.itemsize == 2):
            attempts = [
                evaluate(problem, problem.eager, as_user),
                evaluate(problem, problem.eager, lambda tensor: channels_last(as_user(tensor))),
            ]
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
        attempts = []
    if problem.dtype is torch.float64:
        attempts = [_as_if_float64(attempt, reference) for attempt in attempts]
    return Expectation(reference, attempts)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For tensors this small waiting for a second thread takes longer than the work: 3 times, on a busy machine 10."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def without_onednn(wanted: bool) -> Iterator[None]:
    """Eager half precision without oneDNN: on processors with AVX512-BF16 the kernels of torch 2.13 for the backward
    of small depthwise convolutions read beyond their buffers, and now and then end the process."""
    flags: Any = torch.backends.mkldnn
    before = flags.enabled
    flags.enabled = before and not wanted
    try:
        yield
    finally:
        flags.enabled = before


def _as_if_float64(attempt: Results, reference: Results) -> Results:
    found: Results = {}
    for name, exact in reference.items():
        result = attempt.get(name)
        if exact is not None and result is not None:
            found[name] = exact + (result.double() - exact) * (EPS64 / EPS32)
    return found


def expected_dtype(problem: Problem, name: str) -> torch.dtype | None:
    """Of a gradient: its input's."""
    tensor = problem.inputs.get(name.removeprefix("gradient of "))
    return None if tensor is None or not name.startswith("gradient of ") else tensor.dtype


def judge(
    case: Case,
    problem: Problem,
    expected: Expectation,
    implementation: Implementation,
    memory: Callable[[], contextlib.AbstractContextManager[Guard]] = guarded_memory,
) -> list[Record]:
    """Run one problem on one implementation, in guarded memory, and compare every tensor."""

    def record(tensor: str, error: float, allowed: float, ok: bool, reason: str) -> Record:
        labels = (case.operator, str(implementation), dtype_name(case.dtype), case.layout, case.name)
        return Record(*labels, tensor, error, allowed, ok, reason)

    try:
        with implementation.chosen(), full_precision(), memory() as guard:
            found = evaluate(problem, problem.function)
            damaged = guard.damaged()
    except Exception as error:  # whatever an implementation raises is a failure of this case, not of the run
        return [record("call", math.inf, 0.0, False, f"{type(error).__name__}: {error}")]
    records = []
    for name, reference in expected.reference.items():
        if reference is not None:
            result = found.get(name)
            verdict = compare(result, reference, expected.eager(name), expected_dtype(problem, name))
            records.append(record(name, *verdict))
    if damaged:
        records.append(
            record("memory", math.inf, 0.0, False, f"{damaged} elements beside the results were overwritten")
        )
    return records


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32 while the block runs: it has 10 bits, and float32 results are judged as float32."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def run(
    device: torch.device,
    *,
    only_operators: Sequence[str] | None = None,
    only_backends: Sequence[str] = backends.BACKENDS,
    size: str = "full",
) -> Iterator[Record]:
    """Yield a record for every tensor compared."""
    for operator in operators():
        if only_operators is not None and operator not in only_operators:
            continue
        try:
            cases = suite(operator).cases(size)
        except LookupError as error:
            yield Record(operator, "all", "", "", "", "", math.inf, 0.0, False, str(error))
            continue
        can, _ = implementations(operator, device, only_backends)
        for case in cases if can else ():
            problem = case.build(device)
            expected = expectation(problem)
            for implementation in can:
                yield from judge(case, problem, expected, implementation)


def worst(records: Sequence[Record]) -> Mapping[tuple[str, str, str, str], list[Record]]:
    """Records by (operator, implementation, dtype, layout), each group with the worst ratio first."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.operator, record.implementation, record.dtype, record.layout), []).append(record)
    for group in groups.values():
        group.sort(key=lambda record: (record.ok, -record.ratio))
    return groups

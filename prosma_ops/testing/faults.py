"""Plants an error into each implementation's result in turn, to show that the parity runner reports it.

An error goes in where it would arise: into what an implementation's function returns, below the operator's
dispatch. So a report also proves that the implementation asked for is the one that ran.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .. import backends
from .case import DTYPES, Case, Problem, Suite, dtype_name, suite
from .parity import Expectation, Implementation, expectation, expected_dtype, implementations, judge, operators

Damage = Callable[[Tensor], None]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Plant:
    """One planted error. `reported`: the runner named this tensor as wrong, and nothing was wrong without it.

    An index that is wrong may end the backward pass, which has to use it: that reports it as well.
    """

    operator: str
    implementation: str
    dtype: str
    tensor: str
    fault: str
    reported: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def one_element_off(allowed: float) -> Damage:
    """2.5 tolerances: what is left after the result's own error, at most 1, is still beyond the tolerance. A count is
    off by one."""

    def damage(result: Tensor) -> None:
        result[(-1,) * result.dim()] += 2.5 * allowed if result.dtype.is_floating_point else 1

    return damage


def wrong_sign(result: Tensor) -> None:
    result.neg_()


def not_written(result: Tensor) -> None:
    unwritten = math.nan if result.dtype.is_floating_point else torch.iinfo(result.dtype).min
    result[(0,) * result.dim()] = unwritten


def faults(allowed: float) -> dict[str, Damage]:
    return {
        "one element off": one_element_off(allowed),
        "wrong sign": wrong_sign,
        "one element not written": not_written,
    }


def same(one: Any, other: Any) -> bool:
    """Whether two arguments of a function are alike in value and layout. 0.0 and -0.0 are; what holds NaN never is."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        laid_out = (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        return laid_out and torch.equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value


def table_of(operator: str, backend: str) -> MutableMapping[str, Function]:
    functions = backends.OPERATORS[operator].implementations[backend].functions
    return cast(MutableMapping[str, Function], functions)


@contextmanager
def wrapped(
    table: MutableMapping[str, Function], names: Iterable[str], wrap: Callable[[Function], Function]
) -> Iterator[None]:
    """What `wrap` makes of these functions, of those that a backend has, stands in its table while the block runs."""
    originals = {name: table[name] for name in names if name in table}
    table.update({name: wrap(original) for name, original in originals.items()})
    try:
        yield
    finally:
        table.update(originals)


def remembering(operator: str, backend: str) -> AbstractContextManager[None]:
    """While the block runs, no function of a backend computes again what it was asked before.

    Of the runs of a self-test most differ from each other in one tensor that one function returned. Under Triton's
    interpreter they took seven minutes.
    """

    def remembered(original: Function) -> Function:
        past: list[tuple[Any, Any]] = []

        def run(*arguments: Any) -> Any:
            for asked, returned in past:
                if same(asked, arguments):
                    return copied(returned)
            asked = copied(arguments)
            returned = original(*arguments)
            past.append((asked, copied(returned)))
            return returned

        return run

    table = table_of(operator, backend)
    return wrapped(table, table, remembered)


def planted(operator: str, backend: str, function: str, index: int, damage: Damage) -> AbstractContextManager[None]:
    """Damage the result at `index` of one function of one backend while the block runs, ordinary calls included."""

    def damaging(original: Function) -> Function:
        def run(*arguments: Any) -> Any:
            returned = original(*arguments)
            if returned is None:  # not an ordinary call
                return None
            results = [returned] if isinstance(returned, Tensor) else list(returned)
            results[index] = results[index].clone()
            damage(results[index])
            return results[0] if isinstance(returned, Tensor) else tuple(results)

        return run

    return wrapped(table_of(operator, backend), (function, backends.ORDINARY + function), damaging)


def run(
    device: torch.device,
    *,
    only_operators: Sequence[str] | None = None,
    only_backends: Sequence[str] = backends.BACKENDS,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> Iterator[Plant]:
    for operator in operators():
        if only_operators is not None and operator not in only_operators:
            continue
        try:
            found = suite(operator)
        except LookupError as error:
            yield Plant(operator, "all", "", "", "", False, str(error))
            continue
        can, _ = implementations(operator, device, only_backends)
        for dtype in dtypes if can else ():
            chosen = _case_with_everything(found, dtype, device)
            if chosen is None:
                yield Plant(operator, "all", dtype_name(dtype), "", "", False, "no tiny case has every result")
                continue
            for implementation in can:
                with remembering(operator, implementation.backend):
                    yield from _plants(found, *chosen, implementation)


def _case_with_everything(
    found: Suite, dtype: torch.dtype, device: torch.device
) -> tuple[Case, Problem, Expectation] | None:
    """The first tiny case in which each named result exists and is not all zero."""
    names = [name for results in found.results.values() for name in results]
    for case in found.cases("tiny"):
        if case.dtype is dtype:
            problem = case.build(device)
            expected = expectation(problem)
            if all(expected.reference.get(name) is not None and expected.bound(name, dtype) > 0 for name in names):
                return case, problem, expected
    return None


def _plants(
    found: Suite, case: Case, problem: Problem, expected: Expectation, implementation: Implementation
) -> Iterator[Plant]:
    def plant(tensor: str, fault: str, reported: bool, reason: str) -> Plant:
        labels = (case.operator, str(implementation), dtype_name(case.dtype))
        return Plant(*labels, tensor, fault, reported, reason)

    functions = backends.OPERATORS[case.operator].implementations[implementation.backend].functions
    named = {name.removeprefix(backends.ORDINARY) for name in functions}
    for unknown in named - found.results.keys():
        yield plant("", "", False, f"function {unknown!r} has no entry in the suite's results")
    clean = [record for record in judge(case, problem, expected, implementation) if not record.ok]
    if clean:
        yield plant(clean[0].tensor, "none planted", False, f"wrong before anything was planted: {clean[0].reason}")
        return
    for function, names in found.results.items():
        for index, name in enumerate(names):
            dtype = expected_dtype(problem, name) or problem.dtype
            for fault, damage in faults(expected.bound(name, dtype)).items():
                with planted(case.operator, implementation.backend, function, index, damage):
                    records = judge(case, problem, expected, implementation)
                report = next((r for r in records if r.tensor in (name, "call") and not r.ok), None)
                yield plant(name, fault, report is not None, report.reason if report else "not reported")

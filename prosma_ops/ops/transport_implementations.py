"""The backends of the operators of transport: plan, align and apply, forward and backward, all with the same arguments.

"sinkhorn" and "transport_plan" share their functions; the forward of the first makes no plan.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .. import backends, native
from ..backends import Implementation, Tensors, Verdict
from ..reference import transport as reference

Function = Callable[..., Any]


def _reference(function: str) -> Function:
    found: Function = getattr(reference, function)
    return found


# What the native library calls them: without these it is one of another version.
NATIVE = {
    "plan_forward": "transport_plan_forward",
    "plan_backward": "transport_plan_backward",
    "align_forward": "transport_align_forward",
    "align_backward": "transport_align_backward",
    "apply_forward": "apply_plan_forward",
    "apply_backward": "apply_plan_backward",
}


def _imported(module: str, library: str | None = None) -> Callable[[str], Function]:
    """The functions of a module that is imported when one of them is first called; `library`: what they take first."""

    def function_of(name: str) -> Function:
        def run(*arguments: Any) -> Any:
            found = importlib.import_module(module, __package__)
            leading = () if library is None else (getattr(found, library),)
            return getattr(found, name)(*leading, *arguments)

        return run

    return function_of


def _cpu_can_run(function: str) -> Callable[[Tensors], Verdict]:
    def can_run(tensors: Tensors) -> Verdict:
        verdict = backends.cpu_can_run(tensors)
        if verdict.can_run and not hasattr(native.required(), NATIVE[function]):
            return Verdict(False, f"the native library is of another version: it has no {NATIVE[function]}")
        return verdict

    return can_run


# The choice.


def _as_it_is(forward: Function) -> Function:
    return forward


def _without_plan(plan_forward: Function) -> Function:
    def run(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(plan_forward(*arguments)[1:])

    return run


def _register(name: str, function: str, change: Callable[[Function], Function] = _as_it_is) -> backends.Operator:
    """`function` is "plan", "align" or "apply"; `change` makes the operator's forward from that of the function."""

    def functions(source: Callable[[str], Function]) -> Mapping[str, Function]:
        return {"forward": change(source(f"{function}_forward")), "backward": source(f"{function}_backward")}

    implementations = {
        "reference": Implementation(backends.reference_can_run, functions(_reference)),
        "cpu": Implementation(_cpu_can_run(f"{function}_forward"), functions(_imported(".transport_native", "on_cpu"))),
        "triton": Implementation(backends.triton_can_run, functions(_imported("..triton_kernels.transport"))),
        "cuda": Implementation(backends.cuda_can_run(name), functions(_imported(".transport_native", "on_cuda"))),
    }
    return backends.register(name, "transport", implementations)


SINKHORN = _register("sinkhorn", "plan", _without_plan)
PLAN = _register("transport_plan", "plan")
ALIGN = _register("transport_align", "align")
APPLY = _register("apply_plan", "apply")

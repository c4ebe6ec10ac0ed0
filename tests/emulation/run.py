"""The process that `tests/cuda_emulation.py` starts: cases of operators on emulated CUDA kernels, a record a line."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prosma_ops import backends, native
from prosma_ops.testing import parity
from prosma_ops.testing.case import dtype_name, suite
from prosma_ops.testing.memory import Guard


def load(path: str) -> Any:
    specification = importlib.util.spec_from_file_location("emulated", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def emulate(module: Any, operators: Sequence[str]) -> None:
    """Backend `cuda` takes CPU tensors and runs the emulated kernels."""
    native.load = lambda: native.Library(module, "emulated")  # type: ignore[assignment]
    native.queue = lambda device: (0, 0)
    parity.operators()
    for name in operators:
        assert hasattr(module, f"{name}_cuda_forward"), f"{name} has no CUDA kernel in this module"
        operator = backends.OPERATORS[name]
        cuda = dataclasses.replace(
            operator.implementations["cuda"], can_run=lambda tensors: backends.Verdict(True, "emulated")
        )
        # In place, as the operators hold it by reference.
        object.__setattr__(operator, "implementations", {**operator.implementations, "cuda": cuda})


@contextlib.contextmanager
def filled_memory() -> Iterator[Guard]:
    """Results begin as NaN, each in memory of exactly its size: what lies beside it is the sanitizer's to watch."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield Guard()
    finally:
        torch.use_deterministic_algorithms(before)


def main(settings: dict[str, Any]) -> None:
    module = load(settings["module"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    emulate(module, settings["operators"])
    module.set_chip(*settings["chip"])
    orders = itertools.cycle(settings["orders"])
    cuda, cpu = parity.Implementation("cuda"), torch.device("cpu")
    for operator in settings["operators"]:
        for case in suite(operator).cases(settings["size"]):
            if settings["dtypes"] and dtype_name(case.dtype) not in settings["dtypes"]:
                continue
            if settings["cases"] not in case.name:
                continue
            problem = case.build(cpu)
            module.set_order(next(orders))
            for record in parity.judge(case, problem, parity.expectation(problem), cuda, filled_memory):
                print(json.dumps(record.as_json()), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

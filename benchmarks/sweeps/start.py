"""What comes before the first result, in this fresh process: `python -m benchmarks.sweeps.start OPERATOR` prints JSON.

Each step in seconds, in the order in which a user's process makes them. The first call of ours loads the native
library; that of eager PyTorch comes after it, so what both need is counted as ours.
"""

# No import above `steps` that takes time: torch's own is measured.
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from . import PUBLIC, SMALL_SIZES


def seconds(step: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    step()
    return float(f"{time.perf_counter() - begin:.4g}")


def steps(operator: str) -> dict[str, float]:
    def torch() -> None:
        import torch  # noqa: F401

    def package() -> None:
        import prosma_ops  # noqa: F401

    def function() -> None:
        import prosma_ops

        getattr(prosma_ops, PUBLIC[operator])

    found = {"import torch": seconds(torch), "import prosma_ops": seconds(package)}
    found["import of the operator"] = seconds(function)

    import importlib

    from prosma_ops.report.records import EAGER, OURS

    from ..work import runner

    sweeps = importlib.import_module(f".{operator}", __package__).sweeps((1,))
    work = next(sweep for sweep in sweeps if sweep.name == SMALL_SIZES).points[0].work
    import torch as imported

    problem = work.problem(imported.device("cpu"))
    for name, label in ((OURS, "call"), (EAGER, "call of eager")):
        run = runner(problem, work.contestant(name))
        found |= {f"first {label}": seconds(run), f"second {label}": seconds(run)}
    return found


if __name__ == "__main__":
    print(json.dumps(steps(sys.argv[1])))

"""The Triton kernels of mixed_logit_statistics, compiled for GPUs that this machine does not have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.triton_compile import (
    TARGETS,
    Launch,
    compile_without_spills,
    recorded,
    run,
)

pytest.importorskip("triton", reason="Triton is not installed")

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
OPERATORS = ("add", "multiply", "concat", "attention")
LEVELS_2D = ((7, 7), (14, 14), (28, 28), (56, 56))


class Work(NamedTuple):
    classes: int
    full: tuple[int, ...]
    levels: tuple[tuple[int, ...], ...]
    operators: tuple[str, ...] = OPERATORS
    activation: str = "softmax"
    domain: str = "logits"
    dtype: torch.dtype = F32
    labels: torch.dtype = torch.uint8
    per_class: bool = False
    align_corners: bool = False
    log_probability: bool = False
    products: str = "highest"  # torch's float32 matmul precision


CASES = {
    "48 maps": Work(9, (224, 224), LEVELS_2D),
    "48 maps in TF32": Work(9, (224, 224), LEVELS_2D, products="high"),
    "48 maps bf16 of probabilities": Work(
        9, (224, 224), LEVELS_2D, domain="probabilities", dtype=BF16, align_corners=True, log_probability=True
    ),
    "48 maps fp64": Work(9, (224, 224), LEVELS_2D, dtype=F64, labels=torch.int64),
    "4 levels": Work(9, (224, 224), LEVELS_2D, operators=()),
    "1 map": Work(9, (224, 224), ((224, 224),), operators=(), labels=torch.int64),
    "1 map 3d": Work(14, (96, 96, 96), ((96, 96, 96),), operators=(), labels=torch.float32),
    "6 levels 3d": Work(4, (96, 96, 96), tuple((s,) * 3 for s in (3, 6, 12, 24, 48, 96))),
    "regions 3d": Work(
        3,
        (96, 96, 96),
        tuple((s,) * 3 for s in (12, 24, 48, 96)),
        activation="sigmoid",
        domain="probabilities",
        per_class=True,
    ),
    "1 class": Work(1, (224, 224), LEVELS_2D, activation="sigmoid", labels=torch.bool),
    "64 classes": Work(64, (224, 224), LEVELS_2D),
    "128 classes in TF32": Work(128, (224, 224), LEVELS_2D, products="high"),
    # Triton compiles a 1 among the arguments in, which is of another type.
    "1 pixel": Work(1, (1, 1), ((1, 1), (1, 1)), operators=("multiply",), activation="sigmoid", labels=torch.bool),
}
# Bytes a thread that stay on the stack in volumes, whose up-sampling holds eight neighbours.
KNOWN_SPILLS = {"statistics_kernel": 8, "gradient_kernel": 48}
QUICK = [("sm_90", "1 map"), ("gfx942", "1 map 3d")]
EVERYWHERE = ("48 maps", "48 maps in TF32", "regions 3d")
SLOW = [(target, case) for target in TARGETS for case in CASES if target == "sm_90" or case in EVERYWHERE]


def recorded_launches(work: Work, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    from prosma_ops.triton_kernels import logit_mixing as kernels

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=work.dtype)

    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: work.products)
    batch, classes, levels = 2, work.classes, len(work.levels)
    logits = [empty(batch, classes, *size) for size in work.levels]
    target = torch.empty(batch, *((classes,) if work.per_class else ()), *work.full, dtype=work.labels)
    subsets, pairs = 2**levels - 1 - levels, levels * (2 ** (levels - 1) - 1)
    concat = (empty(classes, classes * pairs), empty(classes, subsets)) if "concat" in work.operators else (None, None)
    attention = (empty(pairs, classes), empty(pairs)) if "attention" in work.operators else (None, None)
    launches = recorded(monkeypatch, kernels)
    settings = (work.operators, work.activation, work.domain, 255, work.align_corners)
    results = kernels.forward(logits, target, *concat, *attention, *settings, False, work.log_probability)
    gradients = [*results[:4], results[4] if work.log_probability else None]
    kernels.backward(*gradients, logits, target, *concat, *attention, *settings, False, [True] * (levels + 4))
    return launches


def launch_for(target: str, launch: Launch) -> Launch:
    """As on the target itself: the limit of registers is an option of NVIDIA's compiler alone."""
    if target.startswith("gfx"):
        return launch._replace(constants={k: v for k, v in launch.constants.items() if k != "maxnreg"})
    return launch


def check(target: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = CASES[case]
    launches = recorded_launches(work, monkeypatch)
    names = [launch.kernel.__name__ for launch in launches]
    parameters = bool({"concat", "attention"} & set(work.operators))
    rows = ["add_up_rows_kernel"] * len(work.levels)
    finish = ["finish_kernel"] if parameters else []
    assert names == ["statistics_kernel", "finish_kernel", "gradient_kernel", *rows, *finish]
    seen: set[Any] = set()
    for launch in launches:
        if launch.kernel.__name__ == "add_up_rows_kernel" and launch.kernel in seen:
            continue  # the levels differ in their sizes alone
        seen.add(launch.kernel)
        compile_without_spills(launch_for(target, launch), target, case, KNOWN_SPILLS)


@pytest.mark.parametrize(("target", "case"), QUICK, ids=[f"{target}-{case}" for target, case in QUICK])
def test_compiles(target: str, case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(request, tmp_path, partial(check, target, case))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "case"), SLOW, ids=[f"{target}-{case}" for target, case in SLOW])
def test_compiles_everywhere(target: str, case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(request, tmp_path, partial(check, target, case))

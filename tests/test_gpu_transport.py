"""Transport on a GPU: no step waits for the host, wrong masses are told by check_errors, graphs, the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import prosma_ops
from prosma_ops import apply_plan, sinkhorn, transport_align, transport_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]


@pytest.fixture(params=("reference", "triton"))
def on_gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    with prosma_ops.use_backend(request.param):
        yield request.param


def inputs(rows: int = 50, columns: int = 30) -> dict[str, Tensor]:
    """On the GPU, leaves that require gradients, and a mask."""
    torch.manual_seed(0)
    return {
        "tokens": torch.randn(3, rows, 8).cuda().requires_grad_(),
        "reference": torch.randn(2, columns, 8).cuda().requires_grad_(),
        "mask": (torch.rand(3, rows) < 0.8).cuda(),
        "column_mass": torch.full((columns,), 1 / columns).cuda(),
    }


def step(tokens: Tensor, reference: Tensor, mask: Tensor, column_mass: Tensor, **settings: Any) -> list[Tensor]:
    """All four operators and the gradients of tokens and reference."""
    shared: dict[str, Any] = {"mask": mask, "column_mass": column_mass, "tolerance": 1e-3}
    aligned, potentials = transport_align(tokens, reference, **shared, **settings, return_potentials=True)
    back = apply_plan(tokens, reference, potentials, aligned, side="rows")
    scores = tokens @ reference[0].T
    y = back + transport_plan(scores, **shared, **settings) @ reference[0]
    y = y + sinkhorn(scores, **shared).column.mean()
    return [y, *torch.autograd.grad(y.square().sum(), (tokens, reference))]


@pytest.mark.parametrize("size", [(50, 30), (700, 900)], ids=str)
def test_no_synchronisation(on_gpu: str, size: tuple[int, int]) -> None:
    given = inputs(*size)
    step(**given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(**given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("size", [(50, 30), (700, 900)], ids=str)
def test_in_a_cuda_graph(size: tuple[int, int]) -> None:
    given = inputs(*size)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [tensor.detach().clone() for tensor in step(**given)]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(**given)
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_the_same_bits_every_time(gradient: str) -> None:
    given = inputs(700, 900)
    first = step(**given, gradient=gradient)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(step(**given, gradient=gradient), first, strict=True))


def test_wrong_masses_are_told_when_somebody_asks(on_gpu: str) -> None:
    scores = torch.randn(2, 6, 5, device="cuda")
    prosma_ops.check_errors()
    for wrong, message in (
        ({"row_mass": torch.tensor([0.5, 0.5, 0.5, 0.5, -1.0, 0.0])}, "row_mass has a negative entry"),
        ({"column_mass": torch.zeros(5)}, "column_mass is all zero"),
        ({"column_mass": torch.ones(5)}, "totals that differ"),
    ):
        plan = transport_plan(scores, **{name: mass.cuda() for name, mass in wrong.items()})
        assert plan.isfinite().all()
        with pytest.raises(ValueError, match=message):
            prosma_ops.check_errors()
    prosma_ops.check_errors()

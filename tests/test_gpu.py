"""On a GPU: parity of every implementation that runs there, offsets beyond 32 bits, streams, graphs, two devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import prosma_ops
from prosma_ops import backends, proximal_gate, soft_threshold
from prosma_ops.testing import parity
from prosma_ops.testing.case import suite
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.proximal_gate import SPECIAL, example, problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
CUDA = torch.device("cuda")


@pytest.fixture(params=("reference", "triton", "cuda"))
def on_gpu(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    verdict = backends.OPERATORS["proximal_gate"].implementations[request.param].can_run((torch.empty(1, device=CUDA),))
    if request.param == "triton" and not verdict.can_run:
        pytest.fail(f"there is a GPU, and Triton cannot run: {verdict.reason}")
    if not verdict.can_run:
        pytest.skip(verdict.reason)
    found = Implementation(request.param)
    with found.chosen(), parity.full_precision():
        yield found


@pytest.mark.parametrize("operator", parity.operators())
def test_parity(on_gpu: Implementation, operator: str, dtype: torch.dtype, cases: Callable) -> None:
    if not backends.OPERATORS[operator].implementations[on_gpu.backend].can_run((torch.empty(1, device=CUDA),)).can_run:
        pytest.skip(f"{operator} has no {on_gpu.backend} kernel")
    wrong = []
    for case, _, expected in cases(operator, "full", dtype):
        records = parity.judge(case, case.build(CUDA), expected, on_gpu)
        wrong += [f"{r.case}, {r.layout}: {r.tensor}: {r.reason}" for r in records if not r.ok]
    assert not wrong, "\n".join(wrong)


def test_every_operator_runs_on_triton() -> None:
    for operator in backends.OPERATORS:
        assert "triton" in {str(i) for i in parity.implementations(operator, CUDA)[0]}, operator
        assert suite(operator)


def test_auto_is_not_the_reference() -> None:
    assert prosma_ops.explain("proximal_gate", torch.empty(1, device=CUDA)).chosen in ("cuda", "triton")


def test_the_same_bits_every_time(on_gpu: Implementation) -> None:
    if on_gpu.backend == "reference":
        torch.use_deterministic_algorithms(True, warn_only=True)
    shape = next(shape for shape in SPECIAL if shape.name == "2-D many pixels")
    gate = problem(shape, "contiguous", torch.float32, CUDA)
    found = [parity.evaluate(gate, gate.function) for _ in range(3)]
    torch.use_deterministic_algorithms(False)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


def test_on_a_stream_of_its_own(on_gpu: Implementation) -> None:
    gate = example((2, 8, 64, 64))
    inputs = {name: tensor.to(CUDA) for name, tensor in gate.inputs.items()}
    expected = proximal_gate(**inputs, **gate.settings)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = proximal_gate(**inputs, **gate.settings)
    stream.synchronize()
    assert torch.equal(found, expected)


def test_in_a_cuda_graph() -> None:
    gate = example((2, 8, 64, 64))
    inputs = {name: tensor.to(CUDA).requires_grad_() for name, tensor in gate.inputs.items()}
    grad = gate.grads[0].to(CUDA)

    def step() -> list[torch.Tensor]:
        y = proximal_gate(**inputs, **gate.settings)
        return [y, *torch.autograd.grad(y, list(inputs.values()), grad)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [tensor.clone() for tensor in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_more_than_2_31_elements(on_gpu: Implementation) -> None:
    """2 x 64 x 320^3 has 4.2e9 elements: offsets beyond 32 bits. Compared at the far end."""
    if on_gpu.backend == "reference":
        pytest.skip("the convolutions of torch are not ours to test")
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    field = torch.zeros(1, 66, 320, 320, 320, device=CUDA, dtype=torch.bfloat16)
    field[:, -1, -8:].normal_()
    weight, threshold = torch.randn(1, 66, 3, 3, 3, device=CUDA), torch.full((66,), 0.1, device=CUDA)
    found = proximal_gate(field, weight, threshold, dilations=(1,))[:, -1:, -4:]
    expected = proximal_gate(field[:, -1:, -8:].contiguous(), weight[:, -1:], threshold[-1:], dilations=(1,))[:, :, -4:]
    assert found.any()
    assert torch.equal(found, expected)


def test_a_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    gate = example((2, 3, 9, 11))
    first, second = (
        proximal_gate(**{name: tensor.to(f"cuda:{i}") for name, tensor in gate.inputs.items()}, **gate.settings)
        for i in range(2)
    )
    assert torch.equal(first.cpu(), second.cpu())


def test_mixed_devices_raise() -> None:
    with pytest.raises(ValueError, match="threshold is on cpu"):
        soft_threshold(torch.zeros(2, 3, device=CUDA), torch.zeros(3))


def test_no_synchronisation(on_gpu: Implementation) -> None:
    gate = example((2, 3, 9, 11))
    inputs = {name: tensor.to(CUDA).requires_grad_() for name, tensor in gate.inputs.items()}
    grad = gate.grads[0].to(CUDA)
    proximal_gate(**inputs, **gate.settings).backward(grad)
    torch.cuda.set_sync_debug_mode("error")
    try:
        proximal_gate(**inputs, **gate.settings).backward(grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")

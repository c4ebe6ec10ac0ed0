"""Memory: formats are kept, any strides are read, every element is written and nothing beside them is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prosma_ops import backends, proximal_gate, soft_threshold
from prosma_ops.testing import parity
from prosma_ops.testing.case import DTYPES
from prosma_ops.testing.layouts import LAYOUTS, channels_last, lay_out
from prosma_ops.testing.memory import MARGIN, guarded_memory
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.proximal_gate import example

SIZES = [(2, 3, 5, 7), (2, 3, 4, 5, 6)]


def leaves(problem: parity.Problem) -> dict[str, Tensor]:
    return {name: tensor.detach().requires_grad_() for name, tensor in problem.inputs.items()}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_has_the_memory_format_of_the_field(
    implementation: Implementation, layout: str, size: tuple[int, ...]
) -> None:
    inputs = leaves(problem := example(size, layout=layout))
    y = proximal_gate(**inputs, **problem.settings)
    gradients = torch.autograd.grad(y, (inputs["field"], inputs["skip"]), problem.grads[0])
    assert y.stride() == torch.empty_like(inputs["field"]).stride()
    assert gradients[0].stride() == torch.empty_like(inputs["field"]).stride()
    assert gradients[1].stride() == torch.empty_like(inputs["skip"]).stride()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_channels_last_stays_channels_last(implementation: Implementation, size: tuple[int, ...]) -> None:
    problem = example(size, layout="channels_last")
    y = proximal_gate(**problem.inputs, **problem.settings)
    memory_format = torch.channels_last if len(size) == 4 else torch.channels_last_3d
    assert y.is_contiguous(memory_format=memory_format)
    assert soft_threshold(problem.inputs["field"], torch.ones(3)).is_contiguous(memory_format=memory_format)


def gradients(problem: parity.Problem, grad: Tensor) -> list[Tensor]:
    inputs = leaves(problem)
    proximal_gate(**inputs, **problem.settings).backward(grad)
    return [tensor.grad for tensor in inputs.values()]


def awkward(size: tuple[int, ...]) -> dict[str, Tensor]:
    """Gradients as they arrive: from a sum (stride 0 everywhere), from slices, crops, transposes, and other formats."""
    larger = torch.randn([2 * n for n in size])
    return {
        "of a sum": torch.tensor(0.5).expand(size),
        "of a sum over pixels": torch.randn(size[:2]).reshape(*size[:2], *[1] * (len(size) - 2)).expand(size),
        "of a sum over channels": torch.randn(size[0], 1, *size[2:]).expand(size),
        "strided in every dimension": larger[tuple(slice(None, None, 2) for _ in size)],
        "cropped": larger[tuple(slice(n - 1, 2 * n - 1) for n in size)],
        "transposed": torch.randn(size).transpose(1, -1).contiguous().transpose(1, -1),
        "reversed dimensions": torch.randn(size[::-1]).permute(*reversed(range(len(size)))),
        "channels_last": channels_last(torch.randn(size)),
    }


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_incoming_gradient(implementation: Implementation, size: tuple[int, ...], layout: str) -> None:
    problem = example(size, layout=layout)
    for name, grad in awkward(size).items():
        expected = gradients(problem, grad.contiguous())
        for found, plain in zip(gradients(problem, grad), expected, strict=True):
            torch.testing.assert_close(found, plain, msg=lambda text, name=name: f"{name}: {text}")


def test_overlapping_inputs(implementation: Implementation) -> None:
    """A sliding window: neighbouring rows share memory. Reading it is legal, and no result may be laid out so."""
    window = torch.randn(64).as_strided((1, 2, 6, 8), (0, 3, 5, 1))
    weight, threshold = torch.randn(2, 2, 3, 3), torch.rand(2)
    plain = proximal_gate(window.contiguous(), weight, threshold, dilations=(1, 2))
    found = proximal_gate(window, weight, threshold, window, dilations=(1, 2))
    torch.testing.assert_close(found, plain * window)


def test_one_tensor_in_two_roles(implementation: Implementation) -> None:
    x = torch.randn(2, 3, 6, 5, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    weight, threshold = torch.randn(1, 3, 3, 3), torch.rand(3)
    proximal_gate(x, weight, threshold, x, dilations=(2,)).sum().backward()
    skip = other.detach().clone().requires_grad_()
    proximal_gate(other, weight, threshold, skip, dilations=(2,)).sum().backward()
    torch.testing.assert_close(x.grad, other.grad + skip.grad)


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed"])
@pytest.mark.parametrize("size", [(2, 3, 5, 33), (1, 19, 3, 4), (1, 17, 2, 3, 5)], ids=str)
def test_every_element_is_written_and_nothing_beside(
    implementation: Implementation, size: tuple[int, ...], layout: str, shift: int
) -> None:
    """Results as views inside a larger buffer, filled with NaN, sentinels around them; `shift` spoils the alignment."""
    for dtype in DTYPES:
        problem = example(size, dtype, layout)
        with guarded_memory(shift) as guard:
            found = parity.evaluate(problem, problem.function)
        assert guard.buffers
        assert guard.damaged() == 0
        assert all(tensor.isfinite().all() for tensor in found.values())


def test_inputs_are_left_alone(implementation: Implementation) -> None:
    problem = example((2, 3, 7, 18), layout="sliced")
    wholes = {name: torch.empty(0).set_(tensor.untyped_storage()) for name, tensor in problem.inputs.items()}
    before = {name: whole.clone() for name, whole in wholes.items()}
    parity.evaluate(problem, problem.function)
    for name, whole in wholes.items():
        assert torch.equal(whole.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


def test_large_enough_to_be_streamed(implementation: Implementation) -> None:
    """Results of 8 MiB and more are written past the caches: the same numbers, also off their alignment."""
    problem = example((1, 2, 1030, 1027), dilations=(1, 3), missing=("bias",))
    with guarded_memory(shift=1) as guard:
        found = parity.evaluate(problem, problem.function)
    assert guard.damaged() == 0
    expected = parity.evaluate(problem, problem.definition)
    for name in ("result", "gradient of field", "gradient of skip"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_the_guard_sees_an_unwritten_element_and_a_stray_write() -> None:
    with guarded_memory() as guard:
        result = torch.empty(4, 5)
        assert result.isnan().all()
        result.fill_(1.0)
        assert guard.damaged() == 0
        result.as_strided((1,), (1,), MARGIN + 20).fill_(0.0)
        result.as_strided((1,), (1,), MARGIN - 1).fill_(0.0)
        assert guard.damaged() == 2
        assert torch.empty_like(result).isnan().all()
        assert result.new_empty(3).isnan().all()
    assert type(torch.empty(3)) is Tensor
    assert "new_empty" not in Tensor.__dict__


def test_the_guard_keeps_the_strides() -> None:
    like = channels_last(torch.zeros(2, 3, 4, 5))
    expected = torch.empty_like(like).stride()
    with guarded_memory():
        assert torch.empty_like(like).stride() == expected


def test_every_layout_is_what_it_says() -> None:
    values = torch.randn(2, 3, 4, 5)
    for layout in LAYOUTS:
        laid = lay_out(values, layout)
        if layout != "expanded":
            assert torch.equal(laid, values), layout
        whole = torch.empty(0).set_(laid.untyped_storage())
        assert whole.isnan().sum() == (
            whole.numel() - laid.numel() if layout in ("sliced", "chunk", "channels_last_chunk") else 0
        ), layout
    assert lay_out(values, "expanded").stride(0) == 0
    assert lay_out(values, "channels_last").is_contiguous(memory_format=torch.channels_last)
    assert not math.isnan(float(values.sum()))


def test_all_layouts_are_covered_by_the_cases() -> None:
    from prosma_ops.testing.case import suite

    for operator in parity.operators():
        assert {case.layout for case in suite(operator).cases("full")} == set(LAYOUTS)
    assert set(backends.OPERATORS) == set(parity.operators())

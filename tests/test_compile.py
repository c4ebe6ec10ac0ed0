"""torch.compile takes the operators whole, forward and backward, without recompiling; torch.export the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from prosma_ops import proximal_gate, soft_threshold
from prosma_ops.testing import Problem, compare
from prosma_ops.testing.proximal_gate import OPTIONAL, example
from tests.conftest import INDUCTOR_WARNS


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gate(field: Tensor, weight: Tensor, threshold: Tensor, skip: Tensor, channel_gate: Tensor, bias: Tensor) -> Tensor:
    """The operator amid arithmetic that a compiler may fuse."""
    y = proximal_gate(
        field * 2, weight, threshold.abs(), skip, channel_gate.sigmoid(), dilations=(1, 2), bias=bias, activation="tanh"
    )
    return y + soft_threshold(field, threshold)


def run(function: Callable[..., Tensor], problem: Problem) -> dict[str, Tensor]:
    inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.inputs.items()}
    y = function(**inputs)
    gradients = torch.autograd.grad(y, list(inputs.values()), problem.grads[0])
    return {"result": y.detach(), **dict(zip(inputs, gradients, strict=True))}


def agree(compiled: Callable[..., Tensor], problem: Problem) -> None:
    eager = run(gate, problem)
    for name, found in run(compiled, problem).items():
        assert found.dtype is eager[name].dtype, name
        assert found.stride() == eager[name].stride(), name
        verdict = compare(found, eager[name].double())
        assert verdict.ok, f"{name}: {verdict.reason}"


def shape(batch: int, layout: str = "contiguous") -> Problem:
    """No two sizes alike: torch.compile takes sizes that are equal in the first call for one and the same symbol."""
    return example((batch, 5, 7, 8), layout=layout, dilations=(1, 2))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fullgraph_forward_and_backward(backend: str, layout: str) -> None:
    agree(torch.compile(gate, fullgraph=True, backend="aot_eager"), shape(2, layout))


def test_no_recompilation_for_a_second_batch_size(backend: str) -> None:
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager", dynamic=True)
    agree(compiled, shape(4))
    with torch.compiler.set_stance("fail_on_recompile"):
        agree(compiled, shape(9))
        agree(compiled, shape(6))


def test_no_recompilation_beyond_the_one_that_makes_a_size_dynamic(backend: str) -> None:
    """As users have it, `dynamic` not given: the second size makes the batch dynamic, a third one compiles nothing."""
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")
    agree(compiled, shape(4))
    agree(compiled, shape(6))
    with torch.compiler.set_stance("fail_on_recompile"):
        agree(compiled, shape(9))


def test_the_graph_holds_one_operator(backend: str) -> None:
    """Whichever kernel runs: the choice is made below the graph."""
    targets: list[str] = []

    def record(module: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        targets.extend(str(node.target) for node in module.graph.nodes)
        return make_boxed_func(module)

    run(torch.compile(gate, fullgraph=True, backend=aot_autograd(fw_compiler=record)), shape(2))
    for name in ("proximal_gate", "proximal_gate_backward", "soft_threshold", "soft_threshold_backward"):
        assert targets.count(f"prosma_ops.{name}.default") == 1, name


def test_without_optional_tensors(backend: str) -> None:
    problem = example((2, 3, 6, 7), missing=OPTIONAL)
    inputs = [tensor for tensor in problem.inputs.values() if tensor is not None]
    compiled = torch.compile(
        lambda *tensors: proximal_gate(*tensors, dilations=(1, 2, 3)), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(*inputs), proximal_gate(*inputs, dilations=(1, 2, 3)))


def test_arguments_are_checked_while_tracing(backend: str) -> None:
    problem = shape(2)
    inputs = dict(problem.inputs) | {"skip": torch.zeros(2, 5, 7, 9)}
    with pytest.raises(Exception, match="skip has shape"):
        torch.compile(gate, fullgraph=True, backend="aot_eager")(**inputs)


class Exported(torch.nn.Module):
    def forward(
        self, field: Tensor, weight: Tensor, threshold: Tensor, skip: Tensor, channel_gate: Tensor, bias: Tensor
    ) -> Tensor:
        return gate(field, weight, threshold, skip, channel_gate, bias)


def test_export_goes_to_the_reference(backend: str) -> None:
    """An exported program holds torch's own operators only, so it runs where this package is not."""
    problem = shape(4)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    sizes = {name: batch if name in ("field", "skip", "channel_gate") else None for name in problem.inputs}
    program = torch.export.export(Exported(), (), kwargs=dict(problem.inputs), dynamic_shapes=sizes)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "prosma_ops" in target]
    assert any("conv" in target for target in targets)
    larger = shape(9)
    torch.testing.assert_close(program.module()(**larger.inputs), gate(**larger.inputs))


@pytest.mark.slow
@INDUCTOR_WARNS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("drawn", [torch.float32, torch.bfloat16], ids=str)
def test_inductor(backend: str, layout: str, drawn: torch.dtype) -> None:
    """Compiled float32 within the tolerance of eager; in bfloat16 fused arithmetic around the gate rounds less."""
    compiled = torch.compile(gate, fullgraph=True, dynamic=True)
    problem = example((2, 3, 6, 7), drawn, layout, dilations=(1, 2))
    expected = run(gate, problem)
    for name, found in run(compiled, problem).items():
        assert found.dtype is drawn, name
        assert found.stride() == expected[name].stride(), name
        torch.testing.assert_close(found, expected[name])


@pytest.mark.slow
@INDUCTOR_WARNS
def test_inductor_does_not_recompile_for_a_second_batch_size(backend: str) -> None:
    compiled = torch.compile(gate, fullgraph=True, dynamic=True)
    agree(compiled, shape(4))
    with torch.compiler.set_stance("fail_on_recompile"):
        agree(compiled, shape(9))

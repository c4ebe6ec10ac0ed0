"""mixed_logit_statistics within PyTorch: opcheck, derivatives by finite differences, compile, export, autocast."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import prosma_ops
from prosma_ops import mixed_logit_statistics
from prosma_ops.testing import Problem, compare, parity
from prosma_ops.testing.logit_mixing import BIASES, PARAMETERS, example
from prosma_ops.testing.parity import Implementation
from tests.conftest import INDUCTOR_WARNS, REFERENCE_IS_SLOW

SUMS = ("cross_entropy", "intersection", "probability", "square", "log_probability")

# torch.library.opcheck, all utilities: schema, fake kernel, autograd registration, tracing with dynamic shapes.

ops = torch.ops.prosma_ops
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
SMALL = ((2, 3, 4, 5), ((2, 3), (4, 5)))
SMALL_3D = ((1, 2, 3, 2, 4), ((2, 1, 2), (3, 2, 3)))


def check(operator: object, arguments: tuple) -> None:
    result = opcheck(operator, arguments, test_utils=UTILITIES)
    assert result == dict.fromkeys(UTILITIES, "SUCCESS")


def levels_of(problem: Problem) -> list[Tensor]:
    return [tensor for name, tensor in problem.inputs.items() if name.startswith("level")]


def arguments_of(problem: Problem, grad: bool = True) -> tuple:
    """As the schema of the forward has them."""
    levels = [level.detach().requires_grad_(grad) for level in levels_of(problem)]
    parameters = [t if t is None else t.detach().requires_grad_(grad) for t in (problem.inputs[n] for n in PARAMETERS)]
    operators, *rest = problem.settings.values()
    return (levels, problem.inputs["target"], *parameters, list(operators), *rest)


def arguments_of_backward(problem: Problem, wanted: Callable[[int], bool] = lambda number: True) -> tuple:
    levels, target, *parameters, log_probability = [*arguments_of(problem)]
    grads = [grad.clone().requires_grad_() for grad in problem.grads] + [None] * (not log_probability)
    inputs = [*levels, *parameters[:4]]
    needed = [wanted(number) and tensor is not None for number, tensor in enumerate(inputs)]
    return (*grads, levels, target, *parameters, needed)


VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {"log_probability": True},
    "per sample, ignoring": {"per_sample": True, "ignore_index": 255, "labels": torch.uint8},
    "sigmoid of probabilities": {"activation": "sigmoid", "domain": "probabilities"},
    "regions": {"activation": "sigmoid", "regions": True, "operators": ("add",)},
    "no biases": {"missing": BIASES},
    "no operators": {"operators": ()},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_opcheck_of_the_forward(backend: str, changes: dict[str, Any]) -> None:
    check(ops.mixed_logit_statistics.default, arguments_of(example(*SMALL, **changes)))


def test_opcheck_in_every_dtype(backend: str, dtype: torch.dtype) -> None:
    check(ops.mixed_logit_statistics.default, arguments_of(example(*SMALL_3D, dtype)))


def test_opcheck_without_gradient(backend: str) -> None:
    check(ops.mixed_logit_statistics.default, arguments_of(example(*SMALL, torch.float32, "sliced"), grad=False))


@REFERENCE_IS_SLOW
def test_opcheck_of_the_backward(backend: str) -> None:
    """Its own gradient is traced too, through the reference: seconds, so most of it is left to the slow tests."""
    problem = example((2, 3, 4, 5), ((2, 3),), operators=())
    check(ops.mixed_logit_statistics_backward.default, arguments_of_backward(problem))


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_opcheck_of_the_backward_in_every_variant(backend: str, changes: dict[str, Any]) -> None:
    problem = example(*SMALL, torch.float64, "channels_last", **changes)
    check(ops.mixed_logit_statistics_backward.default, arguments_of_backward(problem))


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 5])
def test_opcheck_of_one_gradient_alone(backend: str, index: int) -> None:
    problem = example(*SMALL_3D, operators=("concat", "attention"))
    arguments = arguments_of_backward(problem, lambda number: number == index)
    check(ops.mixed_logit_statistics_backward.default, arguments)


# Derivatives.


def sums(problem: Problem) -> Callable[..., tuple[Tensor, ...]]:
    given = [name for name, tensor in problem.inputs.items() if tensor is not None and name != "target"]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(given, tensors, strict=True)) | {"target": problem.inputs["target"]}
        found = problem.function(**inputs, **problem.settings)
        return tuple(getattr(found, name) for name in SUMS if getattr(found, name) is not None)

    return run


def leaves(problem: Problem) -> list[Tensor]:
    chosen = [tensor for name, tensor in problem.inputs.items() if tensor is not None and name != "target"]
    return [tensor.detach().clone().requires_grad_() for tensor in chosen]


DERIVED = VARIANTS | {
    "aligned corners": {"align_corners": True, "operators": ("multiply",)},
    "probabilities": {"domain": "probabilities", "log_probability": True, "operators": ("multiply", "attention")},
}


@pytest.mark.parametrize("changes", DERIVED.values(), ids=DERIVED)
def test_first_derivative(implementation: Implementation, changes: dict[str, Any]) -> None:
    problem = example((1, 2, 3, 4), ((2, 1), (2, 3)), torch.float64, **changes)
    assert gradcheck(sums(problem), leaves(problem))


def test_first_derivative_with_three_levels(implementation: Implementation) -> None:
    operators = ("multiply", "attention")
    problem = example((1, 2, 3, 3), ((1, 2), (2, 2), (3, 3)), torch.float64, operators=operators)
    assert gradcheck(sums(problem), leaves(problem))


def test_first_derivative_in_3d(implementation: Implementation) -> None:
    problem = example((1, 2, 2, 3, 2), ((1, 2, 1), (2, 2, 2)), torch.float64, operators=("multiply", "concat"))
    assert gradcheck(sums(problem), leaves(problem))


@pytest.mark.parametrize("changes", DERIVED.values(), ids=DERIVED)
def test_second_derivative(backend: str, changes: dict[str, Any]) -> None:
    """By finite differences along one random direction: along each it would be minutes."""
    problem = example((1, 2, 3, 2), ((1, 2), (2, 2)), torch.float64, **changes)
    assert gradgradcheck(sums(problem), leaves(problem), fast_mode=True)


def test_a_gradient_penalty(backend: str) -> None:
    """Second derivatives through Dice, where the incoming gradients depend on the logits too."""
    problem = example((2, 3, 6, 5), ((3, 3), (6, 5)), torch.float64, domain="probabilities")

    def penalty(function: Callable[..., Any]) -> list[Tensor]:
        inputs = {name: tensor.detach().clone() for name, tensor in problem.inputs.items()}
        wanted = [tensor.requires_grad_() for name, tensor in inputs.items() if name != "target"]
        found = function(**inputs, **problem.settings)
        dice = (2 * found.intersection / (found.square + found.target)).sum() + found.cross_entropy.mean()
        (slope,) = torch.autograd.grad(dice, inputs["level0"], create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), wanted, allow_unused=True))

    for found, expected in zip(penalty(problem.function), penalty(problem.eager), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wanted", ["level0", "level1", *PARAMETERS])
def test_one_gradient_alone_is_the_same_as_among_all(implementation: Implementation, wanted: str) -> None:
    problem = example((2, 3, 7, 9), ((3, 4), (7, 9)))
    every = parity.evaluate(problem, problem.function)
    inputs = {name: tensor.detach().clone() for name, tensor in problem.inputs.items()}
    inputs[wanted].requires_grad_()
    found = problem.function(**inputs, **problem.settings)
    torch.autograd.backward([getattr(found, name) for name in SUMS[:4]], problem.grads)
    assert torch.equal(inputs[wanted].grad, every[f"gradient of {wanted}"])
    assert all(tensor.grad is None for name, tensor in inputs.items() if name != wanted)


@pytest.mark.parametrize("used", SUMS)
def test_a_sum_that_is_not_used_has_no_gradient(implementation: Implementation, used: str) -> None:
    """One sum alone gives what all give when the others' gradients are zero."""
    problem = example((2, 3, 7, 9), ((3, 4), (7, 9)), torch.float64, log_probability=True, operators=("attention",))
    inputs = leaves(problem)
    found = sums(problem)(*inputs)
    at = SUMS.index(used)
    zeros = [torch.zeros_like(each) for each in found]
    zeros[at] = problem.grads[at]
    expected = torch.autograd.grad(found, inputs, zeros, retain_graph=True)
    for alone, among in zip(torch.autograd.grad(found[at], inputs, problem.grads[at]), expected, strict=True):
        torch.testing.assert_close(alone, among, rtol=1e-12, atol=1e-12)


def test_without_a_gradient_the_bits_are_the_same(implementation: Implementation) -> None:
    problem = example((2, 3, 7, 9), ((3, 4), (7, 9)))
    recorded = parity.evaluate(problem, problem.function)
    plain = problem.function(**problem.inputs, **problem.settings)
    for name in (*SUMS[:4], "target", "pixels", "invalid"):
        assert torch.equal(getattr(plain, name), recorded[name]), name


def test_nothing_but_the_inputs_is_saved(backend: str) -> None:
    problem = example((2, 3, 7, 9), ((3, 4), (7, 9)))
    inputs = {name: tensor.detach().requires_grad_(name != "target") for name, tensor in problem.inputs.items()}
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        problem.function(**inputs, **problem.settings)
    assert sorted(saved) == sorted(tensor.data_ptr() for tensor in inputs.values())


# torch.compile and torch.export.


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def loss(coarse: Tensor, fine: Tensor, target: Tensor, concat_weight: Tensor, attention_weight: Tensor) -> Tensor:
    """The operator amid arithmetic that a compiler may fuse."""
    found = mixed_logit_statistics(
        [coarse * 2, fine],
        target,
        concat_weight=concat_weight,
        attention_weight=attention_weight.tanh(),
        ignore_index=255,
    )
    dice = (2 * found.intersection + 1) / (found.square + found.target + 1)
    return found.cross_entropy.sum() / found.pixels.clamp(min=1) - dice.mean()


def inputs_of_loss(batch: int) -> dict[str, Tensor]:
    """No two sizes alike: torch.compile takes sizes that are equal in the first call for one and the same symbol."""
    problem = example((batch, 5, 7, 8), ((3, 2), (6, 9)), missing=BIASES, labels=torch.uint8, ignore_index=255)
    names = ("level0", "level1", "target", "concat_weight", "attention_weight")
    keywords = ("coarse", "fine", "target", "concat_weight", "attention_weight")
    tensors = {keyword: problem.inputs[name].clone() for keyword, name in zip(keywords, names, strict=True)}
    return {name: t.requires_grad_() if t.is_floating_point() else t for name, t in tensors.items()}


def run(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    result = function(**inputs)
    wanted = [tensor for tensor in inputs.values() if tensor.requires_grad]
    return [result.detach(), *torch.autograd.grad(result, wanted)]


def agree(compiled: Callable[..., Tensor], batch: int) -> None:
    inputs = inputs_of_loss(batch)
    for found, expected in zip(run(compiled, inputs), run(loss, inputs), strict=True):
        assert found.dtype is expected.dtype
        assert found.stride() == expected.stride()
        verdict = compare(found, expected.double())
        assert verdict.ok, verdict.reason


def test_fullgraph_forward_and_backward(backend: str) -> None:
    agree(torch.compile(loss, fullgraph=True, backend="aot_eager"), 2)


def test_no_recompilation_for_a_second_batch_size(backend: str) -> None:
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    agree(compiled, 4)
    with torch.compiler.set_stance("fail_on_recompile"):
        agree(compiled, 10)
        agree(compiled, 13)


def test_no_recompilation_beyond_the_one_that_makes_a_size_dynamic(backend: str) -> None:
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    agree(compiled, 4)
    agree(compiled, 10)
    with torch.compiler.set_stance("fail_on_recompile"):
        agree(compiled, 13)


def test_the_graph_holds_one_operator(backend: str) -> None:
    targets: list[str] = []

    def record(module: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        targets.extend(str(node.target) for node in module.graph.nodes)
        return make_boxed_func(module)

    run(torch.compile(loss, fullgraph=True, backend=aot_autograd(fw_compiler=record)), inputs_of_loss(2))
    for name in ("mixed_logit_statistics", "mixed_logit_statistics_backward"):
        assert targets.count(f"prosma_ops.{name}.default") == 1, name


def test_arguments_are_checked_while_tracing(backend: str) -> None:
    inputs = inputs_of_loss(2) | {"target": torch.zeros(3, 7, 8, dtype=torch.uint8)}
    with pytest.raises(Exception, match="target has shape"):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(**inputs)


class Exported(torch.nn.Module):
    def forward(self, coarse: Tensor, fine: Tensor, target: Tensor, concat: Tensor, attention: Tensor) -> Tensor:
        return loss(coarse, fine, target, concat, attention)


def test_export_goes_to_the_reference(backend: str) -> None:
    """An exported program holds torch's own operators only, so it runs where this package is not."""
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    sizes = (batch, batch, batch, None, None)
    program = torch.export.export(Exported(), tuple(inputs_of_loss(4).values()), dynamic_shapes=sizes)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "prosma_ops" in target]
    larger = inputs_of_loss(9)
    torch.testing.assert_close(program.module()(*larger.values()), loss(**larger), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@INDUCTOR_WARNS
def test_inductor(backend: str) -> None:
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    agree(compiled, 4)
    with torch.compiler.set_stance("fail_on_recompile"):
        agree(compiled, 10)


# Autocast, and tensors that carry more than numbers.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_no_number(backend: str, dtype: torch.dtype) -> None:
    """Half-precision logits beside float32 parameters: everything inside is float32, and so are the sums."""
    problem = example((2, 3, 7, 6), ((3, 3), (7, 6)), dtype, parameters=torch.float32)
    plain = parity.evaluate(problem, problem.function)
    with torch.autocast("cpu", dtype=dtype):
        found = parity.evaluate(problem, problem.function)
    for name, values in found.items():
        assert torch.equal(values, plain[name]), name
    assert all(found[name].dtype is torch.float32 for name in SUMS[:4])
    assert found["gradient of level0"].dtype is dtype
    assert found["gradient of concat_weight"].dtype is torch.float32


def test_after_an_autocast_layer(backend: str) -> None:
    """Convolutions make the logits bfloat16; the loss comes out float32."""
    heads = [torch.nn.Conv2d(4, 3, 1) for _ in range(2)]
    features = [torch.randn(2, 4, 4, 4), torch.randn(2, 4, 8, 8)]
    weight = torch.randn(3, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = [head(each) for head, each in zip(heads, features, strict=True)]
        found = mixed_logit_statistics(
            logits, torch.randint(0, 3, (2, 8, 8)), operators=("add", "concat"), concat_weight=weight
        )
        result = found.cross_entropy.sum() / found.pixels
    result.backward()
    assert logits[0].dtype is torch.bfloat16
    assert result.dtype is torch.float32
    for tensor in (weight, *(head.weight for head in heads)):
        assert tensor.grad.dtype is torch.float32
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


def test_metatensors_are_unwrapped(backend: str) -> None:
    meta = pytest.importorskip("monai.data").MetaTensor
    problem = example((2, 3, 5, 6), ((2, 3), (5, 6)))
    plain = parity.evaluate(problem, problem.function)
    inputs = {name: meta(tensor.clone()) for name, tensor in problem.inputs.items()}
    leaves = [tensor.requires_grad_() for name, tensor in inputs.items() if name != "target"]
    found = problem.function(**inputs, **problem.settings)
    assert all(type(tensor) is Tensor for tensor in found if tensor is not None)
    torch.autograd.backward(found[:4], problem.grads)
    assert torch.equal(found.cross_entropy, plain["cross_entropy"])
    for leaf, name in zip(leaves, (n for n in problem.inputs if n != "target"), strict=True):
        assert torch.equal(leaf.grad.as_subclass(Tensor), plain[f"gradient of {name}"]), name


def test_parameters_and_lists_and_tuples(backend: str) -> None:
    problem = example((2, 3, 5, 6), ((2, 3), (5, 6)), operators=("concat",))
    levels: Sequence[Tensor] = levels_of(problem)
    weight, bias = (torch.nn.Parameter(problem.inputs[name]) for name in PARAMETERS[:2])
    found = [
        mixed_logit_statistics(
            kind(levels), problem.inputs["target"], operators=names, concat_weight=weight, concat_bias=bias
        )
        for kind, names in itertools.product((list, tuple), (["concat"], ("concat",)))
    ]
    assert all(torch.equal(each.square, found[0].square) for each in found)


def test_explain_lists_every_backend() -> None:
    found = prosma_ops.explain(mixed_logit_statistics, torch.randn(1))
    assert set(found) == {"reference", "cpu", "triton", "cuda"}
    assert found["reference"].can_run

"""The operators of transport as torch sees them: opcheck, compilation, export; and bad input, with a clear error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.library import opcheck

from prosma_ops import Potentials, apply_plan, sinkhorn, transport_align, transport_plan
from prosma_ops.testing.transport import MASSES, example
from tests.conftest import REFERENCE_IS_SLOW

ops = torch.ops.prosma_ops
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def check(operator: Any, arguments: tuple[Any, ...]) -> None:
    assert opcheck(operator, arguments, test_utils=UTILITIES) == dict.fromkeys(UTILITIES, "SUCCESS")


def scores_and_masses(dtype: torch.dtype, layout: str = "contiguous", **changes: Any) -> tuple[Any, ...]:
    problem = example("transport_plan", (2, 5, 4), dtype, layout, **changes)
    return (problem.inputs["scores"].requires_grad_(), *(problem.inputs[name] for name in MASSES))


def tokens_and_masses(dtype: torch.dtype, layout: str = "contiguous", **changes: Any) -> tuple[Any, ...]:
    problem = example("transport_align", (2, 5, 4), dtype, layout, heads=2, **changes)
    leaves = (problem.inputs[name].requires_grad_() for name in ("tokens", "reference"))
    return (*leaves, *(problem.inputs[name] for name in MASSES))


def applied(dtype: torch.dtype, layout: str = "contiguous", **changes: Any) -> tuple[Any, ...]:
    problem = example("apply_plan", (2, 5, 4), dtype, layout, heads=2, **changes)
    return tuple(tensor.requires_grad_() for tensor in problem.inputs.values())


MASKED: dict[str, Any] = {"masses": "item", "mask": "ragged"}


def test_opcheck_in_every_dtype(backend: str, dtype: torch.dtype) -> None:
    check(ops.sinkhorn.default, (*scores_and_masses(dtype), 0.5, 3, 0.0, 3))
    check(ops.transport_plan.default, (*scores_and_masses(dtype), 0.5, 3, 0.0, 3, True))
    check(ops.transport_align.default, (*tokens_and_masses(dtype), "dot", 0.5, 3, 0.0, 3, True))
    check(ops.apply_plan.default, (*applied(dtype), True, "dot", 0.7))


@pytest.mark.parametrize("changes", [MASKED, {"masses": "shared"}, {"mask": "nothing"}], ids=str)
def test_opcheck_with_masses(backend: str, changes: dict[str, Any]) -> None:
    check(ops.sinkhorn.default, (*scores_and_masses(torch.float32, **changes), 0.5, 3, 0.1, 3))
    check(ops.transport_plan.default, (*scores_and_masses(torch.float32, **changes), 0.5, 3, 0.1, 1, False))
    check(
        ops.transport_align.default,
        (*tokens_and_masses(torch.float32, **changes), "negative_squared_distance", 0.5, 3, 0.1, 1, False),
    )


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_opcheck_in_every_layout(backend: str, layout: str) -> None:
    check(ops.transport_plan.default, (*scores_and_masses(torch.float32, layout), 0.5, 3, 0.0, 3, True))
    check(ops.transport_align.default, (*tokens_and_masses(torch.float32, layout), "dot", 0.5, 3, 0.0, 3, True))
    check(ops.apply_plan.default, (*applied(torch.float32, layout, side="rows"), False, "dot", 0.7))


# Of backward operators opcheck also traces the second derivative, which goes through the loop: one iteration will do.
SLOW = pytest.mark.slow


@REFERENCE_IS_SLOW
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.bfloat16, marks=SLOW)], ids=str)
def test_opcheck_of_the_backward_of_plans(backend: str, dtype: torch.dtype) -> None:
    exactness = torch.float64 if dtype is torch.float64 else torch.float32
    leaves = scores_and_masses(dtype, **MASKED)
    constant = (leaves[0].detach(), *leaves[1:])
    of_row, of_column = (torch.randn(2, count, dtype=exactness).requires_grad_() for count in (5, 4))
    _, _, history, count = ops.sinkhorn(*constant, 0.5, 1, 0.2, 1)
    check(ops.sinkhorn_backward.default, (of_row, of_column, *leaves, history, count, 0.5))
    grad = torch.randn(2, 5, 4).to(dtype).requires_grad_()
    _, history, count = ops.transport_plan(*constant, 0.5, 1, 0.2, 1, True)
    check(ops.transport_plan_backward.default, (grad, *leaves, history, count, 0.5, True))


@REFERENCE_IS_SLOW
@pytest.mark.parametrize(
    "needed", [[True, True], *(pytest.param(n, marks=SLOW) for n in ([True, False], [False, True]))]
)
def test_opcheck_of_the_backward_of_aligning(backend: str, needed: list[bool]) -> None:
    leaves = tokens_and_masses(torch.float32, **MASKED)
    constant = (*(leaf.detach() for leaf in leaves[:2]), *leaves[2:])
    aligned, row, column, history, count = ops.transport_align(*constant, "dot", 0.5, 1, 0.2, 1, True)
    grads = [torch.randn_like(result).requires_grad_() for result in (aligned, row, column)]
    grads[1] = grads[1] if all(needed) else None
    check(ops.transport_align_backward.default, (*grads, *leaves, history, count, "dot", 0.5, True, needed))


@REFERENCE_IS_SLOW
@pytest.mark.parametrize("columns_side", [True, False])
@pytest.mark.parametrize("needed", [[True] * 5, pytest.param([False, False, False, True, False], marks=SLOW)], ids=str)
def test_opcheck_of_the_backward_of_applying(backend: str, needed: list[bool], columns_side: bool) -> None:
    leaves = applied(torch.float32, side="columns" if columns_side else "rows")
    grad = torch.randn_like(ops.apply_plan(*leaves, columns_side, "dot", 0.7)).requires_grad_()
    check(ops.apply_plan_backward.default, (grad, *leaves, columns_side, "dot", 0.7, needed))


# Compilation and export.


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def everything(tokens: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """All four operators amid arithmetic that a compiler may fuse."""
    aligned, potentials = transport_align(
        tokens * 2, reference, mask=mask, epsilon=0.7, iterations=3, tolerance=1e-9, return_potentials=True
    )
    back = apply_plan(tokens * 2, reference, potentials, aligned.tanh(), side="rows", epsilon=0.7)
    scores = tokens @ reference.mT
    plan = transport_plan(scores, mask=mask, iterations=3, gradient="implicit")
    return back + (plan @ reference) * sinkhorn(scores, iterations=2).row.unsqueeze(-1)


def run(function: Callable[..., Tensor], batch: int) -> list[Tensor]:
    torch.manual_seed(batch)
    tokens, reference = torch.randn(batch, 7, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    mask = torch.rand(batch, 7) < 0.8
    mask[:, 0] = True
    y = function(tokens, reference, mask)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), (tokens, reference))]


def agree(compiled: Callable[..., Tensor], batch: int) -> None:
    for found, expected in zip(run(compiled, batch), run(everything, batch), strict=True):
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride()


@pytest.mark.usefixtures("_fresh_compiler")
def test_no_recompilation_for_a_second_batch_size(backend: str) -> None:
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager", dynamic=True)
    agree(compiled, 4)
    with torch.compiler.set_stance("fail_on_recompile"):
        agree(compiled, 9)


@pytest.mark.usefixtures("_fresh_compiler")
def test_no_recompilation_beyond_the_one_that_makes_a_size_dynamic(backend: str) -> None:
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    agree(compiled, 4)
    agree(compiled, 6)
    with torch.compiler.set_stance("fail_on_recompile"):
        agree(compiled, 9)


@pytest.mark.usefixtures("_fresh_compiler")
def test_the_graph_holds_one_operator_each(backend: str) -> None:
    targets: list[str] = []

    def record(module: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        targets.extend(str(node.target) for node in module.graph.nodes)
        return make_boxed_func(module)

    run(torch.compile(everything, fullgraph=True, backend=aot_autograd(fw_compiler=record)), 3)
    for name in ("sinkhorn", "transport_plan", "transport_align", "apply_plan"):
        for whole in (name, f"{name}_backward"):
            assert targets.count(f"prosma_ops.{whole}.default") == 1, whole


@pytest.mark.usefixtures("_fresh_compiler")
def test_settings_as_arguments_compile(backend: str) -> None:
    compiled = torch.compile(
        lambda scores, epsilon, iterations: transport_plan(scores, epsilon=epsilon, iterations=iterations),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    scores = torch.randn(2, 5, 4)
    for epsilon, iterations in ((0.5, 3), (0.8, 4)):
        expected = transport_plan(scores, epsilon=epsilon, iterations=iterations)
        assert torch.equal(compiled(scores, epsilon, iterations), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inductor(backend: str) -> None:
    agree(torch.compile(everything, fullgraph=True, dynamic=True), 4)


class Exported(torch.nn.Module):
    def forward(self, tokens: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        return everything(tokens, reference, mask)


def test_export_goes_to_the_reference(backend: str) -> None:
    """An exported program holds torch's own operators only, so it runs where this package is not."""
    tokens, reference, mask = torch.randn(3, 7, 4), torch.randn(5, 4), torch.rand(3, 7) < 0.8
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(
        Exported(), (tokens, reference, mask), dynamic_shapes={"tokens": batch, "reference": None, "mask": batch}
    )
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "prosma_ops" in target]
    tokens, mask = torch.randn(9, 7, 4), torch.rand(9, 7) < 0.8
    torch.testing.assert_close(program.module()(tokens, reference, mask), everything(tokens, reference, mask))


# Bad input: the argument, what came, and what would do.

META = torch.device("meta")
SCORES = {"scores": torch.randn(2, 6, 5)}
ALIGN = {"tokens": torch.randn(2, 6, 3), "reference": torch.randn(5, 3)}

BAD_SHARED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "epsilon 0": ({"epsilon": 0}, ValueError, "epsilon is 0; it must be a finite number above 0"),
    "epsilon negative": ({"epsilon": -0.5}, ValueError, "epsilon is -0.5"),
    "epsilon nan": ({"epsilon": math.nan}, ValueError, "epsilon is nan"),
    "epsilon infinite": ({"epsilon": math.inf}, ValueError, "epsilon is inf"),
    "epsilon a tensor": ({"epsilon": torch.tensor(1.0)}, TypeError, "epsilon is tensor(1.)"),
    "epsilon a bool": ({"epsilon": True}, TypeError, "epsilon is True"),
    "epsilon None": ({"epsilon": None}, TypeError, "epsilon is None"),
    "no iterations": ({"iterations": 0}, ValueError, "iterations is 0; it must be an integer of at least 1"),
    "negative iterations": ({"iterations": -3}, ValueError, "iterations is -3"),
    "half an iteration": ({"iterations": 2.5}, TypeError, "iterations is 2.5"),
    "iterations a bool": ({"iterations": True}, TypeError, "iterations is True"),
    "tolerance negative": ({"tolerance": -1e-3}, ValueError, "tolerance is -0.001"),
    "tolerance nan": ({"tolerance": math.nan}, ValueError, "tolerance is nan"),
    "tolerance a text": ({"tolerance": "1e-3"}, TypeError, "tolerance is '1e-3'"),
    "row mass negative": (
        {"row_mass": torch.tensor([0.5, 0.5, 0.5, 0.5, -1.0, 0.0])},
        ValueError,
        "row_mass has a neg",
    ),
    "row mass zero": ({"row_mass": torch.zeros(6)}, ValueError, "row_mass is all zero"),
    "row mass of an item zero": ({"row_mass": torch.eye(2, 6) * torch.tensor([[1.0], [0.0]])}, ValueError, "all zero"),
    "row mass nan": ({"row_mass": torch.full((6,), math.nan)}, ValueError, "row_mass has an entry that is not finite"),
    "row mass infinite": ({"row_mass": torch.full((6,), math.inf)}, ValueError, "row_mass has an entry that is not"),
    "row mass too long": (
        {"row_mass": torch.ones(7)},
        ValueError,
        "row_mass has shape (7,); it must be (n,) or (B, n)",
    ),
    "row mass of another batch": ({"row_mass": torch.ones(3, 6)}, ValueError, "row_mass has shape (3, 6)"),
    "row mass of one item": ({"row_mass": torch.ones(1, 6)}, ValueError, "row_mass has shape (1, 6)"),
    "row mass a number": ({"row_mass": torch.tensor(1.0)}, ValueError, "row_mass has 0 dimensions"),
    "row mass a list": ({"row_mass": [1.0] * 6}, TypeError, "row_mass is a list"),
    "row mass of integers": ({"row_mass": torch.ones(6, dtype=torch.int64)}, TypeError, "row_mass is torch.int64"),
    "row mass elsewhere": ({"row_mass": torch.ones(6, device=META)}, ValueError, "row_mass is on meta"),
    "row mass with a gradient": (
        {"row_mass": torch.full((6,), 1 / 6, requires_grad=True)},
        ValueError,
        "row_mass requires a gradient",
    ),
    "column mass too short": ({"column_mass": torch.ones(4)}, ValueError, "column_mass has shape (4,)"),
    "column mass negative": ({"column_mass": torch.tensor([1.0, 1, 1, -1, -1])}, ValueError, "column_mass has a neg"),
    "column mass zero": ({"column_mass": torch.zeros(2, 5)}, ValueError, "column_mass is all zero"),
    "column mass with a gradient": (
        {"column_mass": torch.full((5,), 0.2, requires_grad=True)},
        ValueError,
        "column_mass requires a gradient",
    ),
    "totals differ": ({"column_mass": torch.ones(5)}, ValueError, "totals that differ by more than a thousandth"),
    "totals differ after the mask": (
        {"row_mass": torch.full((6,), 1 / 6), "mask": torch.tensor([[True] * 5 + [False]] * 2)},
        ValueError,
        "totals that differ by more than a thousandth",
    ),
    "mask of floats": ({"mask": torch.ones(2, 6)}, TypeError, "mask is torch.float32; it must be torch.bool"),
    "mask of integers": ({"mask": torch.ones(2, 6, dtype=torch.uint8)}, TypeError, "mask is torch.uint8"),
    "mask without batch": ({"mask": torch.ones(6, dtype=torch.bool)}, ValueError, "mask has shape (6,)"),
    "mask of columns": ({"mask": torch.ones(2, 5, dtype=torch.bool)}, ValueError, "mask has shape (2, 5)"),
    "mask elsewhere": ({"mask": torch.ones(2, 6, dtype=torch.bool, device=META)}, ValueError, "mask is on meta"),
    "mask a list": ({"mask": [[True] * 6] * 2}, TypeError, "mask is a list"),
}
BAD_SCORES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "scores a list": ({"scores": [[1.0]]}, TypeError, "scores is a list"),
    "scores without batch": ({"scores": torch.randn(6, 5)}, ValueError, "scores has 2 dimensions"),
    "scores of four dimensions": ({"scores": torch.randn(2, 2, 6, 5)}, ValueError, "scores has 4 dimensions"),
    "scores of integers": ({"scores": torch.ones(2, 6, 5).long()}, TypeError, "scores is torch.int64"),
    "scores sparse": ({"scores": torch.ones(2, 6, 5).to_sparse()}, TypeError, "scores has layout"),
    "scores without rows": ({"scores": torch.ones(2, 0, 5)}, ValueError, "scores has shape (2, 0, 5)"),
    "scores without columns": ({"scores": torch.ones(2, 6, 0)}, ValueError, "scores has shape (2, 6, 0)"),
}
BAD_GRADIENT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another gradient": ({"gradient": "envelope"}, ValueError, "gradient is 'envelope'; it must be one of 'unrolled'"),
    "gradient None": ({"gradient": None}, ValueError, "gradient is None"),
}
BAD_TOKENS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "tokens None": ({"tokens": None}, TypeError, "tokens is a NoneType"),
    "tokens as an image": ({"tokens": torch.randn(2, 3, 4, 4)}, ValueError, "tokens has 4 dimensions"),
    "no tokens": ({"tokens": torch.randn(2, 0, 3)}, ValueError, "tokens has shape (2, 0, 3)"),
    "reference an array": ({"reference": torch.randn(5, 3).numpy()}, TypeError, "reference is a ndarray"),
    "reference of one support": ({"reference": torch.randn(3)}, ValueError, "reference has 1 dimensions"),
    "reference of batches": ({"reference": torch.randn(2, 2, 5, 3)}, ValueError, "reference has 4 dimensions"),
    "no supports": ({"reference": torch.randn(0, 3)}, ValueError, "reference has shape"),
    "no heads": ({"reference": torch.randn(0, 5, 3)}, ValueError, "reference has shape"),
    "other features": ({"reference": torch.randn(5, 4)}, ValueError, "reference has 4 features and tokens 3"),
    "reference in half": ({"reference": torch.randn(5, 3).half()}, TypeError, "reference is torch.float16"),
    "reference in double": ({"reference": torch.randn(5, 3).double()}, TypeError, "reference is torch.float64"),
    "reference elsewhere": ({"reference": torch.randn(5, 3, device=META)}, ValueError, "reference is on meta"),
    "another score": ({"score": "cosine"}, ValueError, "score is 'cosine'; it must be one of 'dot'"),
}


def raises(function: Callable[..., Any], good: dict[str, Any], bad: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        function(**(good | bad))
    assert message in str(caught.value)


@pytest.mark.parametrize(("bad", "error", "message"), (BAD_SCORES | BAD_SHARED).values(), ids=BAD_SCORES | BAD_SHARED)
def test_bad_scores_and_masses(backend: str, bad: dict[str, Any], error: type, message: str) -> None:
    raises(sinkhorn, SCORES, bad, error, message)
    raises(transport_plan, SCORES, bad, error, message)


BAD_ALIGN = BAD_TOKENS | BAD_GRADIENT | BAD_SHARED


@pytest.mark.parametrize(("bad", "error", "message"), BAD_ALIGN.values(), ids=BAD_ALIGN)
def test_bad_tokens(backend: str, bad: dict[str, Any], error: type, message: str) -> None:
    raises(transport_align, ALIGN, bad, error, message)


@pytest.mark.parametrize(("bad", "error", "message"), BAD_GRADIENT.values(), ids=BAD_GRADIENT)
def test_bad_gradient(backend: str, bad: dict[str, Any], error: type, message: str) -> None:
    raises(transport_plan, SCORES, bad, error, message)


APPLY: dict[str, Any] = {
    **ALIGN,
    "potentials": Potentials(torch.randn(2, 6), torch.randn(2, 5)),
    "values": torch.randn(2, 6, 4),
    "side": "columns",
}
BAD_APPLY: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    **BAD_TOKENS,
    "another side": ({"side": "left"}, ValueError, "side is 'left'; it must be one of 'columns', 'rows'"),
    "epsilon 0": ({"epsilon": 0.0}, ValueError, "epsilon is 0.0"),
    "potentials a tensor": ({"potentials": torch.randn(2, 6)}, TypeError, "potentials is a Tensor"),
    "one potential": ({"potentials": (torch.randn(2, 6),)}, TypeError, "potentials is a tuple"),
    "potentials the other way round": (
        {"potentials": (torch.randn(2, 5), torch.randn(2, 6))},
        ValueError,
        "potentials.row has shape",
    ),
    "potentials of heads": (
        {"potentials": (torch.randn(2, 3, 6), torch.randn(2, 3, 5))},
        ValueError,
        "potentials.row has 3 dimensions",
    ),
    "potentials in double": (
        {"potentials": (torch.randn(2, 6).double(), torch.randn(2, 5).double())},
        TypeError,
        "potentials.row is torch.float64",
    ),
    "values in half": ({"values": torch.randn(2, 6, 4).half()}, TypeError, "values is torch.float16"),
    "values of the other side": ({"values": torch.randn(2, 5, 4)}, ValueError, "values has shape (2, 5, 4)"),
    "values without features": ({"values": torch.randn(2, 6)}, ValueError, "values has shape (2, 6)"),
    "values for the rows": ({"side": "rows"}, ValueError, "values has shape"),
    "values elsewhere": ({"values": torch.randn(2, 6, 4, device=META)}, ValueError, "values is on meta"),
}


@pytest.mark.parametrize(("bad", "error", "message"), BAD_APPLY.values(), ids=BAD_APPLY)
def test_bad_potentials_and_values(backend: str, bad: dict[str, Any], error: type, message: str) -> None:
    raises(apply_plan, APPLY, bad, error, message)


def test_what_the_cases_spoil_is_good(backend: str) -> None:
    assert sinkhorn(**SCORES).row.shape == (2, 6)
    assert transport_plan(**SCORES).shape == (2, 6, 5)
    assert transport_align(**ALIGN).shape == (2, 5, 3)
    assert apply_plan(**APPLY).shape == (2, 5, 4)


def test_the_convention_of_otke_is_good(backend: str) -> None:
    """a = p/n and b = 1, in half precision too, where p/n times n is not p."""
    for dtype in (torch.float32, torch.bfloat16):
        row_mass, column_mass = torch.full((7,), 5 / 7).to(dtype).float(), torch.ones(5)
        row_mass = row_mass * 5 / row_mass.sum()
        plan = transport_plan(torch.randn(2, 7, 5), row_mass=row_mass, column_mass=column_mass)
        torch.testing.assert_close(plan.sum(dim=1), torch.ones(2, 5))


def test_a_mask_without_any_token_is_good_beside_given_masses(backend: str) -> None:
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0] = True
    plan = transport_plan(**SCORES, mask=mask, row_mass=torch.full((6,), 1 / 6), column_mass=torch.full((5,), 0.2))
    assert plan[0].any()
    assert not plan[1].any()


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.randn(2, 6, 5), torch.ones(7), None, None, 1.0, 3, 0.0, 1, True),
        (torch.randn(2, 6, 5), None, None, torch.ones(2, 5).bool(), 1.0, 3, 0.0, 1, True),
        (torch.randn(2, 6, 5), None, None, None, 1.0, 3, 0.0, 2, True),
        (torch.randn(2, 6, 5), None, None, None, 1.0, 0, 0.0, 1, True),
        (torch.randn(6, 5), None, None, None, 1.0, 3, 0.0, 1, True),
    ],
)
def test_the_operator_called_directly_does_not_read_beyond_its_tensors(backend: str, arguments: tuple) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        ops.transport_plan(*arguments)


def test_a_backward_called_directly_does_not_read_beyond_its_tensors(backend: str) -> None:
    scores = torch.randn(2, 6, 5)
    plan, history, count = ops.transport_plan(scores, None, None, None, 1.0, 3, 0.0, 3, True)
    for grad, kept, ran in (
        (plan[:, 1:], history, count),
        (plan.double(), history, count),
        (plan, history[:1], count),
        (plan, history.float(), count),
        (plan, history, count[:1]),
        (plan, history, count.long()),
    ):
        with pytest.raises((ValueError, TypeError)):
            ops.transport_plan_backward(grad, scores, None, None, None, kept, ran, 1.0, True)

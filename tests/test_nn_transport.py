"""The module TransportAlign: shapes, masses, masks, heads, state, compilation, autocast, and what it refuses."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from prosma_ops import transport_plan
from prosma_ops.nn import TransportAlign


def made(**changes: Any) -> TransportAlign:
    torch.manual_seed(0)
    return TransportAlign(6, 4, **changes)


def data(batch: int = 2, count: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, count, 6).to(dtype)


def test_the_signature_is_the_contract() -> None:
    parameters = inspect.signature(TransportAlign).parameters
    assert list(parameters)[:2] == ["dim", "supports"]
    assert {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == {
        "heads": 1,
        "epsilon": 0.5,
        "iterations": 20,
        "score": "dot",
        "gradient": "unrolled",
        "return_to_tokens": True,
    }


@pytest.mark.parametrize("score", ["dot", "negative_squared_distance"])
@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("back", [True, False], ids=["tokens", "supports"])
def test_shapes_and_gradients(backend: str, back: bool, heads: int, gradient: str, score: str) -> None:
    align = made(heads=heads, gradient=gradient, score=score, return_to_tokens=back)
    tokens = data().requires_grad_()
    y = align(tokens)
    assert y.shape == ((2, 9, 6) if back else (2, 4, 6) if heads == 1 else (2, heads, 4, 6))
    y.square().mean().backward()
    for gradient_found in (tokens.grad, align.reference.grad):
        assert gradient_found.isfinite().all()
        assert gradient_found.any()


def by_hand(align: TransportAlign, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Aligned supports and tokens of one item, from plans that are stored; masses of 1 in all, scaled afterwards."""
    supports, moved = [], []
    for reference in align.reference:
        plan = transport_plan(tokens[None] @ reference.T, epsilon=align.epsilon, iterations=align.iterations)[0]
        plan = plan * align.supports
        supports.append(plan.T @ tokens)
        moved.append(plan @ supports[-1] * len(tokens) / align.supports)
    return torch.stack(supports), torch.stack(moved).mean(dim=0)


@pytest.mark.parametrize("heads", [1, 2])
def test_it_is_a_mixture_of_tokens_and_back(backend: str, heads: int) -> None:
    """With a mask as without: what is masked out changes nothing, and comes back as 0."""
    align, tokens = made(heads=heads, iterations=200).double(), data(3, dtype=torch.float64)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 2:5] = False
    mask[2] = False
    tokens[~mask] = torch.nan
    y = align(tokens, mask)
    align.return_to_tokens = False
    supports = align(tokens, mask).reshape(3, heads, 4, 6)
    for item in range(2):
        expected_supports, expected = by_hand(align, tokens[item, mask[item]])
        torch.testing.assert_close(supports[item], expected_supports)
        torch.testing.assert_close(y[item, mask[item]], expected)
    assert not y[~mask].any()
    assert not supports[2].any()
    constant = torch.full((1, 9, 6), 2.5, dtype=torch.float64)
    torch.testing.assert_close(align(constant), torch.full_like(align(constant), 2.5))
    align.return_to_tokens = True
    torch.testing.assert_close(align(constant), constant)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_in_another_dtype(backend: str, dtype: torch.dtype) -> None:
    align = made().to(dtype)
    y = align(data(dtype=dtype))
    y.float().sum().backward()
    assert y.dtype is dtype
    assert align.reference.grad.dtype is dtype


def test_under_autocast(backend: str) -> None:
    align, layer = made(heads=2), torch.nn.Linear(6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = layer(data())
        y = align(tokens)
    y.float().square().mean().backward()
    assert y.dtype is torch.bfloat16
    assert align.reference.grad.dtype is torch.float32
    torch.testing.assert_close(y.float(), align(tokens.float()), rtol=0.05, atol=0.05)


def test_finite_differences(backend: str) -> None:
    align = made(heads=2, iterations=3).double()
    tokens = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(align, (tokens,))


def test_it_compiles_whole_without_recompiling(backend: str) -> None:
    torch.compiler.reset()
    align = made(heads=2, iterations=3)
    compiled = torch.compile(align, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (4, 7):
        with torch.compiler.set_stance("default" if batch == 4 else "fail_on_recompile"):
            y = compiled(data(batch), torch.ones(batch, 9, dtype=torch.bool))
            y.sum().backward()
        torch.testing.assert_close(y, align(data(batch)))
    torch.compiler.reset()


def test_it_is_exported(backend: str) -> None:
    align = made(iterations=3)
    program = torch.export.export(align, (data(),))
    torch.testing.assert_close(program.module()(data()), align(data()))


def test_state_is_the_reference_alone_and_is_copied(backend: str) -> None:
    align = made(heads=2)
    assert list(align.state_dict()) == ["reference"]
    assert align.reference.shape == (2, 4, 6)
    other = TransportAlign(6, 4, heads=2)
    assert not torch.equal(other(data()), align(data()))
    other.load_state_dict(align.state_dict())
    assert torch.equal(other(data()), align(data()))
    assert torch.equal(copy.deepcopy(align)(data()), align(data()))
    before = align.reference.detach().clone()
    align.reset_parameters()
    assert not torch.equal(before, align.reference)


def test_it_says_what_it_is() -> None:
    assert repr(made(heads=2)) == (
        "TransportAlign(6, 4, heads=2, epsilon=0.5, iterations=20, score='dot', gradient='unrolled', "
        "return_to_tokens=True)"
    )


def test_it_trains(backend: str) -> None:
    """Tokens around four centres: the aligned supports find them."""
    torch.manual_seed(0)
    centres = 3 * torch.randn(4, 6)
    align = TransportAlign(6, 4, epsilon=0.3, score="negative_squared_distance", return_to_tokens=False)
    optimizer = torch.optim.Adam(align.parameters(), lr=0.3)
    tokens = (centres.repeat_interleave(8, dim=0) + 0.1 * torch.randn(32, 6)).expand(2, 32, 6)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (align(tokens) - align.reference).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_an_empty_batch(backend: str) -> None:
    assert made()(data(0)).shape == (0, 9, 6)


@pytest.mark.parametrize(
    ("changes", "error", "name"),
    [
        ({"dim": 0}, ValueError, "dim"),
        ({"supports": 1.5}, TypeError, "supports"),
        ({"heads": 0}, ValueError, "heads"),
        ({"epsilon": 0.0}, ValueError, "epsilon"),
        ({"iterations": 0}, ValueError, "iterations"),
        ({"score": "cosine"}, ValueError, "score"),
        ({"gradient": "none"}, ValueError, "gradient"),
    ],
    ids=str,
)
def test_what_it_cannot_be_made_of(changes: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name} "):
        TransportAlign(**({"dim": 6, "supports": 4} | changes))


@pytest.mark.parametrize(
    ("tokens", "mask", "error", "message"),
    [
        (torch.randn(2, 9), None, ValueError, "tokens has 2 dimensions"),
        (torch.randn(2, 9, 5), None, ValueError, "tokens has 5 features; this module was made for 6"),
        ([[1.0]], None, TypeError, "tokens is a list"),
        (torch.randn(2, 9, 6), torch.ones(2, 8, dtype=torch.bool), ValueError, "mask has shape"),
        (torch.randn(2, 9, 6), torch.ones(2, 9), TypeError, "mask is torch.float32"),
        (torch.randn(2, 9, 6), [True], TypeError, "mask is a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_align(tokens: Any, mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        made()(tokens, mask)
    assert message in str(caught.value)

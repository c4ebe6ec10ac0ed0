"""Calls that the native library takes without Python's checks: the same results, and only what is ordinary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prosma_ops import backends, native, proximal_gate, use_backend
from prosma_ops.reference import proximal_gate as reference
from prosma_ops.testing.layouts import LAYOUTS
from prosma_ops.testing.proximal_gate import OPTIONAL, example

NAMES = ("field", "weight", "threshold", *OPTIONAL)


def ordinary(arguments: dict[str, Any]) -> Tensor | None:
    """What the native library makes of it by itself."""
    tensors = [arguments[name] for name in NAMES]
    operator = backends.OPERATORS["proximal_gate"]
    result: Tensor | None = operator.run_ordinary(
        "forward", (*tensors, arguments["dilations"], arguments["activation"])
    )
    return result


def arguments_of(size: tuple[int, ...] = (2, 3, 5, 6), **changes: Any) -> dict[str, Any]:
    problem = example(size, **changes)
    return dict(problem.inputs) | dict(problem.settings)


@pytest.mark.parametrize("missing", [(), OPTIONAL, ("bias",), ("skip", "channel_gate")], ids=str)
@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
@pytest.mark.parametrize("size", [(2, 3, 5, 6), (1, 2, 3, 4, 5), (1, 1, 1, 1)], ids=str)
def test_it_gives_what_the_checked_way_gives(
    native_library: object, size: tuple[int, ...], activation: str, missing: tuple[str, ...]
) -> None:
    arguments = arguments_of(size, activation=activation, missing=missing)
    found = ordinary(arguments)
    assert found is not None
    with use_backend("cpu"):  # an explicit choice goes the checked way
        assert torch.equal(found, proximal_gate(**arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_in_every_layout(native_library: object, layout: str, dtype: torch.dtype) -> None:
    arguments = arguments_of(dtype=dtype, layout=layout)
    for name in set(NAMES) - {"field", "skip"}:
        arguments[name] = arguments[name].contiguous().to(torch.float64 if dtype is torch.float64 else torch.float32)
    found = ordinary(arguments)
    assert found is not None
    with use_backend("cpu"):
        expected = proximal_gate(**arguments)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


NOT_ORDINARY: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a gradient to record": lambda a: {"weight": a["weight"].requires_grad_()},
    "half parameters": lambda a: {"weight": a["weight"].half()},
    "a sliced threshold": lambda a: {"threshold": torch.rand(6)[::2]},
    "a skip of another dtype": lambda a: {"skip": a["skip"].double()},
    "a skip of another size": lambda a: {"skip": a["skip"][..., :-1]},
    "a transposed gate": lambda a: {"channel_gate": torch.rand(3, 2).t()},
    "a meta tensor": lambda a: {"field": a["field"].to("meta")},
    "a lazily negated field": lambda a: {"field": torch._neg_view(a["field"])},
    "zeros without memory": lambda a: {"field": torch._efficientzerotensor(2, 3, 5, 6)},
    "a sparse field": lambda a: {"field": a["field"].to_sparse()},
    "an integer field": lambda a: {"field": a["field"].long()},
    "no image": lambda a: {"field": a["field"][:0], "skip": a["skip"][:0], "channel_gate": a["channel_gate"][:0]},
    "five dimensions beside four": lambda a: {"field": a["field"].unsqueeze(2)},
    "six dimensions": lambda a: {"field": a["field"][:, :, None, None]},
    "channels that disagree": lambda a: {"weight": a["weight"][:, :2].contiguous()},
    "an even kernel": lambda a: {"weight": torch.randn(3, 3, 2, 2)},
    "an oblong kernel": lambda a: {"weight": torch.randn(3, 3, 3, 5)},
    "a threshold too long": lambda a: {"threshold": torch.rand(4)},
    "a subclass": lambda a: {"field": a["field"].as_subclass(type("Tagged", (Tensor,), {}))},
    "a list": lambda a: {"field": a["field"].tolist()},
    "no field": lambda a: {"field": None},
    "a list of dilations": lambda a: {"dilations": [1, 2, 3]},
    "too few dilations": lambda a: {"dilations": (1, 2)},
    "dilation 0": lambda a: {"dilations": (0, 1, 2)},
    "a dilation beyond 64 bits": lambda a: {"dilations": (1, 2, 1 << 70)},
    "a dilation that is a bool": lambda a: {"dilations": (True, 1, 2)},
    "an unknown activation": lambda a: {"activation": "gelu"},
    "an activation that is no text": lambda a: {"activation": 1},
}


@pytest.mark.parametrize("change", NOT_ORDINARY.values(), ids=NOT_ORDINARY)
def test_it_declines_what_is_not_ordinary(
    native_library: object, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    arguments = arguments_of()
    assert ordinary(arguments) is not None
    assert ordinary(arguments | change(arguments)) is None


@pytest.mark.parametrize("change", ["a lazily negated field", "zeros without memory"])
def test_tensors_without_plain_memory_come_out_right(native_library: object, change: str) -> None:
    arguments = arguments_of()
    arguments |= NOT_ORDINARY[change](arguments)
    field = arguments["field"].clone()
    tensors = [field, *(arguments[name] for name in NAMES[1:])]
    expected = reference.proximal_gate(*tensors, arguments["dilations"], arguments["activation"])
    torch.testing.assert_close(proximal_gate(**arguments), expected)


def test_the_environment_can_ask_for_another_backend(native_library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = arguments_of()
    for allowed in ("auto", "cpu", ""):
        monkeypatch.setenv(backends.BACKEND_VARIABLE, allowed)
        assert ordinary(arguments) is not None
    monkeypatch.setenv(backends.BACKEND_VARIABLE, "reference")
    assert ordinary(arguments) is None


def test_without_the_native_library_nothing_is_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: native.Library(None, "blocked by a test"))
    assert ordinary(arguments_of()) is None

"""Bad input to mixed_logit_statistics raises and names the argument, on every backend and before any kernel runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prosma_ops import map_names, mixed_logit_statistics

META = torch.device("meta")


def good() -> dict[str, Any]:
    return {
        "logits": [torch.randn(2, 3, 2, 3), torch.randn(2, 3, 5, 6)],
        "target": torch.randint(0, 3, (2, 5, 6)),
        "operators": ("add", "multiply", "concat", "attention"),
        "concat_weight": torch.randn(3, 6),
        "concat_bias": torch.randn(3, 1),
        "attention_weight": torch.randn(2, 3),
        "attention_bias": torch.randn(2),
    }


def levels(*changed: Tensor) -> list[Tensor]:
    return [torch.randn(2, 3, 2, 3), *changed]


NOTHING = {"concat_weight": None, "concat_bias": None, "attention_weight": None, "attention_bias": None}
PLAIN = {"operators": (), **NOTHING}

CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    # levels
    "logits is a tensor": ({"logits": torch.randn(2, 3, 5, 6)}, TypeError, "logits is a Tensor; it must be a list"),
    "logits is None": ({"logits": None}, TypeError, "logits is a NoneType"),
    "a level is an array": ({"logits": levels(torch.randn(2, 3, 5, 6).numpy())}, TypeError, "logits[1] is a ndarray"),
    "no level": ({"logits": []}, ValueError, "logits has 0 levels"),
    "seven levels": ({"logits": levels() * 7, **PLAIN}, ValueError, "logits has 7 levels"),
    "integer logits": ({"logits": [torch.ones(2, 3, 2, 3).int()]}, TypeError, "logits[0] is torch.int32"),
    "two dtypes": ({"logits": levels(torch.randn(2, 3, 5, 6).half())}, TypeError, "logits[1] is torch.float16"),
    "a level without batch": ({"logits": levels(torch.randn(3, 5, 6))}, ValueError, "logits[1] has 3 dimensions"),
    "a volume beside an image": ({"logits": levels(torch.randn(2, 3, 5, 6, 7))}, ValueError, "logits[1] has 5 dim"),
    "another batch": ({"logits": levels(torch.randn(1, 3, 5, 6))}, ValueError, "logits[1] has shape (1, 3, 5, 6)"),
    "other classes": ({"logits": levels(torch.randn(2, 4, 5, 6))}, ValueError, "logits[1] has shape (2, 4, 5, 6)"),
    "a level without rows": ({"logits": levels(torch.randn(2, 3, 0, 6))}, ValueError, "logits[1] has shape"),
    "no classes": ({"logits": [torch.randn(2, 0, 5, 6)]}, ValueError, "logits[0] has shape"),
    "129 classes": ({"logits": [torch.randn(2, 129, 1, 1)], **PLAIN}, ValueError, "logits has 129 classes"),
    "one class, softmax": ({"logits": [torch.randn(2, 1, 5, 6)], **PLAIN}, ValueError, "the activation 'softmax'"),
    "a level elsewhere": ({"logits": levels(torch.randn(2, 3, 5, 6, device=META))}, ValueError, "logits[1] is on meta"),
    "a sparse level": ({"logits": levels(torch.randn(2, 3, 5, 6).to_sparse())}, TypeError, "logits[1] has layout"),
    # target
    "target is a list": ({"target": [[0]]}, TypeError, "target is a list"),
    "target of another batch": ({"target": torch.zeros(1, 5, 6).long()}, ValueError, "target has shape (1, 5, 6)"),
    "target of another rank": ({"target": torch.zeros(5, 6).long()}, ValueError, "target has shape (5, 6)"),
    "target of one more axis": ({"target": torch.zeros(2, 4, 5, 6).long()}, ValueError, "(B, H, W) or (B, 1, H, W)"),
    "one-hot target, softmax": ({"target": torch.zeros(2, 3, 5, 6)}, ValueError, "a soft or one-hot target is not"),
    "regions of other classes": (
        {"target": torch.zeros(2, 2, 5, 6), "activation": "sigmoid"},
        ValueError,
        "(B, C, H, W) of zeros and ones",
    ),
    "target without rows": ({"target": torch.zeros(2, 0, 6).long()}, ValueError, "every spatial size"),
    "complex target": ({"target": torch.zeros(2, 5, 6, dtype=torch.complex64)}, TypeError, "target is torch.complex64"),
    "target elsewhere": ({"target": torch.zeros(2, 5, 6, device=META)}, ValueError, "target is on meta"),
    "sparse target": ({"target": torch.zeros(2, 5, 6).to_sparse()}, TypeError, "target has layout"),
    # operators
    "operators is a name": ({"operators": "add"}, TypeError, "operators is 'add'; it must be a sequence"),
    "operators is None": ({"operators": None}, TypeError, "operators is None"),
    "an unknown operator": ({"operators": ("add", "subtract")}, ValueError, "operators is 'subtract'; it must be one"),
    "an operator twice": ({"operators": ("add", "add"), **NOTHING}, ValueError, "each may be there once"),
    "an operator that is no name": ({"operators": (1,)}, ValueError, "operators is 1"),
    # parameters
    "concat without weight": ({"concat_weight": None}, ValueError, "concat_weight is None; the operator 'concat'"),
    "attention without weight": ({"attention_weight": None}, ValueError, "attention_weight is None"),
    "concat's weight without it": ({"operators": ("attention",)}, ValueError, "concat_weight is given"),
    "concat's bias without it": (
        {"operators": ("attention",), "concat_weight": None},
        ValueError,
        "concat_bias is given, and operators is ('attention',)",
    ),
    "attention's weight without it": ({"operators": ("concat",)}, ValueError, "attention_weight is given"),
    "concat weight of another shape": ({"concat_weight": torch.randn(3, 9)}, ValueError, "concat_weight has shape"),
    "concat weight transposed": ({"concat_weight": torch.randn(6, 3)}, ValueError, "it must be (C, C n) of logits"),
    "concat bias of another shape": ({"concat_bias": torch.randn(3)}, ValueError, "concat_bias has shape"),
    "attention weight of another shape": ({"attention_weight": torch.randn(3, 3)}, ValueError, "attention_weight has"),
    "attention bias of another shape": ({"attention_bias": torch.randn(2, 1)}, ValueError, "attention_bias has shape"),
    "float64 weight": ({"concat_weight": torch.randn(3, 6).double()}, TypeError, "concat_weight is torch.float64"),
    "half bias": ({"attention_bias": torch.randn(2).half()}, TypeError, "attention_bias is torch.float16"),
    "weight is a list": ({"concat_weight": [1.0]}, TypeError, "concat_weight is a list"),
    "weight elsewhere": ({"concat_weight": torch.randn(3, 6, device=META)}, ValueError, "concat_weight is on meta"),
    # settings
    "another activation": ({"activation": "tanh"}, ValueError, "activation is 'tanh'"),
    "no activation": ({"activation": None}, ValueError, "activation is None"),
    "another domain": ({"domain": "logit"}, ValueError, "domain is 'logit'"),
    "a float ignore_index": ({"ignore_index": 255.0}, TypeError, "ignore_index is 255.0"),
    "a boolean ignore_index": ({"ignore_index": True}, TypeError, "ignore_index is True"),
    "ignore_index beyond 64 bits": ({"ignore_index": 1 << 70}, ValueError, "ignore_index is"),
    "align_corners is None": ({"align_corners": None}, TypeError, "align_corners is None"),
    "per_sample is a number": ({"per_sample": 1}, TypeError, "per_sample is 1"),
    "log_probability is a string": ({"log_probability": "yes"}, TypeError, "log_probability is 'yes'"),
    "log_probability of sigmoids": (
        {"log_probability": True, "activation": "sigmoid"},
        ValueError,
        "log_probability is True beside the activation 'sigmoid'",
    ),
}


@pytest.mark.parametrize(("changes", "error", "message"), CASES.values(), ids=CASES)
def test_it_raises(backend: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = good() | changes
    with pytest.raises(error) as caught:
        mixed_logit_statistics(arguments.pop("logits"), arguments.pop("target"), **arguments)
    assert message in str(caught.value)


def test_the_arguments_that_the_cases_spoil_are_good(backend: str) -> None:
    arguments = good()
    found = mixed_logit_statistics(arguments.pop("logits"), arguments.pop("target"), **arguments)
    assert found.square.shape == (6, 3)


@pytest.mark.parametrize(
    ("count", "operators", "error", "message"),
    [
        (0, (), ValueError, "levels is 0"),
        (7, (), ValueError, "levels is 7"),
        (2.0, (), TypeError, "levels is 2.0"),
        (True, (), TypeError, "levels is True"),
        (2, "add", TypeError, "operators is 'add'"),
        (2, ("plus",), ValueError, "operators is 'plus'"),
    ],
)
def test_map_names(count: Any, operators: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        map_names(count, operators)
    assert message in str(caught.value)


# Straight through torch.ops, past the public function's checks: still no undefined behaviour.


def direct(**changes: Any) -> tuple[Tensor, ...]:
    arguments = good() | changes
    parameters = [arguments[name] for name in NOTHING]
    settings = {"activation": "softmax", "domain": "logits", "ignore_index": None, "align_corners": False} | {
        name: arguments[name] for name in ("activation", "domain") if name in arguments
    }
    return torch.ops.prosma_ops.mixed_logit_statistics(
        arguments["logits"],
        arguments["target"],
        *parameters,
        list(arguments["operators"]),
        *settings.values(),
        False,
        False,
    )


def test_the_operator_itself_is_the_public_function(backend: str) -> None:
    torch.manual_seed(0)
    arguments = good()
    expected = mixed_logit_statistics(arguments.pop("logits"), arguments.pop("target"), **arguments)
    torch.manual_seed(0)
    assert torch.equal(direct()[0], expected.cross_entropy)


@pytest.mark.parametrize(
    "changes",
    [
        {"logits": levels(torch.randn(2, 3, 5))},
        {"logits": levels(torch.randn(2, 4, 5, 6))},
        {"logits": levels(torch.randn(2, 3, 5, 6).double())},
        {"target": torch.zeros(2, 3, 5, 6).long()},
        {"target": torch.zeros(1, 5, 6).long()},
        {"concat_weight": torch.randn(3, 5)},
        {"concat_weight": None},
        {"attention_bias": torch.randn(1)},
        {"operators": ("add", "add")},
        {"operators": ("divide",)},
        {"activation": "relu"},
        {"domain": ""},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_the_operator_called_directly_checks_too(backend: str, changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        direct(**changes)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda grads, needed: ([*grads[:3], torch.randn(6, 4)], needed),
        lambda grads, needed: ([grads[0].double(), *grads[1:]], needed),
        lambda grads, needed: (grads, needed[:-1]),
    ],
    ids=["a gradient of another shape", "a gradient of another dtype", "too few flags"],
)
def test_the_backward_called_directly_checks_too(backend: str, spoil: Any) -> None:
    arguments = good()
    grads, needed = spoil([torch.randn(6, 3) for _ in range(4)], [True] * 6)
    tensors = (arguments["logits"], arguments["target"], *(arguments[name] for name in NOTHING))
    settings = (list(arguments["operators"]), "softmax", "logits", None, False, False)
    with pytest.raises(ValueError, match=r"the gradient of|needed has"):
        torch.ops.prosma_ops.mixed_logit_statistics_backward(*grads, None, *tensors, *settings, needed)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_of_logits_are_not_arguments(backend: str, value: float) -> None:
    arguments = good() | {"logits": [torch.full((2, 3, 2, 3), value), torch.randn(2, 3, 5, 6)]}
    found = mixed_logit_statistics(arguments.pop("logits"), arguments.pop("target"), **arguments)
    assert found.pixels.item() == 60

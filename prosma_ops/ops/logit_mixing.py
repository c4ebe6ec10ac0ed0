"""mixed_logit_statistics: schema, shape rule, gradient, and the choice of implementation.

The mathematics stands in `prosma_ops/reference/logit_mixing.py`. Below the public function a target of class indices
has the rank of the logits less one, and a target of one yes or no a channel has their rank.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, errors
from ..backends import Implementation, Tensors, Verdict
from ..reference import logit_mixing as reference
from ..reference.precision import compute_dtype
from . import checks
from .library import define, derivative_of, empty_gradients, laid_out_as

OPERATORS, ACTIVATIONS, DOMAINS = reference.OPERATORS, reference.ACTIVATIONS, reference.DOMAINS
# All four operators on 6 levels make 234 maps; on 7 they would make 487.
MOST_LEVELS = 6
# What the kernels keep of a pixel in registers and first-level cache.
MOST_CLASSES = 128
TARGET_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, *backends.SUPPORTED)


class LogitStatistics(NamedTuple):
    """Sums over pixels, one row a map and one column a class; with `per_sample` each has a leading B."""

    cross_entropy: Tensor  # (U, C)
    intersection: Tensor  # (U, C)
    probability: Tensor  # (U, C)
    square: Tensor  # (U, C)
    target: Tensor  # (C,) int64: the pixels of each class
    pixels: Tensor  # () int64: those that count
    log_probability: Tensor | None  # (U, C), where asked for
    invalid: Tensor  # () int64: the labels that are no class


def map_names(levels: int, operators: Sequence[str] = OPERATORS) -> list[str]:
    """The names of the maps, in the order of the rows of `mixed_logit_statistics`.

    >>> map_names(2, ["add", "attention"])
    ['0', '1', 'add(0,1)', 'attention(0,1)']
    """
    if type(levels) is not int:
        raise TypeError(f"levels is {levels!r}; it must be an integer")
    if not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels is {levels}; it must be at least 1 and at most {MOST_LEVELS}")
    _check_operators(operators)
    mixed = [f"{name}({','.join(map(str, subset))})" for name in operators for subset in reference.subsets(levels)]
    return [str(level) for level in range(levels)] + mixed


def mixed_logit_statistics(
    logits: Sequence[Tensor],
    target: Tensor,
    *,
    operators: Sequence[str] = OPERATORS,
    concat_weight: Tensor | None = None,
    concat_bias: Tensor | None = None,
    attention_weight: Tensor | None = None,
    attention_bias: Tensor | None = None,
    activation: str = "softmax",
    domain: str = "logits",
    ignore_index: int | None = None,
    align_corners: bool = False,
    per_sample: bool = False,
    log_probability: bool = False,
) -> LogitStatistics:
    """The sums that Dice, cross-entropy and their like are made of, for every mix of several logit maps (LoMix).

    Each level is up-sampled to the target's size as `torch.nn.functional.interpolate` does it (bilinear, trilinear).
    The maps are the levels themselves; then, for each operator in the order given, every subset of two levels or more,
    by size, then lexicographically: with four levels and all four operators 48 maps, which `map_names` names.

    Arguments:
        logits: 1 to 6 maps (B, C, h, w) or (B, C, d, h, w), of any sizes, coarse to fine; of one dtype, float32,
            float64, float16 or bfloat16; of any strides. C is at most 128.
        target: class indices (B, H, W), (B, D, H, W), or the same with one channel, of an integer or floating dtype; no
            dtype is converted. With "sigmoid" also (B, C, ...) of zeros and ones, which may overlap. If C is 1 the
            classes are 0 and 1.
        operators: any of "add" (the sum), "multiply" (the product, class by class), "concat" (a 1x1 convolution of the
            concatenated maps) and "attention" (a mean weighted by a softmax over the levels, pixel by pixel).
        concat_weight, concat_bias: (C, C n) and (C, subsets), n being the sum of the sizes of all subsets. Columns: by
            subset in map order, then level ascending, then class. The bias may be left out.
        attention_weight, attention_bias: (n, C) and (n,): one score a subset and level. The bias may be left out.
        activation: "softmax" (C >= 2), or "sigmoid", where every class is a yes or no of its own.
        domain: what is mixed: the "logits", or their "probabilities" (the result is a logit in both).
        ignore_index: pixels with this label count nowhere.
        align_corners: of the up-sampling.
        per_sample: sums for each image instead of the whole batch.
        log_probability: also return the sums of log p ("softmax" only).

    Returns a `LogitStatistics`: sums in float32 (float64 for float64 logits), counts in int64. Differentiable, twice
    too, in logits, weights and biases; nothing but the inputs is kept for the backward.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it and says what would do. A label
            that is no class raises on the CPU; on a GPU it counts only in `.invalid`, and `check_errors` raises.
    """
    levels = _levels(logits)
    target = checks.plain("target", target)
    parameters = (
        checks.optional("concat_weight", concat_weight),
        checks.optional("concat_bias", concat_bias),
        checks.optional("attention_weight", attention_weight),
        checks.optional("attention_bias", attention_bias),
    )
    if target.dim() == levels[0].dim() and target.shape[1] == 1:
        target = target.squeeze(1)
    operators = _check_operators(operators)
    _check_ignore_index(ignore_index)
    for name, value in (("align_corners", align_corners), ("per_sample", per_sample)):
        _check_flag(name, value)
    _check_flag("log_probability", log_probability)
    choices = (activation, domain, ignore_index, align_corners, per_sample, log_probability)
    arguments = (levels, target, *parameters, operators, *choices)
    if torch.compiler.is_exporting():
        _check(*arguments)
        return named(reference.mixed_logit_statistics(*arguments))
    return named(_mixed_logit_statistics(*arguments))


def named(results: Sequence[Tensor]) -> LogitStatistics:
    cross_entropy, intersection, probability, square, log_probability, target, pixels, invalid = results
    asked_for = log_probability if log_probability.dim() > 1 else None
    return LogitStatistics(cross_entropy, intersection, probability, square, target, pixels, asked_for, invalid)


# The checks. Everything that a schema can hold is checked in `_check`, where every way into the operator passes.


def _levels(logits: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(logits, (list, tuple)):
        raise TypeError(f"logits is a {type(logits).__name__}; it must be a list of tensors, one a level")
    _check_count(logits)
    return [checks.plain(f"logits[{number}]", level) for number, level in enumerate(logits)]


def _check_count(logits: Sequence[Tensor]) -> None:
    if not 1 <= len(logits) <= MOST_LEVELS:
        raise ValueError(f"logits has {len(logits)} levels; it must have at least 1 and at most {MOST_LEVELS}")


def _check_operators(operators: Sequence[str]) -> list[str]:
    if isinstance(operators, str) or not isinstance(operators, Sequence):
        raise TypeError(f"operators is {operators!r}; it must be a sequence of names")
    for name in operators:
        checks.choice("an entry of operators", name, OPERATORS)
    if len(set(operators)) != len(operators):
        raise ValueError(f"operators is {tuple(operators)}; each may be there once")
    return list(operators)


def _check_ignore_index(ignore_index: int | None) -> None:
    if ignore_index is not None and type(ignore_index) is not int:
        raise TypeError(f"ignore_index is {ignore_index!r}; it must be an integer or None")
    if ignore_index is not None and not -(1 << 63) <= ignore_index < 1 << 63:
        raise ValueError(f"ignore_index is {ignore_index}; it must be a label, which has 64 bits at most")


def _check_flag(name: str, value: bool) -> None:
    if type(value) is not bool:
        raise TypeError(f"{name} is {value!r}; it must be True or False")


def _check(
    logits: Sequence[Tensor],
    target: Tensor,
    concat_weight: Tensor | None,
    concat_bias: Tensor | None,
    attention_weight: Tensor | None,
    attention_bias: Tensor | None,
    operators: Sequence[str],
    activation: str,
    domain: str,
    ignore_index: int | None,
    align_corners: bool,
    per_sample: bool,
    log_probability: bool,
) -> None:
    checks.choice("activation", activation, ACTIVATIONS)
    checks.choice("domain", domain, DOMAINS)
    _check_operators(operators)
    if log_probability and activation != "softmax":
        raise ValueError(f"log_probability is True beside the activation {activation!r}; it must be 'softmax'")
    _check_levels(logits)
    _check_target(target, logits[0], activation)
    _check_parameters("concat", concat_weight, concat_bias, logits, operators)
    _check_parameters("attention", attention_weight, attention_bias, logits, operators)


def _check_levels(logits: Sequence[Tensor]) -> None:
    _check_count(logits)
    first = logits[0]
    for number, level in enumerate(logits):
        name = f"logits[{number}]"
        checks.floating(name, level)
        if level.dim() != 4 and level.dim() != 5:
            checks.wrong_rank(name, level, "(B, C, h, w) or (B, C, d, h, w)")
        checks.same_device(name, level, "logits[0]", first)
        if level.dtype is not first.dtype:
            raise TypeError(f"{name} is {level.dtype} and logits[0] {first.dtype}; all levels must have one dtype")
        if level.dim() != first.dim():
            checks.wrong_rank(name, level, f"of {first.dim()} dimensions as logits[0] is")
        if level.shape[:2] != first.shape[:2]:
            checks.wrong_shape(
                name, level, (*first.shape[:2], *level.shape[2:]), "of the batch and classes of logits[0]"
            )
        if 0 in level.shape[1:]:
            raise ValueError(
                f"{name} has shape {tuple(level.shape)}; it must have 1 class or more, and every spatial size must be"
                " at least 1"
            )
    if first.shape[1] > MOST_CLASSES:
        raise ValueError(f"logits has {first.shape[1]} classes; it must have at most {MOST_CLASSES}")


def _check_target(target: Tensor, first: Tensor, activation: str) -> None:
    if target.dtype not in TARGET_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in TARGET_DTYPES)
        raise TypeError(f"target is {target.dtype}; it must be one of {names}")
    if target.layout is not torch.strided:
        raise TypeError(f"target has layout {target.layout}; it must be a dense (strided) tensor")
    checks.same_device("target", target, "logits[0]", first)
    classes, spatial = first.shape[1], "H, W" if first.dim() == 4 else "D, H, W"
    if activation == "softmax" and classes < 2:
        raise ValueError("logits has 1 class; the activation 'softmax' needs 2 or more, and 'sigmoid' will do")
    if target.dim() == first.dim() - 1:
        fits = target.shape[0] == first.shape[0]
        meaning = f"(B, {spatial}) with the B of logits"
    elif activation == "sigmoid":
        fits = target.dim() == first.dim() and target.shape[:2] == first.shape[:2]
        meaning = f"class indices (B, {spatial}), or (B, C, {spatial}) of zeros and ones, with the B and C of logits"
    else:
        fits = False
        meaning = f"class indices, (B, {spatial}) or (B, 1, {spatial}); a soft or one-hot target is not taken"
    if not fits:
        raise ValueError(f"target has shape {tuple(target.shape)}; it must be {meaning} = {tuple(first.shape)}")
    if 0 in target.shape[1:]:
        raise ValueError(f"target has shape {tuple(target.shape)}; every spatial size must be at least 1")


def _check_parameters(
    operator: str, weight: Tensor | None, bias: Tensor | None, logits: Sequence[Tensor], operators: Sequence[str]
) -> None:
    """Of "concat" or "attention": there if and only if the operator is, and of the right shape."""
    subsets = reference.subsets(len(logits))
    classes, entries = logits[0].shape[1], sum(map(len, subsets))
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((entries, classes), (entries,))
    if operator == "concat":
        shapes = ((classes, classes * entries), (classes, len(subsets)))
    meanings = ("(C, C n)", "(C, subsets)") if operator == "concat" else ("(n, C)", "(n,)")
    for name, tensor, shape, meaning in zip(("weight", "bias"), (weight, bias), shapes, meanings, strict=True):
        if tensor is not None and operator not in operators:
            raise ValueError(
                f"{operator}_{name} is given, and operators is {tuple(operators)}; it needs {operator!r} among them"
            )
        if tensor is not None:
            explained = f"{meaning} of logits, n being the sum of the sizes of all subsets of levels,"
            checks.channel_values(f"{operator}_{name}", tensor, shape, explained, "logits", logits[0])
    if weight is None and operator in operators and subsets:
        raise ValueError(f"{operator}_weight is None; the operator {operator!r} needs it, of shape {shapes[0]}")


def _report(invalid: Tensor, target: Tensor, first: Tensor, ignore_index: int | None) -> None:
    """Labels that are no class: on the CPU an error at once."""
    two = first.shape[1] == 1 or target.dim() == first.dim()
    allowed = "0 or 1" if two else f"a whole number from 0 to {first.shape[1] - 1}"
    ignored = "" if ignore_index is None else f", or ignore_index = {ignore_index}"
    errors.record(invalid.any(), f"target has labels that are no class; each must be {allowed}{ignored}")


# Backend "reference".


def _reference_backward(*arguments: Any) -> list[Tensor]:
    logits, parameters, needed = arguments[5], arguments[7:11], arguments[-1]
    found = reference.mixed_logit_statistics_backward(*arguments)
    return [
        laid_out_as(tensor, gradient) if wanted and tensor is not None else gradient
        for tensor, gradient, wanted in zip((*logits, *parameters), found, needed, strict=True)
    ]


# Backends "cpu", "cuda" and "triton": imported when first chosen.


def _function(module: str, name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module, __package__), name)(*arguments)

    return run


_NATIVE, _TRITON = ".logit_mixing_native", "..triton_kernels.logit_mixing"


def _if_written(module: str, can_run: Callable[[Tensors], Verdict]) -> Callable[[Tensors], Verdict]:
    def answer(tensors: Tensors) -> Verdict:
        if importlib.util.find_spec(module, __package__) is None:
            return Verdict(False, "there is no kernel for mixed_logit_statistics yet")
        return can_run(tensors)

    return answer


def _functions(module: str, prefix: str = "") -> dict[str, Callable[..., Any]]:
    return {name: _function(module, prefix + name) for name in ("forward", "backward")}


_MIXING = backends.register(
    "mixed_logit_statistics",
    "logit_mixing",
    {
        "reference": Implementation(
            backends.reference_can_run,
            {"forward": reference.mixed_logit_statistics, "backward": _reference_backward},
        ),
        "cpu": Implementation(backends.cpu_can_run, _functions(_NATIVE, "cpu_")),
        "triton": Implementation(_if_written(_TRITON, backends.triton_can_run), _functions(_TRITON)),
        "cuda": Implementation(backends.cuda_can_run("mixed_logit_statistics"), _functions(_NATIVE, "cuda_")),
    },
)


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    _check(*arguments)
    logits, target, ignore_index = arguments[0], arguments[1], arguments[9]
    results: tuple[Tensor, ...] = _MIXING.run("forward", logits[:1], arguments)
    _report(results[-1], target, logits[0], ignore_index)
    return results


def _backward(*arguments: Any) -> list[Tensor]:
    _check_gradients(*arguments)
    return list(_MIXING.run("backward", arguments[5][:1], arguments))


def _check_gradients(*arguments: Any) -> None:
    grads, needed, forward = arguments[:5], arguments[-1], (*arguments[5:-1], False)
    _check(*forward)
    logits, operators, per_sample = forward[0], forward[6], forward[11]
    if len(needed) != len(logits) + 4:
        raise ValueError(f"needed has {len(needed)} entries; it must have {len(logits) + 4}: the levels and parameters")
    shape, dtype = _table(logits, operators, per_sample), compute_dtype(logits[0].dtype)
    names = ("cross_entropy", "intersection", "probability", "square", "log_probability")
    for name, grad in zip(names, grads, strict=True):
        if grad is not None and (grad.shape != shape or grad.dtype is not dtype):
            came = f"{grad.dtype} of shape {tuple(grad.shape)}"
            raise ValueError(f"the gradient of {name} is {came}; it must be {dtype} of shape {shape}")


def _table(logits: Sequence[Tensor], operators: Sequence[str], per_sample: bool) -> tuple[int, ...]:
    """The shape of each sum."""
    batch, classes = logits[0].shape[:2]
    maps = len(logits) + len(operators) * len(reference.subsets(len(logits)))
    return (batch, maps, classes) if per_sample else (maps, classes)


def _fake_forward(logits: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    _check(logits, *rest)
    per_sample, log_probability = rest[-2:]
    table = _table(logits, rest[5], per_sample)
    first, dtype = logits[0], compute_dtype(logits[0].dtype)
    images = table[:-2]
    return (
        *(first.new_empty(table, dtype=dtype) for _ in range(4)),
        first.new_empty(table if log_probability else 0, dtype=dtype),
        first.new_empty((*images, table[-1]), dtype=torch.int64),
        *(first.new_empty(images, dtype=torch.int64) for _ in range(2)),
    )


def _fake_backward(*arguments: Any) -> list[Tensor]:
    _check_gradients(*arguments)
    return empty_gradients((*arguments[5], *arguments[7:11]), arguments[-1])


# Autograd. What the operators are given comes back as a list where it was a list of tensors, and an empty list of
# names looks like one.


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    logits, target, *parameters = inputs[:6]
    ctx.save_for_backward(*logits, *parameters, target)
    ctx.levels, ctx.settings, ctx.log_probability = len(logits), inputs[6:12], inputs[12]
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    *tensors, target = ctx.saved_tensors
    logits, parameters = tensors[: ctx.levels], tensors[ctx.levels :]
    needed = [*ctx.needs_input_grad[0], *ctx.needs_input_grad[2:6]]
    flowing = (*grads[:4], grads[4] if ctx.log_probability else None)
    found = _mixed_logit_statistics_backward(*flowing, logits, target, *parameters, *ctx.settings, needed)
    found = [gradient if wanted else None for gradient, wanted in zip(found, needed, strict=True)]
    return found[: ctx.levels], None, *found[ctx.levels :], *_of_settings(ctx.settings), None


def _of_settings(settings: Sequence[Any]) -> tuple[Any, ...]:
    """No gradients."""
    return (None if settings[0] else [], *(None for _ in settings[1:]))


def _save_of_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grads, (logits, target, *parameters) = inputs[:5], inputs[5:11]
    ctx.save_for_backward(*grads, *logits, *parameters, target)
    ctx.levels, ctx.settings, ctx.needed = len(logits), inputs[11:17], inputs[17]


def _second_gradient(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    *tensors, target = ctx.saved_tensors
    end = 5 + ctx.levels

    def formula(*tensors: Any) -> Sequence[Tensor]:
        arguments = (*tensors[:5], tensors[5:end], target, *tensors[end:], *ctx.settings, ctx.needed)
        return reference.mixed_logit_statistics_backward(*arguments)

    wanted = [grad if needed else None for grad, needed in zip(grads, ctx.needed, strict=True)]
    found = derivative_of(formula, tensors, (), wanted)
    return *found[:5], found[5:end], None, *found[end:], *_of_settings(ctx.settings), None


_PARAMETERS = "Tensor? concat_weight, Tensor? concat_bias, Tensor? attention_weight, Tensor? attention_bias"
_SETTINGS = "str[] operators, str activation, str domain, int? ignore_index, bool align_corners, bool per_sample"

_mixed_logit_statistics = define(
    f"mixed_logit_statistics(Tensor[] logits, Tensor target, {_PARAMETERS}, {_SETTINGS}, bool log_probability)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    setup_context=_save,
    backward=_gradient,
)
_mixed_logit_statistics_backward = define(
    "mixed_logit_statistics_backward(Tensor? grad_cross_entropy, Tensor? grad_intersection, Tensor? grad_probability,"
    " Tensor? grad_square, Tensor? grad_log_probability,"
    f" Tensor[] logits, Tensor target, {_PARAMETERS}, {_SETTINGS}, bool[] needed) -> Tensor[]",
    _backward,
    _fake_backward,
    setup_context=_save_of_backward,
    backward=_second_gradient,
)

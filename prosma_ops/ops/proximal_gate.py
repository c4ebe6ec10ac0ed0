"""proximal_gate and soft_threshold: schema, shape rule, gradient, and the choice of implementation.

The mathematics stands in `prosma_ops/reference/proximal_gate.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends, native
from ..backends import Implementation
from ..reference import proximal_gate as reference
from ..reference.precision import compute_dtype
from . import checks
from .library import define, derivative_of, empty_gradients, laid_out_as, unwatched

ACTIVATIONS = reference.ACTIVATIONS
# 2^20 is far beyond any image, and keeps dilation * kernel_size inside 32 bits in every kernel.
LARGEST_DILATION = 1 << 20


def proximal_gate(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None = None,
    channel_gate: Tensor | None = None,
    *,
    dilations: Sequence[int],
    bias: Tensor | None = None,
    activation: str = "identity",
) -> Tensor:
    """Sum of dilated depthwise convolutions, soft-thresholded per channel, gating a skip connection.

    z = sum_m depthwise_conv(field, weight[m], dilation=dilations[m]) + bias, zero-padded to the same size;
    u = sign(z) * max(|z| - max(threshold, 0), 0);  result = skip * activation(u) * channel_gate.

    Arguments:
        field: (B, C, H, W) or (B, C, D, H, W), float32, float64, float16 or bfloat16, of any strides.
        weight: (M, C, k, k) or (M, C, k, k, k), k odd: one depthwise kernel a dilation.
        threshold: (C,). Where it is negative it counts as 0 and has no gradient.
        skip: like `field`, or None for 1. Another float dtype is cast to that of `field`.
        channel_gate: (B, C), or None for 1.
        dilations: M integers >= 1.
        bias: (C,), or None for 0.
        activation: "identity", "tanh" or "relu".

    Weights, thresholds, biases and gates have the dtype of `field` or float32; sums are float32 inside (float64
    for float64). The result has the shape, the dtype and the memory format of `field`. Differentiable, twice too,
    in all tensors; nothing but the inputs is kept for the backward.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it and says what would do.
    """
    if unwatched():
        arguments = (field, weight, threshold, skip, channel_gate, bias, dilations, activation)
        result: Tensor | None = _GATE.run_ordinary("forward", arguments)
        if result is not None:
            return result
    field = checks.plain("field", field)
    weight = checks.plain("weight", weight)
    threshold = checks.plain("threshold", threshold)
    skip = checks.optional("skip", skip)
    channel_gate = checks.optional("channel_gate", channel_gate)
    bias = checks.optional("bias", bias)
    if skip is not None and skip.dtype is not field.dtype:
        checks.floating("skip", skip)
        skip = skip.to(field.dtype)
    tensors = (field, weight, threshold, skip, channel_gate, bias)
    if torch.compiler.is_exporting():
        _check(*tensors, dilations, activation)
        return reference.proximal_gate(*tensors, dilations, activation)
    found: Tensor = _proximal_gate(*tensors, checks.integers("dilations", dilations), activation)
    return found


def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    """sign(x) * max(|x| - max(threshold, 0), 0), with one threshold a channel: the prox of threshold * |x|_1.

    Arguments:
        x: (B, C, *spatial), of any rank from 2 and any strides.
        threshold: (C,), of the dtype of `x` or float32. Where it is negative it counts as 0, without gradient.
    """
    x = checks.plain("x", x)
    threshold = checks.plain("threshold", threshold)
    if x.dim() > 5:
        return soft_threshold(x.flatten(4), threshold).reshape(x.shape)
    if torch.compiler.is_exporting():
        _check_shrink(x, threshold)
        return reference.soft_threshold(x, threshold)
    result: Tensor = _soft_threshold(x, threshold)
    return result


def _check(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: Sequence[int],
    activation: str,
) -> None:
    """Every way into the operator passes here, real tensors and traced ones: no kernel sees unchecked arguments."""
    checks.floating("field", field)
    shape = field.shape
    if len(shape) != 4 and len(shape) != 5:
        checks.wrong_rank("field", field, "(B, C, H, W) or (B, C, D, H, W)")
    if 0 in shape[1:]:
        raise ValueError(
            f"field has shape {tuple(shape)}; it must have 1 channel or more, and every spatial size must be at least 1"
        )
    kernels = weight.shape
    checks.companion("weight", weight, "field", field)
    if len(kernels) != len(shape):
        checks.wrong_rank("weight", weight, f"(M, C{', k' * (len(shape) - 2)}) for a field of {len(shape)} dimensions")
    size = kernels[-1]
    if kernels[0] < 1:
        raise ValueError(
            f"weight has shape {tuple(kernels)}; it must hold one kernel or more, (M, C, k, ...) with M >= 1"
        )
    if size % 2 == 0 or kernels[2] != size or kernels[-2] != size:
        raise ValueError(
            f"weight has kernels of size {tuple(kernels[2:])}; the size must be odd and the same in every direction"
        )
    channels = shape[1]
    if kernels[1] != channels:
        checks.wrong_shape("weight", weight, (kernels[0], channels, *kernels[2:]), "(M, C, k, ...) with the C of field")
    checks.channel_values("threshold", threshold, (channels,), "(C,)", "field", field)
    if bias is not None:
        checks.channel_values("bias", bias, (channels,), "(C,)", "field", field)
    if channel_gate is not None:
        checks.channel_values("channel_gate", channel_gate, (shape[0], channels), "(B, C)", "field", field)
    if skip is not None:
        checks.twin("skip", skip, "field", field)
    checks.choice("activation", activation, ACTIVATIONS)
    checks.positive_integers("dilations", dilations, kernels[0], LARGEST_DILATION, "one a kernel of weight")


def _check_shrink(x: Tensor, threshold: Tensor) -> None:
    checks.floating("x", x)
    if x.dim() < 2:
        checks.wrong_rank("x", x, "(B, C, *spatial), of 2 dimensions or more")
    checks.channel_values("threshold", threshold, (x.shape[1],), "(C,)", "x", x)


# Backend "reference".


def _reference_forward(field: Tensor, *arguments: Any) -> Tensor:
    return laid_out_as(field, reference.proximal_gate(field, *arguments))


def _reference_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *arguments_of_forward, needed = arguments
    inputs = arguments_of_forward[1:7]
    found = reference.proximal_gate_backward(*arguments_of_forward)
    return tuple(
        gradient if values is None or not wanted else laid_out_as(gradient, values)
        for gradient, values, wanted in zip(empty_gradients(inputs, needed), found, needed, strict=True)
    )


def _reference_soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    return laid_out_as(x, reference.soft_threshold(x, threshold))


def _reference_soft_threshold_backward(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    dx, dthreshold = reference.soft_threshold_backward(grad, x, threshold)
    return laid_out_as(x, dx), dthreshold


# Backend "cpu": the native library sees pointers and strides. Parameters are small, so it takes them contiguous
# and in the dtype that it computes in, and gives their gradients likewise.


def _cpu_forward(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: Sequence[int],
    activation: str,
) -> Tensor:
    out = torch.empty_like(field)
    parameters = native.parameters(compute_dtype(field.dtype), weight, threshold, channel_gate, bias)
    native.required().proximal_gate_forward(
        *native.work(field),
        weight.shape[-1],
        tuple(dilations),
        ACTIVATIONS.index(activation),
        *native.placed(field, skip, out),
        *native.pointers(parameters),
    )
    return out


def _cpu_ordinary_forward(*arguments: Any) -> Tensor | None:
    module = native.load().module
    if module is None:
        return None
    result: Tensor | None = module.proximal_gate_ordinary(torch.get_num_threads(), torch.is_grad_enabled(), *arguments)
    return result


def _cpu_backward(
    grad: Tensor,
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: Sequence[int],
    activation: str,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    gradients = empty_gradients((field, weight, threshold, skip, channel_gate, bias), needed)
    dfield, dweight, dthreshold, dskip, dgate, dbias = (g if g.numel() else None for g in gradients)
    dtype = compute_dtype(field.dtype)
    parameters = native.parameters(dtype, weight, threshold, channel_gate, bias)
    results = native.parameters(dtype, dweight, dthreshold, dgate, dbias)
    native.required().proximal_gate_backward(
        *native.work(field),
        weight.shape[-1],
        tuple(dilations),
        ACTIVATIONS.index(activation),
        *native.placed(grad, field, skip, dfield, dskip),
        *native.pointers(parameters),
        *native.pointers(results),
    )
    native.deliver(results, (dweight, dthreshold, dgate, dbias))
    return tuple(gradients)


def _cpu_soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    out = torch.empty_like(x)
    parameters = native.parameters(compute_dtype(x.dtype), threshold)
    native.required().soft_threshold_forward(*native.work(x), *native.placed(x, out), *native.pointers(parameters))
    return out


def _cpu_soft_threshold_backward(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    dx, dthreshold = torch.empty_like(x), torch.empty_like(threshold)
    dtype = compute_dtype(x.dtype)
    parameters, results = native.parameters(dtype, threshold), native.parameters(dtype, dthreshold)
    native.required().soft_threshold_backward(
        *native.work(x), *native.placed(grad, x, dx), *native.pointers(parameters), *native.pointers(results)
    )
    native.deliver(results, (dthreshold,))
    return dx, dthreshold


# Backend "cuda": the same on the device, in the layout of the leading tensor, with scratch memory from torch.


def _cuda_forward(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: Sequence[int],
    activation: str,
) -> Tensor:
    out = torch.empty_like(field)
    layout = native.layout(field)
    parameters = native.parameters(compute_dtype(field.dtype), weight, threshold, channel_gate, bias)
    inputs, results = native.arranged(layout, field, skip), native.destinations(layout, out)
    native.required().proximal_gate_cuda_forward(
        *native.queued(field),
        weight.shape[-1],
        tuple(dilations),
        ACTIVATIONS.index(activation),
        *native.placed(*inputs, *results),
        *native.pointers(parameters),
    )
    native.deliver(results, (out,))
    return out


def _cuda_backward(
    grad: Tensor,
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: Sequence[int],
    activation: str,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    module = native.required()
    gradients = empty_gradients((field, weight, threshold, skip, channel_gate, bias), needed)
    dfield, dweight, dthreshold, dskip, dgate, dbias = (g if g.numel() else None for g in gradients)
    dtype, layout = compute_dtype(field.dtype), native.layout(field)
    parameters = native.parameters(dtype, weight, threshold, channel_gate, bias)
    sums = native.parameters(dtype, dweight, dthreshold, dgate, dbias)
    inputs, results = native.arranged(layout, grad, field, skip), native.destinations(layout, dfield, dskip)
    work = native.queued(field)
    kernels = (weight.shape[-1], tuple(dilations))
    size = module.proximal_gate_cuda_workspace(work[0], work[-1], *kernels, *native.placed(inputs[1]))
    workspace = native.workspace(size, field)
    module.proximal_gate_cuda_backward(
        *work,
        *kernels,
        ACTIVATIONS.index(activation),
        *native.placed(*inputs, *results),
        *native.pointers((*parameters, *sums, workspace)),
    )
    native.deliver((*results, *sums), (dfield, dskip, dweight, dthreshold, dgate, dbias))
    return tuple(gradients)


def _cuda_soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    out = torch.empty_like(x)
    layout = native.layout(x)
    parameters = native.parameters(compute_dtype(x.dtype), threshold)
    inputs, results = native.arranged(layout, x), native.destinations(layout, out)
    native.required().soft_threshold_cuda_forward(
        *native.queued(x), *native.placed(*inputs, *results), *native.pointers(parameters)
    )
    native.deliver(results, (out,))
    return out


def _cuda_soft_threshold_backward(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    module = native.required()
    dx, dthreshold = torch.empty_like(x), torch.empty_like(threshold)
    layout, dtype = native.layout(x), compute_dtype(x.dtype)
    parameters, sums = native.parameters(dtype, threshold), native.parameters(dtype, dthreshold)
    inputs, results = native.arranged(layout, grad, x), native.destinations(layout, dx)
    work = native.queued(x)
    size = module.soft_threshold_cuda_workspace(work[0], work[-1], *native.placed(inputs[1]))
    workspace = native.workspace(size, x)
    module.soft_threshold_cuda_backward(
        *work, *native.placed(*inputs, *results), *native.pointers((*parameters, *sums, workspace))
    )
    native.deliver((*results, *sums), (dx, dthreshold))
    return dx, dthreshold


# Backend "triton": imported when it is first chosen.


def _triton(function: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        from ..triton_kernels import proximal_gate as kernels

        return getattr(kernels, function)(*arguments)

    return run


# The choice, and the registration.

_GATE = backends.register(
    "proximal_gate",
    "proximal_gate",
    {
        "reference": Implementation(
            backends.reference_can_run, {"forward": _reference_forward, "backward": _reference_backward}
        ),
        "cpu": Implementation(
            backends.cpu_can_run,
            {
                "forward": _cpu_forward,
                backends.ORDINARY + "forward": _cpu_ordinary_forward,
                "backward": _cpu_backward,
            },
        ),
        "triton": Implementation(
            backends.triton_can_run, {"forward": _triton("forward"), "backward": _triton("backward")}
        ),
        "cuda": Implementation(
            backends.cuda_can_run("proximal_gate"), {"forward": _cuda_forward, "backward": _cuda_backward}
        ),
    },
)
_SHRINK = backends.register(
    "soft_threshold",
    "proximal_gate",
    {
        "reference": Implementation(
            backends.reference_can_run,
            {"forward": _reference_soft_threshold, "backward": _reference_soft_threshold_backward},
        ),
        "cpu": Implementation(
            backends.cpu_can_run, {"forward": _cpu_soft_threshold, "backward": _cpu_soft_threshold_backward}
        ),
        "triton": Implementation(
            backends.triton_can_run,
            {"forward": _triton("soft_threshold_forward"), "backward": _triton("soft_threshold_backward")},
        ),
        "cuda": Implementation(
            backends.cuda_can_run("soft_threshold"),
            {"forward": _cuda_soft_threshold, "backward": _cuda_soft_threshold_backward},
        ),
    },
)


def _forward(*arguments: Any) -> Tensor:
    _check(*arguments)
    result: Tensor = _GATE.run("forward", arguments[:1], arguments)
    return result


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    _check(*arguments[:-1])
    checks.twin("grad", grad, "field", arguments[0])
    result: tuple[Tensor, ...] = _GATE.run("backward", arguments[:1], (grad, *arguments))
    return result


def _fake_forward(field: Tensor, *rest: Any) -> Tensor:
    _check(field, *rest)
    return torch.empty_like(field)


def _fake_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    _check(*arguments[:-1])
    checks.twin("grad", grad, "field", arguments[0])
    return tuple(empty_gradients(arguments[:6], arguments[-1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.dilations, ctx.activation = inputs[6:]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needed = list(ctx.needs_input_grad[:6])
    grads = _proximal_gate_backward(grad, *ctx.saved_tensors, ctx.dilations, ctx.activation, needed)
    return *(g if wanted else None for g, wanted in zip(grads, needed, strict=True)), None, None


def _save_of_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.dilations, ctx.activation, ctx.needed = inputs[7:]


def _second_gradient(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    wanted = [grad if needed else None for grad, needed in zip(grads, ctx.needed, strict=True)]
    arguments = (ctx.dilations, ctx.activation)
    return *derivative_of(reference.proximal_gate_backward, ctx.saved_tensors, arguments, wanted), None, None, None


_proximal_gate = define(
    "proximal_gate(Tensor field, Tensor weight, Tensor threshold, Tensor? skip, Tensor? channel_gate, Tensor? bias,"
    " int[] dilations, str activation) -> Tensor",
    _forward,
    _fake_forward,
    setup_context=_save,
    backward=_gradient,
)
_proximal_gate_backward = define(
    "proximal_gate_backward(Tensor grad, Tensor field, Tensor weight, Tensor threshold, Tensor? skip,"
    " Tensor? channel_gate, Tensor? bias, int[] dilations, str activation, bool[] needed)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    setup_context=_save_of_backward,
    backward=_second_gradient,
)


def _shrink(x: Tensor, threshold: Tensor) -> Tensor:
    _check_shrink(x, threshold)
    result: Tensor = _SHRINK.run("forward", (x,), (x, threshold))
    return result


def _shrink_backward(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    _check_shrink(x, threshold)
    checks.twin("grad", grad, "x", x)
    result: tuple[Tensor, Tensor] = _SHRINK.run("backward", (x,), (grad, x, threshold))
    return result


def _fake_shrink(x: Tensor, threshold: Tensor) -> Tensor:
    _check_shrink(x, threshold)
    return torch.empty_like(x)


def _fake_shrink_backward(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(threshold)


def _save_shrink(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradient_of_shrink(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _soft_threshold_backward(grad, *ctx.saved_tensors)
    return result


def _second_gradient_of_shrink(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    return tuple(derivative_of(reference.soft_threshold_backward, ctx.saved_tensors, (), grads))


_soft_threshold = define(
    "soft_threshold(Tensor x, Tensor threshold) -> Tensor",
    _shrink,
    _fake_shrink,
    setup_context=_save_shrink,
    backward=_gradient_of_shrink,
)
_soft_threshold_backward = define(
    "soft_threshold_backward(Tensor grad, Tensor x, Tensor threshold) -> (Tensor, Tensor)",
    _shrink_backward,
    _fake_shrink_backward,
    setup_context=_save_shrink,
    backward=_second_gradient_of_shrink,
)

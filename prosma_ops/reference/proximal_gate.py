"""proximal_gate and soft_threshold, as they are defined.

    z = sum_m depthwise_conv(field, weight[m], dilation d_m) + bias        "same" size
    t = max(threshold, 0)
    u = sign(z) * max(|z| - t, 0)                                          the prox of t * |.|_1
    y = skip * act(u) * channel_gate                                       a missing factor is 1

The gradients are written out rather than left to autograd, for three reasons: the kernels are compared with
these very lines; an operator's backward runs below autograd, where nothing is recorded; and, being plain
differentiable PyTorch themselves, they give the second derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import compute_dtype, without_autocast

ACTIVATIONS = ("identity", "tanh", "relu")


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(C,) or (B, C) -> broadcastable against (B, C, *spatial)."""
    leading = values.shape if values.dim() == 2 else (1, *values.shape)
    return values.to(like.dtype).reshape(*leading, *(1,) * (like.dim() - 2))


def sum_to_channels(values: Tensor) -> Tensor:
    """(B, C, *spatial) -> (C,)."""
    return values.sum(dim=(0, *range(2, values.dim())))


def silence(values: Tensor, bound: Tensor | float, kept: Tensor) -> Tensor:
    """`kept`, and zero where values <= bound. Asked this way round, a NaN is never silenced."""
    return torch.where(values <= bound, torch.zeros((), dtype=kept.dtype, device=kept.device), kept)


def shrink(z: Tensor, t: Tensor) -> Tensor:
    """sign(z) * max(|z| - t, 0)."""
    return silence(z.abs(), t, z - t * z.sign())


def activate(u: Tensor, activation: str) -> Tensor:
    if activation == "tanh":
        return u.tanh()
    return u.relu() if activation == "relu" else u


def activation_slope(u: Tensor, activation: str) -> Tensor:
    """act'(u); at the kink of relu it is 0."""
    if activation == "tanh":
        return 1 - u.tanh().square()
    return silence(u, 0.0, torch.ones_like(u)) if activation == "relu" else torch.ones_like(u)


def convolve(field: Tensor, weight: Tensor, bias: Tensor | None, dilations: Sequence[int]) -> Tensor:
    """The sum of dilated depthwise convolutions, zero-padded to the size of the field."""
    convolution = F.conv2d if field.dim() == 4 else F.conv3d
    half_width = (weight.shape[-1] - 1) // 2
    z = torch.zeros_like(field) if bias is None else per_channel(bias, field).expand_as(field)
    for kernel, dilation in zip(weight, dilations, strict=True):
        z = z + convolution(
            field, kernel.unsqueeze(1), padding=dilation * half_width, dilation=dilation, groups=field.shape[1]
        )
    return z


@without_autocast
def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    """u = sign(x) * max(|x| - max(threshold, 0), 0), one threshold a channel (dimension 1)."""
    z = x.to(compute_dtype(x.dtype))
    return shrink(z, per_channel(threshold, z).clamp(min=0)).to(x.dtype)


@without_autocast
def soft_threshold_backward(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    z = x.to(compute_dtype(x.dtype))
    tau = per_channel(threshold, z)
    dz = silence(z.abs(), tau.clamp(min=0), grad.to(z.dtype))
    dtau = sum_to_channels(-z.sign() * dz * (tau >= 0))
    return dz.to(x.dtype), dtau.to(threshold.dtype)


@without_autocast
def proximal_gate(
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: Sequence[int],
    activation: str,
) -> Tensor:
    q = field.to(compute_dtype(field.dtype))
    z = convolve(q, weight.to(q.dtype), bias, dilations)
    y = activate(shrink(z, per_channel(threshold, z).clamp(min=0)), activation)
    if skip is not None:
        y = skip.to(q.dtype) * y
    if channel_gate is not None:
        y = y * per_channel(channel_gate, y)
    return y.to(field.dtype)


@without_autocast
def proximal_gate_backward(
    grad: Tensor,
    field: Tensor,
    weight: Tensor,
    threshold: Tensor,
    skip: Tensor | None,
    channel_gate: Tensor | None,
    bias: Tensor | None,
    dilations: Sequence[int],
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of field, weight, threshold, skip, channel_gate and bias, each in its input's dtype."""
    q = field.to(compute_dtype(field.dtype))
    kernels = weight.to(q.dtype)
    dy = grad.to(q.dtype)
    x = torch.ones((), dtype=q.dtype, device=q.device) if skip is None else skip.to(q.dtype)
    s = torch.ones((), dtype=q.dtype, device=q.device) if channel_gate is None else per_channel(channel_gate, q)

    z = convolve(q, kernels, bias, dilations)
    tau = per_channel(threshold, z)
    u = shrink(z, tau.clamp(min=0))
    gate = activate(u, activation)
    du = dy * x * s * activation_slope(u, activation)
    dz = silence(z.abs(), tau.clamp(min=0), du)
    dtau = sum_to_channels(-z.sign() * dz * (tau >= 0))
    dq, dweight = convolve_backward(dz, q, kernels, dilations)

    dskip = None if skip is None else (dy * gate * s).to(skip.dtype)
    dgate = None
    if channel_gate is not None:
        dgate = (dy * x * gate).flatten(2).sum(dim=2).to(channel_gate.dtype)
    dbias = None if bias is None else sum_to_channels(dz).to(bias.dtype)
    return dq.to(field.dtype), dweight.to(weight.dtype), dtau.to(threshold.dtype), dskip, dgate, dbias


def convolve_backward(dz: Tensor, field: Tensor, weight: Tensor, dilations: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The transposed convolutions of dz, summed; and the correlation of dz with the field, one a kernel."""
    spatial = field.dim() - 2
    half_width = (weight.shape[-1] - 1) // 2
    dq = torch.zeros_like(field)
    dweight = []
    for kernel, dilation in zip(weight, dilations, strict=True):
        dq_of_one, dkernel, _ = torch.ops.aten.convolution_backward(
            dz,
            field,
            kernel.unsqueeze(1),
            None,
            [1] * spatial,
            [dilation * half_width] * spatial,
            [dilation] * spatial,
            False,
            [0] * spatial,
            field.shape[1],
            [True, True, False],
        )
        dq = dq + dq_of_one
        dweight.append(dkernel.squeeze(1))
    return dq, torch.stack(dweight)

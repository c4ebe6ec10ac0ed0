"""ProximalGate: a skip connection gated by a sparse field, after ProSMA-UNet (arXiv 2603.03187).

q = relu(norm(W_x x) + norm(W_g up(g)))                  what skip x and decoder g have in common
s = sigmoid(W_2 relu(W_1 mean(g)))                       one factor a channel
y = proximal_gate(q, weight, softplus(theta), x, s)      x * activation(soft threshold of the multi-scale field) * s
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks
from ..ops.proximal_gate import ACTIVATIONS, LARGEST_DILATION, proximal_gate
from .layers import dimensions, laid_out_like, normalization, pointwise, positive_integer, resize_like


class ProximalGate(nn.Module):
    """Passes of a skip connection what the decoder confirms, and exactly nothing elsewhere.

    A reconstruction from the abstract of ProSMA-UNet, which names a multi-scale compatibility field made by depthwise
    dilated convolutions, a soft threshold (the proximal operator of the L1 norm) with learned values per channel, and a
    gate on the channels conditioned on the decoder's global context. Left open there, and chosen here: the dilations
    (1, 2, 3) and the kernel size (3); that the field is formed from the rectified sum of two normalized 1x1
    projections, as in Attention U-Net; a bias in the field, zero at the start; softplus for a threshold that stays
    positive, 0.02 at the start; no activation after the threshold; and a channel gate as in squeeze-and-excitation,
    with a reduction of 16.

    Arguments:
        channels: of the skip connection, and of the result.
        gating_channels: of the decoder's features, which may be coarser than the skip connection.
        dilations: one depthwise kernel each; their responses are summed.
        kernel_size: of the depthwise kernels, odd.
        spatial_dims: 2 or 3.
        activation: "identity", "tanh" or "relu"; each sends zero to zero.
        initial_threshold: of every channel, above 0.
        reduction: the channel gate has gating_channels // reduction hidden features, at least 1.
        norm: "batch", "instance" or "group" (the largest number of groups up to 8 that divides channels).
    """

    def __init__(
        self,
        channels: int,
        gating_channels: int,
        *,
        dilations: Sequence[int] = (1, 2, 3),
        kernel_size: int = 3,
        spatial_dims: int = 2,
        activation: str = "identity",
        initial_threshold: float = 0.02,
        reduction: int = 16,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.channels = positive_integer("channels", channels)
        self.gating_channels = positive_integer("gating_channels", gating_channels)
        self.dilations = _dilations(dilations)
        if positive_integer("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd, so that a kernel has a centre")
        self.spatial_dims = dimensions(spatial_dims)
        checks.choice("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.initial_threshold = _positive_number("initial_threshold", initial_threshold)
        hidden = max(1, gating_channels // positive_integer("reduction", reduction))

        self.project_skip = nn.Sequential(
            pointwise(channels, channels, self.spatial_dims), normalization(norm, channels, self.spatial_dims)
        )
        self.project_gating = pointwise(gating_channels, channels, self.spatial_dims)
        self.normalize_gating = normalization(norm, channels, self.spatial_dims)
        self.channel_gate = nn.Sequential(
            nn.Linear(gating_channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )
        self.weight = nn.Parameter(torch.empty(len(self.dilations), channels, *(kernel_size,) * self.spatial_dims))
        self.bias = nn.Parameter(torch.empty(channels))
        self.raw_threshold = nn.Parameter(torch.empty(channels))
        self._last = _LastForward()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The depthwise kernels, their bias and the thresholds as at the start; the other layers have their own."""
        inputs = self.weight.numel() // self.channels
        nn.init.uniform_(self.weight, -(inputs**-0.5), inputs**-0.5)
        nn.init.zeros_(self.bias)
        # The inverse of softplus, log(exp(t) - 1), in a form that neither cancels for small t nor overflows for large.
        start = self.initial_threshold
        nn.init.constant_(self.raw_threshold, start + math.log(-math.expm1(-start)))

    @property
    def threshold(self) -> Tensor:
        """The learned threshold of each channel, (C,)."""
        return F.softplus(self.raw_threshold)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """(B, channels, *size) and (B, gating_channels, *coarser size) -> the gated skip, of the skip's shape."""
        self._check(skip, gating)
        # Projecting before resizing gives the same numbers, both being linear, at a quarter (an eighth) of the work.
        confirmed = self.normalize_gating(resize_like(self.project_gating(gating), skip))
        field = laid_out_like(F.relu(self.project_skip(skip) + confirmed, inplace=True), skip)
        factors = self.channel_gate(gating.mean(dim=tuple(range(2, gating.dim()))))
        if not torch.compiler.is_exporting():
            self._last.field = field.detach()
        # Autocast may give the field and the factors different dtypes; float32 factors stand beside any field.
        return self._gate(field, skip, factors.to(torch.promote_types(factors.dtype, torch.float32)))

    def sparsity(self) -> float:
        """The share of exact zeros in the gate of the last forward, see `last_gate`."""
        gate = self.last_gate()
        return (gate.numel() - int(torch.count_nonzero(gate))) / max(gate.numel(), 1)

    @torch.no_grad()
    def last_gate(self) -> Tensor:
        """activation(soft threshold of the field) of the last forward, without skip connection and channel gate.

        Nothing is counted or kept during a forward but the field, which is gated again here with the parameters as
        they are now. Ask before the next optimizer step to hear about the parameters that ran.
        """
        field = self._last.field
        if field is None:
            raise RuntimeError("this speaks of the last forward, and there was none yet: call the module first")
        return self._gate(field)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, {self.gating_channels}, dilations={self.dilations}, "
            f"kernel_size={self.weight.shape[-1]}, spatial_dims={self.spatial_dims}, activation={self.activation!r}"
        )

    def _gate(self, field: Tensor, skip: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
        return proximal_gate(
            field,
            self.weight,
            self.threshold,
            skip,
            factors,
            dilations=self.dilations,
            bias=self.bias,
            activation=self.activation,
        )

    def _check(self, skip: Tensor, gating: Tensor) -> None:
        axes = "(B, C, H, W)" if self.spatial_dims == 2 else "(B, C, D, H, W)"
        for name, values, channels in (("skip", skip, self.channels), ("gating", gating, self.gating_channels)):
            if values.dim() != self.spatial_dims + 2:
                checks.wrong_rank(name, values, f"{axes}, as spatial_dims={self.spatial_dims} says")
            if values.shape[1] != channels:
                raise ValueError(f"{name} has {values.shape[1]} channels; this gate was made for {channels}")
        if gating.shape[0] != skip.shape[0]:
            raise ValueError(f"gating has a batch of {gating.shape[0]} and skip of {skip.shape[0]}; they must agree")

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ProximalGate:
        """Another device or dtype: the field of the last forward no longer fits, and would hold memory there."""
        self._last.field = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class _LastForward:
    """Holds the field of the last forward. It is no part of what is saved or copied."""

    field: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _dilations(dilations: Sequence[int]) -> tuple[int, ...]:
    found = checks.integers("dilations", dilations)
    if not found:
        raise ValueError("dilations is empty; it must hold one integer or more")
    checks.positive_integers("dilations", found, len(found), LARGEST_DILATION, "one a kernel")
    return found


def _positive_number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a number above 0")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")
    return float(value)

"""What stands between encoder and decoder: `bottleneck(x)` is of the shape of x, and what to add to the loss.

none        x, 0
codebook    up(nearest code of down(x))                                          and the codebook's loss
transport   x + up(transport, onto a learned reference and back, of the codes)   likewise
synergy     up(concat of codes and attended features, each informed by the other)
down and up are 1x1(x1) convolutions, to `dim` channels and back; tokens are the pixels of down(x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import TransportAlign, VectorQuantizer
from ..nn.layers import laid_out_like
from .attention import Attention
from .layers import convolution
from .parts import chosen
from .skeleton import Bottleneck


class NoBottleneck(Bottleneck):
    """The features as they are, and 0."""

    def __init__(self, channels: int, *, spatial_dims: int = 2) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))


class CodebookBottleneck(Bottleneck):
    """Each pixel's features replaced by the nearest of a codebook, as in VQ-UNet.

    Arguments:
        channels: of the features.
        codes, dim: the codebook's size.
        quantizer: further keyword arguments of `prosma_ops.nn.VectorQuantizer`: "commitment", "update", "decay",
            "metric", "restart_dead_codes", "init".
    """

    def __init__(
        self,
        channels: int,
        *,
        codes: int = 1024,
        dim: int = 256,
        quantizer: Mapping[str, Any] | None = None,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.down = convolution(channels, dim, spatial_dims, kernel_size=1, bias=True)
        self.quantizer = VectorQuantizer(codes, dim, **(quantizer or {}))
        self.up = convolution(dim, channels, spatial_dims, kernel_size=1, bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = self.down(x)
        quantized, loss, _ = self.quantizer(tokens_of(values))
        return self.up(image_of(quantized, values)), loss


class TransportBottleneck(Bottleneck):
    """Codes aligned to a learned reference by optimal transport, and mapped back, as in L2GNet.

    With z the tokens, n of them, R the p supports of a head, and plan T of row masses p / n and column masses 1:
    T = Sinkhorn(z R^T / epsilon), aligned = T^T z, y_i = sum_j T_ij / (p / n) aligned_j, the mean over the heads;
    the result is x + up(y). R starts uniform from -1 / sqrt(p) to 1 / sqrt(p).

    Arguments:
        channels: of the features.
        codes, dim: the codebook's size; `codes=None` transports the projected features themselves, without a codebook.
        supports, heads: p, and the number of references with a plan each.
        epsilon: of the plan; 0.1 to 3 is usual.
        iterations: of Sinkhorn's algorithm; 10 to 100 is usual.
        score, gradient: as `prosma_ops.transport_align` takes them.
        quantizer: further keyword arguments of `prosma_ops.nn.VectorQuantizer`.
    """

    def __init__(
        self,
        channels: int,
        *,
        codes: int | None = 1024,
        dim: int = 256,
        supports: int = 196,
        heads: int = 1,
        epsilon: float = 0.5,
        iterations: int = 50,
        score: str = "dot",
        gradient: str = "unrolled",
        quantizer: Mapping[str, Any] | None = None,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if codes is None and quantizer:
            raise ValueError("quantizer has options, but codes is None: there is no codebook; leave out one of them")
        self.down = convolution(channels, dim, spatial_dims, kernel_size=1, bias=True)
        self.quantizer = None if codes is None else VectorQuantizer(codes, dim, **(quantizer or {}))
        self.align = TransportAlign(
            dim, supports, heads=heads, epsilon=epsilon, iterations=iterations, score=score, gradient=gradient
        )
        nn.init.uniform_(self.align.reference, -(supports**-0.5), supports**-0.5)
        self.up = convolution(dim, channels, spatial_dims, kernel_size=1, bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = self.down(x)
        tokens = tokens_of(values)
        if self.quantizer is None:
            loss = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        else:
            tokens, loss, _ = self.quantizer(tokens)
        return x + self.up(image_of(self.align(tokens), values)), loss


class SynergyBottleneck(Bottleneck):
    """A discrete and a continuous branch that inform each other, and are fused, as in SynergyNet.

    discrete    d = codes of the tokens
    continuous  c = tokens + self-attention(tokens)
    exchange    d' = d + attention(d asks c), c' = c + attention(c asks d)
    fused       up(concat(d', c'))
    Self-attention costs the square of the number of pixels.

    Arguments:
        channels: of the features.
        codes, dim: the codebook's size.
        heads: of each attention; divides `dim`.
        quantizer: further keyword arguments of `prosma_ops.nn.VectorQuantizer`.
    """

    def __init__(
        self,
        channels: int,
        *,
        codes: int = 1024,
        dim: int = 256,
        heads: int = 8,
        quantizer: Mapping[str, Any] | None = None,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.down = convolution(channels, dim, spatial_dims, kernel_size=1, bias=True)
        self.quantizer = VectorQuantizer(codes, dim, **(quantizer or {}))
        self.attend = Attention(dim, heads)
        self.discrete_asks = Attention(dim, heads)
        self.continuous_asks = Attention(dim, heads)
        self.up = convolution(2 * dim, channels, spatial_dims, kernel_size=1, bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = self.down(x)
        tokens = tokens_of(values)
        discrete, loss, _ = self.quantizer(tokens)
        continuous = tokens + self.attend(tokens)
        informed = discrete + self.discrete_asks(discrete, continuous)
        confirmed = continuous + self.continuous_asks(continuous, discrete)
        return self.up(image_of(torch.cat([informed, confirmed], dim=-1), values)), loss


BOTTLENECKS: dict[str, type[Bottleneck]] = {
    "none": NoBottleneck,
    "codebook": CodebookBottleneck,
    "transport": TransportBottleneck,
    "synergy": SynergyBottleneck,
}


def make_bottleneck(
    kind: str, channels: int, *, spatial_dims: int, options: Mapping[str, Any] | None = None
) -> Bottleneck:
    """ "none", "codebook", "transport" or "synergy", with the keyword arguments of its class."""
    make, given = chosen("bottleneck", kind, BOTTLENECKS, options)
    found = make(channels, spatial_dims=spatial_dims, **given)
    assert isinstance(found, Bottleneck)
    return found


def tokens_of(values: Tensor) -> Tensor:
    """(B, D, *size) -> (B, pixels, D); no copy for channels_last."""
    return values.flatten(2).transpose(1, 2)


def image_of(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, pixels, D) -> (B, D, *size), of the spatial size and the memory format of `like`."""
    size = like.shape[2:]
    assert tokens.shape[1] == math.prod(size)
    return laid_out_like(tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size), like)

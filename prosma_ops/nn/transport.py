"""TransportAlign: tokens aligned to a learned reference by optimal transport, after OTKE (arXiv 2006.12065).

T = transport plan between tokens x and supports r, rows of mass p / n, columns of mass 1
z = T^T x                                   each support's mixture of tokens; its weights add up to 1
y = n / (m p) * sum over the m heads of T z each token's mixture of the aligned supports; so do these
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.transport import GRADIENTS, SCORES, apply_plan, transport_align
from ..ops.transport_arguments import plain_numbers
from .layers import positive_integer


class TransportAlign(nn.Module):
    """Moves tokens onto a trainable reference, and back if they are to be tokens again.

    As in OTKE the supports share the tokens evenly: every support receives a total weight of 1, so an aligned support
    is a mixture of tokens, and every token gives the same. On the way back a token receives the mixture of aligned
    supports that it gave to, the mean over the heads. Unlike attention no token, and no support, can be ignored.

    Arguments:
        dim: features of a token.
        supports: p, the number of supports of each head.
        heads: m, references with a plan each.
        epsilon, iterations, score, gradient: as `prosma_ops.transport_align` takes them.
        return_to_tokens: whether the result is tokens, (B, n, dim), or the aligned supports: (B, supports, dim), and
            with several heads (B, heads, supports, dim).

    The reference is a parameter, (heads, supports, dim), normally distributed at the start, so that scores with tokens
    of variance 1 have variance 1.
    """

    def __init__(
        self,
        dim: int,
        supports: int,
        *,
        heads: int = 1,
        epsilon: float = 0.5,
        iterations: int = 20,
        score: str = "dot",
        gradient: str = "unrolled",
        return_to_tokens: bool = True,
    ) -> None:
        super().__init__()
        self.dim = positive_integer("dim", dim)
        self.supports = positive_integer("supports", supports)
        self.heads = positive_integer("heads", heads)
        self.epsilon, self.iterations, _ = plain_numbers(epsilon, iterations, 0.0)
        checks.choice("score", score, SCORES)
        checks.choice("gradient", gradient, GRADIENTS)
        self.score = score
        self.gradient = gradient
        self.return_to_tokens = return_to_tokens
        self.reference = nn.Parameter(torch.empty(heads, supports, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.reference, std=self.dim**-0.5)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, n, dim), and a mask (B, n) that is True where a token takes part; the result of the others is 0."""
        tokens, mask = checks.plain("tokens", tokens), checks.optional("mask", mask)
        self._check(tokens, mask)
        count = _tokens_that_take_part(tokens, mask)
        aligned, potentials = transport_align(
            tokens,
            self.reference,
            score=self.score,
            epsilon=self.epsilon,
            iterations=self.iterations,
            row_mass=(self.supports / count).expand(tokens.shape[:2]),
            column_mass=count.new_ones(self.supports),
            mask=mask,
            gradient=self.gradient,
            return_potentials=True,
        )
        if not self.return_to_tokens:
            return aligned.squeeze(1) if self.heads == 1 else aligned
        moved = apply_plan(
            tokens, self.reference, potentials, aligned, side="rows", score=self.score, epsilon=self.epsilon
        )
        return moved * (count / (self.heads * self.supports)).to(moved.dtype).unsqueeze(-1)

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, {self.supports}, heads={self.heads}, epsilon={self.epsilon}, iterations={self.iterations}, "
            f"score={self.score!r}, gradient={self.gradient!r}, return_to_tokens={self.return_to_tokens}"
        )

    def _check(self, tokens: Tensor, mask: Tensor | None) -> None:
        if tokens.dim() != 3:
            checks.wrong_rank("tokens", tokens, "(B, n, dim)")
        if tokens.shape[2] != self.dim:
            raise ValueError(f"tokens has {tokens.shape[2]} features; this module was made for {self.dim}")
        if mask is not None and mask.shape != tokens.shape[:2]:
            checks.wrong_shape("mask", mask, tokens.shape[:2], "(B, n) of tokens")


def _tokens_that_take_part(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """How many there are of each item, (B, 1) in float64; 1 at least, to divide by."""
    if mask is None:
        return torch.full((tokens.shape[0], 1), tokens.shape[1], dtype=torch.float64, device=tokens.device)
    return mask.sum(dim=1, keepdim=True).clamp(min=1).double()

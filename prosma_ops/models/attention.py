"""Multi-head attention between tokens, by torch's `scaled_dot_product_attention`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.layers import positive_integer


class Attention(nn.Module):
    """Attention of normalized tokens (B, n, dim) to themselves, or to other normalized tokens (B, m, dim).

    Arguments:
        dim: features of a token.
        heads: divides `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if positive_integer("dim", dim) % positive_integer("heads", heads):
            raise ValueError(f"heads is {heads}; it must divide dim, {dim}")
        self.heads = heads
        self.normalize_asking = nn.LayerNorm(dim)
        self.normalize_asked = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, asking: Tensor, asked: Tensor | None = None) -> Tensor:
        query = self._split(self.query(self.normalize_asking(asking)))
        key, value = self.key_value(self.normalize_asked(asking if asked is None else asked)).chunk(2, dim=-1)
        found = F.scaled_dot_product_attention(query, self._split(key), self._split(value))
        result: Tensor = self.project(found.transpose(1, 2).flatten(2))
        return result

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, n, dim) -> (B, heads, n, dim / heads)."""
        batch, count, dim = tokens.shape
        return tokens.reshape(batch, count, self.heads, dim // self.heads).transpose(1, 2)

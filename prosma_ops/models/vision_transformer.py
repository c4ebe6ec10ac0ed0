"""The transformer half of R50-ViT-B/16 (arXiv 2010.11929), as a bottleneck: every place asks all others.

tokens = 1x1(x) + position
tokens = tokens + proj(attention(qkv(norm(tokens)))); tokens = tokens + fc2(gelu(fc1(norm(tokens))))        a layer
result = norm(tokens), as an image again

The position embedding is learned for one grid and interpolated (bicubic) for others. Names of parameters inside a layer
are those of timm's `VisionTransformer`, and so are the numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.layers import positive_integer
from .bottlenecks import image_of, tokens_of
from .skeleton import Bottleneck

NORM_EPSILON = 1e-6


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        split = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(found.transpose(1, 2).reshape(batch, count, width))
        return result


class Perceptron(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(tokens)))))
        return result


class TransformerLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = Perceptron(width, hidden, dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class TransformerBottleneck(Bottleneck):
    """(B, channels, *size) -> (B, width, *size), and 0. Every pixel is a token.

    Arguments:
        channels: of the features.
        grid: the size, (height, width), that the position embedding is learned for.
        width: of the tokens.
        layers: how many.
        heads: of the attention; divides `width`.
        hidden: of the perceptron in each layer.
        dropout: after the position embedding and twice in each perceptron.
    """

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        *,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("layers", layers), ("heads", heads), ("hidden", hidden)):
            positive_integer(name, value)
        if width % heads:
            raise ValueError(f"heads is {heads}; it must divide width, {width}")
        self.grid = grid
        self.proj = nn.Conv2d(channels, width, 1)
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], width))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerLayer(width, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As timm starts them: truncated normal with 0.02, biases 0."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = self.proj(x)
        tokens = self.drop(tokens_of(values) + self.position(values.shape[2], values.shape[3]))
        for block in self.blocks:
            tokens = block(tokens)
        result = image_of(self.norm(tokens), values)
        return result, x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))

    def position(self, height: int, width: int) -> Tensor:
        """The embedding of a grid, (1, height * width, D)."""
        return interpolated(self.pos_embed, self.grid, (height, width))


def interpolated(position: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A position embedding (1, pixels of `grid`, D) for another grid."""
    if grid == size:
        return position
    image = position.unflatten(1, grid).permute(0, 3, 1, 2)
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)

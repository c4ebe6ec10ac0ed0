"""vector-quantize-pytorch's VectorQuantize with its codebook fused: projections, losses and gradients stay its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook, ema_inplace

from ..ops import code_statistics, nearest_code
from . import Rule

#: What VectorQuantize hands on when it is called with tokens alone, beside arguments that are None.
PLAIN_CALL = {"accum_ema_update": False, "update_usage": True}


class FusedVectorQuantize(VectorQuantize):
    """A call with tokens alone is fused; with masks, top-k codes and the like it is the original's."""

    def forward(self, x: Tensor, indices: Tensor | None = None, *arguments: Any, **keywords: Any) -> Any:
        self._codebook.distances_wanted = indices is not None
        return super().forward(x, indices, *arguments, **keywords)


class FusedCodebook(Codebook):
    """Its codebook. It returns no distances where nothing reads them."""

    distances_wanted = False

    def forward(
        self, x: Tensor, *, freeze_codebook: bool = False, **keywords: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        asked = {name for name, value in keywords.items() if value is not None and value is not PLAIN_CALL.get(name)}
        if asked or self.distances_wanted:
            found: tuple[Tensor, Tensor, Tensor] = super().forward(x, freeze_codebook=freeze_codebook, **keywords)
            return found
        x = x.float()
        tokens = x.reshape(-1, x.shape[-1])
        self.init_embed_(tokens.unsqueeze(0))
        embed = self.embed[0] if self.learnable_codebook else self.embed[0].detach()
        quantized, index = nearest_code(x, embed, metric="cosine" if self.use_cosine_sim else "euclidean")
        if self.training and not freeze_codebook and (self.ema_update or self.has_dead_code_replacement):
            self._learn(tokens.detach(), index.reshape(-1))
        return quantized, index, None

    @torch.no_grad()
    def _learn(self, tokens: Tensor, index: Tensor) -> None:
        count, total = code_statistics(tokens, index, self.codebook_size)
        used, total = count.to(tokens.dtype).unsqueeze(0), total.unsqueeze(0)
        self.all_reduce_fn(used)
        self.all_reduce_fn(total)
        ema_inplace(self.cluster_size, used, self.decay)
        ema_inplace(self.embed_avg, total, self.decay)
        if self.ema_update and not self.manual_ema_update:
            self.update_ema()
        self.expire_codes_(tokens.unsqueeze(0))


def _why_not(module: VectorQuantize) -> str:
    codebook = module._codebook
    reasons = {
        "its codes are drawn at random (stochastic_sample_codes)": codebook.gumbel_sample.keywords["stochastic"],
        "gradients pass through the choice of codes (straight_through)": codebook.gumbel_sample.keywords[
            "straight_through"
        ],
        "each head has a codebook (separate_codebook_per_head)": codebook.num_codebooks > 1,
        "codes are moved to the tokens' mean and variance (affine_param)": codebook.affine_param,
        "codes pass through a network (vq_bridge)": codebook.vq_bridge is not None,
        "a loss reads all distances (commitment_use_cross_entropy_loss)": module.commitment_use_cross_entropy_loss,
        "a loss reads all distances (codebook_diversity_loss_weight)": module.has_codebook_diversity_loss,
        "an optimizer runs within forward (in_place_codebook_optimizer)": module.in_place_codebook_optimizer
        is not None,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


RULES = {VectorQuantize: Rule(FusedVectorQuantize, _why_not, parts={"_codebook": (Codebook, FusedCodebook)})}

"""MONAI's losses and its quantiser, fused: the numbers and the attributes of the originals."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceLoss
from monai.networks.layers.vector_quantizer import EMAQuantizer
from torch import Tensor

from .. import nn as ours
from ..nn.deep_supervision import nearest
from ..ops import code_statistics, nearest_code
from . import Rule


class FusedDiceLoss(DiceLoss):
    """MONAI's DiceLoss by `prosma_ops.nn.DiceLoss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = ours.DiceLoss(**_dice(self), weight=self.class_weight)(input, target)
        return loss


class FusedDiceCELoss(DiceCELoss):
    """MONAI's DiceCELoss by `prosma_ops.nn.DiceCELoss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        fused = ours.DiceCELoss(
            **_dice(self.dice),
            weight=self.cross_entropy.weight,
            lambda_dice=self.lambda_dice,
            lambda_ce=self.lambda_ce,
            label_smoothing=self.cross_entropy.label_smoothing,
        )
        loss: Tensor = fused(input, target)
        return loss


class FusedDeepSupervisionLoss(DeepSupervisionLoss):
    """MONAI's DeepSupervisionLoss, which here shrinks targets of any dtype, without interpolating them."""

    def get_loss(self, input: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.loss(input, nearest(target, input.shape[2:]))
        return loss


class FusedEMAQuantizer(EMAQuantizer):
    """MONAI's EMAQuantizer without its matrices of distances and of ones and zeros."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = inputs.float().movedim(1, -1)
        codes, index = nearest_code(tokens, self.embedding.weight)
        quantized = codes.movedim(-1, 1)
        if self.training:
            self._learn(tokens.detach(), index)
        loss = self.commitment_cost * F.mse_loss(quantized.detach(), inputs)
        return inputs + (quantized - inputs).detach(), loss, index

    @torch.no_grad()
    def _learn(self, tokens: Tensor, index: Tensor) -> None:
        count, total = code_statistics(tokens, index, self.num_embeddings)
        used = count.to(self.ema_cluster_size.dtype)
        if self.ddp_sync:
            self.distributed_synchronization(used, total)
        self.ema_cluster_size.mul_(self.decay).add_(used, alpha=1 - self.decay)
        everything = self.ema_cluster_size.sum()
        smoothed = self.ema_cluster_size + self.epsilon
        weights = smoothed / (everything + self.num_embeddings * self.epsilon) * everything
        self.ema_w.mul_(self.decay).add_(total, alpha=1 - self.decay)
        self.embedding.weight.data.copy_(self.ema_w / weights.unsqueeze(1))


def _dice(loss: DiceLoss) -> dict[str, Any]:
    """The settings of MONAI's DiceLoss as ours takes them."""
    names = ("include_background", "to_onehot_y", "sigmoid", "softmax", "other_act", "squared_pred", "jaccard")
    more = ("reduction", "smooth_nr", "smooth_dr", "batch", "soft_label")
    return {name: getattr(loss, name) for name in (*names, *more)} | {
        "ignore_index": getattr(loss, "ignore_index", None)
    }


def _why_not_dice(loss: DiceLoss) -> str:
    if loss.soft_label:
        return "soft_label=True is computed in plain PyTorch in both packages"
    if not (loss.sigmoid or loss.softmax):
        return "without sigmoid or softmax it is computed in plain PyTorch in both packages"
    if loss.softmax and not loss.to_onehot_y:
        return "softmax beside a target with channels is computed in plain PyTorch in both packages"
    return ""


def _binary_target(loss: DiceLoss) -> str:
    return "" if loss.to_onehot_y else "its target must hold nothing but 0 and 1"


def _always(_: object) -> str:
    return ""


RULES = {
    DiceLoss: Rule(FusedDiceLoss, _why_not_dice, _binary_target),
    DiceCELoss: Rule(
        FusedDiceCELoss,
        lambda loss: _why_not_dice(loss.dice),
        lambda loss: _binary_target(loss.dice),
        parts={"dice": (DiceLoss, FusedDiceLoss)},
    ),
    DeepSupervisionLoss: Rule(FusedDeepSupervisionLoss, _always),
    EMAQuantizer: Rule(FusedEMAQuantizer, _always),
}

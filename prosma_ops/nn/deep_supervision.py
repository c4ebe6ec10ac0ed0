"""DeepSupervisionLoss: one loss on every map of a decoder, the coarser ones weighted less.

loss = sum_l weight_l * loss(map_l, target), where map and target are brought to one size: either the target is shrunk
to the map's by the nearest pixel, as MONAI does, or the map is enlarged to the target's by linear interpolation, as
most papers do. Enlarged maps of `DiceLoss` and `DiceCELoss` are never stored: one pass reads all maps as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks
from .comparison import resized
from .dice import DiceCELoss, DiceLoss
from .layers import number, one_or_more

RESIZED = ("target", "logits")
ORDERS = ("auto", "coarse_to_fine", "fine_to_coarse")
WEIGHT_MODES = ("exp", "same", "two")


class DeepSupervisionLoss(nn.Module):
    """A loss summed over the maps of a deeply supervised network: MONAI's `DeepSupervisionLoss`, and more.

    Arguments:
        loss: a module of (logits, target); by default `DiceCELoss(to_onehot_y=True, softmax=True)`.
        weight_mode: from the finest map on, "exp": 1, 1/2, 1/4, ... and not under 1/16; "same": 1, 1, ...; "two":
            1, 1/2, 1/2, ...
        weights: one a map, from the finest on, in place of `weight_mode`; there may be more of them than maps.
        resize: "target" shrinks the target to each map (the numbers of MONAI), "logits" enlarges each map to the
            target, in one pass for all maps where the loss is a fused `DiceLoss` or `DiceCELoss`.
        order: of the list of maps: "fine_to_coarse" (MONAI's), "coarse_to_fine" (that of `MixedLogitLoss`), or
            "auto": as their sizes say, and fine to coarse where all are of one size.
        align_corners: of the interpolation with resize="logits".
    """

    def __init__(
        self,
        loss: nn.Module | None = None,
        weight_mode: str = "exp",
        weights: Sequence[float] | None = None,
        *,
        resize: str = "target",
        order: str = "auto",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        checks.choice("weight_mode", weight_mode, WEIGHT_MODES)
        checks.choice("resize", resize, RESIZED)
        checks.choice("order", order, ORDERS)
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True) if loss is None else loss
        self.weight_mode = weight_mode
        self.weights = None if weights is None else [number("weights", weight) for weight in weights]
        self.resize = resize
        self.order = order
        self.align_corners = align_corners

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Maps (B, C, *size_l), or one of them, and a target as the loss takes it -> the loss."""
        maps = [checks.plain("input", values) for values in one_or_more(input)]
        target = checks.plain("target", target)
        if not maps:
            raise ValueError("input is empty; it must hold one map or more")
        maps = maps[::-1] if self._runs_from_coarse(maps) else maps
        losses = self._enlarged(maps, target) if self.resize == "logits" else self._shrunk(maps, target)
        weighted = [weight * loss for weight, loss in zip(self.get_weights(len(maps)), losses, strict=True)]
        return torch.stack(weighted).sum(0)

    def get_weights(self, levels: int = 1) -> list[float]:
        """The weights of so many maps, from the finest on."""
        if self.weights is not None:
            if len(self.weights) < levels:
                raise ValueError(f"weights has {len(self.weights)} entries for {levels} maps; it must have one a map")
            return self.weights[:levels]
        if self.weight_mode == "exp":
            return [max(0.5**level, 0.0625) for level in range(levels)]
        return [1.0 if level == 0 or self.weight_mode == "same" else 0.5 for level in range(levels)]

    def _runs_from_coarse(self, maps: Sequence[Tensor]) -> bool:
        if self.order != "auto":
            return self.order == "coarse_to_fine"
        pixels = [math.prod(values.shape[2:]) for values in maps]
        if pixels != sorted(pixels) and pixels != sorted(pixels, reverse=True):
            raise ValueError(
                f"input has maps of {pixels} pixels, in no order; order must be 'coarse_to_fine' or 'fine_to_coarse'"
            )
        return pixels[0] < pixels[-1]

    def _enlarged(self, maps: Sequence[Tensor], target: Tensor) -> Sequence[Tensor]:
        if isinstance(self.loss, (DiceLoss, DiceCELoss)):
            return self.loss.per_map(maps, target, self.align_corners).unbind()
        size = target.shape[-(maps[0].dim() - 2) :]
        return [self.loss(resized(at_least_float32(values), size, self.align_corners), target) for values in maps]

    def _shrunk(self, maps: Sequence[Tensor], target: Tensor) -> Sequence[Tensor]:
        return [self.loss(at_least_float32(values), nearest(target, values.shape[2:])) for values in maps]

    def extra_repr(self) -> str:
        weights = f"weight_mode={self.weight_mode!r}" if self.weights is None else f"weights={self.weights}"
        return f"{weights}, resize={self.resize!r}, order={self.order!r}"


def at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype is torch.float64 else values.float()


def nearest(target: Tensor, size: Sequence[int]) -> Tensor:
    """The target at another spatial size, each pixel that of the nearest centre, whatever the dtype of its labels."""
    for axis, length in zip(range(-len(size), 0), size, strict=True):
        if target.shape[axis] != length:
            places = torch.arange(target.shape[axis], dtype=torch.float32, device=target.device)
            # Resizing the places by torch's own rule gives its choice of pixels; float32 counts them up to 2^24.
            chosen = F.interpolate(places[None, None], size=length, mode="nearest-exact")[0, 0].long()
            target = target.index_select(axis, chosen)
    return target

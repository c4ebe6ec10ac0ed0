"""The loss of a training, on all maps of a network, and the network together with it.

Every loss is brought to the size of one: that of a single map is about 1 at the start, and a sum over maps is divided
by the sum of their weights. So a learning rate, and a limit on the gradient, that suit one loss suit them all.

Batches that are spread over processes give the loss and gradients of the whole batch (`distributed=True`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..data import IGNORED, LabelScheme
from ..models import SegmentationModel
from ..nn import DeepSupervisionLoss, DiceCELoss, MixedLogitLoss, MutationLoss

# LoMix mixes the maps of four scales in the paper; of six there would be 234 mixtures.
MOST_LEVELS = 4


class Supervised(nn.Module):
    """A network and its loss, as one module: what DistributedDataParallel wraps, as the loss may have parameters.

    Arguments:
        network: any of `prosma_ops.models`.
        loss: one of `configuration.LOSSES`.
        scheme: of the labels.
        options: keyword arguments of the loss's class.
    """

    def __init__(
        self, network: SegmentationModel, loss: str, scheme: LabelScheme, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.levels = 1 if loss == "dice_ce" else min(len(network.heads), MOST_LEVELS)
        self.criterion, self.scale = criterion(loss, self.levels, scheme, options or {})

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and what the network adds to it: both scalars, to be added."""
        maps, auxiliary = self.network(image)
        supervised = maps[-self.levels :]
        found = self.criterion(supervised if self.levels > 1 else supervised[0], label)
        # Nothing times the maps that have no part in it: DistributedDataParallel wants a gradient for each parameter.
        idle = sum((values.sum() * 0.0 for values in maps[: -self.levels]), found.new_zeros(()))
        return found * self.scale + idle, auxiliary.float()


def criterion(loss: str, levels: int, scheme: LabelScheme, options: Mapping[str, Any]) -> tuple[nn.Module, float]:
    """The loss on `levels` maps from coarse to fine, or on one, and the factor that makes it one map's.

    Ignored pixels are 255 in the labels, of regions in each channel by itself.
    """
    common: dict[str, Any] = {"ignore_index": IGNORED, "distributed": True}
    mixed: dict[str, Any] = {"activation": "sigmoid" if scheme.regions else "softmax", **common}
    try:
        if loss == "lomix":
            # Weights of a fixed sum: those of the paper, which nothing holds up, fall all alike (see MixedLogitLoss).
            found: nn.Module = MixedLogitLoss(levels, scheme.outputs, **{"weights": "normalized", **mixed, **options})
        elif loss == "mutation":
            found = MutationLoss(levels, scheme.outputs, **{**mixed, **options})
        else:
            one = _dice_ce(scheme, common, options)
            if loss == "dice_ce":
                return one, 0.5
            found = DeepSupervisionLoss(one, resize="logits", order="coarse_to_fine")
            return found, 0.5 / sum(found.get_weights(levels))
    except TypeError as error:
        raise ValueError(f"loss_options: {str(error).partition('() ')[2] or error}") from None
    assert isinstance(found, MixedLogitLoss)
    return found, 1 / len(found.names)


def _dice_ce(scheme: LabelScheme, common: Mapping[str, Any], options: Mapping[str, Any]) -> nn.Module:
    """Dice over the batch plus cross-entropy, each with the factor 1; of regions each yes or no by itself."""
    if scheme.regions:
        parts = {"operators": (), "weights": "fixed", "activation": "sigmoid", "cross_entropy": 1.0, "dice": 1.0}
        return MixedLogitLoss(1, scheme.outputs, **{**parts, **common, **options})
    return DiceCELoss(**{"to_onehot_y": True, "softmax": True, "batch": True, **common, **options})

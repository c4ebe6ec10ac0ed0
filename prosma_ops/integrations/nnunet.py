"""nnU-Net (v2) trained with LoMix, with ProSMA-UNet as its network, or both.

nnU-Net finds the trainers of this file by their names if it is told the folder:

    export nnUNet_extTrainer=$(python -c "import prosma_ops.integrations as here; print(*here.__path__)")
    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerLoMix

`nnUNetTrainerLoMix` trains whatever network the plans name, `nnUNetTrainerProSMA` a ProSMA-UNet with the plans' widths,
strides and kernel sizes, `nnUNetTrainerProSMALoMix` that network with that loss. Plans can also name the network
themselves, for any trainer: of a configuration in `nnUNetPlans.json` it is one line that changes,

    "architecture": {
        "network_class_name": "prosma_ops.integrations.nnunet.PlannedProSMAUNet",
        "arch_kwargs": {"n_stages": 6, "features_per_stage": [32, 64, 128, 256, 320, 320], ...}
    }

The file is imported as a module of no package by nnU-Net, so it names prosma_ops in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prosma_ops.models import ProSMAUNet
from prosma_ops.nn import MixedLogitLoss
from prosma_ops.nn.layers import one_or_more

# LoMix mixes the maps of four scales in the paper; of six there would be 234 mixtures.
MOST_LEVELS = 4
# No class and no region has this number.
IGNORED = 255


class PlannedProSMAUNet(nn.Module):
    """ProSMA-UNet as nnU-Net makes and calls a network: maps from fine to coarse where deep supervision is switched on.

    Arguments, by nnU-Net's names: the widths, strides and kernel sizes of each stage; all others that plans hold are
    the network's own matter. `gate_options` goes to `prosma_ops.nn.ProximalGate`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        deep_supervision: bool = True,
        gate_options: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.model = ProSMAUNet(
            input_channels,
            num_classes,
            spatial_dims=len(kernel_sizes[0]),
            widths=features_per_stage,
            strides=strides,
            kernel_sizes=kernel_sizes,
            norm="instance",
            gate_options=gate_options,
        )
        self.deep_supervision = deep_supervision

    @property
    def decoder(self) -> PlannedProSMAUNet:
        """Where nnU-Net looks for the switch `deep_supervision`."""
        return self

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.deep_supervision:
            return self.model.all_scales(x).logits[::-1]
        return self.model.finest(x)


class LoMixLoss(nn.Module):
    """`MixedLogitLoss` as nnU-Net calls a loss: maps and targets in lists, from fine to coarse, or one of each.

    The finest target serves all maps. The weighted mean over all mixtures is taken, not their sum, so that the step
    size and the gradient clipping that nnU-Net has for one map fit. Weights are "normalized": under nnU-Net's
    thousand epochs those of the paper, which nothing holds up, would fall to nothing. Maps coarser than the fourth
    have no part in it, as nnU-Net itself gives its coarsest none.

    Arguments:
        levels: how many maps come.
        classes: channels of each.
        regions: the target is a channel a region, and one more, the last, where `ignore_label` is not None.
        ignore_label: of pixels that count nowhere.
        distributed: see `MixedLogitLoss`.
    """

    def __init__(
        self,
        levels: int,
        classes: int,
        *,
        regions: bool = False,
        ignore_label: int | None = None,
        distributed: bool = False,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.ignore_label = ignore_label
        ignored = IGNORED if regions else ignore_label
        self.loss = MixedLogitLoss(
            min(levels, MOST_LEVELS),
            classes,
            weights="normalized",
            activation="sigmoid" if regions else "softmax",
            ignore_index=None if ignore_label is None else ignored,
            distributed=distributed,
        )

    def forward(self, maps: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> Tensor:
        found, target = one_or_more(maps), one_or_more(targets)[0]
        mixed: Tensor = self.loss(found[: self.loss.levels][::-1], self._target(target))
        # Nothing times the coarsest maps: DistributedDataParallel wants every parameter to have a gradient.
        idle = sum((values.sum() * 0.0 for values in found[self.loss.levels :]), mixed.new_zeros(()))
        return mixed / len(self.loss.names) + idle

    def _target(self, target: Tensor) -> Tensor:
        if not self.regions:
            return target.long()
        if self.ignore_label is None:
            return target.to(torch.uint8)
        return torch.where(target[:, -1:] > 0, IGNORED, target[:, :-1]).to(torch.uint8)


class nnUNetTrainerLoMix(nnUNetTrainer):  # noqa: N801
    """nnU-Net's trainer with LoMix in place of its loss: labels or regions, with or without an ignore label."""

    def initialize(self) -> None:
        super().initialize()
        # Weights of mixtures are no weights of a network: nothing is to shrink them.
        self.optimizer.add_param_group({"params": [*self.loss.parameters()], "weight_decay": 0.0})

    def _build_loss(self) -> nn.Module:
        scales = self._get_deep_supervision_scales()
        loss = LoMixLoss(
            1 if scales is None else len(scales),
            self.label_manager.num_segmentation_heads,
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            distributed=self.is_ddp,
        ).to(self.device)
        if self.is_ddp and [*loss.parameters()]:
            return DistributedDataParallel(loss, device_ids=[self.local_rank])
        return loss

    def save_checkpoint(self, filename: str) -> None:
        """With what the loss has learned, beside nnU-Net's own."""
        super().save_checkpoint(filename)
        if self.local_rank == 0 and not self.disable_checkpointing:
            checkpoint = torch.load(filename, map_location="cpu", weights_only=False)
            torch.save({**checkpoint, "loss_weights": self._loss().state_dict()}, filename)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        checkpoint = torch.load(filename_or_checkpoint, map_location=self.device, weights_only=False)
        self._loss().load_state_dict(checkpoint["loss_weights"])

    def _loss(self) -> nn.Module:
        loss: nn.Module = self.loss.module if isinstance(self.loss, DistributedDataParallel) else self.loss
        return loss


class nnUNetTrainerProSMA(nnUNetTrainer):  # noqa: N801
    """nnU-Net's trainer with a ProSMA-UNet of the plans' widths, strides and kernel sizes."""

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        planned = configuration_manager.network_arch_init_kwargs
        return PlannedProSMAUNet(
            num_input_channels,
            num_output_channels,
            features_per_stage=planned["features_per_stage"],
            strides=planned["strides"],
            kernel_sizes=planned["kernel_sizes"],
            deep_supervision=enable_deep_supervision,
        )


class nnUNetTrainerProSMALoMix(nnUNetTrainerLoMix, nnUNetTrainerProSMA):  # noqa: N801
    """Both: a ProSMA-UNet trained with LoMix."""

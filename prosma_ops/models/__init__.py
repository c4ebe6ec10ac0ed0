"""Whole networks, wired from the fused operators: `create_model`, `list_models`, and their classes and parts."""

from .bottlenecks import CodebookBottleneck, NoBottleneck, SynergyBottleneck, TransportBottleneck
from .convolutional import (
    AttentionUNet,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    L2GNet,
    ProSMAUNet,
    SynergyNet,
    UNet,
    VQUNet,
)
from .emcad import EMCAD
from .emcad_decoder import EMCADDecoder
from .gates import AttentionGate, LargeKernelGate, NoGate
from .registry import create_model, list_models
from .residual_encoder import ResidualEncoder
from .skeleton import Bottleneck, Decoder, Encoder, SegmentationModel, SegmentationOutput
from .timm_encoder import TimmEncoder
from .trans_unet import CascadedDecoder, LoadedWeights, TransUNet
from .vision_transformer import TransformerBottleneck

__all__ = [
    "EMCAD",
    "AttentionGate",
    "AttentionUNet",
    "Bottleneck",
    "CascadedDecoder",
    "CodebookBottleneck",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "Decoder",
    "EMCADDecoder",
    "Encoder",
    "L2GNet",
    "LargeKernelGate",
    "LoadedWeights",
    "NoBottleneck",
    "NoGate",
    "ProSMAUNet",
    "ResidualEncoder",
    "SegmentationModel",
    "SegmentationOutput",
    "SynergyBottleneck",
    "SynergyNet",
    "TimmEncoder",
    "TransUNet",
    "TransformerBottleneck",
    "TransportBottleneck",
    "UNet",
    "VQUNet",
    "create_model",
    "list_models",
]

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
from .gates import AttentionGate, NoGate
from .registry import create_model, list_models
from .skeleton import Bottleneck, Decoder, Encoder, SegmentationModel, SegmentationOutput

__all__ = [
    "AttentionGate",
    "AttentionUNet",
    "Bottleneck",
    "CodebookBottleneck",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "Decoder",
    "Encoder",
    "L2GNet",
    "NoBottleneck",
    "NoGate",
    "ProSMAUNet",
    "SegmentationModel",
    "SegmentationOutput",
    "SynergyBottleneck",
    "SynergyNet",
    "TransportBottleneck",
    "UNet",
    "VQUNet",
    "create_model",
    "list_models",
]

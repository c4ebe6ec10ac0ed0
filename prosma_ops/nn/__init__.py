"""Modules with parameters, and losses, built on the operators."""

from .codebook import VectorQuantizer
from .deep_supervision import DeepSupervisionLoss
from .dice import DiceCELoss, DiceLoss
from .logit_mixing import MixedLogitLoss, MutationLoss
from .proximal_gate import ProximalGate
from .transport import TransportAlign

__all__ = [
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceLoss",
    "MixedLogitLoss",
    "MutationLoss",
    "ProximalGate",
    "TransportAlign",
    "VectorQuantizer",
]

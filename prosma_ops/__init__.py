"""Fused operators for medical image segmentation, and the networks built from them.

`import prosma_ops` compiles nothing, touches no device and does not import torch: each name is loaded when it is
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import lazy

__version__ = "0.1.0"

__all__ = [
    "CodeStatistics",
    "LogitStatistics",
    "NearestCode",
    "Potentials",
    "apply_plan",
    "check_errors",
    "code_statistics",
    "explain",
    "fuse",
    "map_names",
    "mixed_logit_statistics",
    "models",
    "nearest_code",
    "nn",
    "proximal_gate",
    "reference",
    "sinkhorn",
    "soft_threshold",
    "testing",
    "transport_align",
    "transport_plan",
    "unfuse",
    "use_backend",
]

if TYPE_CHECKING:
    from . import models, nn, reference, testing
    from .backends import explain, use_backend
    from .errors import check_errors
    from .fusion import fuse, unfuse
    from .ops.codebook import CodeStatistics, NearestCode, code_statistics, nearest_code
    from .ops.logit_mixing import LogitStatistics, map_names, mixed_logit_statistics
    from .ops.proximal_gate import proximal_gate, soft_threshold
    from .ops.transport import Potentials, apply_plan, sinkhorn, transport_align, transport_plan

_HOME = {
    "check_errors": ".errors",
    "explain": ".backends",
    "fuse": ".fusion",
    "unfuse": ".fusion",
    "use_backend": ".backends",
    "LogitStatistics": ".ops",
    "map_names": ".ops",
    "mixed_logit_statistics": ".ops",
    "CodeStatistics": ".ops",
    "NearestCode": ".ops",
    "code_statistics": ".ops",
    "nearest_code": ".ops",
    "proximal_gate": ".ops",
    "soft_threshold": ".ops",
    "Potentials": ".ops",
    "apply_plan": ".ops",
    "sinkhorn": ".ops",
    "transport_align": ".ops",
    "transport_plan": ".ops",
}
_ROOMS = ("models", "nn", "reference", "testing")

__getattr__, __dir__ = lazy.names(__name__, [*__all__, "__version__"], _HOME, _ROOMS)

"""Fused operators for medical image segmentation, and the networks built from them.

`import prosma_ops` compiles nothing, touches no device and does not import torch: each name is loaded when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name], __name__), name)
    elif name in _ROOMS:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

"""The operators: schema, shape rule, gradient and choice of implementation, one file each."""

from .logit_mixing import LogitStatistics, map_names, mixed_logit_statistics
from .proximal_gate import proximal_gate, soft_threshold
from .transport import Potentials, apply_plan, sinkhorn, transport_align, transport_plan

__all__ = [
    "LogitStatistics",
    "Potentials",
    "apply_plan",
    "map_names",
    "mixed_logit_statistics",
    "proximal_gate",
    "sinkhorn",
    "soft_threshold",
    "transport_align",
    "transport_plan",
]

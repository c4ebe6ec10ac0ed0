"""The operators: schema, shape rule, gradient and choice of implementation, one file each."""

from .codebook import CodeStatistics, NearestCode, code_statistics, nearest_code
from .logit_mixing import LogitStatistics, map_names, mixed_logit_statistics
from .proximal_gate import proximal_gate, soft_threshold
from .transport import Potentials, apply_plan, sinkhorn, transport_align, transport_plan

__all__ = [
    "CodeStatistics",
    "LogitStatistics",
    "NearestCode",
    "Potentials",
    "apply_plan",
    "code_statistics",
    "map_names",
    "mixed_logit_statistics",
    "nearest_code",
    "proximal_gate",
    "sinkhorn",
    "soft_threshold",
    "transport_align",
    "transport_plan",
]

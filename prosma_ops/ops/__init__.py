"""The operators: schema, shape rule, gradient and choice of implementation, one file each."""

from .logit_mixing import LogitStatistics, map_names, mixed_logit_statistics
from .proximal_gate import proximal_gate, soft_threshold

__all__ = ["LogitStatistics", "map_names", "mixed_logit_statistics", "proximal_gate", "soft_threshold"]

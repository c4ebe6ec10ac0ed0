"""The operators: schema, shape rule, gradient and choice of implementation, one file each."""

from .proximal_gate import proximal_gate, soft_threshold

__all__ = ["proximal_gate", "soft_threshold"]

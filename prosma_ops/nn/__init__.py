"""Modules with parameters, built on the operators."""

from .proximal_gate import ProximalGate

__all__ = ["ProximalGate"]

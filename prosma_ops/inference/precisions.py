"""What a network may be computed in, by the names of Lightning Fabric: float32, or autocast to a type of 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Its gradients are scaled, as small ones would be 0.
SCALED = "16-mixed"
# The names in torch of what autocast goes to: the help of a command lists these without importing it.
PRECISIONS = {"32": None, "bf16-mixed": "bfloat16", SCALED: "float16"}


def autocast(precision: str) -> torch.dtype | None:
    """The dtype of autocast, None for none."""
    import torch

    name = PRECISIONS[precision]
    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found


def require_possible(precision: str, device: str) -> None:
    """Raises ValueError for a precision that this type of device does not have."""
    if device == "cpu" and precision == SCALED:
        raise ValueError(f"precision is {SCALED}, which needs a GPU; on a CPU 32 or bf16-mixed will do")

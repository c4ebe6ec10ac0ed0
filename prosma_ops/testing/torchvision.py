"""Makes `import timm` work where torchvision's compiled operators do not fit torch, for tests and benchmarks.

A CPU build of torch beside a CUDA build of torchvision is what an ordinary `pip install timm` leaves behind: the
library of operators does not load, and the fake kernels that torchvision then registers fail with "operator
torchvision::nms does not exist". Nothing here calls those operators; a schema for each, of any signature, is enough.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from pathlib import Path

import torch

# Decorated functions name an operator in one of these ways; the second is torchvision's own decorator.
NAMES = re.compile(r'"torchvision::(\w+)"|register_meta\("(\w+)"')

_declared: list[torch.library.Library] = []  # a schema lives as long as its library


def declare_operators() -> list[str]:
    """Declare what torchvision's registrations name and its library did not bring; the names of these operators.

    To be called before the first import of torchvision or timm. Does nothing where torchvision is whole, or absent.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent
    _load_library(folder)
    sources = (path.read_text() for path in sorted(folder.glob("_*_registrations.py")))
    named = {first or second for source in sources for first, second in NAMES.findall(source)}
    missing = sorted(name for name in named if not hasattr(torch.ops.torchvision, name))
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(f"{name}(Tensor values) -> Tensor")
        _declared.append(library)
    return missing


def _load_library(folder: Path) -> None:
    """As torchvision itself will, which is silent as well about a library that does not load."""
    for path in folder.glob("_C.*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(path)

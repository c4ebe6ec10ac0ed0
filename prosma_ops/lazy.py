"""Names that a package loads when they are first used (PEP 562), so that importing it costs nothing.

    __getattr__, __dir__ = lazy.names(__name__, __all__, {"batches": ".samples"})

Type checkers do not see through this: they read the imports under `TYPE_CHECKING`, and `__all__`, beside it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any


def names(
    package: str, listed: Iterable[str], homes: Mapping[str, str], modules: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of `package`.

    Arguments:
        listed: what `dir` shows.
        homes: the module that a name is in, relative to the package.
        modules: names that are modules of the package themselves.
    """

    def load(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name], package), name)
        elif name in modules:
            value = importlib.import_module(f".{name}", package)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # the next time it is found without asking here
        return value

    def show() -> list[str]:
        return sorted(listed)

    return load, show

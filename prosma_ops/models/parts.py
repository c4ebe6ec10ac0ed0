"""Exchangeable parts by name: a table of classes, and options that fit the one that is chosen."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..ops import checks


def chosen(
    part: str, kind: str, table: Mapping[str, type[nn.Module]], options: Mapping[str, Any] | None
) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class that `kind` names, and its options, checked: `part` is how the argument is called, "gate" say."""
    checks.choice(part, kind, tuple(table))
    given = dict(options or {})
    known = inspect.signature(table[kind]).parameters
    taken = [name for name, parameter in known.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    own = [name for name in taken if name not in ("spatial_dims", "norm")]
    for name in given:
        if name not in own:
            may = f"takes {', '.join(own)}" if own else "takes none"
            raise TypeError(f"{part}_options has {name!r}; {part}={kind!r} {may}")
    return table[kind], given

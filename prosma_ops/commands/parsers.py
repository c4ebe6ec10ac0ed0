"""What all commands share: the type of what they add to, and a word for libraries that are not installed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


@contextmanager
def needing_the_extra(extra: str) -> Iterator[None]:
    """A library that is not installed is named, together with what installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'prosma-ops[{extra}]'") from error

"""What all commands share: the type of what they add to, words for missing libraries, devices, JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


@contextmanager
def needing_the_extra(extra: str) -> Iterator[None]:
    """A library that is not installed is named, together with what installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'prosma-ops[{extra}]'") from error


def write_json(path: Path, content: Any) -> None:
    """What --json asked for; raises ValueError with the system's reason if it cannot be written."""
    try:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ValueError(f"--json is {str(path)!r}, which cannot be written: {error.strerror or error}") from None


def usable_device(name: str) -> torch.device:
    """The device of this name, which --device gave; raises ValueError with torch's reason if it cannot be used here."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {name!r}, which cannot be used here: {str(error).splitlines()[0]}") from None
    return device

"""Tensors and plain values in one .safetensors file, written whole or not at all, and known to be whole when read.

A file is written aside, synced and renamed (`replacing`), so a process that dies leaves what was there before. Its
header carries a digest of every byte of the tensors and of the values: a file that another program or a disk has
damaged is named, not believed. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data import BadFileError
from ..data.writing import replacing

VALUES, DIGEST = "values", "digest"


def write(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None) -> None:
    """Raises `BadFileError` where the file cannot be written; what stood under its name is then still there."""
    stored = _apart(tensors)
    text = json.dumps(dict(values or {}), allow_nan=True)
    with replacing(path) as aside:
        aside.touch()
        mode = aside.stat().st_mode  # as this process makes files; safetensors makes them for their owner alone
        try:
            save_file(stored, aside, {VALUES: text, DIGEST: _digest(stored, text)})
            aside.chmod(mode)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and values; raises `BadFileError` for a file that is not whole, or that nobody wrote with `write`."""
    try:
        with safe_open(path, "pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadFileError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if VALUES not in header or DIGEST not in header:
        raise BadFileError(path, "was not written by prosma_ops: it has no digest")
    if _digest(tensors, header[VALUES]) != header[DIGEST]:
        raise BadFileError(path, "is damaged: its content does not have the digest that it was written with")
    values: dict[str, Any] = json.loads(header[VALUES])
    return tensors, values


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and copied where they share memory with another, which safetensors does not store."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous()
        memory = values.untyped_storage().data_ptr()
        found[name] = values.clone() if memory in seen else values
        seen.add(memory)
    return found


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        values = tensors[name]
        found.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()

"""Checks of values, which on a GPU must not make the host wait: labels, indices, masses.

    record(condition, message)    inside an implementation: the call is wrong where `condition` is true
    note(condition, message)      likewise, of values that have an answer and never raise by themselves
    check_errors()                by the user, whenever waiting does no harm: once an epoch, say

On the CPU a wrong value raises at once. On any other device `record` only sets a flag there, one for each message,
which a CUDA graph captures like any other kernel; `check_errors` reads all flags, clears them, and raises.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Flags:
    """What went wrong on devices since somebody last looked: one flag for each device and message."""

    def __init__(self) -> None:
        self._flags: dict[tuple[torch.device, str], Tensor] = {}
        self._lock = threading.Lock()

    def set(self, condition: Tensor, message: str) -> None:
        """Set the flag if `condition` is true, without waiting for its device."""
        with self._lock:
            key = (condition.device, message)
            if key not in self._flags:
                self._flags[key] = _lasting_flag(condition.device)
            flag = self._flags[key]
        flag.logical_or_(condition)

    def take(self) -> list[str]:
        """The messages whose flags are set; clears them. Waits for each device that has a flag."""
        with self._lock:
            flags = dict(self._flags)
        for device in {device for device, _ in flags if device.type != "cpu"}:
            torch.accelerator.synchronize(device)  # its flags may be set from any stream
        found = [key for key, flag in flags.items() if bool(flag)]
        for key in found:
            flags[key].zero_()
        return [f"{message} (on {device})" for device, message in found]


def _lasting_flag(device: torch.device) -> Tensor:
    """A flag that outlives whatever is going on: made on a thread of its own, because torch.compile lets a thread that
    warms up a CUDA graph take its memory from the graph's pool, where nothing may stay.

    A graph that is captured before the operator ever ran has no flag to set; making one would be part of the graph,
    which then cleared it at each replay.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured of an operator that has not run yet; run it once before, as torch advises"
        )
    made: list[Tensor] = []
    thread = threading.Thread(target=lambda: made.append(torch.tensor(False).to(device)))
    thread.start()
    thread.join()
    return made[0]


_flags = Flags()


def raises_at_once(device: torch.device) -> bool:
    """Whether looking at a value costs nothing there."""
    return device.type == "cpu"


def record(condition: Tensor, message: str) -> None:
    """Report a wrong value: `condition` is a boolean tensor of no dimensions, `message` says what would do.

    Raises ValueError(message) at once if the tensor is on the CPU; elsewhere `check_errors` raises it. Messages are
    kept, so they are constant texts. For implementations, below the dispatcher: this is never traced.
    """
    if not raises_at_once(condition.device):
        _flags.set(condition, message)
    elif condition:
        raise ValueError(message)


def note(condition: Tensor, message: str) -> None:
    """Like `record`, for values that an operator has an answer to, such as a NaN: on the CPU too only `check_errors`
    raises."""
    if not raises_at_once(condition.device) or condition:
        _flags.set(condition, message)


def check_errors() -> None:
    """Raise ValueError if an operator was given wrong values on a GPU since the last call, and forget them.

    On the CPU wrong labels, indices and masses raise where they are used. On a GPU looking at them would make every
    step wait for the device, so operators only note them there, and leave such elements out of their results. This
    function waits for the devices; call it once in a while. It also tells, for any device, of tokens with NaN that
    `nearest_code` was given: those raise nowhere else.

    >>> for images, labels in loader:
    ...     step(images, labels)
    >>> prosma_ops.check_errors()
    """
    found = _flags.take()
    if found:
        raise ValueError("; ".join(found))

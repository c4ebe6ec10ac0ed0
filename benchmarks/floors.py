"""What the machine can do at most, and how long a piece of work must therefore take.

    memory floor    the least bytes that must be moved / the rate of a copy too large for any cache
    FMA floor       2 * the multiply-adds / the rate of multiply-adds from registers
    exp floor       the exponentials / the rate of exponentials from registers

All rates are measured by the native library's own loops (`csrc/floors.h`), beside the work they are compared with.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

from prosma_ops import native

# Four times the largest last-level cache of the machines seen: 32 MiB on the CPU, 60 MiB on the GPU.
CPU_COPY_BYTES = 128 << 20
GPU_COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Rates:
    """GFLOP/s, 1e9 exponentials a second, GB/s read and written. None where nothing could measure it."""

    fma: float | None = None
    exp: float | None = None
    copy: float | None = None

    def as_json(self) -> dict[str, float | None]:
        return {name: None if rate is None else round(rate, 2) for name, rate in asdict(self).items()}


def measure(device: str, threads: int, seconds: float = 0.04, *, exp: bool = False) -> Rates:
    module, _ = native.load()
    if device == "cuda":
        return _measure_gpu(module, seconds)
    if module is None:
        return Rates()
    return Rates(
        fma=module.fma_rate(threads, seconds),
        exp=module.exp_rate(threads, seconds) if exp else None,
        copy=module.copy_rate(threads, CPU_COPY_BYTES, 2 * seconds),
    )


def _measure_gpu(module: Any, seconds: float) -> Rates:
    torch.cuda.synchronize()
    if module is not None and module.cuda:
        return Rates(
            module.cuda_fma_rate(seconds), module.cuda_exp_rate(seconds), module.cuda_copy_rate(GPU_COPY_BYTES, seconds)
        )
    source = torch.empty(GPU_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e-3)
    return Rates(copy=2e-9 * GPU_COPY_BYTES / min(times))


def together(several: list[Rates]) -> Rates:
    """One figure of several measurements in a run.

    Arithmetic has one rate, the best one; what is below it was disturbed. The rate of memory changes from second to
    second with what the machine's other guests do, and the work beside it had the same weather: so the median.
    """

    def of(name: str) -> list[float]:
        return [rate for rates in several if (rate := getattr(rates, name)) is not None]

    return Rates(
        fma=max(of("fma"), default=None),
        exp=max(of("exp"), default=None),
        copy=statistics.median(of("copy")) if of("copy") else None,
    )


def times(rates: Rates, moved_bytes: float, multiply_adds: float, exponentials: float = 0) -> dict[str, float]:
    """The floors of a piece of work in seconds, by name; those that were not measured are left out."""
    found = {}
    if rates.copy and moved_bytes:
        found["memory"] = moved_bytes / (rates.copy * 1e9)
    if rates.fma and multiply_adds:
        found["fma"] = 2 * multiply_adds / (rates.fma * 1e9)
    if rates.exp and exponentials:
        found["exp"] = exponentials / (rates.exp * 1e9)
    return found

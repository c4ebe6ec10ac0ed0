"""One contestant's run in a process of its own: for its peak memory, and for profilers.

    python -m benchmarks.single OPERATOR "WORK, DTYPE" [--contestant NAME] [--device cuda] [--purpose PURPOSE]

memory    prints {"tensors": ...}: the extra peak memory in tensors of the field's size, results included
profile   the work once, between cudaProfilerStart and cudaProfilerStop
sanitize  the work once at its tiny size, for compute-sanitizer
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from .targets import OURS
from .work import Work, runner, works_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.single")
    parser.add_argument("operator")
    parser.add_argument("work")
    parser.add_argument("--contestant", default=OURS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--purpose", choices=("memory", "profile", "sanitize"), default="memory")
    arguments = parser.parse_args()
    work = works_of(arguments.operator, arguments.device)[arguments.work]
    device = torch.device(arguments.device)
    if arguments.purpose == "memory":
        print(json.dumps({"tensors": extra_memory(work, arguments.contestant, device)}))
    elif arguments.purpose == "profile":
        profile(work, arguments.contestant, device)
    else:
        runner(work.problem(device, work.tiny), work.contestant(arguments.contestant))()
        if device.type == "cuda":
            torch.cuda.synchronize()


def extra_memory(work: Work, name: str, device: torch.device) -> float | None:
    """Peak memory of one run above what stood before it, with inputs and incoming gradients there already.

    The process is warmed up at the tiny size, so that code and thread pools do not count but scratch memory does. A
    compiled contestant can only be warmed up at its own size.
    """
    contestant = work.contestant(name)
    run = runner(work.problem(device), contestant)
    if contestant.compiled:
        run()
    else:
        runner(work.problem(device, work.tiny), contestant)()
    gc.collect()
    peak = _gpu_peak(run) if device.type == "cuda" else cpu_peak(run)
    return None if peak is None else peak / work.field_bytes


def _gpu_peak(run: Any) -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


def _status(field: str) -> int:
    """Bytes, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def cpu_peak(run: Any) -> int | None:
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    except OSError:
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > 1.02 * _status("VmRSS"):
            return None  # a peak from before would hide ours
    before = _status("VmRSS")
    kept = run()
    peak = _status("VmHWM") - before
    del kept
    return peak


def profile(work: Work, name: str, device: torch.device) -> None:
    run = runner(work.problem(device), work.contestant(name))
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()

"""What a result was measured on: the record that stands at the head of every results file."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from prosma_ops import doctor
from prosma_ops.tuned import slug

ROOT = Path(__file__).resolve().parent.parent
# Read by glibc when a process starts, so each setting needs a process of its own. 4 GiB: no tensor of ours is larger.
ALLOCATOR_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
RAISED = str(4 << 30)
# Distributions whose speed is compared with ours.
RIVALS = ("geomloss", "monai", "pot", "vector-quantize-pytorch")
ALLOCATORS = {"raised": "allocator thresholds raised", "default": "default allocator"}


def environment(allocator: str) -> dict[str, str]:
    """The environment of a child process with this allocator setting."""
    values = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_VARIABLES}
    if allocator == "raised":
        values |= dict.fromkeys(ALLOCATOR_VARIABLES, RAISED)
    return values


def allocator() -> str:
    """The setting that this process was started with."""
    return "raised" if all(os.environ.get(name) == RAISED for name in ALLOCATOR_VARIABLES) else "default"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def cpu_name() -> str:
    model = doctor.processor_fields().get("model name") or platform.processor() or platform.machine()
    model = re.sub(r"\((R|TM)\)|CPU|Processor|@.*", "", model)
    return f"{' '.join(model.split())}, {doctor.usable_cores()} cores"


def commit() -> str:
    head = _output("git", "rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    return f"{head} with changes" if _output("git", "status", "--porcelain", "--untracked-files=no") else head


def _versions() -> dict[str, str]:
    import torch

    import prosma_ops
    from prosma_ops import backends

    found = {"python": platform.python_version(), "torch": torch.__version__, "prosma_ops": prosma_ops.__version__}
    triton, _ = backends.triton_package()
    if triton is not None:
        found["triton"] = triton.__version__
    for name in RIVALS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if sys.platform == "linux":
        found["libc"] = " ".join(platform.libc_ver())
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if torch.version.hip:
        found["hip"] = torch.version.hip
    return found


def _gpu() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
    answer = _output("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "--id=0").split(", ")
    known = dict(zip(("driver", *asked.split(",")[1:]), answer, strict=False)) if len(answer) > 1 else {}
    return {
        "device": properties.name,
        "slug": slug(properties.name),
        "driver": known.pop("driver", "unknown"),
        "clocks": known,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cache_bytes": getattr(properties, "L2_cache_size", 0),
        "memory_bytes": properties.total_memory,
    }


def _cpu() -> dict[str, Any]:
    from prosma_ops import native

    module, reason = native.load()
    megahertz = doctor.processor_fields().get("cpu MHz")
    return {
        "device": cpu_name(),
        "slug": slug(cpu_name()),
        "driver": f"{platform.system()} {platform.release().split('-')[0]}",
        "clocks": {"cpu": f"{float(megahertz):.0f} MHz"} if megahertz else {},
        "native": reason,
        "build": dict(module.build) if module is not None else {},
    }


def record(device: str) -> dict[str, Any]:
    """Everything that a reader needs to judge the numbers, or to repeat them."""
    return {
        "kind": device,
        **(_gpu() if device == "cuda" else _cpu()),
        "versions": _versions(),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }

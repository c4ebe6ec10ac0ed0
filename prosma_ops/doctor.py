"""`prosma-ops doctor`: what is installed here, which backends can run, and why others cannot.

Made to be pasted into a bug report: no user names, no host names, no paths outside the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
from pathlib import Path
from types import ModuleType

from . import __version__

# What the x86-64 levels need beyond AVX2 and FMA: csrc/cpu is compiled for x86-64-v3 and -v4.
LEVEL_FLAGS = {
    "v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "v3": ("avx2", "fma", "bmi1", "bmi2", "f16c"),
}
VARIABLES = (
    "PROSMA_OPS_BACKEND",
    "PROSMA_CPU_LEVEL",
    "PROSMA_REQUIRE_NATIVE",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)
WITHOUT_NATIVE = """\
what it costs        On the CPU the reference implementations run in its place: the same results, several times
                     slower (the README's table of speeds has the factors).
how to get it        Install a C++17 compiler (Debian, Ubuntu: apt-get install g++; conda: conda install
                     cxx-compiler), then, in the source folder, so that a failed build says why:
                     PROSMA_REQUIRE_NATIVE=1 pip install --force-reinstall --no-deps ."""


def text() -> str:
    sections = {
        "versions": versions(),
        "processor": processor(),
        "GPUs": gpus(),
        "native library": native_library(),
        "environment": [(name, os.environ[name]) for name in VARIABLES if name in os.environ] or [("set", "nothing")],
    }
    parts = [_section(title, rows) for title, rows in sections.items()]
    return "\n\n".join([*parts, "backends\n" + backend_table()])


def _section(title: str, rows: list[tuple[str, str]] | str) -> str:
    if isinstance(rows, str):
        return f"{title}\n{rows}"
    return "\n".join([title, *(f"  {name:<19}{anonymous(value)}" for name, value in rows)])


def anonymous(line: str) -> str:
    """Absolute paths shortened to what follows site-packages or the package's own folder, else to the file's name."""

    def shorten(match: re.Match[str]) -> str:
        parts = Path(match.group()).parts
        for anchor in ("site-packages", "prosma_ops"):
            if anchor in parts[:-1]:
                return "/".join(parts[parts.index(anchor) :])
        return parts[-1]

    return re.sub(r"(?<![\w.])(?:/|[A-Za-z]:\\)[^\s:'\"(),]+", shorten, line)


def _import(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # a broken installation fails in many ways, and is what doctor is for
        return None, f"does not import ({type(error).__name__}: {error})"


def _version(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return "not installed"
    module, reason = _import(name)
    return reason if module is None else str(getattr(module, "__version__", "of unknown version"))


def versions() -> list[tuple[str, str]]:
    return [
        ("prosma_ops", __version__),
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("torch", _version("torch")),
        ("triton", _version("triton")),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("C library", " ".join(platform.libc_ver()).strip() or "unknown"),
    ]


def processor() -> list[tuple[str, str]]:
    fields = processor_fields()
    name = fields.get("model name") or platform.processor() or "unknown"
    rows = [("name", name), ("level", processor_level(fields.get("flags", "").split()))]
    torch, _ = _import("torch")
    used = f", {torch.get_num_threads()} used by torch" if torch is not None else ""
    return [*rows, ("threads", f"{usable_cores()} usable{used}")]


def usable_cores() -> int:
    """By this process; a scheduler or a container may give it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_fields() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def processor_level(flags: list[str]) -> str:
    if not flags:
        return f"portable ({platform.machine()})"
    for level, needed in LEVEL_FLAGS.items():
        if set(needed) <= set(flags) and (level == "v3" or set(LEVEL_FLAGS["v3"]) <= set(flags)):
            return f"x86-64-{level}"
    return "below x86-64-v3: portable"


def gpus() -> list[tuple[str, str]]:
    torch, reason = _import("torch")
    if torch is None:
        return [("none usable", f"torch {reason}")]
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = f"torch is built for {built} and finds no device" if built else "this torch is a CPU build"
        return [("none usable", why)]
    rows = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        rows.append((f"cuda:{index}", f"{found.name}, sm_{found.major}{found.minor}, {found.total_memory >> 20} MiB"))
    return [
        *rows,
        ("torch built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"),
    ]


def native_library() -> list[tuple[str, str]] | str:
    native, reason = _import("prosma_ops.native")
    if native is None:
        return [("not loaded", reason)]
    try:
        module, reason = native.load()
    except ValueError as error:  # PROSMA_CPU_LEVEL names a level that cannot run here
        return [("not loaded", str(error))]
    if module is None:
        lines = [f"  {line}" for line in WITHOUT_NATIVE.splitlines()]
        return "\n".join([f"  {'missing':<19}  {anonymous(reason)}", *lines])
    rows = [
        ("file", str(module.__file__)),
        ("runs at", reason),
        ("levels compiled in", ", ".join(module.levels)),
        ("levels usable here", ", ".join(module.runnable_levels)),
        ("CUDA kernels", "yes" if module.cuda else "no"),
    ]
    return rows + [(f"build: {name}", str(value)) for name, value in module.build.items()]


def backend_table() -> str:
    """Every operator's backends on the CPU, and on the first GPU if there is one."""
    torch, reason = _import("torch")
    if torch is None:
        return f"  none: torch {anonymous(reason)}"
    from . import backends
    from .ops import proximal_gate  # noqa: F401  (registers the operators)

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    lines = []
    for operator in backends.OPERATORS:
        for device in devices:
            try:
                explanation = str(backends.explain(operator, torch.empty(1, device=device)))
            except ValueError as error:  # an environment variable that names no backend or level
                explanation = f"{operator}: {error}"
            title, *rows = explanation.splitlines()
            lines += [f"  {title.rstrip(':')} on {device}", *(f"  {anonymous(row)}" for row in rows)]
    return "\n".join(lines)

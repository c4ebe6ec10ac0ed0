"""`prosma-ops doctor` says what a bug report needs, and nothing about who wrote it."""

from __future__ import annotations

import getpass
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import prosma_ops
from prosma_ops import doctor, native
from prosma_ops.cli import main

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_it_says_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for text in (prosma_ops.__version__, torch.__version__, platform.python_version(), platform.machine(), "threads"):
        assert text in shown
    for section in ("versions", "processor", "GPUs", "native library", "environment", "backends"):
        assert re.search(rf"^{section}$", shown, re.MULTILINE)
    for backend in prosma_ops.backends.BACKENDS:
        assert re.search(rf"^ +{backend} +(runs|can|no) +\S", shown, re.MULTILINE)


def test_it_describes_the_native_library(native_library: object) -> None:
    shown = doctor.text()
    for text in (*native_library.levels, *native_library.runnable_levels, native_library.build["compiler"]):
        assert text in shown
    assert re.search(r"^  file +(site-packages/)?prosma_ops/_native\S+$", shown, re.MULTILINE)


def test_it_says_what_a_missing_library_costs_and_how_to_get_it(python: Run) -> None:
    done = python(
        "import sys; sys.modules['prosma_ops._native'] = None\nfrom prosma_ops import doctor\nprint(doctor.text())"
    )
    assert done.returncode == 0, done.stderr
    for text in ("what it costs", "slower", "how to get it", "PROSMA_REQUIRE_NATIVE=1 pip install", "missing"):
        assert text in done.stdout


def test_it_works_without_torch(python: Run) -> None:
    done = python("import sys; sys.modules['torch'] = None\nfrom prosma_ops import doctor\nprint(doctor.text())")
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout


def test_it_works_where_a_variable_is_wrong(python: Run) -> None:
    done = python(["-m", "prosma_ops", "doctor"], PROSMA_CPU_LEVEL="v9", PROSMA_OPS_BACKEND="gpu")
    assert done.returncode == 0, done.stderr
    assert "v9" in done.stdout
    assert "gpu" in done.stdout


def test_it_names_no_user_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    home = "/home/jane.doe/projects"
    absent = native.Library(None, f"{home}/site-packages/prosma_ops/_native.so: undefined symbol: omp_get_num_threads")
    monkeypatch.setattr(native, "load", lambda: absent)
    shown = doctor.text()
    assert "undefined symbol" in shown
    assert "jane.doe" not in shown
    assert str(Path.home()) + "/" not in shown
    assert f"/{getpass.getuser()}/" not in shown
    assert platform.node() not in shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "/home/jane/env/lib/python3.11/site-packages/torch/lib/libc10.so: no",
            "site-packages/torch/lib/libc10.so: no",
        ),
        ("(/Users/jane/src/prosma_ops/_native.so)", "(prosma_ops/_native.so)"),
        ("cannot open '/opt/secret/libfoo.so.1'", "cannot open 'libfoo.so.1'"),
        ("-O3 -ffp-contract=fast and/or", "-O3 -ffp-contract=fast and/or"),
        ("GNU 12.2.0", "GNU 12.2.0"),
    ],
)
def test_paths_are_shortened(line: str, expected: str) -> None:
    assert doctor.anonymous(line) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("sse2", "below x86-64-v3"),
        ("sse2 avx2 fma bmi1 bmi2 f16c", "x86-64-v3"),
        ("sse2 avx2 fma bmi1 bmi2 f16c avx512f", "x86-64-v3"),
        ("avx2 fma bmi1 bmi2 f16c avx512f avx512bw avx512cd avx512dq avx512vl", "x86-64-v4"),
        ("", "portable"),
    ],
)
def test_the_level_of_a_processor(flags: str, expected: str) -> None:
    assert doctor.processor_level(flags.split()).startswith(expected)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "prosma_ops", "doctor"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")

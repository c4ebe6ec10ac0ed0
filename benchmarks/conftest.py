"""`pytest benchmarks`: collects one file an operator, runs its works in every setting, and keeps their records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import machine
from .harness import Results, Setting

FILE = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("prosma_ops benchmarks")
    group.addoption("--short", action="store_true", help="the most telling works, fewer rounds (or PROSMA_BENCH=short)")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    group.addoption("--threads", default="", help="thread counts, as in 2,1 (default: all that torch uses)")
    group.addoption("--results", type=Path, help="write the records to this file, for benchmarks.report")


def pytest_configure(config: pytest.Config) -> None:
    # The tests turn every warning into an error; here torch's and triton's own are only printed.
    config.addinivalue_line("filterwarnings", "default")
    config.stash[FILE] = Results(machine.record(config.getoption("--device")), config.getoption("--results"))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """An operator's name is its file's name here, as in every other room."""
    from .work import rooms

    if parent.session.isinitpath(file_path):
        return None  # pytest collects a file that is named to it by itself, and would measure everything twice
    if file_path.parent == machine.ROOT / "benchmarks" and file_path.suffix == ".py" and file_path.stem in rooms():
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def _settings(config: pytest.Config) -> list[Setting]:
    import torch

    short = config.getoption("--short") or os.environ.get("PROSMA_BENCH") == "short"
    device = config.getoption("--device")
    asked = config.getoption("--threads") if device == "cpu" else ""
    counts = [int(count) for count in asked.split(",")] if asked else [torch.get_num_threads()]
    return [Setting(device, threads, short, main=number == 0) for number, threads in enumerate(counts)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"work", "setting"} <= set(metafunc.fixturenames):
        pairs = [
            (work, setting)
            for work in metafunc.module.works(metafunc.config.getoption("--device"))
            for setting in _settings(metafunc.config)
            if setting.includes(work)
        ]
        names = [f"{work.key}, {setting.threads} threads" for work, setting in pairs]
        metafunc.parametrize(("work", "setting"), pairs, ids=names)


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    found = request.config.stash[FILE]
    found.operator = Path(request.path).stem
    yield found
    plugins = request.config.pluginmanager
    capture: Any = plugins.get_plugin("capturemanager")
    reporter: Any = plugins.get_plugin("terminalreporter")
    with capture.global_and_fixture_disabled():
        reporter.ensure_newline()
        reporter.write_line(found.last_line())

"""One thread and two give bitwise the same; repeated runs too; and other Python threads run while a kernel does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from prosma_ops import proximal_gate, soft_threshold
from prosma_ops.testing import parity
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.proximal_gate import example

# Large enough for the native library to start a second thread: 2^19 multiply-adds and more.
SIZES = [(2, 5, 67, 71), (1, 35, 61, 53), (1, 3, 13, 31, 37), (1, 1, 301, 257)]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(threads: int, size: tuple[int, ...], dtype: torch.dtype, layout: str) -> dict[str, Tensor]:
    torch.set_num_threads(threads)
    problem = example(size, dtype, layout, activation="tanh")
    return parity.evaluate(problem, problem.function)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_number_of_threads_changes_no_bit(level: str, size: tuple[int, ...], layout: str) -> None:
    one = results(1, size, torch.float32, layout)
    for threads in (2, 3, 2):
        for name, found in results(threads, size, torch.float32, layout).items():
            assert torch.equal(found, one[name]), f"{name} with {threads} threads"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_in_every_dtype(native_library: object, dtype: torch.dtype) -> None:
    with Implementation("cpu", native_library.runnable_levels[-1]).chosen():
        one, two = (results(threads, (2, 5, 67, 71), dtype, "contiguous") for threads in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_soft_threshold(level: str) -> None:
    x, threshold = torch.randn(3, 7, 301, 203), torch.rand(7).requires_grad_()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        y = soft_threshold(leaf, threshold)
        found.append([y.detach(), *torch.autograd.grad(y, (leaf, threshold), x)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_under_deterministic_algorithms(backend: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        found = [results(2, (1, 4, 33, 35), torch.float32, "contiguous") for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_another_thread_makes_progress_while_a_kernel_runs(native_library: object) -> None:
    """The interpreter's lock is released: a second thread counts on while one call lasts."""
    torch.set_num_threads(1)
    problem = example((2, 16, 512, 512), dilations=(1, 2, 3))
    ticks: list[float] = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    native = native_library
    spans = []
    with Implementation("cpu", native.runnable_levels[0]).chosen(), torch.no_grad():
        proximal_gate(**problem.inputs, **problem.settings)
        other = threading.Thread(target=count)
        other.start()
        try:
            for _ in range(5):
                start = time.perf_counter()
                proximal_gate(**problem.inputs, **problem.settings)
                spans.append((start, time.perf_counter()))
        finally:
            stop.set()
            other.join()
    during = max(sum(start < tick < end for tick in ticks) for start, end in spans)
    length = max(end - start for start, end in spans)
    assert length > 0.01, f"the call lasted {length:.4f} s, too short to tell"
    assert during >= 5, f"{during} ticks in a call of {length:.3f} s"


def test_two_python_threads_at_once(backend: str) -> None:
    """Calls from several threads share no scratch memory."""
    layouts = ("contiguous", "channels_last")
    problems = [example((1, 3, 41 + i, 37), layout=layout) for i in range(4) for layout in layouts]
    expected = [parity.evaluate(problem, problem.function) for problem in problems]
    wrong: list[str] = []

    def work(first: int) -> None:
        for number in range(60):
            index = (first + number) % len(problems)
            found = parity.evaluate(problems[index], problems[index].function)
            for name, value in found.items():
                if not torch.allclose(value, expected[index][name], rtol=1e-4, atol=1e-4):
                    wrong.append(name)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong

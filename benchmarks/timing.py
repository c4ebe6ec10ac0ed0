"""How one round of one contestant is timed.

On the CPU: the clock around the calls. On a GPU: events around a CUDA graph that runs the work once on each of several
copies of the inputs, together larger than the last-level cache, so that every run finds the cache cold and no launch
waits for Python. What cannot be captured is timed without a graph, and its record says so.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from prosma_ops.testing import Problem

from .work import Contestant, Work, device_of, runner

COLD_FACTOR = 3  # the rotated inputs together are this many times the cache
MOST_COPIES = 24


class CpuTimer:
    graph = False

    def __init__(self, work: Work, contestant: Contestant, problems: Sequence[Problem]):
        self.run = runner(problems[0], contestant)
        self.calls = work.calls
        self.trial = self.seconds()

    def seconds(self) -> float:
        run = self.run
        start = time.perf_counter()
        for _ in range(self.calls):
            run()
        return (time.perf_counter() - start) / self.calls


class GpuTimer:
    def __init__(self, work: Work, contestant: Contestant, problems: Sequence[Problem]):
        self.runs = [runner(problem, contestant) for problem in problems]
        self.runs[0]()
        self.host = work.calls > 1  # a call's cost on the host is asked for, not the kernel's
        self.calls = work.calls
        self.replay = None if self.host else self._capture()
        self.graph = self.replay is not None
        self.trial = self.seconds()

    def _capture(self) -> Callable[[], None] | None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for run in self.runs:
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for run in self.runs:
                    run()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return graph.replay

    def _work(self) -> None:
        if self.replay is not None:
            self.replay()
            return
        for run in self.runs:
            run()

    def seconds(self) -> float:
        if self.host:
            return self._seconds_on_host()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._work()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) * 1e-3 / len(self.runs)

    def _seconds_on_host(self) -> float:
        run = self.runs[0]
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(self.calls):
            run()
        taken = (time.perf_counter() - start) / self.calls
        torch.cuda.synchronize()
        return taken


Timer = CpuTimer | GpuTimer


def timer(work: Work, contestant: Contestant, problems: Sequence[Problem]) -> Timer:
    kind = CpuTimer if device_of(problems[0]).type == "cpu" else GpuTimer
    return kind(work, contestant, problems)


def rotated(work: Work, problem: Problem) -> list[Problem]:
    """The problem, and on a GPU as many copies of it as make the cache cold."""
    device = device_of(problem)
    if device.type == "cpu" or work.calls > 1:
        return [problem]
    tensors = [tensor for tensor in (*problem.inputs.values(), *problem.grads) if tensor is not None]
    bytes_of_one = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or (64 << 20)
    copies = min(MOST_COPIES, max(2, -(-COLD_FACTOR * cache // max(1, bytes_of_one))))

    def copy() -> Problem:
        inputs = {name: None if tensor is None else tensor.clone() for name, tensor in problem.inputs.items()}
        return dataclasses.replace(problem, inputs=inputs, grads=tuple(grad.clone() for grad in problem.grads))

    return [problem, *(copy() for _ in range(copies - 1))]

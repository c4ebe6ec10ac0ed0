"""mixed_logit_statistics and memory: any strides, every element written, the same bits whatever runs beside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prosma_ops.testing import Problem, compare, parity
from prosma_ops.testing.case import DTYPES
from prosma_ops.testing.layouts import LAYOUTS, channels_last
from prosma_ops.testing.logit_mixing import BIASES, example
from prosma_ops.testing.memory import guarded_memory
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.tolerance import scale

SHAPES = [((2, 3, 5, 7), ((2, 3), (5, 7))), ((1, 2, 4, 5, 6), ((2, 3, 2), (4, 5, 6)))]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("size", "levels"), SHAPES, ids=["2-D", "3-D"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_have_the_memory_format_of_their_level(
    implementation: Implementation, layout: str, size: tuple[int, ...], levels: tuple
) -> None:
    problem = example(size, levels, layout=layout)
    found = parity.evaluate(problem, problem.function)
    for name, tensor in problem.inputs.items():
        if name != "target":
            assert found[f"gradient of {name}"].stride() == torch.empty_like(tensor).stride(), name


def gradients(problem: Problem, grads: list[Tensor]) -> list[Tensor]:
    inputs = {name: tensor.detach().requires_grad_(name != "target") for name, tensor in problem.inputs.items()}
    found = problem.function(**inputs, **problem.settings)
    wanted = [tensor for tensor in inputs.values() if tensor.requires_grad]
    return list(torch.autograd.grad(found[:4], wanted, grads))


def awkward(table: tuple[int, ...]) -> dict[str, Callable[[], Tensor]]:
    """Gradients as they arrive: from a sum (stride 0 everywhere), from slices, crops, transposes."""
    larger = [2 * n for n in table]
    return {
        "of a sum": lambda: torch.tensor(0.5).expand(table),
        "of a sum over classes": lambda: torch.randn(*table[:-1], 1).expand(table),
        "of a sum over maps": lambda: torch.randn(*table[:-2], 1, table[-1]).expand(table),
        "strided in every dimension": lambda: torch.randn(larger)[tuple(slice(None, None, 2) for _ in table)],
        "cropped": lambda: torch.randn(larger)[tuple(slice(n - 1, 2 * n - 1) for n in table)],
        "reversed dimensions": lambda: torch.randn(table[::-1]).permute(*reversed(range(len(table)))),
    }


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", awkward((1, 1)))
def test_any_incoming_gradient(implementation: Implementation, name: str, per_sample: bool) -> None:
    problem = example((2, 3, 5, 7), ((2, 3), (5, 7)), per_sample=per_sample)
    grads = [awkward(tuple(grad.shape))[name]() for grad in problem.grads]
    expected = gradients(problem, [grad.contiguous() for grad in grads])
    for found, plain in zip(gradients(problem, grads), expected, strict=True):
        torch.testing.assert_close(found, plain)


def test_any_layout_gives_the_same_numbers(implementation: Implementation) -> None:
    for size, levels in SHAPES:
        plain = example(size, levels, labels=torch.uint8)
        expected = parity.evaluate(plain, plain.function)
        for layout in LAYOUTS:
            if layout == "expanded":
                continue
            problem = example(size, levels, layout=layout, labels=torch.uint8)
            for name, values in parity.evaluate(problem, problem.function).items():
                torch.testing.assert_close(values, expected[name], msg=f"{layout}, {name}")


def test_channels_last_by_name_and_overlapping_inputs(implementation: Implementation) -> None:
    """A sliding window, whose rows share memory; one tensor in two levels; a target that is a transposed view."""
    window = torch.randn(64).as_strided((1, 2, 6, 8), (0, 3, 5, 1))
    target = torch.randint(0, 2, (1, 8, 6)).transpose(1, 2)
    problem = example((1, 2, 6, 8), ((6, 8), (6, 8)), operators=("multiply", "add"))

    def sums(level: Tensor, other: Tensor, labels: Tensor) -> Tensor:
        inputs: dict[str, Any] = dict(problem.inputs) | {"level0": level, "level1": other, "target": labels}
        return problem.function(**inputs, **problem.settings).cross_entropy

    plain = sums(window.contiguous(), window.clone(), target.contiguous())
    torch.testing.assert_close(sums(window, window, target), plain)
    torch.testing.assert_close(sums(channels_last(window), window, target), plain)
    leaf = window.contiguous().requires_grad_()
    twice = [window.contiguous().requires_grad_() for _ in range(2)]
    sums(leaf, leaf, target).sum().backward()
    sums(*twice, target).sum().backward()
    torch.testing.assert_close(leaf.grad, twice[0].grad + twice[1].grad)


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed"])
def test_every_element_is_written_and_nothing_beside(implementation: Implementation, layout: str, shift: int) -> None:
    """Results as views inside a larger buffer, filled with NaN, sentinels around them; `shift` spoils the alignment."""
    for dtype in DTYPES:
        for size, levels in (((2, 3, 5, 33), ((2, 9), (5, 33))), ((1, 17, 2, 3, 5), ((1, 2, 2), (2, 3, 5)))):
            problem = example(size, levels, dtype, layout, per_sample=len(size) == 4)
            with guarded_memory(shift) as guard:
                found = parity.evaluate(problem, problem.function)
            assert guard.buffers
            assert guard.damaged() == 0
            assert all(tensor.isfinite().all() for tensor in found.values())


def test_inputs_are_left_alone(implementation: Implementation) -> None:
    problem = example((2, 3, 7, 18), ((3, 5), (7, 18)), layout="sliced")
    wholes = {
        name: torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).clone() for name, t in problem.inputs.items()
    }
    parity.evaluate(problem, problem.function)
    for name, tensor in problem.inputs.items():
        after = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        assert torch.equal(after.nan_to_num(7.0), wholes[name].nan_to_num(7.0)), name


# Threads. Large enough for the native library to start a second one.

LARGE = [
    ((2, 4, 96, 80), ((6, 5), (24, 20), (96, 80)), {"domain": "probabilities"}),
    ((3, 9, 64, 64), ((8, 8), (64, 64)), {"per_sample": True}),
    ((1, 3, 24, 28, 20), ((6, 7, 5), (24, 28, 20)), {"activation": "sigmoid", "regions": True}),
    ((1, 2, 3, 2001), ((1, 501), (3, 1000)), {"operators": ("attention",)}),
]


@pytest.mark.parametrize(("size", "levels", "changes"), LARGE, ids=lambda value: str(value)[:24])
def test_the_number_of_threads_changes_no_bit(
    level: str, size: tuple[int, ...], levels: tuple, changes: dict[str, Any]
) -> None:
    problem = example(size, levels, **changes)
    torch.set_num_threads(1)
    one = parity.evaluate(problem, problem.function)
    for threads in (2, 3, 2):
        torch.set_num_threads(threads)
        for name, found in parity.evaluate(problem, problem.function).items():
            assert torch.equal(found, one[name]), f"{name} with {threads} threads"


def test_the_same_bits_in_every_run(backend: str) -> None:
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    try:
        problem = example((2, 3, 33, 35), ((9, 5), (33, 35)))
        runs = [parity.evaluate(problem, problem.function) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(run[name], runs[0][name]) for run in runs for name in runs[0])


def test_two_python_threads_at_once(backend: str) -> None:
    """Calls from several threads share no scratch memory."""
    problems = [example((1, 3, 21 + i, 17), ((4, 4), (21 + i, 17)), per_sample=i == 1) for i in range(3)]
    expected = [parity.evaluate(problem, problem.function) for problem in problems]
    wrong: list[str] = []

    def work(first: int) -> None:
        for number in range(20):
            index = (first + number) % len(problems)
            for name, values in parity.evaluate(problems[index], problems[index].function).items():
                if not torch.allclose(values, expected[index][name], rtol=1e-4, atol=1e-4):
                    wrong.append(name)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# Random shapes.

RANDOM = settings(
    deadline=None,
    max_examples=int(os.environ.get("PROSMA_EXAMPLES", "40")),
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64)


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Any]:
    spatial = draw(st.integers(2, 3))
    largest = 34 if spatial == 2 else 9
    activation = draw(st.sampled_from(["softmax", "sigmoid"]))
    classes = draw(st.sampled_from([2, 3, 4, 5, 8, 9, 16, 21]))
    classes = 1 if activation == "sigmoid" and draw(st.booleans()) else classes
    count = draw(st.integers(1, 4 if classes < 10 else 2))
    extent = st.integers(1, largest)
    size = (draw(st.integers(1, 3)), classes, *(draw(extent) for _ in range(spatial)))
    while torch.Size(size).numel() > 6000:
        size = (*size[:2], *(max(1, n // 2) for n in size[2:]))
    operators = draw(st.permutations(["add", "multiply", "concat", "attention"]))[: draw(st.integers(0, 4))]
    return {
        "size": size,
        "levels": [size[2:] if draw(st.booleans()) else tuple(draw(extent) for _ in size[2:]) for _ in range(count)],
        "operators": tuple(operators),
        "activation": activation,
        "domain": draw(st.sampled_from(["logits", "probabilities"])),
        "regions": activation == "sigmoid" and classes > 1 and draw(st.booleans()),
        "ignore_index": draw(st.sampled_from([None, 0, 99])),
        "labels": draw(st.sampled_from(LABELS)),
        "align_corners": draw(st.booleans()),
        "per_sample": draw(st.booleans()),
        "log_probability": activation == "softmax" and draw(st.booleans()),
        "missing": tuple(name for name in BIASES if draw(st.booleans())),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "dtype": draw(st.sampled_from(DTYPES)),
    }


@given(mixture=mixtures(), shift=st.integers(0, 3))
@RANDOM
def test_random_mixtures(implementation: Implementation, mixture: dict[str, Any], shift: int) -> None:
    problem = example(**mixture)
    expected = parity.expectation(problem)
    with guarded_memory(shift) as guard:
        found = parity.evaluate(problem, problem.function)
    assert guard.damaged() == 0
    for name, reference in expected.reference.items():
        if reference is None:  # one level and operators: there is no mixed map, and weights have no entries
            assert found[name].numel() == 0, name
            continue
        verdict = compare(found[name], reference, expected.eager(name), parity.expected_dtype(problem, name))
        assert verdict.ok or verdict.error <= beyond_rounding(problem, reference), f"{name}: {verdict.reason}"


def beyond_rounding(problem: Problem, reference: Tensor) -> float:
    """Random numbers may cancel in a single sum, which then has no scale for the tolerance rule. Half of the digits is
    far more than rounding can take, and far less than a wrong address or a wrong pixel does."""
    digits = torch.finfo(torch.float64 if problem.dtype is torch.float64 else torch.float32).eps ** 0.5
    return digits * max(1.0, scale(reference)) if reference.is_floating_point() else 0.0

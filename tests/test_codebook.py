"""nearest_code and code_statistics: what they are, their edges, their gradients, and how torch may call them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import prosma_ops
from prosma_ops import code_statistics, nearest_code
from prosma_ops.reference import codebook as reference
from prosma_ops.testing import parity
from prosma_ops.testing.case import DTYPES
from prosma_ops.testing.codebook import costs, example, statistics_example
from prosma_ops.testing.layouts import LAYOUTS
from prosma_ops.testing.memory import guarded_memory
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.tolerance import compare

METRICS = ("euclidean", "cosine")
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
ops = torch.ops.prosma_ops


@pytest.fixture(autouse=True)
def _nothing_noted() -> Iterator[None]:
    """Every token here is finite, unless a test says otherwise and asks itself."""
    yield
    prosma_ops.check_errors()


def within_rounding(tokens: Tensor, codes: Tensor, index: Tensor, metric: str) -> None:
    """The float64 cost of the code chosen exceeds the least by 8 units of rounding at most, at the problem's scale.

    That is the largest squared distance of the token from a code (the longest product under "cosine") and, since
    float32 cannot hold more, the rounding of the token and the codes themselves where they were given in float64.
    """
    exact, rows = tokens.double().reshape(-1, tokens.shape[-1]), codes.double()
    found = costs(exact, rows, metric)
    chosen = found.gather(1, index.reshape(-1, 1)).squeeze(1)
    scale = found.amax(dim=1) if metric == "euclidean" else exact.norm(dim=1)
    eps = torch.finfo(torch.float64 if tokens.dtype is torch.float64 else torch.float32).eps
    assert (chosen - found.amin(dim=1) <= 8 * eps * scale).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("origin", [0.0, 3.0, 1e4])
def test_the_code_chosen_is_nearest_to_within_rounding(
    implementation: Implementation, metric: str, origin: float
) -> None:
    """Also of codes 10^4 from the origin and 1 apart, where |c|^2 / 2 has an error of 6 in float32."""
    for tokens, codes, dimensions in ((301, 97, 33), (64, 500, 8), (1, 40, 257), (130, 1, 5)):
        codebook = torch.randn(codes, dimensions) + origin
        drawn = torch.randn(tokens, dimensions) + origin
        quantized, index = nearest_code(drawn, codebook, metric=metric)
        within_rounding(drawn, codebook, index, metric)
        assert torch.equal(quantized, codebook[index])


@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lowest_index(implementation: Implementation, metric: str) -> None:
    """Equal codes, wherever they stand in the tiles of the kernels."""
    for dtype in DTYPES:
        rows = torch.eye(5, dtype=dtype)
        codebook = torch.cat([rows, rows, rows.flip(0), rows])[:, :]
        tokens = 3 * rows.repeat(11, 1)
        assert torch.equal(nearest_code(tokens, codebook, metric=metric).index, torch.arange(5).repeat(11))
        zero = nearest_code(torch.zeros(9, 5, dtype=dtype), codebook, metric=metric).index
        assert not zero.any()


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_tie_though_nothing_is_exact(level: str, metric: str) -> None:
    """Every code's products are formed in the same order, so equal codes have equal scores; in float64 lengths too."""
    kinds = torch.randn(23, 19).bfloat16().float()  # so that three times them is exact
    codebook = torch.cat([kinds, (3 if metric == "cosine" else 1) * kinds, kinds])
    index = nearest_code(torch.randn(500, 19), codebook, metric=metric).index
    assert (index < 23).all()


def test_a_zero_code_counts_as_zero_under_cosine(implementation: Implementation) -> None:
    codebook = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [0.0, -2.0]])
    tokens = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -5.0], [0.0, 0.0]])
    assert nearest_code(tokens, codebook, metric="cosine").index.tolist() == [1, 0, 2, 0]


def test_lengths_do_not_count_under_cosine(implementation: Implementation) -> None:
    codes, tokens = torch.randn(31, 6), torch.randn(200, 6)
    plain = nearest_code(tokens, codes, metric="cosine").index
    scaled = codes * torch.logspace(-30, 30, 31).unsqueeze(1)
    found = nearest_code(tokens * torch.logspace(-3, 3, 200).unsqueeze(1), scaled, metric="cosine").index
    assert (plain == found).float().mean() > 0.99


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_tokens_that_are_not_finite_get_index_zero_and_are_reported(
    implementation: Implementation, metric: str, value: float
) -> None:
    tokens, codebook = torch.randn(70, 9), torch.randn(14, 9)
    clean = nearest_code(tokens, codebook, metric=metric).index
    prosma_ops.check_errors()
    tokens[3, 2] = tokens[69, 8] = value
    quantized, index = nearest_code(tokens, codebook, metric=metric)
    assert index[3] == index[69] == 0
    assert torch.equal(quantized, codebook[index])
    rest = [n for n in range(70) if n not in (3, 69)]
    assert torch.equal(index[rest], clean[rest])
    with pytest.raises(ValueError, match=r"tokens that hold NaN or infinity.*index is 0"):
        prosma_ops.check_errors()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_codes_that_are_not_finite_are_never_chosen(implementation: Implementation, metric: str, value: float) -> None:
    tokens, codebook = torch.randn(200, 5), torch.randn(16, 5)
    codebook[0, 3] = codebook[11, 0] = value
    index = nearest_code(tokens, codebook, metric=metric).index
    kept = [k for k in range(16) if k not in (0, 11)]
    expected = nearest_code(tokens, codebook[kept], metric=metric).index
    assert torch.equal(index, torch.tensor(kept)[expected])


def test_a_codebook_of_nan(implementation: Implementation) -> None:
    assert not nearest_code(torch.randn(3, 2), torch.full((4, 2), math.nan)).index.any()
    if implementation.backend == "cpu":
        with pytest.raises(ValueError, match="index is 0"):
            prosma_ops.check_errors()


def test_huge_numbers_do_not_win_by_overflow(implementation: Implementation) -> None:
    codebook = torch.tensor([[3e38, 3e38], [1.0, 1.0], [3e38, -3e38]])
    assert nearest_code(torch.tensor([[2.0, 1e5]]), codebook).index.tolist() == [1]


@pytest.mark.parametrize("outlier", [-1e6, 1e6, 1e20])
def test_one_code_far_away_costs_the_others_nothing(implementation: Implementation, outlier: float) -> None:
    tokens, codebook = torch.randn(300, 8), torch.randn(60, 8)
    expected = nearest_code(tokens, codebook).index
    assert torch.equal(nearest_code(tokens, torch.cat([codebook, torch.full((1, 8), outlier)])).index, expected)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (2, 0, 5, 4)], ids=str)
def test_an_empty_batch(implementation: Implementation, shape: tuple[int, ...]) -> None:
    codebook = torch.randn(6, 4, requires_grad=True)
    quantized, index = nearest_code(torch.zeros(shape), codebook)
    quantized.sum().backward()
    assert quantized.shape == shape
    assert index.shape == shape[:-1]
    assert not codebook.grad.any()
    count, total = code_statistics(torch.zeros(shape), index, 6)
    assert not count.any()
    assert total.shape == (6, 4)
    assert not total.any()


def test_one_token_without_a_batch(implementation: Implementation) -> None:
    quantized, index = nearest_code(torch.tensor([0.9, 0.2]), torch.eye(2))
    assert (quantized.tolist(), index.tolist()) == ([1.0, 0.0], 0)
    count, total = code_statistics(torch.tensor([0.9, 0.5]), index, 3)
    assert (count.tolist(), total[0].tolist()) == ([1, 0, 0], pytest.approx([0.9, 0.5]))


@pytest.mark.parametrize("dimensions", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 255, 257])
def test_every_size_around_a_vector(implementation: Implementation, dimensions: int) -> None:
    for tokens, codes in ((1, 1), (15, 5), (33, 13), (65, 25)):
        problem = example((tokens, dimensions), codes)
        expected = parity.expectation(problem)
        for name, found in parity.evaluate(problem, problem.function).items():
            verdict = compare(found, expected.reference[name], expected.eager(name))
            assert verdict.ok, f"{name}: {verdict.reason}"


def test_codes_that_are_packed_in_several_parts(level: str) -> None:
    """More than 4 MiB of packed codes pass part by part, and the running least score goes on."""
    tokens, codes = torch.randn(40, 1024), torch.randn(1500, 1024)
    index = nearest_code(tokens, codes).index
    within_rounding(tokens, codes, index, "euclidean")
    assert (index > 1100).any()


def test_images_with_their_channels_first_need_no_copy(level: str) -> None:
    """(B, D, H, W) seen as (B, H, W, D): the same numbers and the same bits."""
    image = torch.randn(2, 37, 9, 11)
    tokens, codebook = image.movedim(1, -1), torch.randn(50, 37)
    index = nearest_code(tokens, codebook).index
    assert torch.equal(index, nearest_code(tokens.contiguous(), codebook).index)
    found, plain = code_statistics(tokens, index, 50), code_statistics(tokens.contiguous(), index, 50)
    assert torch.equal(found.sum, plain.sum)
    assert torch.equal(found.count, plain.count)


def test_tokens_of_many_strided_dimensions(implementation: Implementation) -> None:
    large = torch.randint(-3, 4, (4, 4, 4, 4, 4, 6, 5)).float()
    tokens, codebook = large[::2, ::2, ::2, ::2, ::2, ::2, ::2], torch.randint(-3, 4, (7, 3)).float()
    found = nearest_code(tokens, codebook)
    assert torch.equal(found.index, nearest_code(tokens.contiguous(), codebook).index)


def test_statistics_add_in_double(level: str) -> None:
    """A large number first: in float32 each of the small ones that follow would be lost."""
    tokens = torch.full((10001, 20), 2.0**-8)
    tokens[0] = 2.0**17
    index = torch.zeros(10001, dtype=torch.int64)
    assert (code_statistics(tokens, index, 2).sum[0] == 2.0**17 + 10000 * 2.0**-8).all()


def test_statistics_of_int32_indices(implementation: Implementation) -> None:
    problem = statistics_example((50, 3), 7)
    tokens, index = problem.inputs["tokens"], problem.inputs["index"]
    for found, expected in zip(code_statistics(tokens, index.int(), 7), code_statistics(tokens, index, 7), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("wrong", [-2, 7, 1 << 40, -(1 << 62)])
def test_an_index_out_of_range_raises(implementation: Implementation, wrong: int) -> None:
    index = torch.tensor([0, 6, -1, wrong])
    with pytest.raises(ValueError, match="index holds a value that is neither -1 nor one of 0 to codes - 1"):
        code_statistics(torch.randn(4, 3), index, 7)
    with pytest.raises(ValueError, match="index holds a value"):
        ops.nearest_code_backward(torch.randn(4, 3), index, 7, torch.float32)


# Gradients.


@pytest.mark.parametrize("metric", METRICS)
def test_derivatives_of_the_codebook(implementation: Implementation, metric: str) -> None:
    tokens = torch.randn(2, 7, 3, dtype=torch.float64)
    codebook = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def quantized(codes: Tensor) -> Tensor:
        return nearest_code(tokens, codes, metric=metric).quantized

    assert gradcheck(quantized, (codebook,))
    assert gradgradcheck(quantized, (codebook,))


def test_derivatives_of_the_statistics(implementation: Implementation) -> None:
    tokens = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 2, -1, 2, 1], [3, 3, -1, 0, 2]])
    assert gradcheck(lambda t: code_statistics(t, index, 5).sum, (tokens,))
    assert gradgradcheck(lambda t: code_statistics(t, index, 5).sum.square(), (tokens,))


def test_tokens_have_no_gradient(implementation: Implementation) -> None:
    tokens = torch.randn(5, 3, requires_grad=True)
    assert not nearest_code(tokens, torch.randn(4, 3)).quantized.requires_grad
    quantized, index = nearest_code(tokens, torch.randn(4, 3, requires_grad=True))
    assert not index.requires_grad
    quantized.sum().backward()
    assert tokens.grad is None


def test_a_codebook_changed_in_place_before_the_backward(implementation: Implementation) -> None:
    codebook = torch.randn(4, 3, requires_grad=True)
    y = nearest_code(torch.randn(9, 3), codebook).quantized
    with torch.no_grad():
        codebook.mul_(2)
    y.sum().backward()
    assert codebook.grad.sum() == 27


def test_any_incoming_gradient(implementation: Implementation) -> None:
    tokens, codes = torch.randn(2, 6, 5), torch.randn(4, 5)

    def gradient(grad: Tensor) -> Tensor:
        codebook = codes.clone().requires_grad_()
        nearest_code(tokens, codebook).quantized.backward(grad)
        return codebook.grad

    larger = torch.randn(4, 12, 10)
    for grad in (
        torch.tensor(0.5).expand(2, 6, 5),
        torch.randn(5).expand(2, 6, 5),
        torch.randn(2, 1, 1).expand(2, 6, 5),
        larger[::2, ::2, ::2],
        torch.randn(5, 6, 2).permute(2, 1, 0),
    ):
        torch.testing.assert_close(gradient(grad), gradient(grad.contiguous()))


# How torch calls them.


@pytest.mark.parametrize("metric", METRICS)
def test_opcheck_of_nearest_code(backend: str, metric: str, dtype: torch.dtype) -> None:
    for tokens in (torch.randn(2, 5, 3), torch.randn(2, 3, 5).mT):
        arguments = (tokens.to(dtype), torch.randn(4, 3).to(dtype).requires_grad_(), metric)
        assert set(opcheck(ops.nearest_code.default, arguments, test_utils=UTILITIES).values()) == {"SUCCESS"}


def test_opcheck_of_its_backward(backend: str, dtype: torch.dtype) -> None:
    arguments = (torch.randn(7, 3).to(dtype).requires_grad_(), torch.randint(4, (7,)), 4, dtype)
    assert set(opcheck(ops.nearest_code_backward.default, arguments, test_utils=UTILITIES).values()) == {"SUCCESS"}


def test_opcheck_of_code_statistics(backend: str, dtype: torch.dtype) -> None:
    arguments = (torch.randn(2, 7, 3).to(dtype).requires_grad_(), torch.randint(-1, 4, (2, 7)), 4)
    assert set(opcheck(ops.code_statistics.default, arguments, test_utils=UTILITIES).values()) == {"SUCCESS"}


def step(tokens: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both operators amid arithmetic that a compiler may fuse."""
    quantized, index = nearest_code(tokens * 2, codebook + 1)
    count, total = code_statistics(tokens, index, codebook.shape[0])
    return (quantized - tokens).square().sum(), index, count, total


def test_compiled_whole_and_not_again_for_another_batch(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for number, batch in enumerate((4, 9, 6)):
        tokens, codebook = torch.randn(batch, 5, 3), torch.randn(7, 3, requires_grad=True)
        expected = step(tokens, codebook)
        with torch.compiler.set_stance("default" if number == 0 else "fail_on_recompile"):
            found = compiled(tokens, codebook)
            (gradient,) = torch.autograd.grad(found[0], codebook)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected[0], codebook)[0])


def test_exported_as_the_reference(backend: str) -> None:
    class Both(torch.nn.Module):
        def forward(self, tokens: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return step(tokens, codebook)

    arguments = (torch.randn(4, 5, 3), torch.randn(7, 3))
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(Both(), arguments, dynamic_shapes=(batch, None))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "prosma_ops" in target]
    other = torch.randn(9, 5, 3)
    torch.testing.assert_close(program.module()(other, arguments[1]), step(other, arguments[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(backend: str, dtype: torch.dtype) -> None:
    """Half tokens beside a float32 codebook, as a layer under autocast makes them; no number changes."""
    problem = example((3, 8, 6), 11, dtype, codebook=torch.float32, drawn="normal")
    plain = parity.evaluate(problem, problem.function)
    with torch.autocast("cpu", dtype=dtype):
        found = parity.evaluate(problem, problem.function)
    assert found["quantized"].dtype is dtype
    assert found["gradient of codebook"].dtype is torch.float32
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_tensor_subclasses_are_unwrapped(backend: str) -> None:
    class Scan(Tensor):
        pass

    tokens, codebook = torch.randn(5, 3), torch.randn(4, 3)
    found = nearest_code(tokens.as_subclass(Scan), codebook.as_subclass(Scan))
    assert type(found.quantized) is Tensor
    assert torch.equal(found.index, nearest_code(tokens, codebook).index)
    assert type(code_statistics(tokens.as_subclass(Scan), found.index, 4).sum) is Tensor


def test_monai_metatensor(backend: str) -> None:
    data = pytest.importorskip("monai.data", reason="MONAI is not installed")
    tokens, codebook = torch.randn(5, 3), torch.randn(4, 3)
    found = nearest_code(data.MetaTensor(tokens), codebook)
    assert torch.equal(found.quantized, nearest_code(tokens, codebook).quantized)


# Threads and memory.


def test_the_number_of_threads_changes_no_bit(level: str) -> None:
    tokens = torch.randn(3, 211, 65)
    codebook = torch.randn(133, 65, requires_grad=True)
    grad = torch.randn_like(tokens)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        quantized, index = nearest_code(tokens, codebook)
        (gradient,) = torch.autograd.grad(quantized, codebook, grad)
        results.append([quantized, index, gradient, *code_statistics(tokens.mT.contiguous().mT, index, 133)])
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_deterministic_algorithms_are_no_hindrance(backend: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        found = [parity.evaluate(p, p.function) for p in (example((40, 3), 9), example((40, 3), 9))]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux tells the peak of memory")
def test_extra_memory_is_below_16_megabytes(python: object, native_library: object) -> None:
    """12,544 tokens, 1,024 codes, D 256: beside the results themselves, where the matrix of scores alone has 51 MB."""
    code = """
        import torch
        import prosma_ops

        torch.set_num_threads(2)
        tokens, codebook = torch.randn(12544, 256), torch.randn(1024, 256)
        prosma_ops.nearest_code(tokens[:64], codebook[:64])

        def status(field):
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))

        open("/proc/self/clear_refs", "w").write("5")
        before = status("VmRSS")
        quantized, index = prosma_ops.nearest_code(tokens, codebook)
        print(status("VmHWM") - before - (quantized.numel() * 4 + index.numel() * 8) / 2**20)
    """
    done = python(code)  # type: ignore[operator]
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_every_element_is_written_and_nothing_beside(implementation: Implementation, shift: int) -> None:
    for dtype in DTYPES:
        for problem in (example((3, 5, 7, 17), 13, dtype), statistics_example((67, 33), 9, dtype)):
            with guarded_memory(shift) as guard:
                found = parity.evaluate(problem, problem.function)
            assert guard.buffers or implementation.backend == "reference"
            assert guard.damaged() == 0
            assert all(tensor.double().isfinite().all() and (tensor > -(2**60)).all() for tensor in found.values())


RANDOM = settings(
    deadline=None,
    max_examples=int(os.environ.get("PROSMA_EXAMPLES", "60")),
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@given(
    leading=st.lists(st.integers(1, 9), min_size=0, max_size=4),
    dimensions=st.integers(1, 70),
    codes=st.integers(1, 90),
    drawn=st.sampled_from([("euclidean", "grid"), ("cosine", "axes")]),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    shift=st.integers(0, 3),
)
@RANDOM
def test_random_problems(
    implementation: Implementation,
    leading: list[int],
    dimensions: int,
    codes: int,
    drawn: tuple[str, str],
    layout: str,
    dtype: torch.dtype,
    shift: int,
) -> None:
    size = (*leading, dimensions)
    if not leading and layout == "expanded":
        layout = "contiguous"
    metric, how = drawn
    for problem in (
        example(size, codes, dtype, layout, metric=metric, drawn=how),
        statistics_example(size, codes, dtype, layout),
    ):
        expected = parity.expectation(problem)
        with guarded_memory(shift) as guard:
            found = parity.evaluate(problem, problem.function)
        assert guard.damaged() == 0
        for name, exact in expected.reference.items():
            verdict = compare(found[name], exact, expected.eager(name), parity.expected_dtype(problem, name))
            assert verdict.ok, f"{name}: {verdict.reason}"


def test_the_written_gradient_is_that_of_autograd() -> None:
    problem = example((40, 3), 9, torch.float64)
    found = parity.evaluate(problem, problem.definition)
    index = found["index"]
    written = reference.nearest_code_backward(problem.grads[0], index, 9, torch.float64)
    torch.testing.assert_close(written, found["gradient of codebook"])


# What others compute.


@pytest.mark.parametrize("metric", METRICS)
def test_the_assignment_is_that_of_vector_quantize_pytorch(implementation: Implementation, metric: str) -> None:
    """Where theirs differs, the two codes are equally near to within rounding, which theirs does worse on."""
    package = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
    tokens, codes = torch.randn(2, 300, 24), torch.randn(101, 24)
    if metric == "cosine":
        codes = torch.nn.functional.normalize(codes, dim=1)
    theirs = package.VectorQuantize(dim=24, codebook_size=101, use_cosine_sim=metric == "cosine").eval()
    theirs._codebook.embed.data.copy_(codes.unsqueeze(0))
    theirs._codebook.initted.data.fill_(True)
    with torch.no_grad():
        quantized, expected, _ = theirs(tokens)
    found = nearest_code(tokens, codes, metric=metric)
    assert (found.index == expected).float().mean() > 0.995
    within_rounding(tokens, codes, expected, metric)
    same = found.index == expected
    torch.testing.assert_close(found.quantized[same], quantized[same])


# Bad input.

TOKENS, CODES, INDEX = torch.randn(6, 3), torch.randn(4, 3), torch.zeros(6, dtype=torch.int64)
META = torch.device("meta")
BAD = {
    "tokens of a list": (([[1.0]], CODES), {}, TypeError, "tokens is a list"),
    "tokens of integers": ((TOKENS.long(), CODES), {}, TypeError, "tokens is torch.int64"),
    "a number for tokens": ((torch.tensor(1.0), CODES), {}, ValueError, "tokens has 0 dimensions"),
    "tokens without numbers": ((torch.zeros(6, 0), torch.zeros(4, 0)), {}, ValueError, "D >= 1"),
    "sparse tokens": ((TOKENS.to_sparse(), CODES), {}, TypeError, "tokens has layout"),
    "codebook of an array": ((TOKENS, CODES.numpy()), {}, TypeError, "codebook is a ndarray"),
    "an empty codebook": ((TOKENS, torch.zeros(0, 3)), {}, ValueError, "codebook has 0 codes; it must have 1 or more"),
    "a codebook of 3 dimensions": ((TOKENS, CODES[None]), {}, ValueError, "codebook has 3 dimensions"),
    "D that disagrees": ((TOKENS, torch.randn(4, 2)), {}, ValueError, "codebook has shape (4, 2); it must be (K, D)"),
    "codebook of float64": ((TOKENS, CODES.double()), {}, TypeError, "codebook is torch.float64 beside a tokens"),
    "codebook of half": ((TOKENS, CODES.half()), {}, TypeError, "codebook is torch.float16"),
    "codebook elsewhere": ((TOKENS, CODES.to(META)), {}, ValueError, "codebook is on meta"),
    "an unknown metric": ((TOKENS, CODES), {"metric": "dot"}, ValueError, "'euclidean', 'cosine'"),
}


@pytest.mark.parametrize(("arguments", "settings", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(backend: str, arguments: tuple, settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        nearest_code(*arguments, **settings)
    assert message in str(caught.value)


BAD_STATISTICS = {
    "tokens of integers": ((TOKENS.long(), INDEX, 4), TypeError, "tokens is torch.int64"),
    "index of a list": ((TOKENS, [0] * 6, 4), TypeError, "index is a list"),
    "index of floats": ((TOKENS, INDEX.float(), 4), TypeError, "index is torch.float32"),
    "index of int16": ((TOKENS, INDEX.short(), 4), TypeError, "int64 or int32"),
    "index of another length": ((TOKENS, INDEX[:5], 4), ValueError, "index has shape (5,)"),
    "index of another rank": ((TOKENS, INDEX[:, None], 4), ValueError, "index has shape (6, 1)"),
    "index elsewhere": ((TOKENS, INDEX.to(META), 4), ValueError, "index is on meta"),
    "no codes": ((TOKENS, INDEX, 0), ValueError, "codes is 0"),
    "fractional codes": ((TOKENS, INDEX, 4.0), TypeError, "codes is 4.0"),
    "codes of a truth value": ((TOKENS, INDEX, True), TypeError, "codes is True"),
    "too many codes": ((TOKENS, INDEX, 1 << 40), ValueError, "below 2^31"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_STATISTICS.values(), ids=BAD_STATISTICS)
def test_bad_input_of_statistics(backend: str, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        code_statistics(*arguments)
    assert message in str(caught.value)

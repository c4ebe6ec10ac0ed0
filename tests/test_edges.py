"""The edges of the domain: empty, one pixel, far dilations, NaN and infinity, zero and negative thresholds."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from prosma_ops import proximal_gate, soft_threshold
from prosma_ops.reference import proximal_gate as reference
from prosma_ops.testing import compare, parity
from prosma_ops.testing.parity import Implementation
from prosma_ops.testing.proximal_gate import example


def agree(size: tuple[int, ...], layout: str = "contiguous", **changes: object) -> None:
    problem = example(size, layout=layout, **changes)
    expected = parity.expectation(problem)
    for name, found in parity.evaluate(problem, problem.function).items():
        verdict = compare(found, expected.reference[name], expected.eager(name))
        assert verdict.ok, f"{name}: {verdict.reason}"


@pytest.mark.parametrize("size", [(0, 3, 5, 7), (0, 1, 1, 1), (0, 3, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_elements(implementation: Implementation, size: tuple[int, ...], layout: str) -> None:
    """An empty batch: an empty result, and gradients of parameters that are zero."""
    inputs = {
        "field": torch.zeros(size),
        "weight": torch.randn(2, size[1], *(3,) * (len(size) - 2)),
        "threshold": torch.rand(size[1]),
        "skip": torch.zeros(size),
        "channel_gate": torch.zeros(size[:2]),
        "bias": torch.zeros(size[1]),
    }
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    y = proximal_gate(**inputs, dilations=(1, 2))
    y.sum().backward()
    assert y.shape == size
    assert all(tensor.grad.shape == tensor.shape and not tensor.grad.any() for tensor in inputs.values())


@pytest.mark.parametrize("size", [(0, 3), (2, 0, 4), (2, 3, 0), (0, 3, 4, 5)], ids=str)
def test_no_elements_to_shrink(implementation: Implementation, size: tuple[int, ...]) -> None:
    x, threshold = torch.zeros(size, requires_grad=True), torch.rand(size[1]).requires_grad_()
    soft_threshold(x, threshold).sum().backward()
    assert x.grad.shape == size
    assert not threshold.grad.any()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "size", [(2, 3, 1, 1), (1, 1, 1, 1), (2, 17, 1, 1), (2, 3, 1, 1, 1), (1, 2, 1, 9), (1, 2, 9, 1)], ids=str
)
def test_one_pixel_and_one_line(implementation: Implementation, size: tuple[int, ...], layout: str) -> None:
    agree(size, layout, drawn="exact")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dilations", [(1, 2, 3), (4, 5, 6), (7,), (1, 100), (1 << 20, 1), (1 << 20,)], ids=str)
@pytest.mark.parametrize("size", [(2, 3, 4, 3), (1, 5, 3, 4, 2)], ids=str)
def test_dilations_beyond_the_image(
    implementation: Implementation, size: tuple[int, ...], dilations: tuple[int, ...], layout: str
) -> None:
    agree(size, layout, dilations=dilations, drawn="exact")


@pytest.mark.parametrize(
    ("size", "kernel_size"), [((1, 2, 3, 2), 7), ((1, 1, 5, 5), 11), ((1, 1, 2, 3, 2), 7), ((1, 2, 20, 21), 9)]
)
def test_kernels_beyond_the_image(implementation: Implementation, size: tuple[int, ...], kernel_size: int) -> None:
    for layout in ("contiguous", "channels_last"):
        agree(size, layout, kernel_size=kernel_size, dilations=(1, 2), drawn="exact")


@pytest.mark.parametrize("dilations", [(1, 2, 3), (5,)], ids=str)
@pytest.mark.parametrize(
    ("size", "layout"),
    [
        ((1, 3, 97, 3000), "contiguous"),
        ((1, 17, 70, 300), "channels_last"),
        ((1, 16, 20, 600), "channels_last"),
        ((1, 2, 8, 40, 600), "contiguous"),
        ((1, 17, 5, 40, 60), "channels_last"),
    ],
    ids=str,
)
def test_bands_of_several_tiles(level: str, size: tuple[int, ...], layout: str, dilations: tuple[int, ...]) -> None:
    """Rows so long that the native backward works through its bands tile by tile, and carries what they share."""
    agree(size, layout, dilations=dilations, drawn="exact")


@pytest.mark.parametrize("dilations", [(2,), (1, 3), (1, 2, 3), (1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("size", [(1, 150, 19, 7), (2, 16, 53, 18), (1, 33, 40, 5)], ids=str)
def test_strips_of_many_channels(level: str, size: tuple[int, ...], dilations: tuple[int, ...]) -> None:
    """Images in channels_last of several strips, bands and sets of channels, with channels and pixels to spare."""
    agree(size, "channels_last", dilations=dilations, activation="relu", drawn="exact")


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 257])
def test_every_width_around_a_vector(implementation: Implementation, width: int) -> None:
    agree((1, 5, 3, width), activation="tanh")
    agree((1, width, 3, 2), "channels_last", drawn="exact")


@pytest.mark.parametrize("height", [1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 41, 97])
def test_every_height_around_a_block(implementation: Implementation, height: int) -> None:
    agree((1, 2, height, 5), dilations=(1, 3), drawn="exact")
    agree((1, 4, height, 3), "channels_last", dilations=(2, 5), drawn="exact")


@pytest.mark.parametrize("size", [(1, 1, 211, 199), (3, 2, 101, 103), (1, 1, 17, 19, 23)], ids=str)
def test_primes(implementation: Implementation, size: tuple[int, ...]) -> None:
    agree(size, activation="relu", drawn="exact")


def test_many_planes_with_far_dilations(implementation: Implementation) -> None:
    for layout in ("contiguous", "channels_last"):
        agree((1, 2, 40, 5, 6), layout, dilations=(1, 9), drawn="exact")


# NaN and infinity. What they reach is told by loops: pixel p of the field reaches the results at p - d * tap.

PIXELS = [(0, 0), (3, 10), (2, 0), (0, 10), (1, 4), (3, 9)]


def reached(size: tuple[int, ...], pixel: tuple[int, ...], dilations: tuple[int, ...]) -> Tensor:
    mask = torch.zeros(size[2:], dtype=torch.bool)
    for dilation, tap in itertools.product(dilations, itertools.product((-1, 0, 1), repeat=len(pixel))):
        place = [p - dilation * t for p, t in zip(pixel, tap, strict=True)]
        if all(0 <= x < n for x, n in zip(place, size[2:], strict=True)):
            mask[tuple(place)] = True
    return mask


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
@pytest.mark.parametrize("pixel", PIXELS, ids=str)
def test_a_nan_reaches_its_stencil_and_no_further(
    implementation: Implementation, pixel: tuple[int, int], activation: str, layout: str
) -> None:
    problem = example((2, 5, 4, 11), layout=layout, activation=activation, dilations=(1, 2))
    field = problem.inputs["field"].clone()
    field[1, 2][pixel] = float("nan")
    y = proximal_gate(**(dict(problem.inputs) | {"field": field}), **problem.settings)
    expected = torch.zeros(2, 5, 4, 11, dtype=torch.bool)
    expected[1, 2] = reached((2, 5, 4, 11), pixel, (1, 2))
    assert torch.equal(y.isnan(), expected)
    clean = proximal_gate(**problem.inputs, **problem.settings)
    torch.testing.assert_close(y[~expected], clean[~expected])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("pixel", PIXELS, ids=str)
def test_a_nan_in_the_field_reaches_the_gradients_of_its_channel_only(
    implementation: Implementation, pixel: tuple[int, int], layout: str
) -> None:
    problem = example((2, 5, 4, 11), layout=layout, dilations=(1, 2))
    field = problem.inputs["field"].clone()
    field[1, 2][pixel] = float("nan")
    inputs = {n: t.detach().clone().requires_grad_() for n, t in (dict(problem.inputs) | {"field": field}).items()}
    proximal_gate(**inputs, **problem.settings).backward(problem.grads[0])
    others = [0, 1, 3, 4]
    assert inputs["weight"].grad[:, 2].isnan().any()
    assert inputs["weight"].grad[:, others].isfinite().all()
    for name in ("threshold", "bias"):
        assert inputs[name].grad[others].isfinite().all(), name
    assert inputs["channel_gate"].grad[:, others].isfinite().all()
    assert inputs["channel_gate"].grad[0].isfinite().all()
    assert inputs["channel_gate"].grad[1, 2].isnan()
    mask = torch.zeros(2, 5, 4, 11, dtype=torch.bool)
    mask[1, 2] = reached((2, 5, 4, 11), pixel, (1, 2))
    assert torch.equal(inputs["skip"].grad.isnan(), mask)
    assert inputs["field"].grad[~mask.any(dim=(2, 3))].isfinite().all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("pixel", PIXELS, ids=str)
def test_a_nan_reaches_only_the_taps_that_see_it(
    implementation: Implementation, pixel: tuple[int, int], layout: str
) -> None:
    """A tap whose every read of that pixel lies outside the image keeps its gradient."""
    field = torch.randn(1, 5, 4, 11)
    field[0, 2][pixel] = float("nan")
    weight = torch.randn(1, 5, 3, 3, requires_grad=True)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    y = proximal_gate(field.to(memory_format=memory_format), weight, torch.zeros(5), dilations=(2,))
    y.backward(torch.randn(1, 5, 4, 11))
    for ky, kx in itertools.product(range(3), repeat=2):
        place = (pixel[0] - 2 * (ky - 1), pixel[1] - 2 * (kx - 1))
        seen = 0 <= place[0] < 4 and 0 <= place[1] < 11
        assert bool(weight.grad[0, 2, ky, kx].isnan()) == seen, (ky, kx)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_nan_in_the_incoming_gradient_stays_with_it(implementation: Implementation, layout: str) -> None:
    problem = example((2, 5, 4, 11), layout=layout, dilations=(1, 2))
    grad = problem.grads[0].clone()
    grad[1, 2, 3, 10] = float("nan")
    inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.inputs.items()}
    inputs["threshold"].detach().fill_(-1)
    proximal_gate(**inputs, **problem.settings).backward(grad)
    mask = torch.zeros(2, 5, 4, 11, dtype=torch.bool)
    mask[1, 2, 3, 10] = True
    assert torch.equal(inputs["skip"].grad.isnan(), mask)
    mask[1, 2] = reached((2, 5, 4, 11), (3, 10), (1, 2))
    assert torch.equal(inputs["field"].grad.isnan(), mask)
    assert inputs["weight"].grad[:, [0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_an_infinity_stays_where_it_belongs(implementation: Implementation, value: float) -> None:
    """Against the reference, element by element: which results are infinite, of which sign, and which are NaN."""
    problem = example((1, 3, 5, 9), dilations=(1, 2), missing=("bias",))
    inputs = {name: tensor for name, tensor in problem.inputs.items() if tensor is not None}
    inputs["field"] = inputs["field"].clone()
    inputs["field"][0, 1, 2, 8] = value
    inputs["weight"] = inputs["weight"].abs() + 1 / 16
    y = proximal_gate(**inputs, **problem.settings)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    arguments = [exact.get(name) for name in problem.inputs]
    expected = reference.proximal_gate(*arguments, **problem.settings)
    assert compare(y, expected).ok
    assert torch.equal(y.isinf()[0, 1], reached((1, 3, 5, 9), (2, 8), (1, 2)))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
def test_soft_threshold_passes_what_is_not_finite(implementation: Implementation, special: float) -> None:
    x = torch.randn(2, 3, 21)
    x[1, 1, 17] = special
    y = soft_threshold(x, torch.full((3,), 0.5))
    assert y[1, 1, 17].isnan() if special != special else y[1, 1, 17] == special
    assert y.isfinite().sum() == y.numel() - 1


def test_an_infinite_threshold_silences_everything(implementation: Implementation) -> None:
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    y = soft_threshold(x, torch.tensor([float("inf"), 0.0]))
    y.sum().backward()
    assert not y[0, 0].any()
    assert not x.grad[0, 0].any()
    assert torch.equal(y[0, 1], x[0, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_overflow_to_infinity_and_keep_subnormals(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    largest, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 2
    field = torch.tensor([largest, -largest, least, -least, 0.0], dtype=dtype).reshape(1, 1, 1, 5)
    one, zero = torch.ones(1, 1, 1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
    assert torch.equal(proximal_gate(field, one, zero, dilations=(1,)), field)
    doubled = proximal_gate(field, 2 * one, zero, dilations=(1,))
    assert doubled.flatten().tolist() == [float("inf"), float("-inf"), 2 * least, -2 * least, 0.0]


def test_every_half_is_read_and_written(implementation: Implementation, dtype: torch.dtype) -> None:
    """All 65536 patterns of a half type pass through unchanged."""
    if dtype.itemsize != 2:
        dtype = torch.float16
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    found = soft_threshold(patterns.reshape(1, 1, -1), torch.zeros(1))
    expected = patterns.reshape(1, 1, -1)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(1.0), expected.nan_to_num(1.0))


def test_rounding_of_halves_is_to_nearest_even(implementation: Implementation) -> None:
    """float32 values between two halves, each side of the middle and at it, against torch's own conversion."""
    for dtype in (torch.float16, torch.bfloat16):
        steps = torch.arange(-40000, 40000, 7, dtype=torch.float32)
        x = torch.cat([steps * 2.0**-34, steps * 2.0**-12, steps * 1.7, steps.exp2().clamp(max=3e38)])
        halves = torch.ones(1, 1, 1, x.numel(), dtype=dtype)
        found = proximal_gate(halves, x.new_zeros(1, 1, 1, 1), x.new_zeros(1), dilations=(1,), bias=x.new_zeros(1))
        assert not found.any()
        for value in x[::977].tolist():
            bias = torch.tensor([value])
            y = proximal_gate(halves[..., :3], x.new_zeros(1, 1, 1, 1), x.new_zeros(1), dilations=(1,), bias=bias)
            assert torch.equal(y, bias.to(dtype).expand(1, 1, 1, 3)), value

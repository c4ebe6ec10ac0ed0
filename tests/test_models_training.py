"""The convolutional models learn: gradients, backends, precision, memory formats, and one batch by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import prosma_ops
from prosma_ops.models import TransportBottleneck
from prosma_ops.nn import MixedLogitLoss
from tests import two_processes
from tests.conftest import need_native
from tests.small_models import CLASSES, CONVOLUTIONAL, images, labels, loss_of, made

SIZE = {2: (9, 11), 3: (5, 6, 7)}

each_model = pytest.mark.parametrize("name", CONVOLUTIONAL)
each_rank = pytest.mark.parametrize("spatial_dims", [2, 3])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@each_model
@each_rank
def test_gradients_reach_every_parameter(name: str, spatial_dims: int) -> None:
    model = made(name, spatial_dims)
    loss_of(model(images(*SIZE[spatial_dims])), labels(*SIZE[spatial_dims])).backward()
    for path, gradient in gradients(model).items():
        assert gradient is not None, path
        assert gradient.isfinite().all(), path
        assert gradient.abs().max() > 0, path


@each_model
@each_rank
def test_backends_agree(name: str, spatial_dims: int) -> None:
    """In float64, where no rounding moves a token to another code or a response over its threshold."""
    need_native()
    found: dict[str, dict[str, Tensor]] = {}
    for backend in ("reference", "cpu"):
        model = made(name, spatial_dims).double()
        x = images(*SIZE[spatial_dims], dtype=torch.float64).requires_grad_()
        with prosma_ops.use_backend(backend):
            output = model(x)
            loss_of(output, labels(*SIZE[spatial_dims])).backward()
            evaluated = model.eval()(x)
        found[backend] = {
            **gradients(model),
            **{f"logits {number}": values for number, values in enumerate(output.logits)},
            "auxiliary": output.auxiliary,
            "evaluated": evaluated,
            "image": x.grad,
        }
    for part, values in found["reference"].items():
        torch.testing.assert_close(found["cpu"][part], values, rtol=1e-6, atol=1e-9, msg=lambda m, p=part: f"{p}: {m}")


@each_model
def test_backends_agree_in_single_precision(name: str) -> None:
    need_native()
    model = made(name).eval()
    with prosma_ops.use_backend("reference"):
        expected = model(images(16, 16))
    with prosma_ops.use_backend("cpu"):
        torch.testing.assert_close(model(images(16, 16)), expected, rtol=1e-4, atol=1e-5)


@each_model
def test_under_autocast(backend: str, name: str) -> None:
    model = made(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images(16, 16))
    assert all(values.dtype is torch.bfloat16 for values in output.logits)
    assert output.auxiliary.dtype is torch.float32
    loss_of(output._replace(logits=[values.float() for values in output.logits]), labels(16, 16)).backward()
    for path, gradient in gradients(model).items():
        assert gradient.dtype is torch.float32, path
        assert gradient.isfinite().all(), path


@each_model
@each_rank
def test_channels_last_is_kept(backend: str, name: str, spatial_dims: int) -> None:
    """From the image to the logits, through every block, gate and bottleneck, and in the result nothing changes."""
    torch.set_num_threads(2)  # with one, torch runs small 1x1x1 convolutions by a kernel that gives the other format
    model, last = made(name, spatial_dims).eval(), (torch.channels_last, torch.channels_last_3d)[spatial_dims - 2]
    expected = model(images(*SIZE[spatial_dims]))
    model = model.to(memory_format=last)
    seen: list[str] = []

    def look(path: str, result: Any) -> None:
        values = result[0] if isinstance(result, tuple) else result
        if isinstance(values, Tensor) and values.dim() == spatial_dims + 2 and values.numel() > values.shape[1]:
            seen.append(path)
            assert values.is_contiguous(memory_format=last), path

    for path, module in model.named_modules():
        module.register_forward_hook(lambda _, __, result, path=path: look(path, result))
    logits = model(images(*SIZE[spatial_dims]).to(memory_format=last))
    assert {"", "bottleneck", "gates.0", "decoder.levels.1", "heads.1"} <= set(seen)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def discs(size: int) -> tuple[Tensor, Tensor]:
    """Two images of a bright and a dark disc in noise, and their labels."""
    grid = torch.arange(size)
    target = torch.zeros(2, size, size, dtype=torch.int64)
    for image, label, row, column in ((0, 1, 4, 5), (0, 2, 11, 10), (1, 1, 10, 4), (1, 2, 5, 11)):
        distance = (grid[:, None] - row).square() + (grid - column).square()
        target[image][distance <= 10] = label
    brightness = torch.tensor([0.0, 1.0, -1.0])[target]
    return brightness.unsqueeze(1) + 0.3 * images(size, size), target


@each_model
def test_one_batch_is_learnt_by_heart(name: str) -> None:
    model = made(name, widths=(8, 12, 16))
    x, target = discs(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        output = model(x)
        loss_of(output, target).backward()
        optimizer.step()
    assert (output.logits[-1].argmax(1) == target).float().mean() > 0.99
    assert (model.eval()(x).argmax(1) == target).float().mean() > 0.95


@pytest.mark.parametrize("codes", [8, None])
def test_the_transport_bottleneck_is_its_formula(backend: str, codes: int | None) -> None:
    bottleneck = TransportBottleneck(6, codes=codes, dim=8, supports=5, heads=2, epsilon=0.3, iterations=9).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    tokens = bottleneck.down(x).flatten(2).mT
    if codes is not None:
        tokens = bottleneck.quantizer(tokens)[0]
    result, moved = torch.zeros_like(tokens), bottleneck.align.reference
    for reference in moved:
        plan = prosma_ops.transport_plan(
            tokens @ reference.T,
            epsilon=0.3,
            iterations=9,
            row_mass=torch.full((12,), 5 / 12, dtype=torch.float64),
            column_mass=torch.ones(5, dtype=torch.float64),
        )
        result = result + plan @ (plan.mT @ tokens) / (5 / 12) / len(moved)
    expected = x + bottleneck.up(result.mT.reshape(2, 8, 3, 4))
    found, loss = bottleneck(x)
    torch.testing.assert_close(found, expected)
    assert (loss > 0) == (codes is not None)
    assert moved.abs().max() <= 5**-0.5


def one_step(rank: int) -> dict[str, tuple[float, dict[str, Tensor]]]:
    """A step of each model under DistributedDataParallel, with LoMix on all its maps; in 3-D, the plain loss."""
    found = {}
    for name in CONVOLUTIONAL:
        for spatial_dims in (2, 3):
            model = DistributedDataParallel(made(name, spatial_dims))
            x, target = (values.chunk(two_processes.COUNT)[rank] for values in batch(spatial_dims))
            mixed = MixedLogitLoss(2, CLASSES, weights="fixed", operators=("add", "multiply"))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for _ in range(2):
                optimizer.zero_grad()
                output = model(x)
                loss = mixed(output.logits, target) + output.auxiliary if spatial_dims == 2 else loss_of(output, target)
                loss.backward()
                optimizer.step()
            state = {path: parameter.detach().clone() for path, parameter in model.module.named_parameters()}
            found[f"{name} in {spatial_dims}-D"] = (loss.item(), state)
    return found


def batch(spatial_dims: int) -> tuple[Tensor, Tensor]:
    return images(*SIZE[spatial_dims], batch=4), labels(*SIZE[spatial_dims], batch=4)


def test_two_processes_train_each_model(tmp_path: Path) -> None:
    """The second step would raise if a parameter had been left without a gradient in the first."""
    first, second = two_processes.run(one_step, tmp_path)
    assert len(first) == 2 * len(CONVOLUTIONAL)
    for name, (loss, state) in first.items():
        assert torch.tensor(loss).isfinite(), name
        other = second[name][1]
        assert all(torch.equal(values, other[path]) for path, values in state.items()), name

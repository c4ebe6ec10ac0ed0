"""What must hold of every network, as functions of a model: `tests/test_models_*.py` call them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import prosma_ops
from prosma_ops.models import SegmentationModel, SegmentationOutput, create_model
from prosma_ops.models.layers import per_axis
from prosma_ops.testing.torchvision import declare_operators
from tests import two_processes

PLACES = 10


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def image(model: SegmentationModel, *size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, model.in_channels, *size)


def output(model: SegmentationModel, x: Tensor) -> SegmentationOutput:
    """What training mode returns."""
    found = model.train()(x)
    assert isinstance(found, SegmentationOutput)
    return found


def loss_of(found: SegmentationOutput) -> Tensor:
    """Something that every map has a part in; squares, so that no gradient is equal for all pixels."""
    return torch.stack([values.float().square().mean() for values in found.logits]).sum() + found.auxiliary


def shapes(model: SegmentationModel, size: tuple[int, ...]) -> None:
    """The logits are of the image's size; the maps, one a scale, of the image's size over their strides."""
    x = image(model, *size)
    with torch.no_grad():
        assert model.eval()(x).shape == (2, model.classes, *size)
        found = output(model, x)
    strides = [per_axis("strides", stride, model.spatial_dims) for stride in model.decoder.strides]
    assert [tuple(values.shape) for values in found.logits] == [
        (2, model.classes, *(-(-extent // step) for extent, step in zip(size, stride, strict=True)))
        for stride in strides
    ]
    assert found.auxiliary.shape == ()


def gradients_reach_every_parameter(model: SegmentationModel, size: tuple[int, ...], *, idle: str = "$^") -> None:
    """Every parameter gets a gradient that is not zero, at the start or at one of some places nearby: weights that
    start at zero hide others, and of a few hidden features all may be cut off by a rectifier. `idle` matches the names
    of biases that a normalization takes away again.
    """
    missing = {name for name, _ in model.named_parameters() if not re.search(idle, name)}
    for _ in range(PLACES):
        model.zero_grad()
        loss_of(output(model, image(model, *size))).backward()
        for name, values in model.named_parameters():
            assert values.grad is not None, name
            assert values.grad.isfinite().all(), name
            if values.grad.any():
                missing.discard(name)
        if not missing:
            return
        with torch.no_grad():
            for values in model.parameters():
                values.add_(0.2 * torch.randn_like(values))
    raise AssertionError(f"without a gradient: {sorted(missing)}")


def can_be_rebuilt(model: SegmentationModel, size: tuple[int, ...]) -> None:
    """From config() and state_dict(), which are all that a checkpoint holds."""
    twin = create_model(**model.config())
    assert type(twin) is type(model)
    assert twin.config() == model.config()
    twin.load_state_dict(model.state_dict())
    x = image(model, *size)
    with torch.no_grad():
        assert torch.equal(twin.eval()(x), model.eval()(x))


def only_the_finest_head_predicts(model: SegmentationModel, size: tuple[int, ...]) -> None:
    calls: list[int] = []
    for number, head in enumerate(model.heads):
        head.register_forward_hook(lambda *_, number=number: calls.append(number))
    x = image(model, *size)
    with torch.no_grad():
        model.eval()(x)
        assert calls == [len(model.heads) - 1]
        calls.clear()
        model.train()(x)
    assert calls == list(range(len(model.heads)))


def keeps_channels_last(model: SegmentationModel, size: tuple[int, ...]) -> None:
    x = image(model, *size)
    with torch.no_grad():
        expected = model.eval()(x)
        found = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def runs_in_bfloat16(model: SegmentationModel, size: tuple[int, ...]) -> None:
    """Autocast's logits are close to those of float32, and a training step gives finite float32 gradients."""
    x = image(model, *size)
    with torch.no_grad():
        expected = model.eval()(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(x)
    assert found.dtype is torch.bfloat16
    assert (found.float() - expected).norm() <= 0.1 * expected.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(output(model, x))
    loss.backward()
    for values in model.parameters():
        assert values.grad is not None
        assert values.grad.dtype is torch.float32
        assert values.grad.isfinite().all()


def backends_agree(model: SegmentationModel, size: tuple[int, ...]) -> None:
    """Maps and all gradients."""
    x = image(model, *size)

    def run(backend: str) -> list[Tensor]:
        model.zero_grad()
        with prosma_ops.use_backend(backend):
            found = output(model, x)
            loss_of(found).backward()
        return [
            *(values.detach() for values in found.logits),
            *(values.grad.clone() for values in model.parameters() if values.grad is not None),
        ]

    fused, reference = run("cpu"), run("reference")
    assert len(fused) == len(reference)
    for ours, theirs in zip(fused, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4 * max(1.0, float(theirs.abs().max())))


def learns_by_heart(model: SegmentationModel, size: tuple[int, ...], *, steps: int, rate: float = 3e-3) -> None:
    """One batch whose labels are where its bright squares are: after so many steps it is known."""
    x, labels = squares(model, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        found = output(model, x)
        losses = [F.cross_entropy(enlarged(values, size), labels) for values in found.logits]
        (torch.stack(losses).mean() + found.auxiliary).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = enlarged(output(model, x).logits[-1], size).argmax(1)
    inside = labels > 0
    dice = 2 * ((predicted > 0) & inside).sum() / ((predicted > 0).sum() + inside.sum())
    assert dice > 0.9, f"Dice is {dice:.3f} after {steps} steps"


def squares(model: SegmentationModel, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Noise with a brighter square in each image; the square is class 1."""
    labels = torch.zeros(2, *size, dtype=torch.int64)
    labels[0, size[0] // 8 : size[0] // 2, size[1] // 4 : 3 * size[1] // 4] = 1
    labels[1, size[0] // 2 : 7 * size[0] // 8, : size[1] // 2] = 1
    x = 0.3 * torch.randn(2, model.in_channels, *size) + labels.unsqueeze(1)
    return x, labels


def enlarged(values: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def compiles_whole(model: SegmentationModel, size: tuple[int, ...], *, training: bool, backend: str) -> None:
    """With fullgraph=True; in training mode forward and backward."""
    torch.compiler.reset()
    x = image(model, *size)
    model.train(training)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)
        return
    found = compiled(x)
    assert isinstance(found, SegmentationOutput)
    loss_of(found).backward()
    ours = gradients(model)
    model.zero_grad()
    loss_of(output(model, x)).backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-2, atol=1e-3 * max(1.0, float(expected.abs().max())))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: values.grad.clone() for name, values in model.named_parameters() if values.grad is not None}


def goes_into_a_folder_and_back(model: SegmentationModel, size: tuple[int, ...], folder: Path) -> None:
    model.eval().save_pretrained(folder)
    other, x = SegmentationModel.from_pretrained(folder), image(model, *size)
    assert type(other) is type(model)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def agrees_with_onnxruntime(model: SegmentationModel, size: tuple[int, ...], folder: Path) -> None:
    import onnxruntime

    x, path = image(model, *size), folder / "model.onnx"
    torch.onnx.export(
        model.eval(), (x,), path, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(x), rtol=1e-4, atol=1e-4)


def slides_over_a_large_image(model: SegmentationModel, size: tuple[int, ...]) -> None:
    x = image(model, *(extent + extent // 2 for extent in size))
    with torch.no_grad():
        logits = sliding_window_inference(x, size, 2, model.eval(), overlap=0.5)
        assert logits.shape == (2, model.classes, *x.shape[2:])
        small = image(model, *size)
        whole = sliding_window_inference(small, size, 2, model)
        torch.testing.assert_close(whole, model(small), rtol=1e-4, atol=1e-5)


def trains_in_two_processes(model: SegmentationModel, size: tuple[int, ...], folder: Path) -> None:
    """Under DistributedDataParallel, which complains of parameters that get no gradient; both end up equal."""
    first, second = two_processes.run(distributed_steps, folder, model.config(), size)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def distributed_steps(rank: int, config: dict[str, Any], size: tuple[int, ...]) -> list[Tensor]:
    declare_operators()  # this process has read no conftest
    torch.manual_seed(0)
    model = create_model(**config)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    torch.manual_seed(rank)
    for _ in range(2):  # the second asks whether the first reached every parameter
        optimizer.zero_grad()
        loss_of(wrapped(image(model, *size))).backward()
        optimizer.step()
    return [values.detach() for values in model.parameters()]


def exports(model: SegmentationModel, size: tuple[int, ...]) -> None:
    x = image(model, *size)
    with torch.no_grad():
        program = torch.export.export(model.eval(), (x,))
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)

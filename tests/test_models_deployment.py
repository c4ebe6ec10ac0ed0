"""The convolutional models away from their training: compiled, exported, in folders, over windows of a large image."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from prosma_ops.models import AttentionUNet, SegmentationModel, UNet, create_model
from tests.conftest import INDUCTOR_WARNS, ONNX_WARNS
from tests.small_models import CHANNELS, CLASSES, CONVOLUTIONAL, images, labels, loss_of, made

SIZE = {2: (9, 11), 3: (5, 6, 7)}

each_model = pytest.mark.parametrize("name", CONVOLUTIONAL)
each_rank = pytest.mark.parametrize("spatial_dims", [2, 3])


def trained(name: str, spatial_dims: int = 2, **changes: Any) -> SegmentationModel:
    """After one forward in training mode, so that running statistics are no longer those of the start."""
    model = made(name, spatial_dims, **changes)
    model(images(*SIZE[spatial_dims], batch=4))
    return model.eval()


@pytest.mark.parametrize("name", ["prosma_unet", "synergy_net", "l2g_net"])
def test_evaluation_compiles_whole(name: str) -> None:
    """Every part is in one of these; each model is compiled to the end among the slow tests."""
    torch.compiler.reset()
    model = trained(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images(9, 11)), model(images(9, 11)))
    torch.compiler.reset()


@pytest.mark.slow
@INDUCTOR_WARNS
@each_model
def test_evaluation_compiles_whole_with_inductor(name: str) -> None:
    """With one skip connection: each more is the same code compiled again."""
    torch.compiler.reset()
    model = trained(name, widths=(4, 6))
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images(9, 11)), model(images(9, 11)), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.slow
@INDUCTOR_WARNS
@pytest.mark.parametrize("name", ["prosma_unet", "l2g_net"])
def test_a_training_step_compiles_whole(name: str) -> None:
    torch.compiler.reset()
    eager, compiled = (made(name, widths=(4, 6)).double() for _ in range(2))
    x, target = images(9, 11, dtype=torch.float64), labels(9, 11)

    def loss(model: SegmentationModel, x: Tensor, target: Tensor) -> Tensor:
        return loss_of(model(x), target)

    loss(eager, x, target).backward()
    torch.compile(loss, fullgraph=True)(compiled, x, target).backward()
    for (path, one), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-9, msg=lambda m, p=path: f"{p}: {m}")
    torch.compiler.reset()


@each_model
def test_evaluation_is_exported(name: str) -> None:
    """Into plain PyTorch: nothing of prosma_ops is needed where the program runs."""
    model = trained(name)
    program = torch.export.export(model, (images(9, 11),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in called if "prosma_ops" in target]
    torch.testing.assert_close(program.module()(images(9, 11)), model(images(9, 11)), rtol=1e-4, atol=1e-5)


def test_export_with_sizes_left_open() -> None:
    model = trained("prosma_unet")
    batch, rows, columns = (torch.export.Dim(axis, min=2, max=64) for axis in ("batch", "rows", "columns"))
    program = torch.export.export(
        model, (images(12, 16),), dynamic_shapes={"x": {0: batch, 2: 4 * rows, 3: 4 * columns}}
    )
    x = images(20, 8, batch=3)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@ONNX_WARNS
@each_model
@each_rank
def test_onnxruntime_gives_the_same_logits(name: str, spatial_dims: int, tmp_path: Path) -> None:
    import onnxruntime

    model, x = trained(name, spatial_dims), images(*SIZE[spatial_dims])
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(x).detach(), rtol=1e-4, atol=1e-4)


@each_model
def test_a_model_goes_into_a_folder_and_back(name: str, tmp_path: Path) -> None:
    model = trained(name)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == model.config()
    for loads in (SegmentationModel, type(model)):
        other = loads.from_pretrained(tmp_path)
        assert type(other) is type(model)
        assert not other.training
        assert torch.equal(other(images(9, 11)), model(images(9, 11)))
        assert other.config() == model.config()


def test_a_folder_with_something_else(tmp_path: Path) -> None:
    made("unet").save_pretrained(tmp_path)
    assert isinstance(UNet.from_pretrained(tmp_path), UNet)
    with pytest.raises(TypeError, match="holds a UNet, not a AttentionUNet"):
        AttentionUNet.from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        UNet.from_pretrained(tmp_path, classes=5)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        UNet.from_pretrained(tmp_path)


def test_without_huggingface_hub(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Everything works but going into folders, which says what to install."""
    done = python("""
        import sys
        sys.modules["huggingface_hub"] = None
        import torch
        from prosma_ops.models import UNet, create_model
        model = create_model("unet", in_channels=1, classes=2, widths=(4, 8)).eval()
        print(model(torch.zeros(1, 1, 8, 8)).shape)
        for use in (lambda: model.save_pretrained("folder"), lambda: UNet.from_pretrained("folder")):
            try:
                use()
            except ImportError as error:
                print(error)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torch.Size([1, 2, 8, 8])")
    assert done.stdout.count("pip install 'prosma-ops[hub]'") == 2


@each_model
@each_rank
def test_a_sliding_window(name: str, spatial_dims: int) -> None:
    model, size, window = trained(name, spatial_dims), (13, 10, 9)[:spatial_dims], (8, 8, 8)[:spatial_dims]
    with torch.no_grad():
        logits = sliding_window_inference(images(*size), window, 2, model, overlap=0.5)
        assert logits.shape == (2, CLASSES, *size)
        whole = sliding_window_inference(images(*window), window, 2, model)
        torch.testing.assert_close(whole, model(images(*window)), rtol=1e-4, atol=1e-5)


def test_what_create_model_makes_is_what_the_class_makes() -> None:
    model = create_model("unet", in_channels=CHANNELS, classes=CLASSES, widths=(4, 6))
    assert model.config() == UNet(CHANNELS, CLASSES, widths=(4, 6)).config()

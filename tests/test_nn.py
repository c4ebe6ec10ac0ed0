"""The module ProximalGate: shapes, norms, sparsity, state, compilation, autocast, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from prosma_ops.nn import ProximalGate
from tests.conftest import REFERENCE_IS_SLOW

NORMS = ("batch", "instance", "group")
SIZES = {2: (9, 11), 3: (4, 5, 6)}
COARSE = {2: (5, 6), 3: (2, 3, 3)}


def made(spatial_dims: int = 2, **changes: object) -> ProximalGate:
    """Five hidden features in the channel gate: of one, which 10 // 16 would give, the rectifier may be dead."""
    torch.manual_seed(0)
    return ProximalGate(6, 10, spatial_dims=spatial_dims, **({"reduction": 2} | changes))


def data(spatial_dims: int = 2, batch: int = 2, **kind: object) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 6, *SIZES[spatial_dims], **kind), torch.randn(batch, 10, *COARSE[spatial_dims], **kind)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_gates_a_skip_and_every_parameter_learns(backend: str, spatial_dims: int, norm: str) -> None:
    gate, (skip, gating) = made(spatial_dims, norm=norm), data(spatial_dims)
    skip.requires_grad_()
    gating.requires_grad_()
    y = gate(skip, gating)
    y.square().mean().backward()
    assert y.shape == skip.shape
    assert y.dtype is skip.dtype
    for name, tensor in (*gate.named_parameters(), ("skip", skip), ("gating", gating)):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name


def test_the_signature_is_the_contract() -> None:
    parameters = inspect.signature(ProximalGate).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert list(parameters)[:2] == ["channels", "gating_channels"]
    assert defaults == {
        "dilations": (1, 2, 3),
        "kernel_size": 3,
        "spatial_dims": 2,
        "activation": "identity",
        "initial_threshold": 0.02,
        "reduction": 16,
        "norm": "batch",
    }


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_memory_format_of_the_skip_is_kept(backend: str, spatial_dims: int) -> None:
    skip, gating = data(spatial_dims)
    last = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    for norm in NORMS:
        gate = made(spatial_dims, norm=norm)
        assert gate(skip, gating).is_contiguous()
        assert gate(skip.to(memory_format=last), gating.to(memory_format=last)).is_contiguous(memory_format=last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_in_another_dtype(backend: str, dtype: torch.dtype) -> None:
    gate, (skip, gating) = made().to(dtype), data()
    y = gate(skip.to(dtype), gating.to(dtype))
    y.float().sum().backward()
    assert y.dtype is dtype
    assert all(parameter.grad.dtype is dtype for parameter in gate.parameters())


def test_under_autocast(backend: str) -> None:
    gate, (skip, gating) = made(norm="instance"), data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = gate(skip, gating)
        loss = y.float().square().mean()
    loss.backward()
    assert all(parameter.grad.dtype is torch.float32 for parameter in gate.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in gate.parameters())
    torch.testing.assert_close(y.float(), gate(skip, gating).float(), rtol=0.1, atol=0.1)


def test_sparsity_is_the_share_of_exact_zeros(backend: str) -> None:
    gate, (skip, gating) = made(), data()
    skip = skip.abs() + 1
    y = gate(skip, gating)
    assert gate.sparsity() == pytest.approx(float((y == 0).double().mean()))
    assert torch.equal(gate.last_gate() == 0, y == 0)
    silent = made(initial_threshold=1e4)
    assert not silent(skip, gating).any()
    assert silent.sparsity() == 1.0
    assert made(initial_threshold=1e-6)(skip, gating).count_nonzero() > 0.99 * skip.numel()


def test_sparsity_before_a_forward_says_so() -> None:
    with pytest.raises(RuntimeError, match="forward"):
        made().sparsity()


def test_the_thresholds_start_where_asked_and_stay_positive() -> None:
    for start in (1e-4, 0.02, 3.0):
        torch.testing.assert_close(made(initial_threshold=start).threshold, torch.full((6,), start), rtol=1e-4, atol=0)
    gate = made()
    with torch.no_grad():
        gate.raw_threshold.fill_(-50)
    assert (gate.threshold >= 0).all()


def test_state_goes_into_a_file_and_back(backend: str) -> None:
    gate, (skip, gating) = made(), data()
    gate(skip, gating)
    buffer = io.BytesIO()
    torch.save(gate.state_dict(), buffer)
    buffer.seek(0)
    other = ProximalGate(6, 10, reduction=2)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(gate.eval()(skip, gating), other.eval()(skip, gating))


def test_it_is_copied_and_pickled(backend: str) -> None:
    gate, (skip, gating) = made(norm="group"), data()
    y = gate(skip, gating)
    other = copy.deepcopy(gate)
    assert torch.equal(other(skip, gating), y)
    assert other.weight is not gate.weight
    buffer = io.BytesIO()
    torch.save(gate, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(skip, gating), y)


def test_nothing_but_parameters_and_statistics_is_saved(backend: str) -> None:
    gate = made()
    before = set(gate.state_dict())
    gate(*data())
    assert set(gate.state_dict()) == before
    assert not [name for name in before if "last" in name]


@REFERENCE_IS_SLOW
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_it_compiles_whole_without_recompiling(backend: str, norm: str) -> None:
    torch.compiler.reset()
    gate = made(norm=norm)
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (4, 7):
        with torch.compiler.set_stance("default" if batch == 4 else "fail_on_recompile"):
            skip, gating = data(batch=batch)
            y = compiled(skip, gating)
            y.sum().backward()
        reference = copy.deepcopy(gate)
        torch.testing.assert_close(y, reference(skip, gating))
    assert 0 <= gate.sparsity() <= 1
    torch.compiler.reset()


def test_it_is_exported(backend: str) -> None:
    gate, inputs = made().eval(), data()
    program = torch.export.export(gate, inputs)
    torch.testing.assert_close(program.module()(*inputs), gate(*inputs))


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
def test_finite_differences(backend: str, activation: str) -> None:
    gate = made(activation=activation, norm="group", dilations=(1, 2)).double()
    skip = torch.randn(1, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    gating = torch.randn(1, 10, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(gate, (skip, gating))


def test_it_trains(backend: str) -> None:
    """A few steps towards a target that a gate can reach: half of the skip's channels, none of the others."""
    gate, (skip, gating) = made(norm="instance"), data()
    target = torch.cat([skip[:, :3], torch.zeros_like(skip[:, 3:])], dim=1)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(gate(skip, gating), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_an_empty_batch(backend: str) -> None:
    gate = made(norm="group").eval()
    y = gate(torch.zeros(0, 6, 9, 11), torch.zeros(0, 10, 5, 6))
    assert y.shape == (0, 6, 9, 11)


def test_one_pixel(backend: str) -> None:
    for norm in NORMS:
        assert made(norm=norm).eval()(torch.randn(2, 6, 1, 1), torch.randn(2, 10, 1, 1)).isfinite().all()


def test_gating_of_the_same_size_and_finer(backend: str) -> None:
    gate, (skip, _) = made(), data()
    for size in (skip.shape[2:], (20, 30), (1, 1)):
        assert gate(skip, torch.randn(2, 10, *size)).shape == skip.shape


@pytest.mark.parametrize(
    ("changes", "error", "name"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size"),
        ({"dilations": ()}, ValueError, "dilations"),
        ({"dilations": (0,)}, ValueError, "dilations"),
        ({"spatial_dims": 1}, ValueError, "spatial_dims"),
        ({"activation": "sigmoid"}, ValueError, "activation"),
        ({"initial_threshold": 0.0}, ValueError, "initial_threshold"),
        ({"initial_threshold": "0.1"}, TypeError, "initial_threshold"),
        ({"reduction": 0}, ValueError, "reduction"),
        ({"norm": "layer"}, ValueError, "norm"),
        ({"channels": 0}, ValueError, "channels"),
        ({"gating_channels": 2.5}, TypeError, "gating_channels"),
    ],
    ids=str,
)
def test_what_it_cannot_be_made_of(changes: dict[str, object], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name} "):
        ProximalGate(**({"channels": 6, "gating_channels": 10} | changes))


@pytest.mark.parametrize(
    ("skip", "gating", "name"),
    [
        ((2, 6, 9), (2, 10, 5, 6), "skip"),
        ((2, 5, 9, 11), (2, 10, 5, 6), "skip"),
        ((2, 6, 9, 11), (2, 9, 5, 6), "gating"),
        ((2, 6, 9, 11), (3, 10, 5, 6), "gating"),
        ((2, 6, 9, 11), (2, 10, 5, 6, 7), "gating"),
    ],
    ids=str,
)
def test_what_it_cannot_gate(skip: tuple[int, ...], gating: tuple[int, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        made()(torch.randn(skip), torch.randn(gating))

"""VectorQuantizer: what it returns and learns, alone and with two processes, compiled and under autocast."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import prosma_ops
from prosma_ops.nn import VectorQuantizer
from tests import two_processes

UPDATES, INITS = ("gradient", "ema"), ("uniform", "kmeans")
BOTH = pytest.mark.parametrize("update", UPDATES)
METRICS = pytest.mark.parametrize("metric", ["euclidean", "cosine"])


def around_origin(module: VectorQuantizer) -> VectorQuantizer:
    """With a codebook that tokens of unit variance spread over."""
    with torch.no_grad():
        module.codebook.normal_()
        if module.running_sum is not None:
            module.running_sum.copy_(module.codebook)
    return module


@BOTH
@METRICS
def test_it_returns_codes_a_loss_and_indices(backend: str, update: str, metric: str) -> None:
    module = around_origin(VectorQuantizer(11, 5, commitment=0.5, update=update, metric=metric)).eval()
    tokens = torch.randn(2, 3, 4, 5, requires_grad=True)
    quantized, loss, index = module(tokens)
    assert index.shape == (2, 3, 4)
    assert torch.equal(quantized, module.codebook[index])
    error = (tokens - module.codebook[index]).square().mean()
    torch.testing.assert_close(loss, (0.5 if update == "ema" else 1.5) * error)
    weight = torch.randn_like(tokens)
    (gradient,) = torch.autograd.grad(quantized, tokens, weight)
    assert torch.equal(gradient, weight)  # straight through


def test_gradients_of_the_loss(backend: str) -> None:
    """The commitment draws tokens to codes, the other term codes to tokens, each leaving the other alone."""
    module = around_origin(VectorQuantizer(7, 3, commitment=0.25))
    tokens = torch.randn(20, 3, requires_grad=True)
    _, loss, index = module(tokens)
    loss.backward()
    difference = 2 * (tokens - module.codebook[index]).detach() / tokens.numel()
    torch.testing.assert_close(tokens.grad, 0.25 * difference)
    expected = torch.zeros(7, 3).index_add(0, index, -difference)
    torch.testing.assert_close(module.codebook.grad, expected)


def test_running_averages(backend: str) -> None:
    module = around_origin(VectorQuantizer(5, 3, update="ema", decay=0.9))
    count, total = module.running_count.clone(), module.running_sum.clone()
    tokens = torch.randn(4, 10, 3)
    for _ in range(3):
        _, _, index = module(tokens)
        one_hot = torch.nn.functional.one_hot(index.flatten(), 5).float()
        count = 0.9 * count + 0.1 * one_hot.sum(0)
        total = 0.9 * total + 0.1 * one_hot.T @ tokens.reshape(-1, 3)
        smoothed = (count + 1e-5) / (count.sum() + 5e-5) * count.sum()
        torch.testing.assert_close(module.running_count, count)
        torch.testing.assert_close(module.running_sum, total)
        torch.testing.assert_close(module.codebook, total / smoothed[:, None])


@BOTH
def test_evaluation_changes_nothing(update: str) -> None:
    module = VectorQuantizer(5, 3, update=update, restart_dead_codes=1.0, init="kmeans").eval()
    before = copy.deepcopy(module.state_dict())
    module(torch.randn(30, 3))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@BOTH
def test_it_learns_clusters(update: str) -> None:
    """Tokens around 8 centres, k-means start, codes to spare: each centre ends with a code or more."""
    centres = 5 * torch.randn(8, 4)
    module = VectorQuantizer(40, 4, update=update, init="kmeans", restart_dead_codes=0.5, decay=0.8)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0) if update == "gradient" else None
    for _ in range(60):
        tokens = centres[torch.randint(8, (400,))] + 0.1 * torch.randn(400, 4)
        _, loss, _ = module(tokens)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    distance = torch.cdist(centres, module.codebook.detach()).amin(dim=1)
    assert distance.max() < 0.2
    assert 8 < module.perplexity() < 40


@METRICS
def test_the_kmeans_start_is_that_of_the_seed(metric: str) -> None:
    tokens = torch.randn(2, 100, 6)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        module = VectorQuantizer(9, 6, update="ema", init="kmeans", metric=metric)
        uniform = module.codebook.clone()
        module.eval()(tokens)
        assert torch.equal(module.codebook, uniform)  # it waits for training
        module.train()(tokens)
        assert bool(module.started)
        found.append(module.codebook.clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert prosma_ops.nearest_code(tokens, found[0], metric=metric).index.unique().numel() == 9


def test_kmeans_lowers_the_error_of_random_tokens() -> None:
    tokens = torch.randn(500, 4)
    module = VectorQuantizer(16, 4, init="kmeans")
    module(tokens)
    random = tokens[torch.randperm(500)[:16]]
    error = (tokens - prosma_ops.nearest_code(tokens, module.codebook).quantized).square().mean()
    assert error < 0.9 * (tokens - prosma_ops.nearest_code(tokens, random).quantized).square().mean()


def test_a_restored_module_does_not_start_again() -> None:
    module = VectorQuantizer(5, 3, update="ema", init="kmeans")
    module(torch.randn(50, 3))
    other = VectorQuantizer(5, 3, update="ema", init="kmeans")
    other.load_state_dict(module.state_dict())
    before = other.codebook.clone()
    other.decay = 1.0
    other(100 + torch.randn(50, 3))
    torch.testing.assert_close(other.codebook, before, rtol=1e-4, atol=1e-4)


@BOTH
def test_dead_codes_become_tokens(update: str) -> None:
    """One code far away is never chosen; when its running count has fallen below the bound it becomes a token."""
    module = around_origin(VectorQuantizer(6, 3, update=update, decay=0.5, restart_dead_codes=0.1))
    with torch.no_grad():
        module.codebook[2] = 1e3
        if module.running_sum is not None:
            module.running_sum[2] = 1e3
    tokens = torch.randn(200, 3)
    steps = 0
    while module.codebook[2].abs().max() > 100:
        module(tokens)
        steps += 1
        assert steps < 20
    assert steps == math.ceil(math.log2(1 / 0.1))
    if update == "gradient":
        assert (tokens == module.codebook[2]).all(dim=1).any()
    assert module.running_count[2] == 1.0
    assert (module(tokens)[2] == 2).any()


def test_tokens_with_nan_spoil_nothing() -> None:
    module = around_origin(VectorQuantizer(6, 3, update="ema", restart_dead_codes=10.0))
    tokens = torch.randn(100, 3)
    tokens[::3, 1] = math.nan
    for _ in range(5):
        _, _, index = module(tokens)
    assert not index[::3].any()
    assert all(value.isfinite().all() for value in module.state_dict().values())
    with pytest.raises(ValueError, match="hold NaN"):
        prosma_ops.check_errors()


@BOTH
def test_an_empty_batch(update: str) -> None:
    module = VectorQuantizer(4, 3, update=update, init="kmeans", restart_dead_codes=0.5)
    quantized, loss, index = module(torch.zeros(2, 0, 3))
    assert (quantized.shape, index.shape, loss.item()) == ((2, 0, 3), (2, 0), 0.0)
    assert not bool(module.started)
    assert module.perplexity() == 1


def test_perplexity() -> None:
    module = VectorQuantizer(4, 1).eval()
    with torch.no_grad():
        module.codebook.copy_(torch.arange(4.0)[:, None])
    with pytest.raises(RuntimeError, match="last forward"):
        module.perplexity()
    module(torch.tensor([[0.1], [0.9], [2.2], [2.8]]))
    assert module.perplexity().item() == pytest.approx(4)
    module(torch.zeros(9, 1))
    assert module.perplexity().item() == pytest.approx(1)
    assert copy.deepcopy(module)._last.index is None


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(backend: str, update: str, dtype: torch.dtype) -> None:
    module = around_origin(VectorQuantizer(8, 6, update=update, restart_dead_codes=0.01))
    layer = torch.nn.Linear(4, 6)
    with torch.autocast("cpu", dtype=dtype):
        quantized, loss, _ = module(layer(torch.randn(3, 5, 4)))
        total = loss + quantized.float().square().mean()
    total.backward()
    assert (quantized.dtype, loss.dtype, module.codebook.dtype) == (dtype, torch.float32, torch.float32)
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


@BOTH
def test_compiled_whole(backend: str, update: str) -> None:
    """Running averages and restarts included; what breaks the graph is only the k-means start."""
    torch.compiler.reset()
    module = around_origin(VectorQuantizer(6, 3, update=update, restart_dead_codes=0.3))
    plain = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (4, 7):
        tokens = torch.randn(batch, 5, 3)
        leaves = [tokens.clone().requires_grad_() for _ in range(2)]
        torch.manual_seed(batch)
        expected = plain(leaves[0])
        torch.manual_seed(batch)
        found = compiled(leaves[1])
        torch.testing.assert_close(found, expected)
        for result, leaf in zip((expected, found), leaves, strict=True):
            (result[0].square().sum() + result[1]).backward()
            assert leaf.grad is not None
        torch.testing.assert_close(leaves[1].grad, leaves[0].grad)
        torch.testing.assert_close(dict(module.state_dict()), dict(plain.state_dict()))


def test_the_kmeans_start_breaks_the_graph_once() -> None:
    torch.compiler.reset()
    module = VectorQuantizer(4, 3, init="kmeans")
    compiled = torch.compile(module, backend="aot_eager")
    compiled(torch.randn(30, 3))
    assert bool(module.started)
    before = module.codebook.detach().clone()
    compiled(torch.randn(30, 3))
    assert torch.equal(module.codebook, before)


def test_exported(backend: str) -> None:
    module = around_origin(VectorQuantizer(6, 3, update="ema")).eval()
    tokens = torch.randn(4, 5, 3)
    program = torch.export.export(module, (tokens,))
    torch.testing.assert_close(program.module()(tokens), module(tokens))


def shares() -> tuple[Tensor, ...]:
    """The tokens of the two processes: not equally many."""
    random = torch.Generator().manual_seed(5)
    return torch.randn(30, 4, generator=random), torch.randn(18, 4, generator=random)


def trained(tokens: list[Tensor], update: str, init: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    module = VectorQuantizer(7, 4, update=update, init=init, decay=0.7, restart_dead_codes=1.5)
    for number, batch in enumerate(tokens):
        _, loss, _ = module(batch + number / 8)
    assert loss.isfinite()
    return {name: value.detach() for name, value in module.state_dict().items()} | {"perplexity": module.perplexity()}


def one_of_two(rank: int, update: str, init: str) -> dict[str, Tensor]:
    if rank == 1:
        torch.rand(5)  # the first process draws for all, whatever the others' generators are at
    return trained([shares()[rank]] * 4, update, init)


def of_each_process(rank: int) -> dict[Any, Any]:
    learnt = {(update, init): one_of_two(rank, update, init) for update in UPDATES for init in INITS}
    return learnt | {"data parallel": data_parallel(rank)}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of two processes has learnt, in every way: to start two takes longer than all they do."""
    return two_processes.run(of_each_process, tmp_path_factory.mktemp("two"))


@BOTH
@pytest.mark.parametrize("init", INITS)
def test_two_processes_learn_what_one_does(update: str, init: str, of_two: list[dict[Any, Any]]) -> None:
    """Codebook, running averages, k-means start and restarts: as of one process with both shares."""
    found = [learnt[update, init] for learnt in of_two]
    expected = trained([torch.cat(shares())] * 4, update, init)
    for name, value in expected.items():
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(found[0][name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_what_a_dataparallel_step_learns(of_two: list[dict[Any, Any]]) -> None:
    """Gradients under DistributedDataParallel: of two equal shares they are those of the whole batch."""
    results = [learnt["data parallel"] for learnt in of_two]
    module = VectorQuantizer(7, 4)
    module.load_state_dict(results[0]["start"])
    _, loss, _ = module(torch.cat([results[0]["tokens"], results[1]["tokens"]]))
    loss.backward()
    for result in results:
        torch.testing.assert_close(result["gradient"], module.codebook.grad)


def data_parallel(rank: int) -> dict[str, object]:
    torch.manual_seed(0)
    module = around_origin(VectorQuantizer(7, 4))
    start = copy.deepcopy(module.state_dict())
    tokens = torch.randn(2, 25, 4)[rank]
    wrapped = torch.nn.parallel.DistributedDataParallel(module)
    _, loss, _ = wrapped(tokens)
    loss.backward()
    return {"start": start, "tokens": tokens, "gradient": module.codebook.grad}


BAD = {
    "codes": ({"codes": 0}, ValueError, "codes is 0"),
    "dim": ({"dim": 2.5}, TypeError, "dim is 2.5"),
    "commitment": ({"commitment": -1.0}, ValueError, "commitment is -1.0"),
    "update": ({"update": "sgd"}, ValueError, "'gradient', 'ema'"),
    "decay": ({"decay": 1.5}, ValueError, "decay is 1.5"),
    "decay as text": ({"decay": "0.9"}, TypeError, "decay is '0.9'"),
    "metric": ({"metric": "l1"}, ValueError, "metric is 'l1'"),
    "restart": ({"restart_dead_codes": math.inf}, ValueError, "restart_dead_codes is inf"),
    "init": ({"init": "random"}, ValueError, "'uniform', 'kmeans'"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_bad_settings(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        VectorQuantizer(**({"codes": 4, "dim": 3} | changes))
    assert message in str(caught.value)


def test_tokens_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"tokens has shape \(2, 4\); it must be \(\.\.\., 3\)"):
        VectorQuantizer(4, 3)(torch.zeros(2, 4))
    assert "update='ema'" in repr(VectorQuantizer(4, 3, update="ema"))

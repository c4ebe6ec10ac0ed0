"""Which implementation runs, and why: the automatic choice, the explicit one, and the explanation."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

import prosma_ops
from prosma_ops import backends, explain, native, use_backend
from prosma_ops.backends import BACKEND_VARIABLE, OPERATORS, Verdict
from prosma_ops.testing.faults import planted

FIELD = torch.randn(1, 2, 4, 5)


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)


def call() -> torch.Tensor:
    return prosma_ops.proximal_gate(FIELD, torch.ones(1, 2, 1, 1), torch.zeros(2), dilations=(1,))


def runs_on(backend: str) -> bool:
    """Told by an error planted into that backend's result."""
    with planted("proximal_gate", backend, "forward", 0, torch.Tensor.zero_):
        return not call().any()


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    absent = native.Library(None, "the native library is not installed (blocked by a test)")
    monkeypatch.setattr(native, "load", lambda: absent)
    native.warn_once.cache_clear()
    yield
    native.warn_once.cache_clear()


def test_auto_takes_the_native_library_on_the_cpu(native_library: object) -> None:
    assert runs_on("cpu")


def test_auto_takes_the_reference_without_it(without_native: None) -> None:
    with pytest.warns(RuntimeWarning, match="reference"):
        assert runs_on("reference")


def test_it_warns_once(without_native: None) -> None:
    with pytest.warns(RuntimeWarning, match="prosma-ops doctor"):
        call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


def test_the_warning_points_at_the_caller(without_native: None) -> None:
    with pytest.warns(RuntimeWarning) as caught:
        call()
    assert len(caught) == 1


def test_an_explicit_choice_warns_not(without_native: None) -> None:
    with warnings.catch_warnings(), use_backend("reference"):
        warnings.simplefilter("error")
        call()


def test_use_backend_holds_in_the_block_and_in_the_backward(native_library: object) -> None:
    assert runs_on("cpu")
    with use_backend("reference"):
        assert runs_on("reference")
        with use_backend("cpu"):
            assert runs_on("cpu")
        with use_backend("auto"):
            assert runs_on("cpu")
        assert runs_on("reference")
        field = FIELD.clone().requires_grad_()
        y = prosma_ops.proximal_gate(field, torch.ones(1, 2, 1, 1), torch.zeros(2), dilations=(1,))
        with planted("proximal_gate", "reference", "backward", 0, torch.Tensor.zero_):
            y.sum().backward()
        assert not field.grad.any()
    assert runs_on("cpu")


def test_use_backend_ends_with_the_block_after_an_error(native_library: object) -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backends.current() == "auto"


def test_the_environment_chooses(native_library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "reference")
    assert runs_on("reference")
    with use_backend("cpu"):
        assert runs_on("cpu")
    monkeypatch.setenv(BACKEND_VARIABLE, "auto")
    assert runs_on("cpu")
    monkeypatch.setenv(BACKEND_VARIABLE, "")
    assert runs_on("cpu")
    monkeypatch.setenv(BACKEND_VARIABLE, "gpu")
    with pytest.raises(ValueError, match=r"PROSMA_OPS_BACKEND is 'gpu'.*'reference'.*'triton'"):
        call()


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_an_explicit_choice_that_cannot_run_raises_with_the_reason(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = explain("proximal_gate", FIELD)[backend].reason
    assert reason
    with use_backend(backend), pytest.raises(RuntimeError) as caught:
        call()
    assert f"backend '{backend}' was asked for" in str(caught.value)
    assert reason in str(caught.value)


def test_an_explicit_cpu_without_the_library_raises(without_native: None) -> None:
    with use_backend("cpu"), pytest.raises(RuntimeError, match="blocked by a test"):
        call()


def test_triton_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = explain("proximal_gate", FIELD)["triton"].reason
    assert "GPU" in reason
    assert "TRITON_INTERPRET=1" in reason


@pytest.mark.parametrize("operator", ["proximal_gate", "soft_threshold"])
def test_explain(operator: str) -> None:
    found = explain(operator, FIELD)
    assert tuple(found) == backends.BACKENDS
    assert all(isinstance(verdict, Verdict) and verdict.reason for verdict in found.values())
    assert found["reference"].can_run
    assert found.chosen in ("cpu", "reference")
    for line in (operator, "reference", "triton", "runs", *(verdict.reason for verdict in found.values())):
        assert line in str(found)


def test_explain_takes_the_function_and_follows_the_setting() -> None:
    with use_backend("reference"):
        assert explain(prosma_ops.proximal_gate, FIELD).chosen == "reference"
    with use_backend("cuda"):
        assert explain(prosma_ops.soft_threshold, FIELD).chosen is None


def test_explain_of_what_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"op is 'gate'.*'proximal_gate'"):
        explain("gate", FIELD)
    with pytest.raises(ValueError, match="tensor"):
        explain("proximal_gate")


def test_a_meta_tensor_is_explained() -> None:
    found = explain("proximal_gate", FIELD.to("meta"))
    assert not found["cpu"].can_run
    assert not found["triton"].can_run
    assert "meta" in found["cpu"].reason


def test_every_operator_has_every_backend() -> None:
    for operator in OPERATORS.values():
        assert tuple(operator.implementations) == backends.BACKENDS


@pytest.mark.parametrize("level", ["portable", "v3", "v4"])
def test_the_level_can_be_chosen_by_the_environment(
    level: str, native_library: object, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if level not in native_library.runnable_levels:
        pytest.skip(f"this processor or this build has no level {level}")
    done = python("from prosma_ops import native; print(native.load().reason)", PROSMA_CPU_LEVEL=level)
    assert done.stdout.strip() == f"compiled for {level}", done.stderr


def test_a_level_that_is_not_there_raises(
    native_library: object, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = python("from prosma_ops import native; native.load()", PROSMA_CPU_LEVEL="v9")
    assert done.returncode == 1
    assert "PROSMA_CPU_LEVEL='v9'" in done.stderr
    for level in native_library.levels:
        assert level in done.stderr

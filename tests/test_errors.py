"""Wrong values raise at once on the CPU, and elsewhere when somebody asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

import prosma_ops
from prosma_ops import errors

TRUE, FALSE = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU treated as other devices are, with flags of the test's own."""
    monkeypatch.setattr(errors, "raises_at_once", lambda device: False)
    monkeypatch.setattr(errors, "_flags", errors.Flags())
    return


def test_on_the_cpu_a_wrong_value_raises_at_once() -> None:
    errors.record(FALSE, "labels must be right")
    with pytest.raises(ValueError, match="labels must be right"):
        errors.record(TRUE, "labels must be right")
    prosma_ops.check_errors()


def test_only_the_cpu_raises_at_once() -> None:
    assert errors.raises_at_once(torch.device("cpu"))
    assert not errors.raises_at_once(torch.device("cuda", 1))
    assert not errors.raises_at_once(torch.device("mps"))


def test_elsewhere_it_raises_when_asked(deferred: None) -> None:
    errors.record(TRUE, "labels must be right")
    with pytest.raises(ValueError, match=r"^labels must be right \(on cpu\)$"):
        prosma_ops.check_errors()


def test_asking_forgets(deferred: None) -> None:
    errors.record(TRUE, "labels must be right")
    with pytest.raises(ValueError, match="labels"):
        prosma_ops.check_errors()
    prosma_ops.check_errors()
    errors.record(FALSE, "labels must be right")
    prosma_ops.check_errors()
    errors.record(TRUE, "labels must be right")
    with pytest.raises(ValueError, match="labels"):
        prosma_ops.check_errors()


def test_a_right_value_after_a_wrong_one_hides_nothing(deferred: None) -> None:
    for condition in (FALSE, TRUE, FALSE):
        errors.record(condition, "labels must be right")
    with pytest.raises(ValueError, match="labels"):
        prosma_ops.check_errors()


def test_each_message_has_its_own_flag(deferred: None) -> None:
    errors.record(TRUE, "labels must be right")
    errors.record(FALSE, "indices must be right")
    errors.record(TRUE, "masses must be right")
    with pytest.raises(ValueError, match="labels") as caught:
        prosma_ops.check_errors()
    assert str(caught.value) == "labels must be right (on cpu); masses must be right (on cpu)"


def test_the_flag_stays_where_it_is(deferred: None) -> None:
    """A captured CUDA graph writes to the address that it has seen."""
    errors.record(TRUE, "labels must be right")
    before = {key: flag.data_ptr() for key, flag in errors._flags._flags.items()}
    with pytest.raises(ValueError, match="labels"):
        prosma_ops.check_errors()
    errors.record(TRUE, "labels must be right")
    assert {key: flag.data_ptr() for key, flag in errors._flags._flags.items()} == before


def test_flags_are_made_outside_of_the_calling_thread(deferred: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a thread's allocations go to the pool of a CUDA graph."""
    makers = []
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda value: makers.append(threading.get_ident()) or tensor(value))
    errors.record(FALSE, "labels must be right")
    errors.record(FALSE, "labels must be right")
    assert len(makers) == 1
    assert makers[0] != threading.get_ident()


def test_a_graph_captured_before_the_first_run_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="run it once before"):
        errors._lasting_flag(torch.device("cuda"))


def test_many_threads_report_at_once(deferred: None) -> None:
    messages = [f"message {number}" for number in range(8)]
    workers = [threading.Thread(target=errors.record, args=(TRUE, message)) for message in messages * 4]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with pytest.raises(ValueError, match="message") as caught:
        prosma_ops.check_errors()
    assert sorted(str(caught.value).split("; ")) == [f"{message} (on cpu)" for message in messages]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_a_captured_graph_sets_the_flag_at_each_replay() -> None:
    message = "labels of a graph must be right"
    labels = torch.zeros(5, device="cuda")
    errors.record((labels > 1).any(), message)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        errors.record((labels > 1).any(), message)
    graph.replay()
    prosma_ops.check_errors()
    for _ in range(2):
        labels.fill_(2)
        graph.replay()
        labels.zero_()
        graph.replay()
        with pytest.raises(ValueError, match=message):
            prosma_ops.check_errors()
    prosma_ops.check_errors()

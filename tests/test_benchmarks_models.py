"""The benchmark of the networks: what it counts, that a wrong result gets no time, and its tables."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import models, report, tables, targets
from benchmarks.models import ONE_IMAGE, ONE_OUTPUT, REFERENCE, UNET, Work
from benchmarks.networks import Inference, Network, Runner, Training, relative_error, shares
from benchmarks.targets import OURS, Target
from tests.benchmark_records import results
from tests.conftest import need_native

TINY = Network("prosma_unet", (2, 1, 16, 16), 3, {"widths": (4, 6, 8)})
PLAIN = Network("unet", (2, 1, 16, 16), 3, {"widths": (4, 6, 8)})


def work(kind: str, **more: Any) -> Work:
    return Work(f"{kind} of {TINY.label}", TINY, kind, **more)


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are measured in processes, each of which takes seconds."""
    monkeypatch.setattr(models, "peak_memory", lambda work, name, short: {OURS: 20.0}.get(name, 30.0))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["unet", "prosma_unet"])
def test_multiply_adds_are_those_of_the_layers(name: str, dims: int) -> None:
    """Of one level's skip connection of 4 channels; the gate has two 1x1 projections, three kernels and two layers."""
    size, taps, pixels = (2, 1, *(8,) * dims), 3**dims, 8**dims
    network = Network(name, size, 2, {"widths": (4, 6)})
    found = network.counted()
    coarse = pixels // 2**dims
    encoder = taps * (pixels * (4 + 16) + coarse * (24 + 36))
    decoder = coarse * 2**dims * 24 + taps * pixels * (32 + 16) + pixels * 4 * 2
    gate = pixels * 16 + coarse * 24 + 3 * taps * 4 * pixels + (6 + 4) if name == "prosma_unet" else 0
    assert found["multiply_adds"] == encoder + decoder + gate
    assert found["parameters"] == sum(values.numel() for values in network.model().parameters())


@pytest.mark.parametrize("loss", ["", "mixed", "single"])
def test_a_step_descends(loss: str) -> None:
    training = Training(TINY, loss)
    assert len(training.model.heads) == (2 if loss == "mixed" else 1)
    before = [values.clone() for values in training.model.parameters()]
    training.step()
    assert not all(torch.equal(one, other) for one, other in zip(before, training.model.parameters(), strict=True))
    assert training.gradients().numel() == sum(values.numel() for values in training.model.parameters())


def test_one_output_has_the_plain_terms_of_lomix() -> None:
    """0.3 cross-entropy and 0.7 Dice of the one map, which LoMix supervises too."""
    training = Training(PLAIN, "single")
    output = training.model(training.images)
    p = output.logits[-1].softmax(1)
    y = nn.functional.one_hot(training.labels, 3).movedim(-1, 1)
    dice = 1 - (2 * (p * y).sum((0, 2, 3)) + 1e-5) / ((p * p).sum((0, 2, 3)) + y.sum((0, 2, 3)) + 1e-5)
    expected = 0.3 * nn.functional.cross_entropy(output.logits[-1], training.labels) + 0.7 * dice.mean()
    torch.testing.assert_close(training.loss(output, training.labels), expected, rtol=1e-4, atol=1e-5)


def test_inference_is_without_gradients() -> None:
    inference = Inference(TINY)
    assert inference.all_images().shape == (2, 3, 16, 16)
    assert inference.one_image().shape == (1, 3, 16, 16)
    assert not inference.all_images().requires_grad


def test_shares_are_of_our_operators_alone() -> None:
    need_native()
    found = shares(Training(TINY).step, {"gates": ["proximal_gate"], "others": ["transport", "nearest_code"]})
    assert 0 < found["gates"] < 1
    assert found["others"] == 0
    assert shares(Training(PLAIN).step, models.GATES) == {"gates": 0}


@pytest.mark.usefixtures("without_memory")
def test_a_record_of_inference_and_of_a_step() -> None:
    need_native()
    faster = [Target("slowdown", REFERENCE, at_most=1e9)]
    inference = models.measure(work("inference", targets=faster), 4, 60.0, short=True)
    assert {name: entry["rounds"] for name, entry in inference["contestants"].items()} == dict.fromkeys(
        (OURS, REFERENCE, ONE_IMAGE), 4
    )
    assert targets.reached(faster[0], targets.value(faster[0], inference))
    yardsticks = {UNET: (PLAIN, "")}
    wanted = [Target("share", "gates", at_most=1), Target("memory share", UNET, at_most=0.5)]
    step = models.measure(work("step", yardsticks=yardsticks, parts=models.GATES, targets=wanted), 3, 0, short=True)
    assert set(step["contestants"]) == {OURS, REFERENCE, UNET}
    assert targets.best_of_others(step) == REFERENCE
    assert step["memory"] == {OURS: 20.0, REFERENCE: 30.0, UNET: 30.0}
    assert [targets.reached(one, targets.value(one, step)) for one in wanted] == [True, False]
    text = report.text(results(inference, step))
    assert "gates" in text
    assert "extra memory in MB: ours 20.0, reference 30.0, unet 30.0" in text
    assert "measured beside" not in text


def test_a_wrong_result_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def runners(_: Work) -> dict[str, Runner]:
        inference = Inference(PLAIN)
        return {
            OURS: Runner(inference.all_images, result=lambda: inference.all_images() * 1.01),
            REFERENCE: Runner(inference.all_images, REFERENCE, inference.all_images),
        }

    monkeypatch.setattr(Work, "runners", runners)
    found = models.measure(work("inference"), 3, 1.0, short=True)
    assert "differs from the reference" in found["contestants"][OURS]["wrong"]
    assert all("median" not in entry for entry in found["contestants"].values())
    nothing = torch.zeros(3)
    assert relative_error(nothing, nothing) == 0
    broken = models.compare(
        Runner(nothing.sum, result=lambda: nothing / 0), Runner(nothing.sum, result=lambda: nothing), 1.0
    )
    assert broken["wrong"]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_peak_memory_grows_with_the_image() -> None:
    one = work("step")
    small, large = (
        models.peak_of_this_process(dataclasses.replace(one, network=network), OURS) for network in (TINY, LARGER)
    )
    assert small is not None
    assert large is not None
    assert large > small + 4 * 2 * 4 * 256**2 / 2**20  # more than a few features of the finest level


LARGER = dataclasses.replace(TINY, size=(2, 1, 256, 256))


def record(kind: str, **more: Any) -> dict[str, Any]:
    times = {OURS: 0.002, REFERENCE: 0.004, **({ONE_IMAGE: 0.00125} if kind == "inference" else {})}
    contestants = {
        name: {"rival": name != ONE_IMAGE, "median": seconds, "min": seconds, "max": seconds, "rounds": 15, "wrong": ""}
        for name, seconds in times.items()
    }
    network = {"label": TINY.label, "kind": kind, "loss": "", "parameters": 8_070_000, "multiply_adds": 9_230_000_000}
    return {
        "operator": "models",
        "work": f"{kind} of {TINY.label}",
        "network": network,
        "dtype": "float32",
        "device": "cpu",
        "threads": 2,
        "main": True,
        "allocator": "raised",
        "contestants": contestants,
        "rates": {},
        "floors": {},
        "targets": [],
        **more,
    }


def test_the_table_has_a_line_a_network() -> None:
    records = [
        record("inference"),
        record("step", memory={OURS: 812.3}),
        record("step", network={**record("step")["network"], "loss": "mixed"}),
    ]
    lines = models.markdown(results(*records)).splitlines()
    expected = "| prosma_unet, 2x1x16^2 | 8.07 M | 9.23 G | 2 ms | 4 ms | 800.0 | 2 ms | 4 ms | 812 MB |"
    assert lines[2] == expected
    assert lines[3] == ""
    alone = models.markdown(results(*records[:1])).splitlines()
    assert alone[2] == "| prosma_unet, 2x1x16^2 | 8.07 M | 9.23 G | 2 ms | 4 ms | 800.0 | - | - | - |"


def test_the_readme_has_the_table_of_the_networks() -> None:
    both = results(record("inference"), record("step"))
    page = tables.tables([(Path("benchmarks/results/here/models.json"), both)])
    assert page == f"### models\n\n{models.markdown(both)} From `benchmarks/results/here/models.json`."


def test_records_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    later, first = models.works(2)[3], models.works(2)[0]
    for one in (later, first, later):
        models.keep(record("step", work=one.name, threads=len(one.name)), path)
    assert [one["work"] for one in json.loads(path.read_text())["records"]] == [first.name, later.name]


def test_works_have_names_of_their_own_and_targets_that_can_be_judged() -> None:
    for short in (False, True):
        listed = [one for dims in (2, 3) for one in models.works(dims, short)]
        assert len({one.name for one in listed}) == len(listed) == 2 * (8 + 6) + 1
    for one in listed:
        names = {REFERENCE, *one.yardsticks, *one.parts}
        assert all(target.against in names for target in one.targets)
    mixed = next(one for one in listed if one.loss == "mixed")
    assert mixed.trained()[ONE_OUTPUT] == ("auto", mixed.network, "single")

"""The folder of a run: what is written is read again, and what is missing or damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prosma_ops.data import Preparation, recognise, split, survey
from prosma_ops.training import Configuration, RunFolder, storage

PHANTOM = "phantom:cases=8,size=16"
OPTIONS = {"widths": [2, 4], "norm": "instance"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    collection = recognise(PHANTOM)
    parts = split(collection)
    preparation = Preparation.of(survey(collection), parts.train)
    return RunFolder.create(tmp_path / "run", Configuration(data=PHANTOM, model_options=OPTIONS), preparation, parts)


def test_it_is_what_it_was(run: RunFolder) -> None:
    opened = RunFolder.open(run.path)
    assert opened.configuration == run.configuration
    assert opened.preparation == run.preparation
    assert opened.scheme.outputs == 4
    collection = recognise(PHANTOM)
    parts = opened.splits(collection)
    assert parts.as_json() == split(collection).as_json()
    elsewhere = opened.splits(recognise("phantom:cases=4,size=16"))
    assert sum(len(elsewhere[name]) for name in ("train", "val", "test")) == 4


def test_the_trained_network(run: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"has no best\.safetensors; its training has not come so far"):
        run.model()
    trained = run.new_model()
    run.write_weights("last", trained.state_dict(), {"step": 3})
    with pytest.raises(ValueError, match=r"has no best\.safetensors; there are the weights 'last'"):
        run.model()
    model = RunFolder.open(run.path).model("last")
    assert not model.training
    image = torch.randn(1, 1, 16, 16)
    assert torch.equal(model(image), trained.eval()(image))
    with pytest.raises(ValueError, match="weights is 'worst'; it must be one of best, last"):
        run.model("worst")


def test_weights_of_another_network(run: RunFolder) -> None:
    run.write_weights("best", {"a": torch.ones(2)}, {})
    with pytest.raises(ValueError, match=r"best.safetensors: does not fit the network of configuration.yaml"):
        run.model()


def test_a_run_is_not_written_over(run: RunFolder) -> None:
    parts = split(recognise(PHANTOM))
    with pytest.raises(ValueError, match="holds a run already; --resume goes on with it"):
        RunFolder.create(run.path, run.configuration, run.preparation, parts)
    with pytest.raises(ValueError, match="is a file; a folder"):
        RunFolder.create(run.path / "preparation.json", run.configuration, run.preparation, parts)


def test_what_is_missing_or_damaged_is_named(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        RunFolder.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"is no run of `prosma-ops train`: it has no configuration\.yaml"):
        RunFolder.open(tmp_path)
    good = (run.path / "preparation.json").read_text()
    for bad in (good[: len(good) // 2], "[]", "{}", good.replace('"z-score"', "[1]").replace('"kind"', '"kinds"')):
        (run.path / "preparation.json").write_text(bad)
        with pytest.raises(ValueError, match=r"preparation.json: is damaged"):
            RunFolder.open(run.path)
    (run.path / "configuration.yaml").write_text("epoch: 3\n")
    with pytest.raises(ValueError, match=r"configuration.yaml: the configuration has no key 'epoch'; did you mean 'ep"):
        RunFolder.open(run.path)


def test_the_log_is_rewound_and_a_torn_line_left_out(run: RunFolder) -> None:
    assert run.log() == []
    for step in (1, 2, 3):
        run.add_to_log({"kind": "step", "step": step, "loss": 1 / step})
    with (run.path / "log.jsonl").open("a") as file:
        file.write('{"kind": "st')
    assert [entry["step"] for entry in run.log()] == [1, 2, 3]
    run.rewind_log(2)
    run.add_to_log({"kind": "validation", "step": 2, "dice": float("nan")})
    assert [entry["step"] for entry in run.log()] == [1, 2, 2]
    (run.path / "log.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"log.jsonl: has a line that is none of a training's: '\[\]'"):
        run.log()


TENSORS = {
    "half": torch.randn(3, 2).half(),
    "brain": torch.randn(5).bfloat16(),
    "count": torch.tensor(7),
    "truth": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "turned": torch.randn(2, 3).t(),
}


def test_tensors_and_values_come_back(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    shared = torch.randn(4)
    given: dict[str, Tensor] = TENSORS | {"part": shared[:2], "one": shared, "other": shared[1:]}
    storage.write(path, given, {"step": 3, "best": None, "nan": float("nan")})
    tensors, values = storage.read(path)
    assert set(tensors) == set(given)
    assert all(torch.equal(tensors[name], given[name]) and tensors[name].dtype is given[name].dtype for name in given)
    assert values["step"] == 3
    assert values["nan"] != values["nan"]
    assert [each.name for each in tmp_path.iterdir()] == ["some.safetensors"]


def test_every_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    storage.write(path, TENSORS, {"step": 3})
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        with pytest.raises(ValueError, match=r"some\.safetensors: "):
            storage.read(path)
    for length in (0, 5, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match=r"some\.safetensors: cannot be read"):
            storage.read(path)
    with pytest.raises(ValueError, match="cannot be read"):
        storage.read(tmp_path / "none.safetensors")


def test_what_others_wrote_is_not_believed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="was not written by prosma_ops"):
        storage.read(tmp_path / "a.safetensors")

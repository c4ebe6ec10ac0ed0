"""The configuration of a training: defaults, files, settings on the command line, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from prosma_ops.training import Configuration
from prosma_ops.training.configuration import gathered


def of(*given: Any, **more: Any) -> Configuration:
    return Configuration.from_mapping(gathered(*given, **more))


def test_file_then_settings_then_named(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("epochs: 7\nlearning_rate: 1e-3\nmodel_options: {preset: large, norm: group}\nseed: 3\n")
    found = of(
        file, ["model_options.preset=small", "patch_size=[32, 48]", "augmentation.flip=0", "precision=32"], {"seed": 5}
    )
    assert (found.epochs, found.learning_rate, found.seed) == (7, 1e-3, 5)
    assert found.model_options == {"preset": "small", "norm": "group"}
    assert found.patch_size == (32, 48)
    assert found.augmentation.flip == 0
    assert found.augmentation.affine == Configuration().augmentation.affine
    assert found.precision == "32"


def test_what_is_written_is_what_was_meant(tmp_path: Path) -> None:
    configuration = Configuration(data="there", spacing=(1.0, 0.5, 2), model_options={"strides": [[1, 1], [2, 2]]})
    (tmp_path / "configuration.yaml").write_text(configuration.text())
    assert of(tmp_path / "configuration.yaml") == configuration
    assert set(yaml.safe_load(configuration.text())) == set(configuration.as_mapping())


WRONG = {
    "an unknown key": ({"learning_rte": 1}, "has no key 'learning_rte'; did you mean 'learning_rate'"),
    "one like no other": ({"zzz": 1}, "has no key 'zzz'; the keys are data, model,"),
    "a word for a number": ({"learning_rate": "fast"}, "learning_rate is 'fast'; a number is needed"),
    "a fraction for a count": ({"epochs": 1.5}, "epochs is 1.5; a whole number is needed"),
    "a truth for a count": ({"epochs": True}, "epochs is True; a whole number is needed"),
    "a number for a truth": ({"balanced": 2}, "balanced is 2; true or false is needed"),
    "too little": ({"epochs": 0}, "epochs is 0; it must be at least 1"),
    "too much": ({"train_share": 1.5}, "train_share is 1.5; it must be above 0 and at most 1"),
    "not a number": ({"clip": float("nan")}, "clip is nan; it must be at least 0"),
    "none of the choices": ({"loss": "dice"}, "must be one of dice_ce, deep_supervision, mutation, lomix"),
    "one side for all": ({"patch_size": 64}, r"patch_size is 64; a list is needed, .*: patch_size=\[64, 64\]"),
    "a side that is none": ({"patch_size": [64, 0]}, "patch_size is 0; it must be at least 1"),
    "options that are none": ({"model_options": "large"}, "a mapping is needed: model_options.KEY=VALUE"),
    "an augmentation's key": ({"augmentation": {"flips": 1}}, "augmentation has no key 'flips'; did you mean 'flip'"),
    "an augmentation's value": ({"augmentation": {"flip": 2}}, "flip is a chance and must be between 0 and 1, got 2"),
    "no augmentation": ({"augmentation": 3}, "augmentation is 3; a mapping is needed"),
    "an average of nothing": ({"ema": 1.0}, "ema is 1.0; it must be below 1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_would_do_is_said(wrong: str) -> None:
    given, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        Configuration.from_mapping(given)


@pytest.mark.parametrize(
    ("content", "message"),
    [("- 1\n", "holds a list; lines `key: value`"), ("a: [1", "is no YAML"), (None, "cannot be read"), ("", "")],
)
def test_files_that_hold_none(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "file.yaml"
    if content is not None:
        path.write_text(content)
    if not message:
        assert of(path) == Configuration()
        return
    with pytest.raises(ValueError, match=message) as caught:
        of(path)
    assert str(path) in str(caught.value)


def test_settings_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"--set seed\.x=1 is a key of a mapping, but seed is 3"):
        gathered(None, ["seed=3", "seed.x=1"])
    with pytest.raises(ValueError, match="--set epochs has no value; --set key=value"):
        of(settings=["epochs"])
    with pytest.raises(ValueError, match="is no YAML value"):
        of(settings=["epochs=[1"])


def test_differences_are_of_what_is_learned() -> None:
    one = Configuration()
    assert one.differences(one.replaced(workers=3, log_every=1)) == []
    assert one.differences(one.replaced(epochs=3, augmentation={"flip": 0})) == ["augmentation", "epochs"]

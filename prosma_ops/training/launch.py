"""`train`: from a configuration to a run's folder, begun or gone on with.

Before a step is made everything is read and checked: the configuration, the devices, every image and mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from rich.console import Console

from ..data import Inspection, PreparedCases, inspect, recognise
from ..data.findings import silent
from ..data.inspection_text import track
from . import devices as places
from .checkpoint import Checkpoints, Found
from .configuration import Configuration
from .devices import Devices
from .engine import Training
from .planning import planned
from .progress import Report, Silent, reporting
from .run_folder import RunFolder
from .signals import Interruption


class Outcome(NamedTuple):
    """How a training ended: `signal` is the number of the one that stopped it, 0 for none; `best` is None before the
    first validation; `first` is whether this process is the first, the one that speaks."""

    run: RunFolder
    step: int
    best: float | None
    best_step: int
    signal: int
    first: bool


def train(
    configuration: Configuration | Mapping[str, Any],
    out: Path | str,
    *,
    resume: bool = False,
    devices: Devices | None = None,
    console: Console | None = None,
) -> Outcome:
    """Trains into the folder `out`, which is new, or with `resume` holds a run that was stopped, even before its first
    checkpoint.

    Arguments:
        configuration: or the keys of one; all others have their defaults. With `resume` none is needed, and those given
            must be what the run was begun with.
        devices: see `Devices`.
        console: to tell about it; None for silence.

    Raises ValueError for what is wrong before a step is made, `TrainingError` for what goes wrong later.
    """
    places.quiet()
    given = configuration.as_mapping() if isinstance(configuration, Configuration) else dict(configuration)
    out = Path(out)
    known = RunFolder.open(out) if resume else None
    wanted = as_resumed(known, given) if known is not None else Configuration.from_mapping(given)
    if known is None:
        RunFolder.require_new(out)
    fabric = places.fabric(devices or Devices(), wanted.precision)
    try:
        first = fabric.global_rank == 0
        shown = console if first else None
        if known is None:
            run, found = begun(wanted, out, fabric, shown), None
        else:
            run, found = known.changed(wanted), Checkpoints(out / "checkpoints").newest()
        return _trained(run, found, fabric, shown)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def as_resumed(run: RunFolder, given: Mapping[str, Any]) -> Configuration:
    """The run's configuration, with the changes that have no effect on what it learns. Raises ValueError for others."""
    mine = run.configuration.as_mapping()
    changes = {}
    for name, value in given.items():
        if value is not None:
            parts = isinstance(value, dict) and isinstance(mine.get(name), dict)
            changes[name] = {**mine[name], **value} if parts else value
    changed = Configuration.from_mapping({**mine, **changes})
    if different := run.configuration.differences(changed):
        told = ", ".join(f"{name} {mine[name]}" for name in different)
        raise ValueError(f"{run.path} was begun with {told}; --resume goes on with that, another --out begins anew")
    return changed


def begun(configuration: Configuration, out: Path, fabric: Fabric, console: Console | None) -> RunFolder:
    """A new run: its data looked at, its plan made, its folder written by the first process."""
    if not configuration.data:
        raise ValueError("data is not given: --data names a folder of images, or is `phantom` for generated ones")
    if Path(configuration.data).is_dir():  # so that it is found again from another folder
        configuration = configuration.replaced(data=str(Path(configuration.data).absolute()))
    found = inspect(configuration.data, configuration.split_seed, progress=track if console is not None else silent)
    plan = planned(configuration, found, fabric.world_size)
    if console is not None:
        _tell_warnings(found, console)
    fabric.barrier()  # before the folder is there, which all have found missing
    if fabric.global_rank == 0:
        RunFolder.create(out, plan.configuration, plan.preparation, plan.splits)
    return RunFolder(out, plan.configuration, plan.preparation, plan.splits.as_json(), plan.splits.origin)


def _trained(run: RunFolder, found: Found | None, fabric: Fabric, console: Console | None) -> Outcome:
    splits = run.splits(recognise(run.configuration.data))
    if splits.as_json() != run.cases:
        raise ValueError(f"{run.configuration.data} does not have the cases that {run.path} was begun with")
    memory = int(run.configuration.cache_gigabytes * 2**30)
    cache = run.path / "prepared"
    train = PreparedCases(splits.train, run.preparation, memory, cache)
    val = PreparedCases(splits.val, run.preparation, memory // 4, cache)
    interruption = Interruption()
    first = fabric.global_rank == 0
    step = 0 if found is None else int(found.values["at"]["step"])
    if first:
        run.rewind_log(step)
    with (
        interruption.listening(),
        reporting(run, console or Console(quiet=True), step) if first else nullcontext(Silent()) as report,
    ):
        training = Training(run, fabric, train, val, report, interruption)
        if found is not None:
            training.restore(found.tensors, found.values)
            for damaged in found.passed_over:
                report.say(f"passed over: {damaged}")
            report.say(f"goes on from {found.path}, step {step} of {run.configuration.steps}")
        else:
            _tell_plan(run, training, report)
        at = training.go()
    return Outcome(run, at.step, at.best, at.best_step, interruption.number, first)


def _tell_warnings(found: Inspection, console: Console) -> None:
    warnings = [problem for problem in found.problems if problem.severity == "warning"]
    for problem in warnings[:3]:
        console.print(f"{problem}", highlight=False, soft_wrap=True, markup=False)
    if len(warnings) > 3:
        told = f"{len(warnings) - 3} more warnings: prosma-ops inspect {found.survey.collection.location}"
        console.print(told, highlight=False, soft_wrap=True, markup=False)


def _tell_plan(run: RunFolder, training: Training, report: Report) -> None:
    configuration = run.configuration
    parameters = sum(values.numel() for values in training.supervised.network.parameters())
    counts = ", ".join(f"{len(names)} {part}" for part, names in run.cases.items())
    patch = "x".join(map(str, configuration.patch_size or ()))
    report.say(
        f"{configuration.model}, {parameters:,} parameters, {configuration.loss}, on {training.fabric.device};"
        f" {counts}; {configuration.steps} steps of {configuration.batch_size} samples of {patch}"
    )

"""What a training says while it runs: a bar on the terminal, lines in log.jsonl, curves for TensorBoard.

Only the first process says anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .run_folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Curves of dictionaries, such as the weights of LoMix's mixtures, get a name each: tag/name.
CURVES = ("loss", "auxiliary", "learning_rate", "gradient_norm", "wait_share", "dice", "dice_per_class", "sparsity")


class Report(Protocol):
    """Whom a training tells about itself."""

    def step(self, entry: Mapping[str, Any]) -> None: ...

    def validation(self, entry: Mapping[str, Any]) -> None: ...

    def advance(self, step: int, loss: float) -> None: ...

    def say(self, text: str) -> None: ...


class Silent:
    """The report of every process but the first, and of a training that is part of a program."""

    def step(self, entry: Mapping[str, Any]) -> None:
        """Nothing."""

    def validation(self, entry: Mapping[str, Any]) -> None:
        """Nothing."""

    def advance(self, step: int, loss: float) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Reporter:
    """Into the run's folder, and onto the console: a bar on a terminal, else a line a validation."""

    def __init__(self, run: RunFolder, console: Console, writer: SummaryWriter | None) -> None:
        self.run = run
        self.console = console
        self.writer = writer
        self.started = time.monotonic()
        self.shown: dict[str, Any] = {"loss": "-", "dice": "-", "wait": "-"}
        steps = run.configuration.steps
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}  Dice {task.fields[dice]}  waiting {task.fields[wait]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=120)
        self.task = self.bar.add_task("training", total=steps, **self.shown)

    def advance(self, step: int, loss: float) -> None:
        self.shown["loss"] = f"{loss:.4f}"
        self.bar.update(self.task, completed=step, **self.shown)

    def step(self, entry: Mapping[str, Any]) -> None:
        self.run.add_to_log({"kind": "step", **entry})
        self._curves(entry)
        self.shown["wait"] = f"{entry['wait_share']:.1%}"

    def validation(self, entry: Mapping[str, Any]) -> None:
        self.run.add_to_log({"kind": "validation", **entry})
        self._curves(entry)
        self.shown["dice"] = f"{entry['dice']:.4f}"
        classes = ", ".join(f"{name} {value:.4f}" for name, value in entry["dice_per_class"].items())
        best = "  (best so far)" if entry["best"] else ""
        passed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - self.started))
        self.say(
            f"{passed}  step {entry['step']}/{self.run.configuration.steps}  loss {self.shown['loss']}"
            f"  Dice {entry['dice']:.4f}: {classes}  waiting {self.shown['wait']}{best}"
        )

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _curves(self, entry: Mapping[str, Any]) -> None:
        if self.writer is None:
            return
        for tag, value in entry.items():
            if tag not in (*CURVES, "loss_weights"):
                continue
            for name, number in value.items() if isinstance(value, Mapping) else [("", value)]:
                self.writer.add_scalar(f"{tag}/{name}".rstrip("/"), number, entry["step"])


@contextmanager
def reporting(run: RunFolder, console: Console, first_step: int) -> Iterator[Reporter]:
    """A reporter, whose bar is shown and whose curves are written meanwhile."""
    with ExitStack() as stack:
        writer = None
        if run.configuration.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Curves that a killed run had written beyond its last checkpoint are hidden.
            writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step + 1)
            stack.callback(_close, writer)
        reporter = Reporter(run, console, writer)
        stack.enter_context(reporter.bar)
        yield reporter


def _close(writer: SummaryWriter) -> None:
    """A full disk, which keeps the last curves from being written, was told before."""
    with suppress(OSError):
        writer.close()

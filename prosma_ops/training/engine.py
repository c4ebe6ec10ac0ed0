"""The training loop: steps, validations, checkpoints, and what ends it.

Everything that a step depends on follows from the configuration, the step's number and the state that a checkpoint
holds. So a run that was stopped, or killed, goes on bit for bit, and several processes compute what one would.

A checkpoint is written at the end of an epoch, after its validation, and when a signal asks for one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.fsdp import FSDPStrategy
from torch import Tensor, nn

from ..data import BadFileError, PreparedCases, TrainingSamples, batches
from ..inference.precisions import SCALED
from ..nn import MixedLogitLoss, ProximalGate
from . import optimisation, randomness
from .checkpoint import Checkpoints, State, network_of
from .losses import Supervised
from .progress import Report
from .run_folder import RunFolder
from .signals import Interruption
from .validation import Validator

# So many names of cases are told when a loss is not finite.
MOST_NAMED = 16


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says why, and what is there to go on from."""


@dataclass
class At:
    """How far a training has come."""

    step: int = 0
    validated: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0


class Training:
    """A run that is trained, from its beginning or from a checkpoint.

    Arguments:
        run: its folder, whose configuration has nothing open.
        fabric: launched.
        train, val: the prepared cases.
        report: whom to tell.
        interruption: asked after every step.
    """

    def __init__(
        self,
        run: RunFolder,
        fabric: Fabric,
        train: PreparedCases,
        val: PreparedCases,
        report: Report,
        interruption: Interruption,
    ) -> None:
        configuration = run.configuration
        assert configuration.steps is not None
        assert configuration.batch_size is not None
        assert configuration.epoch_steps is not None
        self.run = run
        self.fabric = fabric
        self.report = report
        self.interruption = interruption
        self.configuration = configuration
        self.steps, self.epoch_steps = configuration.steps, configuration.epoch_steps
        self.samples = TrainingSamples(
            train,
            configuration.patch_size or (),
            seed=configuration.seed,
            augmentation=configuration.augmentation,
            foreground=configuration.foreground,
            balanced=configuration.balanced,
        )
        randomness.seed(configuration.seed)
        self.supervised = Supervised(run.new_model(), configuration.loss, run.scheme, configuration.loss_options)
        self.module, self.optimizer = fabric.setup(
            self.supervised, optimisation.optimizer(self.supervised, configuration)
        )
        self.average = optimisation.AveragedWeights(self.supervised, configuration.ema) if configuration.ema else None
        # The module as its strategy wrapped it: torch.distributed's functions see through that.
        self.state = State(self.module._forward_module, self.optimizer.optimizer, self.average)
        self.checkpoints = Checkpoints(run.path / "checkpoints")
        self.validator = Validator(val, configuration, fabric, self._interrupted)
        self.at = At()
        self.written = -1
        self.agreed = 0
        self.meter = Meter()

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.state.restore(tensors, values)
        self.fabric.strategy.precision.load_state_dict(values["precision"])
        self.at = At(**values["at"])
        self.meter.losses, self.meter.extras = values["losses"]
        self.written = self.at.step
        if self.fabric.global_rank:  # a checkpoint has the random state of the first process only
            randomness.seed(self.configuration.seed + 1000 * self.at.step + self.fabric.global_rank)

    def go(self) -> At:
        """Trains until the end, or until a signal or patience ends it. Raises `TrainingError`."""
        try:
            self._go()
        except (BadFileError, OSError) as error:  # TensorBoard's writer tells of a full disk in the system's words
            stopped = f"the training has stopped at step {self.at.step}"
            raise TrainingError(f"{error}; {stopped}. {self.resumption()}") from error
        return self.at

    def _go(self) -> None:
        if self.at.step and self.at.step % self.epoch_steps == 0 and self.at.validated < self.at.step:
            self._end_epoch()
        loader = iter(self._batches())
        self.meter.start()
        while self.at.step < self.steps and not self._interrupted() and not self._has_patience_ended():
            self._step(loader)
            if self.at.step % self.epoch_steps == 0 or self.at.step == self.steps:
                self._end_epoch()
        if self.written != self.at.step:
            self._write_checkpoint()
        ended = self.at.step == self.at.validated == self.steps
        self.interruption.number = 0 if ended else self._signal()

    def _batches(self) -> Any:
        configuration, fabric = self.configuration, self.fabric
        assert configuration.batch_size is not None
        return batches(
            self.samples,
            configuration.batch_size // fabric.world_size,
            self.steps * configuration.accumulation,
            first=self.at.step * configuration.accumulation,
            rank=fabric.global_rank,
            processes=fabric.world_size,
            workers=configuration.workers,
        )

    def _step(self, loader: Iterator[dict[str, Tensor]]) -> None:
        configuration, fabric, step = self.configuration, self.fabric, self.at.step
        self.module.train()
        rate = optimisation.learning_rate(configuration, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = []
        for part in range(configuration.accumulation):
            with self.meter.waiting():
                batch = next(loader)
            image, label = (batch[name].to(fabric.device, non_blocking=True) for name in ("image", "label"))
            last = part == configuration.accumulation - 1
            with nullcontext() if last else fabric.no_backward_sync(self.module):
                loss, auxiliary = self.module(image, label)
                fabric.backward((loss + auxiliary) / configuration.accumulation)
            losses.append(torch.stack([loss.detach(), auxiliary.detach()]))
        found, extra = self._reduced(torch.stack(losses).mean(0))
        self._require_finite(found + extra, "loss", step)
        norm = self._clip(step)
        told = (step + 1) % configuration.log_every == 0
        insides = self._insides() if told else {}
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(step)
        self.at.step = step + 1
        self.meter.add(found, extra)
        self.report.advance(self.at.step, found + extra)
        if told:
            entry = {"step": self.at.step, "epoch": self._epoch(), "learning_rate": rate, "gradient_norm": norm}
            self.report.step({**entry, **self.meter.taken(), **insides})

    def _reduced(self, losses: Tensor) -> tuple[float, float]:
        """Loss and auxiliary of all processes together; and a signal that one of them got is heard by all, at the same
        step, as none may leave while others wait for it."""
        if self.fabric.world_size > 1:
            heard: Any = self.fabric.all_reduce(losses.new_tensor(float(self.interruption.number)), reduce_op="max")
            self.agreed = int(heard)
            losses = self.fabric.all_reduce(losses.double(), reduce_op="mean")  # type: ignore[assignment]
        found, extra = losses.tolist()
        return found, extra

    def _clip(self, step: int) -> float:
        """The norm of the gradient before it was limited."""
        limit = self.configuration.clip or math.inf
        norm = self.fabric.clip_gradients(self.module, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        assert norm is not None
        found = float(norm)
        if self.configuration.precision != SCALED:  # whose scaler leaves such steps out, and lowers its scale
            self._require_finite(found, "gradient", step)
        return found

    def _require_finite(self, value: float, what: str, step: int) -> None:
        if math.isfinite(value):
            return
        size = (self.configuration.batch_size or 1) * self.configuration.accumulation
        drawn = [self.samples.drawn(number)[0] for number in range(step * size, (step + 1) * size)]
        names = list(dict.fromkeys(self.samples.prepared.cases[index].name for index in drawn))
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        raise TrainingError(
            f"the {what} of step {step + 1} is {value}, so the training has stopped; its batch was cut from"
            f" {', '.join(names[:MOST_NAMED])}{more}. {self.resumption()} With a lower learning_rate, or a smaller"
            " clip, another run may get past it."
        )

    def resumption(self) -> str:
        """Which checkpoint is the last good one, and how to go on from it."""
        newest = next(iter(self.checkpoints.paths()), None)
        if newest is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {newest}; prosma-ops train --resume --out {self.run.path} goes on from it."

    def _insides(self) -> dict[str, Any]:
        """What the network's gates and the loss's weights are like, as of the step's forward."""
        if isinstance(self.fabric.strategy, FSDPStrategy):
            return {}  # no process has the whole of a gate's parameters
        named = self.supervised.network.named_modules()
        gates = {name: gate.sparsity() for name, gate in named if isinstance(gate, ProximalGate)}
        found: dict[str, Any] = {"sparsity": gates} if gates else {}
        if isinstance(self.supervised.criterion, MixedLogitLoss):
            found["loss_weights"] = self.supervised.criterion.weights()
        return found

    def _end_epoch(self) -> None:
        """Validation where it is due, then a checkpoint. Where a signal ends the validation it is made up for later."""
        due = self._epoch() % self.configuration.validate_every == 0 or self.at.step == self.steps
        with self.meter.paused():
            if not due or self._validate():
                self.at.validated = self.at.step
            self._write_checkpoint()

    def _epoch(self) -> int:
        return math.ceil(self.at.step / self.epoch_steps)

    def _validate(self) -> bool:
        with self._network() as network:
            found = self.validator(network)
        if found is None:
            return False
        better = found.dice == found.dice and (self.at.best is None or found.dice > self.at.best)
        if better:
            self.at.best, self.at.best_step, self.at.stale = found.dice, self.at.step, 0
            self._write_weights("best", self.state.network())
        else:
            self.at.stale += 1
        place = {"step": self.at.step, "epoch": self._epoch(), "best": better}
        self.report.validation({**place, "dice": found.dice, "dice_per_class": found.per_class})
        return True

    @contextmanager
    def _network(self) -> Iterator[nn.Module]:
        """The network that predictions are made with: averaged, and whole where FSDP has spread it."""
        if isinstance(self.fabric.strategy, FSDPStrategy):
            with torch.random.fork_rng():
                whole = self.run.new_model()
            whole.load_state_dict(self.state.network(everywhere=True))
            yield whole
        else:
            with nullcontext() if self.average is None else self.average.in_place():
                yield self.supervised.network

    def _has_patience_ended(self) -> bool:
        return 0 < self.configuration.patience <= self.at.stale

    def _signal(self) -> int:
        """The number of the one that came, 0 for none; of several processes, of that on which all have agreed."""
        return self.interruption.number if self.fabric.world_size == 1 else self.agreed

    def _interrupted(self) -> bool:
        return self._signal() != 0

    def _write_weights(self, weights: str, network: Mapping[str, Tensor]) -> None:
        if self.fabric.global_rank == 0:
            self.run.write_weights(weights, network, {"step": self.at.step, "dice": self.at.best})

    def _write_checkpoint(self) -> None:
        tensors, values = self.state.gather()
        values |= {
            "at": asdict(self.at),
            "losses": [self.meter.losses, self.meter.extras],
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        self._write_weights("last", network_of(tensors))
        if self.fabric.global_rank == 0:
            self.checkpoints.write(self.at.step, tensors, values)
        self.written = self.at.step


class Meter:
    """The mean loss since it was last asked, and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.extras: list[float] = []
        self.start()

    def start(self) -> None:
        """The clock; the losses stay, of which those of a checkpoint were timed by another."""
        self.began = time.perf_counter()
        self.waited = 0.0
        self.timed = 0

    def add(self, loss: float, extra: float) -> None:
        self.losses.append(loss)
        self.extras.append(extra)
        self.timed += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For data, meanwhile."""
        since = time.perf_counter()
        yield
        self.waited += time.perf_counter() - since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time meanwhile, like that of a validation, does not count."""
        since = time.perf_counter()
        yield
        self.began += time.perf_counter() - since

    def taken(self) -> dict[str, float]:
        passed = time.perf_counter() - self.began
        count = max(1, len(self.losses))
        found = {
            "loss": sum(self.losses) / count,
            "auxiliary": sum(self.extras) / count,
            "wait_share": self.waited / max(passed, 1e-9),
            "step_seconds": passed / max(1, self.timed),
        }
        self.losses, self.extras = [], []
        self.start()
        return found

"""From a folder of images to a trained network: configuration, run folder, checkpoints, the loop.

    train({"data": "images"}, "run")    the whole of it
    run = RunFolder.open("run")         what `prosma-ops train --out run` wrote
    model = run.model("best")           the network, ready for `run.preparation`'s images

Each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import lazy

if TYPE_CHECKING:
    from .configuration import Configuration
    from .devices import Devices
    from .engine import TrainingError
    from .launch import Outcome, train
    from .run_folder import RunFolder

_HOME = {
    "Configuration": ".configuration",
    "Devices": ".devices",
    "Outcome": ".launch",
    "RunFolder": ".run_folder",
    "TrainingError": ".engine",
    "train": ".launch",
}
__all__ = ["Configuration", "Devices", "Outcome", "RunFolder", "TrainingError", "train"]

__getattr__, __dir__ = lazy.names(__name__, __all__, _HOME)

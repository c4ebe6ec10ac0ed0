"""The commands of `prosma-ops`, one a module: `add(commands)` adds its arguments, `run(options)` is its exit status.

A module imports what is heavy when it runs, so that `prosma-ops --help` answers at once.
"""

from . import check, demo, doctor, evaluate, inspect, predict, train

COMMANDS = (check, doctor, inspect, train, evaluate, predict, demo)

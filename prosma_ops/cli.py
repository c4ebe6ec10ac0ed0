"""The command `prosma-ops`. Each of its commands is a module of `prosma_ops.commands`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # what the shell reports of a program that SIGINT ended
    except BrokenPipeError:  # the reader, `head` for one, has seen enough; nor shall Python's own last flush complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what the shell reports of a program that SIGPIPE ended


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prosma-ops", description="Fused operators for medical image segmentation.")
    parser.add_argument("--version", action="version", version=f"prosma-ops {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser

"""`prosma-ops doctor`: what is installed, which backends can run, and why others cannot."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .parsers import Commands


def add(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what is installed, which backends can run, and why others cannot",
        description="What is installed here and which backends can run. Made to be pasted into a bug report: it"
        " prints no user names and no paths outside the package.",
    )
    doctor.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from .. import doctor

    print(doctor.text())
    return 0

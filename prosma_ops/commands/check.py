"""`prosma-ops check`: every implementation compared with float64."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .parsers import usable_device, write_json

if TYPE_CHECKING:
    from .parsers import Commands

BACKENDS = ("reference", "cpu", "triton", "cuda")


def add(commands: Commands) -> None:
    check = commands.add_parser(
        "check",
        help="compare every implementation with float64",
        description="Compare every implementation that can run here with the float64 reference: forward and every"
        " gradient, in every dtype and layout. Exit status 1 if anything fails. Without a GPU, Triton's kernels run"
        " under its interpreter.",
    )
    check.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)"
    )
    check.add_argument("--operator", action="append", metavar="NAME", help="only this operator (may be repeated)")
    check.add_argument("--backend", action="append", choices=BACKENDS, help="only this backend (may be repeated)")
    check.add_argument("--size", choices=("tiny", "full"), default="full", help="how many cases, and how large")
    check.add_argument("--json", type=Path, metavar="FILE", help="also write every comparison to FILE")
    check.add_argument(
        "--self-test", action="store_true", help="plant errors into every implementation: each must be reported"
    )
    check.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import torch

    from ..testing import check

    device = usable_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    request = check.Request(device, options.operator, options.backend, options.size, options.self_test)
    report = check.run(request)
    print(check.text(report))
    if options.json is not None:
        write_json(options.json, report.as_json())
    return 0 if report.passed else 1

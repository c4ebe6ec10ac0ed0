"""The command `prosma-ops`: check | doctor | inspect. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import __version__

BACKENDS = ("reference", "cpu", "triton", "cuda")


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
    except BrokenPipeError:  # the reader, `head` for one, has seen enough; nor shall Python's own last flush complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what the shell reports of a program that SIGPIPE ended


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prosma-ops", description="Fused operators for medical image segmentation.")
    parser.add_argument("--version", action="version", version=f"prosma-ops {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

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
    check.set_defaults(run=run_check)

    doctor = commands.add_parser(
        "doctor",
        help="what is installed, which backends can run, and why others cannot",
        description="What is installed here and which backends can run. Made to be pasted into a bug report: it"
        " prints no user names and no paths outside the package.",
    )
    doctor.set_defaults(run=run_doctor)

    inspect = commands.add_parser(
        "inspect",
        help="what a folder of images holds, and what is wrong with it",
        description="Read every image and mask of a folder and print what was found: counts, sizes, spacings, labels"
        " and their shares, ranges of intensity, splits, problems. Exit status 1 if anything could not be trained on.",
    )
    inspect.add_argument("data", metavar="DIR", help="a folder of images, or `phantom` for generated ones")
    inspect.add_argument("--json", type=Path, metavar="FILE", help="also write everything, case by case, to FILE")
    inspect.add_argument("--seed", type=int, default=0, help="of the split, where the folder has none (default: 0)")
    inspect.set_defaults(run=run_inspect)
    return parser


def run_check(options: argparse.Namespace) -> int:
    import torch

    from .testing import check

    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {name!r}, which cannot be used here: {str(error).splitlines()[0]}") from None
    request = check.Request(device, options.operator, options.backend, options.size, options.self_test)
    report = check.run(request)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=1, allow_nan=False) + "\n")
    print(check.text(report))
    return 0 if report.passed else 1


def run_doctor(options: argparse.Namespace) -> int:
    from . import doctor

    print(doctor.text())
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    with needing_the_extra("train"):
        from rich.console import Console

        from .data import inspection, inspection_text

    found = inspection.inspect(options.data, options.seed, progress=inspection_text.track)
    if options.json is not None:
        options.json.write_text(json.dumps(inspection.as_json(found), indent=1, allow_nan=False) + "\n")
    inspection_text.show(found, Console())
    return 1 if found.errors else 0


@contextmanager
def needing_the_extra(extra: str) -> Iterator[None]:
    """A library that is not installed is named, together with what installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'prosma-ops[{extra}]'") from error

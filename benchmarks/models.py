"""The networks: what inference and a training step take, on the fused operators and on the reference backend.

    python -m benchmarks.models                      every network, one process each; hours on a small machine
    python -m benchmarks.models prosma_unet l2g_net  some of them, in 2-D and 3-D
    python -m benchmarks.models --dims 2 --short     smaller presets and fewer rounds, to try it
    python -m benchmarks.models --markdown           the table for the README, of what was measured before

224^2 in batches of 2, 64^3 likewise; float32, all threads, raised allocator thresholds. In each round every contestant
runs once. Records are added to benchmarks/results/<device>/models.json by network, so a run may be done in pieces. A
fused result that is not the reference's gets no time.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prosma_ops import backends

from . import machine, report, single, targets
from .harness import summary
from .networks import Inference, Network, Runner, Training, megabytes, relative_error, shares
from .targets import OURS, Target

REFERENCE = "reference"
ONE_IMAGE = "one image"
ONE_OUTPUT = "one output"
UNET = "unet"
ALL_2D = ("unet", "attention_unet", "prosma_unet", "vq_unet", "synergy_net", "l2g_net", "trans_unet", "emcad")
ALL_3D = ALL_2D[:6]
# Rounding differs between the backends, and of 1024 codes two may be as near.
LIMITS = {"inference": 1e-3, "step": 1e-2}
# Whose median is taken.
PROCESSES = 3
# Every tensor of some size in pages of its own, which go back when it is freed. By itself glibc raises this threshold
# up to 32 MB as it meets larger blocks, and then counts what lies free between others: one step took 357 to 406 MB, and
# 302.6 to 302.8 with it.
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
GATES = {"gates": ["proximal_gate"]}
BOTTLENECK = {"transport and codebook": ["transport", "apply_plan", "sinkhorn", "nearest_code", "code_statistics"]}


@dataclass(frozen=True)
class Work:
    """One line of the report; `memory` and `parts` name what else is measured of a step."""

    name: str
    network: Network
    kind: str  # "inference" or "step"
    loss: str = ""
    yardsticks: Mapping[str, tuple[Network, str]] = field(default_factory=dict)  # name -> network and loss
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    targets: Sequence[Target] = ()

    def runners(self) -> dict[str, Runner]:
        if self.kind == "inference":
            inference = Inference(self.network)
            return {
                OURS: Runner(inference.all_images, result=inference.all_images),
                REFERENCE: Runner(inference.all_images, REFERENCE, inference.all_images),
                ONE_IMAGE: Runner(inference.one_image, rival=False),
            }
        training = Training(self.network, self.loss)
        return {
            OURS: Runner(training.step, result=training.gradients),
            REFERENCE: Runner(training.step, REFERENCE, training.gradients),
            **{name: Runner(Training(*other).step, rival=False) for name, other in self.yardsticks.items()},
        }

    def trained(self) -> dict[str, tuple[str, Network, str]]:
        """Whose peak memory is measured: backend, network and loss."""
        ours = {OURS: ("auto", self.network, self.loss), REFERENCE: (REFERENCE, self.network, self.loss)}
        return ours | {name: ("auto", *other) for name, other in self.yardsticks.items()}


def networks(dims: int, short: bool) -> dict[str, Network]:
    size, classes = {2: ((2, 1, 224, 224), 9), 3: ((2, 1, 64, 64, 64), 4)}[dims]
    # 16 to 128 channels in 3-D, as 64^3 at 32 to 320 takes half a minute a step.
    preset = {"preset": "large" if dims == 2 and not short else "small"}
    own = {"emcad": {}} if not short else {"emcad": {"encoder": "pvt_v2_b0"}}
    names = ALL_2D if dims == 2 else ALL_3D
    return {name: Network(name, size, classes, own.get(name, preset)) for name in names}


def works(dims: int, short: bool = False) -> list[Work]:
    """The targets are for two threads of a CPU, batch 2, float32."""
    found = networks(dims, short)
    steps: dict[str, dict[str, Any]] = {
        "prosma_unet": {
            "yardsticks": {UNET: (found[UNET], "")},
            "parts": GATES,
            "targets": [
                Target("speedup", REFERENCE, at_least=1.15 if dims == 2 else 1.6),
                Target("share", "gates", at_most=0.05 if dims == 2 else 0.15),
            ],
        },
        "l2g_net": {
            "yardsticks": {UNET: (found[UNET], "")},
            "parts": BOTTLENECK,
            "targets": [
                Target("share", "transport and codebook", at_most=0.04),
                Target("memory share", UNET, at_most=1.05),
            ]
            if dims == 2
            else [],
        },
    }
    listed = []
    for name, network in found.items():
        faster = [Target("slowdown", REFERENCE, at_most=1.03)]
        listed.append(Work(f"inference of {network.label}", network, "inference", targets=faster))
        listed.append(Work(f"training step of {network.label}", network, "step", **steps.get(name, {})))
    if "emcad" in found:
        network = found["emcad"]
        listed.append(
            Work(
                f"training step of {network.label}, LoMix",
                network,
                "step",
                loss="mixed",
                yardsticks={ONE_OUTPUT: (network, "single")},
                targets=[Target("slowdown", ONE_OUTPUT, at_most=1.15), Target("memory share", ONE_OUTPUT, at_most=1.1)],
            )
        )
    return listed


# One work.


def measure(work: Work, rounds: int, budget: float, short: bool) -> dict[str, Any]:
    """The record of a work, in the form of `benchmarks.harness`; rounds end early when the budget is spent."""
    runners = work.runners()
    entries: dict[str, dict[str, Any]] = {name: {"rival": runner.rival} for name, runner in runners.items()}
    entries[OURS] |= compare(runners[OURS], runners[REFERENCE], LIMITS[work.kind])
    found: dict[str, Any] = {}
    if not entries[OURS]["wrong"]:
        for name, times in interleaved(runners, rounds, budget).items():
            entries[name] |= summary(times)
        if work.parts:
            found["shares"] = shares(runners[OURS].run, work.parts)
        if work.kind == "step":
            found["memory"] = peaks(work, short)
    record = {
        "operator": "models",
        "work": work.name,
        "network": {"label": work.network.label, "kind": work.kind, "loss": work.loss, **work.network.counted()},
        "dtype": "float32",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "main": True,
        "allocator": machine.allocator(),
        "calls": 1,
        "contestants": entries,
        "rates": {},
        "floors": {},
        "memory_unit": "MB",
        "targets": [target.as_json() for target in work.targets],
        **found,
    }
    print(report.line(record), flush=True)
    return record


def compare(ours: Runner, reference: Runner, limit: float) -> dict[str, Any]:
    found, expected = ours.compared(), reference.compared()
    assert found is not None
    assert expected is not None
    error = relative_error(found, expected)
    # Written so that NaN is wrong.
    wrong = "" if error <= limit else f"differs from the reference by {error:.2g} of its size; {limit:g} is allowed"
    return {"error": error / limit, "wrong": wrong}


def interleaved(runners: Mapping[str, Runner], rounds: int, budget: float) -> dict[str, list[float]]:
    """Seconds of each contestant, in turn; at least three rounds after one that does not count."""
    warm = sum(runner.seconds() for runner in runners.values())
    count = max(3, min(rounds, int(budget / max(warm, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(count):
        for name, runner in runners.items():
            times[name].append(runner.seconds())
    return times


def peaks(work: Work, short: bool) -> dict[str, float | None]:
    """The median of some processes for each that is trained, in turn."""
    rounds = [
        {name: peak_memory(work, name, short) for name in work.trained()} for _ in range(1 if short else PROCESSES)
    ]

    def median(name: str) -> float | None:
        known = [peak for one in rounds if (peak := one[name]) is not None]
        return statistics.median(known) if known else None

    return {name: median(name) for name in rounds[0]}


def peak_memory(work: Work, name: str, short: bool) -> float | None:
    """MB that a process needs for the network and two training steps, above what Python and torch take."""
    command = [sys.executable, "-m", "benchmarks.models", "--peak", work.name, name] + ["--short"] * short
    environment = machine.environment("default") | GIVING_BACK
    done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    found: float | None = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_of_this_process(work: Work, name: str) -> float | None:
    backend, network, loss = work.trained()[name]

    def train() -> None:
        training = Training(network, loss)
        training.step()
        training.step()

    with backends.use_backend(backend):
        # Code, thread pools and what libraries keep do not count; a tiny network has them all loaded.
        Training(replace(network, size=(*network.size[:2], *(32 for _ in network.size[2:]))), loss).step()
        gc.collect()
        return megabytes(single.cpu_peak(train))


# All of them.


def results_path(slug: str, short: bool) -> Path:
    """Whole runs are kept beside the code; short ones in results/local, which git ignores."""
    return Path(__file__).parent / "results" / ("local" if short else slug) / "models.json"


def keep(record: Mapping[str, Any], path: Path) -> None:
    """Put a record among those that are there, in the place of an older one of the same work."""
    known = json.loads(path.read_text())["records"] if path.exists() else []
    records = [one for one in known if one["work"] != record["work"]] + [record]
    order = {work.name: number for number, work in enumerate(work for dims in (2, 3) for work in works(dims))}
    records.sort(key=lambda one: order.get(one["work"], len(order)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine.record("cpu"), "records": records}, indent=1) + "\n")


def measure_here(names: Sequence[str], dims: Sequence[int], arguments: argparse.Namespace) -> int:
    """The works of some networks in this process; the exit status."""
    path, wrong = results_path(machine.record("cpu")["slug"], arguments.short), False
    for work in (work for rank in dims for work in works(rank, arguments.short)):
        if work.network.name in names and arguments.keyword in work.name:
            record = measure(work, arguments.rounds, arguments.budget, arguments.short)
            wrong = wrong or bool(record["contestants"][OURS]["wrong"])
            keep(record, path)
    return int(wrong)


def measure_in_processes(names: Sequence[str], dims: Sequence[int], arguments: argparse.Namespace) -> int:
    """A process for each network, with the allocator's thresholds raised, which glibc reads when a process starts."""
    status = 0
    for rank in dims:
        for name in (name for name in names if name in networks(rank, arguments.short)):
            command = [sys.executable, "-m", "benchmarks.models", name, "--dims", str(rank), "--here"]
            command += ["--rounds", str(arguments.rounds), "--budget", str(arguments.budget)]
            command += ["--keyword", arguments.keyword] + ["--short"] * arguments.short
            status |= subprocess.run(
                command, cwd=machine.ROOT, env=machine.environment("raised"), check=False
            ).returncode
    return status


# The table for the README.

COLUMNS = (
    "network",
    "parameters",
    "multiply-adds",
    "inference",
    "reference",
    "images/s",
    "training step",
    "reference",
    "peak",
)
NOTE = (
    "Medians of interleaved rounds of two images, with the fused operators and on the reference backend, plain PyTorch;"
    " images/s one at a time; multiply-adds of one image; steps with cross-entropy of one output; peak memory of the"
    " process in steps, above Python's and torch's own."
)


def markdown(results: Mapping[str, Any]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    labels = dict.fromkeys(record["network"]["label"] for record in results["records"])
    lines += ["| " + " | ".join(row(label, results["records"])) + " |" for label in labels]
    device, torch_version = results["machine"]["device"], results["machine"]["versions"]["torch"]
    threads = results["records"][0]["threads"]
    where = f"{device}, torch {torch_version}, {threads} threads, float32, allocator thresholds raised."
    return "\n".join([*lines, "", f"{where} {NOTE}"])


def row(label: str, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    own = [one for one in records if one["network"]["label"] == label and not one["network"]["loss"]]
    of = {one["network"]["kind"]: one for one in own}
    counted = own[0]["network"] if own else {}
    yield label
    yield f"{counted['parameters'] / 1e6:.2f} M" if counted else ""
    yield f"{counted['multiply_adds'] / 1e9:.2f} G" if counted else ""
    inference, step = (targets.medians(of[kind]) if kind in of else {} for kind in ("inference", "step"))
    yield from (report.duration(inference.get(name)) for name in (OURS, REFERENCE))
    yield f"{1 / inference[ONE_IMAGE]:.1f}" if inference.get(ONE_IMAGE) else "-"
    yield from (report.duration(step.get(name)) for name in (OURS, REFERENCE))
    memory = of.get("step", {}).get("memory", {}).get(OURS)
    yield f"{memory:.0f} MB" if memory else "-"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks (default: all)")
    parser.add_argument("--dims", type=int, choices=(2, 3), help="default: both")
    parser.add_argument("--keyword", default="", help="only works whose name holds this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=120, help="seconds for the rounds of one work; three at least")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--here", action="store_true", help="in this process and its allocator setting")
    parser.add_argument("--peak", nargs=2, metavar=("WORK", "CONTESTANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(ALL_2D))
    if unknown:
        parser.error(f"no such network: {', '.join(unknown)}; there are {', '.join(ALL_2D)}")
    dims = (arguments.dims,) if arguments.dims else (2, 3)
    if arguments.peak:
        every = (work for rank in dims for work in works(rank, arguments.short))
        work = next(work for work in every if work.name == arguments.peak[0])
        print(json.dumps(peak_of_this_process(work, arguments.peak[1])))
        return 0
    path = results_path(machine.record("cpu")["slug"], arguments.short)
    if arguments.markdown:
        print(markdown(report.load(path)))
        return 0
    run = measure_here if arguments.here else measure_in_processes
    status = run(arguments.names or ALL_2D, dims, arguments)
    if not arguments.here and path.exists():
        print(report.text(report.load(path)))
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Records and results files as the benchmarks write them, without measuring: for the tests of what is made of them."""

from __future__ import annotations

from typing import Any

from benchmarks.sweeps import THREADS, growth
from prosma_ops.report.records import EAGER, OURS

HEAD = {
    "kind": "cpu",
    "device": "A processor, 2 cores",
    "driver": "Linux 6",
    "clocks": {"cpu": "2500 MHz"},
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "commit": "abc",
    "date": "2026-01-02 03:04 UTC",
}
SETTING = {"dtype": "float32", "device": "cpu", "threads": 2, "main": True, "allocator": "raised", "calls": 1}


def entry(seconds: float, **more: Any) -> dict[str, Any]:
    times = {"median": seconds, "min": 0.9 * seconds, "max": 1.5 * seconds, "rounds": 9}
    return {"rival": True, "error": 0.25, "wrong": "", "first": 0.5, **times, **more}


def results(*records: dict[str, Any]) -> dict[str, Any]:
    return {"machine": HEAD, "records": list(records)}


# Races.


def record(**more: Any) -> dict[str, Any]:
    """Ours 2 ms, the best rival 9 ms, floors of 1 and 1.5 ms."""
    return {
        "operator": "proximal_gate",
        "work": "forward, 4x64x128^2",
        **SETTING,
        "contestants": {
            OURS: entry(0.002),
            EAGER: entry(0.020),
            "torch.compile": entry(0.009),
            "softshrink": entry(0.001995, rival=False),
        },
        "rates": {"fma": 500.0, "exp": None, "copy": 50.0},
        "floors": {"memory": 1e-3, "fma": 1.5e-3},
        "memory": {OURS: 3.5, EAGER: 70.0},
        "targets": [],
        **more,
    }


def race_results() -> dict[str, Any]:
    """A file of races with rivals on both sides of ours, and a yardstick."""
    rivals = {EAGER: entry(0.02), "torch.compile": entry(0.001), "a copy": entry(0.001, rival=False)}
    one = point_record(100, 0.002)
    del one["sweep"]
    two = one | {"work": "forward + backward, 4x64x128^2", "dtype": "bfloat16"}
    return results(one | {"contestants": {OURS: entry(0.002)} | rivals}, two)


# Sweeps.


def point_record(value: float, seconds: float, name: str = "size", **more: Any) -> dict[str, Any]:
    about = {"name": name, "parameter": "pixels", "what": "forward, 1xs^2", "value": value, "left_out": {}}
    return {
        "operator": "proximal_gate",
        "sweep": about | {"tensor_bytes": 4 * value},
        "work": f"forward, {value}",
        **SETTING,
        "contestants": {OURS: entry(seconds), EAGER: entry(10 * seconds)},
        "rates": {"fma": 300.0, "exp": 2.0, "copy": 15.0},
        "floors": {"memory": seconds / 4, "fma": seconds / 2, "exp": seconds / 8},
        "memory": {OURS: value / 50, EAGER: value / 10},
        "targets": [],
        **more,
    }


def sweep_results() -> dict[str, Any]:
    """A file of one sweep over sizes and one over threads, with a point left out."""
    points = [point_record(value, 1e-5 * value) for value in (1, 100, 1000, 10000)]
    points += [point_record(count, 0.1 / count, THREADS, threads=count, memory={}) for count in (1, 2)]
    out = [{"operator": "proximal_gate", "sweep": points[0]["sweep"] | {"left_out": {OURS: "would need 17.0 GB"}}}]
    start = {"import torch": 2.0, "first call": 0.003}
    return results(*points) | {"left_out": out, "fits": growth.fits(points), "start": start}

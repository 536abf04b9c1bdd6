"""Journals as a measurement would have left them, with numbers that are easy to check by hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from labs.bench import scale
from labs.bench.resume import Journal

MACHINE = {"cpu": "abacus", "cpus": 2, "kernel": "6.1", "hypervisor": False, "load_average": [0.5, 0.4, 0.3]}


def journal(plan: scale.Plan, path: Path | None = None, machine: dict[str, Any] = MACHINE) -> Journal:
    return Journal.open(path, machine, asdict(plan.method))


def percentiles(p50: float) -> dict[str, float]:
    return {"p50": p50, "p90": p50 + 10, "p99": p50 + 100}


def flows(p50: float) -> dict[str, Any]:
    targets = {"first": p50 - 1, "middle": p50, "last": p50 + 1, "direct": p50 - 2, "all": p50}
    return {name: percentiles(value) for name, value in targets.items()}


def fill(into: Journal, datapath: str, services: int, p50s: list[float], update_ms: float = 1.0) -> None:
    """All that one worker would have answered; `p50s`: of each sweep."""
    load = {"full_sync_s": 0.5, "rules": 7 * services, "memory_mb": 3.0}
    into.add(datapath, services, "load", load)
    for p50 in p50s:
        into.add(datapath, services, "flows", flows(p50))
    for short in (900.0, 1100.0, 1000.0):
        into.add(datapath, services, "rates", {"short": short, "kept": 20_000.0})
    into.add(datapath, services, "updates", {"ms": [update_ms, update_ms / 2, update_ms * 2]})

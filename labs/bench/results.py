"""What workers measured -> one result for each datapath and number of Services: medians, with the range beside them.

What belongs here: that arithmetic, and the targets that the results are held against. What does not: how they look
(`report`, `plots`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from labs.bench.names import ALL, DIRECT, EBPF
from labs.bench.resume import Journal

FEW = 10
GROWTH = 0.10
UPDATE_MS = 2.0

Percentiles = dict[str, float]
Range = tuple[float, float]

KINDS = ("load", "flows", "rates", "updates")


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one datapath with so many Services; times of new flows in microseconds.

    Figures are medians over the rounds, those of new flows over the quickest quarter of the turns; `spread` tells
    between which values the middle half of all of them lies. `by_target`: new flows to the first, a middle and the last
    Service in the order of the rules, and `direct` to a pod, without a Service. None: not measured, or, of memory,
    counted by nobody.
    """

    datapath: str
    services: int
    new_flow_us: Percentiles
    short_connections_per_s: float | None
    keepalive_requests_per_s: float | None
    rules: int
    full_sync_s: float
    endpoint_update_ms: float | None
    memory_mb: float | None
    rounds: int
    by_target: dict[str, Percentiles]
    spread: dict[str, Range]

    def to_json(self) -> dict[str, Any]:
        """As the contract has it, and more after that."""
        return {
            "datapath": self.datapath,
            "services": self.services,
            "new_flow_us": _rounded(self.new_flow_us),
            "short_connections_per_s": _to(self.short_connections_per_s, None),
            "keepalive_requests_per_s": _to(self.keepalive_requests_per_s, None),
            "rules": self.rules,
            "full_sync_s": round(self.full_sync_s, 3),
            "endpoint_update_ms": _to(self.endpoint_update_ms, 3),
            "memory_mb": _to(self.memory_mb, 2),
            "rounds": self.rounds,
            "new_flow_us_by_target": {name: _rounded(one) for name, one in self.by_target.items()},
            "spread": {name: [round(low, 3), round(high, 3)] for name, (low, high) in self.spread.items()},
        }


def _to(value: float | None, digits: int | None) -> float | None:
    return None if value is None else round(value, digits)


def _rounded(percentiles: Percentiles) -> Percentiles:
    return {name: round(value, 2) for name, value in percentiles.items()}


def collect(
    journal: Journal, datapaths: Iterable[str], sizes: Sequence[int], *, flows_only: bool = False
) -> list[Result]:
    """The results of all that has been measured at least once, by number of Services and in the order of datapaths."""
    names = list(datapaths)
    found = (_result(journal, name, size, flows_only) for size in sizes for name in names)
    return [one for one in found if one is not None]


def _result(journal: Journal, datapath: str, services: int, flows_only: bool) -> Result | None:
    loads, flows, rates, updates = (journal.of(datapath, services, kind) for kind in KINDS)
    if not (loads and flows and (flows_only or (rates and updates))):
        return None
    memory = [each["memory_mb"] for each in loads if each["memory_mb"] is not None]
    series: dict[str, list[float]] = {
        "new_flow_us_p50": [each[ALL]["p50"] for each in flows],
        "short_connections_per_s": [each["short"] for each in rates],
        "keepalive_requests_per_s": [each["kept"] for each in rates],
        "full_sync_s": [each["full_sync_s"] for each in loads],
        "endpoint_update_ms": [one for each in updates for one in each["ms"]],
    }
    quiet = _quietest(flows)
    percentiles = {name: _medians([each[name] for each in quiet]) for name in quiet[0]}
    return Result(
        datapath,
        services,
        percentiles.pop(ALL),
        _median(series["short_connections_per_s"]),
        _median(series["keepalive_requests_per_s"]),
        loads[-1]["rules"],
        statistics.median(series["full_sync_s"]),
        _median(series["endpoint_update_ms"]),
        _median(memory),
        len(rates),
        percentiles,
        {name: _middle_half(values) for name, values in series.items() if values},
    )


def _quietest(flows: Sequence[dict[str, Percentiles]]) -> list[dict[str, Percentiles]]:
    """The quickest quarter of the turns: what makes others slower is other work on the machine, and that only."""
    return sorted(flows, key=lambda each: each[ALL]["p50"])[: math.ceil(len(flows) / 4)]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _medians(found: Sequence[Percentiles]) -> Percentiles:
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def _middle_half(values: Sequence[float]) -> Range:
    """Between which two values the middle half lies; all of them, of fewer than four."""
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, and whether it is met."""

    target: str
    met: bool
    measured: str


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """The targets of the eBPF datapath that these results can tell about."""
    sizes = sorted({one.services for one in results})
    by = {(one.datapath, one.services): one for one in results}
    most = sizes[-1] if sizes else 0
    few, many = by.get((EBPF, FEW)), by.get((EBPF, most))
    found: list[Verdict] = []
    if many is None:
        return found
    p50 = many.new_flow_us["p50"]
    if few is not None and most > FEW:
        growth = p50 / few.new_flow_us["p50"] - 1
        target = f"a new flow with {most:,} Services within {GROWTH:.0%} of one with {FEW}"
        found.append(Verdict(target, growth <= GROWTH, f"{growth:+.1%}"))
    others = [one for one in results if one.services == most and one.datapath != EBPF]
    if others:
        best = min(others, key=lambda one: one.new_flow_us["p50"])
        measured = f"{p50:.1f} µs, {best.datapath} {best.new_flow_us['p50']:.1f} µs"
        target = f"a new flow quicker than with every other datapath at {most:,} Services"
        found.append(Verdict(target, p50 < best.new_flow_us["p50"], measured))
    changes = [one.endpoint_update_ms for one in results if one.datapath == EBPF and one.endpoint_update_ms is not None]
    if changes:
        target = f"one endpoint's change in effect within {UPDATE_MS:g} ms at any size"
        found.append(Verdict(target, max(changes) <= UPDATE_MS, f"{max(changes):.2f} ms"))
    return found


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that datapaths are compared by. `sign`: 1 if less is better, -1 if more is."""

    name: str
    value: Callable[[Result], float | None]
    form: str
    sign: int = 1


MEASURES = (
    Measure("new flow, p50, µs", lambda one: one.new_flow_us["p50"], "{:.1f}"),
    Measure("new flow to a pod, p50, µs", lambda one: one.by_target[DIRECT]["p50"], "{:.1f}"),
    Measure("new connections/s", lambda one: one.short_connections_per_s, "{:,.0f}", -1),
    Measure("keep-alive requests/s", lambda one: one.keepalive_requests_per_s, "{:,.0f}", -1),
    Measure("full sync, s", lambda one: one.full_sync_s, "{:.2f}"),
    Measure("one endpoint's change, ms", lambda one: one.endpoint_update_ms, "{:.2f}"),
    Measure("memory, MB", lambda one: one.memory_mb, "{:.1f}"),
)


def not_won(results: Sequence[Result]) -> list[str]:
    """Where another datapath is better than eBPF: a line for each measure, with all numbers of Services where it is."""
    lines = []
    for measure in MEASURES:
        found = []
        for size in sorted({one.services for one in results}):
            values = {one.datapath: measure.value(one) for one in results if one.services == size}
            mine = values.pop(EBPF, None)
            others = {name: value for name, value in values.items() if value is not None}
            if mine is None or not others:
                continue
            best = min(others, key=lambda name: others[name] * measure.sign)
            if others[best] * measure.sign < mine * measure.sign:
                told, ours = measure.form.format(others[best]), measure.form.format(mine)
                found.append(f"at {size:,} {best} {told} beside {ours}")
        if found:
            lines.append(f"{measure.name}: {'; '.join(found)}")
    return lines

"""What many Services cost: checks of what the learner has measured, and one that measures. By ratios, never by times.

What belongs here: judging. What does not: how it is measured (`labs.bench`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from labs.engine.checks.context import Context
from labs.engine.outcome import Outcome, failed, passed
from labs.engine.world import Blocked
from tracer.errors import MissingError

RESULTS = "results.json"
TURNS, CONNECTIONS = 8, 50  # in each turn so many to each Service, in random order


def scaling(
    context: Context,
    *,
    directory: str,
    grows: Sequence[str],
    level: Sequence[str],
    services: int = 1000,
    growth: float = 1.2,
) -> Outcome:
    """The results in a directory of the workspace have each datapath with few and with `services` or more Services.

    With most Services a new flow to the last one takes at least `growth` times as long as with fewest in those that
    `grows` names, and less than halfway to that in those that `level` names.
    Reasons: missing, datapath, services, noise.
    """
    found = results(context, directory)
    look = f"{context.workspace / directory}, and sudo k8snet-lab bench scale --help"
    if not found:
        return failed("missing", expected=f"the results of a measurement in {directory}", seen="none", look=look)
    ratios = {}
    for datapath in (*grows, *level):
        mine = {one["services"]: last_flow(one) for one in found if one["datapath"] == datapath}
        if not mine:
            return failed("datapath", expected=f"{datapath} to be measured, too", seen=_names(found), look=look)
        if len(mine) < 2 or max(mine) < services:
            expected = f"{datapath} to be measured with few and with {services:,} Services"
            return failed("services", expected=expected, seen=", ".join(f"{size:,}" for size in mine), look=look)
        ratios[datapath] = mine[max(mine)] / mine[min(mine)]
    told = ", ".join(f"{ratio:.2f} times as long in {datapath}" for datapath, ratio in ratios.items())
    fits = all(ratios[one] >= growth for one in grows) and all(ratios[one] < (1 + growth) / 2 for one in level)
    if not fits:
        expected = f"a new flow to take longer with many Services in {', '.join(grows)}, and not in {', '.join(level)}"
        return failed(
            "noise", expected=expected, seen=told, look=f"rm -r {context.workspace / directory}, and measure again"
        )
    return passed(f"a new flow to the last Service, with most and with fewest of them: {told}")


def growth(
    context: Context, *, grows: Sequence[str], level: Sequence[str], services: int = 1000, growth: float = 1.2
) -> Outcome:
    """Measured now, with so many Services: a new flow to the last takes at least `growth` times as long as to the first
    in the datapaths that `grows` names, and less than halfway to that in those that `level` names. Reason: noise.
    """
    ratios = _last_to_first((*grows, *level), services)
    told = ", ".join(f"{ratio:.2f} times as long in {datapath}" for datapath, ratio in ratios.items())
    if all(ratios[one] >= growth for one in grows) and all(ratios[one] < (1 + growth) / 2 for one in level):
        return passed(f"measured once more, a new flow to the last of {services:,} Services beside the first: {told}")
    expected = f"a new flow to the last Service to take longer than to the first in {', '.join(grows)} only"
    return failed("noise", expected=expected, seen=told, look="k8snet-lab check, when this machine has less to do")


@functools.cache  # a pass is confirmed by a second look, which need not measure again
def _last_to_first(datapaths: tuple[str, ...], services: int) -> dict[str, float]:
    """Datapath -> the ratio of the times of new flows: in each turn of both, and of all turns the median."""
    from labs.bench import scale

    found: dict[str, list[float]] = {datapath: [] for datapath in datapaths}
    try:
        with contextlib.ExitStack() as stack:
            workers = {one: stack.enter_context(scale.started(one, services)) for one in datapaths}
            with ThreadPoolExecutor() as pool:  # each worker is a process of its own, and nothing is timed yet
                list(pool.map(lambda worker: worker.ask("load"), workers.values()))
            for turn in range(TURNS):
                for datapath, worker in workers.items():
                    times = worker.ask("flows", samples=CONNECTIONS, seed=turn)
                    found[datapath].append(times["last"]["p50"] / times["first"]["p50"])
    except MissingError as error:
        raise Blocked(error.message, hint=error.hint) from error
    return {datapath: statistics.median(ratios) for datapath, ratios in found.items()}


def results(context: Context, directory: str) -> list[Mapping[str, Any]]:
    """What was measured; empty when it was not, or not to the end."""
    try:
        document = json.loads((context.workspace / directory / RESULTS).read_text(encoding="utf-8"))
        return [one for one in document["results"] if last_flow(one) > 0]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def last_flow(one: Mapping[str, Any]) -> float:
    """Microseconds of a new flow to the last Service in the order of the rules."""
    return float(one["new_flow_us_by_target"]["last"]["p50"])


def _names(found: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(one["datapath"] for one in found))

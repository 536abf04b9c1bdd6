"""The check of what the learner has measured with `k8snet-lab bench scale --output DIR`: by ratios, never by times.

What belongs here: reading and judging results. What does not: measuring (`labs.bench`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from labs.engine.checks.context import Context
from labs.engine.outcome import Outcome, failed, passed

RESULTS = "results.json"


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

"""What a lesson can have looked at, by name: each check reads the world and says pass or fail.

A check is a function `(context, *, parameters) -> Outcome`; its keyword parameters are those that lab.toml gives. It
reads structured state (the API's objects, netlink, the tracer's records), never the learner's shell history. It must
not change anything that a later look could see.

Besides its own, every check takes these parameters in lab.toml: `reason`, `expected`, `look` replace the words of its
failure.

What belongs here: the table of names, and calling one. What does not: looking (the modules), trying again
(`labs.engine.session`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from labs.engine.checks import (
    bpfprogram,
    counters,
    files,
    invariants,
    kernel,
    measurements,
    objects,
    programs,
    records,
    traffic,
)
from labs.engine.checks.context import Context
from labs.engine.outcome import Outcome, Result, failed
from labs.engine.spec import Named
from labs.engine.world import Blocked
from tracer.errors import K8snetError

Check = Callable[..., Outcome]

CHECKS: Mapping[str, Check] = {
    "bpf_map": kernel.bpf_map,
    "bpf_program": bpfprogram.bpf_program,
    "conntrack": kernel.conntrack,
    "dns": traffic.dns,
    "endpoint": objects.endpoint,
    "file": files.file,
    "flows": counters.flows,
    "growth": measurements.growth,
    "http": traffic.http,
    "invariant": invariants.invariant,
    "link": kernel.link,
    "no_rule": kernel.no_rule,
    "object": objects.object_,
    "pods": objects.pods,
    "probe": traffic.probe,
    "queries": traffic.queries,
    "record": records.record,
    "route": kernel.route,
    "route_get": kernel.route_get,
    "passes": kernel.passes,
    "rule": kernel.rule,
    "scaling": measurements.scaling,
    "script": traffic.script,
    "service": objects.service,
    "shares": programs.shares,
}
WORDS = ("reason", "expected", "look")

__all__ = ["CHECKS", "Context", "check", "problem_with"]


def check(context: Context, spec: Named) -> Outcome:
    """Run one check. What goes wrong in it is an outcome, too: blocked, or an error of ours."""
    words = {key: spec.parameters[key] for key in WORDS if key in spec.parameters}
    parameters = {key: value for key, value in spec.parameters.items() if key not in WORDS}
    try:
        outcome = CHECKS[spec.name](context, **parameters)
    except objects.NoPod as error:
        outcome = failed("no-pod", expected=f"the pod {error.name}", seen=error.message, look=error.hint or "")
    except Blocked as error:
        return Outcome(Result.BLOCKED, error.message, look=error.hint or "")
    except K8snetError as error:
        return Outcome(Result.ERROR, f"{spec.name}: {error.message}", look=error.hint or "")
    except Exception as error:  # a defect of ours must not look like the learner's mistake
        return Outcome(Result.ERROR, f"{spec.name}: {type(error).__name__}: {error}", look="K8SNET_DEBUG=1 shows where")
    return replace(outcome, **words) if outcome.result is Result.FAIL else outcome


def problem_with(spec: Named, table: Mapping[str, Callable[..., Any]]) -> str | None:
    """What is wrong with a name and its parameters, if anything."""
    function = table.get(spec.name)
    if function is None:
        return f"there is no {spec.name!r}; known: {', '.join(sorted(table))}"
    parameters = {key: value for key, value in spec.parameters.items() if key not in WORDS}
    try:
        inspect.signature(function).bind(None, **parameters)
    except TypeError as error:
        return f"{spec.name}: {error}"
    return None

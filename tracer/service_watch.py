"""k8snet-trace services --watch: a line for each Service port that changes, until somebody ends it.

What belongs here: the loop, its limits, the two forms of a line. What does not: when rules are read
(`tracer.rules.watching`), the words (`tracer.service_changes`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tracer.encode import timestamp
from tracer.errors import K8snetError, MissingError
from tracer.render import clock
from tracer.rules.services import ServiceMap
from tracer.rules.watching import Watching
from tracer.service_changes import ServiceChange, changes
from tracer.sinks import Writer

PAUSE_SECONDS = 0.2  # between two looks, each of which takes a millisecond while nothing changes
MOST_FAILURES = 5  # one after another: rules may be half way from one state to the next


@dataclass(frozen=True, slots=True)
class Limits:
    """When to end: after so many lines, after so many seconds."""

    count: int | None = None
    seconds: float | None = None


def watch(
    watching: Watching,
    writer: Writer,
    *,
    names: Iterable[str] = (),
    as_json: bool = False,
    limits: Limits = Limits(),
    stopped: Callable[[], bool],
    on_ready: Callable[[ServiceMap], None],
) -> None:
    """Write what changes until `stopped` or a limit. names: only Services that one of them names.

    on_ready gets the Services as they are at the start. Raises what reading rules and writing raise.
    """
    patterns = tuple(names)
    _look(watching)
    on_ready(watching.services)
    deadline = float("inf") if limits.seconds is None else time.monotonic() + limits.seconds
    left = float("inf") if limits.count is None else limits.count
    while left > 0 and not stopped() and time.monotonic() < deadline:
        for change in _changes(watching, patterns):
            if left > 0:
                writer.write(_line(change, as_json))
                left -= 1
        writer.check_reader()
        time.sleep(max(0.0, min(PAUSE_SECONDS, deadline - time.monotonic())))


def _changes(watching: Watching, patterns: tuple[str, ...]) -> Iterator[ServiceChange]:
    """What changed since the last look."""
    before = watching.services
    if not _look(watching):
        return
    for change in changes(before, watching.services):
        service = change.after or change.before
        if not patterns or (service is not None and any(map(service.is_called, patterns))):
            yield change


def _look(watching: Watching) -> bool:
    """Look, and again when a program stumbles over rules that are just being replaced."""
    for failures in range(1, MOST_FAILURES + 1):
        try:
            return watching.look()
        except MissingError:
            raise
        except K8snetError:
            if failures == MOST_FAILURES:
                raise
            time.sleep(PAUSE_SECONDS)
    return False


def _line(change: ServiceChange, as_json: bool) -> str:
    now = timestamp(time.time_ns())
    return (json.dumps(change.to_json(now)) if as_json else f"{clock(now)} {change.words}") + "\n"

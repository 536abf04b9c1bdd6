"""Checks of what the live trace saw while the learner worked.

The trace runs beside the lesson from its start (`labs.engine.recorder`); the file is emptied when a
lesson starts.

What belongs here: finding records. What does not: making them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from labs.engine.checks.context import Context
from labs.engine.checks.objects import with_addresses
from labs.engine.outcome import Outcome, failed, passed
from labs.engine.world import BEGIN_ANEW, Blocked

ROOM = 160  # columns of a line: a learner should see all of it


def record(context: Context, *, match: Mapping[str, Any], words: str, at_least: int = 1, anew: bool = False) -> Outcome:
    """The live trace has seen at least so many connections that `match`: dotted keys of a record and their values.

    A value may be a list: one of these. A text may have * in it for any characters; "*": anything but null.
    {NAMESPACE/POD} is that pod's address. `words`: the connection in words, for the learner.
    Those made since the lesson began count; `anew`: only those since this step did. Reason: not-seen.
    """
    if context.records is None:
        raise Blocked("this lesson keeps no live trace", hint=BEGIN_ANEW)
    match = {key: _with_addresses(context, wanted) for key, wanted in match.items()}
    found = [one for one in read(context.records, context.since if anew else 0.0) if matches(one, match)]
    if len(found) < at_least:
        seen = f"{len(found)} of {at_least}" if found else "none"
        return failed("not-seen", expected=words, seen=seen, look="sudo k8snet-trace")
    return passed(line(found[-1]))


def _with_addresses(context: Context, wanted: Any) -> Any:
    return with_addresses(context.world, wanted) if isinstance(wanted, str) else wanted


def read(path: Path, since: float) -> Iterator[dict[str, Any]]:
    """The records of a file that are not older than `since`, seconds since 1970. A last line may be half written."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for text in lines:
            if not text.endswith("\n"):
                return
            one = json.loads(text)
            if one.get("type") == "connection" and moment(one["time"]) >= since:
                yield one


def moment(text: str) -> float:
    """A record's time (RFC 3339) as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def matches(one: Mapping[str, Any], match: Mapping[str, Any]) -> bool:
    """Whether a record has all these values."""
    return all(_fits(value(one, key), wanted) for key, wanted in match.items())


def value(one: Any, key: str) -> Any:
    """What a dotted key holds in a record; None when it is not there."""
    for part in key.split("."):
        one = one.get(part) if isinstance(one, Mapping) else None
    return one


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_fits(value, one) for one in wanted)
    if isinstance(wanted, str) and "*" in wanted:
        return value is not None and fnmatchcase(str(value), wanted)
    return bool(value == wanted)


def line(one: dict[str, Any]) -> str:
    """A record as the live trace prints it."""
    from tracer import render
    from tracer.events import Connection

    shared = Connection.from_json(one)
    text = "".join(span.text for span in render.body(shared, ROOM))
    return f"{render.clock(one['time'])} {text} {render.latency(shared.latency_us)}".rstrip()

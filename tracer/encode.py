"""Records as JSON lines, fast.

What belongs here: the text of a record. A record of 600 characters through json.dumps costs 10 us and more; all but
three of its values are the same for every connection of a shape. So each shape is written once, with three gaps, and a
record costs one formatting of those: 0.3 us as bytes, four times as much as str. What does not: reading JSON
(`tracer.recording`), writing it (`tracer.sinks`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tracer.events import Connection

if TYPE_CHECKING:
    from tracer.shapes import Item

NS_PER_SECOND = 1_000_000_000


class Template:
    """The JSON of a shape as bytes, cut where time, source.port and latency_us go; ready to format for one second.

    `second`: which, in nanoseconds since the Unix epoch. `known` takes the fraction of the second in nanoseconds, port
    and latency; `unknown` the first two, for a latency that is not known.
    """

    __slots__ = ("_parts", "known", "second", "unknown")

    def __init__(self, shared: Connection) -> None:
        gap = os.urandom(16).hex()  # stands in no name
        document = shared.to_json()
        document["time"] = document["source"]["port"] = document["latency_us"] = gap
        text = json.dumps(document).replace("%", "%%") + "\n"
        self._parts = [part.encode() for part in text.split(json.dumps(gap))]
        self.second = -1
        self.known = self.unknown = b""

    def enter(self, second: int, date_time: bytes) -> None:
        """Make `known` and `unknown` for a second; `date_time`: how its time begins, as in 2026-11-22T09:00:00."""
        before_time, before_port, before_latency, end = self._parts
        start = before_time + b'"' + date_time + b'.%09dZ"' + before_port + b"%d" + before_latency
        self.second, self.known, self.unknown = second, start + b"%d" + end, start + b"null" + end


def timestamp(time_ns: int) -> str:
    """Nanoseconds since the Unix epoch as RFC 3339 in UTC, with nine digits of a second."""
    seconds, fraction = divmod(time_ns, NS_PER_SECOND)
    return f"{_date_time(seconds)}.{fraction:09d}Z"


def json_lines(items: Iterable[Item]) -> list[bytes]:
    """One line of JSON for each item, newline included. This is the hot loop."""
    lines: list[bytes] = []
    append = lines.append
    second = -NS_PER_SECOND
    date_time = b""
    for time_ns, latency_ns, sport, entry in items:
        fraction = time_ns - second
        if not 0 <= fraction < NS_PER_SECOND:
            seconds, fraction = divmod(time_ns, NS_PER_SECOND)
            second = time_ns - fraction
            date_time = _date_time(seconds).encode()
        template = entry.template
        if template.second != second:
            template.enter(second, date_time)
        if latency_ns >= 0:
            append(template.known % (fraction, sport, latency_ns // 1000))
        else:
            append(template.unknown % (fraction, sport))
    return lines


def document_line(document: Mapping[str, Any]) -> bytes:
    """Any record as one line of JSON in printable ASCII, newline included."""
    return json.dumps(document).encode() + b"\n"


def _date_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))

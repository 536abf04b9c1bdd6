"""Records as JSON lines, fast.

What belongs here: the text of a record. A record of 600 characters through json.dumps costs 10 us and more; all but
three of its values are the same for every connection of a shape. So each shape is written once, with three gaps, and
many records are one formatting of all their gaps: 0.2 us each as bytes, several times as much as str. What does not:
reading JSON (`tracer.recording`), writing it (`tracer.sinks`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracer.batch import Batch
from tracer.events import Connection

if TYPE_CHECKING:
    from tracer.shapes import Entry, Item

NS_PER_SECOND = 1_000_000_000
# Records formatted at once: few enough for what is made of them to stay in the processor's cache until it is written.
BLOCK = 256
_MAX_FORMATS = 8


class Template:
    """The JSON of a shape as bytes, cut where time, source.port and latency_us go; doubled %, as in a format."""

    __slots__ = ("_parts",)

    def __init__(self, shared: Connection) -> None:
        gap = os.urandom(16).hex()  # stands in no name
        document = shared.to_json()
        document["time"] = document["source"]["port"] = document["latency_us"] = gap
        text = json.dumps(document).replace("%", "%%") + "\n"
        self._parts = [part.encode() for part in text.split(json.dumps(gap))]

    def format(self, time: bytes, latency: bytes) -> bytes:
        """The line with these in the gaps, and %d for the port."""
        before_time, before_port, before_latency, end = self._parts
        return before_time + b'"' + time + b'"' + before_port + b"%d" + before_latency + latency + end


class _Formats(dict["Entry", bytes]):
    """The format of each entry's line, for connections of which some things are the same: see `JsonLines`."""

    def __init__(self, time: bytes, latency: bytes) -> None:
        super().__init__()
        self._time, self._latency = time, latency

    def __missing__(self, entry: Entry) -> bytes:
        made = self[entry] = entry.template.format(self._time, self._latency)
        return made


class JsonLines:
    """Makes lines of JSON. Keeps the formats that the last connections had."""

    def __init__(self) -> None:
        self._formats: dict[tuple[int, bytes, bytes], _Formats] = {}

    def blocks(self, items: Sequence[Item]) -> Iterator[bytes]:
        """One line of JSON for each item, newline included, up to BLOCK of them in each part."""
        batch = Batch.of(items)
        for start in range(0, len(batch), BLOCK):
            block = batch[start : start + BLOCK]
            first, last = min(block.times), max(block.times)
            second = first - first % NS_PER_SECOND
            if last - second < NS_PER_SECOND and min(block.latencies) >= 0:
                yield self._alike(block, second, first - second)
            else:
                yield b"".join(map(self._line, block))

    def _alike(self, block: Batch[Entry], second: int, least: int) -> bytes:
        """Lines of connections that began in one second and whose latency is known: all in one formatting.

        `least`: the lowest of their fractions of the second. A %d without a width has a quick way of its own in
        Python (bytesobject.c), so it is used where no zeros are wanted.
        """
        formats = self._made_for(second, b"%d" if least >= NS_PER_SECOND // 10 else b"%09d", b"%d")
        gaps = [0] * (3 * len(block))
        gaps[0::3] = [time_ns - second for time_ns in block.times]
        gaps[1::3] = block.sports
        gaps[2::3] = [latency_ns // 1000 for latency_ns in block.latencies]
        return b"".join(map(formats.__getitem__, block.shapes)) % tuple(gaps)

    def _line(self, item: Item) -> bytes:
        time_ns, latency_ns, sport, entry = item
        fraction = time_ns % NS_PER_SECOND
        second = time_ns - fraction
        if latency_ns < 0:
            return self._made_for(second, b"%09d", b"null")[entry] % (fraction, sport)
        return self._made_for(second, b"%09d", b"%d")[entry] % (fraction, sport, latency_ns // 1000)

    def _made_for(self, second: int, fraction: bytes, latency: bytes) -> _Formats:
        """The formats for a second, in nanoseconds since the Unix epoch, with these for its fraction and latency_us."""
        key = second, fraction, latency
        formats = self._formats.get(key)
        if formats is None:
            if len(self._formats) >= _MAX_FORMATS:
                self._formats.clear()
            time = f"{_date_time(second // NS_PER_SECOND)}.".encode() + fraction + b"Z"
            formats = self._formats[key] = _Formats(time, latency)
        return formats


def timestamp(time_ns: int) -> str:
    """Nanoseconds since the Unix epoch as RFC 3339 in UTC, with nine digits of a second."""
    seconds, fraction = divmod(time_ns, NS_PER_SECOND)
    return f"{_date_time(seconds)}.{fraction:09d}Z"


def document_line(document: Mapping[str, Any]) -> bytes:
    """Any record as one line of JSON in printable ASCII, newline included."""
    return json.dumps(document).encode() + b"\n"


def _date_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))

"""Remembers what each shape resolves to, so that a connection costs one dictionary look-up.

What belongs here: the bounded cache from packed shapes to entries, and when it is dropped. What does not: what an entry
says (`tracer.resolve`, `tracer.encode`), which entries are wanted (`tracer.filters`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from tracer.encode import Template
from tracer.events import Connection, RawConnection
from tracer.filters import Filter
from tracer.resolve import Resolver

MAX_SHAPES = 8192  # about 3 kB each


class Entry:
    """A wanted shape: what its connections share, and its JSON. `drawn` is the line form's own cache."""

    __slots__ = ("drawn", "shared", "template")

    def __init__(self, shared: Connection) -> None:
        self.shared = shared
        self.template = Template(shared)
        self.drawn: Any = None


Item = tuple[int, int, int, Entry]
"""One wanted connection: time_ns, latency_ns (-1: not known), source port, entry. A plain tuple, for speed."""


class Shapes:
    """Turns what sources hand over into items, leaving out what the filter does not want."""

    def __init__(self, resolver: Resolver, wanted: Filter, *, limit: int = MAX_SHAPES) -> None:
        self._resolver = resolver
        self._wanted = wanted
        self._limit = limit
        self._generation = resolver.generation
        self._entries: dict[bytes, Entry | Literal[False]] = {}

    def items(self, batch: Iterable[RawConnection | tuple[int, int, int, bytes]]) -> list[Item]:
        """The wanted connections of a batch, in its order."""
        if self._resolver.generation != self._generation:
            self._generation = self._resolver.generation
            self._entries.clear()
        get, add = self._entries.get, self._add
        # A comprehension, since this runs for every connection: False is an entry that is not wanted, None is none yet.
        return [
            (time_ns, latency_ns, sport, entry)
            for time_ns, latency_ns, sport, shape in batch
            if (entry := add(shape) if (known := get(shape)) is None else known)
        ]

    def _add(self, shape: bytes) -> Entry | Literal[False]:
        """Resolve a new shape. When full, all are dropped: that costs nothing per hit, and hot shapes are soon back."""
        if len(self._entries) >= self._limit:
            self._entries.clear()
        shared = self._resolver.shape(shape)
        entry: Entry | Literal[False] = Entry(shared) if self._wanted.wants(shared) else False
        self._entries[shape] = entry
        return entry

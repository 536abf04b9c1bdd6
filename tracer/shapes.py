"""Remembers what each shape resolves to, so that a connection costs one dictionary look-up.

What belongs here: the bounded cache from packed shapes to entries, and when it is dropped. What does not: what an entry
says (`tracer.resolve`, `tracer.encode`), which entries are wanted (`tracer.filters`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

from tracer.batch import Batch, Row
from tracer.encode import Template
from tracer.events import Connection
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


Item = Row[Entry]
"""One wanted connection."""


class _Entries(dict[bytes, "Entry | Literal[False]"]):
    """Entries by packed shape; False for one that is not wanted. A new shape is asked for with `add`."""

    def __init__(self, add: Callable[[bytes], Entry | Literal[False]]) -> None:
        super().__init__()
        self._add = add

    def __missing__(self, shape: bytes) -> Entry | Literal[False]:
        return self._add(shape)


class Shapes:
    """Turns what sources hand over into items, leaving out what the filter does not want."""

    def __init__(self, resolver: Resolver, wanted: Filter, *, limit: int = MAX_SHAPES) -> None:
        self._resolver = resolver
        self._wanted = wanted
        self._limit = limit
        self._generation = resolver.generation
        self._entries = _Entries(self._add)

    def items(self, batch: Iterable[Row[bytes]]) -> Batch[Entry]:
        """The wanted connections of a batch, in its order."""
        if self._resolver.generation != self._generation:
            self._generation = self._resolver.generation
            self._entries.clear()
        batch = Batch.of(batch)
        entries = list(map(self._entries.__getitem__, batch.shapes))
        found = Batch(batch.times, batch.latencies, batch.sports, cast(list[Entry], entries))
        return found if all(entries) else found.chosen(entries)

    def _add(self, shape: bytes) -> Entry | Literal[False]:
        """Resolve a new shape. When full, all are dropped: that costs nothing per hit, and hot shapes are soon back."""
        if len(self._entries) >= self._limit:
            self._entries.clear()
        shared = self._resolver.shape(shape)
        entry: Entry | Literal[False] = Entry(shared) if self._wanted.wants(shared) else False
        self._entries[shape] = entry
        return entry

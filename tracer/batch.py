"""Connections in columns: many at a time, each field a list of its own.

What belongs here: the columns, and looking at them as rows. What does not: what the fields mean (`tracer.events`),
where batches come from (`tracer.source`), what is made of them (`tracer.shapes`, `tracer.encode`).

At 12,000 connections a second a tuple for each, unpacked and made anew at each step, costs as much as writing its JSON.
A column goes through a step in one call. Whoever has no such hurry sees a sequence of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Generic, TypeVar, overload

T = TypeVar("T")
Row = tuple[int, int, int, T]
"""time_ns, latency_ns (-1: not known), source port, and the shape in one form or another."""


class Batch(Sequence[Row[T]], Generic[T]):
    """Connections, in the order in which they ended. All four columns have the same length."""

    __slots__ = ("latencies", "shapes", "sports", "times")

    def __init__(self, times: list[int], latencies: list[int], sports: list[int], shapes: list[T]) -> None:
        self.times = times
        self.latencies = latencies
        self.sports = sports
        self.shapes = shapes

    @classmethod
    def of(cls, rows: Iterable[Row[T]]) -> Batch[T]:
        """The batch of these rows; a batch is returned as it is."""
        if isinstance(rows, Batch):
            return rows
        batch = cls([], [], [], [])
        for time_ns, latency_ns, sport, shape in rows:
            batch.times.append(time_ns)
            batch.latencies.append(latency_ns)
            batch.sports.append(sport)
            batch.shapes.append(shape)
        return batch

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[Row[T]]:
        return zip(self.times, self.latencies, self.sports, self.shapes, strict=True)

    @overload
    def __getitem__(self, index: int) -> Row[T]: ...
    @overload
    def __getitem__(self, index: slice) -> Batch[T]: ...
    def __getitem__(self, index: int | slice) -> Row[T] | Batch[T]:
        if isinstance(index, slice):
            return Batch(self.times[index], self.latencies[index], self.sports[index], self.shapes[index])
        return self.times[index], self.latencies[index], self.sports[index], self.shapes[index]

    def __add__(self, other: Batch[T]) -> Batch[T]:
        """This batch, and then the other."""
        return Batch(
            self.times + other.times,
            self.latencies + other.latencies,
            self.sports + other.sports,
            self.shapes + other.shapes,
        )

    def chosen(self, choice: Sequence[object]) -> Batch[T]:
        """Those rows for which `choice`, as long as the batch, is true."""
        columns = (self.times, self.latencies, self.sports, self.shapes)
        return Batch(*(list(compress(column, choice)) for column in columns))  # type: ignore[arg-type]

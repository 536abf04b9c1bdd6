"""Look-ups that stay right while a background thread changes them.

What belongs here: two small containers. What does not: what is kept in them.

One thread writes, any thread reads, without locks: each key has an immutable value that is replaced in one step, so
that a reader sees it as it was before or as it is after. A copy of everything for every change, the other way to be
safe, would cost a cluster of 10,000 pods milliseconds of the interpreter for each pod that changes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Index(Generic[K, V]):
    """Several values for each key, most often one."""

    def __init__(self) -> None:
        self._values: dict[K, tuple[V, ...]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> tuple[V, ...]:
        """All values, () for an unknown key."""
        return self._values.get(key, ())

    def only(self, key: K) -> V | None:
        """The value, if all agree: two that claim the same address name nobody."""
        values = self._values.get(key)
        return values[0] if values is not None and all(value == values[0] for value in values) else None

    def replace(self, key: K, old: V | None, new: V | None) -> None:
        """Put `new` in the place of one `old`, in one step; None stands for nothing."""
        values = list(self._values.get(key, ()))
        if old is not None and old in values:
            values.remove(old)
        if new is not None:
            values.append(new)
        if values:
            self._values[key] = tuple(values)
        else:
            self._values.pop(key, None)


def shift(index: Index[K, V], old: Iterable[tuple[K, V]], new: Iterable[tuple[K, V]]) -> list[K]:
    """Bring an index from the entries that an object gave to those that it gives now; return the keys that changed."""
    before, after = Counter(old), Counter(new)
    going: dict[K, list[V]] = {}
    for key, value in (before - after).elements():
        going.setdefault(key, []).append(value)
    keys = set(going)
    for key, value in (after - before).elements():
        replaced = going.get(key)
        index.replace(key, replaced.pop() if replaced else None, value)
        keys.add(key)
    for key, values in going.items():
        for value in values:
            index.replace(key, value, None)
    return list(keys)


class Remembered(Generic[K, V]):
    """Values that are gone but may still be asked for: at most `limit` of them, for `seconds` each."""

    def __init__(self, seconds: float, limit: int) -> None:
        self._seconds = seconds
        self._limit = limit
        self._values: dict[K, tuple[V, float]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value, if it has not been gone for too long."""
        entry = self._values.get(key)
        return entry[0] if entry is not None and time.monotonic() - entry[1] < self._seconds else None

    def put(self, key: K, value: V) -> None:
        """Remember a value from now on; the oldest ones go."""
        now = time.monotonic()
        self._values.pop(key, None)
        self._values[key] = (value, now)
        while self._values:
            oldest = next(iter(self._values))
            if len(self._values) <= self._limit and now - self._values[oldest][1] < self._seconds:
                break
            del self._values[oldest]

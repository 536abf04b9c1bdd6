"""Named sets and maps, and the anonymous ones of vmap: which element is the packet's.

What belongs here: finding an element quickly, also among 10,000. What does not: what the element's data do (`walk`).
Source: Linux net/netfilter/nft_lookup.c, nft_dynset.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tracer.rules.conditions import ABSENT, Field, fits
from tracer.rules.model import Element, Interval, Set, Table, Value
from tracer.rules.packet import Packet

Key = tuple[int | str, ...]


class Found(NamedTuple):
    """element: the packet's, or None for none. unknown: it may be another, or one."""

    element: Element | None
    unknown: bool = False


NOTHING = Found(None)


class Elements:
    """Elements by their exact keys, and those that stand for several keys in order."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self._exact: dict[Key, Element] = {}
        self._broad: list[tuple[tuple[Value, ...], Element]] = []
        for element in elements:
            parts = _parts(element.value)
            key = _exact_key(parts)
            if key is None:
                self._broad.append((parts, element))
            else:
                self._exact.setdefault(key, element)

    def find(self, actuals: tuple[Field, ...]) -> Found:
        """The element for what a packet has at the fields of the key."""
        if ABSENT in actuals:
            return NOTHING
        if all(isinstance(actual, int | str) for actual in actuals):
            element = self._exact.get(actuals)
            if element is not None:
                return Found(element)
            candidates = self._broad
        else:
            candidates = [*((key, element) for key, element in self._exact.items()), *self._broad]
        unknown = False
        for parts, element in candidates:
            answers = [fits(part, actual) for part, actual in zip(parts, actuals, strict=False)]
            if len(parts) != len(actuals) or None in answers:
                unknown = unknown or False not in answers
            elif all(answers):
                return Found(element)
        return Found(None, unknown)


def _parts(value: Value) -> tuple[Value, ...]:
    return value if isinstance(value, tuple) and not isinstance(value, Interval) else (value,)


def _exact_key(parts: tuple[Value, ...]) -> Key | None:
    """The key as a packet has it, or None where it stands for several."""
    key: list[int | str] = []
    for part in parts:
        if isinstance(part, Interval):
            if part.low != part.high:
                return None
            key.append(part.low)
        elif isinstance(part, int) or (isinstance(part, str) and not part.endswith("*")):
            key.append(part)
        else:
            return None
    return tuple(key)


class Lookups:
    """The named sets of all tables, each read when it is first asked for."""

    def __init__(self) -> None:
        self._read: dict[int, Elements] = {}
        self._anonymous: dict[tuple[Element, ...], Elements] = {}

    def among(self, elements: tuple[Element, ...]) -> Elements:
        """The elements of an anonymous set or map."""
        found = self._anonymous.get(elements)
        if found is None:
            found = self._anonymous[elements] = Elements(elements)
        return found

    def find(self, table: Table, name: str, actuals: tuple[Field, ...], packet: Packet) -> Found:
        """The packet's element of a set. A set that packets fill (dynamic) holds what this packet put there."""
        found = table.sets.get(name)
        if found is None:
            return Found(None, True)
        if "dynamic" in found.flags:
            entry = entry_of(table, name, actuals)
            return Found(Element(name)) if entry in packet.seen else NOTHING
        return self._elements(found).find(actuals)

    def _elements(self, found: Set) -> Elements:
        elements = self._read.get(id(found))
        if elements is None:
            elements = self._read[id(found)] = Elements(found.elements)
        return elements


def entry_of(table: Table, name: str, actuals: tuple[Field, ...]) -> tuple[object, ...]:
    """What `add @set { … }` and `update` put into a set."""
    return ("set", table.family, table.name, name, *actuals)

"""Bringing the maps of the eBPF Service datapath to what is wanted, so that no look-up ever meets half a change.

Stands for the part of Cilium's agent that writes the lb4 maps (pkg/maps/lbmap). Endpoints of a Service lie in slots 0
to count - 1 of its list, and each map update by itself is atomic (kernel/bpf/hashtab.c replaces the whole element):

    an endpoint comes     write slot `count`, then raise the count
    one goes              write the last one over it, then lower the count; the last slot stays until the next change,
                          for a reader that has seen the old count and not yet looked
    one takes its place   write over it

So a change costs a handful of updates, however many Services there are. What belongs here: which updates, in which
order, and whether there is room. What does not: what is wanted (`ebpf`).
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from labs.cluster.proxy.ebpf import Wanted
from tracer.errors import K8snetError
from tracer.service_lb import (
    PRESENT,
    SLOT_KEY,
    Entry,
    Frontend,
    ServiceFlag,
    pack_member,
    pack_range,
    pack_slot,
)

Key = TypeVar("Key", bound=Hashable)

# In the order in which they are added to, and removed from: nothing refers to what is not there.
ADDED = ("members", "source_ranges", "slots", "services")
REMOVED = ("services", "slots", "members", "source_ranges")


class MapLike(Protocol):
    """What is needed of a map (`tracer.bpfmaps.Map`)."""

    @property
    def capacity(self) -> int:
        """How many entries it may have."""

    def set_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Insert or replace. Raises OSError."""

    def delete(self, key: bytes) -> bool:
        """Remove."""

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """All entries."""


class MapFull(K8snetError):
    """There is no room for a change, of which nothing was done."""


@dataclass(slots=True)
class Change:
    """Updates of the maps, by map. What is both removed and added stays."""

    add: dict[str, dict[bytes, bytes]] = field(default_factory=lambda: {name: {} for name in ADDED})
    remove: dict[str, dict[bytes, None]] = field(default_factory=lambda: {name: {} for name in REMOVED})

    def removals(self, name: str) -> Iterator[bytes]:
        """What is removed from the map `name`."""
        return (key for key in self.remove[name] if key not in self.add[name])

    def __len__(self) -> int:
        """How many updates it takes."""
        added = sum(len(entries) for entries in self.add.values())
        return added + sum(1 for name in REMOVED for _ in self.removals(name))


@dataclass(frozen=True, slots=True)
class _List:
    """Endpoints in their slots. `length` counts slots past the last one that are still written."""

    id: int
    backends: tuple[bytes, ...] = ()
    length: int = 0


@dataclass(frozen=True, slots=True)
class _Port:
    """What the maps hold of one Service port; `lists`: that of all its endpoints, and that of the local ones."""

    id: int
    lists: tuple[_List, _List]
    entries: Mapping[Frontend, Entry] = field(default_factory=dict)
    ranges: frozenset[bytes] = frozenset()


class Tables(Generic[Key]):
    """The maps of one node, which nobody else writes. `apply` begins by taking over what they hold.

    Of two Service ports with one address (two with the same external IP, say) the earlier one has it.
    """

    def __init__(self, maps: Mapping[str, MapLike]) -> None:
        self._maps = maps
        self._known = False  # whether all below is true of the maps
        self._keys: dict[str, set[bytes]] = {}
        self._ports: dict[Key, _Port] = {}
        self._wanted: dict[Key, Wanted] = {}
        self._claims: dict[Frontend, dict[Key, None]] = {}  # who wants an address, earliest first
        self._old: dict[Frontend, Entry] = {}  # of an earlier proxy, while its maps are taken over
        self._taken: set[int] = set()  # ids of its Service ports that were given on
        self._ids: Iterator[int] = itertools.count(1)

    def forget(self) -> None:
        """Take the maps over anew with the next `apply`, and write everything."""
        self._known = False

    def apply(self, wanted: Mapping[Key, Wanted | None]) -> int:
        """Make the maps hold what is wanted of each of these Service ports, None for nothing; gives the number of
        updates. The first time, what is not among them goes.

        Raises MapFull, and then nothing has changed; K8snetError when the kernel refuses, and then the next call writes
        everything.
        """
        if not self._known:
            return self._take_over({**self._wanted, **wanted})
        before = {key: self._wanted.get(key) for key in wanted}
        others = self._claim(wanted)
        change, ports = self._plan({**others, **wanted})
        try:
            self._check_room(change)
        except MapFull:
            self._claim(before)
            raise
        self._write(change)
        self._remember(ports)
        return len(change)

    def _take_over(self, wanted: Mapping[Key, Wanted | None]) -> int:
        """Write everything beside what is there, address by address, and then remove what was there.

        Connections that are made meanwhile find the old endpoints or the new ones. Service ports keep their ids, and so
        clients their endpoints under session affinity.
        """
        self._read()
        self._ports, self._wanted, self._claims = {}, {}, {}
        self._claim(wanted)
        change, ports = self._plan(wanted)
        for name in REMOVED:
            change.remove[name] |= dict.fromkeys(self._keys[name])
        try:
            self._check_room(change)
        except MapFull:
            self._wanted, self._claims = {}, {}
            raise
        self._write(change)
        self._remember(ports)
        self._old, self._taken, self._known = {}, set(), True
        return len(change)

    def _read(self) -> None:
        """Learn what the maps hold."""
        try:
            found = {name: dict(self._maps[name].items()) for name in ADDED}
        except OSError as error:
            raise K8snetError(f"the maps of the Service datapath can't be read: {error.strerror}") from error
        self._keys = {name: set(entries) for name, entries in found.items()}
        self._old = {Frontend.unpack(key): Entry.unpack(value) for key, value in found["services"].items()}
        numbers = [number for entry in self._old.values() for number in (entry.port_id, entry.list_id)]
        numbers += [SLOT_KEY.unpack(key)[0] for key in found["slots"]]
        self._ids = itertools.count(max(numbers, default=0) + 1)

    # --- which of them has an address ---------------------------------------------------------------------------------

    def _claim(self, wanted: Mapping[Key, Wanted | None]) -> dict[Key, Wanted | None]:
        """Note who wants which address; gives the Service ports not in `wanted` whose part that changes."""
        others: dict[Key, Wanted | None] = {}
        for key, one in wanted.items():
            before = self._wanted.pop(key, None)
            now = {} if one is None else one.frontends
            for frontend in {} if before is None else before.frontends:
                if frontend not in now:
                    claims = self._claims[frontend]
                    claims.pop(key)
                    for heir in itertools.islice(claims, 1):
                        others[heir] = self._wanted.get(heir)
                    if not claims:
                        del self._claims[frontend]
            for frontend in now:
                self._claims.setdefault(frontend, {})[key] = None
            if one is not None:
                self._wanted[key] = one
        return {key: self._wanted[key] for key in others if key in self._wanted and key not in wanted}

    def _has(self, key: Key, frontend: Frontend) -> bool:
        return next(iter(self._claims[frontend])) == key

    # --- the updates --------------------------------------------------------------------------------------------------

    def _plan(self, wanted: Mapping[Key, Wanted | None]) -> tuple[Change, dict[Key, _Port | None]]:
        change = Change()
        return change, {key: self._plan_port(change, key, one) for key, one in wanted.items()}

    def _plan_port(self, change: Change, key: Key, wanted: Wanted | None) -> _Port | None:
        have = self._ports.get(key)
        if wanted is None:
            if have is not None:
                _drop(change, have)
            return None
        if have is None:
            have = _Port(self._port_id(key, wanted), (_List(next(self._ids)), _List(next(self._ids))))
        lists = (
            _plan_list(change, have.lists[0], wanted.cluster),
            _plan_list(change, have.lists[1], wanted.local),
        )
        entries = {
            frontend: Entry(
                have.id,
                lists[behind.local].id,
                len(lists[behind.local].backends),
                wanted.affinity_seconds,
                behind.flags | (ServiceFlag.LOCAL if behind.local else ServiceFlag(0)),
            )
            for frontend, behind in wanted.frontends.items()
            if self._has(key, frontend)
        }
        ranges = frozenset(pack_range(have.id, network) for network in wanted.ranges)
        _plan_entries(change, have.entries, entries)
        change.add["source_ranges"] |= dict.fromkeys(ranges - have.ranges, PRESENT)
        change.remove["source_ranges"] |= dict.fromkeys(have.ranges - ranges)
        return _Port(have.id, lists, entries, ranges)

    def _port_id(self, key: Key, wanted: Wanted) -> int:
        """The id that an earlier proxy gave to the Service port, or a new one; no two get the same."""
        for frontend in wanted.frontends:
            old = self._old.get(frontend)
            if old is not None and self._has(key, frontend) and old.port_id not in self._taken:
                self._taken.add(old.port_id)
                return old.port_id
        return next(self._ids)

    def _check_room(self, change: Change) -> None:
        """Raise MapFull unless all of a change fits, additions before removals."""
        for name in ADDED:
            keys = self._keys[name]
            new = sum(1 for key in change.add[name] if key not in keys)
            room = self._maps[name].capacity - len(keys)
            if new > room:
                raise MapFull(
                    f"the map {name} of the Service datapath is full: {new} more entries, room for {room}",
                    hint="delete Services, or make the map larger (DEFINES in labs/cluster/ebpfcompiler.py)",
                )

    def _write(self, change: Change) -> None:
        try:
            for name in ADDED:
                self._maps[name].set_many(change.add[name])
                self._keys[name].update(change.add[name])
            for name in REMOVED:
                for key in change.removals(name):
                    self._maps[name].delete(key)
                    self._keys[name].discard(key)
        except OSError as error:
            self._known = False
            raise K8snetError(f"a map of the Service datapath can't be written: {error.strerror}") from error

    def _remember(self, ports: Mapping[Key, _Port | None]) -> None:
        for key, port in ports.items():
            if port is None:
                self._ports.pop(key, None)
            else:
                self._ports[key] = port


def _plan_list(change: Change, have: _List, wanted: tuple[bytes, ...]) -> _List:
    """The updates that bring a list to what is wanted, in any order; gives the list that it will be."""
    before, after = set(have.backends), set(wanted)
    if before == after:
        return have
    new = [backend for backend in wanted if backend not in before]
    gone = [slot for slot, backend in enumerate(have.backends) if backend not in after]
    backends, written = _rearrange(list(have.backends), new, gone)
    members = {pack_member(have.id, backend): None for backend in new}
    change.add["members"] |= dict.fromkeys(members, PRESENT)
    change.add["slots"] |= {pack_slot(have.id, slot): backends[slot] for slot in written}
    for slot in range(max(len(have.backends), len(backends)), have.length):
        change.remove["slots"][pack_slot(have.id, slot)] = None
    change.remove["members"] |= {pack_member(have.id, have.backends[slot]): None for slot in gone}
    return _List(have.id, tuple(backends), max(len(have.backends), len(backends)))


def _rearrange(backends: list[bytes], new: list[bytes], gone: list[int]) -> tuple[list[bytes], set[int]]:
    """Put new endpoints in the slots of those that are gone, or after all, and fill the gaps that are left with the
    last ones; gives the list, and which of its slots are to be written."""
    new, gone, written = list(new), list(gone), set()
    while gone and new:
        backends[gone[0]] = new.pop()
        written.add(gone.pop(0))
    for backend in new:
        written.add(len(backends))
        backends.append(backend)
    for slot in reversed(gone):  # from the end, so that the last one is never itself to go
        last = backends.pop()
        if slot < len(backends):
            backends[slot] = last
            written.add(slot)
    return backends, {slot for slot in written if slot < len(backends)}


def _plan_entries(change: Change, have: Mapping[Frontend, Entry], wanted: Mapping[Frontend, Entry]) -> None:
    for frontend, entry in wanted.items():
        if have.get(frontend) != entry:
            change.add["services"][frontend.pack()] = entry.pack()
    for frontend in have.keys() - wanted.keys():
        change.remove["services"][frontend.pack()] = None


def _drop(change: Change, port: _Port) -> None:
    """Remove all of a Service port."""
    change.remove["services"] |= {frontend.pack(): None for frontend in port.entries}
    for one in port.lists:
        change.remove["slots"] |= {pack_slot(one.id, slot): None for slot in range(one.length)}
        change.remove["members"] |= {pack_member(one.id, backend): None for backend in one.backends}
    change.remove["source_ranges"] |= dict.fromkeys(port.ranges)

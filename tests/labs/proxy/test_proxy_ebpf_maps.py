"""Writing the maps of the eBPF datapath: what they hold in the end, and at every moment before."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labs.cluster.proxy.ebpf import Behind, Wanted
from labs.cluster.proxy.ebpf_maps import ADDED, MapFull, Tables
from tracer.errors import K8snetError
from tracer.service_lb import (
    SLOT_KEY,
    Backend,
    Entry,
    Frontend,
    Scope,
    ServiceFlag,
    pack_member,
    pack_slot,
)


class FakeMap:
    """A map in memory. `watch` is called after each single update, as another processor could look then."""

    def __init__(self, capacity: int = 1000) -> None:
        self.capacity = capacity
        self.entries: dict[bytes, bytes] = {}
        self.watch: Callable[[], None] = lambda: None
        self.refuses = False

    def set_many(self, entries: Mapping[bytes, bytes]) -> None:
        for key, value in entries.items():
            if self.refuses or (key not in self.entries and len(self.entries) >= self.capacity):
                raise OSError(7, "Argument list too long")
            self.entries[key] = value
            self.watch()

    def delete(self, key: bytes) -> bool:
        found = self.entries.pop(key, None) is not None
        self.watch()
        return found

    def items(self) -> list[tuple[bytes, bytes]]:
        return list(self.entries.items())


Maps = dict[str, FakeMap]


def maps(**capacities: int) -> Maps:
    return {name: FakeMap(capacities.get(name, 1000)) for name in ADDED}


def backend(number: int) -> bytes:
    return Backend(ipaddress.IPv4Address(f"10.244.0.{number}"), 8080, False).pack()


def frontend(number: int, scope: Scope = Scope.SOCKET) -> Frontend:
    return Frontend(ipaddress.IPv4Address(f"10.96.0.{number}"), 80, "TCP", scope)


def service(*backends: int, at: tuple[int, ...] = (1,), local: tuple[int, ...] = (), **more: Any) -> Wanted:
    """One that is found at some addresses, and from outside at the same ones with its local endpoints."""
    frontends = {frontend(number): Behind(local=False) for number in at}
    frontends |= {frontend(number, Scope.OUTSIDE): Behind(local=True) for number in at}
    return Wanted(
        frontends,
        tuple(map(backend, backends)),
        tuple(map(backend, local)),
        more.get("affinity", 0),
        more.get("ranges", ()),
    )


def look_up(of: Maps, wanted: Frontend) -> set[bytes] | None:
    """All endpoints that a look-up could give now; None where there is no Service. Slots must be there."""
    value = of["services"].entries.get(wanted.pack())
    if value is None:
        return None
    entry = Entry.unpack(value)
    found = set()
    for slot in range(entry.length):
        one = of["slots"].entries[pack_slot(entry.list_id, slot)]
        assert pack_member(entry.list_id, one) in of["members"].entries
        found.add(one)
    return found


def test_a_service_and_its_endpoints() -> None:
    of = maps()
    Tables(of).apply({"web": service(1, 2, 3, local=(2,))})
    assert look_up(of, frontend(1)) == {backend(1), backend(2), backend(3)}
    assert look_up(of, frontend(1, Scope.OUTSIDE)) == {backend(2)}
    assert look_up(of, frontend(9)) is None


@pytest.mark.parametrize(
    ("before", "after", "updates"),
    [
        ((1, 2, 3), (1, 2, 3, 4), {"members": 1, "slots": 1, "services": 1}),
        ((1, 2, 3), (2, 3), {"members": 1, "slots": 1, "services": 1}),
        ((1, 2, 3), (1, 2), {"members": 1, "services": 1}),
        ((1, 2, 3), (1, 2, 4), {"members": 2, "slots": 1}),
        ((1, 2, 3), (3, 1, 2), {}),
        ((1, 2, 3), (), {"members": 3, "services": 1}),
    ],
)
def test_a_change_costs_a_handful_of_updates(
    before: tuple[int, ...], after: tuple[int, ...], updates: dict[str, int]
) -> None:
    of = maps()
    tables: Tables[str] = Tables(of)
    alone = {frontend(1): Behind(local=False)}
    tables.apply({"web": Wanted(alone, tuple(map(backend, before)), (), 0, ())})
    seen: dict[str, int] = {}
    for name, one in of.items():

        def count(name: str = name) -> None:
            seen[name] = seen.get(name, 0) + 1

        one.watch = count
    assert tables.apply({"web": Wanted(alone, tuple(map(backend, after)), (), 0, ())}) == sum(updates.values())
    assert seen == updates


def test_the_slot_of_an_endpoint_that_went_stays_until_the_next_change() -> None:
    """A reader may have seen the old count and not looked yet."""
    of = maps()
    tables: Tables[str] = Tables(of)
    tables.apply({"web": service(1, 2, 3)})
    tables.apply({"web": service(1)})
    assert len(of["slots"].entries) == 3
    tables.apply({"web": service(2)})
    assert len(of["slots"].entries) == 1


_NUMBERS = st.lists(st.integers(1, 6), unique=True, max_size=5).map(tuple)
_SERVICES = st.none() | st.builds(
    lambda backends, local, at, affinity, flags: Wanted(
        {
            **{frontend(number): Behind(False, ServiceFlag(flags)) for number in at},
            **{frontend(number, Scope.OUTSIDE): Behind(True) for number in at},
        },
        tuple(map(backend, backends)),
        tuple(map(backend, local)),
        affinity,
        (ipaddress.ip_network("10.0.0.0/8"),) if flags else (),
    ),
    _NUMBERS,
    _NUMBERS,
    st.sampled_from([(1,), (2,), (1, 2), (3,)]),
    st.sampled_from([0, 10]),
    st.sampled_from([0, 2]),
)
_STEPS = st.lists(st.dictionaries(st.sampled_from("abc"), _SERVICES, min_size=1), min_size=1, max_size=8)


@given(_STEPS, st.sets(st.integers(1, 7)))
def test_no_look_up_meets_half_a_change(steps: list[dict[str, Wanted | None]], restarts: set[int]) -> None:
    """After each single update every address gives endpoints of a Service that has it before or after, as that Service
    is before or after, and an address that is there before and after is never unknown; at the end the maps hold what is
    wanted and nothing else."""
    of = maps()
    tables: Tables[str] = Tables(of)
    now: dict[str, Wanted] = {}
    for number, step in enumerate(steps):
        changes = step
        if number in restarts:
            tables = Tables(of)  # another proxy: it is told everything at first
            changes = {**{key: now.get(key) for key in "abc"}, **step}
        before = dict(now)
        now = {key: one for key, one in {**now, **changes}.items() if one is not None}
        moments = _watch(of, lambda tables=tables, changes=changes: tables.apply(changes))  # type: ignore[misc]
        for address in ADDRESSES:
            _check_moments([moment[address] for moment in moments], address, before, now)
        _check_end(of, now)


ADDRESSES = [frontend(number, scope) for number in (1, 2, 3) for scope in Scope]
Moment = dict[Frontend, set[bytes] | None]


def _watch(of: Maps, act: Callable[[], Any]) -> list[Moment]:
    """What every address gives after each single update."""
    moments: list[Moment] = []
    for one in of.values():
        one.watch = lambda: moments.append({address: look_up(of, address) for address in ADDRESSES})
    act()
    for one in of.values():
        one.watch = lambda: None
    return moments


def _check_moments(
    seen: list[set[bytes] | None], address: Frontend, before: Mapping[str, Wanted], after: Mapping[str, Wanted]
) -> None:
    had = {key for key, one in before.items() if address in one.frontends}
    has = {key for key, one in after.items() if address in one.frontends}
    possible: set[bytes] = set()
    for services in (before, after):
        for key in (had | has) & services.keys():
            possible.update(services[key].cluster if address.scope is Scope.SOCKET else services[key].local)
    for backends in seen:
        assert backends is not None or not (had and has)
        assert (backends or set()) <= possible


def _check_end(of: Maps, now: Mapping[str, Wanted]) -> None:
    wanted: dict[Frontend, list[tuple[bytes, ...]]] = {}
    for one in now.values():
        for address, behind in one.frontends.items():
            wanted.setdefault(address, []).append(one.backends(behind))
    assert {Frontend.unpack(key) for key in of["services"].entries} == set(wanted)
    for address, claims in wanted.items():
        assert look_up(of, address) in map(set, claims)
        entry = Entry.unpack(of["services"].entries[address.pack()])
        assert entry.length in map(len, claims), "no endpoint twice: each has the same share"
    assert len(of["source_ranges"].entries) == sum(1 for one in now.values() if one.ranges)


def test_of_two_services_with_one_address_the_earlier_has_it_until_it_goes() -> None:
    of = maps()
    tables: Tables[str] = Tables(of)
    tables.apply({"a": service(1)})
    tables.apply({"b": service(2)})
    assert look_up(of, frontend(1)) == {backend(1)}
    tables.apply({"a": service(1, at=(2,))})
    assert look_up(of, frontend(1)) == {backend(2)}
    tables.apply({"a": service(1)})
    assert look_up(of, frontend(1)) == {backend(2)}
    tables.apply({"b": None})
    assert look_up(of, frontend(1)) == {backend(1)}
    tables.apply({"a": None})
    assert all(one.entries == {} for one in of.values())


@pytest.mark.parametrize(("name", "capacity"), [("services", 3), ("slots", 4), ("members", 4)])
def test_a_full_map_is_an_error_and_the_old_state_stays(name: str, capacity: int) -> None:
    of = maps(**{name: capacity})
    tables: Tables[str] = Tables(of)
    tables.apply({"a": service(1, 2)})
    before = {key: dict(one.entries) for key, one in of.items()}
    with pytest.raises(MapFull, match=f"the map {name} of the Service datapath is full: . more entries, room for ."):
        tables.apply({"b": service(3, 4, 5, at=(2,))})
    assert {key: one.entries for key, one in of.items()} == before
    tables.apply({"a": service(1)})
    assert look_up(of, frontend(1)) == {backend(1)}
    tables.apply({"a": None})
    tables.apply({"b": service(3, 4, at=(2,))})
    assert look_up(of, frontend(2)) == {backend(3), backend(4)}


def test_what_the_kernel_refuses_is_written_again_with_the_next_change() -> None:
    of = maps()
    tables: Tables[str] = Tables(of)
    tables.apply({"a": service(1, 2)})
    of["slots"].refuses = True
    with pytest.raises(K8snetError, match="can't be written"):
        tables.apply({"a": service(3, 4, 5)})
    of["slots"].refuses = False
    tables.apply({"b": service(6, at=(2,))})
    assert look_up(of, frontend(1)) == {backend(3), backend(4), backend(5)}
    assert look_up(of, frontend(2)) == {backend(6)}


def test_a_proxy_that_starts_again_keeps_affinity_and_removes_what_nobody_wants() -> None:
    of = maps()
    Tables(of).apply({"a": service(1, affinity=10), "b": service(2, at=(2,))})
    before = Entry.unpack(of["services"].entries[frontend(1).pack()])
    Tables(of).apply({"a": service(1, 3, affinity=10)})
    after = Entry.unpack(of["services"].entries[frontend(1).pack()])
    assert after.port_id == before.port_id
    assert look_up(of, frontend(1)) == {backend(1), backend(3)}
    assert look_up(of, frontend(2)) is None
    assert {SLOT_KEY.unpack(key)[0] for key in of["slots"].entries} == {after.list_id}


def test_source_ranges_come_and_go_with_their_service() -> None:
    of = maps()
    tables: Tables[str] = Tables(of)
    network = ipaddress.ip_network("10.0.0.0/8")
    tables.apply({"a": service(1, ranges=(network,))})
    assert len(of["source_ranges"].entries) == 1
    tables.apply({"a": service(1)})
    assert of["source_ranges"].entries == {}

"""What the maps of the eBPF datapath hold, from bytes; a kernel's own maps are read in tests/labs and tests/whole."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import cast

import pytest

from tracer.bpfmaps import Map
from tracer.service_lb import (
    PRESENT,
    Backend,
    Entry,
    Frontend,
    NodeFacts,
    Scope,
    ServiceFlag,
    pack_range,
    pack_slot,
    read,
)

WEB = Frontend(ipaddress.ip_address("10.96.0.1"), 80, "TCP", Scope.SOCKET)
OUTSIDE = Frontend(ipaddress.ip_address("fd00::1"), 53, "UDP", Scope.OUTSIDE)
ONE, TWO = (Backend(ipaddress.ip_address(ip), 8080, ip.endswith("5")) for ip in ("10.244.0.5", "10.244.1.6"))


class Held:
    """A map of bytes to bytes."""

    def __init__(self, entries: Mapping[bytes, bytes]) -> None:
        self._entries = entries

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._entries.items())

    def get(self, key: bytes) -> bytes | None:
        return self._entries.get(key)


def held(entries: Mapping[bytes, bytes]) -> Map:
    return cast(Map, Held(entries))


def maps() -> tuple[Map, Map]:
    """Two Services that share a list of two, of which slot 2 is no longer, or not yet, in use."""
    entry = Entry(1, 7, 2, 10800, ServiceFlag.MASQUERADE)
    services = {WEB.pack(): entry.pack(), OUTSIDE.pack(): entry._replace(length=1).pack()}
    slots = {pack_slot(7, number): backend.pack() for number, backend in ((2, TWO), (1, TWO), (0, ONE))}
    return held(services), held({**slots, pack_slot(8, 0): ONE.pack()})


def test_slots_come_in_their_order_and_only_as_many_as_the_service_says() -> None:
    found = read(*maps())
    assert found.services[WEB] == Entry(1, 7, 2, 10800, ServiceFlag.MASQUERADE)
    assert found.backends(WEB) == (ONE, TWO)
    assert found.backends(OUTSIDE) == (ONE,)
    assert found.backends(WEB._replace(port=81)) == ()
    assert set(found.lists) == {7}  # nobody leads to the other
    assert (found.ranges, found.node) == ({}, None)


@pytest.mark.parametrize("text", ["198.51.100.0/24", "0.0.0.0/0", "203.0.113.7/32", "2001:db8::/32"])
def test_source_ranges_of_either_family(text: str) -> None:
    network = ipaddress.ip_network(text)
    found = read(*maps(), held({pack_range(1, network): PRESENT}))
    assert found.ranges == {1: (network,)}


def test_a_node_that_has_no_ipv6_address_and_one_that_nobody_told_of() -> None:
    facts = NodeFacts(7, ipaddress.ip_address("172.18.0.2"), None, 4026531840)
    assert read(*maps(), None, held({bytes(4): facts.pack()})).node == facts
    assert read(*maps(), None, held({bytes(4): bytes(48)})).node is None

"""Address translation: what DNAT, SNAT, MASQUERADE, REDIRECT and NETMAP make of a packet.

What belongs here: the new addresses, and the shares where the kernel chooses among several. What does not: when a
translation is done at all (`hooks`: only for new flows, once for each direction).
Sources: Linux net/netfilter/nf_nat_core.c (get_unique_tuple, find_best_ips_proto), nf_nat_redirect.c and
nf_nat_masquerade.c.
"""

from __future__ import annotations

from typing import NamedTuple

from tracer.rules.conditions import fields
from tracer.rules.lookups import Lookups
from tracer.rules.model import Element, Interval, Lookup, Nat, Table, Value, Verdict
from tracer.rules.packet import Packet, Place

MOST_WAYS = 4096  # addresses or ports of a range that are told one by one

DESTINATION = frozenset(("dnat", "redirect"))
_LAST_IPV4 = 0xFFFFFFFF
_DESTINATION_HOOKS = frozenset(("prerouting", "output"))


class Way(NamedTuple):
    """What a packet becomes, and with which share."""

    packet: Packet
    share: float = 1.0


class Translation(NamedTuple):
    """The ways that a packet may take. note: what can't be told about them, for people."""

    ways: tuple[Way, ...]
    note: str | None = None


def changes_destination(nat: Nat, place: Place) -> bool:
    """Whether it is the destination that changes, rather than the source."""
    return nat.kind in DESTINATION or (nat.kind == "netmap" and place.hook in _DESTINATION_HOOKS)


def translate(nat: Nat, packet: Packet, place: Place, table: Table, lookups: Lookups) -> Translation | None:
    """What becomes of the packet; None where the rule's map has nothing for it, so that the next rule comes."""
    if nat.address is not None and (nat.address.high > _LAST_IPV4) is not (place.flow.family == "ip6"):
        return None  # `dnat ip to …` in a table of family inet
    if nat.lookup is not None:
        return _from_map(nat, nat.lookup, packet, place, table, lookups)
    if not changes_destination(nat, place):
        return Translation((Way(_source(nat, packet)),))
    if nat.kind == "redirect":
        return _redirected(nat, packet, place)
    if nat.kind == "netmap" and nat.address is not None:
        return Translation((Way(packet._replace(daddr=_mapped(nat.address, packet.daddr))),))
    return _spread(packet, nat.address, nat.port)


def _source(nat: Nat, packet: Packet) -> Packet:
    if nat.kind == "netmap" and nat.address is not None and packet.saddr is not None:
        return packet._replace(saddr=_mapped(nat.address, packet.saddr), snat=True)
    if nat.kind == "snat" and nat.address is not None:
        return packet._replace(saddr=nat.address.low, snat=True)
    return packet._replace(snat=True)


def _mapped(network: Interval, address: int) -> int:
    """The network's part of the one, the host's part of the other (net/netfilter/xt_NETMAP.c)."""
    return network.low | (address & (network.high - network.low))


def _redirected(nat: Nat, packet: Packet, place: Place) -> Translation:
    """To this node: from here to loopback's address, from elsewhere to the address of the device that it came in by."""
    port = packet.dport if nat.port is None else nat.port.low
    if place.hook == "output":
        loopback = 1 if place.flow.family == "ip6" else 0x7F000001
        return Translation((Way(packet._replace(daddr=loopback, dport=port, here=True)),))
    source = packet.saddr if packet.saddr is not None else packet.daddr
    address = place.routing.source(source)
    note = None if address is not None else "a redirected packet goes to this node's own address, which is not known"
    redirected = packet._replace(daddr=packet.daddr if address is None else address, dport=port, here=True)
    return Translation((Way(redirected),), note)


def _spread(packet: Packet, address: Interval | None, port: Interval | None) -> Translation:
    """Each address of a range takes its share of clients, by a hash of the client's address."""
    low, high = (packet.daddr, packet.daddr) if address is None else address
    first, last = (packet.dport, packet.dport) if port is None else port
    note = None
    if low != high:
        note = "the kernel chooses among a range of addresses by the client's own, so that each client keeps its one"
    if first <= packet.dport <= last:
        first = last = packet.dport  # a port within the range stays
    count = (high - low + 1) * (last - first + 1)
    if count > MOST_WAYS:
        note = "the kernel chooses among more addresses and ports than are told here: only the first stands for them"
        high, last, count = low, first, 1
    ways = (
        Way(packet._replace(daddr=number, dport=each), 1.0 / count)
        for number in range(low, high + 1)
        for each in range(first, last + 1)
    )
    return Translation(tuple(ways), note)


def _from_map(
    nat: Nat, lookup: Lookup, packet: Packet, place: Place, table: Table, lookups: Lookups
) -> Translation | None:
    """nft's `dnat to KEY map …`."""
    ways = []
    for element, share in chosen(lookup, packet, place, table, lookups):
        if element is None or element.data is None:
            return None
        for way in _to_datum(nat, element.data, packet, place):
            ways.append(way._replace(share=way.share * share))
    return Translation(tuple(ways)) if ways else None


def _to_datum(nat: Nat, datum: Verdict | Value, packet: Packet, place: Place) -> tuple[Way, ...]:
    """data of a map: an address, or an address and a port."""
    if isinstance(datum, Verdict):
        return ()
    parts = datum if isinstance(datum, tuple) and not isinstance(datum, Interval) else (datum,)
    address = parts[0] if isinstance(parts[0], Interval) else None
    port = nat.port
    if len(parts) > 1:
        second = parts[1]
        port = Interval(second, second) if isinstance(second, int) else second if isinstance(second, Interval) else port
    if not changes_destination(nat, place):
        return (Way(_source(nat._replace(address=address), packet)),)
    return _spread(packet, address, port).ways


def chosen(
    lookup: Lookup, packet: Packet, place: Place, table: Table, lookups: Lookups
) -> list[tuple[Element | None, float]]:
    """The elements of a map that may be the packet's, with their shares; None for those shares that find none."""
    if lookup.keys == ("numgen",):
        return _numbered(lookup, table)
    actuals = fields(lookup.keys, packet, place)
    if lookup.map is not None:
        found = lookups.find(table, lookup.map, actuals, packet)
    else:
        found = lookups.among(lookup.elements).find(actuals)
    if found.unknown:
        return [(None, 1.0), *((element, 0.0) for element in _all_elements(lookup, table))]
    return [(found.element, 1.0)]


def _all_elements(lookup: Lookup, table: Table) -> tuple[Element, ...]:
    if lookup.map is None:
        return lookup.elements
    found = table.sets.get(lookup.map)
    return () if found is None else found.elements


def _numbered(lookup: Lookup, table: Table) -> list[tuple[Element | None, float]]:
    """Shares by a number from `offset` on, below `offset` + `modulus`, each as likely as the others."""
    first, last = lookup.offset, lookup.offset + lookup.modulus - 1
    left = lookup.modulus
    found: list[tuple[Element | None, float]] = []
    for element in _all_elements(lookup, table):
        low, high = element.value if isinstance(element.value, Interval) else (element.value, element.value)
        if isinstance(low, int) and isinstance(high, int):
            count = min(high, last) - max(low, first) + 1
            if count > 0:
                left -= count
                found.append((element, count / lookup.modulus))
    if left > 0 or not found:
        found.append((None, left / lookup.modulus if lookup.modulus else 1.0))
    return found

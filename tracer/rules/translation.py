"""Address translation: what DNAT, SNAT, MASQUERADE, REDIRECT and NETMAP make of a packet.

What belongs here: the new addresses, and the shares where the kernel chooses among several. What does not: when a
translation is done at all (`hooks`: only for new flows, once for each direction).
Sources: Linux net/netfilter/nf_nat_core.c (get_unique_tuple, find_best_ips_proto), nf_nat_redirect.c and
nf_nat_masquerade.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tracer.rules.conditions import fields
from tracer.rules.lookups import Lookups
from tracer.rules.model import Element, Interval, Lookup, Nat, Table, Value, Verdict
from tracer.rules.packet import Packet, Place

MOST_WAYS = 4096  # addresses or ports of a range that are told one by one

DESTINATION = frozenset(("dnat", "redirect"))
_LAST_IPV4 = 0xFFFFFFFF
_RANDOM = frozenset(("random", "random-fully", "fully-random"))
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
        return Translation((Way(_source(nat, packet, place)),))
    if nat.kind == "redirect":
        return _redirected(nat, packet, place)
    return _spread(nat, packet, nat.address, nat.port)


def _source(nat: Nat, packet: Packet, place: Place) -> Packet:
    """The new source. Masquerading takes an address of this node, which matters only for what stays on the node."""
    if nat.address is not None and packet.saddr is not None and _is_netmap(nat):
        return packet._replace(saddr=_mapped(nat.address, packet.saddr), snat=True)
    if nat.kind == "snat" and nat.address is not None:
        return packet._replace(saddr=nat.address.low, snat=True)
    if place.outgoing(packet) == "lo":
        return packet._replace(saddr=None, snat=True)
    return packet._replace(snat=True)


def _is_netmap(nat: Nat) -> bool:
    return nat.kind == "netmap" or "netmap" in nat.flags


def _mapped(network: Interval, address: int) -> int:
    """The network's part of the one, the host's part of the other (net/netfilter/xt_NETMAP.c)."""
    return network.low | (address & (network.high - network.low))


def _redirected(nat: Nat, packet: Packet, place: Place) -> Translation:
    """To this node: from here to loopback's address, from elsewhere to the address of the device that it came in by."""
    ports = _ports(nat, nat.port, packet.dport)
    if place.hook == "output":
        loopback = 1 if place.flow.family == "ip6" else 0x7F000001
        return Translation(_ways(packet._replace(here=True), (loopback,), ports))
    source = packet.saddr if packet.saddr is not None else packet.daddr
    address = place.routing.source(source)
    note = None if address is not None else "a redirected packet goes to this node's own address, which is not known"
    address = packet.daddr if address is None else address
    return Translation(_ways(packet._replace(here=True), (address,), ports), note)


def _spread(nat: Nat, packet: Packet, address: Interval | None, port: Interval | None) -> Translation:
    """Each address of a range takes its share of clients, by a hash of the client's address."""
    ports = _ports(nat, port, packet.dport)
    if address is not None and _is_netmap(nat):
        return Translation(_ways(packet, (_mapped(address, packet.daddr),), ports))
    low, high = (packet.daddr, packet.daddr) if address is None else address
    note = None
    if low != high:
        note = "the kernel chooses among a range of addresses by the client's own, so that each client keeps its one"
    addresses = range(low, high + 1)
    if (high - low + 1) * len(ports) > MOST_WAYS:
        note = "the kernel chooses among more addresses and ports than are told here: only the first stands for them"
        addresses, ports = addresses[:1], ports[:1]
    return Translation(_ways(packet, addresses, ports), note)


def _ways(packet: Packet, addresses: Sequence[int], ports: Sequence[int]) -> tuple[Way, ...]:
    """All of these destinations, each as likely as the others."""
    share = 1.0 / (len(addresses) * len(ports))
    return tuple(Way(packet._replace(daddr=address, dport=port), share) for address in addresses for port in ports)


def _ports(nat: Nat, port: Interval | None, dport: int) -> Sequence[int]:
    """The ports that the kernel may choose.

    Any, where it is told to choose at random; else the packet's own, where it is within the range, or the first.
    Source: Linux net/netfilter/nf_nat_core.c, get_unique_tuple and nf_nat_l4proto_unique_tuple; measured on v6.18. Some
    earlier kernels take any port of the range in each case but the second.
    """
    if port is None:
        return (dport,)
    first, last = port
    if not _RANDOM.isdisjoint(nat.flags):
        return range(first, last + 1)
    base = next((int(flag.removeprefix("base ")) for flag in nat.flags if flag.startswith("base ")), None)
    if base is not None:  # `--to-destination ADDRESS:FIRST-LAST/BASE`
        return (first + (dport - base) % (last - first + 1),)
    return (dport,) if first <= dport <= last else (first,)


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
        return (Way(_source(nat._replace(address=address), packet, place)),)
    return _spread(nat, packet, address, port).ways


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

"""Whether a packet meets a condition of a rule: yes, no, or it can't be told.

What belongs here: every key of `model.Match`, as the kernel compares it, for the first packet of a new flow. What does
not: chance (`walk` follows both ways), named sets (`lookups`).
Sources: Linux net/netfilter/xt_*.c, nft_payload.c, nft_meta.c, nft_ct.c, nft_fib.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracer.rules.model import Interval, Match, Recent, Value
from tracer.rules.packet import Packet, Place, Tracking

EPHEMERAL = Interval(32768, 60999)  # net.ipv4.ip_local_port_range, where source ports come from
_ANY_SOURCE_PORT = Interval(1024, 65535)


class _Absent:
    """A packet has no such field (a UDP packet's tcp dport): nothing that is asked of it holds, not even `!=`."""


class _SourcePort:
    """A source port: any of those that the kernel hands out."""


class _Somewhere:
    """An address of this node that nobody told us: outside of every range that rules name."""


class _AnyDevice:
    """A device that nobody told us. It is not lo: only packets from this node to itself go through that."""


ABSENT = _Absent()
ANY_DEVICE = _AnyDevice()
SOURCE_PORT = _SourcePort()
SOMEWHERE = _Somewhere()

# int and str: the value · frozenset: any of these words fits · None: not known
Field = Any


def fields(keys: tuple[str, ...], packet: Packet, place: Place) -> tuple[Field, ...]:
    """What the packet has at each of the keys."""
    return tuple(field(key, packet, place) for key in keys)


def field(key: str, packet: Packet, place: Place) -> Field:
    """What the packet has at one key, in nft's words."""
    read = _FIELDS.get(key)
    return _unread(key, packet, place) if read is None else read(packet, place)


def _unread(key: str, packet: Packet, place: Place) -> Field:
    """A field that we know nothing of; but headers of other protocols this packet has not."""
    header = key.partition(" ")[0]
    if header in _OTHER_HEADERS or (header in ("tcp", "udp", "sctp") and header != place.flow.protocol):
        return ABSENT
    if header in ("ip", "ip6") and header != place.flow.family:
        return ABSENT
    return ABSENT if header == "ct" and packet.tracking is not Tracking.NEW else None


def holds(match: Match, packet: Packet, place: Place) -> bool | None:
    """Whether a comparison with values (not with a named set) holds; None where that can't be told."""
    if len(match.keys) == 1:
        actual = field(match.keys[0], packet, place)
        if actual is ABSENT:
            return False
        found = any_fits(match.values, actual, match.mask)
    else:
        actuals = fields(match.keys, packet, place)
        if ABSENT in actuals:
            return False
        found = _either(_all_fit(value, actuals) for value in match.values)
    return None if found is None else found is not match.negated


def any_fits(values: tuple[Value, ...], actual: Field, mask: int | None = None) -> bool | None:
    """Whether any of the values is what the packet has."""
    if isinstance(actual, int):
        if mask is not None:
            actual &= mask
        unknown = False
        for value in values:
            if isinstance(value, Interval):
                if value[0] <= actual <= value[1]:
                    return True
            elif isinstance(value, int):
                if value == actual:
                    return True
            else:
                unknown = True
        return None if unknown else False
    return _either(fits(value, actual) for value in values)


def fits(value: Value, actual: Field) -> bool | None:
    """Whether one value is what the packet has."""
    if actual is None:
        return None
    if isinstance(actual, int):
        if isinstance(value, Interval):
            return value.low <= actual <= value.high
        return value == actual if isinstance(value, int) else None
    if actual is ANY_DEVICE:
        return False if value == "lo" else None
    if actual is SOMEWHERE:
        return isinstance(value, Interval) and value.low == 0 and value.high in (0xFFFFFFFF, (1 << 128) - 1)
    if actual is SOURCE_PORT:
        return _source_port_fits(value)
    if not isinstance(value, str):
        return None
    if isinstance(actual, frozenset):
        return value in actual
    return actual.startswith(value[:-1]) if value.endswith("*") else bool(actual == value)


def _source_port_fits(value: Value) -> bool | None:
    low, high = value if isinstance(value, Interval) else (value, value)
    if not isinstance(low, int) or not isinstance(high, int):
        return None
    if low <= EPHEMERAL.low and EPHEMERAL.high <= high:
        return True
    return None if low <= _ANY_SOURCE_PORT.high and _ANY_SOURCE_PORT.low <= high else False


def _all_fit(value: Value, actuals: tuple[Field, ...]) -> bool | None:
    """Whether every field of a concatenation fits."""
    if not isinstance(value, tuple) or isinstance(value, Interval) or len(value) != len(actuals):
        return None
    answers = [fits(part, actual) for part, actual in zip(value, actuals, strict=True)]
    return False if False in answers else None if None in answers else True


def _either(answers: Any) -> bool | None:
    result: bool | None = False
    for answer in answers:
        if answer:
            return True
        if answer is None:
            result = None
    return result


def recent_holds(recent: Recent, packet: Packet) -> bool:
    """The match `recent`, for a client that it has not seen before this packet (net/netfilter/xt_recent.c)."""
    if recent.action == "set":
        return not recent.negated
    seen = recent_entry(recent, packet) in packet.seen and recent.hitcount <= 1
    return seen is not recent.negated


def recent_entry(recent: Recent, packet: Packet) -> tuple[object, ...]:
    """What `recent --set` puts into its list."""
    return ("recent", recent.name, packet.saddr if recent.source else packet.daddr)


Read = Callable[[Packet, Place], Field]

_OTHER_HEADERS = frozenset(("icmp", "icmpv6", "igmp", "dccp", "udplite", "ah", "esp", "comp", "arp"))


def _of_family(family: str, read: Read) -> Read:
    return lambda packet, place: read(packet, place) if place.flow.family == family else ABSENT


def _of_protocol(protocol: str, read: Read) -> Read:
    return lambda packet, place: read(packet, place) if place.flow.protocol == protocol else ABSENT


def _tracked(read: Read) -> Read:
    return lambda packet, place: read(packet, place) if packet.tracking is Tracking.NEW else ABSENT


def _saddr(packet: Packet, place: Place) -> Field:
    if packet.saddr is None:
        return None if packet.snat else SOMEWHERE  # masqueraded: an address of this node, but which one?
    return packet.saddr


def _original_saddr(packet: Packet, place: Place) -> Field:
    return SOMEWHERE if place.flow.saddr is None else place.flow.saddr


def _in_device(packet: Packet, place: Place) -> Field:
    return ANY_DEVICE if place.iif is None else place.iif


def _out_device(packet: Packet, place: Place) -> Field:
    device = place.outgoing(packet)
    return ANY_DEVICE if device is None else device


def _ct_state(packet: Packet, place: Place) -> Field:
    if packet.tracking is not Tracking.NEW:
        return frozenset((packet.tracking.value,))
    return frozenset(("new", *_translations(packet, place)))


def _ct_status(packet: Packet, place: Place) -> Field:
    confirmed = ("confirmed",) if place.looped else ()
    return frozenset((*confirmed, *_translations(packet, place)))


def _translations(packet: Packet, place: Place) -> tuple[str, ...]:
    """Linux net/netfilter/nf_nat_core.c, nf_nat_setup_info: the status says so where the tuple really changed."""
    changed = packet.here or (packet.daddr, packet.dport) != place.original(packet)
    return (*(("dnat",) if changed else ()), *(("snat",) if packet.snat else ()))


def _daddr_kind(packet: Packet, place: Place) -> Field:
    return "local" if packet.here else place.routing.kind(packet.daddr) or "unicast"


def _saddr_kind(packet: Packet, place: Place) -> Field:
    if packet.saddr is None or (place.flow.local and packet.saddr == place.flow.saddr):
        return "local"
    return place.routing.kind(packet.saddr) or "unicast"


def _packet_type(packet: Packet, place: Place) -> Field:
    return frozenset(("host", "unicast")) if place.routing.kind(packet.daddr) in (None, "unicast", "local") else None


def _socket_owner(packet: Packet, place: Place) -> Field:
    """A forwarded packet has no socket (net/netfilter/nft_meta.c, xt_owner.c)."""
    return None if place.flow.local else ABSENT


def _either_port(packet: Packet, place: Place) -> Field:
    return packet.dport  # a source port is none of those that rules ask for


_addresses: dict[str, Read] = {"saddr": _saddr, "daddr": lambda packet, place: packet.daddr}
_ports: dict[str, Read] = {
    "dport": lambda packet, place: packet.dport,
    "sport": lambda packet, place: SOURCE_PORT,
}
_original: dict[str, Read] = {"saddr": _original_saddr, "daddr": lambda packet, place: place.original(packet)[0]}
_reply: dict[str, Read] = {"saddr": lambda packet, place: packet.daddr, "daddr": _saddr}

_FIELDS: dict[str, Read] = {
    **{f"{family} {name}": _of_family(family, read) for family in ("ip", "ip6") for name, read in _addresses.items()},
    **{
        f"{protocol} {name}": _of_protocol(protocol, read)
        for protocol in ("tcp", "udp", "sctp", "dccp", "udplite")
        for name, read in _ports.items()
    },
    "th dport": _ports["dport"],
    "th sport": _ports["sport"],
    "th port": _either_port,
    "tcp flags": _of_protocol("tcp", lambda packet, place: 2),  # a new flow's first packet: SYN
    "meta l4proto": lambda packet, place: place.flow.protocol,
    "ip protocol": _of_family("ip", lambda packet, place: place.flow.protocol),
    "ip6 nexthdr": _of_family("ip6", lambda packet, place: place.flow.protocol),
    "meta nfproto": lambda packet, place: "ipv6" if place.flow.family == "ip6" else "ipv4",
    "meta protocol": lambda packet, place: place.flow.family,
    "meta mark": lambda packet, place: packet.mark,
    "ct mark": _tracked(lambda packet, place: packet.ct_mark),
    "meta iifname": _in_device,
    "meta iif": _in_device,
    "meta oifname": _out_device,
    "meta oif": _out_device,
    "meta pkttype": _packet_type,
    "meta skuid": _socket_owner,
    "meta skgid": _socket_owner,
    "ct state": _ct_state,
    "ct status": _tracked(_ct_status),
    "ct direction": _tracked(lambda packet, place: "original"),
    "ct protocol": _tracked(lambda packet, place: place.flow.protocol),
    "ct original protocol": _tracked(lambda packet, place: place.flow.protocol),
    "ct l3proto": _tracked(lambda packet, place: "ipv6" if place.flow.family == "ip6" else "ipv4"),
    **{f"ct original {name}": _tracked(read) for name, read in _original.items()},
    **{f"ct reply {name}": _tracked(read) for name, read in _reply.items()},
    **{
        f"ct {direction} {family} {name}": _tracked(_of_family(family, read))
        for direction, all_ in (("original", _original), ("reply", _reply))
        for family in ("ip", "ip6")
        for name, read in all_.items()
    },
    "ct original proto-dst": _tracked(lambda packet, place: place.original(packet)[1]),
    "ct original proto-src": _tracked(_ports["sport"]),
    "ct reply proto-src": _tracked(_ports["dport"]),
    "ct reply proto-dst": _tracked(_ports["sport"]),
    "fib daddr type": _daddr_kind,
    "fib saddr type": _saddr_kind,
    "physdev in": lambda packet, place: "",  # no bridge hands it in
    "physdev out": lambda packet, place: "",
    "physdev is": lambda packet, place: "",
}

"""Whether a packet is in a set of ipset(8), as `-m set --match-set NAME src,dst` asks.

What belongs here: which fields of a packet a set compares, and which of its elements decides. What does not: reading
sets (`ipset_save`), and what the rule then does.
Source: Linux net/netfilter/xt_set.c; net/netfilter/ipset/ip_set_core.c (ip_set_test), ip_set_hash_gen.h
(mtype_test_cidrs), ip_set_hash_*.c, ip_set_bitmap_*.c, ip_set_list_set.c (their kadt functions).

A packet that lacks what the set compares is not in it, so that a negated match holds, unlike one of nftables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tracer.rules.conditions import Field, field
from tracer.rules.ipset_save import TYPES
from tracer.rules.lookups import Elements
from tracer.rules.model import Element, Interval, Ipset, Value
from tracer.rules.packet import Packet, Place

_WIDTHS = {"ip": 32, "ip6": 128}
_KEYS = {
    ("ip", "src"): ("{family} saddr",),
    ("ip", "dst"): ("{family} daddr",),
    ("port", "src"): ("meta l4proto", "th sport"),
    ("port", "dst"): ("meta l4proto", "th dport"),
    ("iface", "src"): ("meta iifname",),
    ("iface", "dst"): ("meta oifname",),
}
_PHYSDEV = "physdev:"  # no rule of iptables asks for a bridge's port, and no other kind of packet meets these elements
_PORTS_OF = ("tcp", "udp")  # of bitmap:port (ip_set_bitmap_port.c, ip_set_get_ip_port)


def touched(name: str) -> tuple[object, ...]:
    """What a packet has `seen` whose rules put elements into a set, or took them out."""
    return ("ipset", name)


class Ipsets:
    """The ipsets of a namespace, each read when it is first asked for."""

    def __init__(self, sets: Mapping[str, Ipset]) -> None:
        self.sets = sets
        self._layers: dict[str, _Layers] = {}

    def holds(self, name: str, keys: tuple[str, ...], packet: Packet, place: Place) -> bool | None:
        """Whether the packet is in the set; None where that can't be told. keys: "ipset src", "ipset dst", in order.

        Raises FormatError for elements that make no sense.
        """
        found = self.sets.get(name)
        if found is None or touched(name) in packet.seen:
            return None
        elements = found.elements
        if found.strange is not None:
            return None
        if found.kind == "list:set":
            return _any(self.holds(str(member.value), keys, packet, place) for member in elements)
        parts = TYPES[found.kind]
        if len(keys) < len(parts) or found.of not in (None, place.flow.family):
            return False
        if found.kind == "bitmap:port" and place.flow.protocol not in _PORTS_OF:
            return False
        actuals = tuple(
            field(key.format(family=place.flow.family), packet, place)
            for part, direction in zip(parts, keys, strict=False)
            for key in _KEYS["ip" if part == "net" else part, direction.removeprefix("ipset ")]
        )
        return self._of(found).hold(actuals[1:] if found.kind == "bitmap:port" else actuals)

    def _of(self, found: Ipset) -> _Layers:
        layers = self._layers.get(found.name)
        if layers is None:
            layers = self._layers[found.name] = _Layers(found)
        return layers


class _Layer(NamedTuple):
    """The elements whose network has the same length: the shorter the later they are looked at.

    nets: their networks, where the first that holds the packet's address decides.
    """

    length: int
    inside: Elements
    outside: Elements
    nets: frozenset[int] | None


class _Layers:
    """The elements of one set, in the order in which they count."""

    def __init__(self, found: Ipset) -> None:
        parts = TYPES[found.kind]
        self._width = _WIDTHS[found.of or "ip"]
        self._at = len(found.type) - 1 if parts[-1] == "net" else 0 if "net" in parts else None
        groups: defaultdict[int, list[Element]] = defaultdict(list)
        by_device = "iface" in parts
        for element in found.elements:
            if by_device and str(_values(element)[1]).startswith(_PHYSDEV):
                continue
            length, cut = self._cut(element)
            groups[length].append(cut)
        self._layers = [_layer(length, groups[length], by_device) for length in sorted(groups, reverse=True)]

    def _cut(self, element: Element) -> tuple[int, Element]:
        """The length of the element's network, and the element with that network's first address alone."""
        if self._at is None:
            return 0, element
        values = _values(element)
        net = values[self._at]
        assert isinstance(net, Interval)
        first = Interval(net.low, net.low)
        length = self._width - (net.high - net.low).bit_length()
        return length, element._replace(value=(*values[: self._at], first, *values[self._at + 1 :]))

    def hold(self, actuals: tuple[Field, ...]) -> bool | None:
        """Whether the packet's fields are in the set. Of several networks the longest decides, for or against."""
        possible: set[bool] = set()
        for layer in self._layers:
            masked = self._masked(actuals, layer.length)
            inside, outside = _finds(layer.inside, masked), _finds(layer.outside, masked)
            possible |= ({True} if inside is not False else set()) | ({False} if outside is not False else set())
            if inside or outside:
                break
            if layer.nets is not None and masked[0] in layer.nets:
                # The kernel counts elements of the network, whatever their device, and looks no further
                possible.add(False)
                break
        else:
            possible.add(False)
        return possible.pop() if len(possible) == 1 else None

    def _masked(self, actuals: tuple[Field, ...], length: int) -> tuple[Field, ...]:
        """The fields, with the address cut to a network."""
        if self._at is None:
            return actuals
        address = actuals[self._at]
        hosts = self._width - length
        if not length:
            address = 0  # every address is in there, also one that is not known
        elif isinstance(address, int):
            address = address >> hosts << hosts
        return (*actuals[: self._at], address, *actuals[self._at + 1 :])


def _layer(length: int, elements: list[Element], by_device: bool) -> _Layer:
    nets = None
    if by_device:
        nets = frozenset(net.low for net in (_values(element)[0] for element in elements) if isinstance(net, Interval))
    return _Layer(
        length,
        Elements(element for element in elements if element.data is None),
        Elements(element for element in elements if element.data is not None),
        nets,
    )


def _values(element: Element) -> tuple[Value, ...]:
    value = element.value
    return value if isinstance(value, tuple) and not isinstance(value, Interval) else (value,)


def _finds(elements: Elements, actuals: tuple[Field, ...]) -> bool | None:
    found = elements.find(actuals)
    return None if found.element is None and found.unknown else found.element is not None


def _any(answers: Iterable[bool | None]) -> bool | None:
    result: bool | None = False
    for answer in answers:
        if answer:
            return True
        result = None if answer is None else result
    return result

"""One packet as the kernel's rules see it: the first of a new flow, on its way through the hooks.

What belongs here: what can be asked of the packet, and what rules may change of it. What does not: what is asked
(`conditions`), what changes it (`walk`, `translation`), and where routing would send it (`routing`).

    Flow    what never changes: family, protocol, the addresses and ports as asked for, who sends it
    Packet  what rules change: addresses, marks, translation. Hashable: two ways that lead to equal packets are one
    Place   where it is: which hook, which devices
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tracer.rules.routing import Routing


class Tracking(Enum):
    """What connection tracking knows of a packet (Linux include/uapi/linux/netfilter/nf_conntrack_common.h)."""

    NONE = "invalid"  # it was not asked yet: in table raw
    NEW = "new"
    UNTRACKED = "untracked"


class Flow(NamedTuple):
    """The flow as whoever opened it asked for it.

    family: ip or ip6. protocol: tcp, udp or sctp. saddr: None for an address of this node that is not known.
    local: a process on this node sends it; otherwise it comes in by a device.
    """

    family: str
    protocol: str
    saddr: int | None
    daddr: int
    dport: int
    local: bool


class AtSocket(NamedTuple):
    """What a program made of the destination before there was a packet. step: its number. masquerade: at the device by
    which the packet leaves, its source becomes the node's."""

    step: int
    daddr: int
    dport: int
    masquerade: bool = False


class Packet(NamedTuple):
    """The packet as it is now.

    translated, masqueraded, marked: numbers of the steps whose rules last did so, or None. seen: names of the recent
    lists and dynamic sets that it was put into, with what was put there. accepted: some rule let it through in so many
    words. here: it was redirected to this node itself. snat: its source was changed. at_socket: it was sent to another
    destination than was asked for, so that netfilter knows of that one only.
    """

    saddr: int | None
    daddr: int
    dport: int
    mark: int = 0
    ct_mark: int = 0
    tracking: Tracking = Tracking.NONE
    translated: int | None = None
    masqueraded: int | None = None
    snat: bool = False
    marked: int | None = None
    accepted: bool = False
    here: bool = False
    seen: frozenset[tuple[object, ...]] = frozenset()
    at_socket: AtSocket | None = None

    @property
    def chosen(self) -> int | None:
        """The number of the step that last gave it a destination; None: none did."""
        at_socket = None if self.at_socket is None else self.at_socket.step
        return at_socket if self.translated is None else self.translated


@dataclass(slots=True)
class Place:
    """A hook that the packet is at.

    hook: prerouting, input, forward, output, postrouting. iif: the device that it came in by; "" for none, None for one
    that is not known. oif: likewise out; at postrouting and forward it depends on the packet, see `outgoing`.
    looped: the packet went through output before, and comes in by lo.
    """

    hook: str
    flow: Flow
    routing: Routing
    iif: str | None = ""
    oif: str | None = ""
    looped: bool = False

    def outgoing(self, packet: Packet) -> str | None:
        """The device that the packet leaves by, as this hook is told."""
        if self.hook in ("forward", "postrouting"):
            return "lo" if packet.here else self.routing.device(packet.daddr)
        if self.hook == "output" and packet.at_socket is not None:
            return self.routing.device(packet.at_socket.daddr)
        return self.oif

    def original(self, packet: Packet) -> tuple[int, int]:
        """Destination and port as connection tracking first saw them."""
        if packet.at_socket is not None:
            return packet.at_socket.daddr, packet.at_socket.dport
        return self.flow.daddr, self.flow.dport

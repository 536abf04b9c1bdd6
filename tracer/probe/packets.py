"""The packets of a probe, made by scapy, and what the packets that come back say.

What belongs here: headers, in and out, as bytes. What does not: sockets (`wire`), which packet is sent when (`run`).

Sources: RFC 9293 (TCP), RFC 768 (UDP), RFC 792 and RFC 1122 3.2.2.1 (ICMP), RFC 4443 (ICMPv6). scapy is imported when
the first packet is made: that takes half a second.
"""

from __future__ import annotations

import functools
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from tracer.probe.flows import Answer, Flow

if TYPE_CHECKING:
    from scapy.packet import Packet

GREETING = b"k8snet-trace probe\n"  # what a datagram holds, for who finds it in a log
HOP_LIMIT = 64
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_TCP = struct.Struct(">HHIIBB")  # ports, sequence, acknowledgement, offset, flags
_ICMP_UNREACHABLE, _ICMPV6_UNREACHABLE = 3, 1
# ICMP destination unreachable, by code: 3 is port, 9, 10 and 13 are prohibited; any other means no way there
_ICMP_CODES = {
    3: Answer.PORT_UNREACHABLE,
    9: Answer.PROHIBITED,
    10: Answer.PROHIBITED,
    13: Answer.PROHIBITED,
}
# ICMPv6: 1 prohibited, 4 port, 5 source address failed a policy, 6 reject route
_ICMPV6_CODES = {4: Answer.PORT_UNREACHABLE, 1: Answer.PROHIBITED, 5: Answer.PROHIBITED, 6: Answer.PROHIBITED}


class Ends(NamedTuple):
    """What all packets of a probe share. Addresses as text, of one family; protocol: TCP or UDP."""

    protocol: str
    source: str
    destination: str
    port: int

    @property
    def v6(self) -> bool:
        """Whether the addresses are IPv6."""
        return ":" in self.destination


class Reply(NamedTuple):
    """A packet that came back for the flow from source port `port`.

    by: the port that it came from, None for ICMP. acknowledged: a sequence number, None for anything but TCP. Nothing
    else is compared with what was sent: the port is ours alone, and where no connection tracking translates back, an
    answer comes from the backend's address and port.
    """

    port: int
    answer: Answer
    by: int | None = None
    acknowledged: int | None = None
    data: bytes = b""


def opening(ends: Ends, flow: Flow) -> bytes:
    """The packet that begins a flow: a SYN, or a datagram with the flow's payload, from the IP header on."""
    from scapy.layers.inet import TCP, UDP
    from scapy.packet import Raw

    if ends.protocol == "UDP":
        return bytes(_ip(ends) / UDP(sport=flow.port, dport=ends.port) / Raw(flow.payload))
    return bytes(_ip(ends) / TCP(sport=flow.port, dport=ends.port, flags="S", seq=flow.sequence))


def reset(ends: Ends, flow: Flow) -> bytes:
    """The RST that takes a SYN back. It is within the window of who got the SYN, and of any connection tracking."""
    from scapy.layers.inet import TCP

    sequence = (flow.sequence + 1) % (1 << 32)
    return bytes(_ip(ends) / TCP(sport=flow.port, dport=ends.port, flags="R", seq=sequence))


def read_tcp(segment: bytes) -> Reply | None:
    """What a TCP segment says; None for one that can't be the answer to a SYN."""
    if len(segment) < 20:
        return None
    sport, dport, _, acknowledged, _, flags = _TCP.unpack_from(segment)
    if not flags & _ACK or not flags & (_SYN | _RST):
        return None
    return Reply(dport, Answer.RESET if flags & _RST else Answer.ANSWERED, sport, acknowledged)


def read_udp(datagram: bytes) -> Reply | None:
    """What a UDP datagram says; None when it is cut short."""
    if len(datagram) < 8:
        return None
    sport, dport, length = struct.unpack_from(">HHH", datagram)
    return Reply(dport, Answer.ANSWERED, sport, data=datagram[8:length])


def read_icmp(message: bytes, ends: Ends) -> Reply | None:
    """What an ICMP or ICMPv6 message says of a packet that it quotes; None for one that is about no such packet."""
    unreachable, codes = (_ICMPV6_UNREACHABLE, _ICMPV6_CODES) if ends.v6 else (_ICMP_UNREACHABLE, _ICMP_CODES)
    if len(message) < 8 or message[0] != unreachable:
        return None
    quoted = message[8:]
    header, protocol_at = (40, 6) if ends.v6 else ((quoted[0] & 0xF) * 4 if quoted else 0, 9)
    protocol = socket.IPPROTO_UDP if ends.protocol == "UDP" else socket.IPPROTO_TCP
    if len(quoted) < header + 4 or header < 20 or quoted[protocol_at] != protocol:
        return None
    return Reply(int.from_bytes(quoted[header : header + 2], "big"), codes.get(message[1], Answer.UNREACHABLE))


@functools.lru_cache(maxsize=1)
def _ip(ends: Ends) -> Packet:
    if ends.v6:
        from scapy.layers.inet6 import IPv6

        return IPv6(src=ends.source, dst=ends.destination, hlim=HOP_LIMIT)
    from scapy.layers.inet import IP

    return IP(src=ends.source, dst=ends.destination, ttl=HOP_LIMIT)

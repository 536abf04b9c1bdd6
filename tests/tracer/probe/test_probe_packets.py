"""Packets that scapy makes, and what packets that come back say: whatever bytes they hold."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, TCPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.packet import Raw

from tracer.probe import packets
from tracer.probe.flows import Answer, Flow
from tracer.probe.packets import Ends, Reply, read_icmp, read_tcp, read_udp

V4 = Ends("TCP", "10.0.1.2", "10.96.0.1", 80)
V6 = Ends("UDP", "fd00:1::2", "fd00:96::1", 53)


def checksum(data: bytes) -> int:
    """RFC 1071: 0 for data that holds its own checksum."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(ends: Ends, protocol: int, length: int) -> bytes:
    source, destination = (ipaddress.ip_address(text).packed for text in (ends.source, ends.destination))
    if ends.v6:
        return source + destination + struct.pack(">IHBB", length, 0, 0, protocol)
    return source + destination + struct.pack(">BBH", 0, protocol, length)


def test_a_syn() -> None:
    packet = packets.opening(V4, Flow(61001, 0xFFFFFFFF))
    assert (packet[0] >> 4, packet[8], packet[9], len(packet)) == (4, packets.HOP_LIMIT, 6, 40)
    assert packet[12:20] == bytes([10, 0, 1, 2, 10, 96, 0, 1])
    assert struct.unpack_from(">HHIIBB", packet, 20) == (61001, 80, 0xFFFFFFFF, 0, 0x50, 0x02)
    assert checksum(packet[:20]) == 0
    assert checksum(pseudo_header(V4, 6, 20) + packet[20:]) == 0


def test_a_reset_takes_the_next_sequence_number() -> None:
    packet = packets.reset(V4, Flow(61001, 0xFFFFFFFF))
    assert struct.unpack_from(">HHIIBB", packet, 20) == (61001, 80, 0, 0, 0x50, 0x04)


def test_a_datagram() -> None:
    packet = packets.opening(V6, Flow(61001, 1, b"hello"))
    assert (packet[0] >> 4, packet[6], packet[7], len(packet)) == (6, 17, packets.HOP_LIMIT, 53)
    assert struct.unpack_from(">HHH", packet, 40) == (61001, 53, 13)
    assert packet[48:] == b"hello"
    assert checksum(pseudo_header(V6, 17, 13) + packet[40:]) == 0


@pytest.mark.parametrize(
    ("flags", "answer"), [("SA", Answer.ANSWERED), ("RA", Answer.RESET), ("S", None), ("A", None), ("R", None)]
)
def test_what_a_segment_says(flags: str, answer: Answer | None) -> None:
    segment = bytes(TCP(sport=80, dport=61001, flags=flags, seq=7, ack=8))
    assert read_tcp(segment) == (None if answer is None else Reply(61001, answer, 80, 8))


def test_what_a_datagram_says() -> None:
    datagram = bytes(IP() / UDP(sport=53, dport=61001) / Raw(b"answer"))[20:]
    assert read_udp(datagram + b"padding") == Reply(61001, Answer.ANSWERED, 53, None, b"answer")


@pytest.mark.parametrize(
    ("kind", "code", "answer"),
    [
        (3, 3, Answer.PORT_UNREACHABLE),
        (3, 13, Answer.PROHIBITED),
        (3, 9, Answer.PROHIBITED),
        (3, 1, Answer.UNREACHABLE),
        (3, 0, Answer.UNREACHABLE),
        (11, 0, None),  # time exceeded
        (8, 0, None),
    ],
)
def test_what_icmp_says(kind: int, code: int, answer: Answer | None) -> None:
    quoted = IPerror(src=V4.source, dst=V4.destination, proto=6, options=[]) / TCPerror(sport=61001, dport=80)
    message = bytes(ICMP(type=kind, code=code) / quoted)
    assert read_icmp(message, V4) == (None if answer is None else Reply(61001, answer))


def test_icmp_about_another_protocol() -> None:
    assert read_icmp(bytes(ICMP(type=3, code=3) / IPerror(proto=1) / ICMPerror()), V4) is None


@pytest.mark.parametrize(
    ("code", "answer"),
    [(4, Answer.PORT_UNREACHABLE), (1, Answer.PROHIBITED), (3, Answer.UNREACHABLE), (0, Answer.UNREACHABLE)],
)
def test_what_icmpv6_says(code: int, answer: Answer) -> None:
    quoted = IPv6(src=V6.source, dst=V6.destination) / UDP(sport=61001, dport=53)
    message = bytes(IPv6(src="fd00::1", dst=V6.source) / ICMPv6DestUnreach(code=code) / quoted)[40:]
    assert read_icmp(message, V6) == Reply(61001, answer)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_passed_over(data: bytes) -> None:
    for found in (read_tcp(data), read_udp(data), read_icmp(data, V4), read_icmp(data, V6)):
        assert found is None or 0 <= found.port <= 65535


@given(st.binary(max_size=60))
def test_any_quoted_bytes_are_read_or_passed_over(data: bytes) -> None:
    for head, ends in ((b"\x03\x03", V4), (b"\x01\x04", V6)):
        read_icmp(head + bytes(6) + data, ends)

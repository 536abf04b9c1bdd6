"""First packets of flows, crafted, and recognised again wherever they or the news of their rejection turn up.

What belongs here: bytes. What does not: sockets and namespaces (`flows`).
Sources: RFC 791, 8200, 768, 9293, 9260; RFC 792 and 4443 for errors, which quote the packet that they are about.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP, "SCTP": socket.IPPROTO_SCTP}
_MAGIC = b"k8snet:"
_PAYLOAD = len(_MAGIC) + 4
_UNREACHABLE = {socket.IPPROTO_ICMP: 3, socket.IPPROTO_ICMPV6: 1}
_SYN, _RST = 0x02, 0x04


class Parsed(NamedTuple):
    """An IP packet; payload: what follows its header."""

    version: int
    protocol: int
    source: str
    destination: str
    payload: bytes

    @property
    def port(self) -> int:
        """The destination port."""
        return int.from_bytes(self.payload[2:4], "big")


def parse(packet: bytes) -> Parsed | None:
    """An IP packet without extension headers; None for anything else."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 28:
        source, destination = (socket.inet_ntop(socket.AF_INET, packet[at : at + 4]) for at in (12, 16))
        return Parsed(4, packet[9], source, destination, packet[(packet[0] & 15) * 4 :])
    if version == 6 and len(packet) >= 48:
        source, destination = (socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24))
        return Parsed(6, packet[6], source, destination, packet[40:])
    return None


def flow_number(packet: Parsed) -> tuple[int | None, bool]:
    """The number of the flow that the packet belongs to, if any, and whether it tells of the flow's rejection."""
    payload = packet.payload
    if packet.protocol == socket.IPPROTO_TCP and payload[13] & _RST:
        # acknowledged are the SYN, whose sequence number is the flow's, and all that it carried (RFC 9293, 3.10.7.1)
        return (int.from_bytes(payload[8:12], "big") - 1 - _PAYLOAD) % 2**32, True
    at = payload.rfind(_MAGIC)
    if at < 0:
        return None, False
    number = int.from_bytes(payload[at + len(_MAGIC) : at + _PAYLOAD], "big")
    if packet.protocol not in _UNREACHABLE:
        return number, False
    return (number, True) if payload[0] == _UNREACHABLE[packet.protocol] else (None, False)


def first_packet(protocol: str, source: tuple[str, int], destination: tuple[str, int], number: int) -> bytes:
    """An IP packet with a datagram, a SYN or an INIT, which carries the flow's number."""
    payload = _MAGIC + number.to_bytes(4, "big")
    kind = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
    addresses = socket.inet_pton(kind, source[0]) + socket.inet_pton(kind, destination[0])
    ports = struct.pack(">HH", source[1], destination[1])
    if protocol == "SCTP":
        return _ip(PROTOCOLS[protocol], addresses, _sctp_init(ports, payload))
    if protocol == "UDP":
        layer4, sum_at = ports + struct.pack(">HH", 8 + len(payload), 0) + payload, 6
    else:
        layer4, sum_at = ports + struct.pack(">IIBBHHH", number, 0, 5 << 4, _SYN, 65535, 0, 0) + payload, 16
    pseudo = addresses + struct.pack(">II", len(layer4), PROTOCOLS[protocol])
    checksum = _checksum(pseudo + layer4) or 0xFFFF
    return _ip(PROTOCOLS[protocol], addresses, layer4[:sum_at] + struct.pack(">H", checksum) + layer4[sum_at + 2 :])


def _ip(protocol: int, addresses: bytes, layer4: bytes) -> bytes:
    if len(addresses) == 32:
        return struct.pack(">IHBB", 6 << 28, len(layer4), protocol, 64) + addresses + layer4
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(layer4), 0, 0x4000, 64, protocol, 0) + addresses
    return header[:10] + struct.pack(">H", _checksum(header)) + header[12:] + layer4


def _sctp_init(ports: bytes, payload: bytes) -> bytes:
    """An INIT chunk (RFC 9260, 3.3.2), whose last parameter, which receivers skip (3.2.1), carries the payload."""
    parameter = struct.pack(">HH", 0x8008, 4 + len(payload)) + payload
    parameter += bytes(-len(parameter) % 4)
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20 + len(parameter), 1, 65535, 1, 1, 1) + parameter
    packet = ports + bytes(8) + chunk
    return packet[:8] + struct.pack("<I", _crc32c(packet)) + packet[12:]


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

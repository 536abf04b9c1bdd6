"""What the maps of the eBPF Service datapath hold, and reading them: the other side of bpf/include/service_lb.h.

What belongs here: keys and values, packed and unpacked; the names of the maps; a whole datapath as it is in the kernel.
What does not: what should be in it (`labs.cluster.proxy.ebpf`), maps as such (`tracer.bpfmaps`).

Addresses are IPv4Address or IPv6Address here and 16 bytes in network order there, an IPv4 one as ::ffff:a.b.c.d. Ports
are in network order there; other numbers in the machine's.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tracer import bpfmaps
from tracer.bpfmaps import Map
from tracer.netprograms import SocketHook

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2

SERVICE_KEY = struct.Struct("=16s2sBB")
SERVICE = struct.Struct("=IIIII")
SLOT_KEY = struct.Struct("=II")
BACKEND = struct.Struct("=16s2sBB")
MEMBER_KEY = struct.Struct("=I18s2x")
_ENDPOINT_LENGTH = 18  # of a struct backend: its address and port
RANGE_KEY = struct.Struct("=II16s")
PEER_KEY = struct.Struct("=Q16s2sHI")
NODE_FACTS = struct.Struct("=Q16s16sII")
PRESENT = struct.pack("=I", 1)  # the value of members and source_ranges, which says nothing


class Scope(enum.IntEnum):
    """Who looks a Service up: a socket of the node and its pods, or a packet from elsewhere."""

    SOCKET = 0
    OUTSIDE = 1


class ServiceFlag(enum.IntFlag):
    """Bits of `Entry.flags`, SERVICE_… in the header."""

    SILENT = 1
    HAS_RANGES = 2
    DENIES_NODE = 4
    MASQUERADE = 8


class Frontend(NamedTuple):
    """A Service's address, and for whom: struct service_key. `protocol`: TCP or UDP."""

    ip: IPAddress
    port: int
    protocol: str
    scope: Scope

    def pack(self) -> bytes:
        """The key in `services`."""
        return SERVICE_KEY.pack(pack_ip(self.ip), pack_port(self.port), PROTOCOLS[self.protocol], self.scope)

    @classmethod
    def unpack(cls, key: bytes) -> Frontend:
        """The other way. Raises ValueError or KeyError for what we did not write."""
        ip, port, protocol, scope = SERVICE_KEY.unpack(key)
        return cls(unpack_ip(ip), unpack_port(port), _PROTOCOL_NAMES[protocol], Scope(scope))


class Entry(NamedTuple):
    """What is known under a Service's address: struct service, whose `list` and `count` are `list_id` and `length`.
    `affinity_seconds`: 0 without session affinity.
    """

    port_id: int
    list_id: int
    length: int
    affinity_seconds: int = 0
    flags: ServiceFlag = ServiceFlag(0)

    def pack(self) -> bytes:
        """The value in `services`."""
        return SERVICE.pack(*self)

    @classmethod
    def unpack(cls, value: bytes) -> Entry:
        """The other way."""
        port_id, list_id, length, affinity_seconds, flags = SERVICE.unpack(value)
        return cls(port_id, list_id, length, affinity_seconds, ServiceFlag(flags))


class Backend(NamedTuple):
    """An endpoint: struct backend."""

    ip: IPAddress
    port: int
    is_local: bool

    def pack(self) -> bytes:
        """The value in `slots`."""
        return BACKEND.pack(pack_ip(self.ip), pack_port(self.port), self.is_local, 0)

    @classmethod
    def unpack(cls, value: bytes) -> Backend:
        """The other way."""
        ip, port, is_local, _ = BACKEND.unpack(value)
        return cls(unpack_ip(ip), unpack_port(port), bool(is_local))


class NodeFacts(NamedTuple):
    """What the programs know of their node: struct node_facts. `netns`: inode of its network namespace."""

    netns_cookie: int
    ipv4: IPAddress | None
    ipv6: IPAddress | None
    netns: int

    def pack(self) -> bytes:
        """The value in `node`."""
        addresses = [bytes(16) if ip is None else pack_ip(ip) for ip in (self.ipv4, self.ipv6)]
        return NODE_FACTS.pack(self.netns_cookie, *addresses, self.netns, 0)


def pack_slot(number: int, slot: int) -> bytes:
    """The key in `slots` of one slot of a list."""
    return SLOT_KEY.pack(number, slot)


def pack_member(number: int, backend: bytes) -> bytes:
    """The key in `members` of an endpoint (packed) of a list."""
    return MEMBER_KEY.pack(number, backend[:_ENDPOINT_LENGTH])


def pack_range(port_id: int, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bytes:
    """The key in `source_ranges` of one range of a Service port."""
    prefix = network.prefixlen + (96 if network.version == 4 else 0)
    return RANGE_KEY.pack(32 + prefix, port_id, pack_ip(network.network_address))


def pack_peer(cookie: int, ip: IPAddress, port: int) -> bytes:
    """The key in `asked` of a socket, by its cookie, and an endpoint."""
    return PEER_KEY.pack(cookie, pack_ip(ip), pack_port(port), 0, 0)


def pack_ip(ip: IPAddress) -> bytes:
    """16 bytes in network order."""
    return _MAPPED + ip.packed if ip.version == 4 else ip.packed


def unpack_ip(packed: bytes) -> IPAddress:
    """The other way."""
    ip = ipaddress.IPv6Address(packed)
    return ip.ipv4_mapped or ip


def pack_port(port: int) -> bytes:
    """Two bytes in network order."""
    return port.to_bytes(2, "big")


def unpack_port(packed: bytes) -> int:
    """The other way."""
    return int.from_bytes(packed, "big")


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Datapath:
    """All that a node's datapath knows: every Service address, and the slots of every list in their order."""

    services: Mapping[Frontend, Entry]
    lists: Mapping[int, tuple[Backend, ...]]

    def backends(self, frontend: Frontend) -> tuple[Backend, ...]:
        """The endpoints among which a look-up of `frontend` chooses; () for an unknown one."""
        entry = self.services.get(frontend)
        return () if entry is None else self.lists.get(entry.list_id, ())[: entry.length]


def read(services: Map, slots: Map) -> Datapath:
    """Read the maps. While they change, a list may be read half before and half after. Raises OSError."""
    entries = {}
    for key, value in services.items():
        entries[Frontend.unpack(key)] = Entry.unpack(value)
    counts = {entry.list_id: entry.length for entry in entries.values()}
    found: dict[int, dict[int, Backend]] = {}
    for key, value in slots.items():
        number, slot = SLOT_KEY.unpack(key)
        if slot < counts.get(number, 0):
            found.setdefault(number, {})[slot] = Backend.unpack(value)
    return Datapath(entries, {number: tuple(there[slot] for slot in sorted(there)) for number, there in found.items()})


def of_cgroup(cgroup: Path) -> Datapath | None:
    """The datapath that connect() meets in a process of this cgroup; None when there is none of ours.

    Raises OSError where BPF may not be asked.
    """
    programs = bpfmaps.programs_of_cgroup(cgroup, SocketHook.CONNECT4)
    maps = bpfmaps.maps_by_name(programs)
    try:
        services, slots = maps.get("services"), maps.get("slots")
        if services is None or slots is None:
            return None
        if (services.info.key_size, services.info.value_size) != (SERVICE_KEY.size, SERVICE.size):
            return None
        return read(services, slots)
    finally:
        for opened in maps.values():
            opened.close()

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
from dataclasses import dataclass, field
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
REWRITE_KEY = struct.Struct("=16s16s2s2sBBH")
REWRITE = struct.Struct("=16s2sBBII")
NODE_FACTS = struct.Struct("=Q16s16sII")
_IN = 0  # enum direction, of packets that come in
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
    LOCAL = 16


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

    @classmethod
    def unpack(cls, value: bytes) -> NodeFacts:
        """The other way."""
        cookie, *addresses, netns, _ = NODE_FACTS.unpack(value)
        ipv4, ipv6 = (unpack_ip(packed) if any(packed) else None for packed in addresses)
        return cls(cookie, ipv4, ipv6, netns)


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

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Datapath:
    """All that a node's datapath knows: every Service address, and the slots of every list in their order.

    ranges: loadBalancerSourceRanges by port_id. node: None until the proxy has told the programs.
    """

    services: Mapping[Frontend, Entry]
    lists: Mapping[int, tuple[Backend, ...]]
    ranges: Mapping[int, tuple[Network, ...]] = field(default_factory=dict)
    node: NodeFacts | None = None

    def backends(self, frontend: Frontend) -> tuple[Backend, ...]:
        """The endpoints among which a look-up of `frontend` chooses; () for an unknown one."""
        entry = self.services.get(frontend)
        return () if entry is None else self.behind(entry)

    def behind(self, entry: Entry) -> tuple[Backend, ...]:
        """The endpoints among which a look-up that finds `entry` chooses."""
        return self.lists.get(entry.list_id, ())[: entry.length]


def read(services: Map, slots: Map, source_ranges: Map | None = None, node: Map | None = None) -> Datapath:
    """Read the maps. While they change, a list may be read half before and half after. Raises OSError."""
    entries = {}
    for key, value in services.items():
        entries[Frontend.unpack(key)] = Entry.unpack(value)
    counts: dict[int, int] = {}
    for entry in entries.values():  # one list's entries are written one after another, so that lengths may differ
        counts[entry.list_id] = max(entry.length, counts.get(entry.list_id, 0))
    found: dict[int, dict[int, Backend]] = {}
    for key, value in slots.items():
        number, slot = SLOT_KEY.unpack(key)
        if slot < counts.get(number, 0):
            found.setdefault(number, {})[slot] = Backend.unpack(value)
    return Datapath(
        entries,
        {number: tuple(there[slot] for slot in sorted(there)) for number, there in found.items()},
        {} if source_ranges is None else _read_ranges(source_ranges),
        None if node is None else _read_node(node),
    )


def _read_ranges(source_ranges: Map) -> dict[int, tuple[Network, ...]]:
    found: dict[int, tuple[Network, ...]] = {}
    for key, _ in source_ranges.items():
        prefix, port_id, packed = RANGE_KEY.unpack(key)
        ip = unpack_ip(packed)
        length = prefix - 32 - (96 if ip.version == 4 else 0)
        found[port_id] = (*found.get(port_id, ()), ipaddress.ip_network((ip, length)))
    return found


def _read_node(node: Map) -> NodeFacts | None:
    """An array is there from the start: zeros are no facts."""
    value = node.get(bytes(4))
    return NodeFacts.unpack(value) if value is not None and any(value) else None


def of_cgroup(cgroup: Path) -> Datapath | None:
    """The datapath that connect() meets in a process of this cgroup; None when there is none of ours.

    Raises OSError where BPF may not be asked.
    """
    maps = _maps_of_cgroup(cgroup)
    try:
        if not _are_ours(maps):
            return None
        if "source_ranges" not in maps:
            _add_packets_maps(maps)
        return read(maps["services"], maps["slots"], maps.get("source_ranges"), maps.get("node"))
    finally:
        for opened in maps.values():
            opened.close()


def node_of_cgroup(cgroup: Path) -> tuple[int, NodeFacts | None] | None:
    """Of the same datapath, without reading its Services: what it is known by while it lasts, and its node."""
    maps = _maps_of_cgroup(cgroup)
    try:
        if not _are_ours(maps):
            return None
        return maps["services"].info.id, _read_node(maps["node"]) if "node" in maps else None
    finally:
        for opened in maps.values():
            opened.close()


def rewritten(
    cgroup: Path, source: IPAddress, destination: IPAddress, port: int, protocol: str
) -> dict[int, tuple[IPAddress, int]]:
    """Where the programs at devices sent packets from `source` to this destination, by source port.

    Of the datapath that processes of this cgroup meet; {} when there is none of ours. Raises OSError.
    """
    maps = _maps_of_cgroup(cgroup)
    try:
        if not _are_ours(maps):
            return {}
        _add_packets_maps(maps)
        wanted = (pack_ip(source), pack_ip(destination), pack_port(port), PROTOCOLS.get(protocol), _IN)
        found = {}
        for key, value in maps["rewrites"].items() if "rewrites" in maps else ():
            came_from, went_to, sport, dport, number, direction, _ = REWRITE_KEY.unpack(key)
            if (came_from, went_to, dport, number, direction) == wanted:
                ip, backend_port, *_ = REWRITE.unpack(value)
                found[unpack_port(sport)] = unpack_ip(ip), unpack_port(backend_port)
        return found
    finally:
        for opened in maps.values():
            opened.close()


def _maps_of_cgroup(cgroup: Path) -> dict[str, Map]:
    return bpfmaps.maps_by_name(bpfmaps.programs_of_cgroup(cgroup, SocketHook.CONNECT4))


def _add_packets_maps(maps: dict[str, Map]) -> None:
    """Add the maps of the programs for packets, which no cgroup knows: they share the others. Raises OSError."""
    for program in bpfmaps.programs_with_map(maps["services"].info.id):
        for name, opened in bpfmaps.maps_by_name((program,)).items():
            if name in maps:
                opened.close()
            else:
                maps[name] = opened


def _are_ours(maps: Mapping[str, Map]) -> bool:
    """Whether these maps are laid out as ours: other programs may have a map `services`, too."""
    sizes = {"services": (SERVICE_KEY.size, SERVICE.size), "slots": (SLOT_KEY.size, BACKEND.size)}
    return all(name in maps and maps[name].info[1:3] == size for name, size in sizes.items())

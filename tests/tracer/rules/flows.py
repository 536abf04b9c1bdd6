"""Flows sent for real through a router's rules, and where each one went, as seen from outside the rules.

What belongs here: the router's namespace with a wire on each side, sending, and seeing what comes out. What does not:
crafting packets (`packets`), rules (`random_rules` and the tests), predictions.

    client ── 10.0.1.1 router 10.0.2.1 ── server         every packet carries its flow's number in its payload
              fd00:1::1       fd00:2::1

Only the router has an IP stack: frames are written to one end of a wire and read at all of them, so that any source
address can be sent and nothing answers. What the router delivers to itself, raw sockets see after its INPUT
hook. An ICMP error or a reset that quotes a flow tells that it was rejected; of which nothing is seen, was dropped.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tests.tracer.networks import Namespace, link, namespaces
from tests.tracer.rules import packets

CLIENT_SIDE, SERVER_SIDE = {4: "10.0.1.1", 6: "fd00:1::1"}, {4: "10.0.2.1", 6: "fd00:2::1"}
SIDES = {"client": "client", "server": "server"}  # each with its device of the router
_QUIET = 0.05  # seconds without a packet, after which none is under way
_SO_RCVBUFFORCE = 33
_LOWEST_PORT, _HIGHEST_PORT = 32768, 60999  # those that the kernel gives to processes (net.ipv4.ip_local_port_range)


class Flow(NamedTuple):
    """The first packet of a flow, in from the side `via`, or sent by a process of the router ("router").

    source: None for whichever address the router itself would use.
    """

    protocol: str
    source: str | None
    ip: str
    port: int
    via: str = "client"


class End(NamedTuple):
    """Where a flow ended. kind: delivered, rejected or dropped; the others, where delivered: as it came out there.

    at: the side, or router when the router delivered it to itself.
    """

    kind: str
    ip: str | None = None
    port: int | None = None
    source: str | None = None
    at: str | None = None


class World:
    """The router, and what is needed to send through it and to see what comes out."""

    def __init__(self, router: Namespace, spaces: Mapping[str, Namespace], devices: Mapping[str, str]) -> None:
        self.router = router
        self._numbers = itertools.count(1)
        self._flows: dict[int, Flow] = {}
        self._ends: dict[int, End] = {}
        self._rejected: set[int] = set()
        self.source_ports: list[int] = []
        self._wires = {side: space.run(lambda: _sniffer("eth0")) for side, space in spaces.items()}
        self._taps = router.run(_taps)
        self._senders = {4: router.run(lambda: _sender(4)), 6: router.run(lambda: _sender(6))}
        macs = {side: router.run(functools.partial(_mac, device)) for side, device in devices.items()}
        self._ethernet = {side: mac + b"\x02\0\0\0\0\x01" for side, mac in macs.items()}

    def send(self, flows: Iterable[Flow]) -> list[End]:
        """Send a packet for each flow, in that order; returns where each ended.

        Each has a source port of its own; `source_ports` has those of the flows sent last.
        """
        numbers = []
        for flow in flows:
            number = next(self._numbers)
            numbers.append(number)
            self._flows[number] = flow
            self._send(number, flow)
            if len(numbers) % 64 == 0:
                self._collect(0)
        self._collect(_QUIET)
        self.source_ports = [_source_port(number) for number in numbers]
        return [self._end(number) for number in numbers]

    def flush(self) -> None:
        """Forget all flows: source ports are used again after 28,232 of them, and rules change."""
        self.router.sh("conntrack -F 2>&1")

    def close(self) -> None:
        for sock in (*self._wires.values(), *self._senders.values(), *(tap for tap, _ in self._taps)):
            sock.close()

    def _end(self, number: int) -> End:
        found = self._ends.pop(number, None)
        rejected = number in self._rejected
        self._rejected.discard(number)
        return found or End("rejected" if rejected else "dropped")

    def _send(self, number: int, flow: Flow) -> None:
        family = 6 if ":" in flow.ip else 4
        source = flow.source or self._own_source(flow.ip)
        packet = packets.first_packet(flow.protocol, (source, _source_port(number)), (flow.ip, flow.port), number)
        if flow.via != "router":
            kind = b"\x08\x00" if family == 4 else b"\x86\xdd"
            self._wires[flow.via].send(self._ethernet[flow.via] + kind + packet)
            return
        with contextlib.suppress(PermissionError):  # a rule of the OUTPUT hook dropped or rejected it
            self._senders[family].sendto(packet, (flow.ip, 0))

    def _own_source(self, ip: str) -> str:
        def ask() -> str:
            with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((ip, 9))
                return str(sock.getsockname()[0])

        return self.router.run(ask)

    def _collect(self, quiet: float) -> None:
        deadline = time.monotonic() + quiet
        while True:
            if self._read_all():
                deadline = time.monotonic() + quiet
            elif time.monotonic() >= deadline:
                return
            else:
                time.sleep(0.002)

    def _read_all(self) -> int:
        read = 0
        for side, wire in self._wires.items():
            for data, address in _received(wire):
                read += 1
                if address[2] != socket.PACKET_OUTGOING:
                    self._see(data[14:], side)
        for tap, family in self._taps:
            for data, address in _received(tap):
                read += 1
                self._see_local(data, family, address)
        return read

    def _see(self, packet: bytes, side: str) -> None:
        """A whole packet."""
        parsed = packets.parse(packet)
        if parsed is not None:
            self._see_parsed(parsed, side)

    def _see_local(self, data: bytes, family: int, address: tuple[Any, ...]) -> None:
        """What the router delivered to itself; IPv6's raw sockets leave the header out, and tell of it in `address`."""
        if family == 4:
            self._see(data, "router")
        else:
            self._see_parsed(packets.Parsed(6, address[-2], str(address[0]), address[-1], data), "router")

    def _see_parsed(self, packet: packets.Parsed, side: str) -> None:
        number, rejection = packets.flow_number(packet)
        if number not in self._flows:
            return
        if rejection:
            self._rejected.add(number)
            return
        end = End("delivered", packet.destination, packet.port, packet.source, side)
        assert self._ends.setdefault(number, end) == end, f"{self._flows[number]} went two ways"


@contextlib.contextmanager
def world(addresses: Sequence[str] = (), sides: Mapping[str, str] = SIDES, default: str = "server") -> Iterator[World]:
    """A router with a wire on each side.

    addresses: further ones of the router, on the default side. sides: the device of each; the n-th has the router at
    10.0.n.1 and fd00:n::1, and its network behind. default: the side that everything else is routed to.
    """
    with namespaces(1 + len(sides)) as (router, *others):
        spaces = dict(zip(sides, others, strict=True))
        for name in ("conf.all.rp_filter", "icmp_ratelimit", "icmp_ratemask"):  # each rejection is to be told
            router.sysctl(f"net.ipv4.{name}", "0")
        router.sysctl("net.ipv6.icmp.ratemask", "128")
        router.sysctl("net.ipv4.ip_forward", "1")
        router.sysctl("net.ipv6.conf.all.forwarding", "1")
        for number, (side, space) in enumerate(spaces.items(), 1):
            link(space, "eth0", router, sides[side])
            space.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
            _connect(router, number, sides[side], space.run(lambda: _mac("eth0")), side == default)
        for address in addresses:
            length, nodad = (128, "nodad") if ":" in address else (32, "")
            router.sh(f"ip address add {address}/{length} dev {sides[default]} {nodad}")
        made = World(router, spaces, sides)
        try:
            yield made
        finally:
            made.close()


def _connect(router: Namespace, number: int, device: str, mac: bytes, default: bool) -> None:
    """Addresses and routes of one side. What is behind it needs no ARP."""
    commands = []
    for ip, length, nodad, network in (
        (f"10.0.{number}.", 32, "", "0/24"),
        (f"fd00:{number}::", 128, "nodad", "/64"),
    ):
        version, hop = (6, f"{ip}fe") if nodad else (4, f"{ip}254")
        commands += [
            f"ip -{version} address add {ip}1/{length} dev {device} {nodad}",
            f"ip -{version} neighbour replace {hop} lladdr {mac.hex(':')} dev {device}",
            f"ip -{version} route add {ip}{network} via {hop} dev {device} onlink",
        ]
        if default:
            commands.append(f"ip -{version} route add default via {hop} dev {device} onlink")
    router.sh(*commands)


def _source_port(number: int) -> int:
    return _LOWEST_PORT + number % (_HIGHEST_PORT + 1 - _LOWEST_PORT)


def _mac(device: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        return bytes(sock.getsockname()[4])


def _sniffer(device: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    sock.bind((device, 0x0003))
    return _prepared(sock)


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    sock.setblocking(False)
    return sock


def _taps() -> list[tuple[socket.socket, int]]:
    """Sockets that see what the calling thread's namespace delivers to itself, each with its family."""
    found = []
    for protocol in (*packets.PROTOCOLS.values(), socket.IPPROTO_ICMP):
        found.append((_prepared(socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)), 4))
    for protocol in (*packets.PROTOCOLS.values(), socket.IPPROTO_ICMPV6):
        sock = _prepared(socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        found.append((sock, 6))
    return found


def _sender(family: int) -> socket.socket:
    """Sends whole packets, as processes of the calling thread's namespace do."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    return socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW)


def _received(sock: socket.socket) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    """What has come so far. For IPv6's raw sockets, protocol and destination follow the address."""
    with_info = sock.family == socket.AF_INET6
    while True:
        try:
            if not with_info:
                yield sock.recvfrom(2048)
                continue
            data, ancillary, _, address = sock.recvmsg(2048, 64)
        except BlockingIOError:
            return
        info = next(item for level, kind, item in ancillary if (level, kind) == (41, socket.IPV6_PKTINFO))
        yield data, (*address, sock.proto, socket.inet_ntop(socket.AF_INET6, info[:16]))


def random_seed(default: int) -> int:
    """The seed of a random test: the same each time, unless K8SNET_RANDOM_SEED gives one, or says "random"."""
    given = os.environ.get("K8SNET_RANDOM_SEED")
    return default if given is None else int.from_bytes(os.urandom(4), "big") if given == "random" else int(given)

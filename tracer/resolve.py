"""From a shape, as the kernel packs it, to a record with names.

What belongs here: asking `tracer.names` each question once per shape, and putting the answers where the contract wants
them. What does not: finding names (`tracer.names`, `tracer.rules`), keeping answers (`tracer.shapes`).
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tracer.encode import timestamp
from tracer.events import (
    IPPROTO_TCP,
    IPPROTO_UDP,
    Backend,
    Connection,
    Destination,
    Flag,
    Outcome,
    Process,
    RawConnection,
    Shape,
    Source,
    Translation,
)

if TYPE_CHECKING:
    from tracer.names import DestinationName, PodName, Route

PROTOCOLS = {IPPROTO_TCP: "TCP", IPPROTO_UDP: "UDP", 132: "SCTP"}  # numbers: RFC 5237's registry, as IPPROTO_ in in.h

_TRANSLATED = Flag.DNAT | Flag.SOCKET


class Naming(Protocol):
    """What the resolver asks of `tracer.names.Names`; nothing here blocks or raises for a name that is missing."""

    @property
    def generation(self) -> int:
        """Grows whenever an answer may have changed."""
        ...

    def source(self, ip: str, netns: int, cgroup_id: int, pid: int) -> PodName | None:
        """The pod that asks."""
        ...

    def destination(self, protocol: str, ip: str, port: int, netns: int) -> DestinationName:
        """The Service, pod or node asked for."""
        ...

    def backend(self, ip: str, port: int, netns: int) -> PodName | None:
        """The pod that answers; netns: which translated."""
        ...

    def node(self, netns: int, nat_netns: int, source_ip: str, cgroup_id: int, pid: int) -> str | None:
        """The Kubernetes node on which this happens."""
        ...

    def route(
        self, protocol: str, ip: str, port: int, backend_ip: str, backend_port: int, nat_netns: int, source_ip: str
    ) -> Route:
        """The chains that choose this backend, and its probability."""
        ...

    def socket_share(
        self, protocol: str, ip: str, port: int, backend_ip: str, backend_port: int, netns: int
    ) -> float | None:
        """The probability of this backend where a program at the socket chose it; netns: the socket's."""
        ...

    def no_endpoints(self, protocol: str, ip: str, port: int, netns: int) -> bool:
        """Whether the rules say that the Service has no endpoints."""
        ...


class Resolver:
    """Names connections. Without `names` (None) it gives addresses only."""

    def __init__(self, names: Naming | None) -> None:
        self._names = names

    @property
    def generation(self) -> int:
        """Grows whenever an earlier answer may have become wrong."""
        return 0 if self._names is None else self._names.generation

    def connection(self, raw: RawConnection | tuple[int, int, int, bytes]) -> Connection:
        """One connection in full. Raises struct.error when its shape has not SHAPE_SIZE bytes."""
        time_ns, latency_ns, sport, shape = raw
        return fill(self.shape(shape), time_ns, latency_ns, sport)

    def shape(self, packed: bytes) -> Connection:
        """What all connections of a shape share; time is "", source.port 0 and latency_us None until `fill`."""
        shape = Shape.unpack(packed)
        protocol = PROTOCOLS.get(shape.protocol, str(shape.protocol))
        source_ip = _ip(shape.family, shape.source)
        destination_ip = _ip(shape.family, shape.destination)
        backend = self._backend(shape)
        return Connection(
            time="",
            node=self._node(shape, source_ip),
            protocol=protocol,
            family=shape.family,
            process=_process(shape),
            source=self._source(shape, source_ip),
            destination=self._destination(shape, protocol, destination_ip),
            backend=backend,
            translation=self._translation(shape, protocol, source_ip, destination_ip, backend),
            outcome=self._outcome(shape, protocol, destination_ip).label,
            errno=shape.errno or None,
            latency_us=None,
        )

    def _node(self, shape: Shape, source_ip: str) -> str | None:
        if self._names is None:
            return None
        return self._names.node(shape.netns, shape.nat_netns, source_ip, *_process_ids(shape))

    def _source(self, shape: Shape, ip: str) -> Source:
        if self._names is None:
            return Source(ip, 0)
        name = self._names.source(ip, shape.netns, *_process_ids(shape))
        return Source(ip, 0) if name is None else Source(ip, 0, name.namespace, name.pod)

    def _destination(self, shape: Shape, protocol: str, ip: str) -> Destination:
        if self._names is None:
            return Destination(ip, shape.dport)
        name = self._names.destination(protocol, ip, shape.dport, shape.nat_netns or shape.netns)
        return Destination(ip, shape.dport, name.namespace, name.service, name.port_name, name.kind)

    def _backend(self, shape: Shape) -> Backend | None:
        if not shape.flags & _TRANSLATED:
            return None
        ip = _ip(shape.family, shape.backend)
        name = None if self._names is None else self._names.backend(ip, shape.bport, shape.nat_netns or shape.netns)
        return Backend(ip, shape.bport) if name is None else Backend(ip, shape.bport, name.namespace, name.pod)

    def _translation(
        self, shape: Shape, protocol: str, source_ip: str, ip: str, backend: Backend | None
    ) -> Translation:
        dnat, snat = bool(shape.flags & Flag.DNAT), bool(shape.flags & Flag.SNAT)
        if shape.flags & Flag.SOCKET:
            if backend is None or self._names is None:
                return Translation("socket", dnat, snat)
            asked = protocol, ip, shape.dport
            share = self._names.socket_share(*asked, backend.ip, backend.port, shape.netns)
            return Translation("socket", dnat, snat, (), share)
        if not dnat and not snat:
            return Translation()
        if backend is None or self._names is None:
            return Translation("netfilter", dnat, snat)
        route = self._names.route(protocol, ip, shape.dport, backend.ip, backend.port, shape.nat_netns, source_ip)
        return Translation("netfilter", dnat, snat, tuple(route.via), route.probability)

    def _outcome(self, shape: Shape, protocol: str, ip: str) -> Outcome:
        """A Service without endpoints is told from others that refuse.

        kube-proxy answers for it with REJECT --reject-with icmp-port-unreachable (pkg/proxy/iptables/proxier.go), which
        connect() reports as ECONNREFUSED: so a refusal that no rule translated counts as well as a rejection. A program
        at the socket has connect() fail with the same errno, without a packet.
        """
        outcome = Outcome(shape.outcome)
        untranslated = not shape.flags & _TRANSLATED
        if self._names is None or not untranslated or outcome not in (Outcome.REJECTED, Outcome.REFUSED):
            return outcome
        netns = shape.nat_netns or shape.netns
        return Outcome.NO_ENDPOINTS if self._names.no_endpoints(protocol, ip, shape.dport, netns) else outcome


def fill(shared: Connection, time_ns: int, latency_ns: int, sport: int) -> Connection:
    """The record of one connection from what its shape shares. Times in nanoseconds; latency_ns -1: not known."""
    return replace(
        shared,
        time=timestamp(time_ns),
        source=replace(shared.source, port=sport),
        latency_us=latency_ns // 1000 if latency_ns >= 0 else None,
    )


def _process_ids(shape: Shape) -> tuple[int, int]:
    """Cgroup and process, 0 where the source knows none."""
    return (0, 0) if shape.flags & Flag.NO_PROCESS else (shape.cgroup_id, shape.pid)


def _process(shape: Shape) -> Process | None:
    if shape.flags & Flag.NO_PROCESS:
        return None
    comm = shape.comm.split(b"\0", 1)[0].decode(errors="replace")
    return Process(shape.pid, comm, shape.cgroup_id, shape.netns)


def _ip(family: int, address: bytes) -> str:
    if family == 4:
        return socket.inet_ntop(socket.AF_INET, address[:4])
    return socket.inet_ntop(socket.AF_INET6, address)

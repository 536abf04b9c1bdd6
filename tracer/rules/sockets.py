"""The Services of an eBPF datapath (`tracer.service_lb`) in the tracer's own terms: the part of a Service map.

Its maps know addresses and endpoints, and no names: those are the Kubernetes API's, and where it tells none, a Service
port is known by its addresses. One Service port is what shares a `port_id`.

What belongs here: pure conversion, and look-ups. What does not: reading the maps, who meets them (`datapath`), what a
look-up does with a packet (`at_socket`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tracer.rules.services import Address, Branch, Endpoint, ServicePort
from tracer.service_lb import Backend, Datapath, Entry, Frontend, Scope, ServiceFlag


class Named(NamedTuple):
    """What the Kubernetes API says of an address. kind: ClusterIP, NodePort, ExternalIP or LoadBalancer."""

    namespace: str
    name: str
    port_name: str | None
    kind: str


# By protocol, address and port; the address of a NodePort is None
Names = Mapping[tuple[str, str | None, int], Named]


@dataclass(frozen=True, slots=True)
class SocketServices:
    """What one node's datapath holds, and what is known besides.

    node_ips: the node's own addresses, loopback included. is_pod: whether an address is that of a pod whose sockets
    meet this datapath.
    """

    datapath: Datapath
    names: Names = field(default_factory=dict)
    node_ips: frozenset[str] = frozenset()
    is_pod: Callable[[str], bool] = lambda ip: False

    def entry(self, protocol: str, ip: str, port: int, scope: Scope) -> Entry | None:
        """What a look-up finds."""
        return self.datapath.services.get(Frontend(ipaddress.ip_address(ip), port, protocol, scope))

    def name(self, protocol: str, ip: str, port: int) -> Named | None:
        """The Service port that has an address."""
        found = self.names.get((protocol, ip, port))
        return self.names.get((protocol, None, port)) if found is None and ip in self.node_ips else found

    def service_ports(self) -> Iterator[ServicePort]:
        """All Service ports, in no particular order."""
        groups: dict[tuple[int, int], dict[Frontend, Entry]] = {}
        for frontend, entry in self.datapath.services.items():
            groups.setdefault((entry.port_id, frontend.ip.version), {})[frontend] = entry
        return (self._service_port(entries) for entries in groups.values())

    def _service_port(self, entries: Mapping[Frontend, Entry]) -> ServicePort:
        first, entry = next(iter(entries.items()))
        named = next(filter(None, (self.name(f.protocol, str(f.ip), f.port) for f in entries)), None)
        everywhere = self._choice(e for e in entries.values() if not e.flags & ServiceFlag.LOCAL)
        local = self._choice(e for e in entries.values() if e.flags & ServiceFlag.LOCAL)
        guarded = any(e.flags & ServiceFlag.HAS_RANGES for e in entries.values())
        ranges = self.datapath.ranges.get(entry.port_id, ()) if guarded else ()
        return ServicePort(
            family=first.ip.version,
            namespace=None if named is None else named.namespace,
            name=None if named is None else named.name,
            port_name=None if named is None else named.port_name,
            protocol=first.protocol,
            addresses=tuple(self._addresses(entries)),
            endpoints=everywhere or local,
            local_endpoints=local,
            session_affinity_seconds=entry.affinity_seconds or None,
            source_ranges=tuple(str(network) for network in sorted(ranges, key=str)),
            no_endpoints=not everywhere and not local,
        )

    def _choice(self, entries: Iterable[Entry]) -> tuple[Endpoint, ...]:
        """What the first of these entries that has endpoints chooses from: all of a kind have the same list."""
        return next(filter(None, (endpoints(self.datapath.behind(entry)) for entry in entries)), ())

    def _addresses(self, entries: Mapping[Frontend, Entry]) -> Iterator[Address]:
        """Each address once, however many of the node's own a NodePort answers at; sockets' way in before others'."""
        found: dict[tuple[str | None, int], list[Entry]] = {}
        kinds: dict[tuple[str | None, int], str | None] = {}
        for frontend in sorted(entries, key=lambda frontend: frontend.scope):
            ip = str(frontend.ip)
            named = self.names.get((frontend.protocol, ip, frontend.port))
            is_node_port = named is None and ip in self.node_ips
            key = (None if is_node_port else ip, frontend.port)
            found.setdefault(key, []).append(entries[frontend])
            kinds[key] = "NodePort" if is_node_port else None if named is None else named.kind
        for (address, port), of_it in found.items():
            branches = [Branch((), (), {(e.ip, e.port): e for e in self._choice((entry,))}) for entry in of_it[:1]]
            yield Address(
                kinds[address, port], address, port, _refused(of_it), tuple(b for b in branches if b.backends)
            )


def endpoints(backends: Iterable[Backend]) -> tuple[Endpoint, ...]:
    """Slots as endpoints: each is as likely as the others, and no chain leads there."""
    slots = tuple(backends)
    return tuple(Endpoint(str(backend.ip), backend.port, 1 / len(slots), ()) for backend in slots)


def _refused(entries: Iterable[Entry]) -> str | None:
    """What becomes of packets that no endpoint takes, at an address of which these are the entries."""
    entries = list(entries)
    if any(entry.flags & ServiceFlag.SILENT for entry in entries):
        return "drop"
    return None if all(entry.length for entry in entries) else "reject"

"""Which Service ports of a node must be written anew, object by object, as the API's objects change.

Stands for what Cilium's agent keeps of Services (pkg/k8s/watchers): unlike kube-proxy's modes, this one does not look
at all Services because of one. What belongs here: what depends on which object. What does not: what a Service port
means (`ebpf`), following the API (`labs.cluster.ebpfproxy`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from labs.cluster.apiclient import Mirror
from labs.cluster.proxy.ebpf import Node, Wanted, wanted
from labs.cluster.proxy.endpoints import SERVICE_NAME_LABEL, Entries, entries_of, merge
from labs.cluster.proxy.healthchecks import HealthCheck, health_checks
from labs.cluster.proxy.node import local_node
from labs.cluster.proxy.services import PortKey, ports_of
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES, Object, Resource
from labs.cluster.sockdestroy import Peer
from tracer.service_lb import Backend, IPAddress

Name = tuple[str, str]  # namespace, name
Key = tuple[PortKey, int]  # a Service port in one IP family
Addresses = Mapping[str, tuple[IPAddress, ...]]  # of a node, by device


@dataclass(slots=True)
class State:
    """What has changed since it was last written, and what is needed to work out what to write."""

    node_name: str
    families: list[int]
    _addresses: Addresses = field(default_factory=dict)
    _dirty: set[Name] = field(default_factory=set)  # Services
    _slices_of: dict[Name, set[Name]] = field(default_factory=dict)
    _service_of: dict[Name, Name] = field(default_factory=dict)
    _entries: dict[Name, dict[int, Entries]] = field(default_factory=dict)  # of each slice, by IP family
    _wanted_of: dict[Name, dict[Key, Wanted]] = field(default_factory=dict)
    _gone: set[bytes] = field(default_factory=set)  # endpoints of UDP
    _nodes: dict[int, Node] = field(default_factory=dict)
    _failed: dict[Key, Wanted | None] = field(default_factory=dict)
    _checks: dict[Name, HealthCheck] = field(default_factory=dict)

    def note(self, resource: Resource, name: Name, item: Object | None) -> None:
        """An object is new, has changed, or is gone (None)."""
        if resource is SERVICES:
            self._dirty.add(name)
        elif resource is ENDPOINTSLICES:
            before, now = self._service_of.pop(name, None), _owner(item)
            self._entries.pop(name, None)
            if before is not None:
                self._slices_of[before].discard(name)
                self._dirty.add(before)
            if now is not None:
                self._service_of[name] = now
                self._slices_of.setdefault(now, set()).add(name)
                self._entries[name] = {
                    family: entries_of(item or {}, node_name=self.node_name, family=family) for family in self.families
                }
                self._dirty.add(now)
        elif name[1] == self.node_name:
            self._nodes = {}
            self._dirty |= self._wanted_of.keys()

    @property
    def knows_addresses(self) -> bool:
        """Whether the node's own addresses are known."""
        return bool(self._addresses)

    def set_addresses(self, addresses: Addresses) -> bool:
        """Learn the node's own addresses, by device; false when they are the same as before."""
        if addresses == self._addresses:
            return False
        self._addresses, self._nodes = addresses, {}
        self._dirty |= self._wanted_of.keys()
        return True

    def take(self, mirror: Mirror) -> dict[Key, Wanted | None]:
        """What the maps must hold of every Service port that may have changed."""
        dirty, self._dirty = self._dirty, set()
        found, self._failed = self._failed, {}
        if not self._nodes:
            items = list(mirror.items[NODES].values())
            self._nodes = {family: self._node(items, family) for family in self.families}
        for name in dirty:
            self._checks.pop(name, None)
            before, now = self._wanted_of.pop(name, {}), dict(self._ports(mirror, name))
            if now:
                self._wanted_of[name] = now
            served = _datagram_backends(now)
            self._gone = (self._gone | _datagram_backends(before)) - served
            found |= now | dict.fromkeys(before.keys() - now.keys())
        return found

    def take_gone(self) -> set[Peer]:
        """The endpoints that sockets of UDP must no longer be connected to."""
        gone, self._gone = self._gone, set()
        backends = map(Backend.unpack, gone)
        return {Peer(backend.ip, backend.port) for backend in backends}

    def put_back(self, pending: Mapping[Key, Wanted | None]) -> None:
        """Have `take` give these once more, unless they change again."""
        self._failed = {**pending, **self._failed}

    @property
    def health_checks(self) -> Mapping[Name, HealthCheck]:
        """What the health check ports of Services are to say, as of the last `take`."""
        return dict(self._checks)

    def _ports(self, mirror: Mirror, name: Name) -> Iterator[tuple[Key, Wanted]]:
        service = mirror.items[SERVICES].get(name)
        if service is None:
            return
        slices = sorted(self._slices_of.get(name, ()))
        for family in self.families:
            endpoints = merge(self._entries[key][family] for key in slices)
            ports = list(ports_of(service, family))
            # Of two families, the first one counts, as with kube-proxy here.
            for key, check in health_checks({port.key: port for port in ports}, endpoints).items():
                self._checks.setdefault(key, check)
            for port in ports:
                one = wanted(port, endpoints.get(port.key, ()), self._nodes[family])
                if one is not None:
                    yield (port.key, family), one

    def _node(self, items: list[Object], family: int) -> Node:
        node = local_node(items, self.node_name, family)
        addresses = dict.fromkeys(_where_node_ports_answer(self._addresses, family))
        return Node(node.ip, node.zone, tuple(map(str, addresses)))


def _datagram_backends(ports: Mapping[Key, Wanted]) -> set[bytes]:
    """The endpoints of UDP among those of some Service ports."""
    return {
        backend
        for (key, _), one in ports.items()
        if key.protocol == "UDP"
        for backends in (one.cluster, one.local)
        for backend in backends
    }


def _owner(item: Object | None) -> Name | None:
    """The Service that an EndpointSlice belongs to."""
    metadata = {} if item is None else item["metadata"]
    name = (metadata.get("labels") or {}).get(SERVICE_NAME_LABEL)
    return (metadata.get("namespace", ""), name) if name else None


def _where_node_ports_answer(addresses: Addresses, family: int) -> Iterator[IPAddress]:
    """All of the node's addresses, as with kube-proxy; 127.0.0.1 among them, but not ::1."""
    for ip in itertools.chain.from_iterable(addresses.values()):
        if ip.version == family and not ip.is_link_local and (family == 4 or not ip.is_loopback):
            yield ip

"""What the Kubernetes API says, ready to be looked up: the first and best provider of names.

What belongs here: stores that a `tracer.kubeapi.Mirror` fills, and look-ups by address, UID and port. What does not:
requests (`tracer.kubeapi`), other providers and their order (`tracer.names.lookup`).
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Generic, TypeVar

from tracer.kubeapi import Resource
from tracer.names import objects
from tracer.names.changes import Changes
from tracer.names.index import Index, Remembered, shift
from tracer.names.model import DestinationName, PodName
from tracer.names.objects import EndpointSlice, Node, Pod, Service

GONE_SECONDS = 300.0  # a pod that vanished keeps its name, and its address until another pod has it
MAX_GONE = 10_000

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
Entries = list[tuple[K, V]]


class Table(Generic[T]):
    """The objects of one resource by key; `move` brings the look-ups up to date with one change."""

    def __init__(self, move: Callable[[T | None, T | None], Iterable[str]], changes: Changes) -> None:
        self.loaded = False
        self._items: dict[str, T] = {}
        self._move = move
        self._changes = changes

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> T | None:
        """One object."""
        return self._items.get(key)

    def values(self) -> list[T]:
        """All objects."""
        return list(self._items.values())

    def replace(self, items: dict[str, T]) -> None:
        """All objects that there are (tracer.kubeapi.Store)."""
        for key in self._items.keys() - items.keys():
            self.remove(key)
        for key, item in items.items():
            self.put(key, item)
        if not self.loaded:
            self.loaded = True
            self._changes.mark()

    def put(self, key: str, item: T) -> None:
        """An object that is new or has changed."""
        old = self._items.get(key)
        if old != item:
            self._items[key] = item
            self._changes.touch(self._move(old, item))

    def remove(self, key: str) -> None:
        """An object that is gone."""
        old = self._items.pop(key, None)
        if old is not None:
            self._changes.touch(self._move(old, None))


class Cluster:
    """Look-ups in the API's data: O(1), from any thread. `rules_change` is called when kube-proxy has work to do."""

    def __init__(self, changes: Changes, rules_change: Callable[[], None] = lambda: None) -> None:
        self._changes = changes
        self._rules_change = rules_change
        self._pods: Table[Pod] = Table(self._move_pod, changes)
        self._services: Table[Service] = Table(self._move_service, changes)
        self._slices: Table[EndpointSlice] = Table(self._move_slice, changes)
        self._nodes: Table[Node] = Table(self._move_node, changes)
        self._pods_by_uid: dict[str, Pod] = {}
        self._pods_by_address: Index[str, Pod] = Index()
        self._gone_by_uid: Remembered[str, Pod] = Remembered(GONE_SECONDS, MAX_GONE)
        self._gone_by_address: Remembered[str, Pod] = Remembered(GONE_SECONDS, MAX_GONE)
        self._service_ports: Index[tuple[str, str, int], DestinationName] = Index()
        self._service_addresses: Index[str, DestinationName] = Index()
        self._node_ports: Index[tuple[str, int], DestinationName] = Index()
        self._usable_slices: Index[str, str] = Index()
        self._endpoints: Index[str, tuple[tuple[int, ...], PodName]] = Index()
        self._nodes_by_address: Index[str, str] = Index()
        self._pod_ranges: Index[tuple[int, int, int], str] = Index()  # version, prefix length, that many leading bits
        self._prefixes: set[tuple[int, int]] = set()  # the versions and prefix lengths among them

    def resources(self) -> list[Resource[Any]]:
        """What to mirror, and into which table."""
        return [
            Resource("/api/v1/pods", objects.pod, self._pods),
            Resource("/api/v1/services", objects.service, self._services),
            Resource("/apis/discovery.k8s.io/v1/endpointslices", objects.endpoint_slice, self._slices),
            Resource("/api/v1/nodes", objects.node, self._nodes),
        ]

    def loaded(self) -> bool:
        """Whether all the cluster's addresses are known: only then can an address be said to be none of them."""
        return self._pods.loaded and self._services.loaded and self._nodes.loaded

    def pods_loaded(self) -> bool:
        """Whether the API's word on pods is to be had."""
        return self._pods.loaded

    def pod_by_uid(self, uid: str) -> Pod | None:
        """The pod of a cgroup, alive or gone not long ago."""
        return self._pods_by_uid.get(uid) or self._gone_by_uid.get(uid)

    def pod_by_address(self, address: str) -> Pod | None:
        """The pod that has this address for itself, or had it last.

        None when pods on the host's network share it, or when two claim it (one of them is about to go).
        """
        pods = self._pods_by_address.get(address)
        if not pods:
            return self._gone_by_address.get(address)
        staying = [pod for pod in pods if not pod.terminating] or pods
        return staying[0] if len(staying) == 1 else None

    def pod_by_endpoint(self, address: str, port: int) -> PodName | None:
        """The pod that listens on a port of an address that pods share, as the EndpointSlices say; None if two do."""
        names = {name for ports, name in self._endpoints.get(address) if port in ports}
        return names.pop() if len(names) == 1 else None

    def service(self, protocol: str, address: str, port: int) -> DestinationName | None:
        """The Service that has this address and port; what they agree on, where several share an external IP."""
        return _agreed(self._service_ports.get((protocol, address, port)))

    def node_port(self, protocol: str, port: int) -> DestinationName | None:
        """The Service that has this NodePort, whatever the node."""
        return self._node_ports.only((protocol, port))

    def service_address(self, address: str) -> DestinationName | None:
        """The Service that has this address, for a port that it does not have."""
        return _agreed(self._service_addresses.get(address))

    def has_no_endpoints(self, namespace: str, service: str) -> bool:
        """Whether the Service exists and no endpoint of it can take a connection."""
        key = f"{namespace}/{service}"
        return self._slices.loaded and self._services.get(key) is not None and not self._usable_slices.get(key)

    def node_by_address(self, address: str) -> str | None:
        """The node that has this address."""
        return self._nodes_by_address.only(address)

    def node_by_hostname(self, hostname: str) -> str | None:
        """The node with this name or hostname (its kubernetes.io/hostname)."""
        if self._nodes.get(hostname) is not None:
            return hostname
        names = [node.name for node in self._nodes.values() if node.hostname == hostname]
        return names[0] if len(names) == 1 else None

    def in_pod_range(self, address: str) -> bool:
        """Whether an address is from a range that a node gives to pods."""
        parsed = ipaddress.ip_address(address)
        prefixes = [length for version, length in list(self._prefixes) if version == parsed.version]
        bits = int(parsed)
        return any(
            self._pod_ranges.get((parsed.version, length, bits >> (parsed.max_prefixlen - length)))
            for length in prefixes
        )

    def _move_pod(self, old: Pod | None, new: Pod | None) -> Iterable[str]:
        old_uids, old_addresses = (old.uids, old.addresses) if old is not None else ((), ())
        new_uids, new_addresses = (new.uids, new.addresses) if new is not None else ((), ())
        for uid in new_uids:
            if new is not None:
                self._pods_by_uid[uid] = new
        for uid in old_uids:
            if uid not in new_uids and old is not None:
                self._gone_by_uid.put(uid, old)
                self._pods_by_uid.pop(uid, None)
        for address in dict.fromkeys((*new_addresses, *old_addresses)):
            has, had = address in new_addresses, address in old_addresses
            if had and not has and old is not None:
                self._gone_by_address.put(address, old)
            self._pods_by_address.replace(address, old if had else None, new if has else None)
        return chain(old_uids, new_uids, old_addresses, new_addresses)

    def _move_service(self, old: Service | None, new: Service | None) -> Iterable[str]:
        ports = shift(self._service_ports, _port_entries(old), _port_entries(new))
        addresses = shift(self._service_addresses, _address_entries(old), _address_entries(new))
        node_ports = shift(self._node_ports, _node_port_entries(old), _node_port_entries(new))
        self._rules_change()
        return [*(address for _, address, _ in ports), *addresses, *(port_key(port) for _, port in node_ports)]

    def _move_slice(self, old: EndpointSlice | None, new: EndpointSlice | None) -> Iterable[str]:
        addresses = shift(self._endpoints, _endpoint_entries(old), _endpoint_entries(new))
        services = shift(self._usable_slices, _usable_entries(old), _usable_entries(new))
        self._rules_change()
        return [*addresses, *services]

    def _move_node(self, old: Node | None, new: Node | None) -> Iterable[str]:
        shift(self._nodes_by_address, _node_entries(old), _node_entries(new))
        shift(self._pod_ranges, _range_entries(old), ranges := _range_entries(new))
        self._prefixes |= {(version, length) for (version, length, _), _ in ranges}
        self._changes.mark()  # seldom, and it concerns everything: names of nodes, what is External
        return ()


def port_key(port: int) -> str:
    """The key in Changes for what depends on a NodePort."""
    return f"port {port}"


def _agreed(names: tuple[DestinationName, ...]) -> DestinationName | None:
    """One answer from several: each field on which all agree. None when there are none."""
    if len(names) <= 1:
        return names[0] if names else None
    first = names[0]
    same_service = all(name[:2] == first[:2] for name in names)
    return DestinationName(
        namespace=first.namespace if same_service else None,
        service=first.service if same_service else None,
        port_name=first.port_name
        if same_service and all(name.port_name == first.port_name for name in names)
        else None,
        kind=first.kind if all(name.kind == first.kind for name in names) else None,
    )


def _port_entries(service: Service | None) -> Entries[tuple[str, str, int], DestinationName]:
    if service is None:
        return []
    return [
        ((port.protocol, address, port.port), DestinationName(service.namespace, service.name, port.name, kind))
        for kind, address in service.addresses
        for port in service.ports
    ]


def _address_entries(service: Service | None) -> Entries[str, DestinationName]:
    if service is None:
        return []
    return [
        (address, DestinationName(service.namespace, service.name, None, kind)) for kind, address in service.addresses
    ]


def _node_port_entries(service: Service | None) -> Entries[tuple[str, int], DestinationName]:
    if service is None:
        return []
    return [
        ((port.protocol, port.node_port), DestinationName(service.namespace, service.name, port.name, "NodePort"))
        for port in service.ports
        if port.node_port
    ]


def _endpoint_entries(part: EndpointSlice | None) -> Entries[str, tuple[tuple[int, ...], PodName]]:
    return [] if part is None else [(address, (part.ports, name)) for address, name in part.pods]


def _usable_entries(part: EndpointSlice | None) -> Entries[str, str]:
    if part is None or part.service is None or not part.usable:
        return []
    return [(f"{part.namespace}/{part.service}", part.name)]


def _node_entries(node: Node | None) -> Entries[str, str]:
    return [] if node is None else [(address, node.name) for address in node.addresses]


def _range_entries(node: Node | None) -> Entries[tuple[int, int, int], str]:
    entries: Entries[tuple[int, int, int], str] = []
    for text in () if node is None else node.pod_ranges:
        with contextlib.suppress(ValueError):
            network = ipaddress.ip_network(text, strict=False)
            leading = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
            entries.append(((network.version, network.prefixlen, leading), text))
    return entries

"""The Service map: every Service port that the rules hold, its addresses and its endpoints, and quick look-ups in it.

What belongs here: the map itself, pure and immutable. What does not: how it is found in rules (`kubeproxy`), and names
that only the Kubernetes API knows (`tracer.names`).

    Service map ── ServicePort ── Address ── Branch: the chains on the way, and what the last of them chooses from
                        └──────── Endpoint, with its share
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from tracer.rules.model import Condition, Interval, Match, address_number


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where packets go. probability: this endpoint's share of new connections, 0 to 1. chains: walked to reach it.

    In the endpoints of a ServicePort, chains begin with the chain that chooses; `ServiceMap.backend` gives all of them.
    """

    ip: str
    port: int
    probability: float | None
    chains: tuple[str, ...]


class Branch(NamedTuple):
    """One of the ways through an address's chains: the chains before the choice, on which conditions, and the choice.

    conditions: those on where the packet comes from; the first branch whose conditions hold is taken.
    backends: what the last chain chooses from, by address and port.
    """

    conditions: tuple[Condition, ...]
    via: tuple[str, ...]
    backends: Mapping[tuple[str, int], Endpoint]


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a Service port.

    kind: ClusterIP, NodePort, ExternalIP or LoadBalancer; None for one of the last two where the rules do not say which
    (kube-proxy's nftables mode, and addresses without any endpoint). ip: None for a NodePort.
    refused: "reject" or "drop" when rules say so for packets that no endpoint takes.
    """

    kind: str | None
    ip: str | None
    port: int
    refused: str | None = None
    branches: tuple[Branch, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of one Service, of one IP family: kube-proxy, too, keeps the families of a dual-stack Service apart.

    namespace, name: None where neither rules nor the Kubernetes API tell it (maps of eBPF hold no names). port_name:
    None where it has none. protocol: TCP, UDP or SCTP. endpoints: those that the cluster-wide choice has, or else
    (internal traffic policy Local and no way in from outside) those on this node. local_endpoints: those of the choice
    for traffic policy Local, where it differs. source_ranges: loadBalancerSourceRanges. no_endpoints: nothing serves
    any of its addresses here.
    """

    family: int  # 4 or 6
    namespace: str | None
    name: str | None
    port_name: str | None
    protocol: str
    addresses: tuple[Address, ...]
    endpoints: tuple[Endpoint, ...]
    local_endpoints: tuple[Endpoint, ...]
    session_affinity_seconds: int | None
    source_ranges: tuple[str, ...]
    no_endpoints: bool

    @property
    def full_name(self) -> str | None:
        """NAMESPACE/NAME; None where it is not known."""
        return None if self.name is None else f"{self.namespace}/{self.name}"

    def is_called(self, pattern: str) -> bool:
        """Whether NAME or NAMESPACE/NAME, either of which may be a shell pattern, names this Service."""
        return fnmatchcase((self.full_name if "/" in pattern else self.name) or "", pattern)

    def to_json(self) -> dict[str, Any]:
        """The object of `k8snet-trace services -o json`."""
        return {
            "namespace": self.namespace,
            "name": self.name,
            "port_name": self.port_name,
            "protocol": self.protocol,
            "family": self.family,
            "addresses": [{"kind": a.kind, "ip": a.ip, "port": a.port, "refused": a.refused} for a in self.addresses],
            "session_affinity_seconds": self.session_affinity_seconds,
            "source_ranges": list(self.source_ranges),
            "endpoints": [_endpoint_json(endpoint) for endpoint in self.endpoints],
            "local_endpoints": [_endpoint_json(endpoint) for endpoint in self.local_endpoints],
            "no_endpoints": self.no_endpoints,
        }


def _endpoint_json(endpoint: Endpoint) -> dict[str, Any]:
    return {"ip": endpoint.ip, "port": endpoint.port, "probability": endpoint.probability}


@dataclass(frozen=True, slots=True)
class NodePortScope:
    """Which of a node's addresses take NodePort traffic. addresses: None for all of them. excluded: none of these."""

    addresses: frozenset[str] | None = None
    excluded: tuple[Interval, ...] = ()

    def holds(self, ip: str, node_ips: Collection[str]) -> bool:
        """Whether NodePorts answer at `ip`. node_ips: the node's own addresses, besides 127.0.0.0/8 and ::1."""
        if self.addresses is not None:
            return ip in self.addresses
        if ip not in node_ips and ip != "::1" and not ip.startswith("127."):
            return False
        number = address_number(ip)
        return not any(low <= number <= high for low, high in self.excluded)


class ServiceMap:
    """All Service ports, in order of namespace, name, port and family. Immutable; look-ups take constant time."""

    def __init__(self, services: Iterable[ServicePort], node_ports: Mapping[int, NodePortScope] | None = None) -> None:
        """node_ports: by IP family (4, 6), which addresses answer at NodePorts; without an entry, all of the node's."""
        self.services = sorted(services, key=_order)
        self._scopes = dict(node_ports or {})
        self._by_ip: dict[tuple[str, str, int], tuple[ServicePort, Address]] = {}
        self._by_node_port: dict[tuple[str, int, int], tuple[ServicePort, Address]] = {}
        for service in self.services:
            for address in service.addresses:
                if address.ip is None:
                    self._by_node_port.setdefault((service.protocol, service.family, address.port), (service, address))
                else:
                    self._by_ip.setdefault((service.protocol, address.ip, address.port), (service, address))

    def find(
        self, protocol: str, ip: str, port: int, node_ips: Collection[str] = ()
    ) -> tuple[ServicePort, Address] | None:
        """The Service port that packets to this destination belong to, and which of its addresses that is; or None.

        protocol: TCP, UDP or SCTP. ip: as inet_ntop(3) writes it. node_ips: the node's own addresses, for NodePorts.
        """
        found = self._by_ip.get((protocol, ip, port))
        if found is not None:
            return found
        family = 6 if ":" in ip else 4
        found = self._by_node_port.get((protocol, family, port))
        if found is None:
            return None
        scope = self._scopes.get(family) or NodePortScope()
        return found if scope.holds(ip, node_ips) else None

    def backend(
        self,
        service: ServicePort,
        address: Address,
        ip: str,
        port: int,
        source: str | None = None,
        node_ips: Collection[str] = (),
    ) -> Endpoint | None:
        """How packets to `address` reach the endpoint ip:port: its true share, and all the chains walked; or None.

        source: where the packets come from, as far as known, and node_ips the node's own addresses: with traffic policy
        Local, they decide on the way. Without, the first way that leads there counts: that of processes on this node.
        """
        for branch in address.branches:
            taken = True if not branch.conditions else _holds(branch.conditions, source, node_ips)
            if taken is False:
                continue
            endpoint = branch.backends.get((ip, port))
            if endpoint is not None:
                if not branch.via:
                    return endpoint
                return Endpoint(ip, port, endpoint.probability, branch.via + endpoint.chains)
            if taken:
                break
        return None

    def named(self, pattern: str) -> list[ServicePort]:
        """The Service ports that the pattern names (see ServicePort.is_called)."""
        return [service for service in self.services if service.is_called(pattern)]

    def nearest(self, name: str, count: int = 3) -> list[str]:
        """The NAMESPACE/NAME of Services that are called nearly so, the nearest first: for whoever mistyped."""
        from difflib import get_close_matches

        known = dict.fromkeys(service.full_name for service in self.services if service.full_name is not None)
        if "/" in name:
            return get_close_matches(name, known, count)
        near = get_close_matches(name, dict.fromkeys(full.partition("/")[2] for full in known), count)
        return [full for word in near for full in known if full.partition("/")[2] == word][:count]

    def to_json(self) -> list[dict[str, Any]]:
        """The document of `k8snet-trace services -o json`."""
        return [service.to_json() for service in self.services]


def _order(service: ServicePort) -> tuple[str, str, str, str, int, str]:
    first = "" if service.name is not None else str(service.addresses[:1])
    port_name = service.port_name or ""
    return service.namespace or "", service.name or "", port_name, service.protocol, service.family, first


def _holds(conditions: tuple[Condition, ...], source: str | None, node_ips: Collection[str]) -> bool | None:
    """Whether packets from `source` meet all these conditions; None where that can't be told."""
    answers = [_fits(condition, source, node_ips) for condition in conditions]
    return False if False in answers else None if None in answers else True


def _fits(condition: Condition, source: str | None, node_ips: Collection[str]) -> bool | None:
    if source is None or not isinstance(condition, Match) or condition.set is not None or condition.mask is not None:
        return None
    if condition.keys in (("ip saddr",), ("ip6 saddr",)):
        number = address_number(source)
        fits = any(isinstance(value, Interval) and value.low <= number <= value.high for value in condition.values)
    elif condition.keys == ("fib saddr type",) and node_ips:
        fits = ("local" in condition.values) is (source in node_ips)
    else:
        return None
    return fits is not condition.negated

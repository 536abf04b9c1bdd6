"""What the eBPF Service datapath must hold for each Service port, from the same Service ports and endpoints as rules.

Stands for what Cilium's agent makes of a Service (pkg/loadbalancer, daemon/k8s): under which addresses it is found, by
sockets of this node and by packets from outside, and the endpoints behind each. Choices are kube-proxy's, so that a
Service means the same with rules and without: who may use which endpoints is decided by the same `categorize`.

What belongs here: pure computation. What does not: maps, and the order in which they are written (`ebpf_maps`); the C
(`bpf/service_lb.c`). Left out: SCTP, which the programs do not know.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from labs.cluster.proxy.endpoints import Endpoint, Usable, categorize
from labs.cluster.proxy.services import ServicePort
from tracer.service_lb import PROTOCOLS, Backend, Frontend, Scope, ServiceFlag

NO_FLAGS = ServiceFlag(0)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Node:
    """What counts of the proxy's node, for one IP family.

    `ip`: its InternalIP. `addresses`: all that are its own, where NodePorts answer.
    """

    ip: str
    zone: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Behind:
    """What is behind one address. `local`: the list of local endpoints is used, and not that of all."""

    local: bool
    flags: ServiceFlag = NO_FLAGS


@dataclass(frozen=True, slots=True)
class Wanted:
    """All of one Service port in one IP family. `ranges` guard the LoadBalancer IPs.

    Endpoints are packed (`tracer.service_lb.Backend`), as maps hold them, and without repetition: a Service may have
    thousands, and all of them are compared when one changes.
    """

    frontends: Mapping[Frontend, Behind]
    cluster: tuple[bytes, ...]
    local: tuple[bytes, ...]
    affinity_seconds: int
    ranges: tuple[Network, ...]

    def backends(self, behind: Behind) -> tuple[bytes, ...]:
        """The endpoints behind an address."""
        return self.local if behind.local else self.cluster


def wanted(port: ServicePort, endpoints: Sequence[Endpoint], node: Node) -> Wanted | None:
    """What a node's datapath must hold for a Service port; None for a protocol that it does not know."""
    if port.key.protocol not in PROTOCOLS:
        return None
    usable = categorize(endpoints, port, node.zone)
    ranges = tuple(ipaddress.ip_network(text) for text in port.source_ranges)
    return Wanted(
        frontends=dict(_frontends(port, usable, node, ranges)),
        cluster=_backends(usable.cluster),
        local=_backends(usable.local),
        affinity_seconds=port.affinity_seconds or 0,
        ranges=ranges if port.load_balancer_vips else (),
    )


def _frontends(
    port: ServicePort, usable: Usable, node: Node, ranges: Sequence[Network]
) -> Iterator[tuple[Frontend, Behind]]:
    """Every address of a Service port, and what is behind it."""
    yield _frontend(port, port.cluster_ip, port.port, Scope.SOCKET), _behind(port.internal_policy_local, usable)
    # Whatever the external policy: the node and its pods take the short cut to all endpoints, as with kube-proxy.
    shortcut = Behind(local=False)
    outside = _behind(port.external_policy_local, usable)
    if not port.external_policy_local:
        outside = Behind(outside.local, outside.flags | ServiceFlag.MASQUERADE)
    for ip in port.external_ips:
        yield _frontend(port, ip, port.port, Scope.SOCKET), shortcut
        yield _frontend(port, ip, port.port, Scope.OUTSIDE), outside
    guard = _guard(node, ranges)
    for ip in port.load_balancer_vips:
        yield _frontend(port, ip, port.port, Scope.SOCKET), Behind(False, guard)
        yield _frontend(port, ip, port.port, Scope.OUTSIDE), Behind(outside.local, outside.flags | guard)
    if port.node_port:
        for ip in node.addresses:
            yield _frontend(port, ip, port.node_port, Scope.SOCKET), shortcut
            if not ipaddress.ip_address(ip).is_loopback:
                yield _frontend(port, ip, port.node_port, Scope.OUTSIDE), outside


def _frontend(port: ServicePort, ip: str, number: int, scope: Scope) -> Frontend:
    return Frontend(ipaddress.ip_address(ip), number, port.key.protocol, scope)


def _behind(policy_local: bool, usable: Usable) -> Behind:
    """kube-proxy drops where a policy leaves none of the endpoints that there are, and rejects where there are none."""
    silent = policy_local and not usable.local and usable.anywhere
    return Behind(policy_local, ServiceFlag.SILENT if silent else NO_FLAGS)


def _guard(node: Node, ranges: Sequence[Network]) -> ServiceFlag:
    """What to say of a Service port with source ranges; the node itself is judged here, by its InternalIP."""
    if not ranges:
        return NO_FLAGS
    own = ipaddress.ip_address(node.ip)
    denied = not any(own in network for network in ranges)
    return ServiceFlag.HAS_RANGES | (ServiceFlag.DENIES_NODE if denied else NO_FLAGS)


def _backends(endpoints: Iterable[Endpoint]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(_packed(endpoint.ip, endpoint.port, endpoint.is_local) for endpoint in endpoints))


@lru_cache(maxsize=1 << 17)
def _packed(ip: str, port: int, is_local: bool) -> bytes:
    return Backend(ipaddress.ip_address(ip), port, is_local).pack()

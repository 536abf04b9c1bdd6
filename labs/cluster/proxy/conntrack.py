"""Which connection-tracking entries of UDP have to go when Services and endpoints change.

Stands for pkg/proxy/conntrack/cleanup.go of kube-proxy v1.30.5 and for `detectStaleConntrackEntries` in
pkg/proxy/endpointschangetracker.go. A UDP "connection" lives in the kernel for as long as packets come, and its packets
go where the first one went, whatever the rules say now. So a client that keeps its port would talk to a pod that is
gone, for ever. TCP needs none of this: a connection to a pod that is gone breaks, and the client makes another.

What belongs here: which entries, as arguments of the command conntrack (conntrack-tools), which kube-proxy v1.30 calls
too. What does not: calling it (`labs.cluster.netfilter`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from labs.cluster.proxy.changes import Before
from labs.cluster.proxy.endpoints import Endpoint
from labs.cluster.proxy.services import PortKey, ServicePort

Match = tuple[str, ...]


def stale(
    before: Mapping[PortKey, Before],
    ports: Mapping[PortKey, ServicePort],
    endpoints: Mapping[PortKey, Sequence[Endpoint]],
) -> list[Match]:
    """Give the entries to delete, each as the options that select them, without repetition.

    `before` holds the Service ports that changed, as they were; `ports` and `endpoints` are those of now. Entries of a
    Service that is gone go by its ClusterIP, as do all addresses of one that has its first endpoint; entries of an
    endpoint that no longer gets traffic go by the pair of both addresses.
    """
    matches: dict[Match, None] = {}
    for key, was in before.items():
        if key.protocol != "UDP":
            continue
        port, now = ports.get(key), endpoints.get(key, ())
        if was.port is not None and (port is None or port.cluster_ip != was.port.cluster_ip):
            matches[("--orig-dst", was.port.cluster_ip)] = None
        if port is not None:
            served, serving = _ready(was.endpoints), _ready(now)
            if serving and not served:
                matches.update(dict.fromkeys(_of_service(port)))
            for _, ip in sorted(served - serving):
                matches.update(dict.fromkeys(_of_endpoint(port, ip)))
    return list(matches)


def _ready(endpoints: Sequence[Endpoint]) -> set[tuple[str, str]]:
    """The endpoints that get new traffic: (address with port, address)."""
    return {(endpoint.address, endpoint.ip) for endpoint in endpoints if endpoint.ready}


def _addresses(port: ServicePort) -> tuple[str, ...]:
    return (port.cluster_ip, *port.external_ips, *port.load_balancer_vips)


def _of_service(port: ServicePort) -> Iterator[Match]:
    for ip in _addresses(port):
        yield ("--orig-dst", ip)
    if port.node_port:
        yield ("--dport", str(port.node_port))


def _of_endpoint(port: ServicePort, endpoint: str) -> Iterator[Match]:
    for ip in _addresses(port):
        yield ("--orig-dst", ip, "--dst-nat", endpoint)
    if port.node_port:
        yield ("--dport", str(port.node_port), "--dst-nat", endpoint)

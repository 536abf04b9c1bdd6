"""What becomes of the first packet of a flow to each address of each Service, derived from the objects alone.

What belongs here: verdict, backends, masquerading, affinity. What does not: which endpoints a port has (`expected`).

Source: kubernetes pkg/proxy/iptables/proxier.go and pkg/proxy/nftables/proxier.go, syncProxyRules, of v1.30, for a
kube-proxy with --cluster-cidr. Who is masqueraded:
- to a ClusterIP, every source outside the cluster CIDR;
- to any other address with externalTrafficPolicy Cluster, every source;
- with externalTrafficPolicy Local, only the node itself (its pods, and all others, keep their address);
- always, an endpoint whose packet comes back to itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.tracer.rules.expected import SOURCES, EndpointKey, ExpectedAddress, ExpectedPort, PortKey, expected_ports

Json = dict[str, Any]
MODES = ("iptables", "nftables")

# Of SOURCES in `expected`, what each source here is to a traffic policy. ranged: outside, but in every source range of
# the fixtures; endpoint: one of those that the Service itself has.
POLICY_SOURCE = {"pod": "pod", "node": "node", "outside": "outside", "ranged": "outside", "endpoint": "pod"}


@dataclass(frozen=True)
class ExpectedFlow:
    """A flow, and what must become of it. masqueraded: those of the backends that must see the node's own address."""

    key: PortKey
    kind: str  # of the address: ClusterIP, …
    source_kind: str
    source: str
    protocol: str
    ip: str
    port: int
    verdict: str  # dnat, drop or reject
    backends: frozenset[EndpointKey] = frozenset()
    masqueraded: frozenset[EndpointKey] = frozenset()
    affinity: int | None = None


def expected_flows(
    objects: Json, family: int, node: str, node_ip: str, source_ips: dict[str, str], mode: str
) -> Iterator[ExpectedFlow]:
    """Every address of every Service port, asked from each source. source_ips: of pod, node, outside and ranged.

    The sources named endpoint are added: each endpoint of the port asks for the Service that it serves.
    """
    services = {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in objects["services"]}

    @functools.cache
    def ports(source: str) -> dict[PortKey, ExpectedPort]:
        return expected_ports(objects, family, node, dict.fromkeys(SOURCES, source))

    for key, some in ports(source_ips["node"]).items():
        local_policy = services[key[:2]]["spec"].get("externalTrafficPolicy") == "Local"
        endpoints = sorted({ip for ip, _ in some.endpoints | some.local_endpoints})
        for kind, source in (*source_ips.items(), *(("endpoint", ip) for ip in endpoints)):
            port = ports(source)[key]
            for address in port.addresses:
                yield _flow(key, port, address, kind, source, node_ip, local_policy, mode)


def _flow(
    key: PortKey,
    port: ExpectedPort,
    address: ExpectedAddress,
    source_kind: str,
    source: str,
    node_ip: str,
    local_policy: bool,
    mode: str,
) -> ExpectedFlow:
    asked = (key, address.kind, source_kind, source, key[3], address.ip or node_ip, address.port)
    backends = address.endpoints[POLICY_SOURCE[source_kind]]
    if not backends:
        return ExpectedFlow(*asked, address.refused or "drop")
    # nftables mode looks for addresses without endpoints at priority -110 of the OUTPUT hook, before nat's -100 has
    # sent the node's own packets to the endpoints of other nodes (proxier.go, nftablesBaseChains, filter-output)
    if (
        mode == "nftables"
        and source_kind == "node"
        and address.refused
        and address.kind not in ("NodePort", "ClusterIP")
    ):
        return ExpectedFlow(*asked, address.refused)
    if address.kind == "ClusterIP":
        masqueraded = source_kind in ("node", "outside", "ranged")
    else:
        masqueraded = source_kind == "node" or not local_policy
    back = frozenset(backend for backend in backends if backend[0] == source)
    return ExpectedFlow(*asked, "dnat", backends, backends if masqueraded else back, port.affinity)

"""What kube-proxy must do for given objects, derived from the objects alone, to hold readers of its rules against.

Source: Kubernetes' documentation of traffic policies and of terminating endpoints; kubernetes pkg/proxy/topology.go,
CategorizeEndpoints (without topology hints, which the fixtures do not use), of v1.30.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Json = dict[str, Any]
EndpointKey = tuple[str, int]
PortKey = tuple[str, str, str | None, str]  # namespace, name, port name, protocol

SOURCES = ("pod", "node", "outside")


@dataclass
class ExpectedAddress:
    """An address, and where packets from each of SOURCES can go. refused: what rules do where nothing takes them."""

    kind: str
    ip: str | None
    port: int
    refused: str | None
    endpoints: dict[str, frozenset[EndpointKey]]


@dataclass
class ExpectedPort:
    """A Service port of one family."""

    addresses: list[ExpectedAddress] = field(default_factory=list)
    endpoints: frozenset[EndpointKey] = frozenset()
    local_endpoints: frozenset[EndpointKey] = frozenset()
    affinity: int | None = None
    source_ranges: tuple[str, ...] = ()

    @property
    def no_endpoints(self) -> bool:
        return not any(chosen for address in self.addresses for chosen in address.endpoints.values())


def expected_ports(objects: Json, family: int, node: str, source_ips: dict[str, str]) -> dict[PortKey, ExpectedPort]:
    """Every Service port of one family as seen on `node`. source_ips: an address of each of SOURCES."""
    return {
        (service["metadata"]["namespace"], service["metadata"]["name"], port["name"] or None, port["protocol"]): _port(
            objects, service, port, family, node, source_ips
        )
        for service in objects["services"]
        if _of_family(service["spec"]["clusterIPs"], family)
        for port in service["spec"]["ports"]
    }


def _of_family(ips: list[str], family: int) -> list[str]:
    return [ip for ip in ips if ip_address(ip).version == family]


def _port(objects: Json, service: Json, port: Json, family: int, node: str, source_ips: dict[str, str]) -> ExpectedPort:
    spec = service["spec"]
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    external_ips = _of_family(spec.get("externalIPs", []), family)
    balancer_ips = _of_family([item["ip"] for item in ingress if item.get("ipMode", "VIP") == "VIP"], family)
    from_outside = bool(port.get("nodePort") or external_ips or balancer_ips)
    internal_local = spec["internalTrafficPolicy"] == "Local"
    external_local = spec.get("externalTrafficPolicy") == "Local"
    everywhere = _usable(_endpoints(objects, service, port, family))
    local = _usable(item for item in _endpoints(objects, service, port, family) if item["nodeName"] == node)
    uses_everywhere = not internal_local or from_outside
    uses_local = internal_local or (external_local and from_outside)

    none: frozenset[EndpointKey] = frozenset()
    inside = local if internal_local else everywhere
    outside = {
        "pod": everywhere,
        "node": everywhere,
        "outside": (local if external_local else everywhere) if everywhere else none,
    }
    refused_inside = None if inside else "drop" if everywhere else "reject"
    refused_outside = None if outside["outside"] else "drop" if everywhere else "reject"
    ranges = tuple(text for text in spec.get("loadBalancerSourceRanges", []) if ip_network(text).version == family)
    allowed = {
        source: not ranges or any(ip_address(ip) in ip_network(text) for text in ranges)
        for source, ip in source_ips.items()
    }

    def from_balancer(source: str) -> frozenset[EndpointKey]:
        return outside[source] if allowed[source] else none

    number = port["port"]
    (cluster_ip,) = _of_family(spec["clusterIPs"], family)
    addresses = [ExpectedAddress("ClusterIP", cluster_ip, number, refused_inside, dict.fromkeys(SOURCES, inside))]
    addresses += (ExpectedAddress("ExternalIP", ip, number, refused_outside, outside) for ip in external_ips)
    addresses += (
        ExpectedAddress(
            "LoadBalancer", ip, number, refused_outside, {source: from_balancer(source) for source in SOURCES}
        )
        for ip in balancer_ips
    )
    if port.get("nodePort"):
        addresses.append(ExpectedAddress("NodePort", None, port["nodePort"], refused_outside, outside))
    affinity = None
    if spec["sessionAffinity"] == "ClientIP" and everywhere:
        affinity = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
    return ExpectedPort(
        addresses,
        endpoints=everywhere if uses_everywhere else local,
        local_endpoints=local if uses_local and everywhere else none,
        affinity=affinity,
        source_ranges=ranges if balancer_ips and everywhere else (),
    )


def _endpoints(objects: Json, service: Json, port: Json, family: int) -> Iterator[Json]:
    """The endpoints behind a port, with "key" the address and port that packets get."""
    for piece in objects["endpointslices"]:
        if piece["metadata"]["namespace"] != service["metadata"]["namespace"]:
            continue
        if piece["metadata"]["labels"]["kubernetes.io/service-name"] != service["metadata"]["name"]:
            continue
        if piece["addressType"] != f"IPv{family}":
            continue
        for slice_port in piece["ports"]:
            if (slice_port["name"], slice_port["protocol"]) == (port["name"], port["protocol"]):
                for item in piece["endpoints"]:
                    yield {**item, "key": (item["addresses"][0], slice_port["port"])}


def _usable(items: Iterator[Json]) -> frozenset[EndpointKey]:
    """Those that are ready; if there is none, those that still serve while they terminate."""
    items_list = list(items)
    ready = {item["key"] for item in items_list if item["conditions"]["ready"]}
    leaving = {
        item["key"] for item in items_list if item["conditions"]["serving"] and item["conditions"]["terminating"]
    }
    return frozenset(ready or leaving)

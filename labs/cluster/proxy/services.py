"""Services as kube-proxy sees them: one `ServicePort` for each port of each Service, of one IP family.

Stands for pkg/proxy/serviceport.go (`newBaseServiceInfo`), pkg/proxy/servicechangetracker.go (`serviceToServiceMap`),
pkg/api/v1/service/util.go (`ExternalPolicyLocal`, `NeedsHealthCheck`) and the informers' label selector in
cmd/kube-proxy/app/server.go. Left out: change tracking (kube-proxy keeps the previous map and the pending changes; here
the whole map is made anew) and the feature gates, which stand as v1.30 ships them (LoadBalancerIPMode on).

Fields that the API server always fills in (protocol, sessionAffinity, …) have its defaults when they are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from labs.cluster.proxy.addresses import canonical, networks_of_family, of_family

FAMILY_NAMES = {4: "IPv4", 6: "IPv6"}
DEFAULT_AFFINITY_SECONDS = 10800  # v1.DefaultClientIPServiceAffinitySeconds

# Services (and EndpointSlices) with one of these labels never reach kube-proxy: its informers select them away.
UNWATCHED_LABELS = frozenset({"service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"})


class PortKey(NamedTuple):
    """What identifies a Service port: proxy.ServicePortName. `port` is the port's name, "" for an unnamed one."""

    namespace: str
    service: str
    port: str
    protocol: str

    def __str__(self) -> str:
        """Give "namespace/service:port", or "namespace/service" for an unnamed port, as comments and hashes hold it."""
        return f"{self.namespace}/{self.service}:{self.port}" if self.port else f"{self.namespace}/{self.service}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service, for one IP family (proxy.BaseServicePortInfo).

    Addresses are canonical and of that family. `node_port` and `health_check_node_port` are 0 when there is none.
    `affinity_seconds` is None without session affinity. `load_balancer_vips` are those of ipMode VIP only.
    """

    key: PortKey
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_vips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    affinity_seconds: int | None = None
    health_check_node_port: int = 0
    external_policy_local: bool = False
    internal_policy_local: bool = False
    hints: str = ""

    @property
    def protocol(self) -> str:
        """The protocol in lower case, as rules and hashes want it."""
        return self.key.protocol.lower()

    @property
    def externally_accessible(self) -> bool:
        """Whether it can be reached by anything other than its ClusterIP."""
        return bool(self.node_port or self.load_balancer_vips or self.external_ips)

    @property
    def uses_cluster_endpoints(self) -> bool:
        """Whether traffic is ever sent to endpoints on any node.

        Even with externalTrafficPolicy Local it is: pods of this node short-circuit to all endpoints.
        """
        return not self.internal_policy_local or self.externally_accessible

    @property
    def uses_local_endpoints(self) -> bool:
        """Whether traffic is ever sent to endpoints on this node only."""
        return self.internal_policy_local or (self.external_policy_local and self.externally_accessible)


def service_ports(services: Iterable[Mapping[str, Any]], family: int) -> dict[PortKey, ServicePort]:
    """Give every Service port that kube-proxy serves in `family` (4 or 6), in the order of the objects.

    Headless and ExternalName Services, those of another proxy (label service-proxy-name), and those without a ClusterIP
    of the family have none (serviceToServiceMap).
    """
    ports: dict[PortKey, ServicePort] = {}
    for service in services:
        for port in ports_of(service, family):
            ports[port.key] = port
    return ports


def ports_of(service: Mapping[str, Any], family: int) -> list[ServicePort]:
    """Give the ports of one Service in `family`; none when kube-proxy skips the Service."""
    if is_unwatched(service) or _is_skipped(service):
        return []
    spec: Mapping[str, Any] = service["spec"]
    cluster_ip = canonical(_cluster_ip(spec, family), family)
    if cluster_ip is None:
        return []
    metadata = service.get("metadata") or {}
    namespace, name = metadata.get("namespace") or "", metadata.get("name") or ""
    common = _common(service, family)
    return [
        ServicePort(
            key=PortKey(namespace, name, port.get("name") or "", port.get("protocol") or "TCP"),
            cluster_ip=cluster_ip,
            port=port["port"],
            node_port=port.get("nodePort") or 0,
            **common,
        )
        for port in spec.get("ports") or ()
        if port.get("port")
    ]


def is_unwatched(item: Mapping[str, Any]) -> bool:
    """Tell whether kube-proxy's label selector keeps a Service or an EndpointSlice away from it."""
    labels = (item.get("metadata") or {}).get("labels") or {}
    return not UNWATCHED_LABELS.isdisjoint(labels)


def _is_skipped(service: Mapping[str, Any]) -> bool:
    """proxyutil.ShouldSkipService: no ClusterIP yet, headless, or ExternalName."""
    spec = service.get("spec") or {}
    return spec.get("clusterIP") in (None, "", "None") or spec.get("type") == "ExternalName"


def _cluster_ip(spec: Mapping[str, Any], family: int) -> str:
    """proxyutil.GetClusterIPByFamily: ipFamilies orders clusterIPs; without it only clusterIP counts."""
    families = spec.get("ipFamilies")
    if not families:
        return str(spec["clusterIP"])
    for name, ip in zip(families, spec.get("clusterIPs") or (), strict=False):
        if name == FAMILY_NAMES[family]:
            return str(ip)
    return ""


def _common(service: Mapping[str, Any], family: int) -> dict[str, Any]:
    """Give what all ports of a Service share, as arguments of ServicePort (newBaseServiceInfo)."""
    spec = service["spec"]
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    external_local = _external_policy_local(spec)
    return {
        "external_ips": of_family(spec.get("externalIPs") or (), family),
        # A load balancer of ipMode Proxy sends traffic to the NodePort itself: its address needs no rules.
        "load_balancer_vips": of_family(
            (entry["ip"] for entry in ingress if entry.get("ip") and entry.get("ipMode", "VIP") in ("VIP", None)),
            family,
        ),
        "source_ranges": networks_of_family(spec.get("loadBalancerSourceRanges") or (), family),
        "affinity_seconds": _affinity_seconds(spec),
        "health_check_node_port": _health_check_node_port(spec, external_local),
        "external_policy_local": external_local,
        "internal_policy_local": spec.get("internalTrafficPolicy") == "Local",
        "hints": _hints((service.get("metadata") or {}).get("annotations") or {}),
    }


def _external_policy_local(spec: Mapping[str, Any]) -> bool:
    """apiservice.ExternalPolicyLocal: a policy left over from another type doesn't count."""
    kind = spec.get("type") or "ClusterIP"
    accessible = kind in ("LoadBalancer", "NodePort") or (kind == "ClusterIP" and bool(spec.get("externalIPs")))
    return accessible and spec.get("externalTrafficPolicy") == "Local"


def _health_check_node_port(spec: Mapping[str, Any], external_policy_local: bool) -> int:
    """apiservice.NeedsHealthCheck: only LoadBalancers with externalTrafficPolicy Local have one."""
    if spec.get("type") == "LoadBalancer" and external_policy_local:
        return spec.get("healthCheckNodePort") or 0
    return 0


def _affinity_seconds(spec: Mapping[str, Any]) -> int | None:
    if spec.get("sessionAffinity") != "ClientIP":
        return None
    config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    seconds = config.get("timeoutSeconds")
    return DEFAULT_AFFINITY_SECONDS if seconds is None else seconds


def _hints(annotations: Mapping[str, str]) -> str:
    """Give the topology annotation; the deprecated one wins (newBaseServiceInfo)."""
    deprecated = annotations.get("service.kubernetes.io/topology-aware-hints")
    return (annotations.get("service.kubernetes.io/topology-mode") or "") if deprecated is None else deprecated

"""Endpoints of each Service port, and which of them a node may send traffic to.

Stands for pkg/proxy/endpointslicecache.go (EndpointSlices -> endpoints) and for `CategorizeEndpoints` in
pkg/proxy/topology.go. Left out: change tracking. Feature gates stand as v1.30 ships them: TopologyAwareHints on,
ServiceTrafficDistribution off, so zone hints count only for Services that ask for them by annotation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from labs.cluster.proxy.addresses import canonical, join_host_port
from labs.cluster.proxy.services import PortKey, ServicePort, is_unwatched

SERVICE_NAME_LABEL = "kubernetes.io/service-name"


class Endpoint(NamedTuple):
    """One backend of a Service port (proxy.BaseEndpointInfo).

    `address` is "ip:port" or "[ip]:port"; `zones` are the zones that it is meant for, by its hints.
    """

    ip: str
    port: int
    address: str
    is_local: bool
    ready: bool
    serving: bool
    terminating: bool
    zones: frozenset[str] = frozenset()

    @property
    def is_draining(self) -> bool:
        """Whether it still answers while it shuts down: used only when no endpoint is ready."""
        return self.serving and self.terminating


Entries = tuple[tuple[PortKey, Endpoint], ...]


@dataclass(frozen=True, slots=True)
class Usable:
    """The endpoints that a node may use for one Service port (the results of CategorizeEndpoints).

    `cluster`: with traffic policy Cluster; `local`: with traffic policy Local; `reachable`: the union of both;
    `anywhere`: whether the Service has any usable endpoint on any node (which may be true while `reachable` is empty).
    `internal`, `external`: whether traffic to the ClusterIP, or from outside to any other address, has an endpoint to
    go to under the Service's policy (hasInternalEndpoints, hasExternalEndpoints in syncProxyRules).
    """

    cluster: Sequence[Endpoint]
    local: Sequence[Endpoint]
    reachable: Sequence[Endpoint]
    anywhere: bool
    internal: bool
    external: bool


def endpoints_by_port(
    slices: Iterable[Mapping[str, Any]], *, node_name: str, family: int
) -> dict[PortKey, list[Endpoint]]:
    """Merge EndpointSlices of `family` (4 or 6) into the endpoints of each Service port, sorted by address text.

    An endpoint found twice counts once; the one on this node wins. kube-proxy walks the slices of a Service in random
    order, so which of two contradicting entries counts is undefined there; here it is the order given.
    """
    return merge(entries_of(item, node_name=node_name, family=family) for item in slices)


def entries_of(item: Mapping[str, Any], *, node_name: str, family: int) -> Entries:
    """Each (Service port, endpoint) of `family` that one EndpointSlice states."""
    return tuple(_entries(item, node_name, family))


def merge(slices: Iterable[Entries]) -> dict[PortKey, list[Endpoint]]:
    """What `endpoints_by_port` gives, from what `entries_of` gave of each slice."""
    found: dict[PortKey, dict[str, Endpoint]] = {}
    for entries in slices:
        for key, endpoint in entries:
            known = found.setdefault(key, {})
            if endpoint.is_local or endpoint.address not in known:
                known[endpoint.address] = endpoint
    return {key: sorted(known.values(), key=_by_address) for key, known in found.items()}


def categorize(endpoints: Sequence[Endpoint], port: ServicePort, zone: str) -> Usable:
    """Choose the endpoints that a node in `zone` ("" if unknown) may use for `port` (proxy.CategorizeEndpoints)."""
    cluster: Sequence[Endpoint] = ()
    hinted = False
    if port.uses_cluster_endpoints:
        hinted = _can_use_hints(endpoints, port, zone)
        cluster = [e for e in endpoints if e.ready and (not hinted or zone in e.zones)]
        if not cluster:
            cluster = [e for e in endpoints if e.is_draining]
    if not port.uses_local_endpoints:
        found = bool(cluster)
        return Usable(cluster, (), cluster, anywhere=found, internal=found, external=found)

    local = [e for e in endpoints if e.is_local and e.ready]
    if not local:
        local = [e for e in endpoints if e.is_local and e.is_draining]
    anywhere = any(e.ready or e.is_draining for e in endpoints)
    return Usable(
        cluster,
        local,
        reachable=list({e.address: e for e in (*cluster, *local)}.values()),
        anywhere=anywhere,
        internal=bool(local) if port.internal_policy_local else anywhere,
        external=bool(local) if port.external_policy_local else anywhere,
    )


def _entries(item: Mapping[str, Any], node_name: str, family: int) -> Iterable[tuple[PortKey, Endpoint]]:
    """Give each (Service port, endpoint) that one EndpointSlice states (endpointInfoByServicePort)."""
    metadata = item.get("metadata") or {}
    service = (metadata.get("labels") or {}).get(SERVICE_NAME_LABEL)
    if not service or is_unwatched(item) or item.get("addressType") not in ("IPv4", "IPv6"):
        return
    for port in item.get("ports") or ():
        name, number = port.get("name"), port.get("port")
        if name is None or not number:  # no number would mean "all ports": kube-proxy doesn't do that
            continue
        key = PortKey(metadata.get("namespace") or "", service, name, port.get("protocol") or "TCP")
        for entry in item.get("endpoints") or ():
            # Only the first address counts: the others are the API's promise, never used by kube-proxy.
            ip = canonical(next(iter(entry.get("addresses") or ()), ""), family)
            if ip is not None:
                yield key, _endpoint(entry, ip, number, node_name)


def _endpoint(entry: Mapping[str, Any], ip: str, port: int, node_name: str) -> Endpoint:
    conditions = entry.get("conditions") or {}
    hints = entry.get("hints")
    return Endpoint(
        ip,
        port,
        join_host_port(ip, port),
        bool(node_name) and entry.get("nodeName") == node_name,
        conditions.get("ready") is not False,
        conditions.get("serving") is not False,
        conditions.get("terminating") is True,
        frozenset(zone.get("name") or "" for zone in hints.get("forZones") or ()) if hints else frozenset(),
    )


def _by_address(endpoint: Endpoint) -> str:
    return endpoint.address


def _can_use_hints(endpoints: Sequence[Endpoint], port: ServicePort, zone: str) -> bool:
    """Tell whether traffic stays in this node's zone (canUseTopology).

    The Service must ask for it, every ready endpoint must have a hint, and at least one must be meant for this zone:
    otherwise a zone without hints would get nothing, and so all endpoints are used.
    """
    if port.hints in ("", "disabled", "Disabled") or not zone:
        return False
    ready = [e for e in endpoints if e.ready]
    return all(e.zones for e in ready) and any(zone in e.zones for e in ready)

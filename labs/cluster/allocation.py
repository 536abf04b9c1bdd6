"""ClusterIPs and node ports: who has which, and which are free.

Stands for the allocators behind the Service registry (pkg/registry/core/service: storage/alloc.go, ipallocator,
portallocator). Left out: persistent bitmaps and their repair; what is taken is what the store's Services have.
"""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any

from labs.cluster.fielderrors import FieldError, GoText, Invalid, invalid
from labs.cluster.options import AddressPlan
from labs.cluster.resources import SERVICES, Object, key_of
from labs.cluster.store import Store
from tracer.errors import K8snetError

NODE_PORTS = range(30000, 32768)
PROTOCOLS = ("TCP", "UDP", "SCTP")
# The lower part of the range is left to addresses that are asked for by name (KEP-3070).
STATIC_BAND = 256
_TRIES = 1000


def allocate(item: Object, store: Store, plan: AddressPlan) -> None:
    """Give a Service its ClusterIPs and node ports, or check those that it asks for. Raises Invalid or NoPort."""
    spec = item["spec"]
    if spec["type"] == "ExternalName":
        return
    used_ips = _Used(store.index(SERVICES, _cluster_ips_of), key_of(item))
    used_ports = _Used(store.index(SERVICES, _node_ports_of), key_of(item))
    asked = list(spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else ()))
    try:
        if asked and asked[0] == "None":
            spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
        else:
            spec["clusterIPs"] = _cluster_ips(asked, spec["ipFamilies"], used_ips, plan)
            spec["clusterIP"] = spec["clusterIPs"][0]
        checked = needs_health_check(spec)
        if checked and spec.get("healthCheckNodePort"):
            _health_check_port(spec["healthCheckNodePort"], used_ports)
        if spec["type"] in ("NodePort", "LoadBalancer"):
            given = spec["type"] == "NodePort" or spec.get("allocateLoadBalancerNodePorts", True)
            _node_ports(spec.get("ports") or [], used_ports, every=given)
        if checked and not spec.get("healthCheckNodePort"):
            spec["healthCheckNodePort"] = _free_health_check_port(used_ports)
    except _Refused as refused:
        raise Invalid("Service", item["metadata"]["name"], [refused.error]) from None


class NoPort(K8snetError):
    """A health check port can't be had, which the real API server takes for an error of its own."""


def needs_health_check(spec: Object) -> bool:
    """Whether a Service has a healthCheckNodePort (NeedsHealthCheck in pkg/api/service/util.go)."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


class _Refused(Exception):
    """An address or port that can't be had."""

    def __init__(self, error: FieldError) -> None:
        super().__init__(str(error))
        self.error = error


class _Used:
    """What others than the Service `key` have, and what it has been given just now."""

    def __init__(self, index: Mapping[Hashable, Set[tuple[str, str]]], key: tuple[str, str]) -> None:
        self._index = index
        self._mine = {key}
        self._given: set[Hashable] = set()

    def __contains__(self, value: Hashable) -> bool:
        return value in self._given or not self._index.get(value, self._mine) <= self._mine

    def add(self, value: Hashable) -> None:
        self._given.add(value)


def _cluster_ips_of(service: Object) -> list[str]:
    return list(service["spec"].get("clusterIPs") or ())


def _node_ports_of(service: Object) -> list[tuple[str, int]]:
    spec = service["spec"]
    found = [(port["protocol"], port["nodePort"]) for port in spec.get("ports") or () if port.get("nodePort")]
    if needs_health_check(spec) and spec.get("healthCheckNodePort"):
        found += [(protocol, spec["healthCheckNodePort"]) for protocol in PROTOCOLS]
    return found


def _cluster_ips(asked: list[str], families: list[str], used: _Used, plan: AddressPlan) -> list[str]:
    networks = {"IPv6" if ":" in text else "IPv4": ipaddress.ip_network(text) for text in plan.service_networks}
    shown = GoText(f"[]string{{{', '.join(map(json.dumps, asked))}}}")
    given = []
    for index, family in enumerate(families):
        network = networks.get(family)
        if network is None:
            raise _Refused(invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster"))
        if index >= len(asked):
            given.append(_free_ip(network, used))
            continue
        ip = ipaddress.ip_address(asked[index])
        trouble = None
        if ip not in network:
            trouble = (
                f"the provided IP ({ip}) is not in the valid range. The range of valid IPs is {network.with_prefixlen}"
            )
        elif str(ip) in used:
            trouble = "provided IP is already allocated"
        if trouble:
            raise _Refused(invalid("spec.clusterIPs", shown, f"failed to allocate IP {ip}: {trouble}"))
        given.append(str(ip))
    return given


def _free_ip(network: Any, used: _Used) -> str:
    size = min(network.num_addresses, 1 << 16)
    for _ in range(_TRIES):
        ip = str(network.network_address + random.randrange(min(STATIC_BAND, size // 2), size - 1))
        if ip not in used:
            return ip
    for offset in range(1, size - 1):
        ip = str(network.network_address + offset)
        if ip not in used:
            return ip
    raise _Refused(FieldError("InternalError", "spec.clusterIPs", "failed to allocate a serviceIP: range is full"))


def _node_ports(ports: list[Object], used: _Used, *, every: bool) -> None:
    """Check those that are asked for; with `every`, give one to each port that has none.

    One port of two protocols (DNS) has the same node port for both, where that is free.
    """
    twins = {port["port"]: port["nodePort"] for port in ports if port.get("nodePort")}
    for index, port in enumerate(ports):
        field, asked = f"spec.ports[{index}].nodePort", port.get("nodePort")
        if not asked and not every:
            continue
        if not asked:
            free = [number for number in NODE_PORTS if (port["protocol"], number) not in used]
            if not free:
                raise _Refused(FieldError("InternalError", field, "failed to allocate a nodePort: range is full"))
            twin = twins.get(port["port"])
            port["nodePort"] = asked = twin if twin in free else random.choice(free)
            twins[port["port"]] = asked
        elif (trouble := _trouble(asked, (port["protocol"],), used)) is not None:
            raise _Refused(invalid(field, asked, trouble))
        used.add((port["protocol"], asked))


def _health_check_port(asked: int, used: _Used) -> None:
    """Take the port that is asked for. Raises NoPort.

    Nothing else may use it, whatever its protocol: the API's allocator counts numbers.
    """
    if (trouble := _trouble(asked, PROTOCOLS, used)) is not None:
        raise NoPort(f"failed to allocate requested HealthCheck NodePort {asked}: {trouble}")
    for protocol in PROTOCOLS:
        used.add((protocol, asked))


def _free_health_check_port(used: _Used) -> int:
    """A port that nothing uses. Raises NoPort."""
    free = [number for number in NODE_PORTS if not any((protocol, number) in used for protocol in PROTOCOLS)]
    if not free:
        raise NoPort("failed to allocate a HealthCheck NodePort 0: range is full")
    return random.choice(free)


def _trouble(number: int, protocols: Iterable[str], used: _Used) -> str | None:
    """Why a node port can't be had, in the allocator's words."""
    if number not in NODE_PORTS:
        known = f"{NODE_PORTS[0]}-{NODE_PORTS[-1]}"
        return f"provided port is not in the valid range. The range of valid ports is {known}"
    if any((protocol, number) in used for protocol in protocols):
        return "provided port is already allocated"
    return None

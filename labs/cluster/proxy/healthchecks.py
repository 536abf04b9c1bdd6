"""What the health check ports of Services say on this node: how many of its pods are ready behind each Service.

Stands for `HealthCheckNodePorts` of pkg/proxy/servicechangetracker.go and `LocalReadyEndpoints` of
pkg/proxy/endpointschangetracker.go. What does not belong here: answering (`labs.cluster.proxyhealth`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labs.cluster.proxy.endpoints import Endpoint
from labs.cluster.proxy.services import PortKey, ServicePort

ServiceKey = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The health check of one Service: the node's `port` that answers, and how many ready endpoints are on the node.

    Those that terminate don't count, though they may still get traffic: a load balancer should turn away in time.
    """

    port: int
    endpoints: int


def health_checks(
    ports: Mapping[PortKey, ServicePort], endpoints: Mapping[PortKey, Sequence[Endpoint]]
) -> dict[ServiceKey, HealthCheck]:
    """Give the health checks of all Services that have one. A pod counts once, however many ports of it are used."""
    numbers: dict[ServiceKey, int] = {}
    ready: dict[ServiceKey, set[str]] = {}
    for key, port in ports.items():
        if port.health_check_node_port:
            service = key.namespace, key.service
            numbers[service] = port.health_check_node_port
            found = ready.setdefault(service, set())
            found.update(one.ip for one in endpoints.get(key, ()) if one.is_local and one.ready)
    return {service: HealthCheck(number, len(ready[service])) for service, number in numbers.items()}

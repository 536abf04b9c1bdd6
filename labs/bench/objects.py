"""Many Services of three endpoints each, as the API would list them, and where their addresses lie.

Stands for a cluster with thousands of Deployments and nothing else in it. What belongs here: addresses and objects,
nothing of the kernel. What does not: who answers under the endpoints' addresses (`wiring`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

NAMESPACE = "default"
NODE = "node1"
NODE_IP = "172.18.0.2"
ENDPOINTS = 3
PORT = 80
MAX_SERVICES = 65_000

POD_NETWORK = "10.128.0.0/9"  # all pods, as kube-proxy's --cluster-cidr
CLIENT_NETWORK = "10.244.0.0/24"  # of the pods that are really there
CLIENT_SOURCES = "10.244.8.0/24"  # addresses that the client pod has besides
ENDPOINT_NETWORK = "10.128.0.0/10"
_FIRST_VIP = int(ipaddress.ip_address("10.96.1.0"))
_FIRST_ENDPOINT = int(ipaddress.ip_address("10.128.1.0"))
_ENDPOINT_SPACE = 16  # addresses that each Service may use over time

Key = tuple[str, str]
Objects = dict[Key, dict[str, Any]]


def vip(number: int) -> str:
    """The ClusterIP of a Service."""
    return str(ipaddress.ip_address(_FIRST_VIP + number))


def endpoints(number: int, change: int = 0) -> tuple[str, ...]:
    """The addresses behind a Service; after each `change` the last one is another."""
    first = _FIRST_ENDPOINT + number * _ENDPOINT_SPACE
    last = ENDPOINTS - 1 + change % (_ENDPOINT_SPACE - ENDPOINTS + 1)
    return tuple(str(ipaddress.ip_address(first + offset)) for offset in (*range(ENDPOINTS - 1), last))


def services(count: int) -> Objects:
    """The Services, in the order in which the proxies' rules have them."""
    return {key_of(number): _service(number) for number in range(count)}


def slices(count: int) -> Objects:
    """Their EndpointSlices."""
    return {slice_key_of(number): endpoint_slice(number, endpoints(number)) for number in range(count)}


def node() -> dict[str, Any]:
    """The Node that the proxy is on."""
    return {
        "metadata": {"name": NODE, "labels": {}},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}]},
    }


def key_of(number: int) -> Key:
    """Namespace and name of a Service."""
    return NAMESPACE, f"s{number:06}"


def slice_key_of(number: int) -> Key:
    """Namespace and name of its EndpointSlice."""
    return NAMESPACE, f"s{number:06}-x"


def _service(number: int) -> dict[str, Any]:
    ip, (namespace, name) = vip(number), key_of(number)
    port = {"name": "", "protocol": "TCP", "port": PORT, "targetPort": PORT}
    spec = {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [port]}
    return {"metadata": {"namespace": namespace, "name": name}, "spec": spec}


def endpoint_slice(number: int, addresses: Sequence[str]) -> dict[str, Any]:
    """The EndpointSlice of a Service with these endpoints."""
    namespace, name = slice_key_of(number)
    labels = {"kubernetes.io/service-name": key_of(number)[1]}
    return {
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": PORT}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}, "nodeName": NODE} for ip in addresses],
    }

"""The few fields of Kubernetes objects that names need: a real cluster has 10,000 pods of 10 kB each.

What belongs here: from an object's JSON to a small immutable value, by the Kubernetes API reference
(https://kubernetes.io/docs/reference/kubernetes-api/). What does not: looking things up (`tracer.names.cluster`).

Every function raises AttributeError, KeyError, TypeError or ValueError for what is no such object.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tracer.names.model import PodName

SERVICE_NAME = "kubernetes.io/service-name"  # label of an EndpointSlice
STATIC_POD_HASH = "kubernetes.io/config.mirror"  # annotation of a static pod's mirror: the UID that its cgroup has


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. `addresses` are its own: none when it is on the host's network, or its containers have ended."""

    name: PodName
    uids: tuple[str, ...]
    node: str | None
    addresses: tuple[str, ...]
    terminating: bool  # deletionTimestamp is set


class ServicePort(NamedTuple):
    """One port of a Service."""

    name: str | None
    protocol: str
    port: int
    node_port: int | None


@dataclass(frozen=True, slots=True)
class Service:
    """A Service. `addresses` are (kind, address): ClusterIP, ExternalIP, LoadBalancer; none for a headless one."""

    namespace: str
    name: str
    addresses: tuple[tuple[str, str], ...]
    ports: tuple[ServicePort, ...]


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Part of a Service's endpoints: (address, pod) pairs that all listen on `ports`."""

    namespace: str
    name: str
    service: str | None
    ports: tuple[int, ...]
    pods: tuple[tuple[str, PodName], ...]
    usable: bool  # at least one endpoint that kube-proxy would send to


@dataclass(frozen=True, slots=True)
class Node:
    """A node, its addresses, and the ranges that its pods' addresses are from."""

    name: str
    hostname: str | None
    addresses: tuple[str, ...]
    pod_ranges: tuple[str, ...]


def pod(document: dict[str, Any]) -> Pod:
    """Keep what matters of a Pod (v1)."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    uids = [metadata.get("uid"), (metadata.get("annotations") or {}).get(STATIC_POD_HASH)]
    has_own = not spec.get("hostNetwork") and status.get("phase") not in ("Succeeded", "Failed")
    listed = [entry.get("ip") for entry in status.get("podIPs") or []] or [status.get("podIP")]
    return Pod(
        name=PodName(_word(metadata["namespace"]), str(metadata["name"])),
        uids=tuple(str(uid) for uid in uids if uid),
        node=_word(spec["nodeName"]) if spec.get("nodeName") else None,
        addresses=_addresses(listed) if has_own else (),
        terminating=bool(metadata.get("deletionTimestamp")),
    )


def service(document: dict[str, Any]) -> Service:
    """Keep what matters of a Service (v1)."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    ingress = [entry.get("ip") for entry in (status.get("loadBalancer") or {}).get("ingress") or []]
    kinds = (
        ("ClusterIP", spec.get("clusterIPs") or [spec.get("clusterIP")]),
        ("ExternalIP", spec.get("externalIPs") or []),
        ("LoadBalancer", ingress),
    )
    external_name = spec.get("type") == "ExternalName"
    return Service(
        namespace=_word(metadata["namespace"]),
        name=str(metadata["name"]),
        addresses=() if external_name else tuple((kind, ip) for kind, ips in kinds for ip in _addresses(ips)),
        ports=() if external_name else tuple(_service_port(port) for port in spec.get("ports") or []),
    )


def endpoint_slice(document: dict[str, Any]) -> EndpointSlice:
    """Keep what matters of an EndpointSlice (discovery.k8s.io/v1)."""
    metadata = document["metadata"]
    namespace = _word(metadata["namespace"])
    endpoints = document.get("endpoints") or []
    service_name = (metadata.get("labels") or {}).get(SERVICE_NAME)
    return EndpointSlice(
        namespace=namespace,
        name=str(metadata["name"]),
        service=str(service_name) if service_name else None,
        ports=tuple(int(port["port"]) for port in document.get("ports") or [] if port.get("port") is not None),
        pods=tuple(pair for endpoint in endpoints for pair in _endpoint_pods(endpoint, namespace)),
        usable=any(_usable(endpoint.get("conditions") or {}) for endpoint in endpoints),
    )


def node(document: dict[str, Any]) -> Node:
    """Keep what matters of a Node (v1)."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    addresses = [(entry.get("type"), entry.get("address")) for entry in status.get("addresses") or []]
    hostnames = [str(address) for kind, address in addresses if kind == "Hostname" and address]
    return Node(
        name=_word(metadata["name"]),
        hostname=hostnames[0] if hostnames else (metadata.get("labels") or {}).get("kubernetes.io/hostname"),
        addresses=_addresses(address for _, address in addresses),
        pod_ranges=tuple(str(cidr) for cidr in spec.get("podCIDRs") or [spec.get("podCIDR")] if cidr),
    )


def canonical(address: str) -> str:
    """An address as inet_ntop writes it. Raises ValueError for what is none."""
    return str(ipaddress.ip_address(address)) if ":" in address else str(ipaddress.IPv4Address(address))


def _service_port(port: dict[str, Any]) -> ServicePort:
    return ServicePort(
        name=_word(port["name"]) if port.get("name") else None,
        protocol=_word(port.get("protocol") or "TCP"),
        port=int(port["port"]),
        node_port=int(port["nodePort"]) if port.get("nodePort") else None,
    )


def _endpoint_pods(endpoint: dict[str, Any], namespace: str) -> Iterable[tuple[str, PodName]]:
    """The addresses of one endpoint, each with the pod behind it; none for an endpoint that is no pod."""
    target = endpoint.get("targetRef") or {}
    if target.get("kind") != "Pod" or not target.get("name"):
        return ()
    name = PodName(_word(target.get("namespace") or namespace), str(target["name"]))
    return ((address, name) for address in _addresses(endpoint.get("addresses") or []))


def _usable(conditions: dict[str, Any]) -> bool:
    """Whether kube-proxy would send to such an endpoint: ready, or at the least serving while it terminates.

    An absent `ready` means true (EndpointConditions, staging/src/k8s.io/api/discovery/v1/types.go).
    """
    return conditions.get("ready") is not False or conditions.get("serving") is True


def _addresses(texts: Iterable[Any]) -> tuple[str, ...]:
    """Those that are IP addresses, in the form of inet_ntop: not "None" (headless), not a host's name."""
    found = []
    for text in texts:
        try:
            found.append(canonical(text))
        except (TypeError, ValueError):
            continue
    return tuple(dict.fromkeys(found))


def _word(text: Any) -> str:
    """A name that many objects share, kept once."""
    return sys.intern(str(text))

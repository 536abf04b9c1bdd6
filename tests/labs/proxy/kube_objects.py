"""Builders of the API's JSON objects for the proxy's tests: the shortest true form, more by keyword."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parents[2] / "fixtures" / "kube-proxy-v1.30.5"
CLUSTER_CIDRS = ("10.244.0.0/16", "fd00:10:244::/56")


def fixture_objects() -> dict[str, list[dict[str, Any]]]:
    """Give the objects that the real kube-proxy was given."""
    return json.loads((FIXTURE / "objects.json").read_text())


def service(
    name: str = "web",
    *,
    namespace: str = "shop",
    ports: Sequence[dict[str, Any]] = ({"port": 80},),
    ingress: Sequence[dict[str, Any]] = (),
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Give a Service, by default shop/web at 10.96.0.1:80."""
    return {
        "metadata": {"namespace": namespace, "name": name, "labels": labels, "annotations": annotations},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": list(ports), **spec},
        "status": {"loadBalancer": {"ingress": list(ingress)} if ingress else {}},
    }


def endpoint(ip: str, *, node: str | None = None, zones: Sequence[str] = (), **conditions: bool) -> dict[str, Any]:
    """Give an entry of an EndpointSlice; `conditions` are ready, serving, terminating."""
    entry: dict[str, Any] = {"addresses": [ip], "conditions": conditions}
    if node is not None:
        entry["nodeName"] = node
    if zones:
        entry["hints"] = {"forZones": [{"name": zone} for zone in zones]}
    return entry


def draining(ip: str, **more: Any) -> dict[str, Any]:
    """Give an entry that is shutting down but still answers."""
    return endpoint(ip, ready=False, serving=True, terminating=True, **more)


def endpoint_slice(
    *endpoints: dict[str, Any],
    of: str = "web",
    namespace: str = "shop",
    ports: Sequence[dict[str, Any]] = ({"name": "", "port": 8080, "protocol": "TCP"},),
    address_type: str = "IPv4",
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Give an EndpointSlice of shop/web."""
    return {
        "metadata": {
            "namespace": namespace,
            "name": f"{of}-slice",
            "labels": {"kubernetes.io/service-name": of, **(labels or {})},
        },
        "addressType": address_type,
        "ports": list(ports),
        "endpoints": list(endpoints),
    }


def node(name: str = "node1", *, ips: Sequence[str] = ("172.18.0.2",), zone: str | None = None) -> dict[str, Any]:
    """Give a Node with InternalIPs."""
    return {
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone} if zone else {}},
        "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in ips]},
    }

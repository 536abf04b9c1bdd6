"""EndpointSlices: which addresses stand behind a Service right now.

Stands for kube-controller-manager's endpointslice controller (pkg/controller/endpointslice, k8s.io/endpointslice). For
each Service with a selector, family and set of ports: slices of at most MAX_ENDPOINTS addresses, with what a proxy must
know of each (ready, serving, terminating, node). Slices that somebody else manages are left alone. Left out: topology
hints, zones, the Endpoints mirror.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from labs.cluster.admission import random_suffix
from labs.cluster.resources import ENDPOINTSLICES, PODS, SERVICES, Object, is_ready, key_of, matches, owner_reference
from labs.cluster.store import Store

MAX_ENDPOINTS = 100
MANAGER = "endpointslice-controller.k8s.io"
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
WATCHED = (SERVICES, PODS, ENDPOINTSLICES)


def reconciler(store: Store) -> Callable[[], None]:
    """The function that brings the slices of all Services up to date."""

    settled: dict[tuple[str, str], object] = {}  # what each Service's slices were last made from

    def reconcile() -> None:
        pods = by_namespace(store.list(PODS))
        states = {namespace: state_of(items) for namespace, items in pods.items()}
        existing: dict[tuple[str, str], list[Object]] = {}
        for item in store.list(ENDPOINTSLICES):
            labels = item["metadata"].get("labels") or {}
            if labels.get(MANAGED_BY) == MANAGER:
                key = (item["metadata"]["namespace"], labels.get(SERVICE_NAME, ""))
                existing.setdefault(key, []).append(item)
        for service in store.list(SERVICES):
            key = key_of(service)
            mine = existing.pop(key, [])
            version = service["metadata"]["resourceVersion"]
            state = (version, states.get(key[0]), [item["metadata"]["resourceVersion"] for item in mine])
            if settled.get(key) == state:
                continue
            if service["spec"].get("selector") and service["spec"]["type"] != "ExternalName":
                namespace = service["metadata"]["namespace"]
                _reconcile_service(store, service, pods.get(namespace, []), mine)
            settled[key] = state
        for orphans in existing.values():
            for item in orphans:
                store.delete(ENDPOINTSLICES, *key_of(item))

    return reconcile


def by_namespace(pods: list[Object]) -> dict[str, list[Object]]:
    """Pods, those of each namespace together."""
    found: dict[str, list[Object]] = {}
    for pod in pods:
        found.setdefault(pod["metadata"]["namespace"], []).append(pod)
    return found


def state_of(items: list[Object]) -> tuple[int, int]:
    """What differs when any of these objects was written, added or removed: every write has a version of its own."""
    return len(items), max(int(item["metadata"]["resourceVersion"]) for item in items)


def _reconcile_service(store: Store, service: Object, pods: list[Object], existing: list[Object]) -> None:
    """Write what differs. A slice keeps its name as long as family and ports stay, and endpoints keep their order."""
    free = list(existing)
    for family, ports, endpoints in wanted_slices(service, pods):
        same_family = [item for item in free if item["addressType"] == family]
        current = next((item for item in same_family if item["ports"] == ports), None)
        if current is None:  # an empty one is as good: its ports meant nothing
            current = next((item for item in same_family if not item["endpoints"]), None)
        if current is None:
            store.create(ENDPOINTSLICES, _slice(service, family, ports, endpoints))
        else:
            free.remove(current)
            store.update(ENDPOINTSLICES, {**current, "ports": ports, "endpoints": endpoints})
    for item in free:
        store.delete(ENDPOINTSLICES, *key_of(item))


def wanted_slices(service: Object, pods: list[Object]) -> Iterator[tuple[str, list[Object], list[Object]]]:
    """The slices that a Service should have: address type, ports, endpoints. An empty one if there are none."""
    for family in service["spec"].get("ipFamilies") or ("IPv4",):
        by_ports: dict[str, list[Object]] = {}
        for pod in pods:
            if not matches(service["spec"]["selector"], pod["metadata"].get("labels")):
                continue
            ip = _pod_ip(pod, family)
            if ip is None or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                continue
            ports = json.dumps(_ports(service, pod))
            by_ports.setdefault(ports, []).append(_endpoint(service, pod, ip))
        if not by_ports:
            yield family, [], []
        for text, endpoints in by_ports.items():
            for start in range(0, len(endpoints), MAX_ENDPOINTS):
                yield family, json.loads(text), endpoints[start : start + MAX_ENDPOINTS]


def _slice(service: Object, family: str, ports: list[Object], endpoints: list[Object]) -> Object:
    namespace, name = key_of(service)
    labels = {**(service["metadata"].get("labels") or {}), SERVICE_NAME: name, MANAGED_BY: MANAGER}
    if service["spec"].get("clusterIP") == "None":
        labels["service.kubernetes.io/headless"] = ""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{random_suffix()}",
            "generateName": f"{name}-",
            "namespace": namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(service)],
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    }


def _pod_ip(pod: Object, family: str) -> str | None:
    for entry in (pod.get("status") or {}).get("podIPs") or ():
        if (":" in entry["ip"]) is (family == "IPv6"):
            return str(entry["ip"])
    return None


def _ports(service: Object, pod: Object) -> list[Object]:
    """The Service's ports as this pod has them: a named targetPort may mean another number in each pod."""
    ports = []
    for port in service["spec"].get("ports") or ():
        number = port["targetPort"]
        if isinstance(number, str):
            number = _named_port(pod, number, port["protocol"])
            if number is None:
                continue
        entry = {"name": port.get("name", ""), "protocol": port["protocol"], "port": number}
        if port.get("appProtocol"):
            entry["appProtocol"] = port["appProtocol"]
        ports.append(entry)
    return ports


def _named_port(pod: Object, name: str, protocol: str) -> int | None:
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return None


def _endpoint(service: Object, pod: Object, ip: str) -> Object:
    serving = is_ready(pod)
    terminating = "deletionTimestamp" in pod["metadata"]
    always = bool(service["spec"].get("publishNotReadyAddresses"))
    endpoint: Object = {
        "addresses": [ip],
        "conditions": {
            "ready": always or (serving and not terminating),
            "serving": always or serving,
            "terminating": terminating,
        },
        "nodeName": pod["spec"].get("nodeName"),
        "targetRef": {
            "kind": "Pod",
            "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    }
    # A pod that names its subdomain after a headless Service gets a DNS name of its own in it.
    spec = pod["spec"]
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        endpoint["hostname"] = spec["hostname"]
    return endpoint

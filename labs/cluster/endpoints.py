"""Endpoints: the older form of EndpointSlices, which some people and programs still look at, or write.

Stands for kube-controller-manager's endpoints controller (pkg/controller/endpoint), which makes one Endpoints object
for each Service with a selector, and its endpointslicemirroring controller (pkg/controller/endpointslicemirroring),
which makes slices from Endpoints that somebody wrote for a Service without one. Left out: the limit of 1,000 addresses
and the annotation with the time of the last change.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from labs.cluster.admission import random_suffix
from labs.cluster.endpointslices import MANAGED_BY, SERVICE_NAME, by_namespace, state_of, wanted_slices
from labs.cluster.resources import (
    ENDPOINTS,
    ENDPOINTSLICES,
    PODS,
    SERVICES,
    Object,
    key_of,
    owner_reference,
)
from labs.cluster.store import Store

WATCHED = (SERVICES, PODS, ENDPOINTS, ENDPOINTSLICES)
MIRROR = "endpointslicemirroring-controller.k8s.io"
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"


def reconciler(store: Store) -> Callable[[], None]:
    """The function that brings Endpoints and mirrored slices up to date."""

    written: dict[tuple[str, str], object] = {}  # those that are ours, and what they were last made from

    def reconcile() -> None:
        pods = by_namespace(store.list(PODS))
        states = {namespace: state_of(items) for namespace, items in pods.items()}
        existing = {key_of(item): item for item in store.list(ENDPOINTS)}
        services = {key_of(service): service for service in store.list(SERVICES)}
        for key, service in services.items():
            if service["spec"].get("selector") and service["spec"]["type"] != "ExternalName":
                current = existing.get(key)
                versions = [item["metadata"]["resourceVersion"] for item in (service, current) if item is not None]
                state = (versions, states.get(key[0]))
                if written.get(key) == state:
                    continue
                written[key] = state
                _write(store, service, current, subsets(service, pods.get(key[0], [])))
        for key in existing.keys() - services.keys():
            if key in written:  # the Service is gone: its Endpoints go too
                store.delete(ENDPOINTS, *key)
        for key in written.keys() - services.keys():
            del written[key]
        _mirror(store, services, existing)

    return reconcile


def subsets(service: Object, pods: list[Object]) -> list[Object]:
    """The subsets of a Service: addresses with the same ports stand together (RepackSubsets)."""
    family = (service["spec"].get("ipFamilies") or ["IPv4"])[0]
    by_ports: dict[str, Object] = {}
    for kind, ports, endpoints in wanted_slices(service, pods):
        if kind != family:
            continue
        for endpoint in endpoints:
            if endpoint["conditions"]["terminating"]:
                continue
            shown = [{key: value for key, value in port.items() if key != "name" or value} for port in ports]
            subset = by_ports.setdefault(json.dumps(shown), {"ports": shown})
            part = "addresses" if endpoint["conditions"]["ready"] else "notReadyAddresses"
            subset.setdefault(part, []).append(_address(endpoint))
    return [
        {key: subset[key] for key in ("addresses", "notReadyAddresses", "ports") if subset.get(key)}
        for _, subset in sorted(by_ports.items())
    ]


def _address(endpoint: Object) -> Object:
    return {
        "ip": endpoint["addresses"][0],
        **({"hostname": endpoint["hostname"]} if "hostname" in endpoint else {}),
        **({"nodeName": endpoint["nodeName"]} if endpoint.get("nodeName") else {}),
        "targetRef": endpoint["targetRef"],
    }


def _write(store: Store, service: Object, current: Object | None, wanted: list[Object]) -> None:
    namespace, name = key_of(service)
    labels = {**(service["metadata"].get("labels") or {})}
    if service["spec"].get("clusterIP") == "None":
        labels["service.kubernetes.io/headless"] = ""
    if current is None:
        item = {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            **({"subsets": wanted} if wanted else {}),
        }
        store.create(ENDPOINTS, item)
        return
    item = {**current, "metadata": {**current["metadata"], "labels": labels}}
    item.pop("subsets", None)
    if wanted:
        item["subsets"] = wanted
    store.update(ENDPOINTS, item)


# --- the mirror -------------------------------------------------------------------------------------------------------


def _mirror(store: Store, services: dict[tuple[str, str], Object], existing: dict[tuple[str, str], Object]) -> None:
    """Slices for Endpoints that somebody wrote himself."""
    slices: dict[tuple[str, str], list[Object]] = {}
    for item in store.list(ENDPOINTSLICES):
        labels = item["metadata"].get("labels") or {}
        if labels.get(MANAGED_BY) == MIRROR:
            slices.setdefault((item["metadata"]["namespace"], labels.get(SERVICE_NAME, "")), []).append(item)
    for key, endpoints in existing.items():
        service = services.get(key)
        skip = (endpoints["metadata"].get("labels") or {}).get(SKIP_MIRROR) == "true"
        if service is not None and not service["spec"].get("selector") and not skip:
            _write_slices(store, endpoints, slices.pop(key, []))
    for orphans in slices.values():
        for item in orphans:
            store.delete(ENDPOINTSLICES, *key_of(item))


def _write_slices(store: Store, endpoints: Object, current: list[Object]) -> None:
    wanted = list(_slices(endpoints))
    for item in current:
        match = next((entry for entry in wanted if entry[:2] == (item["addressType"], item["ports"])), None)
        if match is None:
            store.delete(ENDPOINTSLICES, *key_of(item))
        else:
            wanted.remove(match)
            store.update(ENDPOINTSLICES, {**item, "endpoints": match[2]})
    namespace, name = key_of(endpoints)
    for family, ports, entries in wanted:
        labels = {**(endpoints["metadata"].get("labels") or {}), SERVICE_NAME: name, MANAGED_BY: MIRROR}
        metadata = {
            "name": f"{name}-{random_suffix()}",
            "generateName": f"{name}-",
            "namespace": namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(endpoints)],
        }
        item = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata}
        store.create(ENDPOINTSLICES, {**item, "addressType": family, "ports": ports, "endpoints": entries})


def _slices(endpoints: Object) -> list[tuple[str, list[Object], list[Object]]]:
    found = []
    for subset in endpoints.get("subsets") or ():
        ports = [{"name": "", "protocol": "TCP", **port} for port in subset.get("ports") or ()]
        for family in ("IPv4", "IPv6"):
            entries = [
                {
                    "addresses": [address["ip"]],
                    "conditions": {"ready": part == "addresses"},
                    **{key: address[key] for key in ("hostname", "nodeName", "targetRef") if key in address},
                }
                for part in ("addresses", "notReadyAddresses")
                for address in subset.get(part) or ()
                if (":" in address["ip"]) is (family == "IPv6")
            ]
            if entries:
                found.append((family, ports, entries))
    return found

"""Endpoints: the older form of EndpointSlices, which some people and programs still look at, or write.

Stands for kube-controller-manager's endpoints controller (pkg/controller/endpoint), which makes one Endpoints object
for each Service with a selector, and its endpointslicemirroring controller (pkg/controller/endpointslicemirroring),
which makes slices from Endpoints that somebody wrote for a Service without one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from labs.cluster.admission import random_suffix
from labs.cluster.endpointslices import MANAGED_BY, SERVICE_NAME
from labs.cluster.podendpoints import (
    CHANGED,
    TriggerTimes,
    by_namespace,
    endpoint,
    endpoint_ports,
    labels_for,
    pod_ip,
    pods_behind,
    selects_pods,
    state_of,
)
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
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
MAX_ADDRESSES = 1000
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"


def reconciler(store: Store) -> Callable[[], None]:
    """The function that brings Endpoints and mirrored slices up to date."""

    written: dict[tuple[str, str], object] = {}  # those that are ours, and what they were last made from
    times = TriggerTimes()

    def reconcile() -> None:
        pods = by_namespace(store.list(PODS))
        states = {namespace: state_of(items) for namespace, items in pods.items()}
        existing = {key_of(item): item for item in store.list(ENDPOINTS)}
        services = {key_of(service): service for service in store.list(SERVICES)}
        for key, service in services.items():
            if selects_pods(service):
                current = existing.get(key)
                versions = [item["metadata"]["resourceVersion"] for item in (service, current) if item is not None]
                state = (versions, states.get(key[0]))
                if written.get(key) == state:
                    continue
                written[key] = state
                behind = pods_behind(service, pods.get(key[0], ()))
                _write(store, service, current, subsets(service, behind), times.changed(service, behind))
        for key in existing.keys() - services.keys():
            if key in written:  # the Service is gone: its Endpoints go too
                store.delete(ENDPOINTS, *key)
        for key in written.keys() - services.keys():
            del written[key]
            times.forget(key)
        _mirror(store, services, existing)

    return reconcile


def subsets(service: Object, pods: list[Object]) -> list[Object]:
    """The subsets of a Service's pods: addresses with the same ports stand together (RepackSubsets)."""
    family = (service["spec"].get("ipFamilies") or ["IPv4"])[0]
    always = bool(service["spec"].get("publishNotReadyAddresses"))
    by_ports: dict[str, Object] = {}
    for pod in pods:
        address = pod_ip(pod, family)
        if address is None or ("deletionTimestamp" in pod["metadata"] and not always):
            continue
        ports = endpoint_ports(service, pod)
        if not ports and service["spec"].get("ports"):
            continue  # it has none of the ports that the Service names
        shown = [{key: value for key, value in port.items() if key != "name" or value} for port in ports]
        subset = by_ports.setdefault(json.dumps(shown), {"ports": shown})
        entry = endpoint(service, pod, address, {})
        part = "addresses" if entry["conditions"]["ready"] else "notReadyAddresses"
        subset.setdefault(part, []).append(_address(entry))
    return [
        {key: subset[key] for key in ("addresses", "notReadyAddresses", "ports") if subset.get(key)}
        for _, subset in sorted(by_ports.items())
    ]


def truncated(found: list[Object]) -> tuple[list[Object], bool]:
    """Subsets with at most MAX_ADDRESSES, the ready ones before others, each subset with its share; and whether
    anything was left out (truncateEndpoints)."""
    ready = sum(len(subset.get("addresses") or ()) for subset in found)
    unready = sum(len(subset.get("notReadyAddresses") or ()) for subset in found)
    if ready + unready <= MAX_ADDRESSES:
        return found, False
    part, total, room = "notReadyAddresses", unready, MAX_ADDRESSES - ready
    if ready > MAX_ADDRESSES:
        part, total, room = "addresses", ready, MAX_ADDRESSES
    kept, free = [], room
    for subset in found:
        listed = subset.get(part) or []
        taken = listed[: min(math.ceil(len(listed) / total * room), free)]
        free -= len(taken)
        new = {**subset, part: taken}
        if part == "addresses":
            new.pop("notReadyAddresses", None)
        kept.append({key: value for key, value in new.items() if value})
    return [subset for subset in kept if "addresses" in subset or "notReadyAddresses" in subset], True


def _address(entry: Object) -> Object:
    return {
        "ip": entry["addresses"][0],
        **({"hostname": entry["hostname"]} if "hostname" in entry else {}),
        **({"nodeName": entry["nodeName"]} if "nodeName" in entry else {}),
        "targetRef": entry["targetRef"],
    }


def _write(store: Store, service: Object, current: Object | None, wanted: list[Object], changed: str | None) -> None:
    namespace, name = key_of(service)
    shown, cut = truncated(wanted)
    before = {} if current is None else current["metadata"].get("annotations") or {}
    annotations = {key: value for key, value in before.items() if key not in (CHANGED, OVER_CAPACITY)}
    if cut:
        annotations[OVER_CAPACITY] = "truncated"
    labels = labels_for(service, {})
    same = current is not None and (
        (current.get("subsets") or [], current["metadata"].get("labels") or {}) == (shown, labels)
        and {key: value for key, value in before.items() if key != CHANGED} == annotations
    )
    if same:
        return
    if changed is not None:
        annotations[CHANGED] = changed
    metadata = {"name": name, "namespace": namespace, **({} if current is None else current["metadata"])}
    metadata |= {"labels": labels, "annotations": annotations}
    item = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {k: v for k, v in metadata.items() if v}}
    if shown:
        item["subsets"] = shown
    if current is None:
        store.create(ENDPOINTS, item)
    else:
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
        annotations = {
            key: value
            for key, value in (endpoints["metadata"].get("annotations") or {}).items()
            if key not in (OVER_CAPACITY, CHANGED, LAST_APPLIED)
        }
        metadata = {
            **({"annotations": annotations} if annotations else {}),
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

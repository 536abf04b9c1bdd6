"""EndpointSlices: which addresses stand behind a Service right now.

Stands for kube-controller-manager's endpointslice controller (pkg/controller/endpointslice, k8s.io/endpointslice:
reconciler.go). For each Service with a selector, family and set of ports: slices of at most MAX_ENDPOINTS addresses,
with what a proxy must know of each (ready, serving, terminating, node, zone). What is there stays where it is, so that
one pod that comes or goes changes one slice. Slices that somebody else manages are left alone. Left out: topology
hints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from labs.cluster.admission import random_suffix
from labs.cluster.podendpoints import (
    CHANGED,
    ZONE,
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
from labs.cluster.resources import ENDPOINTSLICES, NODES, PODS, SERVICES, Object, key_of, owner_reference
from labs.cluster.store import Store

MAX_ENDPOINTS = 100
MANAGER = "endpointslice-controller.k8s.io"
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
WATCHED = (SERVICES, PODS, ENDPOINTSLICES, NODES)


def reconciler(store: Store) -> Callable[[], None]:
    """The function that brings the slices of all Services up to date."""

    settled: dict[tuple[str, str], object] = {}  # what each Service's slices were last made from
    times = TriggerTimes()

    def reconcile() -> None:
        pods = by_namespace(store.list(PODS))
        states = {namespace: state_of(items) for namespace, items in pods.items()}
        zones = _zones(store)
        existing = _managed(store)
        services = store.list(SERVICES)
        for service in services:
            key = key_of(service)
            mine = existing.pop(key, [])
            version = service["metadata"]["resourceVersion"]
            state = (version, states.get(key[0]), zones, [item["metadata"]["resourceVersion"] for item in mine])
            if settled.get(key) == state:
                continue
            if selects_pods(service):
                behind = pods_behind(service, pods.get(key[0], ()))
                plan = _plan(service, behind, mine, zones)
                _carry_out(store, plan, times.changed(service, behind))
            settled[key] = state
        for orphans in existing.values():
            for item in orphans:
                store.delete(ENDPOINTSLICES, *key_of(item))
        for key in settled.keys() - set(map(key_of, services)):
            del settled[key]
            times.forget(key)

    return reconcile


def _zones(store: Store) -> dict[str, str]:
    """The zones of the nodes that are in one."""
    labels = {node["metadata"]["name"]: node["metadata"].get("labels") or {} for node in store.list(NODES)}
    return {name: found[ZONE] for name, found in labels.items() if found.get(ZONE)}


def _managed(store: Store) -> dict[tuple[str, str], list[Object]]:
    """Our slices, by the Service that they are for."""
    found: dict[tuple[str, str], list[Object]] = {}
    for item in store.list(ENDPOINTSLICES):
        labels = item["metadata"].get("labels") or {}
        if labels.get(MANAGED_BY) == MANAGER:
            found.setdefault((item["metadata"]["namespace"], labels.get(SERVICE_NAME, "")), []).append(item)
    return found


@dataclass
class _Plan:
    """What is to be written for one Service."""

    create: list[Object] = field(default_factory=list)
    update: list[Object] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)


def _plan(service: Object, pods: list[Object], existing: list[Object], zones: Mapping[str, str]) -> _Plan:
    """What differs from what should be; a slice that would go becomes one that is needed."""
    plan = _Plan()
    families = service["spec"].get("ipFamilies") or ("IPv4",)
    for family in families:
        part = _Plan()
        mine = [item for item in existing if item["addressType"] == family]
        wanted = _wanted(service, pods, family, zones)
        for ports, endpoints in wanted.items():
            same = [item for item in mine if json.dumps(item["ports"]) == ports]
            _fill(service, family, json.loads(ports), same, endpoints, part)
        part.delete += [item for item in mine if json.dumps(item["ports"]) not in wanted]
        if len(part.delete) == len(mine) and not part.create:  # a Service without endpoints has one empty slice
            part.create.append(_slice(service, family, [], []))
        _recycle(service, part)
        plan.create += part.create
        plan.update += part.update
        plan.delete += part.delete
    plan.delete += [item for item in existing if item["addressType"] not in families]
    return plan


def _wanted(
    service: Object, pods: list[Object], family: str, zones: Mapping[str, str]
) -> dict[str, dict[tuple[str, ...], Object]]:
    """The endpoints that there should be: by ports (as text), then by pod and address."""
    found: dict[str, dict[tuple[str, ...], Object]] = {}
    for pod in pods:
        address = pod_ip(pod, family)
        if address is not None:
            entry = endpoint(service, pod, address, zones)
            found.setdefault(json.dumps(endpoint_ports(service, pod)), {})[_identity(entry)] = entry
    return found


def _identity(entry: Object) -> tuple[str, ...]:
    """What makes two endpoints the same one, in different states (endpointset)."""
    reference = entry.get("targetRef") or {}
    return (*entry["addresses"], str(reference.get("uid", "")))


def _fill(
    service: Object,
    family: str,
    ports: list[Object],
    existing: list[Object],
    wanted: dict[tuple[str, ...], Object],
    plan: _Plan,
) -> None:
    """Slices for one set of ports (reconcileByPortMapping). What is there stays; new endpoints go into slices that
    change anyway, the fullest first; what is left over then goes into one other slice if it fits, else into new ones.
    """
    left = dict(wanted)
    changed: list[Object] = []
    unchanged: list[Object] = []
    for item in existing:
        kept = [left.pop(_identity(entry)) for entry in item["endpoints"] if _identity(entry) in left]
        new = {**item, "endpoints": kept}
        if not kept:
            plan.delete.append(item)
        elif kept != item["endpoints"] or _labels(service) != item["metadata"].get("labels"):
            changed.append(new)
        else:
            unchanged.append(new)
    changed.sort(key=lambda item: -len(item["endpoints"]))
    for item in changed:
        _pour(left, item)
    while left:
        room = [item for item in unchanged if len(item["endpoints"]) + len(left) <= MAX_ENDPOINTS]
        target = max(room, key=lambda item: len(item["endpoints"]), default=None)
        if target is None:
            plan.create.append(_slice(service, family, ports, []))
            _pour(left, plan.create[-1])
        else:
            unchanged.remove(target)
            changed.append(target)
            _pour(left, target)
    plan.update += [{**item, "metadata": {**item["metadata"], "labels": _labels(service)}} for item in changed]


def _pour(left: dict[tuple[str, ...], Object], item: Object) -> None:
    """Move as many endpoints into a slice as it takes."""
    for key in list(left)[: MAX_ENDPOINTS - len(item["endpoints"])]:
        item["endpoints"].append(left.pop(key))


def _recycle(service: Object, plan: _Plan) -> None:
    """Write new slices over those that would go."""
    while plan.create and plan.delete:
        old, new = plan.delete.pop(0), plan.create.pop()
        metadata = {**old["metadata"], "labels": _labels(service)}
        written = {**old, "metadata": metadata, "ports": new["ports"], "endpoints": new["endpoints"]}
        if written != old:
            plan.update.append(written)


def _labels(service: Object) -> dict[str, str]:
    return labels_for(service, {SERVICE_NAME: service["metadata"]["name"], MANAGED_BY: MANAGER})


def _slice(service: Object, family: str, ports: list[Object], endpoints: list[Object]) -> Object:
    namespace, name = key_of(service)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{random_suffix()}",
            "generateName": f"{name}-",
            "namespace": namespace,
            "labels": _labels(service),
            "ownerReferences": [owner_reference(service)],
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    }


def _carry_out(store: Store, plan: _Plan, changed: str | None) -> None:
    for item in plan.create:
        store.create(ENDPOINTSLICES, _dated(item, changed))
    for item in plan.update:
        store.update(ENDPOINTSLICES, _dated(item, changed))
    for item in plan.delete:
        store.delete(ENDPOINTSLICES, *key_of(item))


def _dated(item: Object, changed: str | None) -> Object:
    """A slice that tells when what it tells of happened."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "annotations"}
    annotations = {key: value for key, value in (item["metadata"].get("annotations") or {}).items() if key != CHANGED}
    if changed is not None:
        annotations[CHANGED] = changed
    return {**item, "metadata": {**metadata, **({"annotations": annotations} if annotations else {})}}

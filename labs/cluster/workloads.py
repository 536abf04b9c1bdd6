"""Deployments, ReplicaSets and DaemonSets: turn "three of these" into pods.

Stands for kube-controller-manager's deployment, replicaset and daemonset controllers, and names what they make as they
do: a ReplicaSet is called DEPLOYMENT-HASH after its pod template, its pods REPLICASET-xxxxx. Left out: rolling updates
(a changed template replaces the old ReplicaSet at once), history, and adopting pods that somebody else made.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable

from labs.cluster.admission import prepare
from labs.cluster.options import AddressPlan
from labs.cluster.resources import (
    DAEMONSETS,
    DEPLOYMENTS,
    NODES,
    PODS,
    REPLICASETS,
    Object,
    controller_of,
    is_ready,
    key_of,
    owner_reference,
)
from labs.cluster.store import Store

# No vowels and no 0, 1, 3: no words by accident (k8s.io/apimachinery/pkg/util/rand).
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
WATCHED = (DEPLOYMENTS, REPLICASETS, DAEMONSETS, PODS, NODES)


def reconciler(store: Store, plan: AddressPlan) -> Callable[[], None]:
    """The function that brings all workloads of `store` to what their specs say, in one pass."""

    def reconcile() -> None:
        pods = _by_owner(store.list(PODS))
        for deployment in store.list(DEPLOYMENTS):
            _reconcile_deployment(store, plan, deployment)
        live = set()
        for replicaset in store.list(REPLICASETS):
            live.add(replicaset["metadata"]["uid"])
            _reconcile_replicaset(store, plan, replicaset, pods.get(replicaset["metadata"]["uid"], []))
        for daemonset in store.list(DAEMONSETS):
            live.add(daemonset["metadata"]["uid"])
            _reconcile_daemonset(store, plan, daemonset, pods.get(daemonset["metadata"]["uid"], []))
        for owner, orphans in pods.items():
            if owner not in live:
                for pod in orphans:
                    store.delete(PODS, *key_of(pod))

    return reconcile


def template_hash(template: Object) -> str:
    """Nine or ten characters that stand for a pod template (the label pod-template-hash)."""
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()
    return safe_encode(str(int.from_bytes(digest[:4], "big")))


def safe_encode(text: str) -> str:
    """Text in the letters of ALPHABET (rand.SafeEncodeString)."""
    return "".join(ALPHABET[ord(letter) % len(ALPHABET)] for letter in text)


def random_suffix(length: int = 5) -> str:
    """What the API appends for generateName."""
    return "".join(random.choices(ALPHABET, k=length))


def _by_owner(pods: list[Object]) -> dict[str, list[Object]]:
    owned: dict[str, list[Object]] = {}
    for pod in pods:
        owner = controller_of(pod)
        if owner is not None:
            owned.setdefault(owner, []).append(pod)
    return owned


def _reconcile_deployment(store: Store, plan: AddressPlan, deployment: Object) -> None:
    namespace, name = key_of(deployment)
    spec = deployment["spec"]
    hashed = template_hash(spec["template"])
    uid = deployment["metadata"]["uid"]
    mine = [item for item in store.list(REPLICASETS, namespace) if controller_of(item) == uid]
    current = next((item for item in mine if item["metadata"]["name"] == f"{name}-{hashed}"), None)
    for old in mine:
        if old is not current:
            store.delete(REPLICASETS, *key_of(old))
    if current is None:
        current = _create(store, plan, _replicaset(deployment, hashed))
    elif current["spec"]["replicas"] != spec["replicas"]:
        current = store.update(REPLICASETS, {**current, "spec": {**current["spec"], "replicas": spec["replicas"]}})
    status = current.get("status") or {}
    ready = status.get("readyReplicas", 0)
    store.update_status(
        DEPLOYMENTS,
        namespace,
        name,
        {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": status.get("replicas", 0),
            "updatedReplicas": status.get("replicas", 0),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(spec["replicas"] - ready, 0),
        },
    )


def _replicaset(deployment: Object, hashed: str) -> Object:
    namespace, name = key_of(deployment)
    template = copy.deepcopy(deployment["spec"]["template"])
    template["metadata"]["labels"]["pod-template-hash"] = hashed
    selector = {**deployment["spec"]["selector"]["matchLabels"], "pod-template-hash": hashed}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{name}-{hashed}",
            "namespace": namespace,
            "labels": template["metadata"]["labels"],
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": {
            "replicas": deployment["spec"]["replicas"],
            "selector": {"matchLabels": selector},
            "template": template,
        },
    }


def _reconcile_replicaset(store: Store, plan: AddressPlan, replicaset: Object, pods: list[Object]) -> None:
    wanted = replicaset["spec"]["replicas"]
    for _ in range(wanted - len(pods)):
        _create(store, plan, _pod(replicaset, None))
    # The ones that serve stay longest.
    for pod in sorted(pods, key=is_ready)[: max(len(pods) - wanted, 0)]:
        store.delete(PODS, *key_of(pod))
    ready = sum(map(is_ready, pods))
    store.update_status(
        REPLICASETS,
        *key_of(replicaset),
        {
            "observedGeneration": replicaset["metadata"]["generation"],
            "replicas": wanted,
            "fullyLabeledReplicas": wanted,
            "readyReplicas": ready,
            "availableReplicas": ready,
        },
    )


def _reconcile_daemonset(store: Store, plan: AddressPlan, daemonset: Object, pods: list[Object]) -> None:
    nodes = [node["metadata"]["name"] for node in store.list(NODES)]
    placed = {pod["spec"].get("nodeName"): pod for pod in pods}
    for node in nodes:
        if node not in placed:
            _create(store, plan, _pod(daemonset, node))
    ready = sum(map(is_ready, pods))
    store.update_status(
        DAEMONSETS,
        *key_of(daemonset),
        {
            "observedGeneration": daemonset["metadata"]["generation"],
            "desiredNumberScheduled": len(nodes),
            "currentNumberScheduled": len(nodes),
            "updatedNumberScheduled": len(nodes),
            "numberReady": ready,
            "numberAvailable": ready,
            "numberMisscheduled": 0,
        },
    )


def _pod(owner: Object, node: str | None) -> Object:
    template = copy.deepcopy(owner["spec"]["template"])
    namespace, name = key_of(owner)
    metadata = {
        **template["metadata"],
        "name": f"{name}-{random_suffix()}",
        "generateName": f"{name}-",
        "namespace": namespace,
        "ownerReferences": [owner_reference(owner)],
    }
    spec = template["spec"] if node is None else {**template["spec"], "nodeName": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _create(store: Store, plan: AddressPlan, item: Object) -> Object:
    resource, item = prepare(plan, item)
    return store.create(resource, item)

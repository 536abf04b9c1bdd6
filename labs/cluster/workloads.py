"""ReplicaSets and DaemonSets: turn "three of these" into pods.

Stands for kube-controller-manager's replicaset and daemonset controllers (pkg/controller/replicaset, daemon), and names
what they make as they do: the pods of a ReplicaSet are called REPLICASET-xxxxx. A DaemonSet replaces pods of an old
template one after the other. Left out: adopting pods that somebody else made, minReadySeconds, ControllerRevisions (so
`kubectl rollout undo` knows no DaemonSets). Deployments are in `labs.cluster.rollouts`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable

from labs.cluster.admission import ALPHABET, prepare, random_suffix
from labs.cluster.deletion import delete
from labs.cluster.events import Recorder
from labs.cluster.options import AddressPlan
from labs.cluster.resources import (
    DAEMONSETS,
    NODES,
    PODS,
    REPLICASETS,
    Object,
    Resource,
    controller_of,
    is_active,
    is_ready,
    key_of,
    owner_reference,
)
from labs.cluster.store import Store

WATCHED = (REPLICASETS, DAEMONSETS, PODS, NODES)
REVISION_LABEL = "controller-revision-hash"


def reconciler(store: Store, plan: AddressPlan) -> Callable[[], None]:
    """The function that brings all ReplicaSets and DaemonSets of `store` to what their specs say, in one pass."""
    replicaset_events = Recorder(store, "replicaset-controller")
    daemonset_events = Recorder(store, "daemonset-controller")

    def reconcile() -> None:
        pods = _by_owner(store.list(PODS))
        for replicaset in store.list(REPLICASETS):
            mine = pods.get(replicaset["metadata"]["uid"], [])
            _Owner(store, plan, replicaset_events, replicaset).reconcile_replicaset(mine)
        for daemonset in store.list(DAEMONSETS):
            mine = pods.get(daemonset["metadata"]["uid"], [])
            _Owner(store, plan, daemonset_events, daemonset).reconcile_daemonset(mine)

    return reconcile


def template_hash(template: Object) -> str:
    """Nine or ten characters that stand for a pod template (the label pod-template-hash)."""
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()
    return safe_encode(str(int.from_bytes(digest[:4], "big")))


def safe_encode(text: str) -> str:
    """Text in the letters of ALPHABET (rand.SafeEncodeString)."""
    return "".join(ALPHABET[ord(letter) % len(ALPHABET)] for letter in text)


def _by_owner(pods: list[Object]) -> dict[str, list[Object]]:
    owned: dict[str, list[Object]] = {}
    for pod in pods:
        owner = controller_of(pod)
        if owner is not None and is_active(pod):
            owned.setdefault(owner, []).append(pod)
    return owned


class _Owner:
    """One object that owns pods, and what is done for it."""

    def __init__(self, store: Store, plan: AddressPlan, events: Recorder, item: Object) -> None:
        self._store = store
        self._plan = plan
        self._events = events
        self._item = item
        self._ends = "deletionTimestamp" in item["metadata"]

    def reconcile_replicaset(self, pods: list[Object]) -> None:
        wanted = self._item["spec"]["replicas"]
        if not self._ends:
            for _ in range(wanted - len(pods)):
                self._create(None)
            # The ones that serve stay longest.
            for pod in sorted(pods, key=is_ready)[: max(len(pods) - wanted, 0)]:
                self._delete(pod)
        ready = sum(map(is_ready, pods))
        self._report(
            REPLICASETS,
            {
                "replicas": len(pods),
                **({"fullyLabeledReplicas": len(pods)} if pods else {}),
                **({"readyReplicas": ready, "availableReplicas": ready} if ready else {}),
            },
        )

    def reconcile_daemonset(self, pods: list[Object]) -> None:
        selector = self._item["spec"]["template"]["spec"].get("nodeSelector") or {}
        nodes = [
            node["metadata"]["name"]
            for node in self._store.list(NODES)
            if selector.items() <= (node["metadata"].get("labels") or {}).items()
        ]
        revision = template_hash(self._item["spec"]["template"])
        placed = {pod["spec"].get("nodeName"): pod for pod in pods}
        fresh = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(REVISION_LABEL) == revision]
        if not self._ends:
            for node in nodes:
                if node not in placed:
                    self._create(node, {REVISION_LABEL: revision})
            for pod in pods:
                if pod["spec"].get("nodeName") not in nodes:
                    self._delete(pod)
            old = [pod for pod in pods if pod not in fresh]
            if old and len(placed) == len(nodes) and all(map(is_ready, fresh)):
                self._delete(old[0])
        ready = sum(map(is_ready, pods))
        self._report(
            DAEMONSETS,
            {
                "currentNumberScheduled": len(placed.keys() & set(nodes)),
                "desiredNumberScheduled": len(nodes),
                "numberMisscheduled": len(placed.keys() - set(nodes)),
                "numberReady": ready,
                **({"numberAvailable": ready} if ready else {}),
                **({"numberUnavailable": len(nodes) - ready} if ready < len(nodes) else {}),
                **({"updatedNumberScheduled": len(fresh)} if fresh else {}),
            },
        )

    def _create(self, node: str | None, labels: Object | None = None) -> None:
        template = copy.deepcopy(self._item["spec"]["template"])
        namespace, name = key_of(self._item)
        metadata = {
            **{key: value for key, value in template["metadata"].items() if key in ("labels", "annotations")},
            "name": f"{name[:57]}-{random_suffix()}",
            "generateName": f"{name}-",
            "namespace": namespace,
            "ownerReferences": [owner_reference(self._item)],
        }
        metadata["labels"] = {**(metadata.get("labels") or {}), **(labels or {})}
        spec = template["spec"] if node is None else {**template["spec"], "nodeName": node}
        item = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        resource, pod = prepare(self._store.kinds, self._plan, item)
        self._store.create(resource, pod)
        self._events.normal(self._item, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")

    def _delete(self, pod: Object) -> None:
        delete(self._store, PODS, *key_of(pod))
        self._events.normal(self._item, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")

    def _report(self, kind: Resource, status: Object) -> None:
        status["observedGeneration"] = self._item["metadata"]["generation"]
        self._store.update_status(kind, *key_of(self._item), status)

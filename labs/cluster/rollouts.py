"""Deployments: one ReplicaSet for each version of the pod template, and the way from one version to the next.

Stands for kube-controller-manager's deployment controller (pkg/controller/deployment: sync.go, rolling.go, recreate.go,
progress.go; util/deployment_util.go), and names what it makes as that does: a ReplicaSet is called DEPLOYMENT-HASH
after its pod template. Rolling updates keep to maxSurge and maxUnavailable; old ReplicaSets stay as history for
`kubectl rollout undo`. Left out: proportional scaling while two versions run, minReadySeconds, the progress deadline,
and adopting ReplicaSets that somebody else made.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from labs.cluster.admission import prepare
from labs.cluster.events import Recorder
from labs.cluster.options import AddressPlan
from labs.cluster.resources import (
    DEPLOYMENTS,
    PODS,
    REPLICASETS,
    Object,
    controller_of,
    key_of,
    owner_reference,
)
from labs.cluster.store import Store, now
from labs.cluster.workloads import template_hash

WATCHED = (DEPLOYMENTS, REPLICASETS, PODS)
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
HASH_LABEL = "pod-template-hash"
# Annotations of a Deployment that its ReplicaSets don't get.
OWN_ANNOTATIONS = frozenset({"kubectl.kubernetes.io/last-applied-configuration", REVISION, DESIRED, MAXIMUM})


def reconciler(store: Store, plan: AddressPlan) -> Callable[[], None]:
    """The function that brings all Deployments of `store` one step further."""
    events = Recorder(store, "deployment-controller")

    def reconcile() -> None:
        owned: dict[str, list[Object]] = {}
        for item in store.list(REPLICASETS):
            owned.setdefault(controller_of(item) or "", []).append(item)
        for deployment in store.list(DEPLOYMENTS):
            if "deletionTimestamp" not in deployment["metadata"]:
                _Rollout(store, plan, events, deployment, owned.get(deployment["metadata"]["uid"], [])).step()

    return reconcile


class _Rollout:
    """One Deployment and its ReplicaSets, in one pass."""

    def __init__(
        self, store: Store, plan: AddressPlan, events: Recorder, deployment: Object, replicasets: list[Object]
    ) -> None:
        self._store = store
        self._plan = plan
        self._events = events
        self._deployment = deployment
        self._spec = deployment["spec"]
        self._wanted: int = self._spec["replicas"]
        self._hash = template_hash(self._spec["template"])
        self._old = sorted(replicasets, key=lambda item: int(_revision(item)))
        name = f"{deployment['metadata']['name']}-{self._hash}"
        self._new = next((item for item in self._old if item["metadata"]["name"] == name), None)
        if self._new is not None:
            self._old.remove(self._new)

    def step(self) -> None:
        """Do what can be done now; what it changes calls for the next step."""
        if self._spec.get("paused"):
            self._scale_active()
        elif self._spec["strategy"]["type"] == "Recreate":
            self._recreate()
        else:
            self._roll()
        if not self._spec.get("paused"):
            self._forget_history()
        self._report()

    # --- strategies ---------------------------------------------------------------------------------------------------

    def _roll(self) -> None:
        """rolloutRolling: first up, then down, within the bounds."""
        surge, unavailable = self._bounds()
        if self._new is None:
            running = sum(map(_size, self._old))
            self._new = self._create(max(min(self._wanted + surge - running, self._wanted), 0))
        else:
            self._sync_revision()
            self._scale_up_new(surge)
        self._scale_down_old(unavailable)

    def _recreate(self) -> None:
        """rolloutRecreate: nothing of the new version before the old one is gone, down to its last pod."""
        for item in self._old:
            self._scale(item, 0)
        uids = {item["metadata"]["uid"] for item in self._old}
        if any(controller_of(pod) in uids for pod in self._store.list(PODS, self._deployment["metadata"]["namespace"])):
            return
        if self._new is None:
            self._new = self._create(self._wanted)
        else:
            self._sync_revision()
            self._new = self._scale(self._new, self._wanted)

    def _scale_active(self) -> None:
        """While paused, a Deployment still follows its number of replicas."""
        everyone = [*self._old, *([self._new] if self._new else [])]
        active = [item for item in everyone if _size(item)] or everyone[-1:]
        if len(active) == 1:
            scaled = self._scale(active[0], self._wanted)
            if self._new is active[0]:
                self._new = scaled

    def _scale_up_new(self, surge: int) -> None:
        assert self._new is not None
        size = _size(self._new)
        if size > self._wanted:
            target = self._wanted
        else:
            room = self._wanted + surge - sum(map(_size, self._old)) - size
            target = size + max(min(room, self._wanted - size), 0)
        self._new = self._scale(self._new, target)

    def _scale_down_old(self, unavailable: int) -> None:
        """reconcileOldReplicaSets: pods that don't serve first, then as many others as new ones serve."""
        assert self._new is not None
        least = self._wanted - unavailable
        total = sum(map(_size, self._old)) + _size(self._new)
        budget = total - least - (_size(self._new) - _available(self._new))
        for index, item in enumerate(self._old):
            sick = min(_size(item) - _available(item), budget)
            if sick > 0:
                budget -= sick
                self._old[index] = self._scale(item, _size(item) - sick)
        spare = sum(map(_available, self._old)) + _available(self._new) - least
        for index, item in enumerate(self._old):
            less = min(_size(item), spare, budget)
            if less > 0:
                spare -= less
                budget -= less
                self._old[index] = self._scale(item, _size(item) - less)

    def _bounds(self) -> tuple[int, int]:
        """maxSurge and maxUnavailable as numbers of pods (ResolveFenceposts)."""
        rolling = self._spec["strategy"]["rollingUpdate"]
        surge = _share(rolling["maxSurge"], self._wanted, math.ceil)
        unavailable = _share(rolling["maxUnavailable"], self._wanted, math.floor)
        return (surge, unavailable) if surge or unavailable else (0, 1)

    # --- ReplicaSets --------------------------------------------------------------------------------------------------

    def _create(self, replicas: int) -> Object:
        namespace, name = key_of(self._deployment)
        template = copy.deepcopy(self._spec["template"])
        template["metadata"]["labels"][HASH_LABEL] = self._hash
        selector = copy.deepcopy(self._spec["selector"])
        selector.setdefault("matchLabels", {})[HASH_LABEL] = self._hash
        metadata = {
            "name": f"{name}-{self._hash}",
            "namespace": namespace,
            "labels": dict(template["metadata"]["labels"]),
            "annotations": self._annotations(self._next_revision()),
            "ownerReferences": [owner_reference(self._deployment)],
        }
        spec = {"replicas": replicas, "selector": selector, "template": template}
        item = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec}
        resource, item = prepare(self._store.kinds, self._plan, item)
        created = self._store.create(resource, item)
        if replicas:
            message = f"Scaled up replica set {created['metadata']['name']} to {replicas}"
            self._events.normal(self._deployment, "ScalingReplicaSet", message)
        return created

    def _annotations(self, revision: str) -> Object:
        own = self._deployment["metadata"].get("annotations") or {}
        surge = self._bounds()[0] if self._spec["strategy"]["type"] == "RollingUpdate" else 0
        return {
            **{key: value for key, value in own.items() if key not in OWN_ANNOTATIONS},
            DESIRED: str(self._wanted),
            MAXIMUM: str(self._wanted + surge),
            REVISION: revision,
        }

    def _next_revision(self) -> str:
        return str(max((int(_revision(item)) for item in self._old), default=0) + 1)

    def _sync_revision(self) -> None:
        """A version that comes back (`kubectl rollout undo`) is the newest again."""
        assert self._new is not None
        newest = max((int(_revision(item)) for item in self._old), default=0)
        revision = _revision(self._new) if int(_revision(self._new)) > newest else str(newest + 1)
        annotations = {**(self._new["metadata"].get("annotations") or {}), **self._annotations(revision)}
        metadata = {**self._new["metadata"], "annotations": annotations}
        self._new = self._store.update(REPLICASETS, {**self._new, "metadata": metadata})

    def _scale(self, item: Object, replicas: int) -> Object:
        before = _size(item)
        if before == replicas:
            return item
        spec = {**item["spec"], "replicas": replicas}
        current = self._store.get(REPLICASETS, *key_of(item))
        scaled = self._store.update(REPLICASETS, {**current, "spec": spec})
        direction = "up" if replicas > before else "down"
        message = f"Scaled {direction} replica set {item['metadata']['name']} to {replicas} from {before}"
        self._events.normal(self._deployment, "ScalingReplicaSet", message)
        return scaled

    def _forget_history(self) -> None:
        """Remove the oldest of the ReplicaSets that nothing is left of (cleanupDeployment)."""
        idle = [item for item in self._old if not _size(item) and not (item.get("status") or {}).get("replicas")]
        surplus = len(idle) - self._spec.get("revisionHistoryLimit", 10)
        for item in idle[: max(surplus, 0)]:
            self._store.delete(REPLICASETS, *key_of(item))
            self._old.remove(item)

    # --- status -------------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        everyone = [*self._old, *([self._new] if self._new else [])]
        new = (self._new or {}).get("status") or {}
        total = sum((item.get("status") or {}).get("replicas", 0) for item in everyone)
        available = sum(map(_available, everyone))
        counts = {
            "replicas": total,
            "updatedReplicas": new.get("replicas", 0),
            "readyReplicas": sum((item.get("status") or {}).get("readyReplicas", 0) for item in everyone),
            "availableReplicas": available,
            "unavailableReplicas": max(sum(map(_size, everyone)) - available, 0),
        }
        current = self._store.get(DEPLOYMENTS, *key_of(self._deployment))
        status = {
            "observedGeneration": self._deployment["metadata"]["generation"],
            **{name: count for name, count in counts.items() if count},
            "conditions": self._conditions(current, counts),
        }
        annotations = current["metadata"].get("annotations") or {}
        if self._new is not None:
            annotations = {**annotations, REVISION: _revision(self._new)}
        metadata = {**current["metadata"], **({"annotations": annotations} if annotations else {})}
        self._store.update(DEPLOYMENTS, {**current, "metadata": metadata, "status": status})

    def _conditions(self, current: Object, counts: dict[str, int]) -> list[Object]:
        unavailable = self._bounds()[1] if self._spec["strategy"]["type"] == "RollingUpdate" else 0
        enough = counts["availableReplicas"] >= self._wanted - unavailable
        words = "Deployment has minimum availability." if enough else "Deployment does not have minimum availability."
        reason = "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable"
        conditions = {"Available": ("True" if enough else "False", reason, words)}
        complete = (
            counts["updatedReplicas"] == counts["replicas"] == counts["availableReplicas"] == self._wanted
            and self._new is not None
        )
        name = self._new["metadata"]["name"] if self._new else ""
        if self._spec.get("paused"):
            conditions["Progressing"] = ("Unknown", "DeploymentPaused", "Deployment is paused")
        elif complete:
            done = f'ReplicaSet "{name}" has successfully progressed.'
            conditions["Progressing"] = ("True", "NewReplicaSetAvailable", done)
        else:
            conditions["Progressing"] = ("True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.')
        before = {entry["type"]: entry for entry in (current.get("status") or {}).get("conditions") or ()}
        return [_condition(kind, *entry, before.get(kind)) for kind, entry in conditions.items()]


def _condition(kind: str, status: str, reason: str, message: str, before: Object | None) -> Object:
    """A condition; one that says what it said before keeps its times."""
    if before is not None and (before["status"], before["reason"], before["message"]) == (status, reason, message):
        return before
    moved = before["lastTransitionTime"] if before is not None and before["status"] == status else now()
    return {
        "type": kind,
        "status": status,
        "lastUpdateTime": now(),
        "lastTransitionTime": moved,
        "reason": reason,
        "message": message,
    }


def _share(value: Any, total: int, rounded: Callable[[float], int]) -> int:
    """A number of pods, or "25%" of `total`."""
    if isinstance(value, str):
        return rounded(int(value.rstrip("%")) * total / 100)
    return int(value)


def _revision(replicaset: Object) -> str:
    return str((replicaset["metadata"].get("annotations") or {}).get(REVISION, "0"))


def _size(replicaset: Object) -> int:
    return int(replicaset["spec"]["replicas"])


def _available(replicaset: Object) -> int:
    return int((replicaset.get("status") or {}).get("availableReplicas", 0))

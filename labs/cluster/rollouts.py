"""Deployments: the way from one version of a pod template to the next.

Stands for kube-controller-manager's deployment controller (pkg/controller/deployment: deployment_controller.go,
rolling.go, recreate.go, scaling in sync.go). Rolling updates keep to maxSurge and maxUnavailable; a Deployment that is
scaled while two versions run keeps their proportion; old ReplicaSets stay as history for `kubectl rollout undo`.

What belongs here: how many pods each version is to have. What does not: the ReplicaSets themselves
(`labs.cluster.deploymentrevisions`), conditions (`labs.cluster.deploymentprogress`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from labs.cluster import deploymentprogress as progress
from labs.cluster.claims import Claims
from labs.cluster.deploymentrevisions import (
    DESIRED,
    MAXIMUM,
    REVISION,
    Revisions,
    available,
    max_surge,
    max_unavailable,
    revision,
    size,
)
from labs.cluster.events import Recorder
from labs.cluster.options import AddressPlan
from labs.cluster.resources import DEPLOYMENTS, PODS, REPLICASETS, Object, controller_of, key_of
from labs.cluster.store import Store

WATCHED = (DEPLOYMENTS, REPLICASETS, PODS)


def reconciler(store: Store, plan: AddressPlan) -> Callable[[], float | None]:
    """The function that brings all Deployments of `store` one step further; gives the seconds until it wants to be
    called again."""
    events = Recorder(store, "deployment-controller")

    def reconcile() -> float | None:
        replicasets = Claims(store, REPLICASETS, store.list(REPLICASETS))
        times = []
        for deployment in store.list(DEPLOYMENTS):
            revisions = Revisions(store, plan, events, deployment, replicasets.of(deployment))
            times.append(_Rollout(store, deployment, revisions).step())
        return min((time for time in times if time is not None), default=None)

    return reconcile


class _Rollout:
    """One Deployment and its ReplicaSets, in one pass."""

    def __init__(self, store: Store, deployment: Object, revisions: Revisions) -> None:
        self._store = store
        self._deployment = deployment
        self._spec = deployment["spec"]
        self._wanted: int = self._spec["replicas"]
        self._revisions = revisions
        self._conditions = progress.conditions_of(deployment)

    def step(self) -> float | None:
        """Do what can be done now; what it changes calls for the next step. Gives the seconds to the deadline."""
        if "deletionTimestamp" in self._deployment["metadata"]:
            return self._report(rollout=False)
        progress.note_pause(self._deployment, self._conditions)
        if self._spec.get("paused") or self._is_scaled():
            self._revisions.sync(None)
            self._scale()
            return self._report(rollout=False)
        if self._spec["strategy"]["type"] == "Recreate":
            self._recreate()
        else:
            self._roll()
        if progress.is_complete(self._deployment, self._deployment.get("status") or {}):
            self._revisions.forget_history()
        return self._report(rollout=True)

    # --- strategies ---------------------------------------------------------------------------------------------------

    def _roll(self) -> None:
        """rolloutRolling: first up, then down, within the bounds."""
        running = sum(map(size, self._revisions.old))
        self._sync(max(min(self._wanted + max_surge(self._deployment) - running, self._wanted), 0))
        if not self._scale_up_new():
            self._scale_down_old()

    def _recreate(self) -> None:
        """rolloutRecreate: nothing of the new version before the old one is gone, down to its last pod."""
        if self._revisions.new is not None:
            self._sync(None)
        for item in tuple(self._revisions.old):
            self._revisions.scale(item, 0)
        uids = {item["metadata"]["uid"] for item in self._revisions.old}
        pods = self._store.list(PODS, self._deployment["metadata"]["namespace"])
        if any(controller_of(pod) in uids and not _has_ended(pod) for pod in pods):
            return
        self._sync(self._wanted)
        assert self._revisions.new is not None
        self._revisions.scale(self._revisions.new, self._wanted)

    def _sync(self, replicas: int | None) -> None:
        created = self._revisions.sync(replicas)
        progress.note_revision(self._deployment, self._conditions, self._revisions, created=created)

    def _scale_up_new(self) -> bool:
        """reconcileNewReplicaSet; gives whether its size has changed."""
        new = self._revisions.new
        assert new is not None
        target = self._wanted
        if size(new) < self._wanted:
            room = self._wanted + max_surge(self._deployment) - sum(map(size, self._revisions.all))
            target = size(new) + max(min(room, self._wanted - size(new)), 0)
        return size(self._revisions.scale(new, target)) != size(new)

    def _scale_down_old(self) -> None:
        """reconcileOldReplicaSets: pods that don't serve first, then as many others as new ones serve."""
        new = self._revisions.new
        assert new is not None
        least = self._wanted - max_unavailable(self._deployment)
        budget = sum(map(size, self._revisions.all)) - least - (size(new) - available(new))
        for item in tuple(self._revisions.old):
            sick = min(size(item) - available(item), budget)
            if sick > 0:
                budget -= sick
                self._revisions.scale(item, size(item) - sick)
        spare = min(sum(map(available, self._revisions.all)) - least, budget)
        for item in tuple(self._revisions.old):
            less = min(size(item), spare)
            if less > 0:
                spare -= less
                self._revisions.scale(item, size(item) - less)

    # --- scaling ------------------------------------------------------------------------------------------------------

    def _is_scaled(self) -> bool:
        """Whether the Deployment was given another size since its ReplicaSets were scaled last (isScalingEvent)."""
        known = ((item["metadata"].get("annotations") or {}).get(DESIRED) for item in self._revisions.active)
        return any(text is not None and text != str(self._wanted) for text in known)

    def _scale(self) -> None:
        """Follow a new number of replicas without rolling out anything (scale)."""
        active, new = self._revisions.active, self._revisions.new
        if len(active) <= 1:
            everyone = active or ([new] if new is not None else sorted(self._revisions.old, key=revision)[-1:])
            for item in everyone:  # the only one that has pods, or the newest
                self._revisions.scale(item, self._wanted)
        elif new is not None and size(new) == available(new) == self._wanted:
            for item in tuple(self._revisions.old):
                self._revisions.scale(item, 0)
        elif self._spec["strategy"]["type"] == "RollingUpdate":
            self._scale_in_proportion(active)

    def _scale_in_proportion(self, active: list[Object]) -> None:
        """Each version grows or shrinks by its share; the largest takes what rounding leaves."""
        allowed = self._wanted + max_surge(self._deployment) if self._wanted else 0
        change = allowed - sum(map(size, active))
        age = {item["metadata"]["name"]: number for number, item in enumerate(self._revisions.all)}
        newest_first = -1 if change > 0 else 1
        active = sorted(active, key=lambda item: (-size(item), newest_first * age[item["metadata"]["name"]]))
        done, sizes = 0, []
        for item in active:
            part = self._part(item) if change else 0
            part = min(part, change - done) if change > 0 else max(part, change - done)
            done += part
            sizes.append(size(item) + part)
        sizes[0] = max(sizes[0] + change - done, 0)
        for item, target in zip(active, sizes, strict=True):
            self._revisions.scale(item, target)

    def _part(self, item: Object) -> int:
        """By how much a ReplicaSet's size changes when the Deployment's does (getReplicaSetFraction)."""
        if not self._wanted:
            return -size(item)
        text = (item["metadata"].get("annotations") or {}).get(MAXIMUM, "")
        before = int(text) if text.isdecimal() and int(text) else (self._deployment["status"].get("replicas") or 1)
        exact = size(item) * (self._wanted + max_surge(self._deployment)) / before
        return math.floor(exact + 0.5) - size(item)

    # --- status -------------------------------------------------------------------------------------------------------

    def _report(self, *, rollout: bool) -> float | None:
        current = self._store.get(DEPLOYMENTS, *key_of(self._deployment))
        told = {**self._deployment, "status": current.get("status") or {}}
        status = progress.status_of(told, self._conditions, self._revisions)
        if rollout:
            progress.note_progress(told, self._conditions, self._revisions, status)
        status["conditions"] = list(self._conditions.values())
        annotations = current["metadata"].get("annotations") or {}
        if self._revisions.new is not None:
            annotations = {**annotations, REVISION: str(revision(self._revisions.new))}
        metadata = {**current["metadata"], **({"annotations": annotations} if annotations else {})}
        self._store.update(DEPLOYMENTS, {**current, "metadata": metadata, "status": status})
        return progress.seconds_left(told, self._conditions) if rollout else None


def _has_ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")

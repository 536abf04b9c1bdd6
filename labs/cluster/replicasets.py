"""ReplicaSets: turn "three of these" into pods.

Stands for kube-controller-manager's replicaset controller (pkg/controller/replicaset), and names what it makes as that
does: the pods of a ReplicaSet are called REPLICASET-xxxxx. Left out: making
many pods in growing steps (slow start); all that are missing are made at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from labs.cluster.claims import Claims
from labs.cluster.events import Recorder
from labs.cluster.options import AddressPlan
from labs.cluster.ownedpods import PodMaker, count_available, first_to_go, is_ending
from labs.cluster.resources import PODS, REPLICASETS, Object, controller_of, is_active, is_ready, key_of
from labs.cluster.selectors import matches_selector
from labs.cluster.store import Store, now
from tracer.errors import K8snetError

WATCHED = (REPLICASETS, PODS)
RETRY_SECONDS = 5.0  # until a pod that the API refused is tried once more
FAILURE = "ReplicaFailure"


def reconciler(store: Store, plan: AddressPlan) -> Callable[[], float | None]:
    """The function that brings all ReplicaSets of `store` to what their specs say, in one pass; gives the seconds until
    it wants to be called again."""
    maker = PodMaker(store, plan, Recorder(store, "replicaset-controller"))

    def reconcile() -> float | None:
        pods = Claims(store, PODS, filter(is_active, store.list(PODS)))
        replicasets = store.list(REPLICASETS)
        families: dict[str, list[str]] = {}
        for item in replicasets:
            families.setdefault(controller_of(item) or item["metadata"]["uid"], []).append(item["metadata"]["uid"])
        times = []
        for item in replicasets:
            family = families[controller_of(item) or item["metadata"]["uid"]]
            times.append(_Pass(store, maker, pods, item, family).run())
        return min((time for time in times if time is not None), default=None)

    return reconcile


class _Pass:
    """One ReplicaSet, in one pass."""

    def __init__(self, store: Store, maker: PodMaker, pods: Claims, item: Object, family: list[str]) -> None:
        self._store = store
        self._maker = maker
        self._item = item
        self._mine = pods.of(item)
        self._pods = pods
        self._family = family
        self._failure: tuple[str, str] | None = None

    def run(self) -> float | None:
        if "deletionTimestamp" not in self._item["metadata"]:
            self._manage()
        seconds = self._item["spec"].get("minReadySeconds", 0)
        available, next_time = count_available(self._mine, seconds)
        self._report(available)
        return RETRY_SECONDS if self._failure else next_time

    def _manage(self) -> None:
        """manageReplicas: as many pods as are wanted."""
        missing = self._item["spec"]["replicas"] - len(self._mine)
        try:
            for _ in range(missing):
                self._maker.create(self._item)
        except K8snetError as error:
            if not is_ending(error):
                self._failure = ("FailedCreate", error.message)
        if missing < 0:
            for pod in first_to_go(self._mine, self._crowd())[:-missing]:
                self._maker.delete(self._item, pod)

    def _crowd(self) -> Counter[str]:
        """How many pods of the application, in all of its versions, are on each node."""
        family = (pod for uid in self._family for pod in self._pods.owned_by(uid))
        return Counter(pod["spec"].get("nodeName", "") for pod in family)

    def _report(self, available: int) -> None:
        labels = self._item["spec"]["template"]["metadata"].get("labels") or {}
        counts = {
            "fullyLabeledReplicas": sum(
                matches_selector({"matchLabels": labels}, pod["metadata"].get("labels")) for pod in self._mine
            ),
            "readyReplicas": sum(map(is_ready, self._mine)),
            "availableReplicas": available,
        }
        current = self._store.get(REPLICASETS, *key_of(self._item))
        conditions = self._conditions(current)
        status = {
            "replicas": len(self._mine),
            **{name: count for name, count in counts.items() if count},
            "observedGeneration": self._item["metadata"]["generation"],
            **({"conditions": conditions} if conditions else {}),
        }
        self._store.update(REPLICASETS, {**current, "status": status})

    def _conditions(self, current: Object) -> list[Object]:
        known = (current.get("status") or {}).get("conditions") or []
        others = [entry for entry in known if entry["type"] != FAILURE]
        if self._failure is None:
            return others
        reason, message = self._failure
        before = next((entry for entry in known if entry["type"] == FAILURE), None)
        if before is not None and before["reason"] == reason:
            return [*others, before]
        failure = {"type": FAILURE, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
        return [*others, failure]

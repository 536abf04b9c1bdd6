"""DaemonSets: one pod on each node that can take it, and other ones step by step.

Stands for kube-controller-manager's daemonset controller (pkg/controller/daemon: daemon_controller.go, update.go). It
says in each pod's affinity which node it is for, and the scheduler puts it there. Left out: the template's generation
as a number (a deprecated annotation).
"""

from __future__ import annotations

import copy
import datetime
import math
from collections.abc import Callable
from typing import NamedTuple

from labs.cluster.claims import Claims
from labs.cluster.controllerrevisions import HASH_LABEL, current_revision, forget_old
from labs.cluster.events import Recorder
from labs.cluster.nodefit import NodeState, matches_node_affinity
from labs.cluster.options import AddressPlan
from labs.cluster.ownedpods import PodMaker, count_available, is_ending, share, until_available
from labs.cluster.resources import CONTROLLERREVISIONS, DAEMONSETS, NODES, PODS, Object, is_ready, key_of
from labs.cluster.store import Store
from labs.cluster.taints import NO_EXECUTE, NO_SCHEDULE, untolerated
from tracer.errors import K8snetError

WATCHED = (DAEMONSETS, PODS, NODES, CONTROLLERREVISIONS)
RETRY_SECONDS = 5.0
_BORNE = (
    ("not-ready", NO_EXECUTE),
    ("unreachable", NO_EXECUTE),
    ("disk-pressure", NO_SCHEDULE),
    ("memory-pressure", NO_SCHEDULE),
    ("pid-pressure", NO_SCHEDULE),
    ("unschedulable", NO_SCHEDULE),
)


def reconciler(store: Store, plan: AddressPlan) -> Callable[[], float | None]:
    """The function that brings all DaemonSets of `store` one step further; gives the seconds until it wants to be
    called again."""
    events = Recorder(store, "daemonset-controller")
    maker = PodMaker(store, plan, events)

    def reconcile() -> float | None:
        daemonsets = store.list(DAEMONSETS)
        if not daemonsets:
            return None
        nodes = [NodeState(node) for node in store.list(NODES)]
        pods = Claims(store, PODS, store.list(PODS))
        revisions = Claims(store, CONTROLLERREVISIONS, store.list(CONTROLLERREVISIONS))
        times = [_Pass(store, maker, events, item, pods.of(item), nodes).run(revisions) for item in daemonsets]
        return min((time for time in times if time is not None), default=None)

    return reconcile


class _Both(NamedTuple):
    """The pods of the new and of the old template on one node."""

    new: Object | None
    old: Object | None


class _Pass:
    """One DaemonSet, in one pass."""

    def __init__(
        self, store: Store, maker: PodMaker, events: Recorder, item: Object, pods: list[Object], nodes: list[NodeState]
    ) -> None:
        self._store = store
        self._maker = maker
        self._events = events
        self._item = item
        self._pods = pods
        self._seconds: int = item["spec"].get("minReadySeconds", 0)
        self._template = _as_pod(item)
        self._wanted = {node.name for node in nodes if _should_run(self._template, node)}
        self._borne = {node.name for node in nodes if _may_stay(self._template, node)}
        self._failed = False

    def run(self, revisions: Claims) -> float | None:
        if "deletionTimestamp" in self._item["metadata"]:
            return None
        revision = current_revision(self._store, revisions, self._item)
        digest: str = revision["metadata"]["labels"][HASH_LABEL]
        try:
            self._manage(digest)
            if self._item["spec"]["updateStrategy"]["type"] == "RollingUpdate":
                self._roll(digest)
        except K8snetError as error:
            self._failed = not is_ending(error)
        forget_old(self._store, revisions, self._item, (_hash_of(pod) for pod in self._pods))
        next_time = self._report(digest)
        return RETRY_SECONDS if self._failed else next_time

    # --- which pods there should be -----------------------------------------------------------------------------------

    def _manage(self, digest: str) -> None:
        """A pod where there should be one and is none, none where there should not be (manage)."""
        placed = self._placed()
        for node in sorted(self._wanted - placed.keys()):
            self._create(node, digest)
        for node, pods in placed.items():
            if node not in self._borne:
                for pod in filter(_stays, pods):
                    self._delete(pod)
                continue
            for pod in pods:
                if (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded") and _stays(pod):
                    words = f"Found failed daemon pod {'/'.join(key_of(pod))} on node {node}, will try to kill it"
                    self._events.warning(self._item, "FailedDaemonPod", words)
                    self._delete(pod)
            for kind in _by_template(pods, digest):  # one of each template at most, the oldest
                for pod in sorted(kind, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))[1:]:
                    self._delete(pod)

    def _placed(self) -> dict[str, list[Object]]:
        """The pods of each node, also those that the scheduler has not put there yet."""
        found: dict[str, list[Object]] = {}
        for pod in self._pods:
            node = pod["spec"].get("nodeName") or _target(pod)
            if node:
                found.setdefault(node, []).append(pod)
        return found

    # --- from one template to the next --------------------------------------------------------------------------------

    def _roll(self, digest: str) -> None:
        """rollingUpdate: as many nodes at a time as maxUnavailable or maxSurge allow."""
        rolling = self._item["spec"]["updateStrategy"].get("rollingUpdate") or {}
        surge = share(rolling.get("maxSurge", 0), len(self._wanted), math.ceil)
        unavailable = share(rolling.get("maxUnavailable", 1), len(self._wanted), math.ceil)
        states = {
            node: _Both(*(kind[0] if kind else None for kind in _by_template(pods, digest)))
            for node, pods in self._placed().items()
            if node in self._wanted
        }
        if surge:
            self._surge(states, surge, digest)
        else:
            self._replace(states, unavailable or 1)

    def _replace(self, states: dict[str, _Both], most: int) -> None:
        broken = [both.old for both in states.values() if both.old and not both.new and not self._available(both.old)]
        working = [both.old for both in states.values() if both.old and not both.new and self._available(both.old)]
        busy = sum(
            1 for both in states.values() if both.new is not None and (both.old or not self._available(both.new))
        )
        busy += sum(1 for both in states.values() if both == (None, None))
        for pod in [*broken, *working[: max(most - busy, 0)]]:
            self._delete(pod)

    def _surge(self, states: dict[str, _Both], most: int, digest: str) -> None:
        busy, urgent, others = 0, list[str](), list[str]()
        for node, both in states.items():
            if both.old is None:
                continue
            if both.new is None:
                (others if self._available(both.old) else urgent).append(node)
            elif self._available(both.new):
                self._delete(both.old)
            else:
                busy += 1
        for node in [*urgent, *others[: max(most - busy, 0)]]:
            self._create(node, digest)

    def _available(self, pod: Object) -> bool:
        return until_available(pod, self._seconds, datetime.datetime.now(datetime.UTC)) == 0

    def _create(self, node: str, digest: str) -> None:
        spec = copy.deepcopy(self._template["spec"])
        _aim(spec, node)
        self._pods.append(self._maker.create(self._item, {HASH_LABEL: digest}, spec))

    def _delete(self, pod: Object) -> None:
        self._maker.delete(self._item, pod)
        found = self._store.find(PODS, *key_of(pod))
        self._pods = [one for one in self._pods if one is not pod] + ([found] if found is not None else [])

    # --- status -------------------------------------------------------------------------------------------------------

    def _report(self, digest: str) -> float | None:
        placed = {node: _oldest(pods) for node, pods in self._placed().items()}
        running = [placed[node] for node in sorted(self._wanted & placed.keys())]
        available, next_time = count_available(running, self._seconds)
        optional = {
            "updatedNumberScheduled": sum(1 for pod in running if _hash_of(pod) == digest),
            "numberAvailable": available,
            "numberUnavailable": len(self._wanted) - available,
        }
        status = {
            "currentNumberScheduled": len(running),
            "desiredNumberScheduled": len(self._wanted),
            "numberMisscheduled": len(placed.keys() - self._wanted),
            "numberReady": sum(map(is_ready, running)),
            **{name: count for name, count in optional.items() if count},
            "observedGeneration": self._item["metadata"]["generation"],
        }
        self._store.update_status(DAEMONSETS, *key_of(self._item), status)
        return next_time


def _as_pod(item: Object) -> Object:
    """The pod that a DaemonSet wants, with what it bears on any node (AddOrUpdateDaemonPodTolerations)."""
    spec = copy.deepcopy(item["spec"]["template"]["spec"])
    keys = [*_BORNE, *([("network-unavailable", NO_SCHEDULE)] if spec.get("hostNetwork") else [])]
    borne = [{"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": effect} for key, effect in keys]
    spec["tolerations"] = [*(spec.get("tolerations") or ()), *borne]
    return {"metadata": {"name": item["metadata"]["name"], "namespace": item["metadata"]["namespace"]}, "spec": spec}


def _should_run(pod: Object, node: NodeState) -> bool:
    """Whether a node should have a pod (NodeShouldRunDaemonPod); whether it fits there is up to the scheduler."""
    return _matches(pod, node) and untolerated(node.item, pod["spec"]["tolerations"], (NO_SCHEDULE, NO_EXECUTE)) is None


def _may_stay(pod: Object, node: NodeState) -> bool:
    return _matches(pod, node) and untolerated(node.item, pod["spec"]["tolerations"], (NO_EXECUTE,)) is None


def _matches(pod: Object, node: NodeState) -> bool:
    name = pod["spec"].get("nodeName")
    return name in (None, "", node.name) and matches_node_affinity(pod, node)


def _aim(spec: Object, node: str) -> None:
    """Say in a pod's affinity that it is for one node, in place of all other nodes that it may name
    (ReplaceDaemonSetPodNodeNameNodeAffinity)."""
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [{"matchFields": [field]}]}


def _target(pod: Object) -> str:
    """The node that a pod is for, by its affinity (GetTargetNodeName); "" when it says none."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for entry in term.get("matchFields") or ():
            if entry["key"] == "metadata.name" and entry["operator"] == "In" and len(entry["values"]) == 1:
                return str(entry["values"][0])
    return ""


def _hash_of(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(HASH_LABEL, ""))


def _stays(pod: Object) -> bool:
    return "deletionTimestamp" not in pod["metadata"]


def _by_template(pods: list[Object], digest: str) -> tuple[list[Object], list[Object]]:
    """Those of the new template and those of others, without those that end."""
    staying = [pod for pod in pods if _stays(pod)]
    return [pod for pod in staying if _hash_of(pod) == digest], [pod for pod in staying if _hash_of(pod) != digest]


def _oldest(pods: list[Object]) -> Object:
    return min(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

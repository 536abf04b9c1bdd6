"""Taints of nodes: who bears them, who has to go, and those that follow from a node's state.

Stands for k8s.io/component-helpers/scheduling/corev1 (tolerations), and of kube-controller-manager for the node
lifecycle controller, as far as it writes taints from a node's state (pkg/controller/nodelifecycle), and the taint
eviction controller (pkg/controller/tainteviction), which deletes pods that don't tolerate NoExecute. Left out: nodes
that nobody hears of any more, zones, rate limits.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable

from labs.cluster.deletion import delete
from labs.cluster.events import Recorder
from labs.cluster.resources import NODES, PODS, Object, is_ready, key_of
from labs.cluster.store import Store, now

WATCHED = (NODES, PODS)
NO_SCHEDULE, PREFER_NO_SCHEDULE, NO_EXECUTE = "NoSchedule", "PreferNoSchedule", "NoExecute"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
NOT_READY = "node.kubernetes.io/not-ready"


def tolerates(toleration: Object, taint: Object) -> bool:
    """Whether a toleration bears a taint (ToleratesTaint)."""
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(toleration.get("key")) and (toleration.get("value") or "") == (taint.get("value") or "")


def untolerated(node: Object, tolerations: Iterable[Object], effects: tuple[str, ...]) -> Object | None:
    """The first taint of a node with one of these effects that none of the tolerations bears; None if there is none."""
    given = tuple(tolerations)
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] in effects and not any(tolerates(toleration, taint) for toleration in given):
            found: Object = taint
            return found
    return None


def reconciler(store: Store) -> Callable[[], float | None]:
    """The function that taints nodes by their state and evicts who does not bear it; gives the seconds until it wants
    to be called again."""
    events = Recorder(store, "taint-eviction-controller")

    def reconcile() -> float | None:
        nodes = {}
        for node in store.list(NODES):
            nodes[node["metadata"]["name"]] = _taint_by_state(store, node)
        if not any(node["spec"].get("taints") for node in nodes.values()):
            return None
        moment, next_time = datetime.datetime.now(datetime.UTC), None
        for pod in store.list(PODS):
            placed = nodes.get(pod["spec"].get("nodeName", ""))
            left = None if placed is None or "deletionTimestamp" in pod["metadata"] else _time_left(placed, pod, moment)
            if left is not None and left > 0:
                next_time = min(left, next_time or left)
            elif left is not None:
                events.normal(pod, "TaintManagerEviction", f"Marking for deletion Pod {'/'.join(key_of(pod))}")
                delete(store, PODS, *key_of(pod))
        return next_time

    return reconcile


def _taint_by_state(store: Store, node: Object) -> Object:
    """The node with the taints that its state calls for, and without those that it does no longer."""
    wanted = []
    if node["spec"].get("unschedulable"):
        wanted.append((UNSCHEDULABLE, NO_SCHEDULE))
    if (node.get("status") or {}).get("conditions") and not is_ready(node):
        wanted += [(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)]
    taints = node["spec"].get("taints") or []
    kept = [
        taint
        for taint in taints
        if taint["key"] not in (UNSCHEDULABLE, NOT_READY) or (taint["key"], taint["effect"]) in wanted
    ]
    there = {(taint["key"], taint["effect"]) for taint in kept}
    new = [{"key": key, "effect": effect, "timeAdded": now()} for key, effect in wanted if (key, effect) not in there]
    if kept == taints and not new:
        return node
    spec = {key: value for key, value in node["spec"].items() if key != "taints"}
    return store.update(NODES, {**node, "spec": {**spec, **({"taints": [*kept, *new]} if kept or new else {})}})


def _time_left(node: Object, pod: Object, moment: datetime.datetime) -> float | None:
    """How many seconds a pod may stay on its node; None if for ever."""
    tolerations = pod["spec"].get("tolerations") or ()
    times = []
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] != NO_EXECUTE:
            continue
        matching = [entry for entry in tolerations if tolerates(entry, taint)]
        if not matching:
            return 0.0
        seconds = [entry["tolerationSeconds"] for entry in matching if entry.get("tolerationSeconds") is not None]
        if seconds:
            since = taint.get("timeAdded")
            began = datetime.datetime.fromisoformat(since) if since else moment
            times.append((began - moment).total_seconds() + max(min(seconds), 0))
    return min(times, default=None)

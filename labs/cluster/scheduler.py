"""Which node a new pod goes to.

Stands for kube-scheduler with two of its plugins: NodeAffinity (nodeSelector only) and PodTopologySpread, which spreads
the pods of one owner. Left out: resources, taints and tolerations (pods run on the control plane's node too), affinity,
preemption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from labs.cluster.events import Recorder
from labs.cluster.resources import NODES, PODS, Object, controller_of, is_active, key_of
from labs.cluster.store import Store, now

WATCHED = (PODS, NODES)


def reconciler(store: Store) -> Callable[[], None]:
    """The function that gives every pod that has none a node, if one fits."""

    events = Recorder(store, "default-scheduler")
    unplaced: set[str] = set()

    def reconcile() -> None:
        pods = store.list(PODS)
        nodes = store.list(NODES)
        pending = [pod for pod in pods if not pod["spec"].get("nodeName") and is_active(pod)]
        if not pending or not nodes:
            return
        load = Counter(pod["spec"].get("nodeName") for pod in pods if not pod["spec"].get("hostNetwork"))
        siblings = Counter((controller_of(pod), pod["spec"].get("nodeName")) for pod in pods)
        for pod in pending:
            fitting = [node["metadata"]["name"] for node in nodes if _fits(pod, node)]
            if not fitting:
                if pod["metadata"]["uid"] not in unplaced:
                    unplaced.add(pod["metadata"]["uid"])
                    _report_unschedulable(store, events, pod, len(nodes))
                continue
            owner = controller_of(pod)
            chosen = min(fitting, key=lambda name: (owner and siblings[owner, name], load[name], name))
            load[chosen] += 1
            siblings[owner, chosen] += 1
            bound = _bind(store, pod, chosen)
            name = "/".join(key_of(pod))
            events.normal(bound, "Scheduled", f"Successfully assigned {name} to {chosen}")

    return reconcile


def _fits(pod: Object, node: Object) -> bool:
    selector = pod["spec"].get("nodeSelector") or {}
    return bool(selector.items() <= (node["metadata"].get("labels") or {}).items())


def _bind(store: Store, pod: Object, node: str) -> Object:
    condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now(), "lastProbeTime": None}
    current = store.get(PODS, *key_of(pod))
    status = {**current["status"], "conditions": [condition]}
    return store.update(PODS, {**current, "spec": {**current["spec"], "nodeName": node}, "status": status})


def _report_unschedulable(store: Store, events: Recorder, pod: Object, nodes: int) -> None:
    message = (
        f"0/{nodes} nodes are available: {nodes} node(s) didn't match Pod's node affinity/selector. "
        f"preemption: 0/{nodes} nodes are available: {nodes} Preemption is not helpful for scheduling."
    )
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "lastProbeTime": None,
        "lastTransitionTime": now(),
        "reason": "Unschedulable",
        "message": message,
    }
    store.update_status(PODS, *key_of(pod), {**pod["status"], "conditions": [condition]})
    events.warning(pod, "FailedScheduling", message)

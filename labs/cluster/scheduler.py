"""Which node a new pod goes to.

Stands for kube-scheduler with two of its plugins: NodeAffinity (nodeSelector only) and PodTopologySpread, which spreads
the pods of one owner. Left out: resources, taints and tolerations (pods run on the control plane's node too), affinity,
preemption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from labs.cluster.resources import NODES, PODS, Object, controller_of, key_of
from labs.cluster.store import Store, now

WATCHED = (PODS, NODES)


def reconciler(store: Store) -> Callable[[], None]:
    """The function that gives every pod that has none a node, if one fits."""

    def reconcile() -> None:
        pods = store.list(PODS)
        nodes = store.list(NODES)
        pending = [pod for pod in pods if not pod["spec"].get("nodeName")]
        if not pending or not nodes:
            return
        load = Counter(pod["spec"].get("nodeName") for pod in pods if not pod["spec"].get("hostNetwork"))
        siblings = Counter((controller_of(pod), pod["spec"].get("nodeName")) for pod in pods)
        for pod in pending:
            fitting = [node["metadata"]["name"] for node in nodes if _fits(pod, node)]
            if not fitting:
                continue
            owner = controller_of(pod)
            chosen = min(fitting, key=lambda name: (owner and siblings[owner, name], load[name], name))
            load[chosen] += 1
            siblings[owner, chosen] += 1
            _bind(store, pod, chosen)

    return reconcile


def _fits(pod: Object, node: Object) -> bool:
    selector = pod["spec"].get("nodeSelector") or {}
    return bool(selector.items() <= (node["metadata"].get("labels") or {}).items())


def _bind(store: Store, pod: Object, node: str) -> None:
    condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now(), "lastProbeTime": None}
    status = {**pod["status"], "conditions": [condition]}
    store.update(PODS, {**store.get(PODS, *key_of(pod)), "spec": {**pod["spec"], "nodeName": node}, "status": status})

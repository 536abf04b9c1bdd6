"""Which node a new pod goes to.

Stands for kube-scheduler: its queue (by priority), its filters (`labs.cluster.nodefit`) and, in place of its scores, an
order of the same intent: nodes without taints that the pod would rather avoid, then those that its preferences name,
then those with the fewest pods of the same owner, then the emptiest. Left out: preemption (a pod that does not fit
waits, whatever its priority), profiles, and the taint that keeps pods away from a control plane: they run there too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from labs.cluster.events import Recorder
from labs.cluster.nodefit import NodeState, Refusal, matches_node_terms, refusal
from labs.cluster.resources import NODES, PODS, Object, controller_of, is_active, key_of
from labs.cluster.store import Store, now
from labs.cluster.taints import PREFER_NO_SCHEDULE, untolerated

WATCHED = (PODS, NODES)
NAME = "default-scheduler"


def reconciler(store: Store) -> Callable[[], None]:
    """The function that gives every pod that has none a node, if one fits."""

    events = Recorder(store, NAME)

    def reconcile() -> None:
        pods = store.list(PODS)
        pending = [
            pod
            for pod in pods
            if not pod["spec"].get("nodeName") and is_active(pod) and pod["spec"].get("schedulerName", NAME) == NAME
        ]
        if not pending:
            return
        nodes = {node["metadata"]["name"]: NodeState(node) for node in store.list(NODES)}
        for pod in pods:
            node = nodes.get(pod["spec"].get("nodeName", ""))
            if node is not None and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                node.add(pod)
        for pod in sorted(pending, key=lambda pod: -pod["spec"].get("priority", 0)):
            _place(store, events, pod, list(nodes.values()))

    return reconcile


def _place(store: Store, events: Recorder, pod: Object, nodes: list[NodeState]) -> None:
    refusals = {node.name: refusal(pod, node, nodes) for node in nodes}
    fitting = [node for node in nodes if refusals[node.name] is None]
    if not fitting:
        _report_unschedulable(store, events, pod, words([entry for entry in refusals.values() if entry is not None]))
        return
    chosen = min(fitting, key=lambda node: _rank(pod, node))
    chosen.add(pod)
    bound = _bind(store, pod, chosen.name)
    events.normal(bound, "Scheduled", f"Successfully assigned {'/'.join(key_of(pod))} to {chosen.name}")


def _rank(pod: Object, node: NodeState) -> tuple[bool, int, int, int, str]:
    """What makes a node worse than another."""
    owner = controller_of(pod)
    siblings = sum(1 for one in node.pods if owner is not None and controller_of(one) == owner)
    load = sum(1 for one in node.pods if not one["spec"].get("hostNetwork"))
    avoided = untolerated(node.item, pod["spec"].get("tolerations") or (), (PREFER_NO_SCHEDULE,)) is not None
    return avoided, -_preference(pod, node), siblings, load, node.name


def _preference(pod: Object, node: NodeState) -> int:
    """How much the pod's node affinity prefers a node."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    return sum(entry["weight"] for entry in preferred if matches_node_terms(node, [entry["preference"]]))


def _bind(store: Store, pod: Object, node: str) -> Object:
    condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now(), "lastProbeTime": None}
    current = store.get(PODS, *key_of(pod))
    status = {**current["status"], "conditions": [condition]}
    return store.update(PODS, {**current, "spec": {**current["spec"], "nodeName": node}, "status": status})


def words(refusals: Sequence[Refusal]) -> str:
    """Why no node takes a pod (FitError.Error), and what preemption makes of it."""
    none = f"0/{len(refusals)} nodes are available"
    if not refusals:
        return "no nodes available to schedule pods"
    reasons = Counter(reason for entry in refusals for reason in entry.reasons)
    victims = Counter(
        "Preemption is not helpful for scheduling" if entry.final else "No preemption victims found for incoming pod"
        for entry in refusals
    )
    return f"{none}: {_counted(reasons)}. preemption: {none}: {_counted(victims)}."


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))


def _report_unschedulable(store: Store, events: Recorder, pod: Object, message: str) -> None:
    """Tell of a pod that no node takes, once for each reason."""
    known = next(
        (entry for entry in pod["status"].get("conditions") or () if entry["type"] == "PodScheduled"),
        {"status": "", "message": "", "lastTransitionTime": now()},
    )
    if (known["status"], known.get("message")) == ("False", message):
        return
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "lastProbeTime": None,
        "lastTransitionTime": known["lastTransitionTime"] if known["status"] == "False" else now(),
        "reason": "Unschedulable",
        "message": message,
    }
    store.update_status(PODS, *key_of(pod), {**pod["status"], "conditions": [condition]})
    events.warning(pod, "FailedScheduling", message)

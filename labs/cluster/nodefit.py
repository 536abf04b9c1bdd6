"""Whether a node can take a pod, and why not, in the scheduler's own words.

Stands for the filter plugins of kube-scheduler (pkg/scheduler/framework/plugins: nodeunschedulable, tainttoleration,
nodeaffinity, nodeports, noderesources, podtopologyspread, interpodaffinity), tried in the order of its default profile:
the first that refuses gives the reason. Left out: volumes, scheduling gates, namespace selectors of affinity terms,
minDomains and node policies of topology spread constraints.

What belongs here: one pod, the nodes, yes or no. What does not: which of the fitting nodes is best
(`labs.cluster.scheduler`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from labs.cluster import quantities
from labs.cluster.resources import Object
from labs.cluster.selectors import matches_selector, satisfies
from labs.cluster.taints import NO_EXECUTE, NO_SCHEDULE, UNSCHEDULABLE, tolerates, untolerated

HostPort = tuple[str, str, int]


@dataclass(slots=True)
class NodeState:
    """A node and what the pods on it take. `averse`: those that keep others away (required anti-affinity)."""

    item: Object
    pods: list[Object] = field(default_factory=list)
    averse: list[Object] = field(default_factory=list)
    used: dict[str, Fraction] = field(default_factory=dict)
    ports: set[HostPort] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.item["metadata"]["name"])

    @property
    def labels(self) -> Object:
        """The node's labels."""
        return self.item["metadata"].get("labels") or {}

    def add(self, pod: Object) -> None:
        """Count a pod that is on the node, or will be."""
        self.pods.append(pod)
        if _required(pod, "podAntiAffinity"):
            self.averse.append(pod)
        self.ports.update(host_ports(pod))
        for name, amount in quantities.requests(pod).items():
            self.used[name] = self.used.get(name, Fraction()) + amount


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node does not take a pod. `final`: it would not help if other pods went."""

    reasons: tuple[str, ...]
    final: bool


def refusal(pod: Object, node: NodeState, nodes: Sequence[NodeState]) -> Refusal | None:
    """Why `node` can't take `pod`, None when it can. `nodes`: all of them."""
    for name in _asked_by_name(pod):
        if name != node.name:
            return Refusal(("node is filtered out by the prefilter result",), final=True)
    for test in _FILTERS:
        found = test(pod, node, nodes)
        if found is not None:
            return found
    return None


def host_ports(pod: Object) -> set[HostPort]:
    """The ports of its node that a pod takes: protocol, address, number."""
    return {
        (port.get("protocol", "TCP"), port.get("hostIP") or "0.0.0.0", port["hostPort"])
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or ()
        if port.get("hostPort")
    }


def matches_node_terms(node: NodeState, terms: Sequence[Object]) -> bool:
    """Whether a node satisfies one of the terms of a node selector; an empty term satisfies nobody."""
    return any(
        bool(term.get("matchExpressions") or term.get("matchFields"))
        and all(satisfies(entry, node.labels) for entry in term.get("matchExpressions") or ())
        and all(satisfies(entry, {"metadata.name": node.name}) for entry in term.get("matchFields") or ())
        for term in terms
    )


def matches_node_affinity(pod: Object, node: NodeState) -> bool:
    """Whether a node is one of those that a pod asks for (GetRequiredNodeAffinity)."""
    selector = pod["spec"].get("nodeSelector") or {}
    terms = (_required(pod, "nodeAffinity") or {}).get("nodeSelectorTerms")
    return selector.items() <= node.labels.items() and (terms is None or matches_node_terms(node, terms))


def _asked_by_name(pod: Object) -> list[str]:
    """The only node that a pod may go to, as the pods of DaemonSets say it; [] when there is no such."""
    terms = (_required(pod, "nodeAffinity") or {}).get("nodeSelectorTerms") or []
    names = {
        tuple(entry["values"])
        for term in terms
        for entry in term.get("matchFields") or ()
        if (entry["key"], entry["operator"]) == ("metadata.name", "In")
    }
    return list(names.pop()) if len(terms) == 1 and len(names) == 1 else []


def _required(pod: Object, kind: str) -> Any:
    """What must be: a node selector for nodeAffinity, a list of terms for the others; None if there is none."""
    affinity = (pod["spec"].get("affinity") or {}).get(kind) or {}
    return affinity.get("requiredDuringSchedulingIgnoredDuringExecution")


# --- filters, in their order ------------------------------------------------------------------------------------------


def _unschedulable(pod: Object, node: NodeState, _: Sequence[NodeState]) -> Refusal | None:
    taint = {"key": UNSCHEDULABLE, "effect": NO_SCHEDULE}
    if node.item["spec"].get("unschedulable") and not any(
        tolerates(entry, taint) for entry in pod["spec"].get("tolerations") or ()
    ):
        return Refusal(("node(s) were unschedulable",), final=True)
    return None


def _taints(pod: Object, node: NodeState, _: Sequence[NodeState]) -> Refusal | None:
    taint = untolerated(node.item, pod["spec"].get("tolerations") or (), (NO_SCHEDULE, NO_EXECUTE))
    if taint is None:
        return None
    return Refusal((f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}",), final=True)


def _node_affinity(pod: Object, node: NodeState, _: Sequence[NodeState]) -> Refusal | None:
    if matches_node_affinity(pod, node):
        return None
    return Refusal(("node(s) didn't match Pod's node affinity/selector",), final=True)


def _ports(pod: Object, node: NodeState, _: Sequence[NodeState]) -> Refusal | None:
    for protocol, address, number in host_ports(pod):
        for taken in node.ports:
            same = taken[0] == protocol and taken[2] == number
            if same and (address == taken[1] or "0.0.0.0" in (address, taken[1])):
                return Refusal(("node(s) didn't have free ports for the requested pod ports",), final=False)
    return None


def _resources(pod: Object, node: NodeState, _: Sequence[NodeState]) -> Refusal | None:
    allocatable = (node.item.get("status") or {}).get("allocatable")
    if not allocatable:
        return None  # nobody has said yet what there is
    reasons = []
    if len(node.pods) + 1 > quantities.parse(allocatable.get("pods", 0)):
        reasons.append("Too many pods")
    for name, amount in sorted(quantities.requests(pod).items()):
        if amount and amount + node.used.get(name, 0) > quantities.parse(allocatable.get(name, 0)):
            reasons.append(f"Insufficient {name}")
    return Refusal(tuple(reasons), final=False) if reasons else None


def _spread(pod: Object, node: NodeState, nodes: Sequence[NodeState]) -> Refusal | None:
    for constraint in pod["spec"].get("topologySpreadConstraints") or ():
        if constraint.get("whenUnsatisfiable") != "DoNotSchedule":
            continue
        key, selector = constraint["topologyKey"], constraint.get("labelSelector") or {}
        words = "node(s) didn't match pod topology spread constraints"
        if key not in node.labels:
            return Refusal((f"{words} (missing required label)",), final=True)
        counts: dict[str, int] = {}
        for other in nodes:
            if key in other.labels and _node_affinity(pod, other, nodes) is None:
                found = sum(1 for one in other.pods if _selected(one, selector, [pod["metadata"]["namespace"]]))
                counts[other.labels[key]] = counts.get(other.labels[key], 0) + found
        here = counts.get(node.labels[key], 0) + matches_selector(selector, pod["metadata"].get("labels"))
        if here - min(counts.values(), default=0) > constraint["maxSkew"]:
            return Refusal((words,), final=False)
    return None


def _pod_affinity(pod: Object, node: NodeState, nodes: Sequence[NodeState]) -> Refusal | None:
    for term, others in _terms(pod, "podAffinity"):
        there = any(_term_selects(term, others, one) for one in _neighbours(term, node, nodes))
        alone = not any(_term_selects(term, others, one) for other in nodes for one in other.pods)
        first = alone and _term_selects(term, others, pod) and term["topologyKey"] in node.labels
        if not there and not first:
            return Refusal(("node(s) didn't match pod affinity rules",), final=True)
    for term, others in _terms(pod, "podAntiAffinity"):
        if any(_term_selects(term, others, one) for one in _neighbours(term, node, nodes)):
            return Refusal(("node(s) didn't match pod anti-affinity rules",), final=False)
    for other in nodes:
        for one in other.averse:
            for term, others in _terms(one, "podAntiAffinity"):
                if _same_place(term, node, other) and _term_selects(term, others, pod):
                    return Refusal(("node(s) didn't satisfy existing pods anti-affinity rules",), final=False)
    return None


def _terms(pod: Object, kind: str) -> Iterator[tuple[Object, list[str]]]:
    """The required terms of a pod, and the namespaces that each of them looks at."""
    for term in _required(pod, kind) or ():
        yield term, term.get("namespaces") or [pod["metadata"]["namespace"]]


def _neighbours(term: Object, node: NodeState, nodes: Sequence[NodeState]) -> Iterator[Object]:
    for other in nodes:
        if _same_place(term, node, other):
            yield from other.pods


def _same_place(term: Object, node: NodeState, other: NodeState) -> bool:
    key = term["topologyKey"]
    return key in node.labels and node.labels[key] == other.labels.get(key)


def _term_selects(term: Object, namespaces: list[str], pod: Object) -> bool:
    return _selected(pod, term.get("labelSelector"), namespaces)


def _selected(pod: Object, selector: Object | None, namespaces: list[str]) -> bool:
    ends = "deletionTimestamp" in pod["metadata"]
    inside = pod["metadata"]["namespace"] in namespaces
    return not ends and inside and matches_selector(selector, pod["metadata"].get("labels"))


_FILTERS: tuple[Callable[[Object, NodeState, Sequence[NodeState]], Refusal | None], ...] = (
    _unschedulable,
    _taints,
    _node_affinity,
    _ports,
    _resources,
    _spread,
    _pod_affinity,
)

"""Checks that nothing else was broken, or worked around, on the way.

What belongs here: what holds in every healthy cluster. What does not: what one step asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from labs.engine.checks.context import Context
from labs.engine.checks.kernel import explain
from labs.engine.outcome import Outcome, failed, passed
from labs.engine.world import get
from tracer.errors import UsageError


def invariant(context: Context, *, name: str) -> Outcome:
    """One of INVARIANTS holds. Its reason is its name."""
    if name not in INVARIANTS:
        raise UsageError(f"there is no invariant {name}; known: {', '.join(INVARIANTS)}")
    return INVARIANTS[name](context)


def _nodes_ready(context: Context) -> Outcome:
    for node in get(context.world, "nodes"):
        ready = {one["type"]: one["status"] for one in node["status"]["conditions"]}.get("Ready")
        if ready != "True":
            name = node["metadata"]["name"]
            return failed(
                "nodes-ready", expected=f"{name} to be Ready", seen=f"Ready is {ready}", look="kubectl get nodes"
            )
    return passed("all nodes are Ready")


def _dns_works(context: Context) -> Outcome:
    ran = context.world.run("default/client", "getent", "hosts", "kubernetes.default")
    if ran.code != 0:
        look = "sudo k8snet-lab exec default/client -- dig +search kubernetes.default"
        return failed(
            "dns-works", expected="default/client to resolve kubernetes.default", seen="it does not", look=look
        )
    return passed("DNS works")


def _rules_follow(context: Context) -> Outcome:
    """On each node, every ClusterIP with ready endpoints leads to as many backends as it has endpoints."""
    slices = get(context.world, "endpointslices", namespace="*")
    ready: dict[tuple[str, str], int] = {}
    for item in slices:
        key = item["metadata"]["namespace"], item["metadata"]["labels"].get("kubernetes.io/service-name", "")
        count = sum((one.get("conditions") or {}).get("ready") is not False for one in item.get("endpoints") or ())
        ready[key] = ready.get(key, 0) + count
    for node in context.world.nodes():
        for service in get(context.world, "services", namespace="*"):
            meta, spec = service["metadata"], service["spec"]
            wanted = ready.get((meta["namespace"], meta["name"]), 0)
            if spec.get("clusterIP") in (None, "", "None") or not wanted:
                continue
            port = spec["ports"][0]
            to = f"{spec['clusterIP']}:{port['port']}/{port['protocol'].lower()}"
            has = len(explain(context, node, to)["backends"])
            if has != wanted:
                return failed(
                    "rules-follow",
                    expected=f"{node} to send {meta['namespace']}/{meta['name']} to its {wanted} endpoints",
                    seen=f"{has} backends in the rules",
                    look=f"sudo k8snet-lab exec {node} -- k8snet-trace explain {to}",
                )
    return passed("the rules of all nodes follow the Services")


INVARIANTS: Mapping[str, Callable[[Context], Outcome]] = {
    "dns-works": _dns_works,
    "nodes-ready": _nodes_ready,
    "rules-follow": _rules_follow,
}

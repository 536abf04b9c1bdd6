"""Checks that nothing else was broken, or worked around, on the way.

What belongs here: what holds in every healthy cluster. What does not: what one step asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from labs.engine.checks.context import Context
from labs.engine.checks.objects import ready_addresses
from labs.engine.outcome import Outcome, failed, passed
from tracer.errors import K8snetError, UsageError


def invariant(context: Context, *, name: str) -> Outcome:
    """One of INVARIANTS holds. Its reason is its name."""
    if name not in INVARIANTS:
        raise UsageError(f"there is no invariant {name}; known: {', '.join(INVARIANTS)}")
    return INVARIANTS[name](context)


def _nodes_ready(context: Context) -> Outcome:
    for node in context.world.get("nodes"):
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


def _kube_proxy_everywhere(context: Context) -> Outcome:
    """The DaemonSet kube-proxy has a ready pod on each node."""
    nodes = len(context.world.get("nodes"))
    found = context.world.get("daemonset", "kube-proxy", "kube-system")
    ready = 0 if found is None else found["status"].get("numberReady", 0)
    if ready != nodes:
        return failed(
            "kube-proxy-everywhere",
            expected=f"kube-proxy ready on all {nodes} nodes",
            seen=f"it is ready on {ready}",
            look="kubectl -n kube-system get daemonset kube-proxy",
        )
    return passed(f"kube-proxy is ready on all {nodes} nodes")


def _rules_follow(context: Context) -> Outcome:
    """On each node, every ClusterIP with ready endpoints leads to just these."""
    with ThreadPoolExecutor() as at_once:  # each node takes a third of a second
        asked = {node: at_once.submit(_endpoints_of_addresses, context, node) for node in context.world.nodes()}
        slices, services = (context.world.get(kind, namespace="*") for kind in ("endpointslices", "services"))
    ready: dict[tuple[str, str, bool], set[str]] = {}
    for item in slices:
        name = item["metadata"]["labels"].get("kubernetes.io/service-name", "")
        key = item["metadata"]["namespace"], name, item.get("addressType") == "IPv6"
        ready.setdefault(key, set()).update(ready_addresses([item]))
    for node, answer in asked.items():
        kept = answer.result()
        for service in services:
            meta, ip = service["metadata"], service["spec"].get("clusterIP") or "None"
            wanted = ready.get((meta["namespace"], meta["name"], ":" in ip), set())
            for port in service["spec"].get("ports") or () if wanted and ip != "None" else ():
                has = kept.get((ip, port["port"], port["protocol"]), set())
                if has != wanted:
                    to = f"{ip}:{port['port']}/{port['protocol'].lower()}"
                    return failed(
                        "rules-follow",
                        expected=f"{node} to send {meta['namespace']}/{meta['name']} to its endpoints, "
                        + ", ".join(sorted(wanted)),
                        seen=f"it sends it to {', '.join(sorted(has)) or 'none'}",
                        look=f"sudo k8snet-lab exec {node} -- k8snet-trace explain {to}",
                    )
    return passed("the rules of all nodes follow the Services")


def _endpoints_of_addresses(context: Context, node: str) -> dict[tuple[str, int, str], set[str]]:
    """Address, port and protocol of each Service port, as a node's rules (or maps) have it -> its endpoints."""
    return {
        (address["ip"], address["port"], one["protocol"]): {endpoint["ip"] for endpoint in one["endpoints"]}
        for one in context.world.services(node)
        for address in one["addresses"]
    }


# iptables mode: the chains that packets come by, and those of kube-proxy that they must be sent through.
JUMPS = {
    "nat": {("PREROUTING", "KUBE-SERVICES"), ("OUTPUT", "KUBE-SERVICES"), ("POSTROUTING", "KUBE-POSTROUTING")},
    "filter": {("FORWARD", "KUBE-FORWARD"), ("FORWARD", "KUBE-SERVICES"), ("OUTPUT", "KUBE-SERVICES")},
}


def _rules_in_place(context: Context) -> Outcome:
    """On each node, packets still come by the chains of kube-proxy, in iptables mode."""
    for node in context.world.nodes():
        ran = context.world.run(node, "iptables-save")
        if ran.code != 0:
            raise K8snetError(f"iptables-save on {node}: {ran.err.strip()}")
        tables = {name: rules for name, _, rules in (part.partition("\n") for part in ran.out.split("\n*"))}
        for table, wanted in JUMPS.items():
            lines = tables.get(table, "").splitlines()
            jumps = {(rule[1], rule[-1]) for line in lines if (rule := line.split())[:1] == ["-A"]}
            for chain, target in sorted(wanted - jumps):
                return failed(
                    "rules-in-place",
                    expected=f"{chain} in the table {table} of {node} to lead to {target}, as kube-proxy has it",
                    seen="that rule is gone",
                    look=f"sudo k8snet-lab exec {node} -- iptables -t {table} -S {chain}",
                )
    return passed("kube-proxy's rules are in place on all nodes")


INVARIANTS: Mapping[str, Callable[[Context], Outcome]] = {
    "dns-works": _dns_works,
    "kube-proxy-everywhere": _kube_proxy_everywhere,
    "nodes-ready": _nodes_ready,
    "rules-follow": _rules_follow,
    "rules-in-place": _rules_in_place,
}

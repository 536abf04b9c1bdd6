"""Checks of what a node's rules have counted: each DNAT rule of kube-proxy counts the new flows that it rewrote.

The nat table sees the first packet of a flow only, so its counters count flows. They begin anew when kube-proxy writes
a Service's rules again. In iptables mode only, whichever iptables it is.

What belongs here: reading these rules and their counters. What does not: making flows (`traffic`).
"""

from __future__ import annotations

import re

from labs.engine.checks.context import Context
from labs.engine.outcome import Outcome, failed, passed
from tracer.errors import K8snetError

# iptables-save -c: [packets:bytes] -A KUBE-SEP-… --comment "NAMESPACE/NAME:PORT" … -j DNAT --to-destination IP:PORT
_DNAT = re.compile(
    r'\[(?P<count>\d+):\d+\] -A (?P<chain>KUBE-SEP-\S+) .*--comment "?(?P<service>[^ :"]+)(:[^ "]*)?"? .*'
    r"-j DNAT .*--to-destination (?P<endpoint>\S+)"
)


def flows(
    context: Context,
    *,
    node: str,
    service: str,
    namespace: str = "default",
    at_least: int,
    endpoints: int | None = None,
) -> Outcome:
    """A node's rules have sent at least so many new flows to a Service, to so many of its endpoints.

    Reasons: few, endpoints.
    """
    found = {key: count for key, count in counted(context, node, namespace, service).items() if count}
    number, name = sum(found.values()), f"{namespace}/{service}"
    look = f"sudo k8snet-lab exec {node} -- iptables-save -c -t nat"
    if number < at_least:
        expected = f"at least {at_least} new flows to {name} through the rules of {node}"
        return failed("few", expected=expected, seen=f"they have counted {number}", look=look)
    if endpoints is not None and len(found) != endpoints:
        expected = f"new flows to {endpoints} endpoints of {name} through the rules of {node}"
        return failed("endpoints", expected=expected, seen=f"to {len(found)}", look=look)
    return passed(f"{number} new flows to {name}: {', '.join(f'{key}: {found[key]}' for key in sorted(found))}")


def counted(context: Context, node: str, namespace: str, service: str) -> dict[str, int]:
    """Endpoint (IP:PORT) of a Service -> how many new flows the node's rules have sent there. Raises K8snetError."""
    found: dict[str, int] = {}
    for rule in _rules(context, node, namespace, service):
        found[rule["endpoint"]] = found.get(rule["endpoint"], 0) + int(rule["count"])
    return found


def endpoint_of_chains(context: Context, node: str, namespace: str, service: str) -> dict[str, str]:
    """Chain KUBE-SEP-… of a Service on a node -> its endpoint, IP:PORT. Raises K8snetError."""
    return {rule["chain"]: rule["endpoint"] for rule in _rules(context, node, namespace, service)}


def _rules(context: Context, node: str, namespace: str, service: str) -> list[re.Match[str]]:
    ran = context.world.run(node, "iptables-save", "-c", "-t", "nat")
    if ran.code != 0:
        raise K8snetError(f"iptables-save on {node}: {ran.err.strip()}")
    rules = (_DNAT.match(line) for line in ran.out.splitlines())
    return [rule for rule in rules if rule is not None and rule["service"] == f"{namespace}/{service}"]

"""The values that a learner is asked to find, computed from the running cluster, never written down.

A fact is a function `(context, *, parameters) -> str | set of str`: the answer, or all that count as right.

What belongs here: computing. What does not: comparing with what the learner said (`matches` excepted), and asking.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jsonpath

from labs.engine import socketmaps
from labs.engine.checks import kernel, measurements, records, traffic
from labs.engine.checks.context import Context
from labs.engine.checks.counters import endpoint_of_chains
from labs.engine.checks.objects import ready_addresses
from tracer.errors import K8snetError, MissingError

Expected = str | set[str]


def object_(context: Context, *, kind: str, name: str, path: str, namespace: str = "default") -> Expected:
    """What a JSONPath finds in an object of the API. All of it, when it finds several: any one is right."""
    found = context.world.get(kind, name, namespace)
    return _values(found, path, f"{kind} {namespace}/{name}")


def objects(context: Context, *, kind: str, path: str, namespace: str = "default", selector: str = "") -> Expected:
    """What a JSONPath finds in a list of objects; any one is right."""
    return _values(context.world.get(kind, None, namespace, selector), path, f"{kind} of {namespace}")


def _values(document: Any, path: str, what: str) -> Expected:
    values = {str(value) for value in jsonpath.findall(path, document)}
    if not values:
        raise K8snetError(f"{what} has no {path}")
    return values


def count(context: Context, *, kind: str, namespace: str = "default", selector: str = "") -> Expected:
    """How many objects of a kind there are."""
    return str(len(context.world.get(kind, None, namespace, selector)))


def ready_endpoints(context: Context, *, service: str, namespace: str = "default") -> Expected:
    """How many ready endpoints a Service has."""
    selector = f"kubernetes.io/service-name={service}"
    return str(len(ready_addresses(context.world.get("endpointslices", None, namespace, selector))))


def chain(context: Context, *, node: str, to: str, prefix: str) -> Expected:
    """The chains of a prefix (KUBE-SVC-, KUBE-SEP-) that a packet to `to` may pass on a node."""
    steps = context.world.explain(node, to)["steps"]
    texts = [str(step.get("chain") or "") for step in steps] + [str(step.get("rule") or "") for step in steps]
    found = {word for text in texts for word in re.findall(r"KUBE-[A-Z0-9-]+", text) if word.startswith(prefix)}
    if not found:
        raise K8snetError(f"no chain {prefix}… on the way to {to} on {node}")
    return found


def remembered(context: Context, *, node: str, client: str, service: str, namespace: str = "default") -> Expected:
    """The endpoint with which session affinity keeps a pod, by the lists of the kernel's match `recent` on a node."""
    ip = context.world.get("pod", client.partition("/")[2], client.partition("/")[0])["status"]["podIP"]
    chains = endpoint_of_chains(context, node, namespace, service)
    ran = context.world.run(node, "grep", "-rH", "^src=", "/proc/net/xt_recent/")
    lists = re.findall(r"/(KUBE-SEP-[^/:]+):src=(\S+)", ran.out)
    endpoints = {chains[chain] for chain, address in lists if address == ip and chain in chains}
    if not endpoints:
        raise MissingError(
            f"{node} remembers no endpoint for {client}", hint="call the Service from there, then answer"
        )
    return endpoints | {endpoint.rpartition(":")[0] for endpoint in endpoints}


def backend(context: Context, *, node: str, to: str, position: int = 0) -> Expected:
    """IP:PORT of a backend of `to` on a node; `position` in the order of the rules: 0 the first, -1 the last."""
    backends = context.world.explain(node, to)["backends"]
    if not backends:
        raise K8snetError(f"{to} has no backend on {node}")
    found = backends[position]
    return f"[{found['ip']}]:{found['port']}" if ":" in found["ip"] else f"{found['ip']}:{found['port']}"


def position(context: Context, *, node: str, to: str, chain: str) -> Expected:
    """The place in a chain of the rule that takes a packet to `to` on a node, counted from 1."""
    for step in context.world.explain(node, to)["steps"]:
        if step["chain"] == chain:
            return str(step["rule"])
    raise K8snetError(f"no rule of {chain} on {node} takes a packet to {to}")


def rules_passed(context: Context, *, node: str, to: str, source: str | None = None) -> Expected:
    """How many rules a new flow passes on a node, as `explain -v` tells it."""
    return f"{context.world.explain(node, to, source)['passed']['rules']:g}"


def rules_passed_by_last(context: Context, *, node: str) -> Expected:
    """How many rules a new flow passes on a node to the Service that is last in KUBE-SERVICES. In iptables mode."""
    services = re.findall(
        r"^-A KUBE-SERVICES -d ([\d.]+)/32 -p (\w+) .* --dport (\d+) ",
        context.world.run(node, "iptables-save", "-t", "nat").out,
        re.MULTILINE,
    )
    if not services:
        raise K8snetError(f"KUBE-SERVICES on {node} has no rule for a Service")
    ip, protocol, port = services[-1]
    return rules_passed(context, node=node, to=f"{ip}:{port}/{protocol}")


def nanoseconds_a_rule(context: Context, *, directory: str, datapath: str) -> Expected:
    """By how much each rule lengthens a new flow, by what the learner measured with most Services; about it is right.

    Raises MissingError when nothing was measured.
    """
    found = [one for one in measurements.results(context, directory) if one["datapath"] == datapath]
    if not found:
        raise MissingError(f"{datapath} has not been measured into {directory}", hint="k8snet-lab show")
    most = max(found, key=lambda one: int(one["services"]))
    first = most["new_flow_us_by_target"]["first"]["p50"]
    each = 1000 * (measurements.last_flow(most) - first) / most["services"]
    return {f"{each + tenths / 10:.1f}" for tenths in range(-10, 11)} | {str(round(each + one)) for one in (-1, 0, 1)}


def slot_list(context: Context, *, node: str, service: str, namespace: str = "default") -> Expected:
    """The number of the list in which the eBPF datapath on a node has the endpoints of a Service's first port."""
    return str(socketmaps.list_of(context.world, node, service, namespace)[0])


def recorded(context: Context, *, match: Mapping[str, Any], path: str) -> Expected:
    """What dotted key `path` holds in the records of the live trace that `match`; any of them is right."""
    if context.records is None:
        raise K8snetError("this lesson keeps no live trace")
    found = {str(records.value(one, path)) for one in records.read(context.records, 0) if records.matches(one, match)}
    if not found:
        raise K8snetError("the live trace has not seen such a connection", hint="make it first, then answer")
    return found


def link(context: Context, *, target: str, device: str, key: str) -> Expected:
    """A value that `ip -j -d link show` tells of a device, such as mtu or address."""
    (found,) = (one for one in context.world.run(target, "ip", "-j", "-d", "link", "show", "dev", device).json() if one)
    return str(found[key])


def route(context: Context, *, target: str, to: str, key: str = "gateway") -> Expected:
    """A value that `ip -j route show` tells of a route, such as gateway or dev."""
    for one in context.world.run(target, "ip", "-j", "route", "show", to).json():
        if one.get("dst") == to and key in one:
            return str(one[key])
    raise K8snetError(f"{target} has no route to {to} with {key}")


def dns_status(
    context: Context, *, name: str, source: str = "default/client", server: str | None = None, search: bool = False
) -> Expected:
    """The status with which a DNS query is answered: NOERROR, NXDOMAIN, …"""
    message = traffic.ask(context, source, name, server=server, search=search)
    if message is None:
        raise K8snetError(f"{source} gets no answer for {name}")
    return str(message["status"])


def dns_queries(context: Context, *, name: str, source: str = "default/client") -> Expected:
    """How many DNS queries a program of `source` sends to connect to a name, whatever the family."""
    number = traffic.count_queries(context, source, [name], both=True)[name]
    if number is None:
        raise K8snetError(f"{source} does not find {name}")
    return str(number)


def cable(context: Context, *, pod: str) -> Expected:
    """The device on a pod's node that is the other end of the pod's eth0; as `ip link` writes it counts, too."""
    _, device = kernel.cable(context.world, pod)
    return {device, f"{device}@if{_index_of_eth0(context, pod)}"}


def _index_of_eth0(context: Context, pod: str) -> int:
    (found,) = (one for one in context.world.run(pod, "ip", "-j", "link", "show", "dev", "eth0").json() if one)
    return int(found["ifindex"])


def source_address(context: Context, *, target: str, to: str) -> Expected:
    """The address from which a node or pod sends to `to`; {NAMESPACE/POD} is that pod's address."""
    return kernel.source_address(context.world, target, to)


FACTS: Mapping[str, Callable[..., Expected]] = {
    "backend": backend,
    "cable": cable,
    "chain": chain,
    "count": count,
    "dns_queries": dns_queries,
    "dns_status": dns_status,
    "link": link,
    "object": object_,
    "objects": objects,
    "position": position,
    "ready_endpoints": ready_endpoints,
    "recorded": recorded,
    "remembered": remembered,
    "route": route,
    "nanoseconds_a_rule": nanoseconds_a_rule,
    "rules_passed": rules_passed,
    "rules_passed_by_last": rules_passed_by_last,
    "slot_list": slot_list,
    "source_address": source_address,
}


def expected(context: Context, name: str, parameters: Mapping[str, Any]) -> set[str]:
    """All that count as right, at least one. Raises K8snetError."""
    found = FACTS[name](context, **parameters)
    return {found} if isinstance(found, str) else found


def is_right(answer: str, right: set[str]) -> bool:
    """Whether an answer is one of those: capitals, and blanks around it, do not count; 0.33 is 1/3 to two digits."""
    given = answer.strip().lower()
    return any(given == value.lower() or _same_number(given, value) for value in right)


def _same_number(one: str, other: str) -> bool:
    first, second = _number(one), _number(other)
    return first is not None and second is not None and abs(first - second) <= 0.005 * max(1.0, abs(second))


def _number(text: str) -> float | None:
    """A number, a fraction or a percentage; whole numbers are compared as texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:/\s*(\d+)|(%))?", text.strip())
    if match is None or match[0].isdigit():
        return None
    value = float(match[1])
    if match[2]:
        return value / float(match[2]) if float(match[2]) else None
    return value / 100 if match[3] else value

"""Checks of what the kernel of a node or pod holds: rules, connection tracking, routes, links, BPF maps.

What belongs here: reading state in a form made for programs (`ip -j`, conntrack's XML, `k8snet-trace -o json`).
What does not: sending anything (`traffic`).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from labs.engine.checks.context import Context
from labs.engine.checks.objects import NoPod, ready_addresses, with_addresses
from labs.engine.outcome import Outcome, failed, passed
from labs.engine.world import World
from tracer.errors import K8snetError


def rule(
    context: Context,
    *,
    node: str,
    to: str,
    verdict: str = "dnat",
    backends: int | None = None,
    masquerade: bool | None = None,
    affinity: bool | None = None,
    source: str | None = None,
) -> Outcome:
    """A node's rules (or maps) do this with a packet to `to` (as `k8snet-trace explain` takes it), from `source`.

    {NAMESPACE/POD} in `source` is that pod's address. Reasons: verdict, backends, masquerade, affinity.
    """
    source = None if source is None else with_addresses(context.world, source)
    document = context.world.explain(node, to, source)
    sender = f" from {source}" if source else ""
    look = f"sudo k8snet-lab exec {node} -- k8snet-trace explain {to}{f' --source {source}' if source else ''}"
    for reason, wanted, has in (
        ("verdict", verdict, document["verdict"]),
        ("backends", backends, len(document["backends"])),
        ("masquerade", masquerade, document["masquerade"]),
        ("affinity", affinity, bool(document["affinity_seconds"])),
    ):
        if wanted is not None and wanted != has:
            expected = f"the rules of {node} for {to}{sender}: {reason} {_word(wanted)}"
            return failed(reason, expected=expected, seen=f"{reason} {_word(has)}", look=look)
    return passed(f"{node} sends {to} to {len(document['backends'])} backends" if document["backends"] else verdict)


def no_rule(context: Context, *, node: str, chain: str, target: str, table: str = "filter") -> Outcome:
    """A chain on a node has no rule with this target, such as DROP. In iptables mode. Reason: rule."""
    ran = context.world.run(node, "iptables-save", "-t", table)
    if ran.code != 0:
        raise K8snetError(f"iptables-save on {node}: {ran.err.strip()}")
    rules = [line for line in ran.out.splitlines() if line.startswith(f"-A {chain} ")]
    found = [line for line in rules if f" -j {target} " in f"{line} "]
    if found:
        look = f"sudo k8snet-lab exec {node} -- iptables -t {table} -S {chain}"
        expected = f"no rule in {chain} of {node} that leads to {target}"
        return failed("rule", expected=expected, seen=found[0], look=look)
    return passed(f"{chain} of {node} leads nowhere to {target}")


def passes(
    context: Context,
    *,
    node: str,
    to: str,
    at_least: int = 0,
    at_most: int | None = None,
    source: str | None = None,
) -> Outcome:
    """A new flow to `to` passes so many rules of a node (`explain -v` tells it). Reasons: no-service, few, many.

    {NAMESPACE/POD} in `to` is that pod's address.
    """
    to = with_addresses(context.world, to)
    look = f"sudo k8snet-lab exec {node} -- k8snet-trace explain {to} -v"
    namespace, _, name = to.rpartition(":")[0].partition("/")
    if name and context.world.get("service", name, namespace) is None:
        return failed("no-service", expected=f"the Service {namespace}/{name}", seen="it is not there", look=look)
    has = context.world.explain(node, to, source)["passed"]["rules"]
    seen = f"it passes {has:g} rules"
    if has < at_least:
        return failed("few", expected=f"a new flow to {to} to pass {at_least} rules or more", seen=seen, look=look)
    if at_most is not None and has > at_most:
        return failed("many", expected=f"a new flow to {to} to pass {at_most} rules or fewer", seen=seen, look=look)
    return passed(f"a new flow to {to} passes {has:g} rules of {node}")


def _word(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def conntrack(
    context: Context,
    *,
    node: str,
    protocol: str = "tcp",
    original: Mapping[str, Any],
    reply: Mapping[str, Any] | None = None,
    state: str | None = None,
    present: bool = True,
) -> Outcome:
    """A node's connection tracking has an entry whose tuples have these values (src, dst, sport, dport), or has none.

    {NAMESPACE/POD} is that pod's address. `state`: TCP's, such as ESTABLISHED. Reasons: no-entry, entry.
    """
    wanted = {
        "original": _addressed(context, original),
        "reply": _addressed(context, reply or {}),
        "independent": {"state": state} if state else {},
    }
    found = [entry for entry in entries(context, node, protocol) if _fits(entry, wanted)]
    words = f"an entry of {protocol} with {_tuples(wanted)}{f' in state {state}' if state else ''}"
    look = f"sudo k8snet-lab exec {node} -- conntrack -L -p {protocol}"
    if bool(found) == present:
        return passed(f"{node} has {_tuples(found[0])}" if present else f"{node} has no such entry")
    if present:
        return failed("no-entry", expected=f"{words} on {node}", seen="none", look=look)
    return failed("entry", expected=f"no {words.removeprefix('an ')} on {node}", seen=_tuples(found[0]), look=look)


def _addressed(context: Context, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: with_addresses(context.world, value) if key in ("src", "dst") else value for key, value in values.items()
    }


Entry = dict[str, dict[str, str]]


def entries(context: Context, node: str, protocol: str) -> list[Entry]:
    """A node's connection-tracking entries: "original" and "reply", each with src, dst, sport, dport, and
    "independent" with what is about both, such as state.

    Raises K8snetError.
    """
    ran = context.world.run(node, "conntrack", "-L", "-p", protocol, "-o", "xml")
    if ran.code != 0:
        raise K8snetError(f"conntrack on {node}: {ran.err.strip()}")
    flows = ElementTree.fromstring(ran.out) if ran.out.strip() else ()
    return [_entry(flow) for flow in flows]


def _entry(flow: ElementTree.Element) -> Entry:
    found: Entry = {}
    for meta in flow.findall("meta"):
        found[meta.attrib["direction"]] = {child.tag: child.text or "" for child in meta.iter() if child.text}
    return found


def _fits(entry: Entry, wanted: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(
        entry.get(direction, {}).get(key) == str(value)
        for direction, values in wanted.items()
        for key, value in values.items()
    )


def _tuples(entry: Mapping[str, Mapping[str, Any]]) -> str:
    keys = ("src", "dst", "sport", "dport")
    parts = [
        f"{direction} " + " ".join(f"{key}={values[key]}" for key in keys if key in values)
        for direction, values in entry.items()
        if values and direction != "independent"
    ]
    return ", ".join(parts)


def route(
    context: Context, *, target: str, to: str, via: str | None = None, device: str | None = None, present: bool = True
) -> Outcome:
    """A node or pod has the route `to` (a network, or "default"), through this gateway or device; or has it not.

    Reasons: no-route, route, via, device.
    """
    ran = context.world.run(target, "ip", "-j", *(["-6"] if ":" in to else []), "route", "show", to)
    routes = [one for one in ran.json() or [] if one.get("dst") == to] if ran.out.strip() else []
    look = f"sudo k8snet-lab exec {target} -- ip route"
    if bool(routes) != present:
        if present:
            return failed("no-route", expected=f"a route to {to} on {target}", seen="none", look=look)
        return failed("route", expected=f"no route to {to} on {target}", seen="there is one", look=look)
    for reason, wanted, key in (("via", via, "gateway"), ("device", device, "dev")):
        if present and wanted is not None and routes[0].get(key) != wanted:
            expected = f"the route to {to} on {target}: {reason} {wanted}"
            return failed(reason, expected=expected, seen=f"{reason} {routes[0].get(key, 'nothing')}", look=look)
    return passed(f"{target} has a route to {to}" if present else f"{target} has no route to {to}")


def route_get(context: Context, *, target: str, to: str, via: str | None = None, device: str | None = None) -> Outcome:
    """A packet from a node or pod to an address would leave by way of this gateway, this device.

    {NAMESPACE/POD} in `to` and `via` is that pod's address. Reasons: no-route, via, device.
    """
    to, via = with_addresses(context.world, to), None if via is None else with_addresses(context.world, via)
    look = f"sudo k8snet-lab exec {target} -- ip route get {to}"
    found = _route_to(context.world, target, to)
    if found is None:
        return failed("no-route", expected=f"{target} to have a route for {to}", seen="none", look=look)
    for reason, wanted, key in (("via", via, "gateway"), ("device", device, "dev")):
        if wanted is not None and found.get(key) != wanted:
            seen = f"{reason} {found.get(key, 'nothing')}"
            return failed(reason, expected=f"{target} to send to {to}: {reason} {wanted}", seen=seen, look=look)
    return passed(f"{target} sends to {to} through {found['dev']}")


def source_address(world: World, target: str, to: str) -> str:
    """The address from which a node or pod would send to another address. Raises K8snetError."""
    found = _route_to(world, target, with_addresses(world, to))
    if found is None or "prefsrc" not in found:
        raise K8snetError(f"{target} has no route for {to}")
    return str(found["prefsrc"])


def _route_to(world: World, target: str, to: str) -> dict[str, Any] | None:
    """What `ip route get` tells; None when there is no route."""
    ran = world.run(target, "ip", "-j", "route", "get", to)
    if ran.code != 0:
        return None
    found: dict[str, Any] = ran.json()[0]
    return found


def node_of(world: World, pod: str) -> str:
    """The node of a pod (NAMESPACE/POD). Raises NoPod."""
    namespace, _, name = pod.partition("/")
    found = world.get("pod", name, namespace)
    node = None if found is None else found["spec"].get("nodeName")
    if not node:
        raise NoPod(pod)
    return str(node)


def cable(world: World, pod: str) -> tuple[str, str]:
    """The node of a pod (NAMESPACE/POD), and the device there that is the other end of its eth0. Raises K8snetError."""
    node = node_of(world, pod)
    (eth0,) = (one for one in world.run(pod, "ip", "-j", "link", "show", "dev", "eth0").json() if one)
    for one in world.run(node, "ip", "-j", "link", "show").json():
        if one.get("ifindex") == eth0.get("link_index"):
            return node, str(one["ifname"])
    raise K8snetError(f"{node} has no device {eth0.get('link_index')}, the other end of eth0 of {pod}")


def link(
    context: Context,
    *,
    target: str,
    name: str,
    state: str | None = None,
    mtu: int | None = None,
    kind: str | None = None,
) -> Outcome:
    """A node or pod has a network device, in this state (UP, DOWN), with this MTU, of this kind (veth, bridge, vxlan).

    Reasons: no-link, state, mtu, kind.
    """
    ran = context.world.run(target, "ip", "-j", "-d", "link", "show", "dev", name)
    look = f"sudo k8snet-lab exec {target} -- ip -d link"
    if ran.code != 0:
        return failed("no-link", expected=f"a device {name} on {target}", seen=ran.err.strip(), look=look)
    (found,) = (one for one in ran.json() if one)
    up = "UP" if "UP" in found["flags"] else "DOWN"
    for reason, wanted, has in (
        ("state", state, up),
        ("mtu", mtu, found["mtu"]),
        ("kind", kind, (found.get("linkinfo") or {}).get("info_kind", "none")),
    ):
        if wanted is not None and wanted != has:
            return failed(reason, expected=f"{name} on {target}: {reason} {wanted}", seen=f"{reason} {has}", look=look)
    return passed(f"{target} has {name}, {up}")


def bpf_map(
    context: Context, *, node: str, service: str, namespace: str = "default", endpoints: int | None = None
) -> Outcome:
    """The maps of the eBPF datapath on a node hold a Service with so many endpoints; without a number, with just those
    that are ready by the API. Reasons: no-service, endpoints, addresses.
    """
    found = [one for one in context.world.services(node) if one["name"] == service and one["namespace"] == namespace]
    look = f"sudo k8snet-lab exec {node} -- k8snet-trace services {namespace}/{service}"
    what = f"Service {namespace}/{service} in the maps of {node}"
    if not found:
        return failed("no-service", expected=what, seen="it is not there", look=look)
    has = {one["ip"] for one in found[0]["endpoints"]}
    if endpoints is None:
        selector = f"kubernetes.io/service-name={service}"
        ready = ready_addresses(context.world.get("endpointslices", None, namespace, selector))
        if has != ready:
            return failed("addresses", expected=f"{what} with the endpoints of the API", seen=_several(has), look=look)
    elif len(has) != endpoints:
        expected = f"{what} with {endpoints} endpoints"
        return failed("endpoints", expected=expected, seen=f"it has {len(has)}", look=look)
    return passed(f"{what}: {_several(has)}")


def _several(addresses: set[str]) -> str:
    return ", ".join(sorted(addresses)) or "none"

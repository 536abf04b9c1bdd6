"""What a lesson can have broken, by name: the faults behind the steps of kind fix.

A fault is a function `(world, *, parameters) -> None` that breaks one thing, in the cluster's own namespaces and
objects only, so that it goes with the cluster. It may be called twice.

What belongs here: breaking. What does not: faults that a manifest can be (`apply` in lab.toml does those).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from labs.engine import socketmaps
from labs.engine.checks import kernel
from labs.engine.checks.objects import with_addresses
from labs.engine.world import Ran, World, get
from tracer.errors import K8snetError

FLOW_TRIES = 5


def rule(world: World, *, node: str, rule: str, table: str = "filter", family: int = 4) -> None:
    """Insert a rule of iptables on a node: `rule` as after `iptables -I`, such as "FORWARD -d 10.0.0.1 -j DROP".

    `node` may be NAMESPACE/POD: the node of that pod.
    """
    node = kernel.node_of(world, node) if "/" in node else node
    command = "iptables" if family == 4 else "ip6tables"
    chain, *rest = rule.split()
    if world.run(node, command, "-w", "-t", table, "-C", chain, *rest).code != 0:
        _must(world.run(node, command, "-w", "-t", table, "-I", chain, *rest), f"{command} on {node}")


def route(world: World, *, node: str, route: str) -> None:
    """Change a node's routes: `route` as after `ip route`, such as "replace blackhole 10.244.1.0/24"."""
    _must(world.run(node, "ip", "route", *route.split()), f"ip route on {node}")


def link(world: World, *, target: str, link: str) -> None:
    """Change a device: `link` as after `ip link set`, such as "dev eth0 mtu 1000"."""
    _must(world.run(target, "ip", "link", "set", *link.split()), f"ip link on {target}")


def cable(world: World, *, pod: str) -> None:
    """Take a pod's cable down at its node's end, and the node's route to the pod with it, which does not come back.

    The kernel takes routes away with their device, but not those of scope host, which kind's CNI plugin makes.
    """
    node, device = kernel.cable(world, pod)
    link(world, target=node, link=f"dev {device} down")
    _must(world.run(node, "ip", "route", "flush", "dev", device), f"ip route on {node}")


def scale(world: World, *, deployment: str, replicas: int, namespace: str = "default") -> None:
    """Have so many pods of a Deployment; waits until it is so."""
    _must(
        world.kubectl("-n", namespace, "scale", f"deployment/{deployment}", f"--replicas={replicas}"), "kubectl scale"
    )
    _must(world.kubectl("-n", namespace, "rollout", "status", f"deployment/{deployment}", "--timeout=20s"), "kubectl")


def patch(world: World, *, kind: str, name: str, patch: Mapping[str, Any], namespace: str = "default") -> None:
    """Change an object by a merge patch (RFC 7386)."""
    text = json.dumps(patch)
    _must(
        world.kubectl("-n", namespace, "patch", kind, name, "--type=merge", "-p", text), f"kubectl patch {kind} {name}"
    )


def udp_flow(
    world: World, *, node: str, source: str, sport: int, service: str, port: int, backend: str, seconds: int = 600
) -> None:
    """Put an entry into a node's connection tracking: UDP from `source` to `service` goes to `backend`.

    Such an entry is left behind when the address of an endpoint goes and nobody clears it. {NAMESPACE/POD} is that
    pod's address. `seconds`: how long the entry stays; packets that it meets give it the kernel's own time instead.
    """
    source, service, backend = (with_addresses(world, text) for text in (source, service, backend))
    entry = ["-p", "udp", "--orig-src", source, "--sport", str(sport), "--orig-dst", service, "--dport", str(port)]
    translation = ["--dst-nat", backend] if backend != service else []
    for _ in range(FLOW_TRIES):
        world.run(node, "conntrack", "-D", *entry)
        ran = world.run(node, "conntrack", "-I", *entry, *translation, "--timeout", str(seconds))
        if ran.code == 0:
            return  # else the source has sent a packet in between, which made an entry of its own
    _must(ran, f"conntrack on {node}")


def slot(world: World, *, node: str, service: str, slot: int, to: str, namespace: str = "default") -> None:
    """Have a slot of a Service in the maps of the eBPF datapath on a node name the address of the pod `to`."""
    spec = (get(world, "service", service, namespace) or {})["spec"]
    port = spec["ports"][0]
    pod_namespace, _, name = to.partition("/")
    ip = (get(world, "pod", name, pod_namespace) or {})["status"]["podIP"]
    number, _ = socketmaps.list_of(world, node, service, namespace)
    socketmaps.set_slot(world, node, number, slot, ip, int(port.get("targetPort", port["port"])))


def recreate(world: World, *, kind: str, name: str, patch: Mapping[str, Any], namespace: str = "default") -> None:
    """Delete an object and make it anew, changed by a merge patch: for fields that can't be changed."""
    found = get(world, kind, name, namespace)
    if found is None:
        raise K8snetError(f"there is no {kind} {namespace}/{name}")
    for key in ("uid", "resourceVersion", "creationTimestamp"):
        found["metadata"].pop(key, None)
    found.pop("status", None)
    document = json.dumps(_merged(found, patch))
    _must(world.kubectl("replace", "--force", "-f", "-", feed=document), f"kubectl replace {kind} {name}")


def _merged(document: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(document) if isinstance(document, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def kubectl(world: World, *, arguments: list[str]) -> None:
    """Run kubectl: ["-n", "shop", "delete", "service", "web"]."""
    _must(world.kubectl(*arguments), "kubectl")


def _must(ran: Ran, what: str) -> None:
    if ran.code != 0:
        raise K8snetError(f"{what}: {ran.err.strip() or ran.out.strip()}")


FAULTS: Mapping[str, Callable[..., None]] = {
    "cable": cable,
    "kubectl": kubectl,
    "link": link,
    "patch": patch,
    "recreate": recreate,
    "route": route,
    "rule": rule,
    "scale": scale,
    "slot": slot,
    "udp_flow": udp_flow,
}


def inject(world: World, name: str, parameters: Mapping[str, Any]) -> None:
    """Break something. Raises K8snetError."""
    FAULTS[name](world, **parameters)

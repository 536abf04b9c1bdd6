"""What a lesson can have broken, by name: the faults behind the steps of kind fix.

A fault is a function `(world, *, parameters)` that breaks one thing, in the cluster's own namespaces and objects only,
so that it goes with the cluster. It may be called twice. It tells what takes it back, each before that is needed, for
clusters that stay.

What belongs here: breaking. What does not: faults that a manifest can be (`apply` in lab.toml does those), and taking
back (`undo`).
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from labs.cluster.mergepatch import merge
from labs.engine import socketmaps, undo
from labs.engine.checks import kernel
from labs.engine.checks.objects import NoPod, with_addresses
from labs.engine.undo import Undo
from labs.engine.world import Ran, World
from tracer.errors import K8snetError

FLOW_TRIES = 5
WAIT_SECONDS = 60  # for pods to come and go; on a real cluster they take longer
POLL_SECONDS = 0.05
ROUTE_TYPES = ("unicast", "local", "broadcast", "multicast", "throw", "unreachable", "prohibit", "blackhole")


def rule(world: World, *, node: str, rule: str, table: str = "filter", family: int = 4) -> Iterator[Undo]:
    """Insert a rule of iptables on a node: `rule` as after `iptables -I`, such as "FORWARD -d 10.0.0.1 -j DROP".

    `node` may be NAMESPACE/POD: the node of that pod.
    """
    node = kernel.node_of(world, node) if "/" in node else node
    command = ["iptables" if family == 4 else "ip6tables", "-w", "-t", table]
    if world.run(node, *command, "-C", *rule.split()).code != 0:
        yield undo.command(node, *command, "-D", *rule.split())
        _must(world.run(node, *command, "-I", *rule.split()), f"{command[0]} on {node}")


def route(world: World, *, node: str, route: str) -> Iterator[Undo]:
    """Change a node's routes: `route` as after `ip route`, such as "replace blackhole 10.244.1.0/24"."""
    to = next(word for word in route.split()[1:] if word not in ROUTE_TYPES)
    yield from _routes(world, node, "exact", to)
    yield undo.command(node, "ip", "route", "del", to)
    _must(world.run(node, "ip", "route", *route.split()), f"ip route on {node}")


def _routes(world: World, target: str, *which: str) -> Iterator[Undo]:
    """What brings back some of the IPv4 routes that are there now, those first that others need."""
    lines = world.run(target, "ip", "-4", "route", "show", *which).out.splitlines()
    device = which if which[0] == "dev" else ()
    for line in lines:
        yield undo.command(target, "ip", "route", "replace", *line.split(), *device)


def link(world: World, *, target: str, link: str) -> Iterator[Undo]:
    """Change a device: `link` as after `ip link set`, such as "dev eth0 mtu 1000"."""
    words = link.split()
    device = words[words.index("dev") + 1] if "dev" in words else words[0]
    yield from _routes(world, target, "dev", device)  # those of a device that goes down go, too
    (was,) = (one for one in world.run(target, "ip", "-j", "link", "show", "dev", device).json() if one)
    state = "up" if "UP" in was["flags"] else "down"
    yield undo.command(target, "ip", "link", "set", "dev", device, "mtu", str(was["mtu"]), state)
    _must(world.run(target, "ip", "link", "set", *words), f"ip link on {target}")


def cable(world: World, *, pod: str) -> Iterator[Undo]:
    """Take a pod's cable down at its node's end, and the node's route to the pod with it, which does not come back.

    The kernel takes routes away with their device, but not those of scope host, which kind's CNI plugin makes.
    """
    node, device = kernel.cable(world, pod)
    yield from link(world, target=node, link=f"dev {device} down")
    _must(world.run(node, "ip", "route", "flush", "dev", device), f"ip route on {node}")


def scale(world: World, *, deployment: str, replicas: int, namespace: str = "default") -> Iterator[Undo]:
    """Have so many pods of a Deployment; waits until it is so."""
    yield from undo.change(_found(world, "deployment", deployment, namespace), {"spec": {"replicas": replicas}})
    kubectl(world, arguments=["-n", namespace, "scale", f"deployment/{deployment}", f"--replicas={replicas}"])
    timeout = f"--timeout={WAIT_SECONDS}s"
    kubectl(world, arguments=["-n", namespace, "rollout", "status", f"deployment/{deployment}", timeout])


def patch(
    world: World, *, kind: str, name: str, patch: Mapping[str, Any], namespace: str = "default"
) -> Iterator[Undo]:
    """Change an object by a merge patch (RFC 7386)."""
    yield from undo.change(_found(world, kind, name, namespace), patch)
    ran = world.kubectl("-n", namespace, "patch", kind, name, "--type=merge", "-p", json.dumps(patch))
    _must(ran, f"kubectl patch {kind} {name}")


def udp_flow(
    world: World, *, node: str, source: str, sport: int, service: str, port: int, backend: str, seconds: int = 600
) -> Iterator[Undo]:
    """Put an entry into a node's connection tracking: UDP from `source` to `service` goes to `backend`.

    Such an entry is left behind when the address of an endpoint goes and nobody clears it. {NAMESPACE/POD} is that
    pod's address. `seconds`: how long the entry stays; packets that it meets give it the kernel's own time instead.
    """
    source, service, backend = (with_addresses(world, text) for text in (source, service, backend))
    entry = ["-p", "udp", "--orig-src", source, "--sport", str(sport), "--orig-dst", service, "--dport", str(port)]
    translation = ["--dst-nat", backend] if backend != service else []
    delete = ["conntrack", "-D", *entry]
    insert = ["conntrack", "-I", *entry, *translation, "--timeout", str(seconds)]
    yield undo.command(node, *delete)
    for _ in range(FLOW_TRIES):
        ran = world.run(node, "sh", "-c", f"{shlex.join(delete)}; {shlex.join(insert)}")  # at once
        if ran.code == 0:
            return  # else the source has sent a packet in between, which made an entry of its own
    _must(ran, f"conntrack on {node}")


def slot(world: World, *, node: str, service: str, slot: int, to: str, namespace: str = "default") -> Iterable[Undo]:
    """Have a slot of a Service in the maps of the eBPF datapath on a node name the address of the pod `to`.

    Nothing takes it back but the next start of such a lesson: the maps are written anew then
    (`labs.engine.kind.servicelb`), and the list has another number.
    """
    spec = (world.get("service", service, namespace) or {})["spec"]
    port = spec["ports"][0]
    pod_namespace, _, name = to.partition("/")
    ip = (world.get("pod", name, pod_namespace) or {})["status"]["podIP"]
    number, _ = socketmaps.list_of(world, node, service, namespace)
    socketmaps.set_slot(world, node, number, slot, ip, int(port.get("targetPort", port["port"])))
    return ()


def recreate(
    world: World, *, kind: str, name: str, patch: Mapping[str, Any], namespace: str = "default"
) -> Iterator[Undo]:
    """Delete an object and make it anew, changed by a merge patch: for fields that can't be changed."""
    found = _found(world, kind, name, namespace)
    yield from undo.change(found, patch, anew=True)
    document = json.dumps(merge(undo.unmade(found), patch))
    _must(world.kubectl("replace", "--force", "-f", "-", feed=document), f"kubectl replace {kind} {name}")


def _found(world: World, kind: str, name: str, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] | None = world.get(kind, name, namespace)
    if found is None:
        raise K8snetError(f"there is no {kind} {namespace}/{name}")
    return found


def kubectl(world: World, *, arguments: list[str]) -> Iterable[Undo]:
    """Run kubectl: ["-n", "shop", "rollout", "restart", "deployment/web"].

    What it changes is not taken back, so this is for waiting, and for what is made anew when a lesson starts.
    """
    _must(world.kubectl(*arguments, seconds=WAIT_SECONDS + 10), "kubectl")
    return ()


def started(world: World, *, pod: str) -> Iterable[Undo]:
    """Wait until a pod (NAMESPACE/POD) has its address, before it is ready: for faults that name that address."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with_addresses(world, f"{{{pod}}}")
            return ()
        except NoPod:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def _must(ran: Ran, what: str) -> None:
    if ran.code != 0:
        raise K8snetError(f"{what}: {ran.err.strip() or ran.out.strip()}")


FAULTS: Mapping[str, Callable[..., Iterable[Undo]]] = {
    "cable": cable,
    "kubectl": kubectl,
    "link": link,
    "patch": patch,
    "recreate": recreate,
    "route": route,
    "rule": rule,
    "scale": scale,
    "slot": slot,
    "started": started,
    "udp_flow": udp_flow,
}


def inject(
    world: World, name: str, parameters: Mapping[str, Any], keep: Callable[[Undo], None] = lambda _: None
) -> None:
    """Break something; `keep` is called with what takes it back, before it is broken. Raises K8snetError."""
    for one in FAULTS[name](world, **parameters):
        keep(one)

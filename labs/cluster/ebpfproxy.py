"""kube-proxy's place taken by hash maps: follows Services and EndpointSlices, and keeps the eBPF datapath's maps.

Stands for Cilium's agent with kube-proxy replacement (`--set kubeProxyReplacement=true`), as far as it concerns
Services. It runs in a pod of each node, on the node's network (DaemonSet service-lb), and tells load balancers how it
is, as kube-proxy does (`labs.cluster.proxyhealth`). Each object that changes is looked at by itself, and at once: with
10,000 Services one endpoint's change costs what it costs with ten.

What belongs here: following the API, and who does what when. What does not: which Service ports a change concerns
(`labs.cluster.proxy.ebpf_changes`), what the maps must hold (`ebpf`), how they are written (`ebpf_maps`), loading
programs (`labs.cluster.ebpfloader`), devices (`ebpfdevices`). Left out: Cilium's own policy, identities, tunnels and
health checks of backends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping
from pathlib import Path

from labs.cluster import ebpfloader, sockdestroy
from labs.cluster.apiclient import Mirror
from labs.cluster.ebpfdevices import LinkEvents, Watcher, node_facts
from labs.cluster.proxy.ebpf import Wanted
from labs.cluster.proxy.ebpf_changes import Key, State
from labs.cluster.proxy.ebpf_maps import MapFull, Tables
from labs.cluster.proxyhealth import Health, ServiceHealth, serve_health
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES
from labs.cluster.runtime.container import Container
from labs.cluster.sockdestroy import Peer
from tracer.bpfmaps import Map
from tracer.errors import K8snetError
from tracer.service_lb import pack_peer

PINS = Path("/sys/fs/bpf/k8snet")
NODE_PROCESSES = Path("/host/proc")  # the node's /proc, in which all of its pods' processes are
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # of the node's network, for both IP families
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


def main(container: Container) -> None:
    """Be the proxy on the node of `container`."""
    cgroup = container.facts["node_cgroup"]
    if cgroup is None:
        raise K8snetError("--proxy ebpf needs cgroup v2: its programs are attached to the cgroup of a node")
    PORT_RANGE.write_text(f"32768 {ebpfloader.FIRST_SNAT_PORT - 1}")
    ebpfloader.load(PINS, Path(cgroup))
    asyncio.run(_run(container))


async def _run(container: Container) -> None:
    facts = container.facts
    families = [int(family) for family in facts["families"]]
    maps = ebpfloader.open_maps(PINS)
    changed, health = asyncio.Event(), Health()

    def on_change() -> None:
        health.queued()
        changed.set()

    state = State(facts["node"], families)
    watcher = Watcher(PINS, families, facts["cni"])
    events = LinkEvents()
    mirror = Mirror((SERVICES, ENDPOINTSLICES, NODES), on_change, server=facts["api_server"], on_object=state.note)

    async def watch() -> None:
        while True:
            addresses = await asyncio.to_thread(watcher.look)
            if watcher.is_complete and state.set_addresses(addresses):
                maps["node"].set(bytes(4), node_facts(addresses).pack())
                changed.set()
            await events.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(serve_health(health))
        group.create_task(watch())
        group.create_task(mirror.run())
        group.create_task(_sync_loop(container, mirror, changed, state, Tables(maps), maps["asked"], health))


async def _sync_loop(
    container: Container,
    mirror: Mirror,
    changed: asyncio.Event,
    state: State,
    tables: Tables[Key],
    asked: Map,
    health: Health,
) -> None:
    first, services = True, ServiceHealth(health)
    while True:
        await changed.wait()
        changed.clear()
        if not (mirror.complete and state.knows_addresses):
            continue
        version = mirror.version
        left, error = _apply(tables, state.take(mirror))
        if error is not None:
            log.error("%s", error)
            container.notify(f"error {error}")
            state.put_back(left)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, changed.set)
            continue
        if gone := state.take_gone():
            await asyncio.to_thread(_end_sockets, gone, asked)
        health.caught_up(mirror.items[NODES].get(("", container.facts["node"])), more=changed.is_set())
        await services.sync(state.health_checks)
        container.notify(f"synced {version}")
        container.ready()
        if first:
            gc.freeze()  # as kube-proxy's other modes do: it would walk all Services, for hardly any garbage
            first = False


def _apply(
    tables: Tables[Key], pending: Mapping[Key, Wanted | None]
) -> tuple[dict[Key, Wanted | None], K8snetError | None]:
    """Write all of it, or where there is no room for all, what there is room for; gives what is left, and why."""
    try:
        tables.apply(pending)
    except MapFull:
        return _apply_each(tables, pending)
    except K8snetError as error:
        return dict(pending), error
    return {}, None


def _end_sockets(peers: set[Peer], asked: Map) -> None:
    """End the UDP sockets of this node that were sent to endpoints which are gone, by way of a Service."""

    def is_ours(cookie: int, peer: Peer) -> bool:
        return asked.get(pack_peer(cookie, peer.ip, peer.port)) is not None

    for netns in sockdestroy.network_namespaces(NODE_PROCESSES):
        try:
            ended = sockdestroy.end_udp_sockets(netns, peers, is_ours)
        except OSError as error:
            log.warning("UDP sockets in %s can't be ended: %s", netns, error)
            continue
        if ended:
            log.info("ended %s UDP sockets in %s", ended, netns)


def _apply_each(
    tables: Tables[Key], pending: Mapping[Key, Wanted | None]
) -> tuple[dict[Key, Wanted | None], K8snetError | None]:
    left: dict[Key, Wanted | None] = {}
    why: K8snetError | None = None
    # What goes makes room for what comes.
    for key in sorted(pending, key=lambda key: pending[key] is not None):
        try:
            tables.apply({key: pending[key]})
        except K8snetError as error:
            left[key], why = pending[key], error
    return left, why

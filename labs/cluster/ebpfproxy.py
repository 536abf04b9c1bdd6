"""kube-proxy's place taken by hash maps: follows Services and EndpointSlices, and keeps the eBPF datapath's maps.

Stands for Cilium's agent with kube-proxy replacement (`--set kubeProxyReplacement=true`), as far as it concerns
Services. It runs in a pod of each node, on the node's network (DaemonSet service-lb), or on a node of a real cluster
(`labs.cluster.ebpfnode`), and tells load balancers how it is, as kube-proxy does (`labs.cluster.proxyhealth`). Each
object that changes is looked at by itself, and at once: with 10,000 Services one endpoint's change costs what it costs
with ten.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from labs.cluster import ebpfcompiler, ebpfloader, sockdestroy
from labs.cluster.apiclient import SERVICE_ACCOUNT, Mirror
from labs.cluster.ebpfdevices import LinkEvents, Watcher, node_facts
from labs.cluster.proxy.ebpf import Wanted
from labs.cluster.proxy.ebpf_changes import Key, State
from labs.cluster.proxy.ebpf_maps import MapFull, Tables
from labs.cluster.proxyhealth import Health, ServiceHealth, serve_health
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES
from labs.cluster.runtime.container import Container
from labs.cluster.sockdestroy import Peer
from tracer.bpfmaps import Map
from tracer.bpfobject import BpfObject
from tracer.errors import K8snetError
from tracer.service_lb import pack_peer

PINS = Path("/sys/fs/bpf/k8snet")
NODE_PROCESSES = Path("/host/proc")  # the node's /proc, in which all of its pods' processes are
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # of the node's network, for both IP families
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Who is told how far the proxy is: a container's kubelet, or whoever started it."""

    def notify(self, line: str) -> None:
        """A line, such as "synced 42", after each change."""

    def ready(self) -> None:
        """The maps hold all Services."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the proxy is, and where it finds things. `node`: the node's name in the API; `families`: 4, 6 or both.

    `cgroup`: of cgroup v2, the node's, in which all of its pods are. `processes`: a /proc with these pods' processes.
    `account`: a directory with a service account's token and ca.crt. `compiled`: a file with the programs, as the
    image has it; where there is none, they are compiled.
    """

    node: str
    families: tuple[int, ...]
    api_server: str
    cgroup: Path
    cni: str = "routed"
    pins: Path = PINS
    processes: Path = Path("/proc")
    account: Path = SERVICE_ACCOUNT
    compiled: Path | None = None


def main(container: Container) -> None:
    """Be the proxy on the node of `container`."""
    facts = container.facts
    if facts["node_cgroup"] is None:
        raise K8snetError("--proxy ebpf needs cgroup v2: its programs are attached to the cgroup of a node")
    settings = Settings(
        node=facts["node"],
        families=tuple(int(family) for family in facts["families"]),
        api_server=facts["api_server"],
        cgroup=Path(facts["node_cgroup"]),
        cni=facts["cni"],
        processes=NODE_PROCESSES,
        compiled=ebpfcompiler.OBJECT,
    )
    load(settings)
    asyncio.run(serve(settings, container))


def load(settings: Settings) -> None:
    """Have the programs in the kernel. Forks, so the caller has no threads. Raises K8snetError."""
    PORT_RANGE.write_text(f"32768 {ebpfcompiler.FIRST_SNAT_PORT - 1}")
    ebpfloader.load(settings.pins, settings.cgroup, _programs(settings.compiled))


def _programs(file: Path | None) -> BpfObject:
    if file is None or not file.exists():
        return ebpfcompiler.compiled()
    return BpfObject.unpack(file.read_bytes())


async def serve(settings: Settings, listener: Listener) -> None:
    """Keep the maps, until cancelled; what is in the kernel then stays there, and goes on."""
    families = list(settings.families)
    maps = ebpfloader.open_maps(settings.pins)
    changed, health = asyncio.Event(), Health()

    def on_change() -> None:
        health.queued()
        changed.set()

    state = State(settings.node, families)
    watcher = Watcher(settings.pins, families, settings.cni)
    events = LinkEvents()
    kinds = (SERVICES, ENDPOINTSLICES, NODES)
    mirror = Mirror(kinds, on_change, server=settings.api_server, on_object=state.note, account=settings.account)

    async def watch() -> None:
        while True:
            addresses = await asyncio.to_thread(watcher.look)
            if watcher.is_complete and state.set_addresses(addresses):
                maps["node"].set(bytes(4), node_facts(addresses).pack())
                changed.set()
            await events.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(serve_health(health, readiness=True))
        group.create_task(watch())
        group.create_task(mirror.run())
        group.create_task(_sync_loop(settings, listener, mirror, changed, state, maps, health))


async def _sync_loop(
    settings: Settings,
    listener: Listener,
    mirror: Mirror,
    changed: asyncio.Event,
    state: State,
    maps: Mapping[str, Map],
    health: Health,
) -> None:
    first, services, tables = True, ServiceHealth(health), Tables[Key](maps)
    while True:
        await changed.wait()
        changed.clear()
        if not (mirror.complete and state.knows_addresses):
            continue
        version = mirror.version
        left, error = _apply(tables, state.take(mirror))
        if error is not None:
            log.error("%s", error)
            listener.notify(f"error {error}")
            state.put_back(left)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, changed.set)
            continue
        if gone := state.take_gone():
            await asyncio.to_thread(_end_sockets, gone, maps["asked"], settings.processes)
        health.caught_up(mirror.items[NODES].get(("", settings.node)), more=changed.is_set())
        await services.sync(state.health_checks)
        listener.notify(f"synced {version}")
        listener.ready()
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


def _end_sockets(peers: set[Peer], asked: Map, processes: Path) -> None:
    """End the UDP sockets of this node that were sent to endpoints which are gone, by way of a Service."""

    def is_ours(cookie: int, peer: Peer) -> bool:
        return asked.get(pack_peer(cookie, peer.ip, peer.port)) is not None

    for netns in sockdestroy.network_namespaces(processes):
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

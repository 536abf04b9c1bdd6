"""kube-proxy: follows Services and EndpointSlices, and loads the rules that they call for into its node's kernel.

Stands for cmd/kube-proxy with the event handling of pkg/proxy. What the rules are is decided in `labs.cluster.proxy`;
this is the part that watches, waits until a burst of changes is over, and calls iptables-restore, as kube-proxy does
and with the same flags. It runs in a pod of each node, on the node's network (DaemonSet kube-proxy). Left out: health
checks, metrics, the conntrack clean-up of vanished UDP endpoints, and partial syncs: every sync writes all rules.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from labs.cluster.apiclient import Mirror
from labs.cluster.netfilter import Iptables, jumps_in_front
from labs.cluster.proxy.addresses import networks_of_family
from labs.cluster.proxy.endpoints import endpoints_by_port
from labs.cluster.proxy.iptables import CANARY, JUMPS, Sync, full_sync, whole_tables
from labs.cluster.proxy.node import local_node
from labs.cluster.proxy.services import service_ports
from labs.cluster.proxy.settings import Settings
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES
from labs.cluster.runtime import Container
from tracer.errors import K8snetError

SETTLE_SECONDS = 0.02  # a change is seldom alone
RETRY_SECONDS = 1.0
MONITOR_SECONDS = 30.0  # --iptables-sync-period; pkg/util/iptables/iptables.go, Monitor
BUILT_IN = frozenset(jump.source for jump in JUMPS)

log = logging.getLogger(__name__)


def main(container: Container) -> None:
    """Be kube-proxy on the node of `container`."""
    asyncio.run(_run(container))


async def _run(container: Container) -> None:
    families = [int(family) for family in container.facts["families"]]
    if 4 in families:
        # NodePorts on 127.0.0.1; KUBE-FIREWALL keeps neighbours out.
        Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
    changed = asyncio.Event()
    mirror = Mirror((SERVICES, ENDPOINTSLICES, NODES), changed.set, server=container.facts["api_server"])
    loaders = [Loader(Iptables(family, container.facts["iptables"])) for family in families]
    async with asyncio.TaskGroup() as group:
        group.create_task(mirror.run())
        group.create_task(_sync_loop(container, mirror, changed, loaders))


async def _sync_loop(container: Container, mirror: Mirror, changed: asyncio.Event, loaders: list[Loader]) -> None:
    while True:
        await _wait_for_work(changed, loaders)
        await asyncio.sleep(SETTLE_SECONDS)
        changed.clear()
        version = mirror.version
        try:
            for loader in loaders:
                await loader.load(render(mirror, container, loader.family))
        except K8snetError as error:
            log.error("%s", error)
            container.notify(f"error {error}")
            await asyncio.sleep(RETRY_SECONDS)
            changed.set()
            continue
        container.notify(f"synced {version}")
        container.ready()


async def _wait_for_work(changed: asyncio.Event, loaders: list[Loader]) -> None:
    """Wait for a change, or until somebody is found to have taken our rules away."""
    while True:
        try:
            await asyncio.wait_for(changed.wait(), MONITOR_SECONDS)
            return
        except TimeoutError:
            for loader in loaders:
                if not await loader.still_there():
                    log.warning("the rules of IPv%s are gone; writing them anew", loader.family)
                    return


def render(mirror: Mirror, container: Container, family: int) -> Sync:
    """What the rules of `family` should be on this node, from what the API says now."""
    node = container.facts["node"]
    objects = {resource: list(items.values()) for resource, items in mirror.items.items()}
    settings = Settings(
        node=local_node(objects[NODES], node, family),
        family=family,
        cluster_cidr=next(iter(networks_of_family(container.facts["pod_networks"], family)), None),
    )
    endpoints = endpoints_by_port(objects[ENDPOINTSLICES], node_name=node, family=family)
    return full_sync(service_ports(objects[SERVICES], family), endpoints, settings)


class Loader:
    """Brings the kernel's rules of one family to what kube-proxy wants them to be."""

    def __init__(self, iptables: Iptables) -> None:
        self.family = iptables.family
        self._iptables = iptables
        self._chains: set[str] | None = None  # of the nat table, that the last sync wrote; None: not looked yet

    async def still_there(self) -> bool:
        """Whether the canary chain, which nothing refers to, is still there; if not, the next load is a first one."""
        if await self._iptables.has_chain("nat", CANARY):
            return True
        self._chains = None
        return False

    async def load(self, sync: Sync) -> None:
        """Load `sync`: jumps on the first call only, each table in one transaction. Raises what `Iptables` raises."""
        text = sync.text()
        if self._chains is None:
            saved = await self._iptables.save("nat")
            self._chains = _own_chains(saved)
            if not _has_jumps(saved):
                text = jumps_in_front(whole_tables(sync), BUILT_IN)
        await self._iptables.restore(text + _removal(self._chains.difference(sync.nat_chains)))
        self._chains = set(sync.nat_chains)


def _own_chains(saved: Iterable[str]) -> set[str]:
    """The chains of Services and endpoints that an earlier kube-proxy left (shared chains are always written)."""
    return {line[1:].split()[0] for line in saved if re.match(r":KUBE-(SVC|SVL|EXT|FW|SEP)-", line)}


def _has_jumps(saved: Iterable[str]) -> bool:
    """Whether an earlier kube-proxy made its jumps already."""
    jump = next(jump for jump in JUMPS if jump.table == "nat")
    return any(line.startswith(f"-A {jump.source} ") and line.endswith(f"-j {jump.target}") for line in saved)


def _removal(chains: Iterable[str]) -> str:
    """The lines that remove chains of the nat table; declaring them first empties them."""
    names = sorted(chains)
    if not names:
        return ""
    return "\n".join(["*nat", *(f":{name} - [0:0]" for name in names), *(f"-X {name}" for name in names), "COMMIT", ""])

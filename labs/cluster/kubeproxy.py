"""kube-proxy: follows Services and EndpointSlices, and loads the rules that they call for into its node's kernel.

Stands for cmd/kube-proxy with the event handling of pkg/proxy. What the rules are, and which of them a change touches,
is decided in `labs.cluster.proxy`; this is the part that watches, waits until a burst of changes is over, and calls
iptables-restore or nft, as kube-proxy does and with the same flags, and conntrack for UDP entries that lead to pods
that are gone. It runs in a pod of each node, on the node's network (DaemonSet kube-proxy). Left out: health checks,
metrics, and the full sync that kube-proxy makes every hour (--iptables-sync-period).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Protocol

from labs.cluster.apiclient import Mirror
from labs.cluster.netfilter import Iptables, Nft, forget_flows, jumps_in_front
from labs.cluster.proxy import iptables_sync, nftables_sync
from labs.cluster.proxy.addresses import networks_of_family
from labs.cluster.proxy.changes import Before, Items, Tracker
from labs.cluster.proxy.conntrack import stale
from labs.cluster.proxy.endpoints import Endpoint
from labs.cluster.proxy.iptables import CANARY, JUMPS, Sync, whole_tables
from labs.cluster.proxy.nftables import SERVICES as SERVICES_CHAIN
from labs.cluster.proxy.nftables import TABLE
from labs.cluster.proxy.node import local_node
from labs.cluster.proxy.services import PortKey, ServicePort
from labs.cluster.proxy.settings import Settings
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES
from labs.cluster.runtime.container import Container
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
    facts = container.facts
    families = [int(family) for family in facts["families"]]
    nftables = facts["proxy"] == "nftables"
    if 4 in families and not nftables:
        # NodePorts on 127.0.0.1; KUBE-FIREWALL keeps neighbours out.
        Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
    changed = asyncio.Event()
    mirror = Mirror((SERVICES, ENDPOINTSLICES, NODES), changed.set, server=facts["api_server"])
    proxiers = [Proxier(facts["node"], backend(facts["proxy"], family, facts["iptables"])) for family in families]
    async with asyncio.TaskGroup() as group:
        group.create_task(mirror.run())
        group.create_task(_sync_loop(container, mirror, changed, proxiers))


async def _sync_loop(container: Container, mirror: Mirror, changed: asyncio.Event, proxiers: list[Proxier]) -> None:
    first = True
    while True:
        await _wait_for_work(changed, proxiers)
        await asyncio.sleep(SETTLE_SECONDS)
        changed.clear()
        version = mirror.version
        try:
            for proxier in proxiers:
                settings = _settings(mirror, container, proxier.family)
                await proxier.sync(mirror.items[SERVICES], mirror.items[ENDPOINTSLICES], settings)
        except K8snetError as error:
            log.error("%s", error)
            container.notify(f"error {error}")
            await asyncio.sleep(RETRY_SECONDS)
            changed.set()
            continue
        container.notify(f"synced {version}")
        container.ready()
        if first:
            # Garbage collection would walk all Services at each change, and there is hardly any garbage.
            gc.freeze()
            first = False


async def _wait_for_work(changed: asyncio.Event, proxiers: list[Proxier]) -> None:
    """Wait for a change, or until somebody is found to have taken our rules away."""
    while True:
        try:
            await asyncio.wait_for(changed.wait(), MONITOR_SECONDS)
            return
        except TimeoutError:
            for proxier in proxiers:
                if not await proxier.backend.still_there():
                    log.warning("the rules of IPv%s are gone; writing them anew", proxier.family)
                    return


def _settings(mirror: Mirror, container: Container, family: int) -> Settings:
    """How the rules of `family` are made on this node, from what the API says now."""
    networks = networks_of_family(container.facts["pod_networks"], family)
    node = local_node(list(mirror.items[NODES].values()), container.facts["node"], family)
    return Settings(node=node, family=family, cluster_cidr=next(iter(networks), None))


class Backend(Protocol):
    """The rules of one family in the kernel."""

    family: int

    async def still_there(self) -> bool:
        """Whether the rules are still there; if not, the next `apply` writes all of them."""

    async def apply(
        self,
        changed: Set[PortKey],
        ports: Mapping[PortKey, ServicePort],
        endpoints: Mapping[PortKey, Sequence[Endpoint]],
        settings: Settings,
    ) -> None:
        """Make the rules those of `ports`, which differ from last time's in `changed`. Raises K8snetError, after which
        the next call writes all of them."""


def backend(mode: str, family: int, variant: str = "default") -> Backend:
    """The backend of a proxy mode, "iptables" (in a variant: legacy, nft, default) or "nftables"."""
    if mode == "nftables":
        return NftablesBackend(Nft(f"{'ip' if family == 4 else 'ip6'} {TABLE}"))
    return IptablesBackend(Iptables(family, variant))


class Proxier:
    """Brings the kernel's rules of one family to what Services and EndpointSlices call for."""

    def __init__(self, node: str, backend: Backend) -> None:
        self.family = backend.family
        self.backend = backend
        self._tracker = Tracker(node, backend.family)
        self._pending: dict[PortKey, Before] = {}  # since the last sync that went well

    async def sync(self, services: Items, slices: Items, settings: Settings) -> None:
        """Load what changed, and then delete stale entries of UDP. Raises K8snetError; what changed is then tried again
        with the next call."""
        for key, before in self._tracker.update(services, slices).items():
            self._pending.setdefault(key, before)
        ports, endpoints = self._tracker.ports, self._tracker.endpoints
        await self.backend.apply(self._pending.keys(), ports, endpoints, settings)
        for options in stale(self._pending, ports, endpoints):
            await forget_flows(self.family, options)
        self._pending = {}


class IptablesBackend:
    """The tables nat and filter of one family."""

    def __init__(self, iptables: Iptables) -> None:
        self.family = iptables.family
        self._iptables = iptables
        self._planner = iptables_sync.Planner()
        self._known = False  # whether the kernel has what the planner remembers

    async def still_there(self) -> bool:
        """Whether the canary chain, which nothing refers to, is still there."""
        self._known = self._known and await self._iptables.has_chain("nat", CANARY)
        return self._known

    async def apply(
        self,
        changed: Set[PortKey],
        ports: Mapping[PortKey, ServicePort],
        endpoints: Mapping[PortKey, Sequence[Endpoint]],
        settings: Settings,
    ) -> None:
        """Each table in one transaction; jumps only where there are none yet."""
        known, self._known = self._known, False
        if not known:
            self._planner.forget()
        sync = self._planner.plan(changed, ports, endpoints, settings)
        await self._iptables.restore(sync.text() if known else await self._first(sync))
        self._known = True

    async def _first(self, sync: Sync) -> str:
        """The text that loads all of `sync` over what an earlier kube-proxy may have left."""
        saved = await self._iptables.save("nat")
        sync = iptables_sync.without(sync, _own_chains(saved).difference(sync.nat_chains))
        return sync.text() if _has_jumps(saved) else jumps_in_front(whole_tables(sync), BUILT_IN)


class NftablesBackend:
    """The table kube-proxy of one family."""

    def __init__(self, nft: Nft) -> None:
        self.family = nft.family
        self._nft = nft
        self._planner = nftables_sync.Planner()
        self._known = False

    async def still_there(self) -> bool:
        """Whether the table has its chain for Services."""
        self._known = self._known and SERVICES_CHAIN in await self._nft.names("chain")
        return self._known

    async def apply(
        self,
        changed: Set[PortKey],
        ports: Mapping[PortKey, ServicePort],
        endpoints: Mapping[PortKey, Sequence[Endpoint]],
        settings: Settings,
    ) -> None:
        """All in one transaction."""
        known, self._known = self._known, False
        if not known:
            # Chains and sets of Services have a "/" in their names; the shared ones have none.
            chains, sets = await self._nft.names("chain"), await self._nft.names("set")
            self._planner.forget(filter(_has_slash, chains), filter(_has_slash, sets))
        script = self._planner.plan(changed, ports, endpoints, settings)
        await self._nft.run(script)
        self._known = True


def _has_slash(name: str) -> bool:
    return "/" in name


def _own_chains(saved: Iterable[str]) -> set[str]:
    """The chains of Services and endpoints that an earlier kube-proxy left (shared chains are always written)."""
    return {line[1:].split()[0] for line in saved if re.match(r":KUBE-(SVC|SVL|EXT|FW|SEP)-", line)}


def _has_jumps(saved: Iterable[str]) -> bool:
    """Whether an earlier kube-proxy made its jumps already."""
    jump = next(jump for jump in JUMPS if jump.table == "nat")
    return any(line.startswith(f"-A {jump.source} ") and line.endswith(f"-j {jump.target}") for line in saved)

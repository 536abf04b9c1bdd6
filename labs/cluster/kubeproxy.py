"""kube-proxy: follows Services and EndpointSlices, and loads the rules that they call for into its node's kernel.

Stands for cmd/kube-proxy with the event handling of pkg/proxy. What the rules are, and which of them a change touches,
is decided in `labs.cluster.proxy`, and `labs.cluster.proxymodes` loads them; this is the part that watches, and waits
until a burst of changes is over. It runs in a pod of each node, on the node's network (DaemonSet kube-proxy), and tells
load balancers how it is (`labs.cluster.proxyhealth`). Left out: metrics, and the full sync that kube-proxy makes every
hour (--iptables-sync-period).
"""

from __future__ import annotations

import asyncio
import gc
import logging

from labs.cluster.alternatives import select_iptables
from labs.cluster.apiclient import Mirror
from labs.cluster.proxy.addresses import networks_of_family
from labs.cluster.proxy.changes import Before, Items, Tracker, Wanted
from labs.cluster.proxy.conntrack import stale
from labs.cluster.proxy.healthchecks import HealthCheck, ServiceKey, health_checks
from labs.cluster.proxy.node import local_node
from labs.cluster.proxy.services import PortKey
from labs.cluster.proxy.settings import Settings
from labs.cluster.proxyhealth import Health, ServiceHealth, serve_health
from labs.cluster.proxymodes import Backend, backend
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES
from labs.cluster.runtime.container import Container
from tracer.errors import K8snetError

SETTLE_SECONDS = 0.02  # a change is seldom alone
RETRY_SECONDS = 1.0
MONITOR_SECONDS = 30.0  # --iptables-sync-period; pkg/util/iptables/iptables.go, Monitor

log = logging.getLogger(__name__)


def main(container: Container) -> None:
    """Be kube-proxy on the node of `container`."""
    select_iptables(container.facts["iptables"])
    asyncio.run(_run(container))


async def _run(container: Container) -> None:
    facts = container.facts
    families = [int(family) for family in facts["families"]]
    backends = [backend(facts["proxy"], family, facts["iptables"]) for family in families]
    for one in backends:
        one.prepare()
    changed, health = asyncio.Event(), Health()

    def on_change() -> None:
        health.queued()
        changed.set()

    mirror = Mirror((SERVICES, ENDPOINTSLICES, NODES), on_change, server=facts["api_server"])
    proxiers = [Proxier(facts["node"], one) for one in backends]
    async with asyncio.TaskGroup() as group:
        group.create_task(serve_health(health))
        group.create_task(mirror.run())
        group.create_task(_sync_loop(container, mirror, changed, proxiers, health))


async def _sync_loop(
    container: Container, mirror: Mirror, changed: asyncio.Event, proxiers: list[Proxier], health: Health
) -> None:
    first, services = True, ServiceHealth(health)
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
        health.caught_up(mirror.items[NODES].get(("", container.facts["node"])), more=changed.is_set())
        # Of two families, the first one counts.
        await services.sync({key: one for each in reversed(proxiers) for key, one in each.health_checks().items()})
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


class Proxier:
    """Brings the kernel, for one family, to what Services and EndpointSlices call for."""

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
        wanted = Wanted(self._pending, self._tracker.ports, self._tracker.endpoints, settings)
        await self.backend.apply(wanted)
        await self.backend.forget(stale(wanted.before, wanted.ports, wanted.endpoints))
        self._pending = {}

    def health_checks(self) -> dict[ServiceKey, HealthCheck]:
        """What the health check ports of Services are to say, as of the last sync."""
        return health_checks(self._tracker.ports, self._tracker.endpoints)

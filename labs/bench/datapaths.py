"""The datapaths that are compared, each loaded and changed by the code that does it in the miniature cluster.

Stands for what `labs.cluster.kubeproxy` and `ebpfproxy` do once the API has told them of a change. Left out: watching
the API, and the 20 ms for which kube-proxy waits for more changes before it begins.

What belongs here: calling that code, timing it, and counting what it loads. What does not: rules and maps.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol

from labs.bench import objects
from labs.bench.names import EBPF, NFTABLES, variant_of
from labs.cluster import ebpfcompiler, ebpfloader
from labs.cluster.apiclient import Mirror
from labs.cluster.ebpfdevices import Watcher, node_facts
from labs.cluster.ebpfproxy import PINS
from labs.cluster.kubeproxy import Proxier
from labs.cluster.netfilter import Iptables, Nft
from labs.cluster.proxy.ebpf_changes import Key, State
from labs.cluster.proxy.ebpf_maps import Tables
from labs.cluster.proxy.nftables_tables import TABLE
from labs.cluster.proxy.node import LocalNode
from labs.cluster.proxy.settings import Settings
from labs.cluster.proxymodes import Backend, IptablesBackend, NftablesBackend
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES
from tracer.errors import MissingError


class Datapath(Protocol):
    """One datapath with many Services."""

    def load(self) -> tuple[float, int]:
        """Put all Services into the kernel; gives seconds, and how many rules or map entries. Raises K8snetError."""

    def replace_endpoint(self, number: int, change: int) -> float:
        """Let the Service have `objects.endpoints(number, change)`, and give the seconds until new flows go there.

        They count from the moment in which the proxy hears of it. Raises K8snetError.
        """


def prepare(datapath: str, services: int, cgroup: Path | None) -> Datapath:
    """Have the datapath in the network namespace of the caller, who has no threads, and its objects at hand.

    `cgroup`: that of the clients. Call it before the network is made. Raises K8snetError.
    """
    if datapath == EBPF:
        if cgroup is None:
            raise MissingError("ebpf needs cgroup v2", hint="k8snet-lab bench scale --datapath nftables")
        return _Maps(services, cgroup)
    return _Rules(datapath, services)


class _CountingIptables(Iptables):
    """Knows how many rules were loaded with the last transaction."""

    loaded = 0

    async def restore(self, text: str) -> None:
        await super().restore(text)
        self.loaded = sum(line.startswith(("-A ", "-I ")) for line in text.splitlines())


class _CountingNft(Nft):
    """Knows how many rules and elements were loaded with the last transaction."""

    loaded = 0

    async def run(self, script: str) -> None:
        await super().run(script)
        self.loaded = sum(line.startswith(("add rule ", "add element ")) for line in script.splitlines())


class _Rules:
    """kube-proxy in one of its modes."""

    def __init__(self, datapath: str, services: int) -> None:
        backend: Backend
        if datapath == NFTABLES:
            self._counter: _CountingNft | _CountingIptables = _CountingNft(f"ip {TABLE}")
            backend = NftablesBackend(self._counter)
        else:
            self._counter = _CountingIptables(4, variant_of(datapath))
            backend = IptablesBackend(self._counter)
        self._proxier = Proxier(objects.NODE, backend)
        self._settings = Settings(LocalNode(objects.NODE, objects.NODE_IP), 4, objects.POD_NETWORK)
        self._services, self._slices = objects.services(services), objects.slices(services)

    def load(self) -> tuple[float, int]:
        self._proxier.backend.prepare()
        seconds = self._sync()
        return seconds, self._counter.loaded

    def replace_endpoint(self, number: int, change: int) -> float:
        addresses = objects.endpoints(number, change)
        self._slices[objects.slice_key_of(number)] = objects.endpoint_slice(number, addresses)
        return self._sync()

    def _sync(self) -> float:
        began = time.perf_counter()
        asyncio.run(self._proxier.sync(self._services, self._slices, self._settings))
        return time.perf_counter() - began


class _Maps:
    """The eBPF proxy. Compiling and loading its programs, once for each node, is not part of what is timed."""

    def __init__(self, services: int, cgroup: Path) -> None:
        ebpfloader.load(PINS, cgroup, ebpfcompiler.compiled())
        self._maps = ebpfloader.open_maps(PINS)
        self._tables: Tables[Key] = Tables(self._maps)
        self._state = State(objects.NODE, [4])
        self._mirror = Mirror((SERVICES, ENDPOINTSLICES, NODES), lambda: None)
        self._mirror.items[SERVICES] = objects.services(services)
        self._mirror.items[ENDPOINTSLICES] = objects.slices(services)
        self._mirror.items[NODES] = {("", objects.NODE): objects.node()}

    def load(self) -> tuple[float, int]:
        addresses = Watcher(PINS, [4], "routed").look()
        self._state.set_addresses(addresses)
        self._maps["node"].set(bytes(4), node_facts(addresses).pack())
        began = time.perf_counter()
        for resource, items in self._mirror.items.items():
            for key, item in items.items():
                self._state.note(resource, key, item)
        updates = self._tables.apply(self._state.take(self._mirror))
        return time.perf_counter() - began, updates

    def replace_endpoint(self, number: int, change: int) -> float:
        key = objects.slice_key_of(number)
        item = objects.endpoint_slice(number, objects.endpoints(number, change))
        self._mirror.items[ENDPOINTSLICES][key] = item
        began = time.perf_counter()
        self._state.note(ENDPOINTSLICES, key, item)
        self._tables.apply(self._state.take(self._mirror))
        return time.perf_counter() - began

"""The modes of kube-proxy: what each of them does to the kernel to make it do what is wanted for Services.

Stands for what is behind `proxy.Provider` (pkg/proxy/types.go) and `ProxyServer.createProxier` in cmd/kube-proxy: one
backend for each IP family, and the same shape for both modes, so that the part that follows the API need not know which
one it has. (What takes kube-proxy's place with eBPF is another program: `labs.cluster.ebpfproxy`.)

What belongs here: calling iptables-restore, nft and conntrack, knowing whether the kernel still holds what was loaded.
What does not: what rules say and which of them a change touches (`labs.cluster.proxy`), watching the API
(`labs.cluster.kubeproxy`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from labs.cluster.netfilter import Iptables, Nft, forget_flows, jumps_in_front
from labs.cluster.proxy import iptables_sync, nftables_sync
from labs.cluster.proxy.changes import Wanted
from labs.cluster.proxy.iptables_tables import CANARY, JUMPS, whole_tables
from labs.cluster.proxy.nftables_tables import SERVICES, TABLE

BUILT_IN = frozenset(jump.source for jump in JUMPS)
ROUTE_LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")


class Backend(Protocol):
    """One proxy mode for one IP family, in the network namespace that it is called in."""

    family: int

    def prepare(self) -> None:
        """Make the node ready, once, before anything is loaded. Raises OSError, or K8snetError."""

    async def still_there(self) -> bool:
        """Whether the kernel still has what was loaded; if not, the next `apply` loads all of it."""

    async def apply(self, wanted: Wanted) -> None:
        """Make the kernel do what is wanted. Raises K8snetError, after which the next call loads all of it."""

    async def forget(self, flows: Iterable[Iterable[str]]) -> None:
        """Let no packet go the way of these flows of UDP any more, each given as options of the command conntrack.

        Raises K8snetError.
        """


def backend(mode: str, family: int, variant: str = "default") -> Backend:
    """The backend of a mode, "iptables" (in a variant: legacy, nft, default) or "nftables"."""
    if mode == "nftables":
        return NftablesBackend(Nft(f"{'ip' if family == 4 else 'ip6'} {TABLE}"))
    return IptablesBackend(Iptables(family, variant))


class IptablesBackend:
    """The tables nat and filter of one family."""

    def __init__(self, iptables: Iptables) -> None:
        self.family = iptables.family
        self._iptables = iptables
        self._planner = iptables_sync.Planner()
        self._known = False  # whether the kernel has what the planner remembers

    def prepare(self) -> None:
        """Have NodePorts answer on 127.0.0.1; KUBE-FIREWALL keeps neighbours out."""
        if self.family == 4:
            ROUTE_LOCALNET.write_text("1")

    async def still_there(self) -> bool:
        """Whether the canary chain, which nothing refers to, is still there."""
        self._known = self._known and await self._iptables.has_chain("nat", CANARY)
        return self._known

    async def apply(self, wanted: Wanted) -> None:
        """Each table in one transaction; jumps only where there are none yet."""
        known, self._known = self._known, False
        has_jumps = known or await self._take_over()
        sync = self._planner.plan(wanted)
        await self._iptables.restore(sync.text() if has_jumps else jumps_in_front(whole_tables(sync), BUILT_IN))
        self._known = True

    async def _take_over(self) -> bool:
        """Start from what an earlier kube-proxy may have left; give whether its jumps are there."""
        saved = await self._iptables.save("nat")
        self._planner.forget(_own_chains(saved))
        return _has_jumps(saved)

    async def forget(self, flows: Iterable[Iterable[str]]) -> None:
        """Delete their entries of connection tracking."""
        for options in flows:
            await forget_flows(self.family, options)


class NftablesBackend:
    """The table kube-proxy of one family."""

    def __init__(self, nft: Nft) -> None:
        self.family = nft.family
        self._nft = nft
        self._planner = nftables_sync.Planner()
        self._known = False

    def prepare(self) -> None:
        """Nothing: NodePorts answer on the node's own address only."""

    async def still_there(self) -> bool:
        """Whether the table has its chain for Services."""
        self._known = self._known and SERVICES in await self._nft.names("chain")
        return self._known

    async def apply(self, wanted: Wanted) -> None:
        """All in one transaction."""
        known, self._known = self._known, False
        if not known:
            await self._take_over()
        await self._nft.run(self._planner.plan(wanted))
        self._known = True

    async def _take_over(self) -> None:
        """Start from what an earlier kube-proxy may have left."""
        chains, sets = await self._nft.names("chain"), await self._nft.names("set")
        self._planner.forget(filter(_is_of_service, chains), filter(_is_of_service, sets))

    async def forget(self, flows: Iterable[Iterable[str]]) -> None:
        """Delete their entries of connection tracking."""
        for options in flows:
            await forget_flows(self.family, options)


def _is_of_service(name: str) -> bool:
    """Whether a chain or set is one Service's: those have a "/" in their names, the shared ones have none."""
    return "/" in name


def _own_chains(saved: Iterable[str]) -> set[str]:
    """The chains of Services and endpoints that an earlier kube-proxy left (shared chains are always written)."""
    return {line[1:].split()[0] for line in saved if re.match(r":KUBE-(SVC|SVL|EXT|FW|SEP)-", line)}


def _has_jumps(saved: Iterable[str]) -> bool:
    """Whether an earlier kube-proxy made its jumps already."""
    jump = next(jump for jump in JUMPS if jump.table == "nat")
    return any(line.startswith(f"-A {jump.source} ") and line.endswith(f"-j {jump.target}") for line in saved)

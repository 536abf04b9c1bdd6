"""The Service map while it is being put together, from rules of whichever mode of kube-proxy.

What belongs here: collecting addresses into Service ports. What does not: finding them (`kube_iptables`,
`kube_nftables`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tracer.rules.model import Interval, Match, prefixes
from tracer.rules.services import Address, Branch, Endpoint, NodePortScope, ServiceMap, ServicePort

FAMILIES = {"ip": 4, "ip6": 6}
_LOCAL_CHAINS = ("KUBE-SVL-", "KUBE-XLB-", "local-")


def source_ranges(matches: Iterable[Match], family: str, balancer: str | None) -> tuple[str, ...]:
    """The sources that these matches let in, as prefixes; without the balancer's own address, by which nodes go."""
    texts = (
        text
        for match in matches
        if match.keys == (f"{family} saddr",) and match.mask is None
        for value in match.values
        if isinstance(value, Interval)
        for text in prefixes(value, family)
    )
    return tuple(text for text in texts if text.partition("/")[0] != balancer)


class Name(NamedTuple):
    """What tells one Service port from another."""

    family: int
    namespace: str
    name: str
    port_name: str
    protocol: str


@dataclass(slots=True)
class _Port:
    """A Service port while its rules are being read; addresses by IP (None: NodePort) and port."""

    addresses: dict[tuple[str | None, int], Address] = field(default_factory=dict)
    affinity: int | None = None
    ranges: tuple[str, ...] = ()


class Building:
    """All Service ports while rules are being read."""

    def __init__(self) -> None:
        self._ports: dict[Name, _Port] = {}
        self.scopes: dict[int, NodePortScope] = {}

    def serve(self, name: Name, address: Address, affinity: int | None, ranges: tuple[str, ...] = ()) -> None:
        """An address that endpoints serve."""
        port = self._ports.setdefault(name, _Port())
        port.addresses.setdefault((address.ip, address.port), address)
        port.affinity = port.affinity if affinity is None else affinity
        port.ranges = port.ranges or ranges

    def refuse(self, name: Name, kind: str | None, ip: str | None, number: int, how: str) -> None:
        """An address at which packets that no endpoint took are dropped or rejected (how: drop, reject)."""
        port = self._ports.setdefault(name, _Port())
        known = port.addresses.get((ip, number))
        kind, branches = (kind, ()) if known is None else (known.kind, known.branches)
        port.addresses[ip, number] = Address(kind, ip, number, how, branches)

    def finish(self) -> ServiceMap:
        kinds = {
            (name.namespace, name.name, ip): address.kind
            for name, port in self._ports.items()
            for (ip, _), address in port.addresses.items()
            if ip is not None and address.kind is not None
        }
        return ServiceMap((_finished(name, port, kinds) for name, port in self._ports.items()), self.scopes)


def _finished(name: Name, port: _Port, kinds: Mapping[tuple[str, str, str], str]) -> ServicePort:
    addresses = tuple(
        Address(kinds.get((name.namespace, name.name, a.ip)), a.ip, a.port, a.refused, a.branches)
        if a.kind is None and a.ip is not None  # told by another port of the Service, perhaps
        else a
        for a in port.addresses.values()
    )
    branches = [branch for address in addresses for branch in address.branches]
    everywhere = _endpoints(branch for branch in branches if not _is_local(branch))
    local = _endpoints(branch for branch in branches if _is_local(branch))
    return ServicePort(
        family=name.family,
        namespace=name.namespace,
        name=name.name,
        port_name=name.port_name or None,
        protocol=name.protocol,
        addresses=addresses,
        endpoints=everywhere or local,
        local_endpoints=local,
        session_affinity_seconds=port.affinity,
        source_ranges=port.ranges,
        no_endpoints=not everywhere and not local,
    )


def _is_local(branch: Branch) -> bool:
    """Whether its choice is that of traffic policy Local."""
    chooser = next(iter(branch.backends.values())).chains[0]
    return chooser.startswith(_LOCAL_CHAINS)


def _endpoints(branches: Iterator[Branch]) -> tuple[Endpoint, ...]:
    """What the first of these branches chooses from: all of a kind lead to the same chain."""
    branch = next(branches, None)
    return () if branch is None else tuple(branch.backends.values())

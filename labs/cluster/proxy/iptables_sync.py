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
        settings = wanted.settings
        comments = has_comments(wanted.ports, wanted.endpoints)
        anew = self._about != (settings, comments)
        made = {
            key: service_rules(wanted.ports[key], wanted.endpoints.get(key, ()), settings, comments=comments)
            for key in (wanted.ports if anew else wanted.before)
            if key in wanted.ports
        }
        old = self._rules
        ordered = list(old) == list(wanted.ports)
        now = old | made if ordered else {key: made.get(key) or old[key] for key in wanted.ports}
        self._rules, self._about = now, (settings, comments)
        if anew or not ordered or any(_shared(old[key]) != _shared(made[key]) for key in made):
            kept = ((key, made.get(key) or ServiceRules(rules.filter, rules.entry)) for key, rules in now.items())
            sync = compose((rules for _, rules in kept), settings)
        else:
            sync = _own(made.values())
        replaced = {chain for key in (old if anew else wanted.before) if key in old for chain in old[key].chains}
        gone, self._left = (replaced | self._left).difference(sync.nat_chains), set()
        return _without(sync, gone)


def _without(sync: Sync, chains: Iterable[str]) -> Sync:
    """Give `sync` with `chains` of the nat table removed: declaring them first empties them."""
    names = sorted(chains)
    removal = [f"-X {name}" for name in names]
    return replace(sync, nat_chains=[*sync.nat_chains, *names], nat_rules=[*sync.nat_rules, *removal])


def _shared(rules: ServiceRules) -> tuple[list[str], list[str]]:
    """The lines of a Service port in shared chains."""
    return rules.filter, rules.entry


def _own(rules: Iterable[ServiceRules]) -> Sync:
    """What of `rules` is in chains of their own."""
    sync = Sync([], [], [], [])
    for one in rules:
        sync.nat_chains.extend(one.chains)
        sync.nat_rules.extend(one.rules)
    return sync

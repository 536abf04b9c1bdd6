"""Partial syncs of nftables mode: a script for nft that brings the table from what it was to what it should be.

Stands for the transaction that `syncProxyRules` in pkg/proxy/nftables/proxier.go fills. kube-proxy v1.30 writes the
whole table each time; here only what differs is written, which later versions do as well: nftables replaces chains,
elements and sets one by one, and all of it in one transaction. kube-proxy puts off deleting a chain by a second, for
kernels that still count a reference from the same transaction; here it goes at once.

What belongs here: which commands lead from before to now. What does not: what rules say (`nftables`), running nft
(`labs.cluster.netfilter`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from labs.cluster.proxy.changes import Wanted
from labs.cluster.proxy.nftables import service_rules
from labs.cluster.proxy.nftables_tables import Element, ServiceRules, add_element, declarations, setup, table_name
from labs.cluster.proxy.services import PortKey
from labs.cluster.proxy.settings import Settings

ElementKey = tuple[str, str]  # container, key


@dataclass(slots=True)
class Planner:
    """Remembers the rules of every Service port, and so knows what a change writes."""

    _rules: dict[PortKey, ServiceRules] = field(default_factory=dict)
    _elements: dict[ElementKey, Element] = field(default_factory=dict)
    _chains: set[str] = field(default_factory=set)
    _sets: set[str] = field(default_factory=set)
    _settings: Settings | None = None  # what they were made for; None: the kernel's table is not ours yet

    def forget(self, chains: Iterable[str] = (), sets: Iterable[str] = ()) -> None:
        """The next plan writes all there is. `chains` and `sets`: those of Services that the kernel's table holds."""
        self._rules, self._elements, self._settings = {}, {}, None
        self._chains, self._sets = set(chains), set(sets)

    def plan(self, wanted: Wanted) -> str:
        """Give the script after which the kernel has the rules of `wanted`, and no others in chains of Services."""
        settings = wanted.settings
        anew = self._settings != settings
        now, written = dict[PortKey, ServiceRules](), list[ServiceRules]()
        for key, port in wanted.ports.items():
            known = None if anew or key in wanted.before else self._rules.get(key)
            now[key] = known or service_rules(port, wanted.endpoints.get(key, ()), settings)
            if not known:
                written.append(now[key])
        lines = list(self._commands(now, written, settings, anew))
        self._rules, self._settings = now, settings
        return "\n".join([*lines, ""])

    def _commands(
        self, now: Mapping[PortKey, ServiceRules], written: list[ServiceRules], settings: Settings, anew: bool
    ) -> Iterator[str]:
        table = table_name(settings)
        elements = _elements(now.values())
        chains = {chain for rules in now.values() for chain in rules.chains}
        sets = {name for rules in now.values() for name in rules.affinity_sets}
        if anew:
            yield from setup(settings)  # which empties the shared sets and maps
            self._elements = {}
        for rules in written:
            yield from declarations(rules, settings)
        for place in self._elements.keys() - {
            place for place in elements if elements[place] == self._elements.get(place)
        }:
            yield f"delete element {table} {place[0]} {{ {place[1]} }}"
        yield from (f"add rule {table} {chain} {rule}" for rules in written for chain, rule in rules.rules)
        yield from (add_element(table, one) for place, one in elements.items() if self._elements.get(place) != one)
        yield from _removals(table, sorted(self._chains - chains), sorted(self._sets - sets))
        self._elements, self._chains, self._sets = elements, chains, sets


def _elements(services: Iterable[ServiceRules]) -> dict[ElementKey, Element]:
    """All elements; of two Services that claim one address and port, the first one keeps it."""
    found: dict[ElementKey, Element] = {}
    for rules in services:
        for one in rules.elements:
            found.setdefault((one.container, one.key), one)
    return found


def _removals(table: str, chains: Sequence[str], sets: Sequence[str]) -> Iterator[str]:
    """Chains are emptied first: they may jump to each other."""
    yield from (f"flush chain {table} {chain}" for chain in chains)
    yield from (f"delete chain {table} {chain}" for chain in chains)
    yield from (f"delete set {table} {name}" for name in sets)

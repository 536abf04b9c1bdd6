"""The rules about one Service, out of all: so that its name is looked up without a map of 10,000 others.

What belongs here: leaving out what is about others, in either mode of kube-proxy. What does not: understanding what is
left (`kubeproxy`), which decides; to leave too much in only costs time.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from tracer.rules.model import Chain, Element, Origin, Rules, RuleSet, Set, Table, Verdict

# Each of kube-proxy's chains and maps with an entry for every Service; all others are one Service's own, or short
_CHAINS = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES")
_TO_NODE_PORTS = " -j KUBE-NODEPORTS"
_MAPS = ("service-ips", "service-nodeports", "no-endpoint-services", "no-endpoint-nodeports", "firewall-ips")


def about(rules: RuleSet, namespace: str, name: str) -> RuleSet:
    """The rules as they would be if there were no other Services than this one; they share what they can."""
    words = f"{namespace}/{name}"
    tables = [_table(table, words) for table in rules.tables]
    return RuleSet(tables, list(rules.notes), rules.ipsets, rules.sockets)


def _table(table: Table, words: str) -> Table:
    if table.origin is Origin.NFTABLES:
        sets = {key: _set(table.sets[key], words) for key in _MAPS if key in table.sets}
        return replace(table, sets=_laid_over(sets, table.sets))
    chains = {key: _chain(table.chains[key], words) for key in _CHAINS if key in table.chains}
    return replace(table, chains=_laid_over(chains, table.chains))


def _laid_over(some: dict[str, Any], others: Mapping[str, Any]) -> Mapping[str, Any]:
    return ChainMap(some, cast(dict[str, Any], others))


def _chain(chain: Chain, words: str) -> Chain:
    """The rules whose comment names the Service, and those that lead on to NodePorts."""
    rules = chain.rules
    kept = {line: index for index, line in enumerate(rules.raw) if words in line or line.endswith(_TO_NODE_PORTS)}
    return replace(chain, rules=Rules(list(kept), lambda line: rules[kept[line]]))


def _set(found: Set, words: str) -> Set:
    def read() -> tuple[Element, ...]:
        return tuple(element for element in found.elements if _is_about(element, words))

    return replace(found, read=read, _elements=None)


def _is_about(element: Element, words: str) -> bool:
    """An element names its Service in its verdict's chain or in its comment; without either, it may be any's."""
    chain = element.data.chain if isinstance(element.data, Verdict) else None
    names = [text for text in (chain, element.comment) if text is not None]
    return any(words in text for text in names) or (not element.comment and chain in (None, "reject-chain"))

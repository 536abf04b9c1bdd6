"""A table of nftables after some changes, as `nft monitor` told them, without reading it anew.

What belongs here: what each line changes. What does not: where lines come from (`nftmonitor`). Whatever is not plain
gives None: then the table has to be read. In which order a chain's rules stand, the kernel says; the lines do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from tracer.rules.model import Chain, Element, Rules, Set, Table, Value
from tracer.rules.nft_rule import element
from tracer.rules.nft_statements import parse_element, split_elements
from tracer.rules.nft_text import rule_parser

_LINE = re.compile(r"(add|insert|delete) (rule|chain|element|set|map) (\w+) (\S+) (\S+)(?: (.*))?")
_RULE = re.compile(r"(.*) # handle (\d+)")
_HANDLE = re.compile(r"(?:# )?handle (\d+)")
_ANONYMOUS = ("__set", "__map")
_Order = Callable[[str], list[int]]  # the handles of a chain's rules, as the kernel has them


class Deltas:
    """One table. Knows the rules that were added since it began, by their handles."""

    def __init__(self) -> None:
        self._rules: dict[str, dict[int, str]] = {}

    def apply(self, table: Table, lines: Sequence[str], order: _Order) -> Table | None:
        """The table after these changes; None where they can't be followed. `order` may raise OSError."""
        chains, elements = dict(table.chains), _Elements(table)
        touched: set[str] = set()
        for line in lines:
            match = _LINE.fullmatch(line)
            if match is None:
                return None
            if (match[3], match[4]) != (table.family, table.name):
                continue
            if match[2] == "element":
                done = elements.change(match[1], match[5], match[6] or "")
            elif match[2] in ("set", "map"):
                done = match[1] == "delete" and match[5].startswith(_ANONYMOUS)
            else:
                touched.add(match[5])
                done = self._change_chain(chains, table.family, match)
            if not done:
                return None
        for name in touched & chains.keys():
            known = self._rules.get(name, {})
            handles = order(name)
            if not known.keys() >= set(handles):
                return None
            rules = Rules([known[handle] for handle in handles], rule_parser(table.family))
            chains[name] = replace(chains[name], rules=rules)
        return replace(table, chains=chains, sets=elements.sets())

    def _change_chain(self, chains: dict[str, Chain], family: str, match: re.Match[str]) -> bool:
        what, kind, name, rest = match[1], match[2], match[5], match[6] or ""
        if kind == "rule":
            rule = _RULE.fullmatch(rest)
            if rule is not None and what != "delete":
                self._rules.setdefault(name, {})[int(rule[2])] = rule[1]
            return rule is not None or what == "delete"
        if what == "delete":
            self._rules.pop(name, None)
            return chains.pop(name, None) is not None
        if not _HANDLE.fullmatch(rest):
            return False  # a base chain
        chains.setdefault(name, Chain(name, Rules([], rule_parser(family))))
        return True


class _Elements:
    """The sets of a table while their elements change."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._changed: dict[str, dict[Value, Element]] = {}

    def change(self, what: str, name: str, rest: str) -> bool:
        """What `add` or `delete element` says; False when it can't be followed."""
        found = self._table.sets.get(name)
        if found is None or not (rest.startswith("{ ") and rest.endswith(" }")):
            return found is None and name.startswith(_ANONYMOUS)
        elements = self._changed.get(name)
        if elements is None:
            elements = self._changed[name] = {each.value: each for each in found.elements}
        try:
            for item in split_elements(rest[2:-2]):
                read = element(parse_element(item, found.data is not None), found.type, self._table.family)
                if what == "delete":
                    elements.pop(read.value, None)
                else:
                    elements[read.value] = read
        except (ValueError, KeyError):
            return False
        return True

    def sets(self) -> dict[str, Set]:
        """All sets, as they are now."""
        changed = {name: tuple(elements.values()) for name, elements in self._changed.items()}
        return {
            name: replace(found, _elements=changed[name]) if name in changed else found
            for name, found in self._table.sets.items()
        }

"""The short way through what iptables-save prints: where each chain's rules stand, found by a few regular expressions.

What belongs here: text in the plain form that the programs write themselves, whose lines are whole and whose chains are
all declared. What does not: any other form, and errors: then this gives up, and `iptables_save` reads line by line,
three times as slowly. The one must never say what the other would not; a test compares.

Chains stay text until they are asked for: of 16 MB of rules (10,000 Services), one destination concerns a few lines.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tracer.rules.iptables_builtin import POLICIES, built_in_hook, header_tells
from tracer.rules.iptables_rule import parse_rule
from tracer.rules.model import Chain, LazyChains, Origin, Rule, Rules, RuleSet, Table

_TABLE = re.compile(r"\*(\S+)\n((?::\S+ (?:-|ACCEPT|DROP)(?: \[[0-9]{1,20}:[0-9]{1,20}\])?\n)*+)")
_DECLARED = re.compile(r":\S+ (-|ACCEPT|DROP)(?: \[([0-9]+):([0-9]+)\])?")
_RUN = re.compile(r"-A (\S+)(?: .*)?\n(?:-A \1(?: .*)?\n)*+")  # rules of one chain that follow each other
_COMMIT = "COMMIT\n"
_ALL_BUT_QUOTES = bytes(code for code in range(256) if code not in b'"\\\n')


class _Places(NamedTuple):
    """Where the rules of each chain begin and end; `more` for those that stand in several places.

    Numbers in dictionaries and not pairs of them, which the garbage collector would look through again and again.
    """

    starts: dict[str, int]
    ends: dict[str, int]
    more: dict[str, list[tuple[int, int]]]

    def of(self, name: str) -> list[tuple[int, int]]:
        start = self.starts.get(name)
        return [] if start is None else [(start, self.ends[name]), *self.more.get(name, ())]


def read_plain(text: str, family: str) -> RuleSet | None:
    """The tables of a save file in the plain form, or None for any other text, right or wrong.

    family: ip or ip6, where no header tells it.
    """
    if not text.endswith("\n") or not is_plain(text):
        return None
    rules = RuleSet()
    origin = Origin.UNKNOWN
    at = 0
    while at < len(text):
        if text.startswith("*", at):
            found = _table(text, at, family, origin)
            if found is None or rules.table(found[0].family, found[0].name, origin) is not None:
                return None
            table, at = found
            rules.tables.append(table)
            continue
        end = text.index("\n", at)
        line = text[at:end]
        if line and (not line.startswith("#") or "incompatible" in line):
            return None
        family, origin = header_tells(line) or (family, origin)
        at = end + 1
    return rules


def is_plain(text: str) -> bool:
    """Whether lines are whole: no comment goes on in the next, none has quotes in it; an even number in each line."""
    marks = text.encode(errors="surrogatepass").translate(None, _ALL_BUT_QUOTES).replace(b'""', b"")
    return b'"' not in marks and b"\\" not in marks


def _table(text: str, at: int, family: str, origin: Origin) -> tuple[Table, int] | None:
    """The table that begins at `at`, and where it ends."""
    match = _TABLE.match(text, at)
    if match is None:
        return None
    declared = {line[1 : line.index(" ")]: line for line in match[2].split("\n")[:-1]}
    places = _Places({}, {}, {})
    end = match.end()
    for run in _RUN.finditer(text, end):
        name = run[1]
        if run.start() != end or name not in declared:
            break
        if name in places.starts:
            places.more.setdefault(name, []).append(run.span())
        else:
            places.starts[name] = end
        end = run.end()
        places.ends.setdefault(name, end)
    if not text.startswith(_COMMIT, end):
        return None
    return Table(family, match[1], origin, _chains(text, match[1], family, declared, places)), end + len(_COMMIT)


def _chains(text: str, table: str, family: str, declared: dict[str, str], places: _Places) -> LazyChains:
    """declared: the declaration of each chain."""

    def parse(line: str) -> Rule:
        return parse_rule(line, family, declared)

    def words(name: str) -> str:
        return "".join([text[start:end] for start, end in places.of(name)])

    def make(name: str) -> Chain:
        lines = words(name).split("\n")[:-1]
        declaration = _DECLARED.fullmatch(declared[name])
        assert declaration is not None, declared[name]
        policy, packets, octets = declaration.groups()
        counters = None if packets is None else (int(packets), int(octets))
        hook = None if policy == "-" else built_in_hook(table, name)
        return Chain(name, Rules(lines, parse), hook, POLICIES.get(policy), None, counters)

    based = tuple(name for name, line in declared.items() if " -" not in line and built_in_hook(table, name))
    return LazyChains(declared, words, make, based)

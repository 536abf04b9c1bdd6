"""The text of `nft list ruleset` (or of one table): tables, chains, sets and maps of nftables.

What belongs here: nft(8)'s blocks. What does not: rules and elements (`nft_statements`), which are read when asked for.
It is a third as long as what `nft -j` prints and takes nft half the time; and some builds of nft have no JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tracer.errors import FormatError
from tracer.rules.model import Chain, Element, Hook, Origin, Rule, Rules, RuleSet, Set, Table
from tracer.rules.nft_rule import element, parse_rule
from tracer.rules.nft_statements import parse_element, parse_statements, seconds, split_elements

_TABLE = re.compile(r"table (?:(ip|ip6|inet|arp|bridge|netdev) )?(\S+) \{(?:\s*#.*)?")
_BLOCK = re.compile(r"(set|map|chain) (\S+) \{(?:\s*#.*)?")
_HANDLE = re.compile(r" # handle \d+$")
_HOOK = re.compile(r'type (\w+) hook (\w+)(?: device "?([^\s"]+)"?| devices = \{ ([^}]*) \})? priority ([^;]+);(.*)')
_POLICY = re.compile(r"policy (\w+);")
_PRIORITY = re.compile(r"([a-z]+)?\s*([+-])?\s*([0-9]{1,10})?")
_COMMENT = re.compile(r'comment "(.*)"')
# nftables src/rule.c, std_prio_family_table and bridge_std_prios
_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100, "out": 100}
_BRIDGE_PRIORITIES = {"dstnat": -300, "filter": -200, "out": 100, "srcnat": 300}


def read_nft_text(text: str, name: str = "<nft list>") -> RuleSet:
    """The tables of `nft list ruleset`.

    Raises FormatError, with file and line number, for what nft does not print. Kinds of objects that we do not
    know are passed over.
    """
    return _Reader(text, name).read()


class _Reader:
    """The line at hand, and how to go on."""

    def __init__(self, text: str, name: str) -> None:
        self._lines = [line.strip() for line in text.split("\n")]
        self._name = name
        self._number = 0
        self._rules = RuleSet()
        self._chains: dict[str, Chain] = {}  # of the table at hand
        self._sets: dict[str, Set] = {}

    def read(self) -> RuleSet:
        while (line := self._next()) is not None:
            match = _TABLE.fullmatch(line)
            if match is None:
                raise self._error(f"no table: {line[:60]!r}")
            family, name = match[1] or "ip", match[2]
            if self._rules.table(family, name) is not None:
                raise self._error(f"a second table {family} {name}")
            self._chains, self._sets = {}, {}
            table = Table(family, name, Origin.NFTABLES, self._chains, self._sets)
            self._rules.tables.append(table)
            self._read_table(table)
        return self._rules

    def _next(self) -> str | None:
        """The next line with anything on it, or None at the end."""
        while self._number < len(self._lines):
            line = self._lines[self._number]
            self._number += 1
            if line and not line.startswith("#"):
                return line
        return None

    def _block(self, what: str) -> str | None:
        """The next line of a block, or None at its closing brace."""
        line = self._next()
        if line is None:
            raise self._error(f"ends within {what}: is the file cut off?")
        return None if line == "}" else line

    def _read_table(self, table: Table) -> None:
        what = f"table {table.family} {table.name}"
        while (line := self._block(what)) is not None:
            block = _BLOCK.fullmatch(line)
            if block is None:
                comment = _COMMENT.fullmatch(line)
                if comment is not None:
                    table.comment = comment[1]
                elif line.endswith("{"):
                    self._pass_over(line)
                elif not line.startswith("flags "):
                    raise self._error(f"neither a set, a map nor a chain: {line[:60]!r}")
            elif block[1] == "chain":
                self._chains[block[2]] = self._read_chain(table, block[2])
            else:
                self._sets[block[2]] = self._read_set(table, block[1], block[2])

    def _pass_over(self, opening: str) -> None:
        """A kind of block that we do not know, with those in it."""
        depth = 1
        while depth:
            line = self._next()
            if line is None:
                raise self._error(f"ends within {opening[:60]!r}: is the file cut off?")
            depth += line.endswith("{") - (line == "}")

    def _read_chain(self, table: Table, name: str) -> Chain:
        chain = Chain(name, Rules([], rule_parser(table.family)))
        raw = chain.rules.raw
        while (line := self._block("a chain")) is not None:
            if line.startswith("type ") and (hook := _HOOK.fullmatch(line)) is not None:
                chain.hook, chain.policy = self._hook(table, hook)
            elif not raw and (comment := _COMMENT.fullmatch(line)) is not None:
                chain.comment = comment[1]
            else:
                raw.append(_HANDLE.sub("", line) if "# handle" in line else line)
        return chain

    def _hook(self, table: Table, match: re.Match[str]) -> tuple[Hook, str]:
        kind, name, device, devices, priority, rest = match.groups()
        policy = _POLICY.search(rest)
        if devices is not None:
            device = ",".join(part.strip().strip('"') for part in devices.split(","))
        hook = Hook(name, self._priority(priority.strip(), table.family), kind, device)
        return hook, policy[1] if policy is not None else "accept"

    def _priority(self, text: str, family: str) -> int:
        match = _PRIORITY.fullmatch(text)
        names = _BRIDGE_PRIORITIES if family == "bridge" else _PRIORITIES
        if match is None or (match[1] and match[1] not in names):
            raise self._error(f"no priority: {text[:60]!r}")
        offset = int(match[3] or 0)
        return names.get(match[1], 0) + (-offset if match[2] == "-" else offset)

    def _read_set(self, table: Table, kind: str, name: str) -> Set:
        found = Set(name, ("typeof",), "typeof" if kind == "map" else None)
        while (line := self._block(f"{kind} {name}")) is not None:
            word, _, rest = line.partition(" ")
            try:
                if word == "type":
                    key, _, data = rest.partition(" : ")
                    found.type = tuple(key.split(" . "))
                    found.data = data.removeprefix("interval ") or found.data
                elif word == "flags":
                    found.flags = frozenset(flag.strip() for flag in rest.split(","))
                elif word == "timeout":
                    found.timeout = int(seconds(rest))
                elif word == "size":
                    found.size = int(rest.split()[0])
                elif word == "comment":
                    found.comment = rest[1:-1]
                elif word == "elements":
                    found.read = self._elements(found, table.family, rest.removeprefix("= {"))
            except (ValueError, IndexError):
                raise self._error(f"not as nft writes a set: {line[:60]!r}") from None
        return found

    def _elements(self, found: Set, family: str, first: str) -> Callable[[], tuple[Element, ...]]:
        """What reads the elements, which go on to the closing brace at the end of a line."""
        start = self._number
        lines = [first]
        while not (lines[-1].endswith(" }") or lines[-1] == "}"):
            line = self._next()
            if line is None:
                raise self._error(f"ends within the elements of {found.name}: is the file cut off?")
            lines.append(line)
        text = "\n".join(lines)[:-1]
        name, is_map, types = self._name, found.data is not None, found.type

        def read() -> tuple[Element, ...]:
            try:
                return tuple(element(parse_element(item, is_map), types, family) for item in split_elements(text))
            except (ValueError, KeyError) as error:
                raise FormatError(f"{name}:{start}: not as nft writes elements: {error}") from None

        return read

    def _error(self, why: str) -> FormatError:
        return FormatError(f"{self._name}:{min(self._number, len(self._lines))}: {why}")


def rule_parser(family: str) -> Callable[[str], Rule]:
    """What reads a rule of a table of this family."""

    def parse(line: str) -> Rule:
        statements, comment = parse_statements(line, family)
        return parse_rule(statements, family, comment, line)

    return parse

"""The text of `ipset save`, and what `ipset restore` takes: sets of addresses, ports and devices.

What belongs here: sets and their elements. What does not: whether a packet is in one (`ipsets`), asking the kernel
(`live`, `ipset_netlink`).

    create NAME TYPE [family inet|inet6] [netmask N] [timeout N] …
    add NAME ELEMENT [nomatch] [wildcard] [timeout N] [comment "…"] …

Source: ipset(8); lib/parse.c and lib/print.c of ipset. Elements are read when first asked for. Types, and words, that
nobody told us of make a set `strange`: what is in it is not known then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tracer.errors import FormatError
from tracer.rules.iptables_matches import number
from tracer.rules.model import (
    Element,
    Interval,
    Ipset,
    RuleSet,
    Value,
    address_number,
    prefix,
    prefixes,
    protocol_word,
)

# Of each type, the parts of an element
TYPES = {
    "hash:ip": ("ip",),
    "hash:net": ("net",),
    "hash:ip,port": ("ip", "port"),
    "hash:ip,port,ip": ("ip", "port", "ip"),
    "hash:ip,port,net": ("ip", "port", "net"),
    "hash:net,port": ("net", "port"),
    "hash:net,iface": ("net", "iface"),
    "bitmap:ip": ("ip",),
    "bitmap:port": ("port",),
    "list:set": ("set",),
}
_WITHOUT_FAMILY = ("bitmap:port", "list:set")
_PORTS_OF = frozenset(("tcp", "udp", "sctp", "udplite"))  # for others it is an ICMP type, or nothing
_CREATE = re.compile(r"create (.+?) ((?:hash|bitmap|list):\S+)((?: .*)?)")  # a name may have blanks in it
_CREATE_OTHER = re.compile(r"create (\S+) (\S+)((?: .*)?)")
_COMMENT = re.compile(r' comment "([^"]*)"')
# How many words follow each; those that are not here are not known
_CREATE_WORDS = {
    **dict.fromkeys(("family", "hashsize", "maxelem", "timeout", "bucketsize", "initval", "netmask", "bitmask"), 1),
    **dict.fromkeys(("range", "size", "resize", "probes", "gc"), 1),
    **dict.fromkeys(("counters", "comment", "skbinfo", "forceadd", "-exist", "-!"), 0),
}
_ADD_WORDS = {
    **dict.fromkeys(("timeout", "packets", "bytes", "skbmark", "skbprio", "skbqueue", "before", "after"), 1),
    **dict.fromkeys(("nomatch", "wildcard", "-exist", "-!"), 0),
}
_FAMILIES = {"inet": "ip", "inet6": "ip6", "ipv4": "ip", "ipv6": "ip6"}
_WIDTHS = {"ip": 32, "ip6": 128}

Lines = list[tuple[int, str]]  # what follows `add NAME`, with the line's number


def read_ipsets(text: str, name: str = "<ipset save>") -> RuleSet:
    """The sets of a file; `name` is what errors call it.

    Raises FormatError, with file and line number, for what ipset would not take either: at once, or, where it concerns
    an element, when the elements are asked for.
    """
    return _Reader(name).read(text)


class _Reader:
    """The state between two lines: the sets that were created."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._number = 0
        self._sets: dict[str, Ipset] = {}
        self._lines: dict[str, Lines] = {}
        self._with_blanks: list[str] = []

    def read(self, text: str) -> RuleSet:
        for self._number, line in enumerate(text.split("\n"), 1):
            if line.startswith("add "):
                name, _, element = line[4:].partition(" ")
                lines = self._lines.get(name)
                if lines is None or self._with_blanks:
                    lines, element = self._set_of(line[4:])
                lines.append((self._number, element))
            elif line.startswith("create "):
                self._create(line.rstrip())
            elif line.startswith("flush "):
                self._set_of(line[6:].strip() + " ")[0].clear()
            elif line.strip() not in ("", "COMMIT", "quit") and not line.startswith("#"):
                raise self._error(f"neither create, add nor COMMIT: {_shown(line)}")
        return RuleSet(ipsets=self._sets)

    def _set_of(self, words: str) -> tuple[Lines, str]:
        """The set whose name the words begin with, and what follows it."""
        for name in (*self._with_blanks, words.partition(" ")[0]):
            if name in self._lines and words.startswith(f"{name} "):
                return self._lines[name], words[len(name) + 1 :]
        raise self._error(f"an element for the set {_shown(words.partition(' ')[0])}, which was not created")

    def _create(self, line: str) -> None:
        match = _CREATE.fullmatch(line) or _CREATE_OTHER.fullmatch(line)
        if match is None:
            raise self._error(f"a set without a type: {_shown(line)}")
        name, kind, rest = match.groups()
        if name in self._sets:
            raise self._error(f"a second set {_shown(name)}")
        said, strange = _options(rest, _CREATE_WORDS)
        if kind not in TYPES:
            strange = kind
        self._sets[name] = made = Ipset(name, (), kind=kind, strange=strange)
        lines: Lines = []
        self._lines[name] = lines
        if " " in name:
            self._with_blanks = sorted([*self._with_blanks, name], key=len, reverse=True)
        try:
            self._describe(made, said)
            elements = _Elements(self._name, made, _length(said, made.of), lines)
        except ValueError as error:
            raise self._error(f"set {_shown(name)}: {error}") from None
        made.read = elements.read

    @staticmethod
    def _describe(made: Ipset, said: dict[str, str]) -> None:
        if made.kind not in _WITHOUT_FAMILY:
            family = said.get("family", "inet")
            if family not in _FAMILIES:
                raise ValueError(f"no family {_shown(family)}")
            made.of = _FAMILIES[family]
        made.type = tuple(_nft_types(made))
        if "timeout" in said:
            made.timeout = int(said["timeout"])
        if "bitmask" in said and (mask := _mask_length(said["bitmask"])) is None:
            made.strange = made.strange or f"bitmask {said['bitmask']}"
        elif "bitmask" in said:
            said.setdefault("netmask", str(mask))

    def _error(self, why: str) -> FormatError:
        return FormatError(f"{self._name}:{self._number}: {why}")


def _options(text: str, known: dict[str, int]) -> tuple[dict[str, str], str | None]:
    """The words behind a set's type or an element, and the first that is not known."""
    said: dict[str, str] = {}
    words = iter(text.split())
    for word in words:
        if word not in known:
            return said, word
        said[word] = next(words, "") if known[word] else ""
    return said, None


def _nft_types(made: Ipset) -> Iterator[str]:
    address = "ipv6_addr" if made.of == "ip6" else "ipv4_addr"
    for part in TYPES.get(made.kind, ()):
        if part == "port":
            yield from ("inet_service",) if made.kind == "bitmap:port" else ("inet_proto", "inet_service")
        else:
            yield {"iface": "ifname", "set": "set"}.get(part, address)


def _length(said: dict[str, str], family: str | None) -> int:
    """The bits of addresses that count: netmask."""
    width = _WIDTHS[family or "ip"]
    text = said.get("netmask", str(width))
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= width):
        raise ValueError(f"no netmask {_shown(text)}")
    return int(text)


def _mask_length(text: str) -> int | None:
    """The length of a mask that is a prefix's; None for others."""
    mask, width = address_number(text), 128 if ":" in text else 32
    hole = ~mask & (1 << width) - 1
    return None if hole & (hole + 1) else width - hole.bit_length()


class _Elements:
    """The elements of one set, as lines."""

    def __init__(self, name: str, made: Ipset, length: int, lines: Lines) -> None:
        self._name = name
        self._set = made
        self._length = length
        self._lines = lines
        self._parts = TYPES.get(made.kind, ())

    def read(self) -> tuple[Element, ...]:
        """Raises FormatError."""
        if self._set.strange is not None:
            return ()
        found: list[Element] = []
        for at, line in self._lines:
            try:
                found += self._element(line)
            except (ValueError, OverflowError) as error:
                where = f"{self._name}:{at}: set {_shown(self._set.name)}"
                raise FormatError(f"{where}: no element of {self._set.kind}: {_shown(line)} ({error})") from None
        return tuple(found)

    def _element(self, line: str) -> list[Element]:
        """One line may stand for several."""
        text, blank, rest = line.strip().partition(" ")
        said: dict[str, str] = {}
        comment = None
        if blank:
            rest = blank + rest
            if (match := _COMMENT.search(rest)) is not None:
                comment = match[1]
                rest = rest[: match.start()] + rest[match.end() :]
            said, strange = _options(rest, _ADD_WORDS)
            if strange is not None:
                self._set.strange = strange
                return []
        words = text.split(",", len(self._parts) - 1)
        if len(words) != len(self._parts) or not all(words):
            raise ValueError(f"it has {len(self._parts)} parts")
        data = "nomatch" if "nomatch" in said else None
        values: list[tuple[Value, ...]] = [()]
        for part, word in zip(self._parts, words, strict=True):
            values = [value + more for more in self._part(part, word, "wildcard" in said) for value in values]
        return [Element(value if len(value) > 1 else value[0], data, comment) for value in values]

    def _part(self, part: str, word: str, wildcard: bool) -> list[tuple[Value, ...]]:
        """The values that one part stands for."""
        if part == "ip":
            return [(self._addresses(word),)]
        if part == "net":
            low, high = self._addresses(word)
            if "-" not in word:
                return [(Interval(low, high),)]
            return [(prefix(net),) for net in prefixes(Interval(low, high), self._set.of or "ip")]
        if part == "port":
            return [self._port(word)]
        if part == "iface":
            if word.endswith("*"):
                raise ValueError("a device of this name is taken for several")
            return [(word + "*" * wildcard,)]
        return [(word.partition(",")[0],)]  # of NAME,before,OTHER

    def _addresses(self, word: str) -> Interval:
        """ADDRESS, ADDRESS/LENGTH or ADDRESS-ADDRESS, to the bits that count."""
        first, dash, last = word.partition("-")
        family = self._set.of or "ip"
        if (":" in word) is not (family == "ip6"):
            raise ValueError("an address of the other family")
        low, high = prefix(first)
        if dash:
            high = address_number(last)
            if high < low:
                raise ValueError("it ends before it begins")
        hosts = _WIDTHS[family] - self._length
        return Interval(low >> hosts << hosts, high | (1 << hosts) - 1)

    def _port(self, word: str) -> tuple[Value, ...]:
        """[PROTOCOL:]PORT[-PORT]; TCP where none is given."""
        protocol, colon, port = word.rpartition(":")
        if self._set.kind == "bitmap:port":
            return (_ports(port),)
        protocol = protocol_word(protocol) if colon else "tcp"
        return (protocol, _ports(port) if protocol in _PORTS_OF else port)


def _ports(text: str) -> Interval:
    """PORT or PORT-PORT, in either order, as ipset takes them."""
    low, dash, high = text.partition("-")
    first, last = number(low, 0xFFFF), number(high if dash else low, 0xFFFF)
    return Interval(min(first, last), max(first, last))


def _shown(text: str) -> str:
    """Part of a file for an error message: quoted, escaped, short."""
    return repr(text if len(text) <= 60 else text[:60] + "…")

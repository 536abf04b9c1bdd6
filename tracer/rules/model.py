"""One model of packet-filter rules, for iptables (legacy and nft variant) and nftables, for IPv4 and IPv6.

What belongs here: tables, chains, hooks, rules and what rules are made of. What does not: how they wait until somebody
asks for them (`lazy`), reading them (`iptables_save`, `nft_json`, `nft_text`, `live`), and what they mean for
Kubernetes (`services`).

The words of nft name everything, as iptables-translate would: `--dport` of tcp is "tcp dport", `addrtype --dst-type` is
"fib daddr type", `-i` is "meta iifname". So whoever follows a packet through rules needs one evaluator and not two.

    RuleSet ── Table ── Chain ── Rule ── parts, in order: conditions, then (or, in nft, between them) statements
                 │        └ Hook         conditions: Match, Chance, Every, Recent, Unknown
                 └ Set (map: a Set whose elements carry data)
                                         statements: Verdict, Nat, SetMark, Lookup, Update, Other

Nothing is lost that we do not understand: a condition becomes `Unknown`, a statement `Other`, each with its own words,
and every rule keeps its text. The parts are NamedTuples, and chains and rules are read only when asked for, because a
node with 10,000 Services has 40,000 chains and 110,000 rules, of which one destination concerns twenty.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from tracer.rules.lazy import LazyChains as LazyChains
from tracer.rules.lazy import Rules as Rules

if TYPE_CHECKING:
    from tracer.rules.sockets import SocketServices


class Origin(Enum):
    """Which of the kernel's rule engines holds a table, and who writes it."""

    LEGACY = "iptables-legacy"
    IPTABLES_NFT = "iptables-nft"
    NFTABLES = "nftables"
    UNKNOWN = "iptables"  # save text without the header that tells the variants apart
    EBPF = "ebpf"  # no table of rules: the maps of a Service datapath at sockets (`sockets`)


class Interval(NamedTuple):
    """Numbers from low to high, both included: addresses as integers, or ports in host order."""

    low: int
    high: int


# int: a mark or number · str: a word such as "tcp", "new", "local", an interface name ("eth*": any that starts so) ·
# Interval: addresses or ports · tuple: the fields of a concatenation, in the order of Match.keys
Value = int | str | Interval | tuple["Value", ...]


class Match(NamedTuple):
    """A packet's fields compared: true when (field & mask) is any of `values`, or in the set; `negated` turns it round.

    keys: what is compared, in nft's words; more than one is a concatenation, whose values are then tuples.
    set: name of the set to look in, instead of values.
    """

    keys: tuple[str, ...]
    values: tuple[Value, ...] = ()
    negated: bool = False
    mask: int | None = None
    set: str | None = None


class Chance(NamedTuple):
    """True at random, for this share of packets (`statistic --mode random`); probability is 0 to 1."""

    probability: float
    negated: bool = False


class Every(NamedTuple):
    """True for each `every`th packet, beginning with number `packet` (`statistic --mode nth`)."""

    every: int
    packet: int
    negated: bool = False


class Recent(NamedTuple):
    """The match `recent`: a list of addresses seen lately. action: set, rcheck, update, remove. seconds: 0 for any."""

    name: str
    action: str
    seconds: int = 0
    hitcount: int = 0
    negated: bool = False
    source: bool = True  # the packet's source address is looked up; otherwise its destination


class Unknown(NamedTuple):
    """A condition that we do not understand: its module (or nft expression) and its own words. It may hold or not."""

    name: str
    text: str


class Verdict(NamedTuple):
    """What ends a rule. kind: accept, drop, reject, return, jump, goto, continue, queue. chain: where to."""

    kind: str
    chain: str | None = None
    reason: str | None = None  # of reject: icmp-port-unreachable, tcp-reset, …


class Nat(NamedTuple):
    """Address translation. kind: dnat, snat, masquerade, redirect or netmap. An absent address or port stays.

    flags: random, persistent, … as the tool writes them; netmap for nft's `prefix`, which keeps the host's part of the
    address; "base N" where ports are counted from N on.
    """

    kind: str
    address: Interval | None = None
    port: Interval | None = None
    flags: tuple[str, ...] = ()
    lookup: Lookup | None = None  # nft: the address comes out of a map


class SetMark(NamedTuple):
    """mark = (mark & ~clear) ^ toggle, on key "meta mark" or "ct mark" (Linux net/netfilter/xt_mark.c)."""

    key: str
    clear: int
    toggle: int


class Lookup(NamedTuple):
    """nft's vmap: the verdict that a map holds for the packet's fields.

    keys: as in Match; ("numgen",) is a random or incremental number below `modulus`, plus `offset`.
    map: name of the map, or None when `elements` holds an anonymous one.
    """

    keys: tuple[str, ...]
    map: str | None = None
    elements: tuple[Element, ...] = ()
    mode: str | None = None  # of numgen: random or inc
    modulus: int = 0
    offset: int = 0


class Update(NamedTuple):
    """nft's dynamic sets: puts the packet's fields into a set. action: add, update or delete."""

    action: str
    set: str
    keys: tuple[str, ...]


class Other(NamedTuple):
    """A statement that does not matter for where a packet goes, or that we do not understand.

    ends: True when no later rule of the table sees the packet, False when the next one does, None when we do not know.
    """

    name: str
    text: str
    ends: bool | None = None


class Element(NamedTuple):
    """One element of a set (data None) or of a map."""

    value: Value
    data: Verdict | Value | None = None
    comment: str | None = None


Condition = Match | Chance | Every | Recent | Unknown
Statement = Verdict | Nat | SetMark | Lookup | Update | Other
Part = Condition | Statement


class Rule(NamedTuple):
    """One rule: its own words, as the kernel's tool writes them, and what they say, in order."""

    text: str
    parts: tuple[Part, ...]
    comment: str | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that ends the rule, if it has one."""
        last = self.parts[-1] if self.parts else None
        return last if isinstance(last, Verdict) else None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The parts that must hold before any statement acts."""
        return tuple(part for part in self.parts if isinstance(part, Match | Chance | Every | Recent | Unknown))


@dataclass(frozen=True, slots=True)
class Hook:
    """Where the kernel enters a base chain. name: prerouting, input, forward, output, postrouting, ingress, egress."""

    name: str
    priority: int
    type: str  # filter, nat or route
    device: str | None = None


@dataclass(slots=True)
class Chain:
    """A chain. policy: accept or drop, for a base chain. counters: packets and bytes that its policy decided."""

    name: str
    rules: Rules
    hook: Hook | None = None
    policy: str | None = None
    comment: str | None = field(default=None, compare=False)
    counters: tuple[int, int] | None = field(default=None, compare=False)


@dataclass(slots=True)
class Set:
    """A named set, or (data not None) a map. type: nft's types of the key, one for each field. timeout: seconds.

    `elements` are read when first asked for. Flags and comments do not count in comparisons: `nft -j` leaves some out.
    """

    name: str
    type: tuple[str, ...]
    data: str | None = None
    flags: frozenset[str] = field(default=frozenset(), compare=False)
    timeout: int | None = None
    size: int | None = None
    comment: str | None = field(default=None, compare=False)
    read: Callable[[], tuple[Element, ...]] = field(default=tuple, compare=False, repr=False)
    _elements: tuple[Element, ...] | None = field(default=None, compare=False, repr=False)

    @property
    def elements(self) -> tuple[Element, ...]:
        """The elements, in the order in which the kernel told them."""
        if self._elements is None:
            self._elements = self.read()
        return self._elements


@dataclass(slots=True)
class Ipset(Set):
    """A set of ipset(8), which rules of iptables look in (`-m set --match-set`).

    kind: hash:ip,port and so on. of: ip or ip6, or None for sets that hold neither's addresses. strange: the word of
    its creation or of an element that nobody told us of, so that what it holds is not known; None: it is. Elements have
    a value for each field of `type`; data "nomatch" for those that are left out. Of list:set they are names of sets.
    """

    kind: str = ""
    of: str | None = None
    strange: str | None = None


@dataclass(slots=True)
class Table:
    """A table. family: ip, ip6, inet, arp, bridge or netdev. `sets` holds the maps too."""

    family: str
    name: str
    origin: Origin
    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, Set] = field(default_factory=dict)
    comment: str | None = field(default=None, compare=False)

    def base_chains(self) -> Iterator[Chain]:
        """The chains that have a hook, without a look at the others."""
        if isinstance(self.chains, LazyChains):
            return (self.chains[name] for name in self.chains.based)
        return (chain for chain in self.chains.values() if chain.hook is not None)


@dataclass(slots=True)
class RuleSet:
    """All tables of one network namespace, or of the files that were read, in the order in which they were told.

    notes: what a reader had to leave out, for people, one sentence each. ipsets: by name; those of the namespace.
    sockets: the eBPF datapath that serves Services beside the rules, or instead.
    """

    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ipsets: dict[str, Ipset] = field(default_factory=dict)
    sockets: SocketServices | None = None

    def table(self, family: str, name: str, origin: Origin | None = None) -> Table | None:
        """The first table of that family and name (and origin, if given), or None."""
        for table in self.tables:
            if table.family == family and table.name == name and origin in (None, table.origin):
                return table
        return None

    def base_chains(self, family: str, hook: str) -> list[tuple[Table, Chain]]:
        """The chains that a packet of `family` (ip or ip6) meets at `hook`, in the kernel's order.

        Chains of family inet see both. Those of equal priority come in the order in which the tables were told, which
        is the reverse of the kernel's, where they are told as they were made: see `hooks.base_chains`.
        """
        found = [
            (chain.hook.priority, table, chain)
            for table in self.tables
            if table.family in (family, "inet")
            for chain in table.base_chains()
            if chain.hook is not None and chain.hook.name == hook
        ]
        return [(table, chain) for _, table, chain in sorted(found, key=lambda item: item[0])]

    def add(self, other: RuleSet) -> None:
        """Append what `other` holds: another family's file, or another engine's tables."""
        self.tables.extend(other.tables)
        self.notes.extend(other.notes)
        self.ipsets.update(other.ipsets)
        self.sockets = self.sockets or other.sockets


def address_number(text: str) -> int:
    """An IPv4 or IPv6 address as a number. Raises ValueError for anything else."""
    try:
        return int.from_bytes(socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text), "big")
    except OSError:
        raise ValueError(f"no IP address: {text!r}") from None


def address_text(number: int, family: str) -> str:
    """The reverse, in the form in which the kernel's tools write it; family: ip or ip6."""
    if family == "ip6":
        return socket.inet_ntop(socket.AF_INET6, number.to_bytes(16, "big"))
    return socket.inet_ntop(socket.AF_INET, number.to_bytes(4, "big"))


def canonical(ip: str) -> str:
    """An address as inet_ntop(3) writes it, whichever way it was written. Raises ValueError for anything else."""
    return address_text(address_number(ip), "ip6" if ":" in ip else "ip")


def prefix(text: str) -> Interval:
    """The addresses of ADDRESS or ADDRESS/LENGTH. Raises ValueError for anything else, dotted masks included."""
    base, slash, length_text = text.partition("/")
    number = address_number(base)
    if not slash:
        return Interval(number, number)
    width = 128 if ":" in base else 32
    length = int(length_text) if length_text.isascii() and length_text.isdigit() else -1
    if not 0 <= length <= width:
        raise ValueError(f"no prefix length: {text!r}")
    low = number >> (width - length) << (width - length)
    return Interval(low, low | (1 << (width - length)) - 1)


def prefixes(interval: Interval, family: str) -> list[str]:
    """The fewest ADDRESS/LENGTH that make up the interval; family: ip or ip6."""
    found = []
    low, high = interval
    width = 128 if family == "ip6" else 32
    while low <= high:
        size = min(low & -low if low else 1 << width, 1 << (high - low + 1).bit_length() - 1)
        found.append(f"{address_text(low, family)}/{width - size.bit_length() + 1}")
        low += size
    return found


# /etc/protocols may lack some and name others differently; these are the words of iptables and nft
_PROTOCOLS = {
    0: "all",
    1: "icmp",
    2: "igmp",
    4: "ipencap",
    6: "tcp",
    17: "udp",
    33: "dccp",
    41: "ipv6",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "ipv6-icmp",
    132: "sctp",
    136: "udplite",
}


def protocol_word(text: str | int) -> str:
    """The one word that we use for a layer-4 protocol, given by number or by any of its names."""
    word = str(text).lower()
    if word.isdecimal():
        return _PROTOCOLS.get(int(word), word)
    return "ipv6-icmp" if word in ("icmpv6", "icmp6") else word

"""The matches of iptables: what each option asks of a packet, in nft's words.

What belongs here: options of `-m MODULE` and iptables' own (`-s`, `-p` …). What does not: targets (`iptables_targets`).
Sources: iptables-extensions(8); iptables/xshared.c and extensions/libxt_*.c of iptables for the forms that are written.
"""

from __future__ import annotations

from collections.abc import Callable

from tracer.rules.iptables_words import Group, Option
from tracer.rules.model import (
    Chance,
    Condition,
    Every,
    Interval,
    Match,
    Recent,
    Unknown,
    address_number,
    prefix,
    protocol_word,
)

EVERYTHING = {"ip": Interval(0, (1 << 32) - 1), "ip6": Interval(0, (1 << 128) - 1)}
ALL_BITS = 0xFFFFFFFF


def conditions(group: Group, family: str) -> list[Condition]:
    """What the options of one module ask. family: ip or ip6. Never raises: what makes no sense to us is Unknown."""
    whole = _WHOLE.get(group.module)
    if whole is not None:
        try:
            return [whole({option.name: option for option in group.options})]
        except (ValueError, IndexError, KeyError):
            return [Unknown(group.module, group.text())]
    known = _OPTIONS.get(group.module)
    if known is None:
        return [Unknown(group.module, group.text())]
    found = []
    for option in group.options:
        try:
            condition = known[option.name](option.arguments, option.negated, family)
        except (ValueError, IndexError, KeyError):
            condition = Unknown(group.module or option.name, option.text())
        if condition is not None:
            found.append(condition)
    return found


Read = Callable[[list[str], bool, str], Condition | None]


def _address(which: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        value, mask = masked(arguments[0])
        if value == EVERYTHING[family] and not negated:
            return None
        return Match((f"{family} {which}",), (value,), negated, mask)

    return read


def masked(text: str) -> tuple[Interval, int | None]:
    """ADDRESS, ADDRESS/LENGTH or ADDRESS/MASK as an interval and, where the mask is no prefix, the mask."""
    base, _, mask_text = text.partition("/")
    if not mask_text or mask_text.isdigit():
        return prefix(text), None
    mask = address_number(mask_text)
    width = 128 if ":" in mask_text else 32
    hole = ~mask & (1 << width) - 1
    base_number = address_number(base) & mask
    if hole & (hole + 1):
        return Interval(base_number, base_number), mask
    return Interval(base_number, base_number | hole), None


def _interface(which: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        name = arguments[0]
        if name == "+" and not negated:
            return None
        return Match((f"meta {which}",), (name[:-1] + "*" if name.endswith("+") else name,), negated)

    return read


def _protocol(arguments: list[str], negated: bool, family: str) -> Condition | None:
    word = protocol_word(arguments[0])
    return None if word in ("all", "0") and not negated else Match(("meta l4proto",), (word,), negated)


def _ports(key: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        return Match((key,), tuple(port_interval(port) for port in arguments[0].split(",")), negated)

    return read


def port_interval(text: str) -> Interval:
    """80, 80:90, :90 or 80:, and 80-90 as targets write it."""
    low, colon, high = text.replace("-", ":").partition(":")
    if not colon:
        return Interval(number(low, 0xFFFF), number(low, 0xFFFF))
    return Interval(number(low, 0xFFFF) if low else 0, number(high, 0xFFFF) if high else 0xFFFF)


def number(text: str, most: int = ALL_BITS) -> int:
    """A decimal or hexadecimal number. Raises ValueError for anything else and beyond 0 to `most`."""
    value = int(text, 16 if text[:2] in ("0x", "0X") else 10)
    if not 0 <= value <= most or not text.isascii() or not text.isalnum():  # int() takes "+1_000" and other scripts too
        raise ValueError(f"{text} is out of range")
    return value


def _words(key: str, choose: int = 0) -> Read:
    """A comma-separated list of words, any of which fits."""

    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        return Match((key,), tuple(arguments[choose].lower().split(",")), negated)

    return read


def _mark(key: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        value, _, mask = arguments[0].partition("/")
        return Match((key,), (number(value),), negated, number(mask) if mask and number(mask) != ALL_BITS else None)

    return read


_TCP_FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}


def _tcp_flags(arguments: list[str], negated: bool, family: str) -> Condition | None:
    mask, value = (sum(_TCP_FLAGS[flag] for flag in word.split(",")) for word in arguments)
    return Match(("tcp flags",), (value,), negated, mask)


def _syn(arguments: list[str], negated: bool, family: str) -> Condition | None:
    return _tcp_flags(["FIN,SYN,RST,ACK", "SYN"], negated, family)


def _icmp(protocol: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        kind, slash, code = arguments[0].partition("/")
        if kind == "any" and not negated:
            return None
        if slash:
            return Match((f"{protocol} type", f"{protocol} code"), ((number(kind, 255), number(code, 255)),), negated)
        return Match((f"{protocol} type",), (number(kind, 255),), negated)

    return read


def _address_range(which: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        low, _, high = arguments[0].partition("-")
        return Match((f"{family} {which}",), (Interval(address_number(low), address_number(high or low)),), negated)

    return read


def _original(which: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        value, mask = masked(arguments[0])
        return Match((f"ct {which}",), (value,), negated, mask)

    return read


def _flag(key: str, word: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        return Match((key,), (word,), negated)

    return read


def _named(key: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        name = arguments[0]
        return Match((key,), (name[:-1] + "*" if name.endswith("+") else name,), negated)

    return read


def _owner(key: str) -> Read:
    def read(arguments: list[str], negated: bool, family: str) -> Condition | None:
        low, _, high = arguments[0].partition("-")
        return Match((key,), (Interval(number(low), number(high or low)),), negated)

    return read


def _ports_of(protocol: str) -> dict[str, Read]:
    return {"--dport": _ports(f"{protocol} dport"), "--sport": _ports(f"{protocol} sport")}


_OPTIONS: dict[str, dict[str, Read]] = {
    "": {
        "-s": _address("saddr"),
        "--source": _address("saddr"),
        "-d": _address("daddr"),
        "--destination": _address("daddr"),
        "-i": _interface("iifname"),
        "--in-interface": _interface("iifname"),
        "-o": _interface("oifname"),
        "--out-interface": _interface("oifname"),
        "-p": _protocol,
        "--protocol": _protocol,
    },
    "tcp": {**_ports_of("tcp"), "--tcp-flags": _tcp_flags, "--syn": _syn},
    "udp": _ports_of("udp"),
    "sctp": _ports_of("sctp"),
    "dccp": _ports_of("dccp"),
    "udplite": _ports_of("udplite"),
    "multiport": {"--dports": _ports("th dport"), "--sports": _ports("th sport"), "--ports": _ports("th port")},
    "icmp": {"--icmp-type": _icmp("icmp")},
    "icmp6": {"--icmpv6-type": _icmp("icmpv6")},
    "conntrack": {
        "--ctstate": _words("ct state"),
        "--ctstatus": _words("ct status"),
        "--ctproto": lambda arguments, negated, family: Match(
            ("ct protocol",), (protocol_word(arguments[0]),), negated
        ),
        "--ctdir": _words("ct direction"),
        "--ctorigsrc": _original("original saddr"),
        "--ctorigdst": _original("original daddr"),
        "--ctreplsrc": _original("reply saddr"),
        "--ctrepldst": _original("reply daddr"),
        "--ctorigsrcport": _ports("ct original proto-src"),
        "--ctorigdstport": _ports("ct original proto-dst"),
        "--ctreplsrcport": _ports("ct reply proto-src"),
        "--ctrepldstport": _ports("ct reply proto-dst"),
    },
    "state": {"--state": _words("ct state")},
    "mark": {"--mark": _mark("meta mark")},
    "connmark": {"--mark": _mark("ct mark")},
    "addrtype": {"--src-type": _words("fib saddr type"), "--dst-type": _words("fib daddr type")},
    "iprange": {"--src-range": _address_range("saddr"), "--dst-range": _address_range("daddr")},
    "physdev": {
        "--physdev-in": _named("physdev in"),
        "--physdev-out": _named("physdev out"),
        "--physdev-is-in": _flag("physdev is", "in"),
        "--physdev-is-out": _flag("physdev is", "out"),
        "--physdev-is-bridged": _flag("physdev is", "bridged"),
    },
    "owner": {"--uid-owner": _owner("meta skuid"), "--gid-owner": _owner("meta skgid")},
    "pkttype": {"--pkt-type": _words("meta pkttype")},
    "nfacct": {"--nfacct-name": lambda arguments, negated, family: None},  # counts, and is always true
}
_OPTIONS["ipv6-icmp"] = _OPTIONS["icmpv6"] = _OPTIONS["icmp6"]


def _statistic(said: dict[str, Option]) -> Condition:
    """Linux net/netfilter/xt_statistic.c: the kernel compares 31 random bits with probability * 2^31."""
    mode = said["--mode"].arguments[0]
    if mode == "random":
        chance = said["--probability"]
        probability = float(chance.arguments[0])
        if not 0 <= probability <= 1:
            raise ValueError(f"a probability of {probability}")
        return Chance(probability, chance.negated)
    if mode == "nth":
        packet = said["--packet"].arguments[0] if "--packet" in said else "0"
        return Every(number(said["--every"].arguments[0]), number(packet), said["--every"].negated)
    raise ValueError(f"statistic --mode {mode}")


def _recent(said: dict[str, Option]) -> Condition:
    (action,) = (name for name in ("--set", "--rcheck", "--update", "--remove") if name in said)
    return Recent(
        name=said["--name"].arguments[0] if "--name" in said else "DEFAULT",
        action=action[2:],
        seconds=number(said["--seconds"].arguments[0]) if "--seconds" in said else 0,
        hitcount=number(said["--hitcount"].arguments[0]) if "--hitcount" in said else 0,
        negated=said[action].negated,
        source="--rdest" not in said,
    )


def _ipset(said: dict[str, Option]) -> Condition:
    """Whether counters are updated does not matter; what they hold, and which elements say "nomatch", would."""
    if not said.keys() <= {"--match-set", "--update-counters", "--update-subcounters"}:
        raise ValueError("another result than that of --match-set alone")
    name, directions = said["--match-set"].arguments
    keys = {"src": "ipset src", "dst": "ipset dst"}
    return Match(tuple(keys[word] for word in directions.split(",")), (), said["--match-set"].negated, set=name)


# Modules whose options only make sense together
_WHOLE: dict[str, Callable[[dict[str, Option]], Condition]] = {
    "statistic": _statistic,
    "recent": _recent,
    "set": _ipset,
}

"""Rules of iptables for property tests: texts as iptables-save writes them, beside what they must be read as."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from hypothesis import strategies as st

from tracer.rules.iptables_words import quote
from tracer.rules.model import Chance, Every, Interval, Match, Nat, Part, Recent, SetMark, Verdict

ports = st.integers(0, 65535)
addresses = st.integers(0, 2**32 - 1)
names = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1, max_size=20)
comments = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]) | st.just(" "), min_size=1, max_size=60)


def dotted(number: int) -> str:
    return str(ipaddress.IPv4Address(number))


@st.composite
def networks(draw: st.DrawFn) -> tuple[str, Interval]:
    """ADDRESS/LENGTH, but for /0, which says nothing."""
    length = draw(st.integers(1, 32))
    network = ipaddress.IPv4Network((draw(addresses), length), strict=False)
    return str(network), Interval(int(network.network_address), int(network.broadcast_address))


@st.composite
def port_lists(draw: st.DrawFn) -> tuple[str, tuple[Interval, ...]]:
    pairs = draw(st.lists(st.tuples(ports, ports).map(sorted), min_size=1, max_size=7))
    texts = [str(low) if low == high else f"{low}:{high}" for low, high in pairs]
    return ",".join(texts), tuple(Interval(low, high) for low, high in pairs)


@st.composite
def own_options(draw: st.DrawFn, protocol: bool) -> list[tuple[str, Part]]:
    """Options of iptables itself: each once, in the order in which it saves them. protocol: there must be one."""
    options: list[tuple[str, Part]] = []
    if draw(st.booleans()):
        (sign, negated), (text, interval) = draw(signs), draw(networks())
        options.append((f"{sign}-s {text}", Match(("ip saddr",), (interval,), negated)))
    if draw(st.booleans()):
        (sign, negated), name = draw(signs), draw(names.filter(lambda name: len(name) < 16))
        options.append((f"{sign}-i {name}", Match(("meta iifname",), (name,), negated)))
    if protocol or draw(st.booleans()):
        word = draw(st.sampled_from(["tcp", "udp", "sctp"]))
        options.append((f"-p {word}", Match(("meta l4proto",), (word,))))
    return options


signs = st.sampled_from([("", False), ("! ", True)])


@st.composite
def matches(draw: st.DrawFn, protocol: bool) -> tuple[str, Part]:
    """One match, and the part that it must be read as. protocol: the rule asks for one that has ports."""
    sign, negated = draw(signs)
    kinds = ["state", "mark", "type", "random", "nth", "recent"]
    kind = draw(st.sampled_from(kinds + ["ports"] * protocol))
    if kind == "ports":
        text, intervals = draw(port_lists())
        return f"-m multiport {sign}--dports {text}", Match(("th dport",), intervals, negated)
    if kind == "state":
        states = draw(st.lists(st.sampled_from(["NEW", "ESTABLISHED", "RELATED", "INVALID"]), min_size=1, unique=True))
        words = tuple(state.lower() for state in states)
        return f"-m conntrack {sign}--ctstate {','.join(states)}", Match(("ct state",), words, negated)
    if kind == "mark":
        value, mask = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**32 - 2))
        return f"-m mark {sign}--mark {value:#x}/{mask:#x}", Match(("meta mark",), (value,), negated, mask)
    if kind == "type":
        return f"-m addrtype {sign}--dst-type LOCAL", Match(("fib daddr type",), ("local",), negated)
    if kind == "random":
        chance = f"{draw(st.integers(0, 2**31)) / 2**31:.11f}"
        return f"-m statistic --mode random {sign}--probability {chance}", Chance(float(chance), negated)
    if kind == "nth":
        every = draw(st.integers(1, 1000))
        return f"-m statistic --mode nth {sign}--every {every} --packet 0", Every(every, 0, negated)
    name, seconds = draw(names), draw(st.integers(1, 86400))
    text = f"-m recent {sign}--rcheck --seconds {seconds} --reap --name {name} --mask 255.255.255.255 --rsource"
    return text, Recent(name, "rcheck", seconds, 0, negated)


@st.composite
def targets(draw: st.DrawFn, kinds: Sequence[str]) -> tuple[str, Part]:
    kind = draw(st.sampled_from(kinds))
    if kind in ("accept", "drop", "return"):
        return f"-j {kind.upper()}", Verdict(kind)
    if kind in ("jump", "goto"):
        return f"-{kind[0]} B", Verdict(kind, "B")
    if kind == "reject":
        return "-j REJECT --reject-with icmp-port-unreachable", Verdict("reject", None, "icmp-port-unreachable")
    if kind == "dnat":
        number, port = draw(addresses), draw(st.integers(1, 65535))
        nat = Nat("dnat", Interval(number, number), Interval(port, port))
        return f"-j DNAT --to-destination {dotted(number)}:{port}", nat
    value, mask = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**32 - 1))
    return f"-j MARK --set-xmark {value:#x}/{mask:#x}", SetMark("meta mark", mask, value)


_VERDICTS = ("accept", "return", "jump", "goto")
TARGETS = {
    "mangle": (*_VERDICTS, "drop", "mark"),
    "filter": (*_VERDICTS, "drop", "reject"),
    "nat": (*_VERDICTS, "dnat"),
}


@st.composite
def rules(draw: st.DrawFn, table: str = "mangle") -> tuple[str, tuple[Part, ...], str | None]:
    """A rule that this table takes: its text after `-A CHAIN`, its parts, its comment. Jumps go to chain B."""
    target = draw(st.none() | targets(TARGETS[table]))
    protocol = draw(st.booleans()) or (target is not None and isinstance(target[1], Nat))
    own = draw(own_options(protocol))
    others = draw(st.lists(matches(protocol), max_size=4))
    comment = draw(st.none() | comments)
    words = [text for text, _ in others]
    if comment is not None:
        words.insert(draw(st.integers(0, len(words))), f"-m comment --comment {quote(comment)}")
    words = [text for text, _ in own] + words + ([] if target is None else [target[0]])
    parts = [part for _, part in own + others] + ([] if target is None else [target[1]])
    return " ".join(words), tuple(parts), comment


def rule_texts() -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(TARGETS)).flatmap(rules).map(lambda rule: rule[0])

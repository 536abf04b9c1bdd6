"""What a rule does with a packet, in one plain sentence: pure, from the steps of a walk to words.

What belongs here: words for conditions and effects. What does not: how sentences are laid out (`tracer.explanation`),
and the walk (`tracer.rules.walk`). Names and words of rules are not escaped here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tracer.ipset_words import ipset_words
from tracer.render import share
from tracer.rules.model import (
    Chance,
    Every,
    Interval,
    Lookup,
    Match,
    Nat,
    Origin,
    Part,
    Recent,
    SetMark,
    Unknown,
    Value,
    address_text,
    prefixes,
)
from tracer.rules.trail import Step

_MOST_PARTS = 20  # of which a fraction is told as such, if it is not 1 of them
_MOST_VALUES = 4  # that a sentence lists

# What kube-proxy's chains are for (proxier.go of either mode); the longest beginning counts
_PURPOSES = {
    "KUBE-SERVICES": "the list of all Services",
    "KUBE-NODEPORTS": "the list of NodePorts",
    "KUBE-SVC-": "which chooses an endpoint",
    "KUBE-SVL-": "which chooses an endpoint on this node",
    "KUBE-SEP-": "one endpoint",
    "KUBE-EXT-": "for traffic from outside of the cluster",
    "KUBE-XLB-": "for traffic from outside of the cluster",
    "KUBE-FW-": "which checks source ranges",
    "KUBE-MARK-MASQ": "which marks it for masquerading",
    "KUBE-MARK-DROP": "which marks it to be dropped",
    "KUBE-POSTROUTING": "which masquerades what is marked",
    "services": "the list of all Services",
    "service-": "which chooses an endpoint",
    "local-": "which chooses an endpoint on this node",
    "endpoint-": "one endpoint",
    "external-": "for traffic from outside of the cluster",
    "firewall-": "which checks source ranges",
    "mark-for-masquerade": "which marks it for masquerading",
    "masquerading": "which masquerades what is marked",
}
_REASONS = {
    "tcp-reset": "as if nothing listened there",
    "icmp-port-unreachable": "the sender is told at once",
    "icmp6-port-unreachable": "the sender is told at once",
    "icmpx-port-unreachable": "the sender is told at once",
}


def sentence(step: Step) -> str:
    """What the rule of a step does, and with which packets."""
    if step.table.origin is Origin.EBPF:
        return _by_program(step)
    if step.rule is None:
        return "no rule decided: the policy of the chain drops it"
    deed = _deed(step)
    if step.effect == "depends":
        unknown = step.would == "unknown"
        return f"depends on {', '.join(step.on)}" + (", which may do anything" if unknown else f": if so, {deed}")
    who = packets(step)
    return f"{who}: {deed}" if who else f"every packet {deed}" if step.probability > 1.0 - 1e-9 else deed


def _by_program(step: Step) -> str:
    """What a program of the eBPF datapath does, instead of a rule."""
    at_socket = step.hook == "socket"
    if step.effect == "dnat":
        return f"{'the socket calls' if at_socket else 'the packet goes to'} {step.target} instead"
    if step.effect == "reject":
        return "connect() fails at once, without a packet" if at_socket else "refused, by an ICMP error"
    return "left to the program at the device" if step.effect == "continue" else "dropped"


def fraction(probability: float) -> str:
    """1/3, 2/3, or a percentage where there is no such fraction."""
    for parts in range(2, _MOST_PARTS + 1):
        count = round(probability * parts)
        if 0 < count < parts and abs(probability - count / parts) < 1e-6:
            return f"{count}/{parts}"
    return share(probability)


def packets(step: Step) -> str:
    """Which packets the rule takes; "" for all that come to it."""
    family = step.table.family
    words = []
    protocol = next((part for part in step.parts if isinstance(part, Match) and part.keys == ("meta l4proto",)), None)
    has_port = any(isinstance(part, Match) and part.keys[0].endswith("dport") for part in step.parts)
    for part in step.parts:
        if part is protocol and has_port and not protocol.negated:
            continue  # the port tells it too
        phrase = _condition(part, family, step)
        if phrase:
            words.append(phrase)
    return ", ".join(words)


def _deed(step: Step) -> str:
    effect = step.would or step.effect
    if step.effect == "missing":
        return f"should go to {step.target}, which is not there; goes on behind this rule"
    if step.effect == "loop":
        return f"should go to {step.target}, which would never end; goes on behind this rule"
    tell = _DEEDS.get(effect)
    return tell(step) if tell is not None else f"is handed to {effect.upper()}"


def _to_chain(step: Step) -> str:
    purpose = purpose_of(step.target or "")
    return f"goes to {step.target}" + (f", {purpose}" if purpose else "")


def purpose_of(chain: str) -> str:
    """What one of kube-proxy's chains is for; "" for any other."""
    fitting = [name for name in _PURPOSES if chain == name or (name.endswith("-") and chain.startswith(name))]
    return _PURPOSES[max(fitting, key=len)] if fitting else ""


def _reject(step: Step) -> str:
    reason = step.verdict.reason if step.verdict is not None else None
    how = f" with {reason}" if reason else ""
    return f"is rejected{how}: {_REASONS.get(reason or '', 'the sender is told at once')}"


def _accept(step: Step) -> str:
    return f"is accepted, as far as table {step.table.name} goes"


def _return(step: Step) -> str:
    return "goes back to where it came from" if step.parent is not None else "the policy of the chain decides"


def _mark(step: Step) -> str:
    for part in step.parts:
        if isinstance(part, SetMark):
            which = "its connection is" if part.key == "ct mark" else "is"
            if part.toggle & part.clear == part.toggle and part.toggle:
                return f"{which} marked {part.toggle:#x}"
            if not part.toggle:
                return f"{which} no longer marked {part.clear:#x}" if part.clear != 0xFFFFFFFF else f"{which} unmarked"
            whose = "the mark of its connection" if part.key == "ct mark" else "its mark"
            return f"has {part.toggle:#x} flipped in {whose}"
    return "its marks are changed"


def _nat(verb: str) -> Callable[[Step], str]:
    def tell(step: Step) -> str:
        nat = next((part for part in step.parts if isinstance(part, Nat)), None)
        if nat is None or nat.lookup is not None:
            return f"{verb}, by a map"
        return f"{verb} {_nat_target(nat, step.table.family)}"

    return tell


def _netmap(step: Step) -> str:
    nat = next((part for part in step.parts if isinstance(part, Nat)), None)
    if nat is None or nat.address is None:
        return "gets an address with the same host part"
    return f"gets an address in {_value(nat.address, step.table.family)}, with the same host part"


def _nat_target(nat: Nat, family: str) -> str:
    port = "" if nat.port is None else _span(nat.port)
    if nat.address is None:
        return f"port {port}" if port else "itself"
    low, high = nat.address
    family = "ip6" if family == "ip6" or high > 0xFFFFFFFF else "ip"
    if low == high:
        text = address_text(low, family)
        return f"[{text}]:{port}" if ":" in text and port else f"{text}:{port}" if port else text
    return f"one of {address_text(low, family)}-{address_text(high, family)}" + (f", port {port}" if port else "")


_DEEDS: dict[str, Callable[[Step], str]] = {
    "jump": _to_chain,
    "goto": _to_chain,
    "return": _return,
    "accept": _accept,
    "drop": lambda step: "is dropped: the sender hears nothing",
    "reject": _reject,
    "dnat": _nat("gets the destination"),
    "snat": _nat("gets the source"),
    "netmap": _netmap,
    "masquerade": lambda step: "is masqueraded: it gets this node's own address as its source",
    "redirect": _nat("is sent to this node itself, to"),
    "mark": _mark,
    "queue": lambda step: "is handed to a program, which decides",
    "nfqueue": lambda step: "is handed to a program, which decides",
    "log": lambda step: "is logged",
    "nflog": lambda step: "is logged",
    "ct": lambda step: "is not tracked",
    "notrack": lambda step: "is not tracked",
}


def _condition(part: Part, family: str, step: Step) -> str:
    if isinstance(part, Match):
        found = step.ipsets.get(part.set or "") if part.keys[0].startswith("ipset ") else None
        return _match(part, family) if found is None or found.strange else ipset_words(part, found)
    if isinstance(part, Chance):
        chance = 1.0 - part.probability if part.negated else part.probability
        return f"by chance, {fraction(chance)} of those that come here"
    if isinstance(part, Every):
        return f"one of {part.every} that come here"
    if isinstance(part, Recent):
        if part.action == "set":
            return "(and the client is remembered)"
        return f"if its client was {'not ' if part.negated else ''}here within the last {part.seconds} s"
    if isinstance(part, Lookup):
        if part.keys == ("numgen",):
            return _number(part)
        return f"found in @{part.map}" if part.map else f"by its {' and '.join(part.keys)}"
    return part.text if isinstance(part, Unknown) else ""


def _number(lookup: Lookup) -> str:
    if lookup.modulus == 1:
        return ""
    return f"{'by chance' if lookup.mode == 'random' else 'in turn'}, one of {lookup.modulus}"


def _match(match: Match, family: str) -> str:
    if match.set is not None:
        return f"{' and '.join(map(_key, match.keys))} {'not ' if match.negated else ''}in @{match.set}"
    values = _values(match.values, family)
    negation = "not " if match.negated else ""
    if len(match.keys) == 1:
        tell = _MATCHES.get(match.keys[0])
        if tell is not None:
            return tell(negation, values, match)
    return f"{' and '.join(map(_key, match.keys))} {'is not' if match.negated else 'is'} {values}"


def _key(key: str) -> str:
    return {
        "ip saddr": "source",
        "ip6 saddr": "source",
        "ip daddr": "destination",
        "ip6 daddr": "destination",
        "meta l4proto": "protocol",
        "th dport": "port",
    }.get(key, key)


def _mark_words(negation: str, values: str, match: Match) -> str:
    value = match.values[0] if match.values else 0
    if match.mask is not None and value == 0 and isinstance(value, int):
        return f"{'' if match.negated else 'not '}marked {match.mask:#x}"
    return f"{negation}marked {value:#x}" if isinstance(value, int) else f"{negation}marked {values}"


def _kind_words(which: str) -> Callable[[str, str, Match], str]:
    def tell(negation: str, values: str, match: Match) -> str:
        what = "this node's own addresses" if match.values == ("local",) else f"{values} addresses"
        return f"{negation}{which} {what}"

    return tell


def _simple(words: str) -> Callable[[str, str, Match], str]:
    return lambda negation, values, match: f"{negation}{words} {values}"


_MATCHES: dict[str, Callable[[str, str, Match], str]] = {
    **dict.fromkeys(("ip saddr", "ip6 saddr"), _simple("from")),
    **dict.fromkeys(("ip daddr", "ip6 daddr"), _simple("to")),
    **{
        f"{protocol} {which}port": _simple(f"{protocol} {side}port")
        for protocol in ("tcp", "udp", "sctp")
        for which, side in (("d", ""), ("s", "source "))
    },
    "th dport": _simple("port"),
    "th sport": _simple("source port"),
    "meta l4proto": lambda negation, values, match: f"{negation}{values}",
    "meta iifname": _simple("coming in by"),
    "meta oifname": _simple("leaving by"),
    "meta mark": _mark_words,
    "ct mark": lambda negation, values, match: f"its connection {_mark_words(negation, values, match)}",
    "ct state": lambda negation, values, match: f"{negation}of {values} connections",
    "ct original daddr": _simple("first sent to"),
    "fib daddr type": _kind_words("to"),
    "fib saddr type": _kind_words("from"),
}


def _values(values: Iterable[Value], family: str) -> str:
    texts = [_value(value, family) for value in values]
    if len(texts) > _MOST_VALUES:
        texts = [*texts[: _MOST_VALUES - 1], f"{len(texts) - _MOST_VALUES + 1} more"]
    return " or ".join(texts)


def _value(value: Value, family: str) -> str:
    if isinstance(value, Interval):
        if value.high <= 0xFFFF and value.low >= 0 and (value.low or value.high):
            return _span(value)
        family = "ip6" if family == "ip6" or value.high > 0xFFFFFFFF else "ip"
        found = prefixes(value, family)
        if len(found) == 1:
            return found[0].removesuffix("/128" if family == "ip6" else "/32")
        return f"{address_text(value.low, family)}-{address_text(value.high, family)}"
    if isinstance(value, tuple):
        return " and ".join(_value(part, family) for part in value)
    return f"{value:#x}" if isinstance(value, int) else value


def _span(interval: Interval) -> str:
    return str(interval.low) if interval.low == interval.high else f"{interval.low}-{interval.high}"

"""What it means for a packet to be in a set of ipset(8), in a few words for a sentence.

What belongs here: those words. What does not: sentences (`tracer.rule_sentences`), and whether a packet is in there
(`tracer.rules.ipsets`).
"""

from __future__ import annotations

from tracer.rules.ipset_save import TYPES
from tracer.rules.model import Element, Interval, Ipset, Match

_FIELDS = {
    ("ip", "src"): "source",
    ("ip", "dst"): "destination",
    ("port", "src"): "source port",
    ("port", "dst"): "port",
    ("iface", "src"): "device that it came in by",
    ("iface", "dst"): "device that it leaves by",
}


def ipset_words(match: Match, found: Ipset) -> str:
    """From one of the 3 addresses of the set X; with destination and port in the set X (5 entries)."""
    negation = "not " if match.negated else ""
    parts = TYPES.get(found.kind, ())
    directions = [key.removeprefix("ipset ") for key in match.keys]
    elements = [element for element in found.elements if element.data is None]
    count = len(elements)
    if found.kind == "list:set":
        return f"{negation}in {_one_of(count, 'set')} of the list {found.name}"
    if parts in (("ip",), ("net",)):
        side = "from" if directions[0] == "src" else "to"
        noun = "network" if any(_is_network(element) for element in elements) else "address"
        return f"{negation}{side} {_one_of(count, noun)} of the set {found.name}"
    told = [
        _FIELDS["ip" if part == "net" else part, direction] for part, direction in zip(parts, directions, strict=False)
    ]
    words = " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    return f"with {words} {negation}in the set {found.name} ({_count(count)})"


def _is_network(element: Element) -> bool:
    return isinstance(element.value, Interval) and element.value.low != element.value.high


def _one_of(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"one of the {count:,} {plural}" if count > 1 else f"the one {noun}" if count else f"any of the 0 {plural}"


def _count(count: int) -> str:
    return f"{count:,} entries" if count > 1 else "1 entry" if count else "which is empty"

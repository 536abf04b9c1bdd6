"""What one rule contributes to the way from a Service's address to its endpoints: a choice, a DNAT, a condition.

What belongs here: reading a rule for that alone, and quickly where it has one of the few shapes that make up nine of
ten of kube-proxy's. What does not: where the way leads (`routes`).

Matches on a destination or protocol are taken as true: the chains of a Service are only entered for its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tracer.rules.model import (
    Chain,
    Chance,
    Condition,
    Every,
    Lookup,
    Match,
    Nat,
    Origin,
    Part,
    Recent,
    Table,
    Unknown,
    Verdict,
    address_text,
    canonical,
)


class Step(NamedTuple):
    """One rule's contribution, when the conditions hold.

    chance: the share of the packets that come to the rule which it takes, 0 to 1, of each of which 1/`modulus` goes to
    each of `chains` (none: the way ends here), or all to `endpoint` by DNAT.
    """

    chance: float = 1.0
    chains: tuple[str, ...] = ()
    endpoint: tuple[str, int] | None = None
    conditions: tuple[Condition, ...] = ()
    modulus: int = 1


MAX_PORT = 65535

SKIP = Step()  # it does not matter here


def steps(table: Table, chain: Chain) -> Iterator[Step | int]:
    """What the rules of a chain contribute, in order; an int is a session affinity, in seconds."""
    quick = _quick_reader(table, chain)
    for index, raw in enumerate(chain.rules.raw):
        step = quick(raw)
        if step is None:
            yield from _slow_steps(table, chain.rules[index].parts)
        elif step is not SKIP:
            yield step


def _quick_reader(table: Table, chain: Chain) -> Callable[[Any], Step | None]:
    if table.origin is not Origin.NFTABLES:
        return quick_iptables_step
    return quick_nft_step if chain.rules.raw and isinstance(chain.rules.raw[0], str) else quick_json_step


def _slow_steps(table: Table, parts: tuple[Part, ...]) -> Iterator[Step | int]:
    chance = 1.0
    conditions: list[Condition] = []
    sticky: int | None = None
    for part in parts:
        if isinstance(part, Chance):
            chance *= 1.0 - part.probability if part.negated else part.probability
        elif isinstance(part, Every):
            chance *= 1.0 / part.every if part.every else 1.0
        elif isinstance(part, Recent):
            sticky = part.seconds if part.action in ("rcheck", "update") else sticky
        elif isinstance(part, Match) and _timeout(table, part) is not None:
            sticky = _timeout(table, part)
        elif isinstance(part, Unknown) or (isinstance(part, Match) and "saddr" in part.keys[0]):
            conditions.append(part)
        elif sticky is not None:
            break
        elif isinstance(part, Verdict):
            yield Step(chance, () if part.chain is None else (part.chain,), None, tuple(conditions))
        elif isinstance(part, Nat) and part.kind == "dnat" and part.address is not None:
            port = part.port.low if part.port is not None else 0
            yield Step(chance, (), (address_text(part.address.low, table.family), port), tuple(conditions))
        elif isinstance(part, Lookup) and part.keys == ("numgen",) and part.modulus:
            verdicts = [element.data for element in part.elements if isinstance(element.data, Verdict)]
            chains = tuple(verdict.chain for verdict in verdicts if verdict.chain is not None)
            yield Step(chance, chains, None, tuple(conditions), part.modulus)
    if sticky is not None:
        yield sticky


def _timeout(table: Table, match: Match) -> int | None:
    """How long kube-proxy's nftables mode keeps a client at an endpoint: the timeout of the set that it looks in."""
    found = table.sets.get(match.set) if match.set is not None and "saddr" in match.keys[0] else None
    return None if found is None else found.timeout


_CHOICE = re.compile(
    r'-A \S+ -m comment --comment "[^"\\]*"(?: -m statistic --mode random --probability ([01]\.[0-9]+))?'
    r" -j (KUBE-SEP-\S+)"
)
_DNAT = re.compile(
    r'-A \S+ -p (\w+) -m comment --comment "[^"\\]*"(?: -m recent --set --name \S+ --mask \S+ --rsource)? -m \1 -j DNAT'
    r" --to-destination (\d+\.\d+\.\d+\.\d+|\[[0-9a-f]*:[0-9a-f:]+\]):(\d+)"
)
_MARK_CHAIN = "mark-for-masquerade"
_MARKS = f"jump {_MARK_CHAIN}"
_NFT_DNAT = re.compile(r"meta l4proto \w+ dnat to (\d+\.\d+\.\d+\.\d+|\[[0-9a-f]*:[0-9a-f:]+\]):(\d+)")
_NFT_CHOICE = re.compile(r"numgen random mod (\d+) vmap \{ ([^{}\"]*) \}")


def quick_iptables_step(line: str) -> Step | None:
    """The step of a line in one of the shapes that kube-proxy writes for each endpoint; None for any other."""
    if line.endswith(" -j KUBE-MARK-MASQ"):
        return SKIP
    match = _DNAT.fullmatch(line)
    if match is not None:
        return _dnat(match[2], match[3])
    match = _CHOICE.fullmatch(line)
    if match is not None:
        return Step(float(match[1]) if match[1] else 1.0, (match[2],))
    return None


def quick_nft_step(line: str) -> Step | None:
    """The same for a line of kube-proxy's nftables mode."""
    if line.endswith(_MARKS):
        return SKIP
    match = _NFT_DNAT.fullmatch(line)
    if match is not None:
        return _dnat(match[1], match[2])
    match = _NFT_CHOICE.fullmatch(line)
    if match is not None:
        chains = tuple(item.partition(" : goto ")[2] for item in match[2].split(", "))
        return Step(1.0, chains, None, (), int(match[1])) if all(chains) else None
    return None


def quick_json_step(rule: dict[str, Any]) -> Step | None:
    """The same for a rule in nft's JSON."""
    try:
        *others, last = rule["expr"]
        if last == {"jump": {"target": _MARK_CHAIN}}:
            return SKIP
        if "dnat" in last and len(others) == 1 and others[0]["match"]["left"] == {"meta": {"key": "l4proto"}}:
            return Step(1.0, (), (canonical(last["dnat"]["addr"]), int(last["dnat"]["port"])))
        if "vmap" in last and not others and last["vmap"]["key"]["numgen"]["mode"] == "random":
            chains = tuple(data["goto"]["target"] for _, data in last["vmap"]["data"]["set"])
            return Step(1.0, chains, None, (), int(last["vmap"]["key"]["numgen"]["mod"]))
    except (KeyError, TypeError, ValueError):
        pass  # another shape
    return None


def _dnat(address: str, port: str) -> Step | None:
    """None where that is no address or no port: whoever reads the rule in full says what it is."""
    try:
        return Step(1.0, (), (canonical(address.strip("[]")), int(port))) if int(port) <= MAX_PORT else None
    except ValueError:
        return None

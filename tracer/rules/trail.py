"""What a walk through rules leaves behind: each rule that took packets, what ended where, what people should know.

What belongs here: gathering. What does not: walking (`walk`), and what the trail means (`explain`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tracer.rules.model import Ipset, Part, Rule, Table, Verdict
from tracer.rules.packet import Packet, Place
from tracer.rules.worlds import Worlds


@dataclass(slots=True)
class Step:
    """A rule that took packets, and what it did.

    rule: counted from 1, as iptables --line-numbers does; None for the policy of a base chain. effect: what the rule
    does: accept, drop, reject, jump, goto, return, dnat, snat, masquerade, redirect, netmap, mark, queue, or another
    target's name in small letters; missing or loop for a jump that can't be made; depends where it can't be told
    whether the rule applies, and `would` is what it does then. probability: the share of all packets that it takes.
    parent: the step whose jump led here. target: where to. on: the words of the conditions that can't be told.
    """

    number: int
    hook: str
    table: Table
    chain: str
    rule: int | None
    text: str
    effect: str
    probability: float
    parent: int | None
    target: str | None = None
    would: str | None = None
    on: tuple[str, ...] = ()
    comment: str | None = None
    parts: tuple[Part, ...] = ()
    verdict: Verdict | None = None
    ipsets: Mapping[str, Ipset] = field(default_factory=dict)  # those that the rule names
    same_as: int | None = None  # the step of an equal jump, whose steps are not told again


class Ended(NamedTuple):
    """Packets that went no further. verdict: drop or reject. step: the number of the step that decided."""

    verdict: str
    packet: Packet
    probability: float
    step: int


class Visited(NamedTuple):
    """One walk through a chain: how many rules packets came to, and which of these took any. step: that led here."""

    hook: str
    table: Table
    chain: str
    step: int | None
    met: int
    took: tuple[int, ...]

    @property
    def passed(self) -> int:
        """How many rules were passed over."""
        return self.met - len(self.took)


@dataclass(slots=True)
class Passed:
    """What a packet passes on its way, as a mean over all packets: where chance decides, ways differ in length.

    rules: whose conditions the kernel tries, whether they hold or not. chains: that it walks through. lookups: in maps
    and sets, wherever a rule or a program makes them.
    """

    rules: float = 0.0
    chains: float = 0.0
    lookups: float = 0.0

    def add(self, other: Passed, share: float = 1.0) -> None:
        """What this share of packets passes besides."""
        self.rules += other.rules * share
        self.chains += other.chains * share
        self.lookups += other.lookups * share


class Trail:
    """The steps of a walk, in the order in which packets meet them, and all else that it found."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.ended: list[Ended] = []
        self.visited: list[Visited] = []
        self.notes: dict[str, None] = {}
        self.affinity: int | None = None
        self.passed = Passed()
        self.counters = False  # some rule took packets in turn

    def record(
        self,
        place: Place,
        table: Table,
        chain: str,
        index: int | None,
        rule: Rule | None,
        effect: str,
        probability: float,
        parent: int | None,
    ) -> Step:
        """Add a step."""
        number = len(self.steps)
        text = f"policy {effect}" if rule is None else rule.text
        step = Step(
            number, place.hook, table, chain, None if index is None else index + 1, text, effect, probability, parent
        )
        if rule is not None:
            step.comment, step.parts, step.verdict = rule.comment, rule.parts, rule.verdict
        self.steps.append(step)
        return step

    def note(self, text: str) -> None:
        """Tell people something, once."""
        self.notes.setdefault(text)

    def end(self, verdict: str, worlds: Worlds, step: Step) -> None:
        self.ended += (Ended(verdict, packet, weight, step.number) for packet, weight in worlds.items())

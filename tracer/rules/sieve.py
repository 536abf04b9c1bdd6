"""Divides packets by the conditions of rules: those for which one holds, and those for which it does not.

What belongs here: chance, turns, sets, and what can't be told, for many packets at once. What does not: whether one
packet meets a comparison (`conditions`), and what rules then do (`walk`).
"""

from __future__ import annotations

from tracer.rules.condition_words import condition_words
from tracer.rules.conditions import ABSENT, fields, holds, recent_entry, recent_holds
from tracer.rules.ipsets import Ipsets
from tracer.rules.lookups import Lookups
from tracer.rules.model import Chance, Condition, Every, Match, Origin, Recent, Table
from tracer.rules.packet import Packet, Place
from tracer.rules.trail import Trail
from tracer.rules.worlds import Worlds, by_chance, changed, merge

_BITS = ("ct state", "ct status", "tcp flags")  # of which nft compares several at once, as a mask


class Sieve:
    """The conditions of one chain's rules, for the packets of one walk through it.

    in_nat: the base chain is of type nat. index, position: of the rule and the part at hand. on: why it can't be told
    whether the rule at hand applies.
    """

    def __init__(
        self, trail: Trail, lookups: Lookups, ipsets: Ipsets, place: Place, table: Table, chain: str, in_nat: bool
    ) -> None:
        self.index = 0
        self.position = 0
        self.on: list[str] = []
        self._trail = trail
        self._lookups = lookups
        self._ipsets = ipsets
        self._place = place
        self._table = table
        self._chain = chain
        self._in_nat = in_nat

    def begin(self, index: int) -> None:
        """The next rule, by its index."""
        self.index = index
        self.on = []

    def split(self, condition: Condition, worlds: Worlds) -> tuple[Worlds, Worlds]:
        """Those for which the condition holds, and those for which it does not."""
        if isinstance(condition, Chance):
            share = 1.0 - condition.probability if condition.negated else condition.probability
            return by_chance(worlds, share)
        if isinstance(condition, Every):
            return self._in_turn(condition, worlds)
        held: Worlds = {}
        failed: Worlds = {}
        if isinstance(condition, Match) and _is_lookup(condition, self._table.origin):
            self._trail.passed.lookups += sum(
                weight for packet, weight in worlds.items() if self._has(condition, packet)
            )
        for packet, weight in worlds.items():
            answer = self._answer(condition, packet)
            if answer is None:
                self.uncertain(condition_words(condition))
                held[packet] = 0.0
                failed[packet] = weight
            elif answer:
                held[packet] = weight
            else:
                failed[packet] = weight
        if isinstance(condition, Recent):
            held = self._remember(condition, held)
        return held, failed

    def _in_turn(self, every: Every, worlds: Worlds) -> tuple[Worlds, Worlds]:
        """A packet comes as likely at any turn; but for the second time at a counter, at the turn behind its first."""
        first, again = self.at_counter(worlds)
        share = 1.0 / every.every if every.every else 1.0
        held, failed = by_chance(first, 1.0 - share if every.negated else share)
        if again:
            self.uncertain(f"whose turn it is, one of {every.every}")
            held, failed = dict(held), dict(failed)
            merge(held, dict.fromkeys(again, 0.0))
            merge(failed, again)
        return held, failed

    def at_counter(self, worlds: Worlds) -> tuple[Worlds, Worlds]:
        """Those that come to a rule's counter for the first time, and those that were there before."""
        table = self._table
        entry = ("turn", table.origin, table.family, table.name, self._chain, self.index, self.position)
        if self._trail.counters and len(worlds) > 1:
            self._trail.note("several rules take packets in turn: shares may differ where their turns fall together")
        self._trail.counters = True
        first = {packet: weight for packet, weight in worlds.items() if entry not in packet.seen}
        again = {packet: weight for packet, weight in worlds.items() if entry in packet.seen}
        return changed(first, lambda packet: packet._replace(seen=packet.seen | {entry})), again

    def _answer(self, condition: Condition, packet: Packet) -> bool | None:
        if isinstance(condition, Match):
            if condition.set is None:
                return holds(condition, packet, self._place)
            if condition.keys[0].startswith("ipset "):
                return self._in_ipset(condition, packet)
            return self._in_set(condition, packet)
        if isinstance(condition, Recent):
            if condition.action in ("rcheck", "update") and not condition.negated:
                self._sticks(condition.seconds)
            return recent_holds(condition, packet)
        return None

    def _has(self, match: Match, packet: Packet) -> bool:
        """Whether the packet has what is looked up: of `udp dport @ports`, the protocol is compared before."""
        return match.keys[0].startswith("ipset ") or ABSENT not in fields(match.keys, packet, self._place)

    def _in_set(self, match: Match, packet: Packet) -> bool | None:
        actuals = fields(match.keys, packet, self._place)
        if ABSENT in actuals:
            return False
        name = match.set or ""
        found = self._lookups.find(self._table, name, actuals, packet)
        known = self._table.sets.get(name)
        if known is not None and "dynamic" in known.flags and known.timeout and "saddr" in match.keys[0]:
            self._sticks(known.timeout)
        if found.unknown:
            return None
        return (found.element is not None) is not match.negated

    def _in_ipset(self, match: Match, packet: Packet) -> bool | None:
        held = self._ipsets.holds(match.set or "", match.keys, packet, self._place)
        return None if held is None else held is not match.negated

    def _sticks(self, seconds: int) -> None:
        """The rule asks whether the client was seen lately: in a nat chain, that is session affinity."""
        if self._in_nat and seconds and self._trail.affinity is None:
            self._trail.affinity = seconds

    def _remember(self, recent: Recent, worlds: Worlds) -> Worlds:
        """`--set` puts the packet into the list, and `--update` one that is there already."""
        if recent.action != "set" and (recent.action != "update" or recent.negated):
            return worlds
        return {
            packet._replace(seen=packet.seen | {recent_entry(recent, packet)}): weight
            for packet, weight in worlds.items()
        }

    def uncertain(self, words: str) -> None:
        """It can't be told whether the rule at hand applies, because of a condition in these words."""
        if words not in self.on:
            self.on.append(words)


def _is_lookup(match: Match, origin: Origin) -> bool:
    """Whether the kernel looks in a set for it: a named one, or one in braces, which nft makes a set of its own."""
    if match.set is not None:
        return True
    return origin is Origin.NFTABLES and len(match.values) > 1 and not match.keys[0].startswith(_BITS)

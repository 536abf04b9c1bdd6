"""Walks packets through the rules of one base chain, and tells each rule that took them.

What belongs here: rules, chains, jumps and verdicts, as the kernel's two engines run them. What does not: the order of
base chains and hooks (`hooks`), and what the walk means for whoever asked (`explain`).
Sources: Linux net/ipv4/netfilter/ip_tables.c (ipt_do_table); net/netfilter/nf_tables_core.c (nft_do_chain).

All that may happen is followed at once (`worlds`). Where chance decides, a packet goes both ways; ways that lead to
equal packets become one again, so that a thousand endpoints cost a thousand rules and no more. Where a condition can't
be told, the packet goes on as if the rule were not there, and once more, with probability 0, as if it applied: what
only such packets meet *depends*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from tracer.errors import K8snetError
from tracer.rules import translation
from tracer.rules.conditions import ABSENT, fields
from tracer.rules.ipsets import Ipsets, touched
from tracer.rules.lookups import Lookups, entry_of
from tracer.rules.model import (
    Chain,
    Chance,
    Every,
    Ipset,
    Lookup,
    Match,
    Nat,
    Origin,
    Other,
    Part,
    Recent,
    Rule,
    SetMark,
    Table,
    Unknown,
    Update,
    Verdict,
)
from tracer.rules.packet import Packet, Place
from tracer.rules.refusals import candidates
from tracer.rules.sieve import Sieve
from tracer.rules.statements import change_other, rejects, set_mark, shortened_map
from tracer.rules.trail import Ended, Passed, Step, Trail, Visited
from tracer.rules.worlds import Worlds, changed, merge, scaled

MOST_WORLDS = 20_000
_DEEPEST = 16  # jumps and gotos in nf_tables (include/net/netfilter/nf_tables.h, NFT_JUMP_STACK_SIZE)
_DEEPEST_LEGACY = 110  # legacy iptables has no limit but loops, Python has one
_CONDITIONS = (Match, Chance, Every, Recent, Unknown)


class TooManyWays(K8snetError):
    """Rules with so many random marks that their combinations can't be told one by one."""


@dataclass(slots=True)
class _Memory:
    """What a walk through a chain came to, for packets of probability 1."""

    returned: Worlds
    accepted: Worlds
    ended: list[Ended]
    step: int | None
    passed: Passed


class Walker:
    """Follows packets through chains; gathers steps, ends, and what people should know.

    ipsets: those that rules of iptables may look in.
    """

    def __init__(self, ipsets: Mapping[str, Ipset]) -> None:
        self.trail = Trail()
        self._ipsets = Ipsets(ipsets)
        self._lookups = Lookups()
        self._accepted: Worlds = {}
        self._active: list[str] = []
        self._memory: dict[object, _Memory] = {}

    def base(self, place: Place, table: Table, chain: Chain, worlds: Worlds) -> Worlds:
        """The packets that the base chain lets through."""
        self._accepted = {}
        self._memory = {}
        self._active = [chain.name]
        back = _Chain(self, place, table, chain, None).walk(worlds)
        if chain.policy == "drop" and back:
            step = self.trail.record(place, table, chain.name, None, None, "drop", sum(back.values()), None)
            self.trail.end("drop", back, step)
            back = {}
        merge(self._accepted, back)
        return self._accepted

    def _accept(self, worlds: Worlds) -> None:
        merge(self._accepted, worlds)

    def _enter(self, place: Place, table: Table, chain: Chain, worlds: Worlds, step: Step) -> Worlds:
        """Walk through a chain that a rule leads to; an equal walk through the same chain is not made twice."""
        scale = max(worlds.values()) or 1.0
        key = (chain.name, frozenset((packet, round(weight / scale, 12)) for packet, weight in worlds.items()))
        memory = self._memory.get(key)
        if memory is None:
            memory = self._memory[key] = self._walk_anew(place, table, chain, worlds, step, scale)
        else:
            step.same_as = memory.step
        self.trail.passed.add(memory.passed, scale)
        merge(self._accepted, scaled(memory.accepted, scale))
        self.trail.ended += (each._replace(probability=each.probability * scale) for each in memory.ended)
        return scaled(memory.returned, scale)

    def _walk_anew(self, place: Place, table: Table, chain: Chain, worlds: Worlds, step: Step, scale: float) -> _Memory:
        outer_accepted, outer_ended, outer_passed = self._accepted, self.trail.ended, self.trail.passed
        self._accepted, self.trail.ended, self.trail.passed = {}, [], Passed()
        self._active.append(chain.name)
        first = len(self.trail.steps)
        returned = _Chain(self, place, table, chain, step.number).walk(worlds)
        self._active.pop()
        ended = [each._replace(probability=each.probability / scale) for each in self.trail.ended]
        told = step.number if len(self.trail.steps) > first else None
        passed = Passed()
        passed.add(self.trail.passed, 1 / scale)
        memory = _Memory(scaled(returned, 1 / scale), scaled(self._accepted, 1 / scale), ended, told, passed)
        self._accepted, self.trail.ended, self.trail.passed = outer_accepted, outer_ended, outer_passed
        return memory


class _Chain:
    """One walk of some packets through one chain."""

    def __init__(self, walker: Walker, place: Place, table: Table, chain: Chain, parent: int | None) -> None:
        self._walker = walker
        self._trail = walker.trail
        self._place = place
        self._table = table
        self._chain = chain
        self._parent = parent
        self._returned: Worlds = {}
        base = table.chains.get(walker._active[0])
        self._in_nat = base is not None and base.hook is not None and base.hook.type == "nat"
        self._sieve = Sieve(walker.trail, walker._lookups, walker._ipsets, place, table, chain.name, self._in_nat)

    def walk(self, worlds: Worlds) -> Worlds:
        """The packets that come back: by return, by a goto's chain, or at the end."""
        rules = self._chain.rules
        took = []
        met = len(rules)
        alive, tried, passed = sum(worlds.values()), 0, self._trail.passed
        passed.chains += alive
        for index in candidates(self._table, self._chain, self._place.flow, worlds):
            self._sieve.begin(index)
            taken, worlds = self._apply(rules[index], worlds)
            passed.rules += alive * (index + 1 - tried)
            alive, tried = sum(worlds.values()), index + 1
            if taken:
                took.append(index)
            if len(worlds) > MOST_WORLDS:
                raise TooManyWays(
                    f"the rules of {self._chain.name} mark packets at random in more than {MOST_WORLDS} ways"
                )
            if not worlds:
                met = index + 1
                break
        passed.rules += alive * (len(rules) - tried)
        self._trail.visited.append(
            Visited(self._place.hook, self._table, self._chain.name, self._parent, met, tuple(took))
        )
        merge(self._returned, worlds)
        return self._returned

    def _apply(self, rule: Rule, worlds: Worlds) -> tuple[bool, Worlds]:
        """Whether the rule took any packets, and those that the next one sees."""
        alive = worlds
        left: Worlds = {}
        for self._sieve.position, part in enumerate(rule.parts):
            if isinstance(part, _CONDITIONS):
                alive, failed = self._sieve.split(part, alive)
                merge(left, failed)
            else:
                alive, failed = self._act(part, rule, alive)
                merge(left, failed)
                if not alive:
                    return True, left
            if not alive:
                return False, left
        if self._sieve.on and rule.parts and isinstance(rule.parts[-1], Unknown):
            self._statement_unknown(rule, alive)
        if not left:
            return True, alive
        merge(left, alive)
        return True, left

    def _statement_unknown(self, rule: Rule, worlds: Worlds) -> None:
        """In nftables what we do not understand may be a statement. iptables' rules without a target do nothing."""
        if self._table.origin is Origin.NFTABLES:
            step = self._record(rule, "unknown", worlds)
            self._trail.end("drop", dict.fromkeys(worlds, 0.0), step)

    def _act(self, part: Part, rule: Rule, worlds: Worlds) -> tuple[Worlds, Worlds]:
        """Those that the statement lets go on within the rule, and those that the next rule sees."""
        if isinstance(part, Verdict):
            return self._decide(part, rule, worlds)
        if isinstance(part, Lookup):
            return self._look_up(part, rule, worlds)
        if isinstance(part, Nat):
            return self._translate(part, rule, worlds)
        if isinstance(part, SetMark):
            step = self._record(rule, "mark", worlds)
            return changed(worlds, lambda packet: set_mark(part, packet, step.number)), {}
        if isinstance(part, Update):
            return changed(worlds, lambda packet: self._update(part, packet)), {}
        assert isinstance(part, Other), part
        return self._other(part, rule, worlds)

    def _update(self, update: Update, packet: Packet) -> Packet:
        actuals = fields(update.keys, packet, self._place)
        if update.action == "delete" or ABSENT in actuals:
            return packet
        return packet._replace(seen=packet.seen | {entry_of(self._table, update.set, actuals)})

    def _decide(self, verdict: Verdict, rule: Rule, worlds: Worlds) -> tuple[Worlds, Worlds]:
        kind = verdict.kind
        if kind == "continue" or (kind == "reject" and not rejects(verdict, self._place.flow)):
            return {}, worlds
        step = self._record(rule, kind, worlds, verdict.chain)
        step.verdict = verdict
        if kind in ("jump", "goto"):
            return self._follow(verdict, step, worlds)
        if kind == "return":
            merge(self._returned, worlds)
        elif kind in ("drop", "reject"):
            self._trail.end(kind, worlds, step)
        elif kind == "queue":
            self._hand_over("the program behind a queue", worlds, step)
        else:
            self._accept(worlds)
        return {}, {}

    def _accept(self, worlds: Worlds) -> None:
        """The packets leave this base chain; the next one still sees them."""
        if not self._in_nat:
            worlds = changed(worlds, lambda packet: packet._replace(accepted=True))
        self._walker._accept(worlds)

    def _hand_over(self, what: str, worlds: Worlds, step: Step) -> None:
        """A program in user space, or another part of the kernel, decides: most let most packets through."""
        self._trail.note(f"{what} may do anything with the packet: told is what follows if it lets it through")
        self._trail.end("drop", dict.fromkeys(worlds, 0.0), step)
        self._accept(worlds)

    def _follow(self, verdict: Verdict, step: Step, worlds: Worlds) -> tuple[Worlds, Worlds]:
        """jump and goto. A jump that can't be made is told, and the packet goes on behind it."""
        name = verdict.chain or ""
        chain = self._table.chains.get(name)
        trouble = None
        if chain is None:
            trouble = "missing"
            self._trail.note(f"chain {self._chain.name} leads to {name}, which table {self._table.name} does not have")
        elif name in self._walker._active:
            trouble = "loop"
            way = " → ".join([*self._walker._active[self._walker._active.index(name) :], name])
            self._trail.note(f"chains lead in a circle ({way}), which the kernel refuses to load")
        elif len(self._walker._active) > self._deepest():
            trouble = "loop"
            self._trail.note(f"chains lead on from each other more than {self._deepest()} deep at {name}")
        if chain is None or trouble is not None:
            step.effect, step.would = trouble or "missing", verdict.kind
            return worlds, {}
        back = self._walker._enter(self._place, self._table, chain, worlds, step)
        if verdict.kind == "jump":
            return back, {}
        merge(self._returned, back)
        return {}, {}

    def _deepest(self) -> int:
        return _DEEPEST_LEGACY if self._table.origin in (Origin.LEGACY, Origin.UNKNOWN) else _DEEPEST

    def _look_up(self, lookup: Lookup, rule: Rule, worlds: Worlds) -> tuple[Worlds, Worlds]:
        """vmap: the verdict of the packet's element; without one, the next rule comes."""
        left: Worlds = {}
        going: Worlds = {}
        again: Worlds = {}
        self._trail.passed.lookups += sum(worlds.values())
        if lookup.mode == "inc" and lookup.modulus > 1:
            worlds, again = self._sieve.at_counter(worlds)
        verdicts: dict[tuple[Verdict, str | None], Worlds] = {}
        for packet, weight in [*worlds.items(), *((packet, 0.0) for packet in again)]:
            for element, share in translation.chosen(lookup, packet, self._place, self._table, self._walker._lookups):
                if share == 0.0 and lookup.keys != ("numgen",):
                    self._sieve.on = [f"{' . '.join(lookup.keys)} vmap @{lookup.map}" if lookup.map else rule.text]
                if element is None or not isinstance(element.data, Verdict):
                    left[packet] = left.get(packet, 0.0) + weight * share
                else:
                    merge(verdicts.setdefault((element.data, element.comment), {}), {packet: weight * share})
        if again:
            self._sieve.uncertain(f"whose turn it is, one of {lookup.modulus}")
            merge(left, again)
        shorten = shortened_map(rule.text) if len(verdicts) > 1 else None
        for (verdict, comment), taken in verdicts.items():
            before = len(self._trail.steps)
            on, behind = self._decide(verdict, rule, taken)
            if len(self._trail.steps) > before:
                step = self._trail.steps[before]
                step.comment = comment or step.comment
                step.text = shorten(verdict) if shorten is not None else step.text
            merge(going, on)
            merge(left, behind)
        return going, left

    def _translate(self, nat: Nat, rule: Rule, worlds: Worlds) -> tuple[Worlds, Worlds]:
        """The packets get new addresses, and leave the base chain."""
        left: Worlds = {}
        done: Worlds = {}
        if not self._in_nat:
            return worlds, {}
        if nat.lookup is not None:
            self._trail.passed.lookups += sum(worlds.values())
        number = len(self._trail.steps)
        destination = translation.changes_destination(nat, self._place)
        for packet, weight in worlds.items():
            found = translation.translate(nat, packet, self._place, self._table, self._walker._lookups)
            if found is None:
                left[packet] = weight
                continue
            if found.note is not None:
                self._trail.note(found.note)
            for way in found.ways:
                new = way.packet._replace(translated=number) if destination else way.packet._replace(masqueraded=number)
                merge(done, {new: weight * way.share})
        if done:
            taken = {packet: weight for packet, weight in worlds.items() if packet not in left}
            self._record(rule, nat.kind, taken)
            self._walker._accept(done)
        return {}, left

    def _other(self, other: Other, rule: Rule, worlds: Worlds) -> tuple[Worlds, Worlds]:
        name = other.name.lower()
        change = change_other(other, name)
        if change is not None:
            step = self._record(rule, "mark" if "mark" in name else name, worlds)
            return changed(worlds, lambda packet: change(packet, step.number)), {}
        if other.ends is False:
            if name in ("log", "nflog"):
                self._record(rule, name, worlds)
            return (self._fill_ipset(other, worlds) if name == "set" else worlds), {}
        step = self._record(rule, name, worlds)
        if other.ends is None:
            self._unknown_target(other, step)
            self._trail.end("drop", dict.fromkeys(worlds, 0.0), step)
            return worlds, {}
        self._hand_over(other.name, worlds, step)
        return {}, {}

    def _fill_ipset(self, other: Other, worlds: Worlds) -> Worlds:
        """SET changes a set, or takes marks out of one: what these packets meet in there is not what was read."""
        words = other.text.split()
        if "--map-set" in words:
            self._trail.note(f"{other.text} may change marks: told is what follows if it does not")
        names = {name for option, name in pairwise(words) if option in ("--add-set", "--del-set")}
        seen = frozenset(map(touched, names))
        return changed(worlds, lambda packet: packet._replace(seen=packet.seen | seen))

    def _unknown_target(self, other: Other, step: Step) -> None:
        step.effect, step.would, step.on = "depends", step.would or step.effect, (*step.on, other.text)
        if self._table.origin is not Origin.NFTABLES:
            self._trail.note(
                f"{other.name} is neither a chain of table {self._table.name} nor a target that we know: "
                "told is what follows if it does nothing"
            )

    def _record(self, rule: Rule, effect: str, worlds: Worlds, target: str | None = None) -> Step:
        step = self._trail.record(
            self._place,
            self._table,
            self._chain.name,
            self._sieve.index,
            rule,
            effect,
            sum(worlds.values()),
            self._parent,
        )
        step.target = target
        names = (part.set for part in rule.parts if isinstance(part, Match) and part.set is not None)
        step.ipsets = {name: found for name in names if (found := self._walker._ipsets.sets.get(name)) is not None}
        if self._sieve.on and not any(worlds.values()):
            step.effect, step.would, step.on = "depends", effect, tuple(self._sieve.on)
        return step

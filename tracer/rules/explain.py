"""Where a packet would go: the answer of `k8snet-trace explain`, from rules and a question.

What belongs here: putting the answer together from what a walk found. What does not: the walk (`hooks`, `walk`), what
the answer says and its JSON (`answer`), which rules and addresses are asked about (`asked`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from tracer.rules.answer import Backend, Explanation, Otherwise, Outcome, Question, ServiceName
from tracer.rules.at_socket import AtSockets, hidden
from tracer.rules.hooks import Course
from tracer.rules.model import Interval, Match, RuleSet, Table, address_number, address_text
from tracer.rules.packet import Flow, Packet
from tracer.rules.path_names import service_on_path
from tracer.rules.routing import Routing, ToldRouting
from tracer.rules.trail import Step, Trail
from tracer.rules.walk import Walker
from tracer.rules.worlds import Worlds, changed

__all__ = ["Backend", "Explanation", "Otherwise", "Outcome", "Question", "ServiceName", "explain", "revealed_addresses"]

_REFUSED = ("drop", "reject")
_NO_ROUTE = ("unreachable", "blackhole", "prohibit")


def explain(rules: RuleSet, question: Question, routing: Routing | None = None) -> Explanation:
    """What becomes of a new flow under these rules.

    routing: what is known of the node's addresses and devices; None: nothing but what rules themselves reveal. Raises
    `walk.TooManyWays`, and FormatError for elements of sets that are not as nft writes them.
    """
    if routing is not None:
        return _explained(rules, question, routing)
    known = revealed_addresses(rules, question.family)
    told = _explained(rules, question, ToldRouting(question.family, known))
    if told.verdict != "untouched" or question.ip in known:
        return told
    assumed = _explained(rules, question, ToldRouting(question.family, (*known, question.ip)))
    if assumed.service is None:
        return told
    note = f"{question.ip} is taken for an address of this node, since a NodePort answers there then"
    return _with_note(assumed, note)


def _with_note(told: Explanation, note: str) -> Explanation:

    return replace(told, notes=(note, *told.notes))


def revealed_addresses(rules: RuleSet, family: str) -> tuple[str, ...]:
    """The node's own addresses that kube-proxy's rules name, as those at which NodePorts answer."""
    found: dict[str, None] = {}
    for table in rules.tables:
        if table.family != family:
            continue
        if table.name == "kube-proxy" and (ips := table.sets.get("nodeport-ips")) is not None:
            for element in ips.elements:
                if isinstance(element.value, Interval) and element.value.low == element.value.high:
                    found[address_text(element.value.low, family)] = None
        elif table.name == "nat" and (services := table.chains.get("KUBE-SERVICES")) is not None:
            found.update(dict.fromkeys(_node_port_addresses(table, services.rules.raw)))
    return tuple(found)


def _node_port_addresses(table: Table, lines: Iterable[Any]) -> Iterator[str]:
    """`-d ADDRESS … -j KUBE-NODEPORTS`, which kube-proxy writes for --nodeport-addresses."""
    for line in lines:
        if isinstance(line, str) and line.endswith(" -j KUBE-NODEPORTS"):
            words = line.split()
            if "-d" in words and words[words.index("-d") - 1] != "!":
                address = words[words.index("-d") + 1]
                base, _, length = address.partition("/")
                if length in ("", "32", "128"):
                    yield base


def _explained(rules: RuleSet, question: Question, routing: Routing) -> Explanation:
    family = question.family
    destination = address_number(question.ip)
    source = None if question.source is None else address_number(question.source)
    local = source is None or routing.kind(source) == "local"
    if source is None:
        source = routing.source(destination)
    flow = Flow(family, question.protocol.lower(), source, destination, question.port, local)
    walker = Walker(rules.ipsets)
    delivered = _delivered(rules, question, flow, routing, walker)
    notes = (*rules.notes, *_not_followed(rules, family), *_without_route(flow, routing, delivered))
    return _Answer(question, flow, walker.trail, delivered).build(notes)


def _delivered(rules: RuleSet, question: Question, flow: Flow, routing: Routing, walker: Walker) -> Worlds:
    """The packets that arrive, by the programs at sockets and devices, and then by rules."""
    sent = None
    if rules.sockets is not None:
        sent = AtSockets(rules.sockets, flow, (question.ip, question.port), routing, walker.trail).run()
    if sent is None:
        return Course(rules, flow, routing, walker).run({Packet(flow.saddr, flow.daddr, flow.dport): 1.0})
    worlds = Course(rules, flow, routing, walker).run(sent.worlds)
    return {**changed(worlds, hidden), **sent.inside}


def _not_followed(rules: RuleSet, family: str) -> Iterator[str]:
    """Rules of the other family; chains at devices themselves, which see packets before and behind all that is told."""
    families = {table.family for table in rules.tables}
    if families & {"ip", "ip6"} and not families & {family, "inet"}:
        yield f"there are rules, but none for {'IPv6' if family == 'ip6' else 'IPv4'}"
    for table in rules.tables:
        for chain in table.base_chains():
            hook = "" if chain.hook is None else chain.hook.name
            if len(chain.rules) and (table.family in ("netdev", "bridge") or hook in ("ingress", "egress")):
                yield f"chain {chain.name} of table {table.family} {table.name}, at a device itself, is not followed"


def _without_route(flow: Flow, routing: Routing, delivered: Worlds) -> Iterator[str]:
    at_socket = any(packet.at_socket is not None for packet in delivered)
    if flow.local and not at_socket and routing.kind(flow.daddr) in _NO_ROUTE:
        yield "there is no route there: the sender is told so before any rule sees a packet"
        return
    lost = sorted({packet.daddr for packet in delivered if not packet.here and routing.kind(packet.daddr) in _NO_ROUTE})
    if lost:
        more = f" and {len(lost) - 1} others" if len(lost) > 1 else ""
        yield f"there is no route to {address_text(lost[0], flow.family)}{more}"


class _Outcome(NamedTuple):
    """How packets ended."""

    verdict: str
    packet: Packet
    probability: float


class _Answer:
    """Puts together what a walk found."""

    def __init__(self, question: Question, flow: Flow, trail: Trail, delivered: Worlds) -> None:
        self._question = question
        self._flow = flow
        self._trail = trail
        self._steps = trail.steps
        outcomes = [_Outcome(_verdict_of(packet), packet, weight) for packet, weight in delivered.items()]
        outcomes += [_Outcome(each.verdict, each.packet, each.probability) for each in trail.ended]
        self._sure = [outcome for outcome in outcomes if outcome.probability > 0.0]
        self._possible = [outcome for outcome in outcomes if outcome.probability == 0.0]

    def build(self, notes: Iterable[str]) -> Explanation:
        shares = self._shares()
        steps = tuple(_pruned(self._steps))
        flow = self._flow
        through = [outcome for outcome in self._sure if outcome.verdict not in _REFUSED]
        hidden = [outcome for outcome in through if outcome.packet.snat]
        return Explanation(
            question=self._question,
            source=self._source(),
            local=flow.local,
            verdict=next(iter(shares), "drop"),
            shares=shares,
            outcomes=tuple(self._outcomes()),
            service=self._service(steps),
            backends=tuple(self._backends()),
            masquerade=bool(hidden) and len(hidden) == len(through),
            masquerade_why=self._why(hidden),
            affinity_seconds=self._trail.affinity,
            steps=steps,
            visited=tuple(self._trail.visited),
            otherwise=tuple(self._otherwise()),
            notes=(*notes, *self._trail.notes, *self._assumptions(steps)),
            passed=self._trail.passed,
        )

    def _source(self) -> str | None:
        """The sender's address: that of a socket is chosen by the route to the endpoint, if a program chose one."""
        flow = self._flow
        chosen = (outcome.packet.saddr for outcome in self._sure if outcome.packet.at_socket is not None)
        address = next(chosen, flow.saddr) if flow.local else flow.saddr
        return None if address is None else address_text(address, flow.family)

    def _assumptions(self, steps: Iterable[Step]) -> Iterator[str]:
        if self._flow.saddr is None and any(_asks_source(step) for step in steps):
            yield "the node's own address is not known: it is taken to lie outside of every range that rules name"

    def _shares(self) -> dict[str, float]:
        """The share of each verdict, in the order in which they count."""
        total = sum(outcome.probability for outcome in self._sure) or 1.0
        sums = dict.fromkeys(("dnat", "accept", "untouched", "reject", "drop"), 0.0)
        for outcome in self._sure:
            sums[outcome.verdict] += outcome.probability / total
        return {verdict: share for verdict, share in sums.items() if share > 0.0}

    def _outcomes(self) -> Iterator[Outcome]:
        """The distinct ones, in the order in which they were found."""
        total = sum(outcome.probability for outcome in self._sure) or 1.0
        sums: dict[Outcome, float] = {}
        for outcome in self._sure:
            packet = outcome.packet
            if outcome.verdict in _REFUSED:
                key = Outcome(outcome.verdict, None, None, False, 0.0)
            else:
                address = address_text(packet.daddr, self._flow.family)
                key = Outcome(outcome.verdict, address, packet.dport, packet.snat, 0.0)
            sums[key] = sums.get(key, 0.0) + outcome.probability / total
        return (key._replace(probability=share) for key, share in sums.items())

    def _service(self, steps: Iterable[Step]) -> ServiceName | None:
        found = service_on_path(steps)
        return None if found is None else ServiceName(*found)

    def _backends(self) -> Iterator[Backend]:
        """In the order in which rules lead to them."""
        groups: dict[tuple[int, int], list[_Outcome]] = {}
        translated = [outcome for outcome in self._sure if outcome.packet.chosen is not None]
        for outcome in sorted(translated, key=lambda outcome: outcome.packet.chosen or 0):
            groups.setdefault((outcome.packet.daddr, outcome.packet.dport), []).append(outcome)
        total = sum(outcome.probability for group in groups.values() for outcome in group)
        for (address, port), group in groups.items():
            through = [outcome for outcome in group if outcome.verdict not in _REFUSED]
            yield Backend(
                ip=address_text(address, self._flow.family),
                port=port,
                probability=sum(outcome.probability for outcome in group) / total,
                masquerade=any(outcome.packet.snat for outcome in through),
                verdict="accept" if through else group[0].verdict,
                via=self._via(group[0].packet.chosen),
            )

    def _via(self, number: int | None) -> tuple[str, ...]:
        """The chains from the base chain to a step's."""
        chains: list[str] = []
        while number is not None:
            chains.append(self._steps[number].chain)
            number = self._steps[number].parent
        return tuple(reversed(chains[:-1]))

    def _why(self, hidden: Iterable[_Outcome]) -> tuple[Step, ...]:
        """The rule that marks the first such packet, that which leads there, and the one that changes the source."""
        for outcome in hidden:
            if outcome.packet.masqueraded is None:
                continue
            changing = self._steps[outcome.packet.masqueraded]
            marked = outcome.packet.marked
            if marked is None or not self._asks_mark(changing):
                return (changing,)
            marking = self._steps[marked]
            leading = () if marking.parent is None else (self._steps[marking.parent],)
            return (*leading, marking, changing)
        return ()

    def _asks_mark(self, step: Step) -> bool:
        """Whether marks decide on the way to a rule: it asks for one, or a rule before it, or one that led there."""
        while True:
            chain = step.table.chains.get(step.chain)
            rules = () if chain is None or step.rule is None else chain.rules[: step.rule]
            if any(isinstance(part, Match) and part.keys == ("meta mark",) for rule in rules for part in rule.parts):
                return True
            if step.parent is None:
                return False
            step = self._steps[step.parent]

    def _otherwise(self) -> Iterator[Otherwise]:
        told = {self._told(outcome) for outcome in self._sure}
        for outcome in self._possible:
            other = self._told(outcome)
            if other not in told:
                told.add(other)
                yield other

    def _told(self, outcome: _Outcome) -> Otherwise:
        if outcome.verdict in _REFUSED:
            return Otherwise(outcome.verdict, None, None, False)
        packet = outcome.packet
        verdict = "dnat" if packet.chosen is not None else "accept"
        return Otherwise(verdict, address_text(packet.daddr, self._flow.family), packet.dport, packet.snat)


def _verdict_of(packet: Packet) -> str:
    if packet.chosen is not None:
        return "dnat"
    return "accept" if packet.accepted or packet.snat else "untouched"


def _asks_source(step: Step) -> bool:
    sources = ("ip saddr", "ip6 saddr", "ipset src")
    return any(isinstance(part, Match) and part.keys[0] in sources for part in step.parts)


def _pruned(steps: list[Step]) -> Iterator[Step]:
    """The steps without jumps to chains in which nothing happened."""
    needed = set()
    for step in reversed(steps):
        kind = step.would or step.effect
        leads = kind == "jump" and step.effect in (kind, "depends")  # goto leads away, too
        if not leads or step.number in needed or step.same_as is not None:
            needed.add(step.number)
            if step.parent is not None:
                needed.add(step.parent)
    return (step for step in steps if step.number in needed)

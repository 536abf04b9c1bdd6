"""Where a packet would go: the answer of `k8snet-trace explain`, from rules and a question.

What belongs here: the question, the answer, its JSON. What does not: the walk (`hooks`, `walk`), words for people
(`tracer.explanation`), which rules and addresses are asked about (`tracer.commands.explain`).

Of some rules it can't be told whether they apply (a condition on something that only the live kernel knows, a module
that we do not know). Verdict, backends and shares are those of packets to which such rules do not apply; `depends`
lists them, and `otherwise` what else may happen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tracer.rules.hooks import Course
from tracer.rules.model import Interval, RuleSet, Table, address_number, address_text
from tracer.rules.packet import Flow, Packet
from tracer.rules.path_names import service_on_path
from tracer.rules.routing import Routing, ToldRouting
from tracer.rules.walk import Step, Visited, Walker, Worlds

_REFUSED = ("drop", "reject")


class Question(NamedTuple):
    """A new flow. protocol: TCP, UDP or SCTP. source: the sender's address; None: a process on this node."""

    ip: str
    port: int
    protocol: str = "TCP"
    source: str | None = None

    @property
    def family(self) -> str:
        """ip or ip6, as nft calls them."""
        return "ip6" if ":" in self.ip else "ip"


@dataclass(frozen=True, slots=True)
class ServiceName:
    """The Service port that rules on the way name."""

    namespace: str
    name: str
    port_name: str | None


@dataclass(frozen=True, slots=True)
class Backend:
    """Where translated packets go. probability: of all that are translated. masquerade: whether they hide their source.

    verdict: accept, or drop or reject where rules behind the translation refuse it. via: the chains walked to reach it.
    """

    ip: str
    port: int
    probability: float
    masquerade: bool
    verdict: str
    via: tuple[str, ...]


class Outcome(NamedTuple):
    """One of the ways in which it ends. ip, port: where to; None for packets that are refused.

    verdict: as in Explanation. masquerade: whether the source was changed. probability: of all packets.
    """

    verdict: str
    ip: str | None
    port: int | None
    masquerade: bool
    probability: float


class Otherwise(NamedTuple):
    """What may happen besides, as it depends. ip, port: where to; None for packets that are refused."""

    verdict: str
    ip: str | None
    port: int | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a new flow.

    verdict: dnat: translated to a backend · accept: let through to where it was sent, by a rule that says so or changes
    its source · untouched: let through, and no rule said anything · reject, drop: no packet gets through. Of several
    outcomes by chance, the first of these that has a share; `shares` and `outcomes` have them all.
    masquerade: every packet that gets through has its source changed. `masquerade_why`: by which rules.
    """

    question: Question
    source: str | None
    local: bool
    verdict: str
    shares: dict[str, float]
    outcomes: tuple[Outcome, ...]
    service: ServiceName | None
    backends: tuple[Backend, ...]
    masquerade: bool
    masquerade_why: tuple[Step, ...]
    affinity_seconds: int | None
    steps: tuple[Step, ...]
    visited: tuple[Visited, ...]
    otherwise: tuple[Otherwise, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def depends(self) -> tuple[Step, ...]:
        """The rules of which it can't be told whether they apply."""
        return tuple(step for step in self.steps if step.effect == "depends")

    def to_json(self) -> dict[str, Any]:
        """The document of `k8snet-trace explain -o json`."""
        question = self.question
        return {
            "destination": endpoint_text(question.ip, question.port),
            "protocol": question.protocol,
            "source": self.source,
            "from": "node" if self.local else "outside",
            "verdict": self.verdict,
            "shares": {verdict: _rounded(share) for verdict, share in self.shares.items()},
            "outcomes": [each._replace(probability=_rounded(each.probability))._asdict() for each in self.outcomes],
            "service": None
            if self.service is None
            else {
                "namespace": self.service.namespace,
                "name": self.service.name,
                "port_name": self.service.port_name,
            },
            "backends": [_backend_json(backend) for backend in self.backends],
            "masquerade": self.masquerade,
            "masquerade_why": [step.text for step in self.masquerade_why],
            "affinity_seconds": self.affinity_seconds,
            "steps": [_step_json(step) for step in self.steps],
            "passed_over": [_visited_json(visit) for visit in self.visited if visit.passed],
            "depends": [text for step in self.depends for text in step.on],
            "otherwise": [each._asdict() for each in self.otherwise],
            "notes": list(self.notes),
        }


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


def endpoint_text(ip: str, port: int) -> str:
    """10.0.0.1:80, [fd00::1]:80."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _with_note(told: Explanation, note: str) -> Explanation:
    from dataclasses import replace

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
    walker = Walker()
    delivered = Course(rules, flow, routing, walker).run()
    return _Answer(question, flow, walker, delivered).build(rules.notes)


class _Outcome(NamedTuple):
    """How packets ended."""

    verdict: str
    packet: Packet
    probability: float


class _Answer:
    """Puts together what a walk found."""

    def __init__(self, question: Question, flow: Flow, walker: Walker, delivered: Worlds) -> None:
        self._question = question
        self._flow = flow
        self._walker = walker
        self._steps = walker.steps
        outcomes = [_Outcome(_verdict_of(packet), packet, weight) for packet, weight in delivered.items()]
        outcomes += [_Outcome(each.verdict, each.packet, each.probability) for each in walker.ended]
        self._sure = [outcome for outcome in outcomes if outcome.probability > 0.0]
        self._possible = [outcome for outcome in outcomes if outcome.probability == 0.0]

    def build(self, notes: Iterable[str]) -> Explanation:
        shares = self._shares()
        steps = tuple(_pruned(self._steps))
        flow = self._flow
        through = [outcome for outcome in self._sure if outcome.verdict not in _REFUSED]
        hidden = [outcome for outcome in through if outcome.packet.snat]
        walker_notes = [*notes, *self._walker.notes]
        if flow.saddr is None and any("saddr" in str(step.parts) for step in steps):
            walker_notes.append(
                "the node's own address is not known: it is taken to lie outside of every range that rules name"
            )
        return Explanation(
            question=self._question,
            source=None if flow.saddr is None else address_text(flow.saddr, flow.family),
            local=flow.local,
            verdict=next(iter(shares), "drop"),
            shares=shares,
            outcomes=tuple(self._outcomes()),
            service=self._service(steps),
            backends=tuple(self._backends()),
            masquerade=bool(hidden) and len(hidden) == len(through),
            masquerade_why=self._why(hidden),
            affinity_seconds=self._walker.affinity,
            steps=steps,
            visited=tuple(self._walker.visited),
            otherwise=tuple(self._otherwise()),
            notes=tuple(walker_notes),
        )

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
        groups: dict[tuple[int, int], list[_Outcome]] = {}
        for outcome in self._sure:
            if outcome.packet.translated is not None:
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
                via=self._via(group[0].packet.translated),
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
            why = []
            marked = outcome.packet.marked
            while marked is not None:
                step = self._steps[marked]
                if step.hook in ("prerouting", "output"):
                    why.append(step)
                marked = step.parent
            why = why[:2][::-1]
            if outcome.packet.masqueraded is not None:
                why.append(self._steps[outcome.packet.masqueraded])
            return tuple(why)
        return ()

    def _otherwise(self) -> Iterator[Otherwise]:
        told = {self._told(outcome) for outcome in self._sure}
        for outcome in self._possible:
            other = self._told(outcome)
            if other not in told:
                told.add(other)
                yield other

    def _told(self, outcome: _Outcome) -> Otherwise:
        if outcome.verdict in _REFUSED:
            return Otherwise(outcome.verdict, None, None)
        verdict = "dnat" if outcome.packet.translated is not None else "accept"
        return Otherwise(verdict, address_text(outcome.packet.daddr, self._flow.family), outcome.packet.dport)


def _verdict_of(packet: Packet) -> str:
    if packet.translated is not None:
        return "dnat"
    return "accept" if packet.accepted or packet.snat else "untouched"


def _pruned(steps: list[Step]) -> Iterator[Step]:
    """The steps without jumps to chains in which nothing happened."""
    needed = set()
    for step in reversed(steps):
        kind = step.would or step.effect
        if kind not in ("jump", "goto") or step.number in needed or step.same_as in needed or step.effect != kind:
            if step.effect == "depends" and kind in ("jump", "goto") and step.number not in needed:
                continue
            needed.add(step.number)
            if step.parent is not None:
                needed.add(step.parent)
    return (step for step in steps if step.number in needed)


def _rounded(probability: float) -> float:
    """Without the noise of adding and multiplying; the kernel's own grain is 2^-31."""
    return round(probability, 12)


def _backend_json(backend: Backend) -> dict[str, Any]:
    return {
        "ip": backend.ip,
        "port": backend.port,
        "probability": _rounded(backend.probability),
        "masquerade": backend.masquerade,
        "verdict": backend.verdict,
        "via": list(backend.via),
    }


def _step_json(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = {
        "family": step.table.family,
        "table": step.table.name,
        "chain": step.chain,
        "rule": step.rule,
        "text": step.text,
        "effect": step.effect,
        "probability": _rounded(step.probability),
        "hook": step.hook,
        "engine": step.table.origin.value,
        "target": step.target,
    }
    if step.effect in ("depends", "missing", "loop"):
        found |= {"would": step.would, "on": list(step.on)}
    return found


def _visited_json(visit: Visited) -> dict[str, Any]:
    return {
        "family": visit.table.family,
        "table": visit.table.name,
        "chain": visit.chain,
        "hook": visit.hook,
        "rules": visit.passed,
    }

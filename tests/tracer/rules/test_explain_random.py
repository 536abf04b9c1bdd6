"""Predictions against the kernel: random rules loaded for real, random flows sent for real, and where each one went.

Every outcome must be one that `explain` says can be, and counts must fit the shares that it tells. Each flow's entry in
the connection table must tell the same story as the wires. K8SNET_RANDOM_SEED=NUMBER repeats a run, =random makes
another one; seeds are in the messages.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

import pytest

from tests.tracer.rules.flows import CLIENT_SIDE, SERVER_SIDE, End, Flow, World, random_seed, world
from tests.tracer.rules.packets import PROTOCOLS
from tests.tracer.rules.random_rules import random_rules
from tests.tracer.rules.random_text import iptables_text, nft_text
from tests.tracer.rules.shares import unlikeliness
from tracer import conntrack
from tracer.rules import live
from tracer.rules.explain import Explanation, Question, explain
from tracer.rules.model import RuleSet
from tracer.rules.rtnetlink import LiveRouting

VARIANTS = ("iptables-legacy", "iptables-nft", "nftables", "mixed")  # mixed: a rule set of legacy and one of nftables
SEED = 20261125
RULE_SETS = 12  # of each variant and family
FLOWS = 16  # kinds of flows through each of them
REPEATS = 20  # of each kind, all shuffled
MANY = 300  # of the kinds with several outcomes, up to
MOST_MANY = 2
# A run compares at most len(VARIANTS) * RULE_SETS * 2 * FLOWS = 1,536 kinds of flows with their shares: of 10^6 runs of
# a right prediction, less than one fails
UNLIKELY = 1e-6 / 1_536
KINDS = {"drop": "dropped", "reject": "rejected"}

N = TypeVar("N", int, float)
Outcome = tuple[str, str | None, int | None, bool]  # kind as in End, where to, whether the source was changed


class Prediction(NamedTuple):
    """What `explain` says can be. certain: of each rule it is known whether it applies, so that shares count."""

    shares: dict[Outcome, float]
    certain: bool


def prediction(told: Explanation) -> Prediction:
    shares: dict[Outcome, float] = defaultdict(float)
    for each in told.outcomes:
        shares[KINDS.get(each.verdict, "delivered"), each.ip, each.port, each.masquerade] += each.probability
    for other in told.otherwise:
        shares[KINDS.get(other.verdict, "delivered"), other.ip, other.port, other.masquerade] += 0.0
    assert told.depends or not told.otherwise
    return Prediction(shares, not told.depends)


class Loaded(NamedTuple):
    """Flows for the rules that are loaded. unknowable: these ask what no prediction can know."""

    flows: list[Flow]
    unknowable: bool


class Run:
    """Rules that are loaded, with what is predicted for each kind of flow, and what became of those sent."""

    def __init__(self, net: World, family: int, loaded: Loaded, name: str) -> None:
        self.net, self.family, self.loaded, self.name = net, family, loaded, name
        self.read: RuleSet = live.read_rules(net.router.path)
        self.routing = LiveRouting(net.router.path, "ip6" if family == 6 else "ip")
        texts = (rule.text for table in self.read.tables for chain in table.chains.values() for rule in chain.rules)
        self.untracked = any("notrack" in text for text in texts)  # some flows may have no entry
        self.sent = self.tracked = 0
        self.uneven = 0  # kinds of flows whose shares were checked
        self.seen: Counter[str] = Counter()

    def predict(self, flow: Flow) -> Prediction:
        question = Question(flow.ip, flow.port, flow.protocol, flow.source)
        return prediction(explain(self.read, question, self.routing))

    def check(self, random: Random) -> None:
        flows = self.loaded.flows
        predicted = {flow: self.predict(flow) for flow in flows}
        uneven = [flow for flow in flows if sum(share > 0 for share in predicted[flow].shares.values()) > 1]
        batch = [flow for flow in flows for _ in range(MANY if flow in uneven[:MOST_MANY] else REPEATS)]
        random.shuffle(batch)  # so that a rule's turn (nth, numgen inc) does not fall together with a kind of flow
        ends = self.net.send(batch)
        counts: dict[Flow, Counter[Outcome]] = defaultdict(Counter)
        for flow, end in zip(batch, ends, strict=True):
            counts[flow][self.observed(flow, end)] += 1
            self.seen[end.kind] += 1
        self.compare_with_conntrack(batch, ends)
        self.sent += len(batch)
        for flow, counted in counts.items():
            self.compare(flow, counted, predicted[flow])

    def compare_with_conntrack(self, batch: list[Flow], ends: list[End]) -> None:
        """What arrived went where the flow's entry in the connection table says, and from where."""
        entries = {
            (entry.protocol, entry.orig.sport): entry
            for entry in conntrack.dump(self.net.router.path, family=self.family)
        }
        for flow, end, port in zip(batch, ends, self.net.source_ports, strict=True):
            entry = entries.get((PROTOCOLS[flow.protocol], port))
            if end.kind != "delivered" or (flow.protocol == "TCP" and end.at == "router"):
                continue  # nobody listens there, and the reset ends the entry
            if entry is None:
                assert self.untracked, f"{self.name}: {flow} has no entry"
                assert (end.ip, end.port) == (flow.ip, flow.port)
                continue
            reply = entry.reply
            assert (reply.src_text, reply.sport, reply.dst_text) == (end.ip, end.port, end.source), (flow, end, entry)
            self.tracked += 1

    def observed(self, flow: Flow, end: End) -> Outcome:
        if end.kind != "delivered":
            return end.kind, None, None, False
        return end.kind, end.ip, end.port, end.source != flow.source

    def compare(self, flow: Flow, counted: Counter[Outcome], predicted: Prediction) -> None:
        told, seen = self.observable(flow, predicted.shares), self.observable(flow, counted)
        story = (
            f"{self.name}: {flow}\nseen: {dict(counted)}\ntold: {dict(predicted.shares)}, certain: {predicted.certain}"
        )
        assert seen.keys() <= told.keys(), story
        # what is masqueraded and stays here has an address of the router's, which explain does not guess
        assert self.loaded.unknowable or flow.via == "router" or predicted.certain, story
        if predicted.certain:
            assert unlikeliness(seen, told) > UNLIKELY, story
            self.uneven += len(told) > 1

    def observable(self, flow: Flow, found: Mapping[Outcome, N]) -> dict[Outcome, N]:
        """Without what can't be seen: that a source is changed to what it is already."""
        family = self.family
        own = (CLIENT_SIDE[family], SERVER_SIDE[family], "127.0.0.1", "::1")
        summed: dict[Outcome, N] = {}
        for (kind, ip, port, changed), value in found.items():
            same = flow.via == "router" and (flow.source != CLIENT_SIDE[family] or ip in own)
            key = kind, ip, port, changed and not same
            summed[key] = summed.get(key, type(value)(0)) + value
        return summed


def load(net: World, variant: str, family: int, random: Random, folder: Path) -> Loaded:
    """Replace the router's rules by random ones, of one family."""
    rules = random_rules(random, family)
    program = "ip6tables" if family == 6 else "iptables"
    file = folder / "rules"
    if variant == "nftables":
        file.write_text("flush ruleset\n" + nft_text(rules, random))
        net.router.sh(f"nft -f {file}")
        return Loaded(rules.flows(random, FLOWS), rules.unknowable)
    file.write_text(iptables_text(rules))
    if variant != "mixed":
        net.router.sh(f"{program}-{variant.removeprefix('iptables-')}-restore {file}")
        return Loaded(rules.flows(random, FLOWS), rules.unknowable)
    others = random_rules(random, family)
    more = folder / "more"
    more.write_text("flush ruleset\n" + nft_text(others, random, random.choice((-7, 7))))
    net.router.sh(f"{program}-legacy-restore {file}", f"nft -f {more}")
    flows = [*rules.flows(random, FLOWS // 2), *others.flows(random, FLOWS // 2)]
    return Loaded(flows, rules.unknowable or others.unknowable)


def runs(variant: str, seed: int, folder: Path) -> Iterator[Run]:
    """Random rule sets, checked; of both families in turn."""
    with world() as net:
        for number, family in itertools.product(range(RULE_SETS), (4, 6)):
            random = Random(f"{seed}/{number}/{family}")
            loaded = load(net, variant, family, random, folder)
            net.flush()
            run = Run(net, family, loaded, f"seed {seed}, {variant}, IPv{family}, rule set {number}")
            run.check(random)
            yield run
            run.routing.close()


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_packets_go_where_explain_says(variant: str, tmp_path: Path) -> None:
    seed = random_seed(SEED)
    done = list(runs(variant, seed, tmp_path))
    for family in (4, 6):
        mine = [run for run in done if run.family == family]
        assert sum(run.sent for run in mine) >= 1_000
        assert sum(run.tracked for run in mine) >= 1_000
        if seed == SEED:  # other seeds may come to little of it by chance
            seen = sum((run.seen for run in mine), Counter())
            assert sum(run.uneven for run in mine) >= 10
            assert min(seen[kind] for kind in ("delivered", "dropped", "rejected")) >= 10, seen
            assert sum(not run.loaded.unknowable for run in mine) >= 1

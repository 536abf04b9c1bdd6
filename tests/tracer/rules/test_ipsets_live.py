"""ipsets of the kernel: what `explain` says of random sets is what the rules' counters say of the packets."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cli import command
from tests.tracer.networks import Namespace, namespaces
from tests.tracer.rules.flows import Flow, World, random_seed, world
from tests.tracer.rules.random_ipsets import DESTINATIONS, KINDS, PORTS, PROTOCOLS, SOURCES, RandomSets
from tracer.destination import endpoint_text
from tracer.rules import live
from tracer.rules.model import Element, RuleSet

pytestmark = pytest.mark.root

SEED = random_seed(20261125)
FLOWS = 24
COUNTED = re.compile(r"^\[(\d+):\d+\] -A SETS ", re.MULTILINE)


@pytest.mark.parametrize(("family", "variant"), [(4, "legacy"), (6, "legacy"), (4, "nft"), (6, "nft")])
def test_packets_and_random_sets(family: int, variant: str, tmp_path: Path) -> None:
    made = RandomSets(SEED + family, family)
    assert {line.split()[2] for line in made.commands if line.startswith("create")} >= set(KINDS) - {"bitmap:ip"}
    program = f"{'ip6tables' if family == 6 else 'iptables'}-{variant}"
    with world() as net:
        load(net.router, made, program, tmp_path)
        flows = some_flows(family)
        told = predicted(net.router, flows)
        seen = [observed(net, flow, program) for flow in flows]
    for flow, prediction, observation in zip(flows, told, seen, strict=True):
        differing = prediction.keys() ^ observation.keys() or {
            number for number, count in prediction.items() if observation[number] != count
        }
        assert not differing, (flow, [made.rules[number - 1] for number in differing], made.commands)
    counted = sum(seen, Counter())
    assert sum(counted.values()) > FLOWS, "hardly any packet was in any set"


def load(router: Namespace, made: RandomSets, program: str, folder: Path) -> None:
    """The sets; and a chain SETS with a rule for each question, which does nothing but count."""
    sets, rules = folder / "sets", folder / "rules"
    sets.write_text("".join(f"{line}\n" for line in made.commands))
    lines = [f"-A {hook} -m conntrack --ctstate NEW -j SETS" for hook in ("INPUT", "FORWARD", "OUTPUT")]
    lines += [f"-A SETS {rule} -j MARK --or-mark 0x1" for rule in made.rules]
    rules.write_text("*mangle\n:SETS - [0:0]\n" + "".join(f"{line}\n" for line in lines) + "COMMIT\n")
    router.sh(f"ipset restore -exist < {sets}", f"{program}-restore < {rules}")


def some_flows(family: int) -> list[Flow]:
    """Through the router, to it, and from it."""
    chosen = random.Random(SEED * family)
    ways = list(itertools.product(PROTOCOLS, SOURCES[family], DESTINATIONS[family], PORTS))
    outward = [Flow(protocol, None, ip, port, "router") for protocol, _, ip, port in chosen.sample(ways, FLOWS // 4)]
    return [*(Flow(*way) for way in chosen.sample(ways, FLOWS - len(outward))), *outward]


def predicted(router: Namespace, flows: list[Flow]) -> list[Counter[int]]:
    """How often each rule of SETS takes each packet, by the live `explain`, asked once for each source."""
    found: dict[Flow, Counter[int]] = {}
    for source in {flow.source for flow in flows}:
        ours = [flow for flow in flows if flow.source == source]
        for flow, told in zip(ours, explained(router, source, ours), strict=True):
            assert told["depends"] == [] and told["notes"] == [], told
            found[flow] = Counter(step["rule"] for step in told["steps"] if step["chain"] == "SETS")
    return [found[flow] for flow in flows]


def explained(router: Namespace, source: str | None, flows: list[Flow]) -> list[dict[str, Any]]:
    asked = [f"{endpoint_text(flow.ip, flow.port)}/{flow.protocol.lower()}" for flow in flows]
    options = () if source is None else ("--source", source)
    done = command.run("explain", *asked, *options, "--netns", router.path, "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def observed(net: World, flow: Flow, program: str) -> Counter[int]:
    before = counters(net.router, program)
    (end,) = net.send([flow])
    assert end.kind == "delivered"
    after = counters(net.router, program)
    return +Counter({number: after[number] - before[number] for number in after})


def counters(router: Namespace, program: str) -> dict[int, int]:
    text = router.sh(f"{program}-save -c -t mangle 2>&1")
    return {number: int(packets) for number, packets in enumerate(COUNTED.findall(text), 1)}


@pytest.mark.parametrize("family", [4, 6])
def test_netlink_tells_what_ipset_prints(family: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world() as net:
        program = "ip6tables-legacy" if family == 6 else "iptables-legacy"
        load(net.router, RandomSets(SEED + family, family), program, tmp_path)
        net.router.sh("ipset create many hash:ip,port", "ipset add many 10.1.0.0/19,sctp:9")
        printed = contents(live.read_rules(net.router.path))
        without(monkeypatch, "ipset")
        assert contents(live.read_rules(net.router.path)) == printed
    assert len(printed["many"][-1]) == 1 << 13


def contents(rules: RuleSet) -> dict[str, tuple[object, ...]]:
    assert rules.notes == []
    return {
        name: (found.kind, found.of, found.type, found.timeout, found.strange, sorted(map(bare, found.elements)))
        for name, found in rules.ipsets.items()
    }


def bare(element: Element) -> str:
    return str(element._replace(comment=None))


def without(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    find = live._find
    monkeypatch.setattr(live, "_find", lambda name: None if name == program else find(name))


def test_sets_that_can_not_be_read_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise OSError(1, "Operation not permitted")

    with namespaces(1) as (one,):
        one.sh("ipset create x hash:ip", "iptables-legacy -A OUTPUT -m set --match-set x dst -j DROP")
        without(monkeypatch, "ipset")
        monkeypatch.setattr("tracer.rules.ipset_netlink.save", refuse)
        rules = live.read_rules(one.path)
    assert rules.ipsets == {}
    assert rules.notes == [
        "the ipsets that rules look in can't be read: ipset is not installed, and netlink told nothing "
        "([Errno 1] Operation not permitted): apt-get install ipset"
    ]


def test_without_a_rule_that_looks_in_a_set_none_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with namespaces(1) as (one,):
        one.sh("ipset create x hash:ip", "iptables-legacy -A OUTPUT -d 10.0.0.1 -j DROP")
        monkeypatch.setattr(live, "_ipsets", None)  # a call would fail
        assert live.read_rules(one.path).ipsets == {}

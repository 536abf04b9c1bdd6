"""What we expect of kube-proxy's rules against the kernel: the fixtures loaded for real, every case sent for real."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.tracer.rules.expected_flows import ExpectedFlow, expected_flows
from tests.tracer.rules.flows import SERVER_SIDE, Flow, world

FIXTURES = Path(__file__).parents[2] / "fixtures" / "kube-proxy-v1.30.5"
OBJECTS: dict[str, Any] = json.loads((FIXTURES / "objects.json").read_text())
NODE_IP = {4: "172.18.0.2", 6: "fc00:f853:ccd:e793::2"}
SOURCE_IPS = {
    4: {"pod": "10.244.7.7", "node": NODE_IP[4], "outside": "192.0.2.9", "ranged": "10.9.9.9"},
    6: {"pod": "fd00:10:244::7:7", "node": NODE_IP[6], "outside": "2001:db8::9", "ranged": "2001:db8::a"},
}
OWN_ADDRESSES = {*NODE_IP.values(), *SERVER_SIDE.values()}
VARIANTS = ("iptables-legacy", "iptables-nft", "nftables")
KINDS = {"drop": "dropped", "reject": "rejected", "dnat": "delivered"}


def flows(family: int, variant: str) -> list[ExpectedFlow]:
    """Every case for rules of a variant."""
    mode = "nftables" if variant == "nftables" else "iptables"
    return list(expected_flows(OBJECTS, family, "node1", NODE_IP[family], SOURCE_IPS[family], mode))


def load_commands(variant: str) -> list[str]:
    """The commands that load the rules which kube-proxy left."""
    if variant == "nftables":
        return [f"nft -f {FIXTURES}/nftables.nft"]
    kind = variant.removeprefix("iptables-")
    return [f"{name}-{kind}-restore {FIXTURES}/{name}-{kind}.save" for name in ("iptables", "ip6tables")]


@pytest.mark.root
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kernel_does_with_every_flow_what_is_expected(variant: str) -> None:
    with world(list(NODE_IP.values())) as net:
        net.router.sh(*load_commands(variant))
        wrong = []
        for family in (4, 6):
            cases = flows(family, variant)
            ends = net.send([Flow(c.protocol, c.source, c.ip, c.port, via(c)) for c in cases])
            for case, end in zip(cases, ends, strict=True):
                backend = (end.ip, end.port)
                right = end.kind == KINDS[case.verdict] and (end.kind != "delivered" or backend in case.backends)
                if right and end.kind == "delivered" and case.source_kind != "node":  # whose address is its own anyway
                    sources = OWN_ADDRESSES if backend in case.masqueraded else {case.source}
                    right = end.source in sources
                if not right:
                    wrong.append((case, end))
        assert wrong == []


def via(case: ExpectedFlow) -> str:
    return "router" if case.source_kind == "node" else "client"


@pytest.mark.parametrize("variant", VARIANTS)
def test_cases_hold_what_matters(variant: str) -> None:
    """Else tests that go by them would test less than they seem to."""
    cases = flows(4, variant) + flows(6, variant)
    assert len(cases) == 884
    assert len({(case.key, case.ip, case.port, case.source_kind, case.source) for case in cases}) == len(cases)
    seen = Counter((case.source_kind, case.verdict) for case in cases)
    never = {("pod", "drop")}  # of none of the policies is a pod the victim, while there is any endpoint
    assert {(kind, verdict) for kind in SOURCE_IPS[4] for verdict in KINDS} - set(seen) == never
    assert {case.affinity for case in cases} == {None, 60, 10800}
    masqueraded = {(case.source_kind, bool(case.masqueraded), case.masqueraded == case.backends) for case in cases}
    assert {
        ("pod", False, False),
        ("pod", True, True),
        ("endpoint", True, False),
        ("endpoint", True, True),
    } <= masqueraded
    assert {("outside", False, False), ("outside", True, True), ("node", True, True)} <= masqueraded


def test_what_the_modes_do_differently() -> None:
    """Only the node's own packets to addresses from outside that have no endpoint here, as long as others have some."""
    iptables, nftables = ({case[:7]: case[7:] for case in map(_plain, flows(4, variant))} for variant in VARIANTS[1:])
    different = [asked for asked in iptables if iptables[asked] != nftables[asked]]
    assert len(different) == 7
    for asked in different:
        assert asked[1] in ("ExternalIP", "LoadBalancer")
        assert asked[2] == "node"
        assert (iptables[asked][0], nftables[asked][0]) == ("dnat", "drop")
    assert flows(6, VARIANTS[1]) == flows(6, VARIANTS[2])


def _plain(case: ExpectedFlow) -> tuple[Any, ...]:
    return tuple(vars(case).values())

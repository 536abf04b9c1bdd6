"""Rarer translations: what the kernel makes of many clients' packets, and what `explain` says of them."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from tests.tracer.rules.flows import Flow, World, world
from tests.tracer.rules.shares import unlikeliness
from tracer.rules.explain import Question, explain
from tracer.rules.live import read_rules
from tracer.rules.rtnetlink import LiveRouting

CLIENTS = 300
UNLIKELY = 1e-9


def dnat(words: str) -> str:
    return f"iptables-legacy -t nat -A PREROUTING -p udp -j {words}"


def nft(words: str, hook: str = "prerouting", priority: int = -100) -> str:
    chain = f"chain c {{ type nat hook {hook} priority {priority}; {words} ; }}"
    return f"nft 'table ip {hook} {{ {chain} ; }}'"


NETMAP = "-t nat -A PREROUTING -d 10.96.0.0/24 -j NETMAP --to 10.0.2.0/24"
TRANSLATIONS = {
    "first port of a range": dnat("DNAT --to-destination 10.0.2.11:8000-8003"),
    "any port of a range": dnat("DNAT --to-destination 10.0.2.11:8000-8003 --random"),
    "port within the range": dnat("DNAT --to-destination 10.0.2.11:78-81"),
    "range of ports moved": dnat("DNAT --to-destination 10.0.2.11:5000-5100/70"),
    "range of addresses": dnat("DNAT --to-destination 10.0.2.11-10.0.2.13"),
    "ranges of both": dnat("DNAT --to-destination 10.0.2.11-10.0.2.12:8000-8001"),
    "ranges of both, by nft": nft("meta l4proto udp dnat to 10.0.2.11-10.0.2.12:8000-8001"),
    "any port, by nft": nft("meta l4proto udp dnat to 10.0.2.11:8000-8003 random"),
    "redirected to a range": dnat("REDIRECT --to-ports 8000-8003"),
    "redirected to any of a range": dnat("REDIRECT --to-ports 8000-8003 --random"),
    "networks, legacy": f"iptables-legacy {NETMAP}",
    "networks, nft variant": f"iptables-nft {NETMAP}",
    "networks, by nft": nft("dnat prefix to 10.0.2.0/24"),
    "networks of a map": nft("dnat ip prefix to ip daddr map { 10.96.0.0/24 : 10.0.2.0/24 }"),
    "address and port by chance": nft(
        "meta l4proto udp dnat to numgen random mod 2 map { 0 : 10.0.2.11 . 8000, 1 : 10.0.2.12 . 8001 }"
    ),
    "address by chance, one port": nft(
        "meta l4proto udp dnat to numgen random mod 8 map { 0-6 : 10.0.2.11, 7 : 10.0.2.12 }:8000"
    ),
    "address and port of a map": nft("dnat to ip daddr . udp dport map { 10.96.0.1 . 80 : 10.0.2.11 . 8000 }"),
    "not in the map": nft("dnat to ip daddr . udp dport map { 10.96.0.1 . 81 : 10.0.2.11 . 8000 }"),
}


def told(net: World, flow: Flow) -> dict[tuple[str, str | None, int | None], float]:
    routing = LiveRouting(net.router.path, "ip")
    answer = explain(read_rules(net.router.path), Question(flow.ip, flow.port, flow.protocol, flow.source), routing)
    routing.close()
    assert answer.otherwise == ()
    shares: dict[tuple[str, str | None, int | None], float] = defaultdict(float)
    for each in answer.outcomes:
        shares["delivered" if each.ip else each.verdict, each.ip, each.port] += each.probability
    return dict(shares)


@pytest.mark.root
@pytest.mark.parametrize("name", TRANSLATIONS)
def test_where_many_clients_are_sent(name: str) -> None:
    with world() as net:
        net.router.sh(TRANSLATIONS[name])
        flows = [Flow("UDP", f"10.0.1.{2 + number % 240}", "10.96.0.1", 80) for number in range(CLIENTS)]
        shares = told(net, flows[0])
        seen = Counter((end.kind, end.ip, end.port) for end in net.send(flows))
    assert seen.keys() == shares.keys()
    assert unlikeliness(seen, shares) > UNLIKELY


SOURCES = {
    "networks": "iptables-legacy -t nat -A POSTROUTING -s 10.0.1.0/24 -j NETMAP --to 10.0.9.0/24",
    "networks of a map": nft("snat ip prefix to ip saddr map { 10.0.1.0/24 : 10.0.9.0/24 }", "postrouting", 100),
    "one address": nft("snat to 10.0.9.7", "postrouting", 100),
    "address of a map": nft("snat to ip saddr map { 10.0.1.7 : 10.0.9.7 }", "postrouting", 100),
}


@pytest.mark.root
@pytest.mark.parametrize("name", SOURCES)
def test_sources(name: str) -> None:
    with world() as net:
        net.router.sh(SOURCES[name])
        flow = Flow("UDP", "10.0.1.7", "10.96.0.1", 80)
        (end,) = net.send([flow])
        assert (end.ip, end.port, end.source) == ("10.96.0.1", 80, "10.0.9.7")
        routing = LiveRouting(net.router.path, "ip")
        answer = explain(read_rules(net.router.path), Question(flow.ip, flow.port, "UDP", flow.source), routing)
        routing.close()
    (outcome,) = answer.outcomes
    assert outcome == ("accept", "10.96.0.1", 80, True, 1.0)
    assert answer.masquerade is True

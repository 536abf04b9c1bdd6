"""Session affinity in a kernel: new clients go where `explain` says, in its shares, and stay there."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.tracer.rules.flows import Flow, World, world
from tests.tracer.rules.shares import unlikeliness
from tracer.rules.explain import Explanation, Question, explain
from tracer.rules.live import read_rules
from tracer.rules.rtnetlink import LiveRouting

ENDPOINTS = ("10.0.2.11", "10.0.2.12", "10.0.2.13")
SERVICE = ("10.96.0.1", 80)
CLIENTS = [f"10.50.{number // 200}.{number % 200 + 1}" for number in range(300)]
MOST_RECENT = 100  # clients that a list of xt_recent remembers (its parameter ip_list_tot): kube-proxy's too
UNLIKELY = 1e-9


def iptables_rules() -> str:
    """As kube-proxy writes them (proxier.go, writeServiceToEndpointRules), with sessionAffinity ClientIP."""
    names = [f"KUBE-SEP-{number}" for number in range(len(ENDPOINTS))]
    lines = ["*nat", ":KUBE-SVC-X - [0:0]", *(f":{name} - [0:0]" for name in names)]
    lines += ["-A PREROUTING -d 10.96.0.1/32 -p udp -m udp --dport 80 -j KUBE-SVC-X"]
    recent = "-m recent {} --name {} --mask 255.255.255.255 --rsource"
    lines += [f"-A KUBE-SVC-X {recent.format('--rcheck --seconds 10800 --reap', name)} -j {name}" for name in names]
    for number, name in enumerate(names):
        left = len(names) - number
        chance = f"-m statistic --mode random --probability {1 / left:.11f} " if left > 1 else ""
        lines.append(f"-A KUBE-SVC-X {chance}-j {name}")
    for name, ip in zip(names, ENDPOINTS, strict=True):
        lines.append(f"-A {name} -p udp {recent.format('--set', name)} -j DNAT --to-destination {ip}:80")
    return "\n".join([*lines, "COMMIT", ""])


def nft_rules() -> str:
    sets, endpoints, sticky, choice = "", "", "", []
    for number, ip in enumerate(ENDPOINTS):
        sets += f"set affinity-{number} {{ type ipv4_addr; flags dynamic,timeout; timeout 3h; }}\n"
        endpoints += f"chain endpoint-{number} {{ update @affinity-{number} {{ ip saddr }}\n"
        endpoints += f"meta l4proto udp dnat to {ip}:80\n}}\n"
        sticky += f"ip saddr @affinity-{number} goto endpoint-{number}\n"
        choice.append(f"{number} : goto endpoint-{number}")
    service = f"chain service {{ {sticky}numgen random mod 3 vmap {{ {', '.join(choice)} }}\n}}\n"
    base = "chain nat-prerouting { type nat hook prerouting priority -100;\n"
    base += "ip daddr . meta l4proto . th dport vmap { 10.96.0.1 . udp . 80 : goto service }\n}\n"
    return f"table ip kube-proxy {{\n{sets}{endpoints}{service}{base}}}\n"


RULES = {
    "iptables-legacy": ("iptables-legacy-restore", iptables_rules()),
    "iptables-nft": ("iptables-nft-restore", iptables_rules()),
    "nftables": ("nft -f -", nft_rules()),
}


def told(net: World, source: str) -> Explanation:
    routing = LiveRouting(net.router.path, "ip")
    answer = explain(read_rules(net.router.path), Question(*SERVICE, "UDP", source), routing)
    routing.close()
    return answer


@pytest.mark.root
@pytest.mark.parametrize("variant", RULES)
def test_clients_choose_once(variant: str) -> None:
    command, text = RULES[variant]
    with world() as net:
        net.router.sh(f"{command} <<'END'\n{text}END")
        before = told(net, CLIENTS[0])
        clients = CLIENTS if variant == "nftables" else CLIENTS[:MOST_RECENT]
        flows = [Flow("UDP", client, *SERVICE) for client in clients]
        first, second = net.send(flows), net.send(flows)
        after = told(net, "10.60.0.1")
    assert before.affinity_seconds == after.affinity_seconds == 10800
    for answer in (before, after):
        assert (answer.depends, answer.otherwise) == ((), ())
        shares = {each.ip: each.probability for each in answer.outcomes}
        assert shares.keys() == set(ENDPOINTS)
        assert unlikeliness(Counter(end.ip for end in first), shares) > UNLIKELY  # type: ignore[arg-type]
    assert [end.ip for end in first] == [end.ip for end in second]

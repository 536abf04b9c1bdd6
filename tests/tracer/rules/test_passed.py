"""How many rules and look-ups the first packet of a flow passes: exact counts, worked out by hand."""

from __future__ import annotations

import ipaddress

import pytest

from tests.tracer.rules import scale
from tests.tracer.rules.explaining import ask, nft, save
from tests.tracer.rules.test_sockets import at, datapath, rules
from tracer.explanation import passed_words
from tracer.rules.files import read_text
from tracer.rules.model import RuleSet
from tracer.rules.sockets import SocketServices
from tracer.rules.trail import Passed
from tracer.service_lb import Backend, Datapath, Entry, ServiceFlag

POD = "10.128.100.1"  # in the range of pods, and no endpoint of the Services that are asked for

FILTER = """filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:FIRST - [0:0]
:SECOND - [0:0]
"""


def passed(found: RuleSet, destination: str = "10.96.0.1:80", source: str | None = POD) -> tuple[float, float, float]:
    """Rules, chains, look-ups."""
    told = ask(found, destination, source)
    return told.passed.rules, told.passed.chains, told.passed.lookups


def filters(*lines: str) -> RuleSet:
    return save(FILTER + "\n".join(lines))


def many_in_maps(count: int) -> RuleSet:
    """The Services of `scale`, in maps of eBPF."""
    found = RuleSet()
    services, lists = {}, {}
    for number in range(count):
        services[at(scale.cluster_ip(number))] = Entry(number + 1, number + 1, 3)
        ips = (ipaddress.ip_address(scale.endpoint_ip(number, endpoint)) for endpoint in range(3))
        lists[number + 1] = tuple(Backend(ip, 8080, False) for ip in ips)
    found.sockets = SocketServices(Datapath(services, lists), is_pod=lambda ip: ip == POD)
    return found


def test_all_rules_that_a_packet_comes_to_whether_they_take_it_or_not() -> None:
    three = filters("-A FORWARD -d 10.0.0.1/32 -j DROP", "-A FORWARD -p udp -j DROP", "-A FORWARD -p tcp -j ACCEPT")
    assert passed(three) == (3, 1, 0)


def test_none_behind_the_verdict() -> None:
    assert passed(filters("-A FORWARD -p udp -j DROP", "-A FORWARD -j ACCEPT", "-A FORWARD -j DROP")) == (2, 1, 0)
    assert passed(filters("-A FORWARD -j DROP", "-A FORWARD -j ACCEPT")) == (1, 1, 0)


def test_a_chain_that_is_returned_from() -> None:
    there_and_back = ("-A FORWARD -j FIRST", "-A FORWARD -j ACCEPT", "-A FIRST -j SECOND", "-A FIRST -p udp -j DROP")
    assert passed(filters(*there_and_back, "-A SECOND -j RETURN", "-A SECOND -j DROP")) == (5, 3, 0)


def test_the_same_chain_twice() -> None:
    twice = ("-A FORWARD -j FIRST", "-A FORWARD -j FIRST", "-A FIRST -p udp -j DROP", "-A FIRST -p sctp -j DROP")
    assert passed(filters(*twice)) == (6, 3, 0)


def test_where_chance_decides_it_is_a_mean() -> None:
    half = "-A FORWARD -m statistic --mode random --probability 0.50000000000 -j FIRST"
    assert passed(filters(half, "-A FORWARD -j ACCEPT", "-A FIRST -j ACCEPT")) == (2, 1.5, 0)


def test_what_happens_only_perhaps_is_not_counted() -> None:
    assert passed(filters("-A FORWARD -m limit --limit 1/sec -j FIRST", "-A FIRST -j ACCEPT")) == (1, 1, 0)


def test_a_long_chain_of_which_most_rules_are_never_read() -> None:
    lines = [f"-A FORWARD -d 10.1.{number // 250}.{number % 250}/32 -p tcp -j DROP" for number in range(1000)]
    assert passed(filters(*lines, "-A FORWARD -d 10.96.0.1/32 -j ACCEPT", *lines)) == (1001, 1, 0)
    assert passed(filters(*lines)) == (1000, 1, 0)


def test_sets_and_maps_of_nftables_are_look_ups() -> None:
    found = nft(
        """table ip filter {
	set ports {
		type inet_service
		elements = { 80, 443 }
	}
	map verdicts {
		type ipv4_addr : verdict
		elements = { 10.96.0.1 : jump known }
	}
	chain known {
		tcp dport { 80, 8080 } counter
		udp dport @ports drop
		ct state new,established counter
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		tcp dport @ports counter
		ip daddr vmap @verdicts
		tcp dport 80 accept
	}
}
"""
    )
    # @ports, @verdicts, { 80, 8080 }; udp fails before @ports is looked in, and states are compared as a mask
    assert passed(found) == (6, 2, 3)


def test_a_set_of_ipset_is_a_look_up() -> None:
    found = filters(
        "-A FORWARD -p udp -m set --match-set those dst -j DROP", "-A FORWARD -m set --match-set those dst -j DROP"
    )
    found.add(read_text("create those hash:ip family inet\nadd those 10.96.0.1\n", "test.ipset"))
    assert passed(found) == (2, 1, 1)


@pytest.mark.parametrize("number", [0, 499, 999])
def test_a_thousand_services(number: int) -> None:
    """iptables: PREROUTING 1; KUBE-SERVICES all before it and its own; its chain 1 for masquerading and 1 + 2/3 + 1/3
    for the choice; the endpoint's 2. nftables: 1, 1 with a look-up, 2 with one, 2. Maps of eBPF: service and slot.
    """
    destination = f"{scale.cluster_ip(number)}:80"
    iptables = read_text(scale.iptables_save(1000), "test.save")
    assert passed(iptables, destination) == (pytest.approx(1 + number + 1 + 3 + 2), pytest.approx(5), 0)
    nftables = nft(scale.nftables(1000))
    assert passed(nftables, destination) == (pytest.approx(6), pytest.approx(4), pytest.approx(2))
    assert passed(many_in_maps(1000), destination) == (0, 0, 2)


def test_maps_of_ebpf() -> None:
    """Affinity looks for the client too; a packet from outside for a rewrite, for its source if there are ranges."""
    guarded = ServiceFlag.HAS_RANGES
    two = {2: (("10.244.0.5", True), ("10.244.1.6", False))}
    outside = at("203.0.113.1", 80, at("::").scope.OUTSIDE)
    assert passed(rules(datapath({at("10.96.0.1"): (2, ServiceFlag(0))}, two)), source=None) == (0, 0, 2)
    assert passed(rules(datapath({at("10.96.0.1"): (2, ServiceFlag(0))}, two, 10800)), source=None) == (0, 0, 3)
    assert passed(rules(datapath({at("10.96.0.1"): (2, ServiceFlag(0))}, {2: ()})), source=None) == (0, 0, 1)
    assert passed(rules(datapath({outside: (2, ServiceFlag(0))}, two)), "203.0.113.1:80") == (0, 0, 3)
    assert passed(rules(datapath({outside: (2, guarded)}, two, 0, ("10.128.0.0/9",))), "203.0.113.1:80") == (0, 0, 4)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((10_012, 6, 0), "10,012 rules in 6 chains"),
        ((1, 1, 1), "1 rule in 1 chain, 1 map look-up"),
        ((0, 0, 3), "3 map look-ups"),
        ((0, 0, 0), "0 rules in 0 chains"),
        ((8.5, 6, 2), "8.5 rules in 6 chains, 2 map look-ups on average"),
    ],
)
def test_in_words(counts: tuple[float, float, float], words: str) -> None:
    assert passed_words(Passed(*counts)) == words

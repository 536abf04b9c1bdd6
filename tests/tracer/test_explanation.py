"""The tree and its sentences: what is said, that it fits, and what is left out of long ones."""

from __future__ import annotations

import re

import pytest

from tests.tracer.rules.explaining import POD, ask, nft, save
from tests.tracer.rules.test_rules_truth import FORMS, rules, services
from tracer.escape import cells
from tracer.explanation import lines
from tracer.rule_sentences import fraction, sentence
from tracer.rules.answer import Explanation

FILTER = "filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
DROPPED = "is dropped: the sender hears nothing"
ACCEPTED = "is accepted, as far as table filter goes"
NAT = "nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"


def drawn(told: Explanation, width: int = 120, verbose: bool = False) -> list[str]:
    return ["".join(span.text for span in line) for line in lines(told, width, verbose=verbose)]


def said(told: Explanation) -> list[str]:
    return [sentence(step) for step in told.steps]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-j ACCEPT", f"every packet {ACCEPTED}"),
        ("-s 10.244.0.0/16 -j DROP", f"from 10.244.0.0/16: {DROPPED}"),
        ("! -s 10.96.0.0/16 -j DROP", f"not from 10.96.0.0/16: {DROPPED}"),
        (
            "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
            "to 10.96.0.1, tcp port 80: is rejected with icmp-port-unreachable: the sender is told at once",
        ),
        (
            "-p tcp -m multiport --dports 80,90:99 -j REJECT --reject-with tcp-reset",
            "port 80 or 90-99: is rejected with tcp-reset: as if nothing listened there",
        ),
        ("-m addrtype ! --dst-type LOCAL -j DROP", f"not to this node's own addresses: {DROPPED}"),
        ("-m conntrack --ctstate NEW -j RETURN", "of new connections: the policy of the chain decides"),
        ("-m mark ! --mark 0x4000/0x4000 -j RETURN", "not marked 0x4000: the policy of the chain decides"),
        ("-m limit --limit 3/min -j DROP", f"depends on limit --limit 3/min: if so, {DROPPED}"),
        ("-m statistic --mode nth --every 3 --packet 0 -j DROP", f"one of 3 that come here: {DROPPED}"),
        ("-j LOG", "every packet is logged"),
        ("-i eth0 -o cni0 -j ACCEPT", f"coming in by eth0, leaving by cni0: {ACCEPTED}"),
        ("-j NFQUEUE --queue-num 1", "every packet is handed to a program, which decides"),
    ],
)  # fmt: skip
def test_sentences_of_filters(rule: str, expected: str) -> None:
    told = ask(save(f"{FILTER}-A FORWARD {rule}"), source=POD, in_device="eth0", out_device="cni0")
    assert said(told)[:1] == [expected]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-j DNAT --to-destination 10.0.0.1:8080", "tcp: gets the destination 10.0.0.1:8080"),
        ("-j DNAT --to-destination 10.0.0.1", "tcp: gets the destination 10.0.0.1"),
        ("-j DNAT --to-destination 10.0.0.1-10.0.0.2:8", "tcp: gets the destination one of 10.0.0.1-10.0.0.2, port 8"),
        ("-j REDIRECT --to-ports 15001", "tcp: is sent to this node itself, to port 15001"),
        ("-j NETMAP --to 10.1.0.0/16", "tcp: gets an address in 10.1.0.0/16, with the same host part"),
    ],
)  # fmt: skip
def test_sentences_of_translations(rule: str, expected: str) -> None:
    assert said(ask(save(f"{NAT}-A OUTPUT -p tcp {rule}"))) == [expected]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("tcp dport { 80, 443 } drop", f"tcp port 80 or 443: {DROPPED}"),
        ("ip saddr @clients drop", f"source in @clients: {DROPPED}"),
        ("ip daddr != @clients drop", f"destination not in @clients: {DROPPED}"),
        ("meta mark set meta mark | 0x00004000", "every packet is marked 0x4000"),
        ("meta mark set meta mark ^ 0x00004000", "every packet has 0x4000 flipped in its mark"),
        ("meta mark set 0x00000000", "every packet is unmarked"),
        ("jump nowhere", "every packet should go to nowhere, which is not there; goes on behind this rule"),
        ("frobnicate", "depends on frobnicate, which may do anything"),
    ],
)
def test_sentences_of_nft(rule: str, expected: str) -> None:
    text = "set clients {\ntype ipv4_addr\nelements = { 10.244.0.7 }\n}\n"
    rules = f"chain c {{\ntype filter hook forward priority 0; policy accept;\n{rule}\n}}"
    assert said(ask(nft(f"table ip t {{\n{text}{rules}\n}}"), source=POD))[:1] == [expected]


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(1 / 3, "1/3"), (0.66666666651, "2/3"), (0.25, "1/4"), (0.4, "2/5"), (0.123, "12.3%"), (0.001, "1/1000")],
)
def test_fractions(probability: float, expected: str) -> None:
    assert fraction(probability) == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [80, 120])
def test_every_service_fits(form: str, width: int) -> None:
    """But for names of chains in nftables mode, which may be longer than 80 columns."""
    drawn_lines = 0
    for service in services(form).services:
        for address in service.addresses[:1]:
            ip = f"[{address.ip}]" if ":" in (address.ip or "") else address.ip
            told = ask(rules(form), f"{ip}:{address.port}", protocol=service.protocol)
            for line in drawn(told, width, verbose=True):
                assert cells(line) <= width or len(max(line.split(), key=len)) > width - 30, line
                drawn_lines += 1
    assert drawn_lines > 2000


def endpoints(count: int) -> Explanation:
    text = NAT + ":S - [0:0]\n-A OUTPUT -j S\n" + "".join(
        f"-A S -p tcp -m statistic --mode random --probability {1 / (count - number):.11f} "
        f"-j DNAT --to-destination 10.0.{number // 250}.{number % 250}:80\n"
        for number in range(count)
    )  # fmt: skip
    return ask(save(text))


def test_a_thousand_endpoints_are_not_all_shown() -> None:
    shown = drawn(endpoints(1000))
    assert sum("gets the destination" in line for line in shown) == 3
    assert "   └─ … and 997 more of this kind (-v shows all)" in shown
    assert "   … and 980 more (-v shows all)" in shown
    assert len(shown) < 60
    everything = drawn(endpoints(1000), verbose=True)
    assert sum("gets the destination" in line for line in everything) == 1000


def test_few_endpoints_are_all_shown() -> None:
    assert sum("gets the destination" in line for line in drawn(endpoints(6))) == 6


def test_long_rules_are_cut_unless_all_is_asked_for() -> None:
    ports = ", ".join(str(number) for number in range(1000, 2000))
    rules = f"chain c {{\ntype filter hook output priority 0; policy accept;\ntcp dport {{ {ports} }} drop\n}}"
    told = ask(nft(f"table ip t {{\n{rules}\n}}"), "10.0.0.1:1500")
    shown = drawn(told, 80)
    assert sum(line.endswith(" …") for line in shown) == 1
    assert max(map(len, shown)) <= 82
    assert len(shown) < 12
    assert "1999" in "".join(drawn(told, 80, verbose=True))


def test_a_megabyte_in_one_word_is_no_trouble() -> None:
    rules = save(f'{FILTER}-A OUTPUT -m comment --comment "{"x" * 1_000_000}" -j DROP')
    assert len(drawn(ask(rules), 80)) < 12


def test_result_by_verdict() -> None:
    def result(told: Explanation) -> str:
        return next(line for line in drawn(told) if line.startswith("⇒"))

    assert result(ask(save(FILTER))) == "⇒ untouched: no rule concerns it, it goes to 10.96.0.1:80"
    assert result(ask(save(f"{FILTER}-A OUTPUT -j ACCEPT"))) == "⇒ let through to 10.96.0.1:80"
    assert result(ask(save(f"{FILTER}-A OUTPUT -j DROP"))) == "⇒ dropped"
    nat = f"{NAT}-A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.1:80"
    assert result(ask(save(nat))) == "⇒ translated to its one backend"


def test_mixed_outcomes_and_what_depends() -> None:
    text = (
        f"{FILTER}-A OUTPUT -m statistic --mode random --probability 0.25 -j DROP\n"
        "-A OUTPUT -m set --match-set bad src -j REJECT"
    )
    shown = drawn(ask(save(text)))
    assert "   of all packets: 3/4 untouched, 1/4 drop" in shown
    assert "   or else reject, as it depends" in shown


def test_affinity_and_reason_are_told() -> None:
    told = ask(rules("iptables-legacy"), "10.96.234.209:443", POD, "UDP")
    shown = "\n".join(drawn(told))
    assert "affinity: a client stays at its backend for 1m" in shown
    assert re.search(r"not masqueraded: the backend sees the sender's own address", shown)

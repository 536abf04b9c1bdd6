"""Refusing rules by their text must never refuse one that a full reading would not, whatever the text."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.rules.explaining import HEADER, NODE, ask, save
from tests.tracer.rules.rule_texts import rule_texts
from tracer.rules import walk
from tracer.rules.answer import Explanation
from tracer.rules.files import read_text
from tracer.rules.model import Chain, Rules, RuleSet, Table
from tracer.rules.packet import Flow, Packet
from tracer.rules.refusals import candidates

PACKETS = [("10.96.0.1:80", "TCP"), ("10.96.0.1:53", "UDP"), (f"{NODE}:30000", "TCP"), ("10.96.0.10:8080", "SCTP")]


def everything(table: Table, chain: Chain, flow: Flow, packets: object) -> range:
    return range(len(chain.rules))


def told(rules: RuleSet, destination: str, protocol: str) -> tuple[object, ...]:
    """What matters of an answer; TooManyWays is one, too."""
    try:
        answer: Explanation = ask(rules, destination, protocol=protocol)
    except walk.TooManyWays:
        return ("too many",)
    steps = [(step.chain, step.rule, step.effect, step.on, step.probability) for step in answer.steps]
    visits = [(visit.chain, visit.met) for visit in answer.visited]
    return steps, visits, answer.shares, answer.otherwise, answer.backends, answer.notes


def assert_equal_answers(rules: RuleSet) -> None:
    for destination, protocol in PACKETS:
        quick = told(rules, destination, protocol)
        with mock.patch.object(walk, "candidates", everything):
            slow = told(rules, destination, protocol)
        assert quick == slow


@st.composite
def lines(draw: st.DrawFn) -> str:
    """Rules near to those that the packets meet, in orders and spellings that iptables-save would not write, too."""
    sign = st.sampled_from(["", "", "! "])
    address = st.sampled_from(
        ["10.96.0.1/32", "10.96.0.10/32", f"{NODE}/32", "10.96.0.0/24", "010.96.0.1/32", "10.96.0.1"]
    )
    protocol = draw(st.sampled_from(["tcp", "udp", "sctp", "TCP", "6"]))
    port = st.sampled_from(["80", "53", "080", "30000", "70:90", "99999", "8080"])
    comment = st.sampled_from(['"a -d 1.2.3.4/32 b"', '"x\\" -p udp"', "plain", '"-m tcp --dport 81 "', '"! "', "'"])
    parts = [
        *([f"{draw(sign)}-s {draw(address)}"] * draw(st.booleans())),
        *([f"{draw(sign)}-d {draw(address)}"] * draw(st.booleans())),
        *(["-i eth0"] * draw(st.sampled_from([False, False, True]))),
        *([f"{draw(sign)}-p {protocol}"] * draw(st.booleans())),
        *([f"-m comment --comment {draw(comment)}"] * draw(st.booleans())),
        *([f"-m addrtype {draw(sign)}--dst-type LOCAL"] * draw(st.booleans())),
        *([f"-m {protocol} {draw(sign)}--dport {draw(port)}"] * draw(st.booleans())),
    ]
    if draw(st.sampled_from([False, False, True])):
        parts = draw(st.permutations(parts))
    return " ".join([*parts, draw(st.sampled_from(["-j DROP", "-j ACCEPT", "-j LOG", "-j RETURN", "-g B", "-j B"]))])


@settings(max_examples=150, deadline=None)
@given(st.lists(lines(), min_size=8, max_size=30))
def test_quick_and_slow_walks_are_equal(texts: list[str]) -> None:
    body = "".join(f"-A OUTPUT {text}\n" for text in texts)
    text = HEADER.format(six="") + f"*filter\n:OUTPUT ACCEPT [0:0]\n:B - [0:0]\n{body}COMMIT\n"
    assert_equal_answers(read_text(text, "x"))


@settings(max_examples=50, deadline=None)
@given(st.lists(rule_texts(), min_size=8, max_size=20))
def test_also_for_rules_of_all_kinds(texts: list[str]) -> None:
    body = "".join(f"-A OUTPUT {text}\n" for text in texts)
    text = HEADER.format(six="") + f"*nat\n:OUTPUT ACCEPT [0:0]\n:B - [0:0]\n{body}COMMIT\n"
    assert_equal_answers(read_text(text, "x"))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("-d 10.96.0.2/32 -p tcp -j DROP", False),
        ("-d 10.96.0.1/32 -p tcp -j DROP", True),
        ("! -d 10.96.0.2/32 -p tcp -j DROP", True),
        ("! -s 10.0.0.0/8 -d 10.96.0.2/32 -j DROP", False),
        ("-d 10.96.0.2/24 -j DROP", True),
        ("-p udp -m udp --dport 80 -j DROP", False),
        ("-p tcp -m tcp --dport 81 -j DROP", False),
        ("-p tcp -m tcp --dport 80 -j DROP", True),
        ("-p tcp -m tcp --dport 80:90 -j DROP", True),
        ("-m udp --dport 99999 -j DROP", True),
        ('-p tcp -m comment --comment "ns/name:port" -m tcp --dport 30000 -j DROP', False),
        ('-p tcp -m comment --comment "a \\" b" -m tcp --dport 30000 -j DROP', True),
        ('-m comment --comment "-d 10.96.0.2/32 " -j DROP', True),
        ('-p tcp -m comment --comment "x" -m addrtype --dst-type LOCAL -m tcp --dport 81 -j DROP', False),
    ],
)
def test_what_is_refused(text: str, left: bool) -> None:
    """Else the equality above might hold because nothing is refused at all."""
    rules = save("filter\n:OUTPUT ACCEPT [0:0]\n" + f"-A OUTPUT {text}\n" * 8)
    table = rules.tables[0]
    flow = Flow("ip", "tcp", None, 0x0A600001, 80, True)
    found = candidates(table, table.chains["OUTPUT"], flow, [Packet(None, flow.daddr, flow.dport)])
    assert list(found) == (list(range(8)) if left else [])


def test_ipv6_addresses_may_be_written_in_any_way() -> None:
    lines = ["-d fd00:0:0::1/128 -j DROP", "-d fd00::2/128 -j DROP", *["-d fd00:0::3/128 -j DROP"] * 8]
    rules = save("filter\n:OUTPUT ACCEPT [0:0]\n" + "".join(f"-A OUTPUT {line}\n" for line in lines), family=6)
    assert ask(rules, "[fd00::1]:80").verdict == "drop"
    flow = Flow("ip6", "tcp", None, 0xFD00 << 112 | 1, 80, True)
    chain = rules.tables[0].chains["OUTPUT"]
    assert list(candidates(rules.tables[0], chain, flow, [Packet(None, flow.daddr, 80)])) == [0]


def test_rules_that_are_refused_are_never_read() -> None:
    """10,000 of them take milliseconds because of that."""
    rules = save("filter\n:OUTPUT ACCEPT [0:0]\n" + "-A OUTPUT -d 10.96.0.2/32 -j DROP\n" * 100)
    with mock.patch.object(Rules, "__getitem__", side_effect=AssertionError("a rule was read")):
        assert ask(rules).verdict == "untouched"

"""What each option of an iptables rule is read as."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.rules.rule_texts import rules
from tracer.rules.iptables_rule import parse_rule
from tracer.rules.iptables_targets import split_endpoint
from tracer.rules.iptables_words import quote, split_words
from tracer.rules.model import (
    Chance,
    Every,
    Interval,
    Match,
    Nat,
    Other,
    Part,
    Recent,
    SetMark,
    Unknown,
    Verdict,
    address_number,
)

CHAINS = ("B", "KUBE-SVC-X")


def parts(text: str, family: str = "ip") -> tuple[Part, ...]:
    return parse_rule(f"-A A {text}", family, CHAINS).parts


def one(address: str) -> Interval:
    number = address_number(address)
    return Interval(number, number)


def span(low: str, high: str) -> Interval:
    return Interval(address_number(low), address_number(high))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("-s 10.0.0.1/32", Match(("ip saddr",), (one("10.0.0.1"),))),
        ("-d 10.0.0.0/8", Match(("ip daddr",), (span("10.0.0.0", "10.255.255.255"),))),
        ("! -d 10.0.0.0/255.0.0.0", Match(("ip daddr",), (span("10.0.0.0", "10.255.255.255"),), True)),
        ("-s 10.0.0.1/255.0.0.255", Match(("ip saddr",), (one("10.0.0.1"),), False, address_number("255.0.0.255"))),
        ("! -s 0.0.0.0/0", Match(("ip saddr",), (span("0.0.0.0", "255.255.255.255"),), True)),
        ("-i eth0", Match(("meta iifname",), ("eth0",))),
        ("! -o veth+", Match(("meta oifname",), ("veth*",), True)),
        ("-p tcp", Match(("meta l4proto",), ("tcp",))),
        ("-p 132", Match(("meta l4proto",), ("sctp",))),
        ("! -p 253", Match(("meta l4proto",), ("253",), True)),
        ("-m tcp --dport 80", Match(("tcp dport",), (Interval(80, 80),))),
        ("-m udp ! --sport 1024:", Match(("udp sport",), (Interval(1024, 65535),), True)),
        ("-m sctp --dport :99", Match(("sctp dport",), (Interval(0, 99),))),
        ("-m multiport --dports 80,443:445", Match(("th dport",), (Interval(80, 80), Interval(443, 445)))),
        ("-m multiport ! --ports 53", Match(("th port",), (Interval(53, 53),), True)),
        ("-m tcp --tcp-flags FIN,SYN,RST,ACK SYN", Match(("tcp flags",), (2,), False, 23)),
        ("-m tcp ! --syn", Match(("tcp flags",), (2,), True, 23)),
        ("-m icmp --icmp-type 8", Match(("icmp type",), (8,))),
        ("-m icmp --icmp-type 3/4", Match(("icmp type", "icmp code"), ((3, 4),))),
        ("-m icmp6 --icmpv6-type 135", Match(("icmpv6 type",), (135,))),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", Match(("ct state",), ("related", "established"))),
        ("-m conntrack ! --ctstate DNAT", Match(("ct state",), ("dnat",), True)),
        ("-m state --state NEW", Match(("ct state",), ("new",))),
        ("-m conntrack --ctstatus ASSURED", Match(("ct status",), ("assured",))),
        (
            "-m conntrack --ctorigdst 10.96.0.0/12",
            Match(("ct original daddr",), (span("10.96.0.0", "10.111.255.255"),)),
        ),
        ("-m conntrack --ctorigdstport 80", Match(("ct original proto-dst",), (Interval(80, 80),))),
        ("-m conntrack --ctdir REPLY", Match(("ct direction",), ("reply",))),
        ("-m mark --mark 0x4000/0x4000", Match(("meta mark",), (0x4000,), False, 0x4000)),
        ("-m mark ! --mark 0x1", Match(("meta mark",), (1,), True)),
        ("-m connmark --mark 0x80/0xff", Match(("ct mark",), (0x80,), False, 0xFF)),
        ("-m addrtype --dst-type LOCAL", Match(("fib daddr type",), ("local",))),
        ("-m addrtype ! --src-type LOCAL,UNICAST", Match(("fib saddr type",), ("local", "unicast"), True)),
        ("-m iprange --src-range 10.0.0.1-10.0.0.9", Match(("ip saddr",), (span("10.0.0.1", "10.0.0.9"),))),
        ("-m set --match-set blocked src,dst", Match(("ipset src", "ipset dst"), (), False, None, "blocked")),
        ("-m set ! --match-set blocked src", Match(("ipset src",), (), True, None, "blocked")),
        ("-m physdev --physdev-in eth+", Match(("physdev in",), ("eth*",))),
        ("-m physdev ! --physdev-is-in", Match(("physdev is",), ("in",), True)),
        ("-m owner --uid-owner 0-999", Match(("meta skuid",), (Interval(0, 999),))),
        ("-m pkttype --pkt-type multicast", Match(("meta pkttype",), ("multicast",))),
        ("-m statistic --mode random --probability 0.33333333349", Chance(0.33333333349)),
        ("-m statistic --mode random ! --probability 0.25", Chance(0.25, True)),
        ("-m statistic --mode nth --every 3 --packet 1", Every(3, 1)),
        (
            "-m recent --rcheck --seconds 60 --reap --name LIST --mask 255.255.255.255 --rsource",
            Recent("LIST", "rcheck", 60),
        ),
        ("-m recent --set --name LIST --mask 255.255.255.255 --rdest", Recent("LIST", "set", source=False)),
        ("-m recent ! --update --hitcount 4 --name L --rsource", Recent("L", "update", 0, 4, True)),
        ("-m limit --limit 5/min", Unknown("limit", "limit --limit 5/min")),
        ("-m nobody-knows ! --it 1 2", Unknown("nobody-knows", "nobody-knows ! --it 1 2")),
        ("-m socket", Unknown("socket", "socket")),
        ("-f", Unknown("-f", "-f")),
        ("-m tcp --dport http", Unknown("tcp", "--dport http")),
        ("-m tcp --dport 65536", Unknown("tcp", "--dport 65536")),
        ("-s example.org", Unknown("-s", "-s example.org")),
        ("-m statistic --mode random", Unknown("statistic", "statistic --mode random")),
        ("-j ACCEPT", Verdict("accept")),
        ("-j DROP", Verdict("drop")),
        ("-j RETURN", Verdict("return")),
        ("-j B", Verdict("jump", "B")),
        ("-g B", Verdict("goto", "B")),
        ("-j REJECT --reject-with tcp-reset", Verdict("reject", None, "tcp-reset")),
        ("-j DNAT --to-destination 10.0.0.1", Nat("dnat", one("10.0.0.1"))),
        ("-j DNAT --to-destination :8080", Nat("dnat", None, Interval(8080, 8080))),
        (
            "-j DNAT --to-destination 10.0.0.1-10.0.0.3:80-90 --persistent",
            Nat("dnat", span("10.0.0.1", "10.0.0.3"), Interval(80, 90), ("persistent",)),
        ),
        ("-j SNAT --to-source 192.0.2.1 --random-fully", Nat("snat", one("192.0.2.1"), None, ("random-fully",))),
        ("-j MASQUERADE", Nat("masquerade")),
        ("-j MASQUERADE --to-ports 1024-2048", Nat("masquerade", None, Interval(1024, 2048))),
        ("-j REDIRECT --to-ports 3128", Nat("redirect", None, Interval(3128, 3128))),
        ("-j NETMAP --to 10.1.0.0/16", Nat("netmap", span("10.1.0.0", "10.1.255.255"))),
        ("-j MARK --set-xmark 0x4000/0x4000", SetMark("meta mark", 0x4000, 0x4000)),
        ("-j MARK --or-mark 0x4000", SetMark("meta mark", 0x4000, 0x4000)),
        ("-j MARK --and-mark 0xff", SetMark("meta mark", 0xFFFFFF00, 0)),
        ("-j MARK --xor-mark 0x4000", SetMark("meta mark", 0, 0x4000)),
        ("-j MARK --set-mark 0x1/0x2", SetMark("meta mark", 3, 1)),
        ("-j CONNMARK --set-xmark 0x1/0xffffffff", SetMark("ct mark", 0xFFFFFFFF, 1)),
        ('-j LOG --log-prefix "a b"', Other("LOG", '-j LOG --log-prefix "a b"', False)),
        ("-j NFQUEUE --queue-num 1", Other("NFQUEUE", "-j NFQUEUE --queue-num 1", True)),
        ("-j WHAT --ever 1", Other("WHAT", "-j WHAT --ever 1", None)),
        ("-j DNAT", Other("DNAT", "-j DNAT", None)),
    ],
)
def test_option(text: str, read: Part) -> None:
    assert parts(text) == (read,)
    assert type(parts(text)[0]) is type(read)


@pytest.mark.parametrize(
    "text",
    ["", "-s 0.0.0.0/0", "-p all", "-i +", "-m tcp", "-m icmp --icmp-type any", "-m comment --comment x"],
)
def test_what_asks_for_nothing(text: str) -> None:
    assert parts(text) == ()


def test_ipv6() -> None:
    assert parts("-s fd00::/64 -j DNAT --to-destination [fd00::1]:80", "ip6") == (
        Match(("ip6 saddr",), (span("fd00::", "fd00::ffff:ffff:ffff:ffff"),)),
        Nat("dnat", one("fd00::1"), Interval(80, 80)),
    )
    assert parts("-d ::/0 -j DNAT --to-destination fd00::1", "ip6") == (Nat("dnat", one("fd00::1")),)
    assert parts("-d ::/96", "ip6") == (Match(("ip6 daddr",), (Interval(0, 0xFFFFFFFF),)),)


def test_protocol_brings_its_options() -> None:
    """iptables-restore takes `-p tcp --dport 80` without -m tcp, in any order of modules."""
    wanted = parts("-p tcp -m tcp --dport 80 -j B")
    assert parts("-p tcp --dport 80 -j B") == wanted
    assert parts('-m comment --comment "x" -p tcp --dport 80 -j B') == wanted
    assert parts("--protocol tcp --dport 80 -j B") == wanted


def test_unknown_option_leaves_the_others() -> None:
    assert parts("-m tcp --dport 80 --new-option x -j B") == (
        Match(("tcp dport",), (Interval(80, 80),)),
        Unknown("tcp", "--new-option x"),
        Verdict("jump", "B"),
    )


def test_counters_are_passed_over() -> None:
    assert parse_rule("[1:60] -A A -j B", "ip", CHAINS).parts == (Verdict("jump", "B"),)


@settings(deadline=None)
@given(rules())
def test_any_rule_is_read_as_it_was_meant(rule: tuple[str, tuple[Part, ...], str | None]) -> None:
    text, wanted, comment = rule
    read = parse_rule(f"-A A {text}", "ip", CHAINS)
    assert read.parts == wanted
    assert [type(part) for part in read.parts] == [type(part) for part in wanted]
    assert read.comment == comment


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoting_is_undone(word: str) -> None:
    assert split_words(f"--comment {quote(word)} -j B") == ["--comment", word, "-j", "B"]


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([*"-! smdpjg", "-m", "-j", "--to", "--mode", "random", "--name", "recent", "set", "::", "0/"])
    )
)
def test_any_words_give_a_rule(words: list[str]) -> None:
    text = "-A A " + " ".join(words)
    assert parse_rule(text, "ip", CHAINS).text == text
    assert parse_rule(text, "ip6", CHAINS).text == text


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("1.2.3.4:80", "1.2.3.4", "80"),
        ("[fd00::1]:80", "fd00::1", "80"),
        ("fd00::1", "fd00::1", ""),
        (":80", "", "80"),
        ("1.2.3.4-1.2.3.9:80-90/85", "1.2.3.4-1.2.3.9", "80-90"),
    ],
)
def test_split_endpoint(text: str, address: str, port: str) -> None:
    assert split_endpoint(text) == (address, port)

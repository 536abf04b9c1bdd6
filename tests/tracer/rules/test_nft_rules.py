"""Reading nftables rules, as text and as JSON: what each is read as, and that both are read alike."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.networks import namespaces
from tracer.errors import FormatError
from tracer.rules.model import (
    Chance,
    Every,
    Hook,
    Interval,
    Lookup,
    Match,
    Nat,
    Origin,
    Other,
    Part,
    RuleSet,
    SetMark,
    Unknown,
    Update,
    Verdict,
    address_number,
)
from tracer.rules.nft_json import read_nft_json
from tracer.rules.nft_rule import parse_rule
from tracer.rules.nft_statements import parse_statements, seconds, split_elements
from tracer.rules.nft_text import read_nft_text
from tracer.rules.nft_words import duration_words

FIXTURES = Path(__file__).parents[2] / "fixtures" / "kube-proxy-v1.30.5"


def one(address: str) -> Interval:
    number = address_number(address)
    return Interval(number, number)


def port(number: int) -> Interval:
    return Interval(number, number)


def read(text: str, family: str = "ip") -> tuple[Part, ...]:
    statements, comment = parse_statements(text, family)
    return parse_rule(statements, family, comment, text).parts


GOTO_A, GOTO_B = Verdict("goto", "a"), Verdict("goto", "b")

RULES = [
    ("accept", Verdict("accept")),
    ("jump other/chain-1", Verdict("jump", "other/chain-1")),
    ("ip daddr 10.0.0.1", Match(("ip daddr",), (one("10.0.0.1"),))),
    ("ip saddr != 10.0.0.0/8", Match(("ip saddr",), (Interval(10 << 24, (11 << 24) - 1),), True)),
    ("ip saddr 10.0.0.1-10.0.0.9", Match(("ip saddr",), (Interval((10 << 24) + 1, (10 << 24) + 9),))),
    ("ip saddr { 10.0.0.1, 10.0.0.3 }", Match(("ip saddr",), (one("10.0.0.1"), one("10.0.0.3")))),
    ("ip daddr @nodes", Match(("ip daddr",), (), False, None, "nodes")),
    ("ip saddr != @nodes", Match(("ip saddr",), (), True, None, "nodes")),
    ("ip daddr & 0.0.0.255 == 0.0.0.1", Match(("ip daddr",), (one("0.0.0.1"),), False, 255)),
    ("tcp dport 80", Match(("tcp dport",), (port(80),))),
    ("tcp dport { 80, 443 }", Match(("tcp dport",), (port(80), port(443)))),
    ("udp dport 1024-2048", Match(("udp dport",), (Interval(1024, 2048),))),
    ("th dport != 53", Match(("th dport",), (port(53),), True)),
    ("tcp dport < 1024", Match(("tcp dport",), (Interval(0, 1023),))),
    ("meta l4proto { tcp, udp }", Match(("meta l4proto",), ("tcp", "udp"))),
    ("meta l4proto ipv6-icmp", Match(("meta l4proto",), ("ipv6-icmp",))),
    ('iifname "eth0"', Match(("meta iifname",), ("eth0",))),
    ('oifname != "br-*"', Match(("meta oifname",), ("br-*",), True)),
    ("meta mark 0x00000001", Match(("meta mark",), (1,))),
    ("meta mark & 0x00004000 == 0x00000000", Match(("meta mark",), (0,), False, 0x4000)),
    ("meta mark & 0x00004000 != 0x00004000", Match(("meta mark",), (0x4000,), True, 0x4000)),
    ("ct state new", Match(("ct state",), ("new",))),
    ("ct state established,related", Match(("ct state",), ("established", "related"))),
    ("ct state { established, related }", Match(("ct state",), ("established", "related"))),
    ("ct original ip daddr 10.0.0.1", Match(("ct original ip daddr",), (one("10.0.0.1"),))),
    ("fib daddr type local", Match(("fib daddr type",), ("local",))),
    ("fib daddr . iif type != local", Match(("fib daddr . iif type",), ("local",), True)),
    ("tcp flags syn / fin,syn,rst,ack", Match(("tcp flags",), (2,), False, 23)),
    ("tcp flags & (fin | syn | rst | ack) == syn", Match(("tcp flags",), (2,), False, 23)),
    ("tcp flags syn", Match(("tcp flags",), (0,), True, 2)),
    ("tcp flags ! syn,ack", Match(("tcp flags",), (0,), False, 18)),
    ("tcp flags == syn", Match(("tcp flags",), (2,))),
    ("tcp flags != syn", Match(("tcp flags",), (2,), True)),
    ("ct status dnat", Match(("ct status",), ("dnat",))),
    ("ct status ! dnat", Match(("ct status",), ("dnat",), True)),
    ("ct status ! snat,dnat", Match(("ct status",), ("snat", "dnat"), True)),
    ("ct status == dnat", Unknown("match", "ct status == dnat")),  # all of its bits: there are more than we follow
    ("ct status != dnat", Unknown("match", "ct status != dnat")),
    ("ct state ! established,new", Match(("ct state",), ("established", "new"), True)),
    ("ct state == new", Match(("ct state",), ("new",))),
    ("meta mark set meta mark | 0x00004000", SetMark("meta mark", 0x4000, 0x4000)),
    ("meta mark set meta mark ^ 0x00004000", SetMark("meta mark", 0, 0x4000)),
    ("meta mark set meta mark & 0xffffbfff", SetMark("meta mark", 0x4000, 0)),
    ("meta mark set meta mark & 0xffffff00 | 0x00000001", SetMark("meta mark", 0xFF, 1)),
    ("meta mark set 0x00000007", SetMark("meta mark", 0xFFFFFFFF, 7)),
    ("ct mark set 0x00000007", SetMark("ct mark", 0xFFFFFFFF, 7)),
    ("dnat to 10.0.0.1:80", Nat("dnat", one("10.0.0.1"), port(80))),
    ("numgen random mod 1000 < 250", Chance(0.25)),
    ("numgen random mod 4 offset 10 >= 11", Chance(0.75)),
    ("numgen random mod 4 { 0, 2-3, 9 }", Chance(0.75)),
    ("numgen random mod 4 != 1", Chance(0.75)),
    ("numgen inc mod 3 1", Every(3, 1)),
    ("numgen inc mod 3 offset 10 != 12", Every(3, 2, True)),
    (
        "numgen inc mod 3 < 2",
        Unknown("match", "numgen inc mod 3 < 2"),
    ),  # two in turn: neither by chance, nor each third
    ("dnat to 10.0.0.1", Nat("dnat", one("10.0.0.1"))),
    ("dnat to :80", Nat("dnat", None, port(80))),
    ("redirect to :3128", Nat("redirect", None, port(3128))),
    ("masquerade", Nat("masquerade")),
    ("masquerade random,persistent", Nat("masquerade", None, None, ("random", "persistent"))),
    ("snat to 192.0.2.1-192.0.2.3", Nat("snat", Interval(address_number("192.0.2.1"), address_number("192.0.2.3")))),
    ("reject with tcp reset", Verdict("reject", None, "tcp-reset")),
    ("reject", Verdict("reject", None, "icmp-port-unreachable")),
    ("update @seen { ip saddr timeout 1m }", Update("update", "seen", ("ip saddr",))),
    ("add @seen { ip saddr . tcp dport }", Update("add", "seen", ("ip saddr", "tcp dport"))),
    ("tcp dport vmap @ports", Lookup(("tcp dport",), "ports")),
    ("counter packets 1 bytes 60", Other("counter", "counter packets 1 bytes 60", False)),
    ('log prefix "a b: "', Other("log", 'log prefix "a b: "', False)),
    ("notrack", Other("notrack", "notrack", False)),
    ("ct mark set meta mark", Other("mangle", "ct mark set meta mark", False)),
    ("limit rate 3/minute burst 9 packets", Unknown("limit", "limit rate 3/minute burst 9 packets")),
]


@pytest.mark.parametrize(("text", "part"), RULES)
def test_text_of_a_rule(text: str, part: Part) -> None:
    assert read(text) == (part,)
    assert type(read(text)[0]) is type(part)


def test_verdict_maps() -> None:
    (lookup,) = read("numgen random mod 2 offset 1 vmap { 1 : goto a, 2 : goto b }")
    assert isinstance(lookup, Lookup)
    assert (lookup.keys, lookup.mode, lookup.modulus, lookup.offset) == (("numgen",), "random", 2, 1)
    assert [(element.value, element.data) for element in lookup.elements] == [(1, GOTO_A), (2, GOTO_B)]
    (lookup,) = read("ip daddr . meta l4proto . th dport vmap { 10.0.0.1 . tcp . 80 : goto a }")
    assert isinstance(lookup, Lookup)
    assert lookup.elements[0].value == (one("10.0.0.1"), "tcp", port(80))


@pytest.mark.parametrize("words", ["dnat ip to", "dnat ip addr . port to"])
def test_dnat_to_addresses_and_ports_of_a_map(words: str) -> None:
    (nat,) = read(f"{words} ip daddr . udp dport map {{ 10.96.0.1 . 80 : 10.0.0.1 . 8080 }}")
    assert isinstance(nat, Nat) and nat.lookup is not None
    (element,) = nat.lookup.elements
    assert (element.value, element.data) == ((one("10.96.0.1"), port(80)), (one("10.0.0.1"), 8080))


def test_dnat_of_networks() -> None:
    network = Interval(address_number("10.1.0.0"), address_number("10.1.0.255"))
    assert read("dnat ip prefix to 10.1.0.0/24") == (Nat("dnat", network, None, ("netmap",)),)
    (nat,) = read("dnat ip prefix to ip daddr map { 10.96.0.0/24 : 10.1.0.0/24 }")
    assert isinstance(nat, Nat) and nat.lookup is not None
    assert (nat.flags, nat.lookup.elements[0].data) == (("netmap",), network)


def test_dnat_by_map_and_port() -> None:
    (nat,) = read("dnat to numgen random mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }:8080")
    assert isinstance(nat, Nat) and nat.lookup is not None
    assert (nat.address, nat.port, nat.lookup.modulus, len(nat.lookup.elements)) == (None, port(8080), 2, 2)


def test_dnat_by_map() -> None:
    (nat,) = read("dnat to numgen inc mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }")
    assert isinstance(nat, Nat)
    assert nat.lookup is not None
    assert [element.data for element in nat.lookup.elements] == [one("10.0.0.1"), one("10.0.0.2")]


def test_what_is_not_understood_keeps_its_words_and_the_verdict() -> None:
    assert read("ip daddr 10.0.0.1 osf name Linux and more jump there") == (
        Match(("ip daddr",), (one("10.0.0.1"),)),
        Unknown("nft", "osf name Linux and more"),
        Verdict("jump", "there"),
    )
    statements, comment = parse_statements('frobnicate { 1, 2 } drop comment "why not"', "ip")
    assert parse_rule(statements, "ip").parts == (Unknown("nft", "frobnicate { 1, 2 }"), Verdict("drop"))
    assert comment == "why not"


def test_comment_may_look_like_a_rule() -> None:
    statements, comment = parse_statements('drop comment "} accept"', "ip")
    assert (statements, comment) == ([{"drop": None}], "} accept")


@settings(deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from([text for text, _ in RULES] + ["{", "}", '"', "set", "vmap", ","])).map(" ".join)
)
def test_any_text_gives_a_rule(text: str) -> None:
    statements, comment = parse_statements(text, "inet")
    assert parse_rule(statements, "inet", comment, text).text == text


_JSON_KEYS = st.sampled_from(
    [
        *("match", "left", "right", "op", "&", "|", "set", "concat", "meta", "key", "vmap", "data", "dnat", "addr"),
        *("prefix", "elem", "mangle", "value", "jump", "target", "numgen", "map", "reject", "limit", "counter", "log"),
    ]
)
_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_JSON_KEYS, inner, max_size=3),
)


@settings(deadline=None)
@given(_JSON)
def test_any_json_statement_gives_a_rule(statement: object) -> None:
    assert isinstance(parse_rule([statement], "ip").text, str)


class TestText:
    def test_structure(self) -> None:
        text = """
table inet mine { # handle 1
\tcomment "what it is for"
\tflags dormant
\tcounter hits {
\t\tpackets 0 bytes 0
\t}
\tset seen {
\t\ttype ipv4_addr . inet_service
\t\tsize 100
\t\tflags interval,timeout
\t\ttimeout 1h30m
\t\telements = { 10.0.0.1 . 80 timeout 5m expires 4m59s, 10.0.0.0/8 . 90-99,
\t\t\t     10.0.0.2 . 81 comment "a, b }" }
\t}
\tchain base { # handle 2
\t\ttype filter hook input priority filter + 5; policy drop;
\t\tct state new jump other # handle 7
\t}
\tchain other {
\t}
}
"""
        (table,) = read_nft_text(text).tables
        assert (table.family, table.name, table.origin) == ("inet", "mine", Origin.NFTABLES)
        assert table.comment == "what it is for"
        seen = table.sets["seen"]
        assert (seen.type, seen.timeout, seen.size, seen.data) == (("ipv4_addr", "inet_service"), 5400, 100, None)
        assert [element.value for element in seen.elements] == [
            (one("10.0.0.1"), port(80)),
            (Interval(10 << 24, (11 << 24) - 1), Interval(90, 99)),
            (one("10.0.0.2"), port(81)),
        ]
        assert seen.elements[2].comment == "a, b }"
        assert (table.chains["base"].hook, table.chains["base"].policy) == (Hook("input", 5, "filter"), "drop")
        assert table.chains["base"].rules[0].text == "ct state new jump other"
        assert len(table.chains["other"].rules) == 0

    @pytest.mark.parametrize(
        ("text", "line", "words"),
        [
            ("nonsense\n", 1, "no table"),
            ("table ip t {\n", 2, "cut off"),
            ("table ip t {\n\tchain c {\n\t\taccept\n", 4, "cut off"),
            ("table ip t {\n\tset s {\n\t\telements = { 1.2.3.4,\n", 4, "cut off"),
            ("table ip t {\n\tnonsense\n}\n", 2, "neither a set"),
            ("table ip t {\n}\ntable ip t {\n}\n", 3, "a second table"),
            ("table ip t {\n\tset s {\n\t\ttimeout soon\n\t}\n}\n", 3, "not as nft writes a set"),
            ("table ip t {\n\tchain c {\n\t\ttype nat hook input priority high; x\n\t}\n}\n", 3, "no priority"),
        ],
    )
    def test_errors_name_file_and_line(self, text: str, line: int, words: str) -> None:
        with pytest.raises(FormatError) as caught:
            read_nft_text(text, "my.nft")
        assert caught.value.message.startswith(f"my.nft:{line}: ")
        assert words in caught.value.message

    @settings(deadline=None)
    @given(st.integers(min_value=0), st.text(max_size=4))
    def test_damaged_file(self, at: int, damage: str) -> None:
        text = (FIXTURES / "nftables.nft").read_text()
        text = text[text.index("table ip6") :]
        at %= len(text)
        damaged = text[:at] + damage + text[at + len(damage) :]
        try:
            _read_all(read_nft_text(damaged, "f"))
        except FormatError as error:
            match = re.match(r"f:(\d+): .", error.message)
            assert match is not None
            assert 1 <= int(match[1]) <= damaged.count("\n") + 1

    @settings(deadline=None)
    @given(st.integers(min_value=1))
    def test_cut_file_is_an_error(self, at: int) -> None:
        text = (FIXTURES / "nftables.nft").read_text().strip()
        first_end = text.index("\n}\n")
        at %= len(text)
        if not 0 < at - first_end <= 3 and at:
            with pytest.raises(FormatError, match=r"f:\d+: "):
                read_nft_text(text[:at], "f")


def _read_all(rules: RuleSet) -> None:
    for table in rules.tables:
        for chain in table.chains.values():
            assert all(rule.text for rule in chain.rules)
        for found in table.sets.values():
            assert isinstance(found.elements, tuple)


class TestJson:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "no JSON"),
            ('{"nftables": [', "no JSON"),
            ("[]", "is missing"),
            ('{"nftables": 5}', "is missing"),
            ('{"nftables": [5]}', "object 1 "),
            ('{"nftables": [{"table": {"family": "ip"}}]}', "object 1 "),
            ('{"nftables": [{"chain": {"family": "ip", "table": "t", "name": "c"}}]}', "object 1 "),
            ("[" * 100_000, "is missing"),
        ],
    )
    def test_errors(self, text: str, words: str) -> None:
        with pytest.raises(FormatError, match=rf"f:\d+: .*{re.escape(words)}"):
            read_nft_json(text, "f")

    def test_unknown_objects_are_passed_over(self) -> None:
        assert read_nft_json('{"nftables": [{"metainfo": {}}, {"flux": {"capacitor": 1}}]}') == RuleSet()

    @settings(deadline=None)
    @given(st.integers(min_value=0), st.text(max_size=4))
    def test_damaged_file(self, at: int, damage: str) -> None:
        objects = json.loads((FIXTURES / "nftables.json").read_text())["nftables"]
        text = json.dumps({"nftables": [item for item in objects if "ip6" in json.dumps(item)]})
        at %= len(text)
        try:
            _read_all(read_nft_json(text[:at] + damage + text[at + len(damage) :], "f"))
        except FormatError as error:
            assert re.match(r"f:\d+: .", error.message)


def test_words_of_json_are_those_of_the_text() -> None:
    """kube-proxy's whole rule set: the same tables, chains, rules, words and elements from both."""
    from_json = read_nft_json((FIXTURES / "nftables.json").read_text())
    from_text = read_nft_text((FIXTURES / "nftables.nft").read_text())
    assert from_json == from_text
    for one_table, other in zip(from_json.tables, from_text.tables, strict=True):
        assert sum(len(chain.rules) for chain in other.chains.values()) > 100
        assert list(one_table.chains) == list(other.chains)
        for name, found in one_table.sets.items():
            assert found.elements == other.sets[name].elements, name


SCRIPT = """
table inet filter {
  set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.0/24, 198.51.100.7 } }
  set pairs { type ipv4_addr . inet_service; elements = { 10.0.0.1 . 80, 10.0.0.2 . 443 } }
  map verdicts { type inet_service : verdict; elements = { 22 : accept, 23 : drop, 80 : jump web } }
  chain web {
    counter accept
  }
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    iifname "lo" accept
    iifname { "eth0", "br-*" } ip saddr @blocked drop
    ip saddr . tcp dport @pairs accept
    meta l4proto { tcp, udp } th dport { 53, 5353-5400 } accept
    tcp dport vmap @verdicts
    tcp dport vmap { 443 : jump web, 8443 : drop }
    tcp flags & (fin | syn | rst | ack) == syn tcp dport > 1023 limit rate 10/second burst 20 packets accept
    ip6 saddr fe80::/10 icmpv6 type { nd-neighbor-solicit, nd-router-advert } accept
    icmp type echo-request limit rate over 5/minute drop
    meta skuid 1000 accept
    log prefix "dropped: " level warn
    reject with icmpx admin-prohibited
  }
  chain forward {
    type filter hook forward priority -150; policy accept;
    ip daddr != { 10.0.0.0/8, 192.168.0.1-192.168.0.99 } meta mark != 0x10 accept comment "out, and away"
    meta mark & 0xff == 0x1 ct mark set meta mark
    ct mark set 0x7
    meta mark set meta mark and 0xffff00ff or 0x100
    reject with tcp reset
  }
}
table ip nat {
  map both {
    type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
    elements = { 10.96.0.1 . tcp . 80 : 10.0.2.11 . 8000 }
  }
  map networks {
    type ipv4_addr : interval ipv4_addr
    flags interval
    elements = { 10.96.0.0/24 : 10.0.2.0/24 }
  }
  map backends { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.1.1.1 . tcp . 80 : goto svc } }
  chain svc {
    numgen random mod 2 vmap { 0 : goto one, 1 : goto two }
  }
  chain one {
    meta l4proto tcp dnat to 10.0.0.1:8080
  }
  chain two {
    dnat to 10.0.0.2
  }
  chain pre {
    type nat hook prerouting priority dstnat + 5;
    ip daddr . meta l4proto . th dport vmap @backends
    fib daddr type local tcp dport 8080 redirect to :80
    dnat to numgen inc mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }
    meta l4proto tcp dnat to ip saddr map { 10.0.0.3 : 10.0.0.1 }:8080
    dnat ip to ip daddr . meta l4proto . th dport map @both
    meta l4proto udp dnat ip to numgen random mod 2 map { 0 : 10.0.2.11 . 8000, 1 : 10.0.2.12 . 8001 }
    dnat ip prefix to ip daddr map @networks
    dnat ip prefix to 10.1.0.0/24
    numgen random mod 10 < 3 accept
    ct status ! dnat accept
    ct status != dnat accept
    ct state ! established,related accept
    tcp flags ! syn,ack accept
    tcp flags == syn accept
    ct status dnat accept
    numgen inc mod 3 != 1 accept
  }
  chain post {
    type nat hook postrouting priority srcnat;
    ip saddr 10.0.0.0/8 oifname != "eth0" masquerade random,persistent
    snat to 192.0.2.1-192.0.2.3
  }
}
table ip6 nat {
  chain pre { type nat hook prerouting priority -100; ip6 daddr fd00::1 tcp dport 80 dnat to [fd00::2]:81; }
}
table ip raw {
  set seen { type ipv4_addr; flags dynamic,timeout; timeout 1m; }
  chain pre {
    type filter hook prerouting priority raw
    ip protocol icmp notrack
    update @seen { ip saddr timeout 90s }
  }
}
"""


@pytest.mark.root
def test_text_and_json_of_a_live_kernel_are_read_alike(tmp_path: Path) -> None:
    script = tmp_path / "rules.nft"
    script.write_text(SCRIPT)
    with namespaces(1) as (namespace,):
        namespace.sh(f"nft -f {script}")
        text, document = namespace.sh("nft list ruleset"), namespace.sh("nft -j list ruleset")
    from_text, from_json = read_nft_text(text), read_nft_json(document)
    for one_table, other in zip(from_text.tables, from_json.tables, strict=True):
        for name, chain in one_table.chains.items():
            for mine, theirs in zip(chain.rules, other.chains[name].rules, strict=True):
                assert mine.parts == theirs.parts, (mine.text, theirs.text)
                assert mine.text == theirs.text
        for name, found in one_table.sets.items():
            assert sorted(found.elements) == sorted(other.sets[name].elements), name
    assert from_text == from_json
    rules = [rule for table in from_text.tables for chain in table.chains.values() for rule in chain.rules]
    parts = [part for rule in rules for part in rule.parts]
    unknown = {part.text for part in parts if isinstance(part, Unknown)}
    assert {text for text in unknown if not text.startswith("limit ")} == {"ct status != dnat"}
    assert [part for part in parts if isinstance(part, Chance | Every)] == [Chance(0.3), Every(3, 1, True)]


@pytest.mark.parametrize(("text", "number"), [("1m", 60), ("1d2h3m4s", 93784), ("3h", 10800), ("500ms", 0.5), ("7", 7)])
def test_durations(text: str, number: float) -> None:
    assert seconds(text) == number
    if number >= 1 and not text.isdigit():
        assert duration_words(int(number)) == text


def test_split_elements() -> None:
    assert split_elements(' a . 1 comment "x, y" : drop,\n b,c ') == ['a . 1 comment "x, y" : drop', "b", "c"]

"""nft's rules printed after they were read say what they said before, in the words that nft uses itself."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.rules.test_rules_truth import FIXTURES
from tracer.rules.nft_rule import parse_rule
from tracer.rules.nft_statements import parse_statements
from tracer.rules.nft_text import read_nft_text
from tracer.rules.nft_words import rule_words

ports = st.integers(0, 65535)
addresses = st.integers(0, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number)))
networks = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 31)).map(
    lambda pair: str(ipaddress.IPv4Network(pair, strict=False))
)
marks = st.integers(0, 2**32 - 1).map("0x{:08x}".format)
chains = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789-_/.", min_size=1, max_size=30).map("c{}".format)
comments = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters='"\\') | st.just(" "), max_size=40
)
signs = st.sampled_from(["", "!= "])


def listed(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """One value, or some in braces."""
    return values | st.lists(values, min_size=2, max_size=4, unique=True).map(lambda found: f"{{ {', '.join(found)} }}")


MATCHES = st.one_of(
    st.builds("ip saddr {}{}".format, signs, listed(addresses | networks)),
    st.builds("ip daddr {}{}".format, signs, listed(addresses)),
    st.builds("tcp dport {}{}".format, signs, listed(ports.map(str))),
    st.builds("udp sport {}-{}".format, st.just(1), st.integers(2, 65535)),
    st.builds("meta l4proto {}".format, st.sampled_from(["tcp", "udp", "sctp"])),
    st.builds('iifname {}"{}"'.format, signs, st.sampled_from(["eth0", "veth*", "lo"])),
    st.builds("meta mark {}{}".format, signs, marks),
    st.builds("meta mark & {} == {}".format, marks, marks),
    st.builds("ct state {}".format, st.sampled_from(["new", "established,related", "invalid"])),
    st.builds("fib daddr type {}".format, st.sampled_from(["local", "broadcast"])),
    st.builds("ip saddr {}@{}".format, signs, st.just("known")),
)
ENDS = st.one_of(
    st.sampled_from(["accept", "drop", "return", "reject", "masquerade", "masquerade fully-random", "continue"]),
    st.builds("{} {}".format, st.sampled_from(["jump", "goto"]), chains),
    st.builds("dnat to {}:{}".format, addresses, st.integers(1, 65535)),
    st.builds("snat to {}".format, addresses),
    st.builds("redirect to :{}".format, st.integers(1, 65535)),
    st.builds("meta mark set {}".format, marks),
    st.builds("numgen random mod 2 vmap {{ 0 : goto {}, 1 : goto {} }}".format, chains, chains),
    st.builds("ip daddr . meta l4proto . th dport vmap @{}".format, st.just("service-ips")),
    st.builds("reject with {}".format, st.sampled_from(["tcp reset", "icmp admin-prohibited"])),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(MATCHES, max_size=4), st.none() | ENDS, st.none() | comments)
def test_random_rules(matches: list[str], end: str | None, comment: str | None) -> None:
    words = [*matches, *([] if end is None else [end]), *([] if comment is None else [f'comment "{comment}"'])]
    text = " ".join(words)
    statements, read_comment = parse_statements(text, "ip")
    printed = rule_words(statements, "ip", read_comment)
    assert printed == text
    assert parse_statements(printed, "ip") == (statements, read_comment)
    assert parse_rule(statements, "ip", read_comment).parts == parse_rule(statements, "ip", read_comment, text).parts


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_kube_proxys_rules(family: str) -> None:
    table = read_nft_text((FIXTURES / "nftables.nft").read_text()).table(family, "kube-proxy")
    assert table is not None
    lines = [line for chain in table.chains.values() for line in chain.rules.raw]
    assert len(lines) > 100
    for line in lines:
        statements, comment = parse_statements(line, family)
        assert rule_words(statements, family, comment) == line

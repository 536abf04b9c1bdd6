"""A table of nftables after what nft monitor told of it: as if it had been read anew, or not at all."""

from __future__ import annotations

import pytest

from tracer.rules.model import Table
from tracer.rules.nft_text import read_nft_text
from tracer.rules.nftdeltas import Deltas

BEFORE = """\
table ip t {
	map m {
		type ipv4_addr : verdict
		elements = { 10.0.0.1 : goto a }
	}
	chain a {
		accept
	}
	chain b {
		type filter hook input priority 0; policy accept;
	}
}
"""


def table(text: str = BEFORE) -> Table:
    (found,) = read_nft_text(text).tables
    return found


def applied(*lines: str, handles: tuple[int, ...] = ()) -> Table | None:
    return Deltas().apply(table(), lines, lambda chain: list(handles))


def test_lines_in_turn() -> None:
    deltas = Deltas()
    first = deltas.apply(
        table(),
        [
            "add chain ip t c # handle 7",
            'add rule ip t c ip saddr 10.0.0.9 drop comment "x # handle 3" # handle 8',
            "insert rule ip t c accept # handle 9",
            "add element ip t m { 10.0.0.2 : goto c }",
            "add rule ip other c drop # handle 99",
            "delete set ip t __map7",
        ],
        lambda chain: [9, 8],
    )
    after = BEFORE.replace("goto a }", "goto a, 10.0.0.2 : goto c }").replace(
        "\tchain b", '\tchain c {\n\t\taccept\n\t\tip saddr 10.0.0.9 drop comment "x # handle 3"\n\t}\n\tchain b'
    )
    assert first == table(after)
    assert first is not None
    assert first.sets["m"].elements == table(after).sets["m"].elements
    second = deltas.apply(
        first, ["delete rule ip t c handle 9", "delete element ip t m { 10.0.0.1 : goto a }"], lambda chain: [8]
    )
    assert second is not None
    assert [rule.text for rule in second.chains["c"].rules] == ['ip saddr 10.0.0.9 drop comment "x # handle 3"']
    assert [element.value for element in second.sets["m"].elements] == [
        element.value for element in table(BEFORE.replace("10.0.0.1", "10.0.0.2")).sets["m"].elements
    ]
    third = deltas.apply(second, ["delete rule ip t c handle 8", "delete chain ip t c"], lambda chain: [])
    assert third is not None
    assert list(third.chains) == ["a", "b"]


@pytest.mark.parametrize(
    "lines",
    [
        ["# ERROR: We lost some netlink events!"],
        ["add table ip t # handle 1"],
        ["add chain ip t d { type filter hook input priority 0; policy accept; } # handle 7"],
        ["add set ip t s { type ipv4_addr; } # handle 7"],
        ["delete set ip t s"],
        ["add element ip t s { 10.0.0.1 }"],
        ["add element ip t m { nonsense"],
        ["add rule ip t a drop"],
        ["delete chain ip t none"],
        ["add flowtable ip t f { }"],
        [""],
    ],
)
def test_what_can_not_be_followed(lines: list[str]) -> None:
    assert applied(*lines) is None


def test_a_chain_with_rules_that_nobody_told_of() -> None:
    """It was there before: its first rule, handle 3, is known by its words alone."""
    assert applied("add rule ip t a drop # handle 9", handles=(3, 9)) is None
    assert applied("add rule ip t a drop # handle 9", handles=(9,)) is not None

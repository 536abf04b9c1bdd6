"""In which order base chains of the same hook and priority run: what the kernel does, and what `explain` says.

Source: Linux net/netfilter/core.c, nf_hook_entries_grow: a new hook goes in front of those of its own priority, so that
the last one to be registered is the first to run. nf_nat_core.c does so with the chains of type nat, too.
"""

from __future__ import annotations

import itertools

import pytest

from tests.tracer.rules.flows import End, Flow, World, world
from tracer.rules.explain import Question, explain
from tracer.rules.live import read_rules
from tracer.rules.rtnetlink import LiveRouting

FLOW = Flow("UDP", "10.0.1.2", "10.96.0.1", 80)


def nat_chain(name: str, target: str) -> str:
    return f"chain {name} {{ type nat hook prerouting priority -100; meta l4proto udp dnat to {target} ; }}"


def mark_chain(name: str, mark: int) -> str:
    return f"chain {name} {{ type filter hook prerouting priority -90; meta mark set {mark} ; }}"


REJECT = "chain last { type filter hook forward priority 10; meta mark 2 reject ; }"


def predicted(net: World) -> tuple[str, str | None]:
    """Verdict and address of the only outcome."""
    routing = LiveRouting(net.router.path, "ip")
    told = explain(read_rules(net.router.path), Question(FLOW.ip, FLOW.port, FLOW.protocol, FLOW.source), routing)
    routing.close()
    (outcome,) = told.outcomes
    return outcome.verdict, outcome.ip


def sent(net: World) -> End:
    (end,) = net.send([FLOW])
    return end


@pytest.mark.root
@pytest.mark.parametrize("order", list(itertools.permutations(("11", "12", "13"))))
def test_of_several_tables_the_last_one_translates(order: tuple[str, ...]) -> None:
    with world() as net:
        for number in order:
            net.router.sh(f"nft 'table ip nat-{number} {{ {nat_chain('prerouting', f'10.0.2.{number}')} ; }}'")
        told = predicted(net)
        assert sent(net).ip == f"10.0.2.{order[-1]}"
    assert told == ("dnat", f"10.0.2.{order[-1]}")


@pytest.mark.root
@pytest.mark.parametrize("order", [("11", "12"), ("12", "11")])
def test_of_several_chains_of_a_table_the_last_one_translates(order: tuple[str, ...]) -> None:
    chains = " ; ".join(nat_chain(f"chain-{number}", f"10.0.2.{number}") for number in order)
    with world() as net:
        net.router.sh(f"nft 'table ip nat {{ {chains} ; }}'")
        told = predicted(net)
        assert sent(net).ip == f"10.0.2.{order[-1]}"
    assert told == ("dnat", f"10.0.2.{order[-1]}")


@pytest.mark.root
@pytest.mark.parametrize("marks", [(1, 2), (2, 1)])
def test_of_several_marks_that_of_the_first_table_stays(marks: tuple[int, int]) -> None:
    """It runs last."""
    with world() as net:
        for mark in marks:
            net.router.sh(f"nft 'table ip marks-{mark} {{ {mark_chain('prerouting', mark)} ; }}'")
        net.router.sh(f"nft 'table ip last {{ {REJECT} ; }}'")
        told = predicted(net)
        assert sent(net).kind == ("rejected" if marks[0] == 2 else "delivered")
    assert told[0] == ("reject" if marks[0] == 2 else "untouched")


@pytest.mark.root
@pytest.mark.parametrize("iptables_first", [True, False])
def test_tables_of_iptables_nft_among_others(iptables_first: bool) -> None:
    """nft lists all tables in the order of their creation, those of iptables-nft too."""
    commands = [
        "iptables-nft -t nat -A PREROUTING -p udp -j DNAT --to-destination 10.0.2.11",
        f"nft 'table ip other {{ {nat_chain('prerouting', '10.0.2.12')} ; }}'",
    ]
    with world() as net:
        net.router.sh(*(commands if iptables_first else reversed(commands)))
        told = predicted(net)
        winner = "10.0.2.12" if iptables_first else "10.0.2.11"
        assert sent(net).ip == winner
    assert told == ("dnat", winner)

"""labs.cluster.proxy.iptables against what a real kube-proxy v1.30.5 wrote: no difference, nor any in order."""

from __future__ import annotations

from graphlib import TopologicalSorter
from itertools import pairwise

import pytest

from labs.cluster.proxy.endpoints import endpoints_by_port
from labs.cluster.proxy.iptables import full_sync, render
from labs.cluster.proxy.iptables_tables import whole_tables
from labs.cluster.proxy.node import local_node
from labs.cluster.proxy.services import service_ports
from labs.cluster.proxy.settings import Settings
from tests.labs.proxy.kube_objects import CLUSTER_CIDRS, FIXTURE, fixture_objects
from tests.labs.proxy.rule_sets import SHARED, Chains, by_service, chains_of, load_and_save, service_of

VARIANTS = [(4, "iptables-legacy"), (4, "iptables-nft"), (6, "ip6tables-legacy"), (6, "ip6tables-nft")]


def written_by_kube_proxy(program: str) -> Chains:
    return chains_of((FIXTURE / f"{program}.save").read_text())


def map_order(chains: Chains) -> list[str]:
    """Give the order in which kube-proxy walked its map of Service ports: one that agrees with all shared chains.

    Raises graphlib.CycleError if there is none.
    """
    graph: TopologicalSorter[str] = TopologicalSorter()
    for chain in SHARED:
        names = [name for name, _ in by_service(chains[chain]) if name]
        for name in names:
            graph.add(name)
        for before, after in pairwise(names):
            graph.add(after, before)
    return list(graph.static_order())


def render_in_order(order: list[str], family: int) -> str:
    """Render the fixture's objects, the Service ports in a given order."""
    objects = fixture_objects()
    ports = service_ports(objects["services"], family)
    ranks = {name: rank for rank, name in enumerate(order)}
    assert {str(key) for key in ports} == set(ranks)
    sync = full_sync(
        dict(sorted(ports.items(), key=lambda item: ranks[str(item[0])])),
        endpoints_by_port(objects["endpointslices"], node_name="node1", family=family),
        Settings(
            node=local_node(objects["nodes"], "node1", family),
            family=family,
            cluster_cidr=CLUSTER_CIDRS[family == 6],
        ),
    )
    return whole_tables(sync)


@pytest.mark.root
@pytest.mark.parametrize(("family", "program"), VARIANTS)
def test_every_chain_is_the_same_rule_by_rule(family: int, program: str) -> None:
    """With Services in the order of that kube-proxy's map, each chain is the same, in the same order."""
    expected = written_by_kube_proxy(program)
    loaded = chains_of(load_and_save(render_in_order(map_order(expected), family), program=program))
    assert loaded == expected


@pytest.mark.root
@pytest.mark.parametrize(("family", "program"), VARIANTS)
def test_render_differs_in_the_order_of_services_only(family: int, program: str) -> None:
    """What the command prints: own order of Services, all else the same."""
    text = render(fixture_objects(), node_name="node1", family=family, cluster_cidrs=CLUSTER_CIDRS)
    loaded, expected = chains_of(load_and_save(text, program=program)), written_by_kube_proxy(program)
    assert loaded.keys() == expected.keys()
    for chain, rules in expected.items():
        if chain in SHARED:
            assert dict(by_service(loaded[chain])) == dict(by_service(rules)), chain
            assert len(loaded[chain]) == len(rules), chain
        else:
            assert loaded[chain] == rules, chain
    assert service_of(loaded["nat", "KUBE-SERVICES"][-1]) == service_of(expected["nat", "KUBE-SERVICES"][-1]) == ""


@pytest.mark.parametrize("family", ["iptables", "ip6tables"])
def test_kube_proxys_own_order_of_services_is_random(family: str) -> None:
    """Two runs over the same objects: the same rules, each Service's together, but Services in another order."""
    legacy, nft = written_by_kube_proxy(f"{family}-legacy"), written_by_kube_proxy(f"{family}-nft")
    assert legacy != nft
    for chain, rules in legacy.items():
        if chain in SHARED:
            runs = by_service(rules)
            assert len(dict(runs)) == len(runs), f"{chain}: the rules of a Service are apart"
            assert dict(runs) == dict(by_service(nft[chain])), chain
        else:
            assert rules == nft[chain], chain


@pytest.mark.root
def test_loading_what_is_fed_in_a_sync_twice_changes_nothing() -> None:
    """A full sync with --noflush flushes the chains that it fills."""
    objects = fixture_objects()
    sync = full_sync(
        service_ports(objects["services"], 4),
        endpoints_by_port(objects["endpointslices"], node_name="node1", family=4),
        Settings(node=local_node(objects["nodes"], "node1", 4), family=4, cluster_cidr=CLUSTER_CIDRS[0]),
    )
    once = chains_of(load_and_save(sync.text(), program="iptables-nft"))
    twice = chains_of(load_and_save(sync.text() * 2, program="iptables-nft"))
    assert once == twice
    assert len(once) > 100

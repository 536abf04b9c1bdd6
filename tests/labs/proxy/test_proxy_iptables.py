"""labs.cluster.proxy.iptables: what is written for each kind of Service; the fixture's parity is in another file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labs.cluster.proxy.iptables import LARGE_CLUSTER_ENDPOINTS, chain_hash, render
from tests.labs.proxy.kube_objects import draining, endpoint, endpoint_slice, node, service
from tests.labs.proxy.random_objects import FAMILIES, OBJECTS
from tests.labs.proxy.rule_sets import Chains, chains_of, load_and_save, targets

CIDR = "10.244.0.0/16"
A, B, C = "10.244.0.1", "10.244.1.1", "10.244.2.1"


def chains(
    services: Sequence[dict[str, Any]],
    slices: Sequence[dict[str, Any]] = (),
    *,
    nodes: Sequence[dict[str, Any]] = (),
    family: int = 4,
    cluster_cidrs: Sequence[str] = (CIDR,),
    **options: Any,
) -> Chains:
    objects = {"services": services, "endpointslices": slices, "nodes": nodes}
    text = render(objects, node_name="node1", family=family, cluster_cidrs=cluster_cidrs, **options)
    return chains_of(text)


def about(found: Chains, table: str, chain: str) -> list[str]:
    """Give the rules of a chain without "-A CHAIN " in front."""
    return [rule.removeprefix(f"-A {chain} ") for rule in found[table, chain]]


HASH = chain_hash("shop/webtcp")
SVC, SVL, EXT, FW = (f"KUBE-{kind}-{HASH}" for kind in ("SVC", "SVL", "EXT", "FW"))


def sep(ip: str, port: int = 8080) -> str:
    return "KUBE-SEP-" + chain_hash(f"shop/webtcp{ip}:{port}")


# --- ClusterIP ------------------------------------------------------------------------------------


def test_names_are_those_of_a_real_cluster() -> None:
    """The chains of default/kubernetes:https are the same in every cluster: anyone can look."""
    assert chain_hash("default/kubernetes:httpstcp") == "NPX46M4PTMTKRN6Y"


def test_cluster_ip_spreads_over_all_endpoints() -> None:
    found = chains([service()], [endpoint_slice(endpoint(A), endpoint(B), endpoint(C))])
    entry = '-m comment --comment "shop/web cluster IP" -m tcp -p tcp -d 10.96.0.1 --dport 80'
    assert about(found, "nat", "KUBE-SERVICES")[0] == f"{entry} -j {SVC}"
    chance = "-m statistic --mode random --probability"
    assert about(found, "nat", SVC) == [
        f"{entry} ! -s {CIDR} -j KUBE-MARK-MASQ",
        f'-m comment --comment "shop/web -> {A}:8080" {chance} 0.3333333333 -j {sep(A)}',
        f'-m comment --comment "shop/web -> {B}:8080" {chance} 0.5000000000 -j {sep(B)}',
        f'-m comment --comment "shop/web -> {C}:8080" -j {sep(C)}',
    ]
    assert about(found, "nat", sep(A)) == [
        f"-m comment --comment shop/web -s {A} -j KUBE-MARK-MASQ",
        f"-m comment --comment shop/web -m tcp -p tcp -j DNAT --to-destination {A}:8080",
    ]


def test_without_a_cluster_cidr_nothing_is_known_of_outside() -> None:
    found = chains([service()], [endpoint_slice(endpoint(A))], cluster_cidrs=["fd00::/56"])
    assert "MARK-MASQ" not in str(found["nat", SVC])


def test_masquerade_all() -> None:
    found = chains([service()], [endpoint_slice(endpoint(A))], masquerade_all=True, masquerade_bit=15)
    assert about(found, "nat", SVC)[0].endswith("--dport 80 -j KUBE-MARK-MASQ")
    assert about(found, "nat", "KUBE-MARK-MASQ") == ["-j MARK --or-mark 0x00008000"]


def test_no_endpoints_is_said_at_once() -> None:
    item = service(type="NodePort", ports=[{"port": 80, "nodePort": 30080}], externalIPs=["203.0.113.1"])
    found = chains([item], [endpoint_slice(endpoint(A, ready=False))])
    why = '-m comment --comment "shop/web has no endpoints"'
    assert about(found, "filter", "KUBE-SERVICES") == [f"{why} -m tcp -p tcp -d 10.96.0.1 --dport 80 -j REJECT"]
    assert about(found, "filter", "KUBE-EXTERNAL-SERVICES") == [
        f"{why} -m tcp -p tcp -d 203.0.113.1 --dport 80 -j REJECT",
        f"{why} -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30080 -j REJECT",
    ]
    assert len(found["nat", "KUBE-SERVICES"]) == 1
    assert not found["nat", "KUBE-NODEPORTS"]
    assert not [chain for _, chain in found if HASH in chain]


def test_draining_endpoints_serve_when_there_is_no_other() -> None:
    found = chains([service()], [endpoint_slice(draining(A), endpoint(B, ready=False))])
    assert targets(found["nat", SVC]) == {"KUBE-MARK-MASQ", sep(A)}


def test_session_affinity_asks_before_it_spreads() -> None:
    found = chains([service(sessionAffinity="ClientIP")], [endpoint_slice(endpoint(A), endpoint(B))])
    recent = "-m recent --name {0} --rcheck --seconds 10800 --reap -j {0}"
    assert [rule.split(" -m ", 2)[-1] for rule in about(found, "nat", SVC)[1:3]] == [
        recent.format(sep(A)).removeprefix("-m "),
        recent.format(sep(B)).removeprefix("-m "),
    ]
    assert f"-m recent --name {sep(A)} --set -m tcp" in about(found, "nat", sep(A))[1]


def test_internal_local_without_an_endpoint_here_is_silent() -> None:
    item = service(internalTrafficPolicy="Local")
    found = chains([item], [endpoint_slice(endpoint(B, node="node2"))])
    (rule,) = about(found, "filter", "KUBE-SERVICES")
    assert rule.startswith('-m comment --comment "shop/web has no local endpoints"')
    assert rule.endswith("-j DROP")
    assert not [chain for _, chain in found if HASH in chain]


def test_internal_local_uses_its_own_chain() -> None:
    item = service(internalTrafficPolicy="Local")
    found = chains([item], [endpoint_slice(endpoint(A, node="node1"), endpoint(B, node="node2"))])
    assert targets(found["nat", "KUBE-SERVICES"][:1]) == {SVL}
    assert targets(found["nat", SVL]) == {"KUBE-MARK-MASQ", sep(A)}
    assert ("nat", SVC) not in found
    assert ("nat", sep(B)) not in found


# --- From outside ---------------------------------------------------------------------------------


def test_node_port() -> None:
    item = service(type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    found = chains([item], [endpoint_slice(endpoint(A))])
    assert about(found, "nat", "KUBE-NODEPORTS") == [
        f"-m comment --comment shop/web -m tcp -p tcp --dport 30080 -j {EXT}"
    ]
    assert about(found, "nat", EXT) == [
        '-m comment --comment "masquerade traffic for shop/web external destinations" -j KUBE-MARK-MASQ',
        f"-j {SVC}",
    ]


@pytest.mark.parametrize(
    ("family", "options", "extra"),
    [
        (4, {}, ""),
        (4, {"localhost_nodeports": False}, "! -d 127.0.0.0/8 "),
        (6, {}, "! -d ::1/128 "),
    ],
)
def test_node_ports_on_localhost(family: int, options: dict[str, bool], extra: str) -> None:
    found = chains([], family=family, **options)
    (rule,) = about(found, "nat", "KUBE-SERVICES")
    assert rule.endswith(f"-m addrtype --dst-type LOCAL {extra}-j KUBE-NODEPORTS")
    assert bool(found["filter", "KUBE-FIREWALL"]) is (not extra)


LOCAL = {
    "type": "LoadBalancer",
    "externalTrafficPolicy": "Local",
    "healthCheckNodePort": 32000,
    "ports": [{"port": 80, "nodePort": 30080}],
    "ingress": [{"ip": "198.51.100.1"}],
}


def test_external_local_keeps_the_source_address_of_outsiders_only() -> None:
    found = chains([service(**LOCAL)], [endpoint_slice(endpoint(A, node="node1"), endpoint(B, node="node2"))])
    where = "shop/web external destinations"
    assert about(found, "nat", EXT) == [
        f'-m comment --comment "pod traffic for {where}" -s {CIDR} -j {SVC}',
        f'-m comment --comment "masquerade LOCAL traffic for {where}" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ',
        f'-m comment --comment "route LOCAL traffic for {where}" -m addrtype --src-type LOCAL -j {SVC}',
        f"-j {SVL}",
    ]
    assert targets(found["nat", SVL]) == {sep(A)}
    assert targets(found["nat", SVC]) == {"KUBE-MARK-MASQ", sep(A), sep(B)}
    assert not found["filter", "KUBE-EXTERNAL-SERVICES"]
    assert about(found, "filter", "KUBE-NODEPORTS") == [
        '-m comment --comment "shop/web health check node port" -m tcp -p tcp --dport 32000 -j ACCEPT'
    ]


def test_external_local_without_an_endpoint_here_still_serves_this_node() -> None:
    found = chains([service(**LOCAL)], [endpoint_slice(endpoint(B, node="node2"))])
    assert targets(found["nat", EXT]) == {"KUBE-MARK-MASQ", SVC}
    assert ("nat", SVL) not in found
    dropped = about(found, "filter", "KUBE-EXTERNAL-SERVICES")
    assert [rule.endswith("-j DROP") and "no local endpoints" in rule for rule in dropped] == [True, True]
    assert "-d 198.51.100.1 " in dropped[0]
    assert "--dst-type LOCAL" in dropped[1]
    assert not found["filter", "KUBE-SERVICES"]


def test_a_health_check_udp_service_is_still_checked_by_tcp() -> None:
    item = service(**{**LOCAL, "ports": [{"port": 53, "protocol": "UDP"}]})
    assert "-m tcp -p tcp --dport 32000" in about(chains([item]), "filter", "KUBE-NODEPORTS")[0]


def test_load_balancer_behind_a_proxy_needs_no_rules_for_its_address() -> None:
    item = service(type="LoadBalancer", ingress=[{"ip": "198.51.100.1", "ipMode": "Proxy"}])
    assert "198.51.100.1" not in str(chains([item], [endpoint_slice(endpoint(A))]))


def firewalled(*ranges: str, node_ip: str = "172.18.0.2") -> Chains:
    item = service(
        type="LoadBalancer",
        ingress=[{"ip": "198.51.100.1"}, {"ip": "198.51.100.2"}],
        loadBalancerSourceRanges=list(ranges),
    )
    return chains([item], [endpoint_slice(endpoint(A))], nodes=[node(ips=[node_ip])])


def test_source_ranges_are_a_firewall_before_the_external_chain() -> None:
    found = firewalled("10.0.0.0/8", "192.0.2.0/24")
    assert targets(found["nat", "KUBE-SERVICES"]) == {SVC, FW, "KUBE-NODEPORTS"}
    allow = '-m comment --comment "shop/web loadbalancer IP"'
    assert about(found, "nat", FW) == [
        f"{allow} -s 10.0.0.0/8 -j {EXT}",
        f"{allow} -s 192.0.2.0/24 -j {EXT}",
        '-m comment --comment "other traffic to shop/web will be dropped by KUBE-PROXY-FIREWALL"',
    ]
    drop = f'-m comment --comment "shop/web traffic not accepted by {FW}" -m tcp -p tcp'
    assert about(found, "filter", "KUBE-PROXY-FIREWALL") == [
        f"{drop} -d 198.51.100.1 --dport 80 -j DROP",
        f"{drop} -d 198.51.100.2 --dport 80 -j DROP",
    ]


def test_a_node_inside_the_source_ranges_may_come_from_the_balancers_address() -> None:
    rules = about(firewalled("172.18.0.0/16"), "nat", FW)
    assert [rule.split(" -s ")[1].split()[0] for rule in rules[:-1]] == [
        "172.18.0.0/16",
        "198.51.100.1",
        "198.51.100.2",
    ]


def test_source_ranges_of_the_other_family_only_are_no_firewall() -> None:
    found = firewalled("fd00::/8")
    assert ("nat", FW) not in found
    assert not found["filter", "KUBE-PROXY-FIREWALL"]


def test_source_ranges_without_endpoints_are_no_firewall() -> None:
    item = service(type="LoadBalancer", ingress=[{"ip": "198.51.100.1"}], loadBalancerSourceRanges=["10.0.0.0/8"])
    found = chains([item])
    assert not found["filter", "KUBE-PROXY-FIREWALL"]
    assert "has no endpoints" in found["filter", "KUBE-EXTERNAL-SERVICES"][0]


# --- All Services together ------------------------------------------------------------------------


def test_hints_choose_by_the_zone_of_the_node() -> None:
    item = service(annotations={"service.kubernetes.io/topology-mode": "Auto"})
    slices = [endpoint_slice(endpoint(A, zones=["a"]), endpoint(B, zones=["b"]))]
    assert ("nat", sep(A)) not in chains([item], slices, nodes=[node(zone="b")])
    assert ("nat", sep(A)) in chains([item], slices, nodes=[node(zone="")])


@pytest.mark.parametrize(("more", "comments"), [(0, True), (1, False)])
def test_large_clusters_leave_out_comments_about_endpoints(more: int, comments: bool) -> None:
    """Endpoints that are not ready count; those of no Service don't."""
    count = LARGE_CLUSTER_ENDPOINTS - 2 + more
    many = [endpoint(f"10.244.{i // 250}.{i % 250}", ready=i == 0) for i in range(1000)]
    found = chains(
        [service(sessionAffinity="ClientIP"), service("b", clusterIP="10.96.0.2")],
        [
            endpoint_slice(*many[:count]),
            endpoint_slice(endpoint(B), endpoint(C), of="b"),
            endpoint_slice(endpoint(B), of="gone"),
        ],
    )
    name = "KUBE-SEP-" + chain_hash("shop/webtcp10.244.0.0:8080")
    rules = [*about(found, "nat", SVC)[1:], *about(found, "nat", name)]
    assert [rule.startswith("-m comment") for rule in rules] == [comments] * 4
    assert all("-m comment" in rule for rule in about(found, "nat", "KUBE-SERVICES"))


def test_conntrack_liberal() -> None:
    assert "INVALID" in str(chains([])["filter", "KUBE-FORWARD"])
    assert "INVALID" not in str(chains([], conntrack_tcp_liberal=True)["filter", "KUBE-FORWARD"])


def test_no_OBJECTSat_all() -> None:
    assert chains_of(render({}, node_name="node1", family=4)).keys() == chains([]).keys()


# --- Whatever the objects -------------------------------------------------------------------------

OWN = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-")


def rendered(objects: dict[str, Any], family: int) -> str:
    return render(objects, node_name="node1", family=family, cluster_cidrs=[CIDR, "fd00:10:244::/56"])


@settings(max_examples=200, deadline=None)
@given(OBJECTS, FAMILIES)
def test_any_OBJECTSgive_tables_that_hang_together(objects: dict[str, Any], family: int) -> None:
    """Every chain that is led to exists; every chain of a Service is led to, and has rules."""
    found = chains_of(rendered(objects, family))
    for table in ("filter", "nat"):
        declared = {chain for in_table, chain in found if in_table == table}
        led_to = set().union(*(targets(rules) for (in_table, _), rules in found.items() if in_table == table))
        own = {chain for chain in declared if chain.startswith(OWN)}
        assert own <= led_to <= declared
        assert all(found[table, chain] for chain in own)


@pytest.mark.root
@settings(max_examples=10, deadline=None)
@given(OBJECTS, st.sampled_from([(4, "iptables-legacy"), (4, "iptables-nft"), (6, "ip6tables-nft")]))
def test_any_OBJECTSgive_tables_that_the_kernel_takes(objects: dict[str, Any], variant: tuple[int, str]) -> None:
    family, program = variant
    text = rendered(objects, family)
    loaded = chains_of(load_and_save(text, program=program))
    assert {chain: len(rules) for chain, rules in loaded.items()} == {
        chain: len(rules) for chain, rules in chains_of(text).items()
    }

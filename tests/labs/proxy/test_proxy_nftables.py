"""labs.cluster.proxy.nftables: what is written for each kind of Service; the fixture's parity is in another file."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings

from labs.cluster.proxy.nftables import NAME_LENGTH_MAX, render
from tests.labs.proxy.kube_objects import draining, endpoint, endpoint_slice, node, service
from tests.labs.proxy.random_objects import FAMILIES, OBJECTS

CIDR = "10.244.0.0/16"
A, B = "10.244.0.1", "10.244.1.1"


class Script:
    """A rendered script, taken apart: rules by chain, elements by set or map."""

    def __init__(self, text: str) -> None:
        self.rules: dict[str, list[str]] = {}
        self.elements: dict[str, list[str]] = {}
        self.sets: dict[str, str] = {}
        for line in text.splitlines():
            verb, kind, _, table, name, *rest = line.split(" ", 5)
            assert table == "kube-proxy" or kind == "table"
            if verb == "flush" or kind == "table":
                continue
            if kind == "chain":
                assert name not in self.rules, f"{name} is added twice"
                self.rules[name] = []
            elif kind in ("set", "map"):
                self.sets[name] = rest[0]
                self.elements[name] = []
            elif kind == "element":
                self.elements[name].append(rest[0].removeprefix("{ ").removesuffix(" }"))
            elif kind == "rule":
                self.rules[name].append(rest[0])

    def led_to(self) -> set[str]:
        texts = [rule for rules in self.rules.values() for rule in rules]
        texts += [element for elements in self.elements.values() for element in elements]
        return {target for text in texts for target in re.findall(r"(?:goto|jump) (\S+)", text)}

    def __getitem__(self, chain: str) -> list[str]:
        (full,) = [name for name in self.rules if name == chain or (name.startswith(f"{chain}-") and "/" in name)]
        return self.rules[full]

    def chain(self, kind: str, end: str = "") -> str:
        (full,) = [name for name in self.rules if name.startswith(f"{kind}-") and "/" in name and name.endswith(end)]
        return full


def script(
    services: Sequence[dict[str, Any]],
    slices: Sequence[dict[str, Any]] = (),
    *,
    nodes: Sequence[dict[str, Any]] = (),
    family: int = 4,
    cluster_cidrs: Sequence[str] = (CIDR,),
    **options: Any,
) -> Script:
    objects = {"services": services, "endpointslices": slices, "nodes": nodes}
    return Script(render(objects, node_name="node1", family=family, cluster_cidrs=cluster_cidrs, **options))


def test_cluster_ip_spreads_over_all_endpoints() -> None:
    found = script([service()], [endpoint_slice(endpoint(A), endpoint(B))])
    chain, a, b = found.chain("service"), found.chain("endpoint", f"{A}/8080"), found.chain("endpoint", f"{B}/8080")
    assert chain.endswith("-shop/web/tcp/")
    assert found.elements["cluster-ips"] == ["10.96.0.1"]
    assert found.elements["service-ips"] == [f"10.96.0.1 . tcp . 80 : goto {chain}"]
    assert found.rules[chain] == [
        f"ip daddr 10.96.0.1 tcp dport 80 ip saddr != {CIDR} jump mark-for-masquerade",
        f"numgen random mod 2 vmap {{ 0 : goto {a} , 1 : goto {b} }}",
    ]
    assert found.rules[a] == [f"ip saddr {A} jump mark-for-masquerade", f"meta l4proto tcp dnat to {A}:8080"]


def test_ipv6() -> None:
    item = service(clusterIP="fd00:10:96::1")
    slices = [endpoint_slice(endpoint("fd00:10:244::1"), address_type="IPv6")]
    found = script([item], slices, family=6, cluster_cidrs=["fd00:10:244::/56"])
    assert (
        found["service"][0]
        == "ip6 daddr fd00:10:96::1 tcp dport 80 ip6 saddr != fd00:10:244::/56 jump mark-for-masquerade"
    )
    assert found.chain("endpoint").endswith("-shop/web/tcp/__fd00.10.244..1/8080")
    assert found["endpoint"][1] == "meta l4proto tcp dnat to [fd00:10:244::1]:8080"


def test_without_a_cluster_cidr_nothing_is_known_of_outside() -> None:
    found = script([service()], [endpoint_slice(endpoint(A))], cluster_cidrs=())
    assert len(found["service"]) == 1
    local = script([service(**LOCAL)], [endpoint_slice(endpoint(A, node="node1"))], cluster_cidrs=())
    assert [rule.split()[0] for rule in local["external"]] == ["fib", "fib", "goto"]


def test_masquerade_all_and_another_mark() -> None:
    found = script([service()], [endpoint_slice(endpoint(A))], masquerade_all=True, masquerade_bit=15)
    assert found["service"][0] == "ip daddr 10.96.0.1 tcp dport 80 jump mark-for-masquerade"
    assert found["mark-for-masquerade"] == ["mark set mark or 0x00008000"]


def test_no_endpoints_is_said_at_once() -> None:
    item = service(type="NodePort", ports=[{"port": 80, "nodePort": 30080}], externalIPs=["203.0.113.1"])
    found = script([item], [endpoint_slice(endpoint(A, ready=False))])
    assert found.elements["no-endpoint-services"] == [
        '10.96.0.1 . tcp . 80 comment "shop/web" : goto reject-chain',
        '203.0.113.1 . tcp . 80 comment "shop/web" : goto reject-chain',
    ]
    assert found.elements["no-endpoint-nodeports"] == ['tcp . 30080 comment "shop/web" : goto reject-chain']
    assert found.elements["cluster-ips"] == ["10.96.0.1"]
    assert not found.elements["service-ips"]
    assert not found.elements["service-nodeports"]
    assert not [chain for chain in found.rules if "/" in chain]


def test_session_affinity() -> None:
    found = script([service(sessionAffinity="ClientIP")], [endpoint_slice(endpoint(A))])
    chain = found.chain("endpoint")
    affinity = chain.replace("endpoint-", "affinity-", 1)
    assert found.sets[affinity] == "{ type ipv4_addr ; flags dynamic,timeout ; timeout 10800s ; }"
    assert found["service"][1] == f"ip saddr @{affinity} goto {chain}"
    assert found["endpoint"][1] == f"update @{affinity} {{ ip saddr }}"


def test_internal_local() -> None:
    item = service(internalTrafficPolicy="Local")
    found = script([item], [endpoint_slice(endpoint(A, node="node1"), endpoint(B, node="node2"))])
    assert found.elements["service-ips"] == [f"10.96.0.1 . tcp . 80 : goto {found.chain('local')}"]
    assert len([chain for chain in found.rules if "/" in chain]) == 2
    silent = script([item], [endpoint_slice(endpoint(B, node="node2"))])
    assert silent.elements["no-endpoint-services"] == ['10.96.0.1 . tcp . 80 comment "shop/web" : drop']


LOCAL = {
    "type": "LoadBalancer",
    "externalTrafficPolicy": "Local",
    "ports": [{"port": 80, "nodePort": 30080}],
    "ingress": [{"ip": "198.51.100.1"}],
}


def test_external_cluster() -> None:
    found = script([service(**{**LOCAL, "externalTrafficPolicy": "Cluster"})], [endpoint_slice(draining(A))])
    chain = found.chain("external")
    assert found.elements["service-ips"][1:] == [f"198.51.100.1 . tcp . 80 : goto {chain}"]
    assert found.elements["service-nodeports"] == [f"tcp . 30080 : goto {chain}"]
    assert found.rules[chain] == ["jump mark-for-masquerade", f"goto {found.chain('service')}"]


def test_external_local_keeps_the_source_address_of_outsiders_only() -> None:
    found = script([service(**LOCAL)], [endpoint_slice(endpoint(A, node="node1"), endpoint(B, node="node2"))])
    to_all = f"goto {found.chain('service')}"
    assert found["external"] == [
        f'ip saddr {CIDR} {to_all} comment "short-circuit pod traffic"',
        'fib saddr type local jump mark-for-masquerade comment "masquerade local traffic"',
        f'fib saddr type local {to_all} comment "short-circuit local traffic"',
        f"goto {found.chain('local')}",
    ]
    assert "mod 1 " in found["local"][0]
    assert "mod 2 " in found["service"][1]
    assert not found.elements["no-endpoint-nodeports"]


def test_external_local_without_an_endpoint_here_still_serves_this_node() -> None:
    found = script([service(**LOCAL)], [endpoint_slice(endpoint(B, node="node2"))])
    assert not found["external"][-1].startswith("goto")
    assert found.elements["no-endpoint-nodeports"] == ['tcp . 30080 comment "shop/web" : drop']
    assert found.elements["no-endpoint-services"] == ['198.51.100.1 . tcp . 80 comment "shop/web" : drop']


@pytest.mark.parametrize(
    ("node_ip", "allowed"),
    [
        ("172.18.0.2", "10.0.0.0/8 , 192.0.2.0/24"),
        ("192.0.2.1", "10.0.0.0/8 , 192.0.2.0/24 , 198.51.100.1"),
    ],
)
def test_source_ranges(node_ip: str, allowed: str) -> None:
    item = service(**LOCAL, loadBalancerSourceRanges=["10.0.0.0/8", "192.0.2.0/24"])
    found = script([item], nodes=[node(ips=[node_ip])])
    assert found.elements["firewall-ips"] == [
        f'198.51.100.1 . tcp . 80 comment "shop/web" : goto {found.chain("firewall")}'
    ]
    assert found["firewall"] == [f"ip saddr != {{ {allowed} }} drop"]


def test_node_ports_answer_on_the_nodes_address() -> None:
    assert script([], nodes=[node()]).elements["nodeport-ips"] == ["172.18.0.2"]
    assert script([]).elements["nodeport-ips"] == []


def test_of_two_services_that_claim_an_address_the_first_keeps_it() -> None:
    two = [service(externalIPs=["203.0.113.1"]), service("b", clusterIP="10.96.0.2", externalIPs=["203.0.113.1"])]
    found = script(two, [endpoint_slice(endpoint(A)), endpoint_slice(endpoint(B), of="b")])
    (claim,) = [element for element in found.elements["service-ips"] if element.startswith("203.0.113.1 ")]
    assert "-shop/web/" in claim


def test_long_names_are_cut_and_stay_different() -> None:
    long = "n" * 63
    ports = [{"name": "p" * 62 + end, "port": 80 + index} for index, end in enumerate("ab")]
    address = "fd00:1111:2222:3333:4444:5555:6666:7777"
    slices = [
        endpoint_slice(
            endpoint(address),
            of=long,
            namespace=long,
            address_type="IPv6",
            ports=[{"name": port["name"], "port": 65535, "protocol": "SCTP"} for port in ports],
        )
    ]
    item = service(
        long,
        namespace=long,
        clusterIP="fd00::1",
        sessionAffinity="ClientIP",
        ports=[{**port, "protocol": "SCTP"} for port in ports],
    )
    found = script([item], slices, family=6)
    names = [chain.removeprefix("endpoint-") for chain in found.rules if chain.startswith("endpoint-")]
    assert len(set(names)) == 2
    assert all(len(name) == NAME_LENGTH_MAX and name.endswith("...") for name in names)


# --- Whatever the objects -------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(OBJECTS, FAMILIES)
def test_any_objects_give_a_table_that_hangs_together(objects: dict[str, Any], family: int) -> None:
    """Every chain that is led to exists, every chain of a Service has rules, and no key is there twice."""
    found = Script(render(objects, node_name="node1", family=family, cluster_cidrs=[CIDR, "fd00:10:244::/56"]))
    assert found.led_to() <= set(found.rules)
    assert all(rules for chain, rules in found.rules.items() if "/" in chain)
    for elements in found.elements.values():
        keys = [element.split(" : ")[0].split(" comment ")[0] for element in elements]
        assert len(set(keys)) == len(keys)


@pytest.mark.root
@settings(max_examples=10, deadline=None)
@given(OBJECTS, FAMILIES)
def test_any_objects_give_a_table_that_the_kernel_takes(objects: dict[str, Any], family: int) -> None:
    text = render(objects, node_name="node1", family=family, cluster_cidrs=[CIDR, "fd00:10:244::/56"])
    result = subprocess.run(
        ["unshare", "--net", "nft", "-f", "-"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr

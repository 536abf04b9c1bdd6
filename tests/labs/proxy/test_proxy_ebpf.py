"""What the eBPF datapath must hold for a Service port: its addresses, for whom, and the endpoints behind each."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import given

from labs.cluster.proxy.ebpf import Behind, Node, Wanted, wanted
from labs.cluster.proxy.endpoints import categorize, endpoints_by_port
from labs.cluster.proxy.services import service_ports
from tests.labs.proxy.kube_objects import endpoint, endpoint_slice, service
from tests.labs.proxy.random_objects import OBJECTS
from tracer.service_lb import Backend, Frontend, Scope, ServiceFlag

NODE = Node("172.18.0.2", "", ("127.0.0.1", "172.18.0.2", "10.244.0.1"))
NONE, SILENT, MASQUERADE = ServiceFlag(0), ServiceFlag.SILENT, ServiceFlag.MASQUERADE
TWO_NODES = endpoint_slice(endpoint("10.244.0.5", node="node1"), endpoint("10.244.1.5", node="node2"))
ELSEWHERE = endpoint_slice(endpoint("10.244.1.5", node="node2"))


def of(item: dict[str, Any], *slices: dict[str, Any]) -> Wanted:
    (port,) = service_ports([item], 4).values()
    found = endpoints_by_port(slices, node_name="node1", family=4)
    one = wanted(port, found.get(port.key, ()), NODE)
    assert one is not None
    return one


def address(ip: str, port: int = 80, scope: Scope = Scope.SOCKET) -> Frontend:
    return Frontend(ipaddress.ip_address(ip), port, "TCP", scope)


def ips(backends: Any) -> set[str]:
    return {str(Backend.unpack(backend).ip) for backend in backends}


def test_a_cluster_ip_is_for_sockets_only() -> None:
    one = of(service(), TWO_NODES)
    assert one.frontends == {address("10.96.0.1"): Behind(local=False)}
    assert ips(one.cluster) == {"10.244.0.5", "10.244.1.5"}
    assert [Backend.unpack(backend).is_local for backend in one.cluster] == [True, False]
    assert one.local == ()


def test_a_node_port_is_at_every_address_of_the_node_and_loopback_not_from_outside() -> None:
    one = of(service(type="NodePort", ports=[{"port": 80, "nodePort": 30080}]), TWO_NODES)
    outside = Behind(local=False, flags=MASQUERADE)
    assert one.frontends == {
        address("10.96.0.1"): Behind(local=False),
        **{address(ip, 30080): Behind(local=False) for ip in NODE.addresses},
        **{address(ip, 30080, Scope.OUTSIDE): outside for ip in ("172.18.0.2", "10.244.0.1")},
    }


def test_external_policy_local_holds_for_those_outside_only_and_keeps_their_addresses() -> None:
    item = service(type="LoadBalancer", externalTrafficPolicy="Local", ingress=[{"ip": "203.0.113.1"}])
    one = of(item, TWO_NODES)
    assert one.frontends[address("203.0.113.1")] == Behind(local=False)
    assert one.frontends[address("203.0.113.1", scope=Scope.OUTSIDE)] == Behind(local=True)
    assert (ips(one.cluster), ips(one.local)) == ({"10.244.0.5", "10.244.1.5"}, {"10.244.0.5"})


def test_a_policy_that_leaves_nobody_is_silent_and_no_endpoints_at_all_are_refused() -> None:
    item = service(internalTrafficPolicy="Local")
    assert of(item, ELSEWHERE).frontends == {address("10.96.0.1"): Behind(local=True, flags=SILENT)}
    assert of(item).frontends == {address("10.96.0.1"): Behind(local=True)}
    outside = service(type="NodePort", externalTrafficPolicy="Local", ports=[{"port": 80, "nodePort": 30080}])
    there = address("172.18.0.2", 30080, Scope.OUTSIDE)
    assert of(outside, ELSEWHERE).frontends[there] == Behind(local=True, flags=SILENT)


def test_source_ranges_guard_load_balancer_ips_and_judge_the_node_itself() -> None:
    def flags(*ranges: str) -> set[ServiceFlag]:
        item = service(type="LoadBalancer", ingress=[{"ip": "203.0.113.1"}], loadBalancerSourceRanges=list(ranges))
        frontends = of(item, TWO_NODES).frontends
        return {frontends[address("203.0.113.1", scope=scope)].flags & ~MASQUERADE for scope in Scope}

    assert flags("198.51.100.0/24") == {ServiceFlag.HAS_RANGES | ServiceFlag.DENIES_NODE}
    assert flags("198.51.100.0/24", "172.18.0.0/16") == {ServiceFlag.HAS_RANGES}
    assert flags() == {NONE}


def test_affinity_and_an_unknown_protocol() -> None:
    assert of(service(sessionAffinity="ClientIP"), TWO_NODES).affinity_seconds == 10800
    (port,) = service_ports([service(ports=[{"port": 80, "protocol": "SCTP"}])], 4).values()
    assert wanted(port, (), NODE) is None


@given(OBJECTS)
def test_the_endpoints_are_those_that_rules_would_use(objects: dict[str, list[dict[str, Any]]]) -> None:
    for family in (4, 6):
        found = endpoints_by_port(objects["endpointslices"], node_name="node1", family=family)
        node = Node("172.18.0.2" if family == 4 else "fc00::2", "", ("172.18.0.2" if family == 4 else "fc00::2",))
        for port in service_ports(objects["services"], family).values():
            one = wanted(port, found.get(port.key, ()), node)
            if one is None:
                assert port.key.protocol == "SCTP"
                continue
            usable = categorize(found.get(port.key, ()), port, "")
            assert ips(one.cluster) == {endpoint.ip for endpoint in usable.cluster}
            assert ips(one.local) == {endpoint.ip for endpoint in usable.local}
            inside = one.frontends[
                Frontend(ipaddress.ip_address(port.cluster_ip), port.port, port.key.protocol, Scope.SOCKET)
            ]
            assert bool(one.backends(inside)) == usable.internal
            assert all((family == 4) == (frontend.ip.version == 4) for frontend in one.frontends)

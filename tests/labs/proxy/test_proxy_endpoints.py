"""labs.cluster.proxy.endpoints: EndpointSlices -> endpoints, and which of them a node uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from labs.cluster.proxy.endpoints import Endpoint, categorize, endpoints_by_port
from labs.cluster.proxy.services import PortKey, ServicePort
from tests.labs.proxy.kube_objects import draining, endpoint, endpoint_slice

KEY = PortKey("shop", "web", "", "TCP")


def merged(*slices: dict[str, Any], family: int = 4) -> list[Endpoint]:
    return endpoints_by_port(slices, node_name="node1", family=family).get(KEY, [])


def ips(endpoints: Sequence[Endpoint]) -> list[str]:
    return [e.ip for e in endpoints]


def test_conditions_default_to_a_healthy_endpoint() -> None:
    (found,) = merged(endpoint_slice({"addresses": ["10.244.0.1"]}))
    assert found == Endpoint("10.244.0.1", 8080, "10.244.0.1:8080", False, True, True, False)


def test_conditions_that_are_null_count_as_missing() -> None:
    conditions = {"ready": None, "serving": None, "terminating": None}
    (found,) = merged(endpoint_slice({"addresses": ["10.244.0.1"], "conditions": conditions}))
    assert (found.ready, found.serving, found.terminating) == (True, True, False)


def test_several_slices_are_merged_and_sorted_as_text() -> None:
    one = endpoint_slice(endpoint("10.244.0.9"), endpoint("10.244.0.10"))
    two = endpoint_slice(endpoint("10.244.0.100"))
    assert ips(merged(one, two)) == ["10.244.0.100", "10.244.0.10", "10.244.0.9"]


def test_the_port_is_part_of_what_is_sorted() -> None:
    ports = [{"name": "", "port": number, "protocol": "TCP"} for number in (9090, 80)]
    assert [e.address for e in merged(endpoint_slice(endpoint("10.244.0.1"), ports=ports))] == [
        "10.244.0.1:80",
        "10.244.0.1:9090",
    ]


def test_a_duplicate_counts_once_and_the_local_one_wins() -> None:
    here, there = endpoint("10.244.0.1", node="node1"), endpoint("10.244.0.1", node="node2", ready=False)
    for slices in ([endpoint_slice(here, there)], [endpoint_slice(there), endpoint_slice(here)]):
        (found,) = merged(*slices)
        assert found.is_local
        assert found.ready


def test_the_first_of_two_remote_duplicates_counts() -> None:
    (found,) = merged(endpoint_slice(endpoint("10.244.0.1", ready=False), endpoint("10.244.0.1")))
    assert not found.ready


def test_only_the_first_address_counts() -> None:
    assert ips(merged(endpoint_slice({"addresses": ["10.244.0.1", "10.244.0.2"]}))) == ["10.244.0.1"]


@pytest.mark.parametrize(
    "item",
    [
        endpoint_slice(endpoint("10.244.0.1"), of=""),
        endpoint_slice(endpoint("10.244.0.1"), address_type="FQDN"),
        endpoint_slice(endpoint("10.244.0.1"), labels={"service.kubernetes.io/headless": ""}),
        endpoint_slice(endpoint("10.244.0.1"), labels={"service.kubernetes.io/service-proxy-name": "other"}),
        endpoint_slice(endpoint("10.244.0.1"), ports=[]),
        endpoint_slice(endpoint("10.244.0.1"), ports=[{"name": None, "port": 80}]),
        endpoint_slice(endpoint("10.244.0.1"), ports=[{"name": "", "port": None}]),
        endpoint_slice(endpoint("10.244.0.1"), ports=[{"name": "", "port": 0}]),
        endpoint_slice(endpoint("fd00::1"), address_type="IPv6"),
        endpoint_slice({"addresses": []}),
        endpoint_slice({}),
        {**endpoint_slice(), "endpoints": None},
        {**endpoint_slice(endpoint("10.244.0.1")), "ports": None},
        {"metadata": {}},
    ],
)
def test_not_an_endpoint_of_the_service(item: dict[str, Any]) -> None:
    assert merged(item) == []


def test_an_endpoint_on_no_node_is_not_local() -> None:
    slices = [endpoint_slice({"addresses": ["10.244.0.1"]}, endpoint("10.244.0.2", node=""))]
    found = endpoints_by_port(slices, node_name="", family=4)[KEY]
    assert [e.is_local for e in found] == [False, False]


def test_ipv6_addresses_are_printed_as_go_does() -> None:
    (found,) = merged(endpoint_slice(endpoint("FD00:0:0::0001"), address_type="IPv6"), family=6)
    assert found.address == "[fd00::1]:8080"


def test_ports_are_told_apart_by_name_and_protocol() -> None:
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns", "port": 53, "protocol": "TCP"},
        {"name": "http", "port": 80, "protocol": "TCP"},
    ]
    found = endpoints_by_port([endpoint_slice(endpoint("10.244.0.1"), ports=ports)], node_name="node1", family=4)
    assert set(found) == {PortKey("shop", "web", p["name"], p["protocol"]) for p in ports}


# --- Which of them a node may use -----------------------------------------------------------------

CLUSTER_ONLY = ServicePort(KEY, "10.96.0.1", 80)
INTERNAL_LOCAL = ServicePort(KEY, "10.96.0.1", 80, internal_policy_local=True)
EXTERNAL_LOCAL = ServicePort(KEY, "10.96.0.1", 80, node_port=30000, external_policy_local=True)
HINTED = ServicePort(KEY, "10.96.0.1", 80, hints="Auto")


def used(port: ServicePort, *entries: dict[str, Any], zone: str = "") -> tuple[list[str], list[str], list[str], bool]:
    usable = categorize(merged(endpoint_slice(*entries)), port, zone)
    return ips(usable.cluster), ips(usable.local), sorted(ips(usable.reachable)), usable.anywhere


A, B = "10.244.0.1", "10.244.1.1"


def test_cluster_policy_uses_ready_endpoints_anywhere() -> None:
    entries = [endpoint(A, node="node1"), endpoint(B, node="node2"), endpoint("10.244.2.1", ready=False)]
    assert used(CLUSTER_ONLY, *entries) == ([A, B], [], [A, B], True)


def test_draining_endpoints_only_when_none_is_ready() -> None:
    assert used(CLUSTER_ONLY, endpoint(A), draining(B)) == ([A], [], [A], True)
    assert used(CLUSTER_ONLY, endpoint(A, ready=False), draining(B)) == ([B], [], [B], True)


def test_an_endpoint_that_stopped_serving_is_never_used() -> None:
    gone = endpoint(A, ready=False, serving=False, terminating=True)
    assert used(CLUSTER_ONLY, gone) == ([], [], [], False)


def test_internal_local_uses_this_node_only() -> None:
    entries = [endpoint(A, node="node1"), endpoint(B, node="node2")]
    assert used(INTERNAL_LOCAL, *entries) == ([], [A], [A], True)
    assert used(INTERNAL_LOCAL, endpoint(B, node="node2")) == ([], [], [], True)
    assert used(INTERNAL_LOCAL, draining(B, node="node2")) == ([], [], [], True)
    assert used(INTERNAL_LOCAL) == ([], [], [], False)


def test_external_local_needs_both_lists() -> None:
    entries = [endpoint(A, node="node1"), endpoint(B, node="node2")]
    assert used(EXTERNAL_LOCAL, *entries) == ([A, B], [A], [A, B], True)


def test_local_draining_endpoints_join_ready_remote_ones() -> None:
    entries = [draining(A, node="node1"), endpoint(B, node="node2")]
    assert used(EXTERNAL_LOCAL, *entries) == ([B], [A], [A, B], True)


def test_hints_keep_traffic_in_the_zone() -> None:
    entries = [endpoint(A, zones=["a"]), endpoint(B, zones=["b", "c"])]
    assert used(HINTED, *entries, zone="b")[0] == [B]


@pytest.mark.parametrize(
    ("port", "zone", "zones"),
    [
        (CLUSTER_ONLY, "b", [["a"], ["b"]]),  # the Service doesn't ask for it
        (HINTED, "", [["a"], ["b"]]),  # the node has no zone
        (HINTED, "z", [["a"], ["b"]]),  # nobody is meant for this zone
        (HINTED, "b", [[], ["b"]]),  # one has no hint
        (ServicePort(KEY, "10.96.0.1", 80, hints="Disabled"), "b", [["a"], ["b"]]),
    ],
)
def test_hints_are_ignored_when_they_are_not_whole(port: ServicePort, zone: str, zones: list[list[str]]) -> None:
    entries = [endpoint(ip, zones=hints) for ip, hints in zip((A, B), zones, strict=True)]
    assert used(port, *entries, zone=zone)[0] == [A, B]


def test_unready_endpoints_need_no_hint() -> None:
    entries = [endpoint(A, ready=False), endpoint(B, zones=["b"])]
    assert used(HINTED, *entries, zone="b")[0] == [B]


def test_local_endpoints_outside_the_zone_stay_reachable() -> None:
    port = ServicePort(KEY, "10.96.0.1", 80, node_port=30000, external_policy_local=True, hints="Auto")
    entries = [endpoint(A, node="node1", zones=["a"]), endpoint(B, node="node2", zones=["b"])]
    assert used(port, *entries, zone="b") == ([B], [A], [A, B], True)

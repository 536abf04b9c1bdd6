"""What differs between two states of the API's objects, and which entries of UDP have to go for it."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster.proxy.changes import Before, Tracker
from labs.cluster.proxy.conntrack import stale
from labs.cluster.proxy.endpoints import endpoints_by_port
from labs.cluster.proxy.services import PortKey, service_ports
from tests.labs.proxy.kube_objects import draining, endpoint, endpoint_slice, service

WEB = PortKey("shop", "web", "", "UDP")
UDP = ({"name": "", "port": 8080, "protocol": "UDP"},)
Items = dict[tuple[str, str], dict[str, Any]]


def services(**more: Any) -> Items:
    return {("shop", "web"): service(ports=[{"port": 80, "protocol": "UDP", "nodePort": 30080}], **more)}


def slices(*ips: str, ports: Any = UDP) -> Items:
    return {("shop", "web-slice"): endpoint_slice(*(endpoint(ip, ready=True) for ip in ips), ports=ports)}


def tracker(*states: tuple[Items, Items]) -> tuple[Tracker, dict[PortKey, Before]]:
    """A tracker after these states, and what it said of the last one."""
    one = Tracker("node1", 4)
    changed: dict[PortKey, Before] = {}
    for state in states:
        changed = one.update(*state)
    return one, changed


def options(*states: tuple[Items, Items]) -> list[str]:
    one, changed = tracker(*states)
    return [" ".join(match) for match in stale(changed, one.ports, one.endpoints)]


class TestTracker:
    def test_it_has_what_reading_all_anew_gives(self) -> None:
        two = {**slices("10.244.0.1"), ("shop", "b"): endpoint_slice(endpoint("10.244.0.9"), ports=UDP)}
        for state in ((services(), two), (services(), slices("10.244.0.2")), ({}, two), (services(), {})):
            one, _ = tracker((services(), slices("10.244.0.1", "10.244.0.3")), state)
            assert one.ports == service_ports(state[0].values(), 4)
            anew = endpoints_by_port(state[1].values(), node_name="node1", family=4)
            assert one.endpoints == {key: tuple(found) for key, found in anew.items()}

    def test_an_object_that_is_the_same_changes_nothing(self) -> None:
        state = services(), slices("10.244.0.1")
        assert tracker(state, state)[1] == {}

    def test_another_object_that_means_the_same_changes_nothing(self) -> None:
        assert tracker((services(), slices("10.244.0.1")), (services(), slices("10.244.0.1")))[1] == {}

    def test_a_change_tells_what_was(self) -> None:
        one, changed = tracker((services(), slices("10.244.0.1")), (services(clusterIP="10.96.0.2"), slices()))
        assert changed.keys() == {WEB}
        assert changed[WEB].port is not None
        assert changed[WEB].port.cluster_ip == "10.96.0.1"
        assert [found.ip for found in changed[WEB].endpoints] == ["10.244.0.1"]
        assert one.ports[WEB].cluster_ip == "10.96.0.2"

    def test_a_slice_may_move_to_another_service(self) -> None:
        moved = {("shop", "web-slice"): endpoint_slice(endpoint("10.244.0.1"), of="db", ports=UDP)}
        one, changed = tracker((services(), slices("10.244.0.1")), (services(), moved))
        assert one.endpoints.keys() == {WEB._replace(service="db")} == changed.keys() - {WEB}


class TestStale:
    def test_the_first_endpoint_frees_all_addresses_of_its_service(self) -> None:
        about = services(externalIPs=["203.0.113.1"], ingress=[{"ip": "198.51.100.1"}], type="LoadBalancer")
        assert options((about, {}), (about, slices("10.244.0.1"))) == [
            "--orig-dst 10.96.0.1",
            "--orig-dst 203.0.113.1",
            "--orig-dst 198.51.100.1",
            "--dport 30080",
        ]

    def test_one_more_endpoint_frees_nothing(self) -> None:
        assert options((services(), slices("10.244.0.1")), (services(), slices("10.244.0.1", "10.244.0.2"))) == []

    def test_an_endpoint_that_went_is_freed_behind_each_address(self) -> None:
        about = services(type="NodePort")
        assert options((about, slices("10.244.0.1", "10.244.0.2")), (about, slices("10.244.0.2"))) == [
            "--orig-dst 10.96.0.1 --dst-nat 10.244.0.1",
            "--dport 30080 --dst-nat 10.244.0.1",
        ]

    @pytest.mark.parametrize("now", [endpoint("10.244.0.1", ready=False), draining("10.244.0.1")])
    def test_an_endpoint_that_is_no_longer_ready_is_freed(self, now: dict[str, Any]) -> None:
        later = {("shop", "web-slice"): endpoint_slice(now, ports=UDP)}
        assert "--orig-dst 10.96.0.1 --dst-nat 10.244.0.1" in options(
            (services(), slices("10.244.0.1")), (services(), later)
        )

    def test_a_service_that_went_is_freed_by_its_cluster_ip(self) -> None:
        assert options((services(), slices("10.244.0.1")), ({}, slices("10.244.0.1"))) == ["--orig-dst 10.96.0.1"]

    def test_tcp_frees_nothing(self) -> None:
        about = {("shop", "web"): service()}
        tcp = ({"name": "", "port": 8080, "protocol": "TCP"},)
        assert options((about, slices("10.244.0.1", ports=tcp)), (about, slices(ports=tcp))) == []

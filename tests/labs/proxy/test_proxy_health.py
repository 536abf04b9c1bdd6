"""kube-proxy's own health, by a clock that the test turns; and which pods count for a Service's health check."""

from __future__ import annotations

import re

from labs.cluster.proxy.endpoints import endpoints_by_port
from labs.cluster.proxy.healthchecks import HealthCheck, health_checks
from labs.cluster.proxy.services import service_ports
from labs.cluster.proxyhealth import NEVER, Health
from tests.labs.proxy.kube_objects import draining, endpoint, endpoint_slice, service


class Clock:
    """Nanoseconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * 10**9)


def test_it_is_healthy_until_a_change_waits_for_a_minute() -> None:
    clock = Clock()
    health = Health(clock)
    assert health.is_healthy, "while it starts"
    clock.wait(100)
    health.queued()
    clock.wait(59.9)
    health.queued()  # does not make the first one younger
    assert health.is_healthy
    clock.wait(0.1)
    assert not health.is_healthy
    assert health.times()[0] == NEVER
    health.updated()
    assert health.is_healthy
    clock.wait(100)
    assert health.is_healthy, "with nothing to do"


def test_times_are_written_as_go_writes_them() -> None:
    clock = Clock()
    health = Health(clock)
    clock.wait(1.5)
    health.updated()
    clock.wait(2)
    last, now = health.times()
    assert last == now, "who is healthy was updated just now, as in older versions"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{0,8}[1-9])? \+0000 UTC m=\+3\.500000000", now)
    health.queued()
    clock.wait(60)
    last, now = health.times()
    assert last.endswith(" m=+1.500000000")
    assert now.endswith(" m=+63.500000000")


def test_it_is_ready_when_the_kernel_has_had_all_of_it_once() -> None:
    health = Health()
    health.queued()
    assert (health.is_ready, health.is_healthy) == (False, True)
    health.updated()
    health.queued()
    assert health.is_ready


def test_a_node_that_is_to_go() -> None:
    health = Health()
    health.see_node(
        {"metadata": {}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}
    )
    assert (health.node_eligible, health.is_healthy) == (False, True)
    health.see_node({"metadata": {}, "spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}})
    assert health.node_eligible
    health.see_node({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}})
    assert not health.node_eligible


def test_only_ready_pods_of_the_node_count_and_each_of_them_once() -> None:
    ports = [{"name": "a", "protocol": "TCP", "port": 80}, {"name": "b", "protocol": "TCP", "port": 81}]
    spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports, "clusterIP": "10.96.0.9"}
    services = [
        service("web", namespace="shop", healthCheckNodePort=31000, **spec),
        service("none", namespace="shop", healthCheckNodePort=31001, **{**spec, "clusterIP": "10.96.0.8"}),
        service("other", namespace="shop", **{**spec, "externalTrafficPolicy": "Cluster", "clusterIP": "10.96.0.7"}),
    ]
    entries = [
        endpoint("10.244.0.1", node="node1", ready=True),
        endpoint("10.244.0.2", node="node1", ready=True),
        endpoint("10.244.0.3", node="node1", ready=False),
        draining("10.244.0.4", node="node1"),
        endpoint("10.244.1.1", node="node2", ready=True),
    ]
    slices = [endpoint_slice(*entries, of="web", namespace="shop", ports=ports)]
    found = health_checks(service_ports(services, 4), endpoints_by_port(slices, node_name="node1", family=4))
    assert found == {("shop", "web"): HealthCheck(31000, 2), ("shop", "none"): HealthCheck(31001, 0)}

"""labs.cluster.proxy.services: Service -> ServicePorts."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster.proxy.services import PortKey, ServicePort, ports_of, service_ports
from tests.labs.proxy.kube_objects import service


def only(item: dict[str, Any], family: int = 4) -> ServicePort:
    (port,) = ports_of(item, family)
    return port


def test_the_shortest_service() -> None:
    assert only(service()) == ServicePort(PortKey("shop", "web", "", "TCP"), "10.96.0.1", 80)


def test_name_of_named_and_unnamed_ports() -> None:
    assert str(PortKey("shop", "web", "http", "TCP")) == "shop/web:http"
    assert str(PortKey("shop", "web", "", "TCP")) == "shop/web"


def test_ports_of_one_number_and_two_protocols_are_two() -> None:
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    assert [(p.key.port, p.protocol, p.port) for p in ports_of(service(ports=ports), 4)] == [
        ("dns", "udp", 53),
        ("dns-tcp", "tcp", 53),
    ]


@pytest.mark.parametrize(
    "item",
    [
        service(clusterIP="None"),
        service(clusterIP=""),
        service(clusterIP=None),
        service(clusterIP="rubbish"),
        service(type="ExternalName", externalName="example.org"),
        service(labels={"service.kubernetes.io/service-proxy-name": "other"}),
        service(labels={"service.kubernetes.io/headless": ""}),
        service(ports=[]),
        service(ports=[{"name": "http"}]),
        {"metadata": {"namespace": "shop", "name": "web"}},
        {**service(), "spec": None},
    ],
)
def test_not_for_this_proxy(item: dict[str, Any]) -> None:
    assert service_ports([item], 4) == {}


def test_dual_stack_takes_the_address_of_its_family() -> None:
    item = service(clusterIPs=["fd00::1", "10.96.0.1"], clusterIP="fd00::1", ipFamilies=["IPv6", "IPv4"])
    assert only(item, 4).cluster_ip == "10.96.0.1"
    assert only(item, 6).cluster_ip == "fd00::1"


def test_single_stack_has_nothing_in_the_other_family() -> None:
    assert ports_of(service(clusterIPs=["10.96.0.1"], ipFamilies=["IPv4"]), 6) == []
    assert ports_of(service(), 6) == []  # an old API server: no ipFamilies


def test_family_without_an_address_yet() -> None:
    assert ports_of(service(clusterIPs=["10.96.0.1"], ipFamilies=["IPv4", "IPv6"]), 6) == []


def test_addresses_of_the_other_family_are_left_out() -> None:
    item = service(
        type="LoadBalancer",
        externalIPs=["203.0.113.1", "2001:db8::1"],
        ingress=[{"ip": "198.51.100.1"}, {"ip": "2001:db8::2"}, {"hostname": "lb.example"}],
        loadBalancerSourceRanges=["10.0.0.1/8", "fd00::/8"],
    )
    port = only(item)
    assert port.external_ips == ("203.0.113.1",)
    assert port.load_balancer_vips == ("198.51.100.1",)
    assert port.source_ranges == ("10.0.0.0/8",)


@pytest.mark.parametrize(("mode", "vips"), [("VIP", ("198.51.100.1",)), (None, ("198.51.100.1",)), ("Proxy", ())])
def test_load_balancer_ip_mode(mode: str | None, vips: tuple[str, ...]) -> None:
    assert only(service(ingress=[{"ip": "198.51.100.1", "ipMode": mode}])).load_balancer_vips == vips


@pytest.mark.parametrize(
    ("spec", "local", "health"),
    [
        ({"type": "LoadBalancer"}, True, 32000),
        ({"type": "NodePort"}, True, 0),
        ({"type": "ClusterIP", "externalIPs": ["203.0.113.1"]}, True, 0),
        ({"type": "ClusterIP"}, False, 0),  # left over from when it was something else
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"}, False, 0),
    ],
)
def test_external_policy_and_health_check(spec: dict[str, Any], local: bool, health: int) -> None:
    port = only(service(**{"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000, **spec}))
    assert (port.external_policy_local, port.health_check_node_port) == (local, health)


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ({}, None),
        ({"sessionAffinity": "None"}, None),
        ({"sessionAffinity": "ClientIP"}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, 5),
        ({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, None),
    ],
)
def test_session_affinity(spec: dict[str, Any], seconds: int | None) -> None:
    assert only(service(**spec)).affinity_seconds == seconds


@pytest.mark.parametrize(
    ("more", "cluster", "local"),
    [
        ({}, True, False),
        ({"internal_policy_local": True}, False, True),
        ({"internal_policy_local": True, "node_port": 30000}, True, True),
        ({"external_policy_local": True, "node_port": 30000}, True, True),
        ({"external_policy_local": True}, True, False),
    ],
)
def test_which_endpoints_are_used(more: dict[str, Any], cluster: bool, local: bool) -> None:
    port = ServicePort(PortKey("shop", "web", "", "TCP"), "10.96.0.1", 80, **more)
    assert (port.uses_cluster_endpoints, port.uses_local_endpoints) == (cluster, local)


def test_the_deprecated_annotation_wins() -> None:
    new, old = "service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"
    assert only(service(annotations={new: "Auto"})).hints == "Auto"
    assert only(service(annotations={new: "Auto", old: ""})).hints == ""

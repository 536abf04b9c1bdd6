"""What is kept of the API's objects, and what look-ups make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.tracer.api_server import (
    NODES,
    PODS,
    SERVICES,
    SLICES,
    endpoint,
    endpoint_slice,
    node,
    pod,
    service,
)
from tracer.names import cluster as cluster_module
from tracer.names import objects
from tracer.names.changes import Changes
from tracer.names.cluster import Cluster
from tracer.names.model import DestinationName, PodName

Json = dict[str, Any]


class Spy(Changes):
    """Keeps what was touched."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: set[str] = set()
        self.marks = 0

    def touch(self, keys: Any) -> None:
        self.touched |= set(keys)

    def mark(self) -> None:
        self.marks += 1


class Given:
    """A cluster that hears of objects as from a mirror."""

    def __init__(self) -> None:
        self.changes = Spy()
        self.cluster = Cluster(self.changes, self.count_rules_change)
        self.rules_changes = 0
        self._resources = {resource.path: resource for resource in self.cluster.resources()}

    def count_rules_change(self) -> None:
        self.rules_changes += 1

    def put(self, path: str, *documents: Json) -> Cluster:
        resource = self._resources[path]
        for document in documents:
            resource.store.put(_key(document), resource.reduce(document))
        return self.cluster

    def remove(self, path: str, document: Json) -> Cluster:
        self._resources[path].store.remove(_key(document))
        return self.cluster

    def replace(self, path: str, *documents: Json) -> Cluster:
        resource = self._resources[path]
        resource.store.replace({_key(document): resource.reduce(document) for document in documents})
        return self.cluster

    def touched(self) -> set[str]:
        touched, self.changes.touched = self.changes.touched, set()
        return touched


def _key(document: Json) -> str:
    metadata = document["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else metadata["name"]


@pytest.fixture
def given() -> Given:
    return Given()


def pod_name(cluster: Cluster, address: str) -> str | None:
    found = cluster.pod_by_address(address)
    return found.name.pod if found is not None else None


# --- pods ---


def test_all_addresses_of_a_dual_stack_pod(given: Given) -> None:
    cluster = given.put(PODS, pod("web", "10.244.0.5", "fd00:10:244:0:0::0005", uid="u1"))
    assert pod_name(cluster, "10.244.0.5") == pod_name(cluster, "fd00:10:244::5") == "web"
    found = cluster.pod_by_uid("u1")
    assert found is not None
    assert (found.name, found.node) == (PodName("default", "web"), "node1")
    assert pod_name(cluster, "10.244.0.6") is None


def test_an_address_of_the_host_names_no_pod_but_the_uid_does(given: Given) -> None:
    cluster = given.put(PODS, pod("kube-proxy", "172.18.0.2", uid="u1", host_network=True))
    assert cluster.pod_by_address("172.18.0.2") is None
    assert cluster.pod_by_uid("u1") is not None


def test_a_static_pod_has_the_uid_of_its_manifest(given: Given) -> None:
    mirrored = pod("etcd-node1", "172.18.0.2", uid="u1", annotations={objects.STATIC_POD_HASH: "3c4e1d"})
    cluster = given.put(PODS, mirrored)
    assert cluster.pod_by_uid("3c4e1d") is cluster.pod_by_uid("u1") is not None


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_ended_has_given_its_address_back(given: Given, phase: str) -> None:
    given.put(PODS, pod("job", "10.244.0.5", phase=phase))
    cluster = given.put(PODS, pod("web", "10.244.0.5"))
    assert pod_name(cluster, "10.244.0.5") == "web"
    assert pod_name(given.remove(PODS, pod("job", "10.244.0.5", phase=phase)), "10.244.0.5") == "web"


def test_a_pod_that_vanished_keeps_its_name_until_its_address_is_anothers(given: Given) -> None:
    web, other = pod("web", "10.244.0.5", uid="u1"), pod("other", "10.244.0.5", uid="u2")
    given.put(PODS, web)
    cluster = given.remove(PODS, web)
    assert pod_name(cluster, "10.244.0.5") == "web"
    assert cluster.pod_by_uid("u1") is not None
    given.put(PODS, other)
    assert pod_name(cluster, "10.244.0.5") == "other"
    given.remove(PODS, other)
    assert pod_name(cluster, "10.244.0.5") == "other"
    assert cluster.pod_by_uid("u1") is not None


def test_what_is_remembered_is_forgotten_in_the_end(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = given.put(PODS, pod("web", "10.244.0.5", uid="u1"))
    now = [1000.0]
    monkeypatch.setattr("tracer.names.index.time.monotonic", lambda: now[0])
    given.remove(PODS, pod("web", "10.244.0.5", uid="u1"))
    now[0] += cluster_module.GONE_SECONDS - 1
    assert pod_name(cluster, "10.244.0.5") == "web"
    now[0] += 2
    assert pod_name(cluster, "10.244.0.5") is None
    assert cluster.pod_by_uid("u1") is None


def test_a_recreated_pod_of_the_same_name(given: Given) -> None:
    given.put(PODS, pod("db-0", "10.244.0.5", uid="u1"))
    cluster = given.put(PODS, pod("db-0", "10.244.0.9", uid="u2", node="node2"))
    for uid, expected in (("u1", "node1"), ("u2", "node2")):
        found = cluster.pod_by_uid(uid)
        assert found is not None
        assert found.node == expected
    assert pod_name(cluster, "10.244.0.5") == pod_name(cluster, "10.244.0.9") == "db-0"


def test_two_that_claim_one_address_name_nobody_unless_one_is_about_to_go(given: Given) -> None:
    cluster = given.put(PODS, pod("a", "10.244.0.5"), pod("b", "10.244.0.5"))
    assert pod_name(cluster, "10.244.0.5") is None
    given.put(PODS, pod("a", "10.244.0.5", terminating=True))
    assert pod_name(cluster, "10.244.0.5") == "b"
    given.remove(PODS, pod("b", "10.244.0.5"))
    assert pod_name(cluster, "10.244.0.5") == "a"


def test_a_relist_without_a_pod_is_its_end(given: Given) -> None:
    given.replace(PODS, pod("a", "10.244.0.5"), pod("b", "10.244.0.6"))
    cluster = given.replace(PODS, pod("b", "10.244.0.6"), pod("c", "10.244.0.5"))
    assert pod_name(cluster, "10.244.0.5") == "c"
    assert pod_name(cluster, "10.244.0.6") == "b"


# --- Services ---


def test_all_addresses_of_a_service(given: Given) -> None:
    web = service(
        "web",
        "10.96.0.10",
        "fd00:10:96::000a",
        ports=[
            {"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080},
            {"name": "dns", "protocol": "UDP", "port": 80, "nodePort": 30080},
            {"port": 81},
        ],
        externalIPs=["203.0.113.1"],
        ingress=["198.51.100.1"],
        type="LoadBalancer",
    )
    cluster = given.put(SERVICES, web)

    def name(port_name: str | None, kind: str) -> DestinationName:
        return DestinationName("default", "web", port_name, kind)

    assert cluster.service("TCP", "10.96.0.10", 80) == name("http", "ClusterIP")
    assert cluster.service("UDP", "10.96.0.10", 80) == name("dns", "ClusterIP")
    assert cluster.service("TCP", "fd00:10:96::a", 80) == name("http", "ClusterIP")
    assert cluster.service("TCP", "10.96.0.10", 81) == name(None, "ClusterIP")
    assert cluster.service("TCP", "203.0.113.1", 80) == name("http", "ExternalIP")
    assert cluster.service("UDP", "198.51.100.1", 80) == name("dns", "LoadBalancer")
    assert cluster.service("SCTP", "10.96.0.10", 80) is None
    assert cluster.service("TCP", "10.96.0.10", 82) is None
    assert cluster.service_address("10.96.0.10") == name(None, "ClusterIP")
    assert cluster.node_port("TCP", 30080) == name("http", "NodePort")
    assert cluster.node_port("UDP", 30080) == name("dns", "NodePort")
    assert cluster.node_port("TCP", 30081) is None


@pytest.mark.parametrize(
    "odd",
    [
        service("headless", "None"),
        service("pending"),
        service("outside", type="ExternalName", externalName="example.com", externalIPs=["203.0.113.1"]),
    ],
    ids=lambda document: document["metadata"]["name"],
)
def test_services_without_an_address(given: Given, odd: Json) -> None:
    cluster = given.put(SERVICES, odd)
    assert cluster.service("TCP", "None", 80) is None
    assert cluster.service("TCP", "203.0.113.1", 80) is None


def test_services_that_share_an_external_ip_are_told_apart_by_port_or_not_at_all(given: Given) -> None:
    one = service("one", "10.96.0.1", externalIPs=["203.0.113.1"])
    two = service("two", "10.96.0.2", externalIPs=["203.0.113.1"], ports=[{"port": 443, "protocol": "TCP"}])
    cluster = given.put(SERVICES, one, two)
    found = cluster.service("TCP", "203.0.113.1", 443)
    assert found is not None
    assert found.service == "two"
    assert cluster.service_address("203.0.113.1") == DestinationName(kind="ExternalIP")
    given.put(SERVICES, service("two", "10.96.0.2", externalIPs=["203.0.113.1"]))
    assert cluster.service("TCP", "203.0.113.1", 80) == DestinationName(kind="ExternalIP")
    given.remove(SERVICES, one)
    assert cluster.service("TCP", "203.0.113.1", 80) == DestinationName("default", "two", "http", "ExternalIP")


def test_a_service_that_changes_and_goes(given: Given) -> None:
    given.put(SERVICES, service("web", "10.96.0.1", ports=[{"port": 80, "nodePort": 30080}]))
    cluster = given.put(SERVICES, service("web", "10.96.0.1", ports=[{"port": 81}]))
    assert cluster.service("TCP", "10.96.0.1", 80) is None
    assert cluster.service("TCP", "10.96.0.1", 81) is not None
    assert cluster.node_port("TCP", 30080) is None
    given.remove(SERVICES, service("web"))
    assert cluster.service("TCP", "10.96.0.1", 81) is None
    assert cluster.service_address("10.96.0.1") is None


# --- EndpointSlices ---


def test_pods_on_the_hosts_network_are_told_apart_by_port(given: Given) -> None:
    cluster = given.put(
        SLICES,
        endpoint_slice("api-1", "api", 6443, endpoint("172.18.0.2", "apiserver")),
        endpoint_slice("etcd-1", "etcd", 2379, endpoint("172.18.0.2", "etcd")),
        endpoint_slice("x-1", "x", 9100, endpoint("172.18.0.2", "a")),
        endpoint_slice("x-2", "x", 9100, endpoint("172.18.0.2", "b")),
    )
    assert cluster.pod_by_endpoint("172.18.0.2", 6443) == PodName("default", "apiserver")
    assert cluster.pod_by_endpoint("172.18.0.2", 2379) == PodName("default", "etcd")
    assert cluster.pod_by_endpoint("172.18.0.2", 22) is None
    assert cluster.pod_by_endpoint("172.18.0.2", 9100) is None


def test_an_endpoint_in_two_slices_stays_until_it_is_in_none(given: Given) -> None:
    one = endpoint_slice("x-1", "x", 80, endpoint("172.18.0.2", "a"))
    two = endpoint_slice("x-2", "x", 80, endpoint("172.18.0.2", "a"))
    cluster = given.put(SLICES, one, two)
    given.remove(SLICES, one)
    assert cluster.pod_by_endpoint("172.18.0.2", 80) == PodName("default", "a")
    given.remove(SLICES, two)
    assert cluster.pod_by_endpoint("172.18.0.2", 80) is None


def test_endpoints_that_are_no_pods(given: Given) -> None:
    manual = endpoint_slice("x", "x", 80, {"addresses": ["192.0.2.1"]}, {"addresses": ["db.example"], "conditions": {}})
    assert given.put(SLICES, manual).pod_by_endpoint("192.0.2.1", 80) is None


@pytest.mark.parametrize(
    ("conditions", "nothing_to_send_to"),
    [
        ({"ready": True}, False),
        ({"ready": None}, False),
        ({"ready": False}, True),
        ({"ready": False, "serving": True}, False),
        ({"ready": False, "serving": False}, True),
    ],
)
def test_no_endpoints(given: Given, conditions: Json, nothing_to_send_to: bool) -> None:
    cluster = given.put(SERVICES, service("web", "10.96.0.1"))
    assert not cluster.has_no_endpoints("default", "web")  # the slices are not loaded
    given.replace(SLICES)
    assert cluster.has_no_endpoints("default", "web")
    assert not cluster.has_no_endpoints("default", "unknown")
    given.put(SLICES, endpoint_slice("web-1", "web", 80, endpoint("10.244.0.5", "a", **conditions)))
    assert cluster.has_no_endpoints("default", "web") is nothing_to_send_to
    given.put(SLICES, endpoint_slice("web-1", "web", 80))
    assert cluster.has_no_endpoints("default", "web")


# --- nodes ---


def test_nodes_by_address_and_hostname(given: Given) -> None:
    renamed = node("n2", "172.18.0.3")
    renamed["metadata"]["labels"]["kubernetes.io/hostname"] = renamed["status"]["addresses"][1]["address"] = "box"
    cluster = given.put(NODES, node("node1", "172.18.0.2", "fc00::2", pod_cidrs=("10.244.0.0/24",)), renamed)
    assert cluster.node_by_address("172.18.0.2") == cluster.node_by_address("fc00::2") == "node1"
    assert cluster.node_by_hostname("node1") == "node1"
    assert cluster.node_by_hostname("box") == "n2"
    assert cluster.node_by_hostname("laptop") is None
    assert cluster.in_pod_range("10.244.0.77")
    assert not cluster.in_pod_range("10.244.1.77")
    given.remove(NODES, node("node1"))
    assert cluster.node_by_address("172.18.0.2") is None
    assert not cluster.in_pod_range("10.244.0.77")


def test_loaded_is_when_every_address_is_known(given: Given) -> None:
    for path in (PODS, SERVICES):
        assert not given.replace(path).loaded()
    assert given.replace(NODES).loaded()


# --- changes ---


@pytest.mark.parametrize(
    ("path", "before", "after", "touched"),
    [
        (PODS, pod("a", "10.0.0.1", uid="u"), pod("a", "10.0.0.1", uid="u"), set()),
        (PODS, pod("a", uid="u"), pod("a", "10.0.0.1", uid="u"), {"u", "10.0.0.1"}),
        (SERVICES, service("a", "10.96.0.1"), service("a", "10.96.0.1", "fd00::1"), {"fd00::1"}),
        (
            SERVICES,
            service("a", "10.96.0.1", ports=[{"port": 1, "nodePort": 30001}]),
            service("a", "10.96.0.1", ports=[{"port": 1, "nodePort": 30002}]),
            {"port 30001", "port 30002"},
        ),
        (
            SLICES,
            endpoint_slice("a-1", "a", 80, endpoint("10.0.0.1", "a")),
            endpoint_slice("a-1", "a", 80, endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b")),
            {"10.0.0.2"},
        ),
        (
            SLICES,
            endpoint_slice("a-1", "a", 80, endpoint("10.0.0.1", "a")),
            endpoint_slice("a-1", "a", 80, endpoint("10.0.0.1", "a", ready=False)),
            {"default/a"},
        ),
    ],
)
def test_only_what_changed_is_touched(given: Given, path: str, before: Json, after: Json, touched: set[str]) -> None:
    given.put(path, before)
    given.touched()
    given.put(path, after)
    assert given.touched() == touched


def test_a_heartbeat_of_a_node_changes_nothing(given: Given) -> None:
    given.put(NODES, node("node1", "172.18.0.2"))
    before = given.changes.marks
    beating = node("node1", "172.18.0.2")
    beating["status"]["conditions"] = [{"type": "Ready", "lastHeartbeatTime": "2026-11-22T09:00:00Z"}]
    given.put(NODES, beating)
    assert given.changes.marks == before
    given.put(NODES, node("node1", "172.18.0.9"))
    assert given.changes.marks == before + 1


def test_the_rules_are_expected_to_change_with_services_and_slices_only(given: Given) -> None:
    given.put(PODS, pod("a", "10.0.0.1"))
    given.put(NODES, node("node1", "172.18.0.2"))
    assert given.rules_changes == 0
    given.put(SERVICES, service("a", "10.96.0.1"))
    given.put(SLICES, endpoint_slice("a-1", "a", 80))
    assert given.rules_changes == 2


# --- objects that are none ---


@pytest.mark.parametrize("reduce", [objects.pod, objects.service, objects.endpoint_slice, objects.node])
@pytest.mark.parametrize(
    "document",
    [
        {},
        {"metadata": None},
        {"metadata": {}},
        {"metadata": {"name": "a", "namespace": "b"}, "spec": 7, "status": 7, "endpoints": 7},
        {"metadata": {"name": "a", "namespace": "b"}, "spec": [], "status": [], "endpoints": {"x": 1}, "ports": [1]},
        {"metadata": {"name": "a", "namespace": "b"}, "spec": {"ports": [{}], "podCIDRs": 7}, "ports": "ab"},
    ],
)
def test_what_is_no_such_object_raises_only_what_the_mirror_expects(
    reduce: Callable[[Json], object], document: Json
) -> None:
    try:
        reduce(document)
    except (AttributeError, KeyError, TypeError, ValueError):
        return


def test_addresses_that_are_none_are_left_out(given: Given) -> None:
    cluster = given.put(
        SERVICES, service("a", "10.96.0.1", externalIPs=["", None, 7, "host.example", "1.2.3.4/5", "::g"])
    )
    assert cluster.service_address("10.96.0.1") == DestinationName("default", "a", None, "ClusterIP")

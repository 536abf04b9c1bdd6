"""Defaults, ClusterIPs and node ports, as the API server gives them."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster.admission import NODE_PORTS, Invalid, NoNamespace, NoSuchKind, admit, qos_class, replace
from labs.cluster.options import AddressPlan, ClusterOptions
from labs.cluster.resources import SERVICES
from labs.cluster.store import AlreadyExists, Store

IPV4, DUAL = AddressPlan((4,)), AddressPlan((4, 6))


@pytest.fixture
def store() -> Store:
    store = Store()
    admit(store, IPV4, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    return store


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    spec = {"ports": [{"port": 80}], "selector": {"app": "web"}, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def test_a_service_gets_its_defaults(store: Store) -> None:
    spec = admit(store, IPV4, service())["spec"]
    assert spec["type"] == "ClusterIP"
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert spec["clusterIP"].startswith("10.96.")


def test_session_affinity_has_a_timeout(store: Store) -> None:
    spec = admit(store, IPV4, service(sessionAffinity="ClientIP"))["spec"]
    assert spec["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}


def test_cluster_ips_are_given_once(store: Store) -> None:
    given = {admit(store, IPV4, service(f"s{number}"))["spec"]["clusterIP"] for number in range(300)}
    assert len(given) == 300


def test_a_cluster_ip_that_is_taken_or_foreign_is_refused(store: Store) -> None:
    admit(store, IPV4, service("one", clusterIP="10.96.7.7"))
    with pytest.raises(Invalid, match="already allocated"):
        admit(store, IPV4, service("two", clusterIP="10.96.7.7"))
    with pytest.raises(Invalid, match="not in the valid range"):
        admit(store, IPV4, service("three", clusterIP="192.0.2.1"))


def test_dual_stack(store: Store) -> None:
    both = admit(store, DUAL, service(ipFamilyPolicy="PreferDualStack"))["spec"]
    assert both["ipFamilies"] == ["IPv4", "IPv6"]
    assert [":" in ip for ip in both["clusterIPs"]] == [False, True]
    six = admit(store, DUAL, service("six", ipFamilies=["IPv6"]))["spec"]
    assert ":" in six["clusterIP"]
    with pytest.raises(Invalid, match="dual-stack"):
        admit(store, IPV4, service("no", ipFamilyPolicy="RequireDualStack"))
    one = admit(store, IPV4, service("prefer", ipFamilyPolicy="PreferDualStack"))["spec"]
    assert one["ipFamilies"] == ["IPv4"]


def test_headless_and_external_name_get_no_address(store: Store) -> None:
    assert admit(store, IPV4, service("a", clusterIP="None"))["spec"]["clusterIPs"] == ["None"]
    spec = admit(store, IPV4, service("b", type="ExternalName", externalName="example.org"))["spec"]
    assert "clusterIP" not in spec


def test_node_ports(store: Store) -> None:
    spec = admit(store, IPV4, service("a", type="NodePort"))["spec"]
    assert spec["ports"][0]["nodePort"] in NODE_PORTS
    assert spec["externalTrafficPolicy"] == "Cluster"
    admit(store, IPV4, service("b", type="NodePort", ports=[{"port": 80, "nodePort": 30500}]))
    with pytest.raises(Invalid, match="already allocated"):
        admit(store, IPV4, service("c", type="NodePort", ports=[{"port": 80, "nodePort": 30500}]))
    # The same number for the other protocol is another port.
    admit(store, IPV4, service("d", type="NodePort", ports=[{"port": 80, "nodePort": 30500, "protocol": "UDP"}]))
    with pytest.raises(Invalid, match="30000-32767"):
        admit(store, IPV4, service("e", type="NodePort", ports=[{"port": 80, "nodePort": 80}]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"apiVersion": "v1", "kind": "Pod", "metadata": {}}, r"metadata\.name: Required"),
        ({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}, r"spec\.containers: Required"),
        (
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "x"}]}},
            r"containers\[0\]\.image: Required",
        ),
        ({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}, "selector"),
    ],
)
def test_what_is_no_object_is_refused(store: Store, item: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        admit(store, IPV4, item)


def test_a_kind_must_be_known(store: Store) -> None:
    with pytest.raises(NoSuchKind, match='no matches for kind "None" in version "None"'):
        admit(store, IPV4, {})


def test_a_namespace_must_exist(store: Store) -> None:
    lost = service()
    lost["metadata"]["namespace"] = "nowhere"
    with pytest.raises(NoNamespace, match='namespaces "nowhere" not found'):
        admit(store, IPV4, lost)


def test_a_name_is_taken_once(store: Store) -> None:
    admit(store, IPV4, service())
    with pytest.raises(AlreadyExists):
        admit(store, IPV4, service())


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}, "Burstable"),
    ],
)
def test_quality_of_service(resources: dict[str, Any], expected: str) -> None:
    assert qos_class({"containers": [{"resources": resources}]}) == expected


def test_the_plan_of_addresses_is_kinds() -> None:
    plan = ClusterOptions(ip_family="dual").plan
    assert plan.node_addresses(1) == ["172.18.0.2/16", "fc00:f853:ccd:e793::2/64"]
    assert plan.pod_cidrs(1) == ["10.244.0.0/24", "fd00:10:244::/64"]
    assert plan.pod_cidrs(3) == ["10.244.2.0/24", "fd00:10:244:2::/64"]
    assert plan.gateways == ["172.18.0.1/16", "fc00:f853:ccd:e793::1/64"]


def test_addresses_and_ports_come_free_again(store: Store) -> None:
    taken = {"clusterIP": "10.96.7.7", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30500}]}
    one = admit(store, IPV4, service("one", **taken))
    # What a Service has itself is not in its way.
    changed = {**one, "metadata": {**one["metadata"], "labels": {"a": "b"}}}
    assert replace(store, IPV4, SERVICES, one, changed)["spec"] == one["spec"]
    with pytest.raises(Invalid, match="provided IP is already allocated"):
        admit(store, IPV4, service("two", **taken))
    store.delete(SERVICES, "default", "one")
    assert admit(store, IPV4, service("two", **taken))["spec"]["ports"][0]["nodePort"] == 30500

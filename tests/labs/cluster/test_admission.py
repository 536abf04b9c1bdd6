"""Defaults, ClusterIPs and node ports, as the API server gives them."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster.admission import NODE_PORTS, Invalid, NoNamespace, NoSuchKind, admit, qos_class, replace
from labs.cluster.allocation import NoPort
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


LOCAL = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}


def change(store: Store, item: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Update a Service; None removes a field. Gives its spec afterwards."""
    wanted = {field: value for field, value in {**item["spec"], **spec}.items() if value is not None}
    current = store.get(SERVICES, "default", item["metadata"]["name"])
    found: dict[str, Any] = replace(store, IPV4, SERVICES, current, {**current, "spec": wanted})["spec"]
    return found


class TestHealthCheckNodePort:
    def test_a_local_load_balancer_has_one_of_its_own(self, store: Store) -> None:
        spec = admit(store, IPV4, service(**LOCAL))["spec"]
        assert spec["healthCheckNodePort"] in NODE_PORTS
        assert spec["healthCheckNodePort"] != spec["ports"][0]["nodePort"]

    @pytest.mark.parametrize(
        "spec",
        [{"type": "LoadBalancer"}, {"type": "NodePort", "externalTrafficPolicy": "Local"}, {"type": "ClusterIP"}],
    )
    def test_nobody_else_has_one(self, store: Store, spec: dict[str, Any]) -> None:
        assert "healthCheckNodePort" not in admit(store, IPV4, service(**spec))["spec"]
        with pytest.raises(Invalid) as refused:
            admit(store, IPV4, service("x", **spec, healthCheckNodePort=30700))
        assert str(refused.value.errors[0]) == (
            "spec.healthCheckNodePort: Invalid value: 30700: may only be set when `type` is 'LoadBalancer' "
            "and `externalTrafficPolicy` is 'Local'"
        )

    def test_one_may_be_asked_for_once(self, store: Store) -> None:
        assert admit(store, IPV4, service(**LOCAL, healthCheckNodePort=30700))["spec"]["healthCheckNodePort"] == 30700
        text = "failed to allocate requested HealthCheck NodePort {}: provided port is "
        with pytest.raises(NoPort, match=text.format(30700) + "already allocated"):
            admit(store, IPV4, service("x", **LOCAL, healthCheckNodePort=30700))
        with pytest.raises(
            NoPort, match=text.format(80) + "not in the valid range. The range of valid ports is 30000-32767"
        ):
            admit(store, IPV4, service("x", **LOCAL, healthCheckNodePort=80))
        for protocol in ("TCP", "UDP"):
            ports = [{"port": 80, "protocol": protocol, "nodePort": 30700}]
            with pytest.raises(Invalid, match="provided port is already allocated"):
                admit(store, IPV4, service("x", type="NodePort", ports=ports))
        store.delete(SERVICES, "default", "web")
        admit(store, IPV4, service("x", **LOCAL, healthCheckNodePort=30700))

    def test_it_stays_while_it_is_needed(self, store: Store) -> None:
        item = admit(store, IPV4, service(**LOCAL))
        number = item["spec"]["healthCheckNodePort"]
        assert change(store, item, healthCheckNodePort=None)["healthCheckNodePort"] == number
        with pytest.raises(Invalid) as refused:
            change(store, item, healthCheckNodePort=number + 1 if number + 1 in NODE_PORTS else number - 1)
        assert [str(error) for error in refused.value.errors] == [
            "spec.healthCheckNodePort: Forbidden: field is immutable"
        ]

    @pytest.mark.parametrize(
        "other", [{"externalTrafficPolicy": "Cluster"}, {"type": "NodePort"}, {"type": "ClusterIP"}]
    )
    def test_it_goes_and_comes_with_the_need(self, store: Store, other: dict[str, Any]) -> None:
        item = admit(store, IPV4, service(**LOCAL))
        assert "healthCheckNodePort" not in change(store, item, **other)
        assert change(store, item, **LOCAL, healthCheckNodePort=None)["healthCheckNodePort"] in NODE_PORTS


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"loadBalancerSourceRanges": ["10.0.0.0/8", "10.1.1.1"], "type": "LoadBalancer"},
            'spec.LoadBalancerSourceRanges: Invalid value: "[10.0.0.0/8 10.1.1.1]": must be a list of IP ranges. '
            "For example, 10.240.0.0/24,10.250.0.0/24 ",
        ),
        (
            {"loadBalancerSourceRanges": ["10.0.0.0/8"]},
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            {"loadBalancerClass": "example.com/mine"},
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            {"allocateLoadBalancerNodePorts": False},
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
    ],
)
def test_what_only_load_balancers_may_have(store: Store, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid) as refused:
        admit(store, IPV4, service(**spec))
    assert [str(error) for error in refused.value.errors] == [message]


def test_source_ranges_may_have_blanks_around_them_and_an_annotation(store: Store) -> None:
    ranges = [" 10.0.0.0/8 ", "2001:db8::/32"]
    assert admit(store, IPV4, service(type="LoadBalancer", loadBalancerSourceRanges=ranges))["spec"]
    item = service("b", type="LoadBalancer")
    item["metadata"]["annotations"] = {"service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8, x"}
    with pytest.raises(
        Invalid, match=r"metadata.annotations\[service.beta.kubernetes.io/load-balancer-source-ranges\]: Inv"
    ):
        admit(store, IPV4, item)


def test_the_class_of_a_load_balancer_stays(store: Store) -> None:
    item = admit(store, IPV4, service(type="LoadBalancer", loadBalancerClass="example.com/mine"))
    with pytest.raises(Invalid) as refused:
        change(store, item, loadBalancerClass="example.com/yours")
    assert [str(error) for error in refused.value.errors] == [
        'spec.loadBalancerClass: Invalid value: "example.com/yours": may not change once set'
    ]
    with pytest.raises(Invalid, match="may not change once set"):
        change(store, item, loadBalancerClass=None)
    assert "loadBalancerClass" not in change(store, item, type="ClusterIP")
    with pytest.raises(Invalid, match="must consist of alphanumeric characters"):
        admit(store, IPV4, service("x", type="LoadBalancer", loadBalancerClass="no class"))


@pytest.mark.parametrize(
    ("version", "kind", "wanted"),
    [
        ("v1", "Node", {"spec": {}, "status": {}}),
        ("v1", "Event", {"involvedObject": {}, "source": {}}),
        ("apps/v1", "ControllerRevision", {"revision": 0}),
        ("discovery.k8s.io/v1", "EndpointSlice", None),
    ],
)
def test_what_is_a_struct_is_there_also_when_nobody_says_anything_of_it(
    store: Store, version: str, kind: str, wanted: dict[str, Any] | None
) -> None:
    """Every component may count on it, as those in Go may."""
    item = {"apiVersion": version, "kind": kind, "metadata": {"name": "bare"}}
    if wanted is None:
        with pytest.raises(Invalid, match="addressType"):
            admit(store, IPV4, item)
    else:
        assert admit(store, IPV4, item).items() >= wanted.items()


def test_what_is_inside_is_complete_as_well(store: Store) -> None:
    node: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}
    node |= {"spec": {"taints": [{"key": "a"}]}, "status": {"addresses": [{"address": "192.0.2.1"}]}}
    stored = admit(store, IPV4, node)
    assert stored["spec"]["taints"] == [{"key": "a", "effect": ""}]
    assert stored["status"]["addresses"] == [{"address": "192.0.2.1", "type": ""}]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"clusterIP": "x"}, 'spec.clusterIPs[0]: Invalid value: "x": must be a valid IP address'),
        ({"clusterIP": "fe80::1%eth0"}, "must be a valid IP address"),
        ({"clusterIPs": ["10.96.1.1"]}, "must be empty when `clusterIP` is not specified"),
        ({"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.2"]}, "first value must match `clusterIP`"),
        ({"clusterIP": "None", "clusterIPs": ["None", "10.96.1.2"]}, "'None' must be the first and only value"),
        ({"clusterIP": "10.96.1.1", "ipFamilies": ["IPv6"]}, "expected an IPv6 value as indicated by `ipFamilies[0]`"),
        (
            {"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1", "10.96.1.2"], "ipFamilyPolicy": "RequireDualStack"},
            'Invalid value: []string{"10.96.1.1", "10.96.1.2"}: may specify no more than one IP for each IP family',
        ),
        (
            {"ipFamilies": ["IPv4", "IPv6"]},
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when "
            "multiple IP families are specified",
        ),
        (
            {"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.1.1"},
            "spec.clusterIPs: Forbidden: may not",
        ),
        ({"externalIPs": ["127.0.0.1"]}, "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        ({"externalIPs": ["fe80::1"]}, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
            "timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
        ),
        ({"ports": [{"port": 80, "appProtocol": "a b"}]}, 'spec.ports[0].appProtocol: Invalid value: "a b": '),
    ],
)
def test_addresses_and_families_that_contradict_each_other(store: Store, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid) as caught:
        admit(store, DUAL, service(**spec))
    assert words in caught.value.message


def test_a_service_of_two_families_becomes_one_of_its_first(store: Store) -> None:
    both = admit(store, DUAL, service(ipFamilyPolicy="PreferDualStack"))
    changed = {**both, "spec": {**both["spec"], "ipFamilyPolicy": "SingleStack"}}
    spec = replace(store, DUAL, SERVICES, both, changed)["spec"]
    assert (spec["ipFamilies"], spec["clusterIPs"]) == (["IPv4"], both["spec"]["clusterIPs"][:1])


@pytest.mark.parametrize("plan", [IPV4, DUAL])
def test_a_headless_service_that_chooses_no_pods_may_have_endpoints_of_any_family(
    store: Store, plan: AddressPlan
) -> None:
    spec = admit(store, plan, service(clusterIP="None", selector=None))["spec"]
    assert (spec["ipFamilyPolicy"], spec["ipFamilies"]) == ("RequireDualStack", ["IPv4", "IPv6"])
    spec = admit(store, plan, service("other", clusterIP="None"))["spec"]
    assert (spec["ipFamilyPolicy"], spec["ipFamilies"]) == ("SingleStack", ["IPv4"])


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("Endpoints", {"subsets": [{"addresses": [{"ip": "x"}]}]}, "subsets[0].addresses[0].ip: Invalid value"),
        ("Endpoints", {"subsets": [{"ports": [{"port": 80}]}]}, "must specify `addresses` or `notReadyAddresses`"),
        ("Endpoints", {"subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{}]}]}, "ports[0].port: Invalid"),
        ("EndpointSlice", {"endpoints": [{"addresses": ["fd00::1"]}]}, "must be a valid IPv4 address"),
        ("EndpointSlice", {"endpoints": [{"addresses": ["127.0.0.1"]}]}, "may not be in the loopback range"),
        ("EndpointSlice", {"ports": [{"port": 1}, {"port": 2}]}, 'ports[1].name: Duplicate value: ""'),
        ("EndpointSlice", {"ports": [{"port": 70000}]}, "ports[0].port: Invalid value: 70000: must be between 1 and"),
    ],
)
def test_endpoints_that_nobody_can_reach(store: Store, kind: str, more: dict[str, Any], words: str) -> None:
    item = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "e"}, **more}
    if kind == "EndpointSlice":
        item |= {"apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4"}
    with pytest.raises(Invalid) as caught:
        admit(store, IPV4, item)
    assert words in caught.value.message

"""Where pods go, why they can't, and who has to leave a node."""

from __future__ import annotations

import datetime
from fractions import Fraction
from typing import Any

import pytest

from labs.cluster import scheduler, taints
from labs.cluster.admission import admit
from labs.cluster.options import AddressPlan
from labs.cluster.quantities import is_quantity, parse
from labs.cluster.resources import EVENTS, NODES, PODS
from labs.cluster.store import Store
from tests.labs.cluster.stores import store_with

PLAN = AddressPlan((4,))
ALLOCATABLE = {"cpu": "2", "memory": "1Gi", "pods": "3"}


@pytest.fixture
def store() -> Store:
    store = store_with("default")
    for number, zone in ((1, "a"), (2, "a"), (3, "b")):
        name = f"node{number}"
        labels = {"kubernetes.io/hostname": name, "zone": zone}
        store.create(
            NODES, {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"allocatable": ALLOCATABLE}}
        )
    return store


def pod(store: Store, name: str, labels: dict[str, str] | None = None, **spec: Any) -> None:
    resources, ports = spec.pop("resources", {}), spec.pop("ports", [])
    container = {"name": "x", "image": "client", "resources": resources, "ports": ports}
    metadata = {"name": name, "labels": labels or {}}
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **spec}}
    admit(store, PLAN, item)


def set_node(store: Store, name: str, **spec: Any) -> None:
    node = store.get(NODES, "", name)
    store.update(NODES, {**node, "spec": {**node["spec"], **spec}})


def places(store: Store) -> dict[str, str | None]:
    scheduler.reconciler(store)()
    return {item["metadata"]["name"]: item["spec"].get("nodeName") for item in store.list(PODS)}


def told(store: Store, name: str) -> str:
    """Why a pod waits, as its condition says it; the Event says the same."""
    scheduler.reconciler(store)()
    (condition,) = store.get(PODS, "default", name)["status"]["conditions"]
    (event,) = (item for item in store.list(EVENTS) if item["involvedObject"]["name"] == name)
    assert (condition["status"], condition["reason"]) == ("False", "Unschedulable")
    assert (event["reason"], event["message"]) == ("FailedScheduling", condition["message"])
    return str(condition["message"])


TAINT = {"key": "team", "value": "blue", "effect": "NoSchedule"}
NO_HELP = "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
NO_VICTIMS = "preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."


def test_a_selector_that_no_node_matches_is_told_in_the_schedulers_words(store: Store) -> None:
    pod(store, "a", nodeSelector={"disk": "ssd"})
    assert told(store, "a") == (
        f"0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. {NO_HELP}"
    )


def test_each_node_is_counted_under_its_own_reason(store: Store) -> None:
    set_node(store, "node1", unschedulable=True)
    set_node(store, "node2", taints=[TAINT])
    pod(store, "a", resources={"requests": {"cpu": "3", "memory": "2Gi"}})
    assert told(store, "a") == (
        "0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) had untolerated taint "
        "{team: blue}, 1 node(s) were unschedulable. preemption: 0/3 nodes are available: "
        "1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
    )


def test_a_pod_that_waits_is_told_of_once_and_placed_when_a_node_fits(store: Store) -> None:
    for name in ("node1", "node2", "node3"):
        set_node(store, name, unschedulable=True)
    pod(store, "a")
    told(store, "a")
    version = store.version
    told(store, "a")
    assert store.version == version
    set_node(store, "node2", unschedulable=False)
    assert places(store) == {"a": "node2"}


def test_cordoned_and_tainted_nodes_get_no_pods_that_do_not_bear_it(store: Store) -> None:
    set_node(store, "node1", unschedulable=True)
    set_node(store, "node2", taints=[TAINT])
    pod(store, "a")
    pod(store, "b")
    pod(store, "c", tolerations=[{"key": "team", "operator": "Equal", "value": "blue", "effect": "NoSchedule"}])
    pod(store, "d", tolerations=[{"key": "team", "operator": "Equal", "value": "red"}])
    assert places(store) == {"a": "node3", "b": "node3", "c": "node2", "d": "node3"}


def test_requests_fill_a_node_and_no_more_than_that(store: Store) -> None:
    for number in range(7):
        pod(store, f"p{number}", resources={"requests": {"cpu": "1"}})
    found = places(store)
    assert sorted(filter(None, found.values())) == ["node1", "node1", "node2", "node2", "node3", "node3"]
    (waiting,) = (name for name, node in found.items() if node is None)
    assert told(store, waiting) == f"0/3 nodes are available: 3 Insufficient cpu. {NO_VICTIMS}"


def test_a_node_takes_as_many_pods_as_it_says(store: Store) -> None:
    for number in range(10):
        pod(store, f"p{number}")
    (waiting,) = (name for name, node in places(store).items() if node is None)
    assert told(store, waiting) == f"0/3 nodes are available: 3 Too many pods. {NO_VICTIMS}"


def test_the_greediest_init_container_counts(store: Store) -> None:
    init = {"name": "i", "image": "client", "resources": {"requests": {"cpu": "3"}}}
    pod(store, "a", initContainers=[init], resources={"requests": {"cpu": "100m"}})
    assert "3 Insufficient cpu." in told(store, "a")


def test_host_ports_are_taken_once_on_each_node(store: Store) -> None:
    for number in range(4):
        pod(store, f"p{number}", ports=[{"containerPort": 80, "hostPort": 8080}])
    found = places(store)
    (waiting,) = (name for name, node in found.items() if node is None)
    assert told(store, waiting) == (
        f"0/3 nodes are available: 3 node(s) didn't have free ports for the requested pod ports. {NO_VICTIMS}"
    )


def test_pods_keep_away_from_each_other_and_go_to_each_other(store: Store) -> None:
    def term(key: str) -> list[dict[str, Any]]:
        return [{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": key}]

    required = "requiredDuringSchedulingIgnoredDuringExecution"
    apart = {"podAntiAffinity": {required: term("zone")}}
    pod(store, "web1", {"app": "web"}, affinity=apart)
    pod(store, "web2", {"app": "web"}, affinity=apart)
    pod(store, "web3", {"app": "web"}, affinity=apart)
    pod(store, "xcache", affinity={"podAffinity": {required: term("kubernetes.io/hostname")}})
    found = places(store)
    assert (found["web1"], found["web2"], found["web3"]) == ("node1", "node3", None)
    assert found["xcache"] in ("node1", "node3")
    assert told(store, "web3") == (
        f"0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules. {NO_VICTIMS}"
    )
    pod(store, "yweb", {"app": "web"})
    assert told(store, "yweb") == (
        f"0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules. {NO_VICTIMS}"
    )


def test_the_first_of_those_that_want_to_be_together_may_start(store: Store) -> None:
    together = {
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "zone"}
            ]
        }
    }
    pod(store, "a", {"app": "other"}, affinity=together)
    pod(store, "b", {"app": "web"}, affinity=together)
    pod(store, "c", {"app": "web"}, affinity=together)
    found = places(store)
    assert found["a"] is None
    assert {found["b"], found["c"]} <= {"node1", "node2"}


def test_spread_constraints(store: Store) -> None:
    spread = {
        "maxSkew": 1,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    for number in range(4):
        pod(store, f"p{number}", {"app": "web"}, topologySpreadConstraints=[spread])
    zones = {"node1": "a", "node2": "a", "node3": "b"}
    assert sorted(zones[str(node)] for node in places(store).values()) == ["a", "a", "b", "b"]
    set_node(store, "node3", unschedulable=True)
    pod(store, "p4", {"app": "web"}, topologySpreadConstraints=[spread])
    pod(store, "p5", {"app": "web"}, topologySpreadConstraints=[spread])
    assert None in places(store).values()
    assert "2 node(s) didn't match pod topology spread constraints" in told(store, "p5")


EXPRESSIONS = [
    ({"key": "zone", "operator": "In", "values": ["b", "c"]}, ["node3"]),
    ({"key": "zone", "operator": "NotIn", "values": ["b"]}, ["node1", "node2"]),
    ({"key": "zone", "operator": "Exists"}, ["node1", "node2", "node3"]),
    ({"key": "zone", "operator": "DoesNotExist"}, []),
    ({"key": "cores", "operator": "Gt", "values": ["4"]}, ["node2"]),
    ({"key": "cores", "operator": "Lt", "values": ["5"]}, ["node1"]),
]


@pytest.mark.parametrize(("expression", "fitting"), EXPRESSIONS)
def test_node_affinity(store: Store, expression: dict[str, Any], fitting: list[str]) -> None:
    for name, cores in (("node1", "4"), ("node2", "8")):
        node = store.get(NODES, "", name)
        labels = {**node["metadata"]["labels"], "cores": cores}
        store.update(NODES, {**node, "metadata": {**node["metadata"], "labels": labels}})
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    for number in range(3):
        pod(store, f"p{number}", affinity=affinity)
    assert sorted({node for node in places(store).values() if node}) == fitting


def test_preferences_choose_among_nodes_that_fit(store: Store) -> None:
    set_node(store, "node1", taints=[{**TAINT, "effect": "PreferNoSchedule"}])
    entry = {"weight": 5, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}}
    pod(store, "a", affinity={"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [entry]}})
    pod(store, "b", affinity={"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [entry]}})
    pod(store, "c")
    assert places(store) == {"a": "node3", "b": "node3", "c": "node2"}


def test_the_more_important_pod_goes_first(store: Store) -> None:
    set_node(store, "node2", unschedulable=True)
    set_node(store, "node3", unschedulable=True)
    pod(store, "a", resources={"requests": {"cpu": "2"}})
    pod(store, "b", resources={"requests": {"cpu": "2"}}, priorityClassName="system-cluster-critical")
    assert places(store) == {"a": None, "b": "node1"}


def test_a_pod_of_another_scheduler_is_left_alone(store: Store) -> None:
    pod(store, "a", schedulerName="mine")
    assert places(store) == {"a": None}
    assert store.list(EVENTS) == []


class TestTaints:
    def evict(self, store: Store) -> float | None:
        return taints.reconciler(store)()

    def test_a_cordoned_node_has_the_taint_for_as_long_as_it_is(self, store: Store) -> None:
        set_node(store, "node1", unschedulable=True)
        self.evict(store)
        (taint,) = store.get(NODES, "", "node1")["spec"]["taints"]
        assert (taint["key"], taint["effect"]) == ("node.kubernetes.io/unschedulable", "NoSchedule")
        version = store.version
        self.evict(store)
        assert store.version == version
        set_node(store, "node1", unschedulable=False)
        self.evict(store)
        assert "taints" not in store.get(NODES, "", "node1")["spec"]

    def test_who_does_not_bear_a_no_execute_taint_has_to_go(self, store: Store) -> None:
        taint = {"key": "team", "value": "blue", "effect": "NoExecute"}
        pod(store, "goes", nodeName="node1")
        pod(store, "stays", nodeName="node1", tolerations=[{"key": "team", "operator": "Exists"}])
        pod(store, "elsewhere", nodeName="node2")
        set_node(store, "node1", taints=[taint])
        assert self.evict(store) is None
        ending = {item["metadata"]["name"]: "deletionTimestamp" in item["metadata"] for item in store.list(PODS)}
        assert ending == {"goes": True, "stays": False, "elsewhere": False}
        (event,) = store.list(EVENTS)
        assert (event["reason"], event["message"]) == ("TaintManagerEviction", "Marking for deletion Pod default/goes")

    def test_who_bears_it_for_a_time_goes_then(self, store: Store) -> None:
        began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=100)
        taint = {"key": "team", "effect": "NoExecute", "timeAdded": began.strftime("%Y-%m-%dT%H:%M:%SZ")}
        bears = {"key": "team", "operator": "Exists", "effect": "NoExecute"}
        pod(store, "goes", nodeName="node1", tolerations=[{**bears, "tolerationSeconds": 90}])
        pod(store, "waits", nodeName="node1", tolerations=[{**bears, "tolerationSeconds": 400}])
        set_node(store, "node1", taints=[taint])
        left = self.evict(store)
        assert left is not None and 290 < left <= 300
        ending = {item["metadata"]["name"]: "deletionTimestamp" in item["metadata"] for item in store.list(PODS)}
        assert ending == {"goes": True, "waits": False}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", Fraction(1, 10)),
        ("64Mi", 64 << 20),
        ("1.5Gi", 3 << 29),
        ("2", 2),
        (3, 3),
        ("1e3", 1000),
        ("1E", 10**18),
        ("5u", Fraction(1, 200_000)),
    ],
)
def test_quantities(text: str, value: Fraction) -> None:
    assert parse(text) == value


@pytest.mark.parametrize("text", ["", "x", "1x", "m", "1 2", "1e"])
def test_what_is_no_quantity(text: str) -> None:
    assert not is_quantity(text)

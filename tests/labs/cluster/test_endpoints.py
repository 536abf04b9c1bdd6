"""EndpointSlices and Endpoints: what they make of Services and pods, and how little they change."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster import endpoints, endpointslices, replicasets, scheduler
from labs.cluster.admission import admit
from labs.cluster.podendpoints import CHANGED
from labs.cluster.resources import ENDPOINTS, ENDPOINTSLICES, NODES, PODS, REPLICASETS, SERVICES, Object, key_of
from labs.cluster.store import Store
from tests.labs.cluster.workloads import PLAN, new_store, workload


@pytest.fixture
def store() -> Store:
    return new_store()


def run(store: Store, times: int = 3) -> None:
    """The controllers that this is about, often enough to settle."""
    reconcilers = (
        replicasets.reconciler(store, PLAN),
        scheduler.reconciler(store),
        endpointslices.reconciler(store),
        endpoints.reconciler(store),
    )
    for _ in range(times):
        for reconcile in reconcilers:
            reconcile()
        for pod in store.list(PODS):
            if "deletionTimestamp" in pod["metadata"] and "finalizers" not in pod["metadata"]:
                store.delete(PODS, *key_of(pod))


def serve(store: Store, *, ready: bool = True) -> None:
    """What the kubelets would report, of pods that have no address yet or are in another state."""
    taken = {entry["ip"] for pod in store.list(PODS) for entry in pod["status"].get("podIPs") or ()}
    free = (number for number in range(2, 1 << 14) if f"10.244.{number >> 8}.{number & 255}" not in taken)
    for pod in store.list(PODS):
        ips = pod["status"].get("podIPs")
        if not ips:
            number = next(free)
            ips = [{"ip": f"10.244.{number >> 8}.{number & 255}"}, {"ip": f"fd00:10:244::{number:x}"}]
        moment = "2026-01-01T00:00:05Z" if ready else "2026-01-01T00:00:01Z"
        conditions = [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": moment}]
        store.update_status(PODS, *key_of(pod), {"phase": "Running", "podIPs": ips, "conditions": conditions})


def service(store: Store, labels: dict[str, str] | None = None, **spec: Any) -> None:
    spec = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}], **spec}
    metadata = {"name": "web", "labels": labels or {}}
    admit(store, PLAN, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})


def pods(store: Store, count: int = 3) -> None:
    """So many pods behind the Service."""
    if store.find(REPLICASETS, "default", "web") is None:
        admit(store, PLAN, workload("ReplicaSet", replicas=count))
    else:
        item = store.get(REPLICASETS, "default", "web")
        store.update(REPLICASETS, {**item, "spec": {**item["spec"], "replicas": count}})
    run(store)


class TestEndpointSlices:
    def test_ready_pods_are_endpoints(self, store: Store) -> None:
        service(store)
        pods(store)
        serve(store)
        run(store)
        (item,) = store.list(ENDPOINTSLICES)
        assert (item["addressType"], item["ports"]) == ("IPv4", [{"name": "http", "protocol": "TCP", "port": 8080}])
        assert item["metadata"]["labels"]["kubernetes.io/service-name"] == "web"
        assert [endpoint["addresses"] for endpoint in item["endpoints"]] == [[f"10.244.0.{n}"] for n in (2, 3, 4)]
        for endpoint, pod in zip(item["endpoints"], store.list(PODS), strict=True):
            assert endpoint["conditions"] == {"ready": True, "serving": True, "terminating": False}
            assert endpoint["nodeName"] == pod["spec"]["nodeName"]
            assert endpoint["targetRef"]["name"] == pod["metadata"]["name"]

    def test_pods_that_do_not_serve_are_not_ready(self, store: Store) -> None:
        service(store)
        pods(store)
        serve(store, ready=False)
        run(store)
        conditions = [endpoint["conditions"]["ready"] for endpoint in store.list(ENDPOINTSLICES)[0]["endpoints"]]
        assert conditions == [False] * 3

    def test_unless_they_are_to_be_published_anyway(self, store: Store) -> None:
        service(store, publishNotReadyAddresses=True)
        pods(store)
        serve(store, ready=False)
        run(store)
        assert all(endpoint["conditions"]["ready"] for endpoint in store.list(ENDPOINTSLICES)[0]["endpoints"])

    def test_dual_stack_has_a_slice_for_each_family(self, store: Store) -> None:
        service(store, ipFamilyPolicy="PreferDualStack")
        pods(store)
        serve(store)
        run(store)
        assert sorted(item["addressType"] for item in store.list(ENDPOINTSLICES)) == ["IPv4", "IPv6"]

    def test_a_hundred_endpoints_to_a_slice(self, store: Store) -> None:
        service(store)
        pods(store, 230)
        serve(store)
        run(store)
        assert sorted(len(item["endpoints"]) for item in store.list(ENDPOINTSLICES)) == [30, 100, 100]

    def test_a_named_port_is_what_the_pod_says(self, store: Store) -> None:
        service(store, ports=[{"port": 80, "targetPort": "http"}])
        for name, number in (("a", 8080), ("b", 9090)):
            container = {"name": "x", "image": "http-echo", "ports": [{"name": "http", "containerPort": number}]}
            metadata = {"name": name, "labels": {"app": "web"}}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}
            admit(store, PLAN, pod)
        serve(store)
        run(store)
        ports = {item["ports"][0]["port"]: len(item["endpoints"]) for item in store.list(ENDPOINTSLICES)}
        assert ports == {8080: 1, 9090: 1}

    def test_a_service_without_pods_has_an_empty_slice_that_is_used_later(self, store: Store) -> None:
        service(store)
        run(store)
        (empty,) = store.list(ENDPOINTSLICES)
        assert empty["endpoints"] == []
        pods(store)
        serve(store)
        run(store)
        (full,) = store.list(ENDPOINTSLICES)
        assert (full["metadata"]["name"], len(full["endpoints"])) == (empty["metadata"]["name"], 3)

    def test_slices_go_with_their_service_and_those_of_others_stay(self, store: Store) -> None:
        service(store)
        own = {
            "metadata": {"name": "manual", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [],
            "endpoints": [],
        }
        store.create(ENDPOINTSLICES, own)
        run(store)
        assert len(store.list(ENDPOINTSLICES)) == 2
        store.delete(SERVICES, "default", "web")
        run(store)
        assert [item["metadata"]["name"] for item in store.list(ENDPOINTSLICES)] == ["manual"]


class TestManyEndpoints:
    def slices(self, store: Store) -> dict[str, list[str]]:
        """The addresses of each slice, by its name."""
        return {
            item["metadata"]["name"]: [entry["addresses"][0] for entry in item["endpoints"]]
            for item in store.list(ENDPOINTSLICES)
        }

    def test_one_pod_more_or_less_changes_one_slice(self, store: Store) -> None:
        service(store)
        pods(store, 250)
        serve(store)
        run(store)
        before = {key_of(item): item for item in store.list(ENDPOINTSLICES)}
        assert sorted(len(item["endpoints"]) for item in before.values()) == [50, 100, 100]
        victim = store.list(PODS)[0]
        store.delete(PODS, *key_of(victim))
        endpointslices.reconciler(store)()
        changed = [item for item in store.list(ENDPOINTSLICES) if item != before[key_of(item)]]
        assert [len(item["endpoints"]) for item in changed] in ([99], [49])
        # The one that comes in its place goes where there is room, and nowhere else.
        before = {key_of(item): item for item in store.list(ENDPOINTSLICES)}
        run(store, 1)
        serve(store)
        endpointslices.reconciler(store)()
        changed = [item for item in store.list(ENDPOINTSLICES) if item != before[key_of(item)]]
        assert [len(item["endpoints"]) for item in changed] in ([100], [50])
        assert sum(map(len, self.slices(store).values())) == 250

    def test_a_slice_that_empties_goes(self, store: Store) -> None:
        service(store)
        pods(store, 150)
        serve(store)
        run(store)
        small = min(store.list(ENDPOINTSLICES), key=lambda item: len(item["endpoints"]))
        gone = {entry["targetRef"]["name"] for entry in small["endpoints"]}
        item = store.get(REPLICASETS, "default", "web")
        store.update(REPLICASETS, {**item, "spec": {**item["spec"], "replicas": 100}})
        for name in gone:
            store.delete(PODS, "default", name)
        run(store)
        assert [len(addresses) for addresses in self.slices(store).values()] == [100]

    def test_endpoints_stop_at_a_thousand(self, store: Store) -> None:
        service(store)
        pods(store, 1010)
        serve(store)
        run(store)
        item = store.get(ENDPOINTS, "default", "web")
        assert item["metadata"]["annotations"]["endpoints.kubernetes.io/over-capacity"] == "truncated"
        assert len(item["subsets"][0]["addresses"]) == 1000
        assert sorted(map(len, self.slices(store).values())) == [10, *[100] * 10]
        pods(store, 900)
        run(store)
        item = store.get(ENDPOINTS, "default", "web")
        assert "endpoints.kubernetes.io/over-capacity" not in item["metadata"]["annotations"]
        assert len(item["subsets"][0]["addresses"]) == 900


def test_the_ready_ones_are_kept_and_subsets_have_their_share() -> None:
    def listed(count: int, start: int) -> list[Object]:
        return [{"ip": str(number)} for number in range(start, start + count)]

    found = [
        {"addresses": listed(600, 0), "notReadyAddresses": listed(300, 1000), "ports": [{"port": 1}]},
        {"addresses": listed(200, 2000), "notReadyAddresses": listed(100, 3000), "ports": [{"port": 2}]},
    ]
    kept, cut = endpoints.truncated(found)
    assert cut
    assert [(len(part["addresses"]), len(part["notReadyAddresses"])) for part in kept] == [(600, 150), (200, 50)]
    found[0]["addresses"] = listed(1200, 0)
    kept, cut = endpoints.truncated(found)
    assert [(len(part["addresses"]), "notReadyAddresses" in part) for part in kept] == [(858, False), (142, False)]


class TestStates:
    def conditions(self, store: Store) -> list[tuple[bool, bool, bool]]:
        (item,) = store.list(ENDPOINTSLICES)
        return [tuple(entry["conditions"].values()) for entry in item["endpoints"]]

    def test_a_pod_that_ends_serves_until_it_is_gone(self, store: Store) -> None:
        service(store)
        pods(store, 1)
        serve(store)
        run(store)
        (pod,) = store.list(PODS)
        ending = {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:00:09Z", "finalizers": ["hold"]}
        store.update(PODS, {**pod, "metadata": ending})
        endpointslices.reconciler(store)()
        endpoints.reconciler(store)()
        assert self.conditions(store) == [(False, True, True)]
        assert "subsets" not in store.get(ENDPOINTS, "default", "web")

    def test_published_though_not_ready(self, store: Store) -> None:
        service(store, publishNotReadyAddresses=True)
        pods(store, 1)
        serve(store, ready=False)
        run(store)
        assert self.conditions(store) == [(True, False, False)]
        (subset,) = store.get(ENDPOINTS, "default", "web")["subsets"]
        assert (len(subset["addresses"]), "notReadyAddresses" in subset) == (1, False)

    def test_zones_of_nodes(self, store: Store) -> None:
        service(store)
        pods(store, 3)
        serve(store)
        node = store.get(NODES, "", "node2")
        labels = {**node["metadata"]["labels"], "topology.kubernetes.io/zone": "east"}
        store.update(NODES, {**node, "metadata": {**node["metadata"], "labels": labels}})
        run(store)
        (item,) = store.list(ENDPOINTSLICES)
        assert {entry["nodeName"]: entry.get("zone") for entry in item["endpoints"]} == {
            "node1": None,
            "node2": "east",
            "node3": None,
        }

    def test_a_changed_label_of_the_service(self, store: Store) -> None:
        service(store, {"team": "a"})
        pods(store, 1)
        serve(store)
        run(store)
        item = store.get(SERVICES, "default", "web")
        store.update(SERVICES, {**item, "metadata": {**item["metadata"], "labels": {"team": "b"}}})
        run(store)
        found = (store.list(ENDPOINTSLICES)[0], store.get(ENDPOINTS, "default", "web"))
        assert [one["metadata"]["labels"]["team"] for one in found] == ["b", "b"]

    def test_when_it_was_that_something_changed(self, store: Store) -> None:
        service(store)
        slices, others = endpointslices.reconciler(store), endpoints.reconciler(store)
        slices()
        others()
        created = store.get(SERVICES, "default", "web")["metadata"]["creationTimestamp"]
        found = (store.list(ENDPOINTSLICES)[0], store.get(ENDPOINTS, "default", "web"))
        assert [one["metadata"]["annotations"][CHANGED] for one in found] == [created, created]
        pods(store, 1)
        serve(store)
        slices()
        others()
        found = (store.list(ENDPOINTSLICES)[0], store.get(ENDPOINTS, "default", "web"))
        assert [one["metadata"]["annotations"][CHANGED] for one in found] == ["2026-01-01T00:00:05Z"] * 2

    def test_headless_services_without_ports_have_endpoints(self, store: Store) -> None:
        service(store, clusterIP="None", ports=[])
        pods(store, 2)
        serve(store)
        run(store)
        (item,) = store.list(ENDPOINTSLICES)
        assert (item["ports"], len(item["endpoints"])) == ([], 2)
        assert item["metadata"]["labels"]["service.kubernetes.io/headless"] == ""
        (subset,) = store.get(ENDPOINTS, "default", "web")["subsets"]
        assert len(subset["addresses"]) == 2

    def test_a_settled_cluster_is_left_alone(self, store: Store) -> None:
        service(store, ipFamilyPolicy="PreferDualStack")
        pods(store, 3)
        serve(store)
        run(store)
        version = store.version
        run(store)  # new ones, which know nothing yet
        assert store.version == version


class TestMirror:
    def test_endpoints_that_somebody_wrote_become_slices(self, store: Store) -> None:
        service(store, selector=None)
        subset = {"addresses": [{"ip": "192.0.2.7"}], "ports": [{"name": "http", "port": 80}]}
        metadata = {"name": "web", "labels": {"team": "a"}, "annotations": {"note": "mine"}}
        admit(store, PLAN, {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [subset]})
        run(store)
        (item,) = store.list(ENDPOINTSLICES)
        assert item["metadata"]["labels"] == {
            "team": "a",
            "kubernetes.io/service-name": "web",
            "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
        }
        assert item["metadata"]["annotations"] == {"note": "mine"}
        assert item["ports"] == [{"name": "http", "protocol": "TCP", "port": 80}]
        assert item["endpoints"] == [{"addresses": ["192.0.2.7"], "conditions": {"ready": True}}]
        store.delete(ENDPOINTS, "default", "web")
        run(store)
        assert store.list(ENDPOINTSLICES) == []

"""DaemonSets: on which nodes, in which versions, and how one version follows the other."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster.admission import admit
from labs.cluster.resources import (
    CONTROLLERREVISIONS,
    DAEMONSETS,
    EVENTS,
    NODES,
    PODS,
    Object,
    controller_of,
    is_ready,
    key_of,
)
from tests.labs.cluster.workloads import PLAN, Driver, new_store, workload


@pytest.fixture
def driver() -> Driver:
    return Driver(new_store(4))


def status(driver: Driver) -> Object:
    found: Object = driver.store.get(DAEMONSETS, "default", "web")["status"]
    return found


def nodes(driver: Driver) -> list[str]:
    return sorted(str(pod["spec"].get("nodeName")) for pod in driver.store.list(PODS))


def set_node(driver: Driver, name: str, **spec: Any) -> None:
    node = driver.store.get(NODES, "", name)
    driver.store.update(NODES, {**node, "spec": {**node["spec"], **spec}})


def create(driver: Driver, template: Object | None = None, **spec: Any) -> None:
    item = workload("DaemonSet", **spec)
    item["spec"]["template"]["spec"].update(template or {})
    admit(driver.store, PLAN, item)


def test_pods_are_put_where_their_affinity_says_by_the_scheduler(driver: Driver) -> None:
    create(driver)
    driver.settle()
    assert nodes(driver) == ["node1", "node2", "node3", "node4"]
    pod = driver.store.list(PODS)[0]
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    field = {"key": "metadata.name", "operator": "In", "values": [pod["spec"]["nodeName"]]}
    assert required == {"nodeSelectorTerms": [{"matchFields": [field]}]}
    told = [item["reason"] for item in driver.store.list(EVENTS) if item["involvedObject"]["kind"] == "Pod"]
    assert told == ["Scheduled"] * 4
    assert status(driver) == {
        "currentNumberScheduled": 4,
        "desiredNumberScheduled": 4,
        "numberMisscheduled": 0,
        "numberReady": 4,
        "numberAvailable": 4,
        "updatedNumberScheduled": 4,
        "observedGeneration": 1,
    }


def test_cordoned_nodes_have_pods_and_tainted_ones_only_of_those_that_bear_it(driver: Driver) -> None:
    set_node(driver, "node1", unschedulable=True)
    set_node(driver, "node2", taints=[{"key": "team", "value": "blue", "effect": "NoSchedule"}])
    create(driver)
    driver.settle()
    assert nodes(driver) == ["node1", "node3", "node4"]
    assert status(driver)["desiredNumberScheduled"] == 3


def test_pods_stay_through_no_schedule_and_go_with_no_execute(driver: Driver) -> None:
    create(driver)
    driver.settle()
    set_node(driver, "node1", taints=[{"key": "team", "value": "blue", "effect": "NoSchedule"}])
    set_node(driver, "node2", taints=[{"key": "team", "value": "blue", "effect": "NoExecute"}])
    driver.settle()
    assert nodes(driver) == ["node1", "node3", "node4"]
    assert (status(driver)["desiredNumberScheduled"], status(driver)["numberMisscheduled"]) == (2, 1)


def test_the_nodes_that_a_selector_names(driver: Driver) -> None:
    create(driver, {"nodeSelector": {"kubernetes.io/hostname": "node3"}})
    driver.settle()
    assert nodes(driver) == ["node3"]


def test_a_failed_pod_is_replaced_and_told_of(driver: Driver) -> None:
    create(driver)
    driver.settle()
    pod = driver.store.list(PODS)[0]
    driver.store.update_status(PODS, *key_of(pod), {"phase": "Failed"})
    driver.settle(3)
    assert pod["metadata"]["name"] not in {item["metadata"]["name"] for item in driver.store.list(PODS)}
    assert nodes(driver) == ["node1", "node2", "node3", "node4"]
    (event,) = (item for item in driver.store.list(EVENTS) if item["reason"] == "FailedDaemonPod")
    assert event["message"] == (
        f"Found failed daemon pod default/{pod['metadata']['name']} on node {pod['spec']['nodeName']}, "
        "will try to kill it"
    )


def test_a_pod_that_fits_by_its_labels_is_adopted(driver: Driver) -> None:
    spec = {"nodeName": "node2", "containers": [{"name": "web", "image": "http-echo"}]}
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mine", "labels": {"app": "web"}}, "spec": spec}
    admit(driver.store, PLAN, item)
    create(driver, updateStrategy={"type": "OnDelete"})
    driver.settle()
    assert controller_of(driver.store.get(PODS, "default", "mine")) is not None
    assert nodes(driver) == ["node1", "node2", "node3", "node4"]


class TestUpdates:
    def roll(self, driver: Driver, rounds: int = 20) -> list[tuple[int, int]]:
        """Roll out a new image; gives how many pods there were, and how many of them ready, after each step."""
        driver.set_image(DAEMONSETS, "http-echo:v2")
        seen = []
        for _ in range(rounds):
            driver.run(1)
            pods = driver.store.list(PODS)
            seen.append((len(pods), sum(map(is_ready, pods))))
            driver.serve()
        return seen

    def test_one_after_the_other(self, driver: Driver) -> None:
        create(driver)
        driver.settle()
        seen = self.roll(driver)
        assert min(ready for _, ready in seen) == 3
        assert max(total for total, _ in seen) == 4
        assert driver.images() == ["http-echo:v2"] * 4
        assert status(driver)["updatedNumberScheduled"] == 4

    def test_half_of_them_at_a_time(self, driver: Driver) -> None:
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}}
        create(driver, updateStrategy=rolling)
        driver.settle()
        assert min(ready for _, ready in self.roll(driver)) == 2
        assert driver.images() == ["http-echo:v2"] * 4

    def test_the_new_one_before_the_old_one_goes(self, driver: Driver) -> None:
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        create(driver, updateStrategy=rolling)
        driver.settle()
        seen = self.roll(driver)
        assert (min(ready for _, ready in seen), max(total for total, _ in seen)) == (4, 5)
        assert driver.images() == ["http-echo:v2"] * 4

    def test_the_old_one_stays_while_the_new_one_does_not_serve(self, driver: Driver) -> None:
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        create(driver, updateStrategy=rolling)
        driver.settle()
        driver.set_image(DAEMONSETS, "bogus")
        driver.run(10)
        assert driver.images() == ["bogus", *["http-echo"] * 4]

    def test_broken_ones_go_at_once(self, driver: Driver) -> None:
        create(driver)
        driver.run(3)
        driver.serve(ready=False)
        driver.set_image(DAEMONSETS, "http-echo:v2")
        driver.run(2)
        assert driver.images() == ["http-echo:v2"] * 4

    def test_a_new_one_that_does_not_serve_stops_it(self, driver: Driver) -> None:
        create(driver)
        driver.settle()
        driver.set_image(DAEMONSETS, "bogus")
        driver.run(10)
        assert driver.images() == ["bogus", *["http-echo"] * 3]

    def test_min_ready_seconds(self, driver: Driver) -> None:
        create(driver, minReadySeconds=30)
        driver.run(3)
        driver.serve(ago=10)
        (left,) = driver.run(1)
        assert 19 <= left <= 20
        assert (status(driver)["numberReady"], status(driver).get("numberAvailable")) == (4, None)

    def test_on_delete_nothing_happens_before_a_pod_goes(self, driver: Driver) -> None:
        create(driver, updateStrategy={"type": "OnDelete"})
        driver.settle()
        driver.set_image(DAEMONSETS, "http-echo:v2")
        driver.settle()
        assert driver.images() == ["http-echo"] * 4
        driver.store.delete(PODS, *key_of(driver.store.list(PODS)[0]))
        driver.settle()
        assert driver.images() == [*["http-echo"] * 3, "http-echo:v2"]


class TestRevisions:
    def test_each_template_is_one(self, driver: Driver) -> None:
        create(driver, revisionHistoryLimit=1)
        for image in ("http-echo:v1", "http-echo:v2", "http-echo:v3", "http-echo:v2"):
            driver.set_image(DAEMONSETS, image)
            driver.settle()
        found = {
            item["revision"]: item["data"]["spec"]["template"]["spec"]["containers"][0]["image"]
            for item in driver.store.list(CONTROLLERREVISIONS)
        }
        assert found == {3: "http-echo:v3", 4: "http-echo:v2"}

    def test_it_is_a_patch_that_brings_the_template_back(self, driver: Driver) -> None:
        create(driver)
        driver.settle()
        (item,) = driver.store.list(CONTROLLERREVISIONS)
        digest = item["metadata"]["labels"]["controller-revision-hash"]
        assert item["metadata"]["name"] == f"web-{digest}"
        assert item["metadata"]["labels"]["app"] == "web"
        assert item["data"]["spec"]["template"]["$patch"] == "replace"
        assert {pod["metadata"]["labels"]["controller-revision-hash"] for pod in driver.store.list(PODS)} == {digest}

"""Deployments and ReplicaSets at their edges: deadlines, proportions, collisions, adoption, failure, who goes first."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from labs.cluster.admission import admit
from labs.cluster.deploymentrevisions import max_surge, max_unavailable, revision
from labs.cluster.ownedpods import first_to_go, template_hash
from labs.cluster.resources import DEPLOYMENTS, EVENTS, NAMESPACES, PODS, REPLICASETS, Object, controller_of, key_of
from labs.cluster.store import Store
from tests.labs.cluster.workloads import PLAN, Driver, new_store, workload


@pytest.fixture
def driver() -> Driver:
    return Driver(new_store())


def deployment(driver: Driver) -> Object:
    return driver.store.get(DEPLOYMENTS, "default", "web")


def conditions(item: Object) -> dict[str, tuple[str, str]]:
    return {entry["type"]: (entry["status"], entry["reason"]) for entry in item["status"].get("conditions") or ()}


def sizes(store: Store) -> dict[int, int]:
    """The size of each version."""
    return {revision(item): item["spec"]["replicas"] for item in store.list(REPLICASETS)}


class TestProgress:
    def test_from_made_to_done(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment", replicas=2))
        driver.run(1)
        (replicaset,) = driver.store.list(REPLICASETS)
        name = replicaset["metadata"]["name"]
        first = {entry["type"]: entry for entry in deployment(driver)["status"]["conditions"]}
        assert first["Progressing"]["reason"] == "NewReplicaSetCreated"
        assert first["Progressing"]["message"] == f'Created new replica set "{name}"'
        assert conditions(deployment(driver))["Available"] == ("False", "MinimumReplicasUnavailable")
        driver.run(2)
        assert conditions(deployment(driver))["Progressing"] == ("True", "ReplicaSetUpdated")
        driver.settle(3)
        last = {entry["type"]: entry for entry in deployment(driver)["status"]["conditions"]}
        assert last["Progressing"]["reason"] == "NewReplicaSetAvailable"
        assert last["Progressing"]["message"] == f'ReplicaSet "{name}" has successfully progressed.'
        assert last["Available"]["message"] == "Deployment has minimum availability."

    def test_nothing_moves_for_too_long(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment", replicas=2, progressDeadlineSeconds=30))
        driver.settle()
        driver.set_image(DEPLOYMENTS, "bogus")
        driver.run(4)
        (left,) = driver.run(1)
        assert 25 < left <= 30
        self.shift(driver, 40)
        driver.run(1)
        assert conditions(deployment(driver)) == {
            "Available": ("True", "MinimumReplicasAvailable"),
            "Progressing": ("False", "ProgressDeadlineExceeded"),
        }
        (told,) = (entry for entry in deployment(driver)["status"]["conditions"] if entry["type"] == "Progressing")
        new = next(item for item in driver.store.list(REPLICASETS) if revision(item) == 2)
        assert told["message"] == f'ReplicaSet "{new["metadata"]["name"]}" has timed out progressing.'
        driver.set_image(DEPLOYMENTS, "http-echo")
        driver.settle()
        assert conditions(deployment(driver))["Progressing"] == ("True", "NewReplicaSetAvailable")

    def test_a_paused_rollout_has_no_deadline(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment", progressDeadlineSeconds=30))
        driver.run(3)
        driver.change(DEPLOYMENTS, paused=True)
        assert driver.run(1) == []
        assert conditions(deployment(driver))["Progressing"] == ("Unknown", "DeploymentPaused")
        driver.change(DEPLOYMENTS, paused=False)
        driver.run(1)
        assert conditions(deployment(driver))["Progressing"] == ("Unknown", "DeploymentResumed")
        driver.settle()
        assert conditions(deployment(driver))["Progressing"] == ("True", "NewReplicaSetAvailable")

    @staticmethod
    def shift(driver: Driver, seconds: float) -> None:
        """Let time pass: all conditions of the Deployment become older."""
        item = deployment(driver)
        then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
        old = [
            {**entry, "lastUpdateTime": then.strftime("%Y-%m-%dT%H:%M:%SZ")} for entry in item["status"]["conditions"]
        ]
        driver.store.update_status(DEPLOYMENTS, "default", "web", {**item["status"], "conditions": old})


class TestBounds:
    @pytest.mark.parametrize(
        ("replicas", "surge", "unavailable", "expected"),
        [
            (10, "25%", "25%", (3, 2)),
            (4, "25%", "25%", (1, 1)),
            (1, "25%", "25%", (1, 0)),
            (3, 0, "10%", (0, 1)),  # both would be 0
            (2, 5, 7, (5, 2)),  # no more can be missing than there are
            (0, "100%", "100%", (0, 0)),
        ],
    )
    def test_numbers_and_percentages(
        self, replicas: int, surge: Any, unavailable: Any, expected: tuple[int, int]
    ) -> None:
        rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
        strategy = {"type": "RollingUpdate", "rollingUpdate": rolling}
        item = workload("Deployment", replicas=replicas, strategy=strategy)
        assert (max_surge(item), max_unavailable(item)) == expected

    def test_new_pods_count_after_min_ready_seconds(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment", replicas=2, minReadySeconds=20))
        driver.run(3)
        driver.serve(ago=5)
        left = min(driver.run(2))
        assert 14 <= left <= 15
        status = deployment(driver)["status"]
        assert (status["readyReplicas"], status.get("availableReplicas", 0)) == (2, 0)
        driver.serve(ready=False)
        driver.serve(ago=21)
        driver.run(2)
        assert deployment(driver)["status"]["availableReplicas"] == 2
        driver.change(DEPLOYMENTS, minReadySeconds=100)
        driver.run(2)
        (replicaset,) = driver.store.list(REPLICASETS)
        assert replicaset["spec"]["minReadySeconds"] == 100
        assert "availableReplicas" not in deployment(driver)["status"]


class TestScaling:
    def test_two_versions_keep_their_proportion(self, driver: Driver) -> None:
        """The example of the documentation: 10 replicas, maxSurge 3, maxUnavailable 2, an image that there is not,
        and then 15 replicas: 5 more, 3 of them for the old version and 2 for the new one."""
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}
        admit(driver.store, PLAN, workload("Deployment", replicas=10, strategy=rolling))
        driver.settle()
        driver.set_image(DEPLOYMENTS, "bogus")
        driver.run(6)
        assert sizes(driver.store) == {1: 8, 2: 5}
        driver.change(DEPLOYMENTS, replicas=15)
        driver.run(4)
        assert sizes(driver.store) == {1: 11, 2: 7}

    def test_both_versions_shrink(self, driver: Driver) -> None:
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}
        admit(driver.store, PLAN, workload("Deployment", replicas=10, strategy=rolling))
        driver.settle()
        driver.set_image(DEPLOYMENTS, "bogus")
        driver.run(6)
        driver.change(DEPLOYMENTS, replicas=5)
        driver.run(1)
        assert sizes(driver.store) == {1: 5, 2: 3}
        driver.change(DEPLOYMENTS, replicas=0)
        driver.run(4)
        assert sizes(driver.store) == {1: 0, 2: 0}

    def test_a_scaled_deployment_tells_of_it(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment", replicas=1))
        driver.settle()
        driver.change(DEPLOYMENTS, replicas=4)
        driver.run(1)
        (replicaset,) = driver.store.list(REPLICASETS)
        name = replicaset["metadata"]["name"]
        told = [item["message"] for item in driver.store.list(EVENTS) if item["reason"] == "ScalingReplicaSet"]
        assert told == [f"Scaled up replica set {name} to 1", f"Scaled up replica set {name} to 4 from 1"]
        annotations = replicaset["metadata"]["annotations"]
        assert annotations["deployment.kubernetes.io/desired-replicas"] == "4"
        assert annotations["deployment.kubernetes.io/max-replicas"] == "5"


class TestRevisions:
    def test_a_name_that_is_taken_is_made_anew(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment"))
        digest = template_hash(deployment(driver)["spec"]["template"])
        other = workload("ReplicaSet", replicas=0)
        other["metadata"]["name"] = f"web-{digest}"
        other["spec"]["selector"] = {"matchLabels": {"app": "other"}}
        other["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
        admit(driver.store, PLAN, other)
        driver.settle()
        assert deployment(driver)["status"]["collisionCount"] == 1
        (mine,) = (item for item in driver.store.list(REPLICASETS) if controller_of(item))
        assert mine["metadata"]["labels"]["pod-template-hash"] not in ("", digest)
        assert deployment(driver)["status"]["availableReplicas"] == 1

    def test_only_so_much_history(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment", revisionHistoryLimit=2))
        for number in range(5):
            driver.set_image(DEPLOYMENTS, f"http-echo:v{number}")
            driver.settle()
        assert sizes(driver.store) == {3: 0, 4: 0, 5: 1}

    def test_what_came_back_remembers_its_numbers(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment"))
        driver.settle()
        for image in ("http-echo:v2", "http-echo", "http-echo:v2", "http-echo"):
            driver.set_image(DEPLOYMENTS, image)
            driver.settle()
        found = {
            revision(item): item["metadata"]["annotations"].get("deployment.kubernetes.io/revision-history")
            for item in driver.store.list(REPLICASETS)
        }
        assert found == {4: "2", 5: "1,3"}

    def test_replicasets_are_adopted_and_released_by_their_labels(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment", replicas=2))
        driver.settle()
        store = driver.store
        uids = {pod["metadata"]["uid"] for pod in store.list(PODS)}
        store.delete(DEPLOYMENTS, "default", "web")
        (replicaset,) = store.list(REPLICASETS)
        store.update(REPLICASETS, {**replicaset, "metadata": without_owner(replicaset)})
        admit(store, PLAN, workload("Deployment", replicas=2))
        driver.settle()
        (replicaset,) = store.list(REPLICASETS)
        assert controller_of(replicaset) == deployment(driver)["metadata"]["uid"]
        assert {pod["metadata"]["uid"] for pod in store.list(PODS)} == uids
        labels = {**replicaset["metadata"]["labels"], "app": "mine"}
        store.update(REPLICASETS, {**replicaset, "metadata": {**replicaset["metadata"], "labels": labels}})
        driver.run(1)
        owners = sorted(str(controller_of(item)) for item in store.list(REPLICASETS))
        assert owners == sorted(["None", deployment(driver)["metadata"]["uid"]])


class TestReplicaSets:
    def test_a_pod_that_is_relabelled_is_let_go_and_replaced(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("ReplicaSet", replicas=2))
        driver.settle()
        pod = driver.store.list(PODS)[0]
        metadata = {**pod["metadata"], "labels": {"app": "quarantine"}}
        driver.store.update(PODS, {**pod, "metadata": metadata})
        driver.run(1)
        (free,) = (item for item in driver.store.list(PODS) if controller_of(item) is None)
        assert free["metadata"]["name"] == pod["metadata"]["name"]
        assert len(driver.store.list(PODS)) == 3
        # And taken back when its label is: then there is one too many.
        current = driver.store.get(PODS, *key_of(free))
        driver.store.update(PODS, {**current, "metadata": {**current["metadata"], "labels": {"app": "web"}}})
        driver.run(2)
        assert len(driver.store.list(PODS)) == 2
        assert all(controller_of(item) for item in driver.store.list(PODS))

    def test_pods_that_the_api_refuses_show_as_failure(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("Deployment"))
        driver.run(1)
        template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "X", "image": "x"}]}}
        (replicaset,) = driver.store.list(REPLICASETS)
        labels = replicaset["metadata"]["labels"]
        template["metadata"]["labels"] = labels
        driver.store.update(REPLICASETS, {**replicaset, "spec": {**replicaset["spec"], "template": template}})
        driver.store.delete(PODS, *key_of(driver.store.list(PODS)[0]))
        assert Driver(driver.store).run(1)  # it wants to try again
        (failed,) = (item for item in driver.store.list(REPLICASETS) if item["metadata"]["uid"] == uid_of(replicaset))
        assert conditions(failed) == {"ReplicaFailure": ("True", "FailedCreate")}
        (event,) = (item for item in driver.store.list(EVENTS) if item["reason"] == "FailedCreate")
        assert event["type"] == "Warning"
        assert event["message"].startswith('Error creating: Pod "')

    def test_a_namespace_that_goes_gets_no_new_pods_and_no_complaints(self, driver: Driver) -> None:
        admit(driver.store, PLAN, workload("ReplicaSet", replicas=1))
        namespace = driver.store.get(NAMESPACES, "", "default")
        ending = {**namespace["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
        driver.store.update(NAMESPACES, {**namespace, "metadata": ending})
        driver.run(2)
        assert (driver.store.list(PODS), driver.store.list(EVENTS)) == ([], [])


def without_owner(item: Object) -> Object:
    return {key: value for key, value in item["metadata"].items() if key != "ownerReferences"}


def uid_of(item: Object) -> str:
    return str(item["metadata"]["uid"])


NOW = datetime.datetime.now(datetime.UTC)


def ago(seconds: float) -> str:
    return (NOW - datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(name: str, *, node: str = "node1", phase: str = "Running", ready: float | None = 1000, **more: Any) -> Object:
    annotations = {"controller.kubernetes.io/pod-deletion-cost": more["cost"]} if "cost" in more else {}
    condition = {"type": "Ready", "status": "False" if ready is None else "True", "lastTransitionTime": ago(ready or 0)}
    return {
        "metadata": {
            "name": name,
            "uid": name,
            "creationTimestamp": ago(more.get("age", 2000)),
            "annotations": annotations,
        },
        "spec": {"nodeName": node} if node else {},
        "status": {
            "phase": phase,
            "conditions": [condition],
            "containerStatuses": [{"restartCount": more.get("restarts", 0)}],
        },
    }


@pytest.mark.parametrize(
    ("goes", "stays"),
    [
        (pod("b", node="", phase="Pending", ready=None), pod("a", phase="Pending", ready=None)),
        (pod("b", phase="Pending", ready=None), pod("a", ready=None)),
        (pod("b", ready=None), pod("a")),
        (pod("b", cost="-5"), pod("a")),
        (pod("b", cost="1"), pod("a", cost="2")),
        (pod("b", node="crowded"), pod("a")),
        (pod("b", ready=10), pod("a", ready=1000)),
        (pod("b", restarts=3), pod("a")),
        (pod("b", age=1001), pod("a", age=100_000)),
        (pod("a", ready=1000), pod("b", ready=1001)),  # of like age: by uid
    ],
    ids=["unplaced", "pending", "unready", "cost", "cost-2", "crowded", "ready", "restarts", "young", "uid"],
)
def test_who_goes_first(goes: Object, stays: Object) -> None:
    assert [item["metadata"]["name"] for item in first_to_go([stays, goes], {"crowded": 2, "node1": 1})] == [
        goes["metadata"]["name"],
        stays["metadata"]["name"],
    ]

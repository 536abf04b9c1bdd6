"""Deployments, ReplicaSets, DaemonSets, the scheduler, EndpointSlices: what they make of what is in the store."""

from __future__ import annotations

from collections import Counter

import pytest

from labs.cluster import daemonsets, endpointslices, garbage, ownedpods, replicasets, rollouts, scheduler
from labs.cluster.admission import admit
from labs.cluster.deploymentrevisions import revision
from labs.cluster.resources import DEPLOYMENTS, PODS, REPLICASETS, is_ready, key_of
from labs.cluster.store import Store
from tests.labs.cluster.workloads import PLAN, new_store, workload


@pytest.fixture
def store() -> Store:
    return new_store()


def run(store: Store, times: int = 3) -> None:
    """All controllers, often enough to settle."""
    reconcilers = (
        rollouts.reconciler(store, PLAN),
        replicasets.reconciler(store, PLAN),
        daemonsets.reconciler(store, PLAN),
        scheduler.reconciler(store),
        endpointslices.reconciler(store),
        garbage.reconciler(store),
        lambda: stop(store),
    )
    for _ in range(times):
        for reconcile in reconcilers:
            reconcile()


def stop(store: Store) -> None:
    """What the kubelets would do with pods that are to go."""
    for pod in store.list(PODS):
        if "deletionTimestamp" in pod["metadata"]:
            store.delete(PODS, *key_of(pod))


def serve(store: Store, *, ready: bool = True) -> None:
    """What the kubelets would report."""
    for number, pod in enumerate(store.list(PODS), 2):
        ips = [{"ip": f"10.244.0.{number}"}, {"ip": f"fd00:10:244::{number}"}]
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        store.update_status(PODS, *key_of(pod), {"phase": "Running", "podIPs": ips, "conditions": conditions})


class TestWorkloads:
    def test_names_are_those_of_the_real_controllers(self, store: Store) -> None:
        admit(store, PLAN, workload("Deployment", replicas=3))
        run(store)
        (replicaset,) = store.list(REPLICASETS)
        pods = store.list(PODS)
        assert replicaset["metadata"]["name"].startswith("web-")
        assert len(pods) == 3
        for pod in pods:
            prefix, suffix = pod["metadata"]["name"].rsplit("-", 1)
            assert (prefix, len(suffix)) == (replicaset["metadata"]["name"], 5)
            assert set(suffix) <= set(ownedpods.ALPHABET)
            assert pod["metadata"]["labels"]["pod-template-hash"] == prefix.removeprefix("web-")

    def test_the_hash_follows_the_template(self) -> None:
        one, other = workload("Deployment")["spec"]["template"], workload("Deployment")["spec"]["template"]
        assert ownedpods.template_hash(one) == ownedpods.template_hash(other)
        other["spec"]["containers"][0]["image"] = "nginx"
        assert ownedpods.template_hash(one) != ownedpods.template_hash(other)

    def test_scaling(self, store: Store) -> None:
        deployment = admit(store, PLAN, workload("Deployment", replicas=5))
        run(store)
        for replicas in (2, 4, 0):
            deployment = store.get(DEPLOYMENTS, "default", "web")
            store.update(DEPLOYMENTS, {**deployment, "spec": {**deployment["spec"], "replicas": replicas}})
            run(store)
            assert len(store.list(PODS)) == replicas

    def test_those_that_serve_stay_when_some_must_go(self, store: Store) -> None:
        admit(store, PLAN, workload("ReplicaSet", replicas=3))
        run(store)
        serve(store)
        first = store.list(PODS)[0]
        conditions = [{"type": "Ready", "status": "False"}]
        store.update_status(PODS, *key_of(first), {**first["status"], "conditions": conditions})
        replicaset = store.list(REPLICASETS)[0]
        store.update(REPLICASETS, {**replicaset, "spec": {**replicaset["spec"], "replicas": 2}})
        run(store, 1)
        assert first["metadata"]["name"] not in {pod["metadata"]["name"] for pod in store.list(PODS)}

    def test_a_changed_template_replaces_the_pods(self, store: Store) -> None:
        admit(store, PLAN, workload("Deployment", replicas=2))
        run(store)
        deployment = store.get(DEPLOYMENTS, "default", "web")
        template = {**deployment["spec"]["template"], "metadata": {"labels": {"app": "web", "version": "2"}}}
        store.update(DEPLOYMENTS, {**deployment, "spec": {**deployment["spec"], "template": template}})
        for _ in range(6):
            run(store)
            serve(store)
        assert {pod["metadata"]["labels"]["version"] for pod in store.list(PODS)} == {"2"}
        sizes = {str(revision(item)): item["spec"]["replicas"] for item in store.list(REPLICASETS)}
        assert sizes == {"1": 0, "2": 2}

    def test_a_rolling_update_keeps_to_its_bounds(self, store: Store) -> None:
        """10 replicas, 25% each way: never more than 13 pods, never less than 8 that serve."""
        admit(store, PLAN, workload("Deployment", replicas=10))
        run(store)
        serve(store)
        run(store)
        self.set_version(store, "2")
        seen = []
        for _ in range(20):
            run(store, 1)
            pods = [pod for pod in store.list(PODS) if "deletionTimestamp" not in pod["metadata"]]
            seen.append((len(pods), sum(map(is_ready, pods))))
            serve(store)
        assert max(total for total, _ in seen) == 13
        assert min(ready for _, ready in seen) == 8
        assert seen[-1] == (10, 10)
        status = store.get(DEPLOYMENTS, "default", "web")["status"]
        assert {entry["type"]: entry["reason"] for entry in status["conditions"]} == {
            "Available": "MinimumReplicasAvailable",
            "Progressing": "NewReplicaSetAvailable",
        }

    def test_a_version_that_comes_back_is_the_newest_revision(self, store: Store) -> None:
        admit(store, PLAN, workload("Deployment", replicas=1))
        for version in ("1", "2", "1"):
            self.set_version(store, version)
            for _ in range(6):
                run(store)
                serve(store)
        sizes = {str(revision(item)): item["spec"]["replicas"] for item in store.list(REPLICASETS)}
        assert sizes == {"2": 0, "3": 1}
        annotations = store.get(DEPLOYMENTS, "default", "web")["metadata"]["annotations"]
        assert annotations == {"deployment.kubernetes.io/revision": "3"}

    def test_recreate_never_runs_two_versions(self, store: Store) -> None:
        admit(store, PLAN, workload("Deployment", replicas=2, strategy={"type": "Recreate"}))
        run(store)
        serve(store)
        self.set_version(store, "2")
        for _ in range(10):
            run(store, 1)
            labels = {pod["metadata"]["labels"].get("version") for pod in store.list(PODS)}
            assert len(labels) <= 1
            serve(store)
        assert labels == {"2"}

    def test_a_paused_deployment_keeps_its_version_but_scales(self, store: Store) -> None:
        admit(store, PLAN, workload("Deployment", replicas=1))
        run(store)
        serve(store)
        deployment = store.get(DEPLOYMENTS, "default", "web")
        store.update(DEPLOYMENTS, {**deployment, "spec": {**deployment["spec"], "paused": True, "replicas": 3}})
        self.set_version(store, "2")
        run(store)
        assert [pod["metadata"]["labels"].get("version") for pod in store.list(PODS)] == [None] * 3

    @staticmethod
    def set_version(store: Store, version: str) -> None:
        deployment = store.get(DEPLOYMENTS, "default", "web")
        template = {**deployment["spec"]["template"], "metadata": {"labels": {"app": "web", "version": version}}}
        store.update(DEPLOYMENTS, {**deployment, "spec": {**deployment["spec"], "template": template}})

    def test_a_daemonset_has_one_pod_on_each_node(self, store: Store) -> None:
        admit(store, PLAN, workload("DaemonSet"))
        run(store)
        assert sorted(pod["spec"]["nodeName"] for pod in store.list(PODS)) == ["node1", "node2", "node3"]

    def test_pods_go_with_their_owner(self, store: Store) -> None:
        admit(store, PLAN, workload("ReplicaSet", replicas=2))
        run(store)
        store.delete(REPLICASETS, "default", "web")
        run(store)
        assert store.list(PODS) == []

    def test_a_settled_cluster_is_left_alone(self, store: Store) -> None:
        admit(store, PLAN, workload("Deployment", replicas=3))
        run(store)
        serve(store)
        run(store)
        version = store.version
        run(store)
        assert store.version == version


class TestScheduler:
    def test_pods_of_one_owner_are_spread(self, store: Store) -> None:
        admit(store, PLAN, workload("Deployment", replicas=6))
        run(store)
        assert Counter(pod["spec"]["nodeName"] for pod in store.list(PODS)) == {"node1": 2, "node2": 2, "node3": 2}

    def test_a_node_selector_is_kept(self, store: Store) -> None:
        for name, selector in (("a", {"kubernetes.io/hostname": "node3"}), ("b", {"no": "such"})):
            spec = {"nodeSelector": selector, "containers": [{"name": "x", "image": "client"}]}
            admit(store, PLAN, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        run(store)
        assert store.get(PODS, "default", "a")["spec"]["nodeName"] == "node3"
        assert "nodeName" not in store.get(PODS, "default", "b")["spec"]

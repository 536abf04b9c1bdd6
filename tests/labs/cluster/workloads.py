"""A store with nodes and the controllers that make pods, without kubelets: tests play those.

What belongs here: making and driving. What does not: assertions.
"""

from __future__ import annotations

import datetime
from typing import Any

from labs.cluster import daemonsets, replicasets, rollouts, scheduler, taints
from labs.cluster.options import AddressPlan
from labs.cluster.resources import NODES, PODS, Object, Resource, key_of
from labs.cluster.store import Store
from tests.labs.cluster.stores import store_with

PLAN = AddressPlan((4, 6))


def new_store(nodes: int = 3) -> Store:
    """A store with the namespace default and some nodes."""
    store = store_with("default")
    for number in range(1, nodes + 1):
        name = f"node{number}"
        store.create(NODES, {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {}})
    return store


class Driver:
    """Runs controllers over a store, step by step."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._reconcilers = (
            rollouts.reconciler(store, PLAN),
            replicasets.reconciler(store, PLAN),
            daemonsets.reconciler(store, PLAN),
            taints.reconciler(store),
            scheduler.reconciler(store),
        )

    def run(self, times: int = 3) -> list[float]:
        """All controllers, some times; gives the times after which they want to be called, of the last round."""
        wanted: list[float | None] = []
        for _ in range(times):
            wanted = [reconcile() for reconcile in self._reconcilers]
            self.stop()
        return [time for time in wanted if time is not None]

    def settle(self, rounds: int = 12) -> None:
        """Controllers and kubelets, until all that is to come has come."""
        for _ in range(rounds):
            self.run(1)
            self.serve()

    def stop(self) -> None:
        """What kubelets do with pods that are to go."""
        for pod in self.store.list(PODS):
            if "deletionTimestamp" in pod["metadata"]:
                self.store.delete(PODS, *key_of(pod))

    def serve(self, *, ready: bool = True, ago: float = 0.0, names: set[str] | None = None) -> None:
        """What kubelets report of pods (all, or those of these names): ready or not, since so many seconds."""
        since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
        moment = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        for pod in self.store.list(PODS):
            placed = bool(pod["spec"].get("nodeName"))
            if placed and (names is None or pod["metadata"]["name"] in names):
                word = "True" if ready else "False"
                condition = {"type": "Ready", "status": word, "lastTransitionTime": moment}
                if is_as(pod, word):
                    continue
                status = {**pod["status"], "phase": "Running", "conditions": [condition]}
                self.store.update_status(PODS, *key_of(pod), status)

    def change(self, resource: Resource, name: str = "web", **spec: Any) -> Object:
        """Change fields of an object's spec."""
        item = self.store.get(resource, "default", name)
        return self.store.update(resource, {**item, "spec": {**item["spec"], **spec}})

    def set_image(self, resource: Resource, image: str, name: str = "web") -> None:
        """Change the image of a template's only container."""
        template = self.store.get(resource, "default", name)["spec"]["template"]
        (container,) = template["spec"]["containers"]
        self.change(
            resource,
            name,
            template={**template, "spec": {**template["spec"], "containers": [{**container, "image": image}]}},
        )

    def images(self) -> list[str]:
        """The images of all pods, sorted."""
        return sorted(pod["spec"]["containers"][0]["image"] for pod in self.store.list(PODS))


def is_as(pod: Object, word: str) -> bool:
    """Whether a pod's condition Ready is so already."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any((entry["type"], entry["status"]) == ("Ready", word) for entry in conditions)


def workload(kind: str, **spec: Any) -> Object:
    """A Deployment, ReplicaSet or DaemonSet called web."""
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "http-echo"}]},
            },
            **spec,
        },
    }

"""The ReplicaSets of a Deployment: one for each version of its pod template, numbered, the newest being rolled out.

Stands for the part of kube-controller-manager's deployment controller that finds, makes, annotates and scales
ReplicaSets (pkg/controller/deployment/sync.go, util/deployment_util.go). A ReplicaSet is called DEPLOYMENT-HASH after
its pod template. Left out: annotations of versions before apps/v1.

What belongs here: ReplicaSets. What does not: how many pods each of them is to have (`labs.cluster.rollouts`).
"""

from __future__ import annotations

import copy
import math

from labs.cluster.admission import prepare
from labs.cluster.events import Recorder
from labs.cluster.options import AddressPlan
from labs.cluster.ownedpods import share, template_hash
from labs.cluster.resources import DEPLOYMENTS, REPLICASETS, Object, controller_of, key_of, owner_reference
from labs.cluster.store import AlreadyExists, Store

REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
HASH_LABEL = "pod-template-hash"
# Annotations of a Deployment that its ReplicaSets don't get.
OWN_ANNOTATIONS = frozenset(
    {"kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAXIMUM}
)


class Revisions:
    """The ReplicaSets of one Deployment in one pass. `new`: that of the template as it is now, None without one;
    `old`: all others, oldest first."""

    def __init__(
        self, store: Store, plan: AddressPlan, events: Recorder, deployment: Object, replicasets: list[Object]
    ) -> None:
        self._store = store
        self._plan = plan
        self._events = events
        self._deployment = deployment
        self._spec = deployment["spec"]
        by_age = sorted(replicasets, key=lambda item: (item["metadata"]["creationTimestamp"], revision(item)))
        self.new = next((item for item in by_age if _same_template(item, deployment)), None)
        self.old = [item for item in by_age if item is not self.new]

    @property
    def all(self) -> list[Object]:
        """All of them, the new one last."""
        return [*self.old, *([self.new] if self.new is not None else [])]

    @property
    def active(self) -> list[Object]:
        """Those that are to have pods."""
        return [item for item in self.all if size(item)]

    def sync(self, replicas: int | None) -> bool:
        """Bring the new ReplicaSet's annotations up to date, or make it, with `replicas` pods (None: don't); gives
        whether it was made. A version that comes back is the newest again."""
        if self.new is not None:
            self._annotate()
        elif replicas is not None:
            self.new = self._create(replicas)
            return True
        return False

    def scale(self, item: Object, replicas: int) -> Object:
        """Give a ReplicaSet another size, and note for which size of the Deployment that was."""
        before = size(item)
        annotations = {**(item["metadata"].get("annotations") or {}), **self._sizes()}
        if before == replicas and annotations == item["metadata"].get("annotations"):
            return item
        current = self._store.get(REPLICASETS, *key_of(item))
        metadata = {**current["metadata"], "annotations": annotations}
        spec = {**current["spec"], "replicas": replicas}
        scaled = self._store.update(REPLICASETS, {**current, "metadata": metadata, "spec": spec})
        if before != replicas:
            direction = "up" if replicas > before else "down"
            message = f"Scaled {direction} replica set {item['metadata']['name']} to {replicas} from {before}"
            self._events.normal(self._deployment, "ScalingReplicaSet", message)
        self._exchange(item, scaled)
        return scaled

    def forget_history(self) -> None:
        """Remove the oldest of the ReplicaSets that nothing is left of (cleanupDeployment)."""
        idle = [item for item in self.old if not size(item) and not (item.get("status") or {}).get("replicas")]
        surplus = len(idle) - self._spec.get("revisionHistoryLimit", 10)
        for item in sorted(idle, key=revision)[: max(surplus, 0)]:
            self._store.delete(REPLICASETS, *key_of(item))
            self.old.remove(item)

    def _exchange(self, item: Object, by: Object) -> None:
        if self.new is item:
            self.new = by
        else:
            self.old[self.old.index(item)] = by

    def _create(self, replicas: int) -> Object:
        """getNewReplicaSet: a name that another template has taken is made anew (hash collisions)."""
        while True:
            collisions = (self._deployment.get("status") or {}).get("collisionCount", 0)
            resource, item = prepare(self._store.kinds, self._plan, self._planned(replicas, collisions))
            try:
                created = self._store.create(resource, item)
            except AlreadyExists:
                there = self._store.get(REPLICASETS, *key_of(item))
                if controller_of(there) == self._deployment["metadata"]["uid"] and _same_template(
                    there, self._deployment
                ):
                    return there
                self._count_collision(collisions + 1)
                continue
            if replicas:
                message = f"Scaled up replica set {created['metadata']['name']} to {replicas}"
                self._events.normal(self._deployment, "ScalingReplicaSet", message)
            return created

    def _planned(self, replicas: int, collisions: int) -> Object:
        namespace, name = key_of(self._deployment)
        digest = template_hash(self._spec["template"], collisions)
        template = copy.deepcopy(self._spec["template"])
        template["metadata"].setdefault("labels", {})[HASH_LABEL] = digest
        selector = copy.deepcopy(self._spec["selector"])
        selector.setdefault("matchLabels", {})[HASH_LABEL] = digest
        spec = {"replicas": replicas, "selector": selector, "template": template}
        if self._spec.get("minReadySeconds"):
            spec["minReadySeconds"] = self._spec["minReadySeconds"]
        metadata = {
            "name": f"{name}-{digest}",
            "namespace": namespace,
            "labels": dict(template["metadata"]["labels"]),
            "annotations": {**self._carried(), **self._sizes(), REVISION: str(self._newest_old() + 1)},
            "ownerReferences": [owner_reference(self._deployment)],
        }
        return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec}

    def _count_collision(self, count: int) -> None:
        current = self._store.get(DEPLOYMENTS, *key_of(self._deployment))
        status = {**(current.get("status") or {}), "collisionCount": count}
        self._deployment = self._store.update(DEPLOYMENTS, {**current, "status": status})

    def _annotate(self) -> None:
        """SetNewReplicaSetAnnotations; minReadySeconds follows the Deployment too."""
        assert self.new is not None
        annotations = {**(self.new["metadata"].get("annotations") or {}), **self._carried()}
        before, newest = revision(self.new), self._newest_old()
        if before <= newest:
            annotations[REVISION] = str(newest + 1)
            if before:
                history = filter(None, annotations.get(REVISION_HISTORY, "").split(","))
                annotations[REVISION_HISTORY] = ",".join([*history, str(before)])
        spec = {key: value for key, value in self.new["spec"].items() if key != "minReadySeconds"}
        if self._spec.get("minReadySeconds"):
            spec["minReadySeconds"] = self._spec["minReadySeconds"]
        metadata = {**self.new["metadata"], "annotations": annotations}
        self.new = self._store.update(REPLICASETS, {**self.new, "metadata": metadata, "spec": spec})

    def _carried(self) -> dict[str, str]:
        own = self._deployment["metadata"].get("annotations") or {}
        return {key: value for key, value in own.items() if key not in OWN_ANNOTATIONS}

    def _sizes(self) -> dict[str, str]:
        wanted: int = self._spec["replicas"]
        return {DESIRED: str(wanted), MAXIMUM: str(wanted + max_surge(self._deployment))}

    def _newest_old(self) -> int:
        return max(map(revision, self.old), default=0)


def _same_template(replicaset: Object, deployment: Object) -> bool:
    """Whether a ReplicaSet is of a Deployment's template as it is now (EqualIgnoreHash)."""
    return _comparable(replicaset["spec"]["template"]) == _comparable(deployment["spec"]["template"])


def _comparable(template: Object) -> Object:
    """A template without the hash, and without what Go's zero values hide: no time, no labels or annotations."""
    metadata = template["metadata"]
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != HASH_LABEL}
    kept = {key: value for key, value in {**metadata, "labels": labels}.items() if value}
    return {**template, "metadata": kept}


# --- numbers ----------------------------------------------------------------------------------------------------------


def revision(replicaset: Object) -> int:
    """The number of a ReplicaSet's version; 0 when it has none."""
    text = (replicaset["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdecimal() else 0


def size(replicaset: Object) -> int:
    """How many pods a ReplicaSet is to have."""
    return int(replicaset["spec"]["replicas"])


def available(replicaset: Object) -> int:
    """How many available pods it has."""
    return int((replicaset.get("status") or {}).get("availableReplicas", 0))


def max_surge(deployment: Object) -> int:
    """How many pods more than wanted there may be for a time."""
    return _bounds(deployment)[0]


def max_unavailable(deployment: Object) -> int:
    """How many pods may be missing for a time."""
    return min(_bounds(deployment)[1], int(deployment["spec"]["replicas"]))


def _bounds(deployment: Object) -> tuple[int, int]:
    """maxSurge, rounded up, and maxUnavailable, rounded down; one of them at least (ResolveFenceposts)."""
    spec = deployment["spec"]
    if spec["strategy"]["type"] != "RollingUpdate":
        return 0, 0
    rolling = spec["strategy"]["rollingUpdate"]
    surge = share(rolling["maxSurge"], spec["replicas"], math.ceil)
    unavailable = share(rolling["maxUnavailable"], spec["replicas"], math.floor)
    return (surge, unavailable) if surge or unavailable else (0, 1)

"""Pods that a controller makes from a template: making and deleting them, and when they count.

Stands for pkg/controller/controller_utils.go (PodControlInterface, ComputeHash, ActivePodsWithRanks) and
pkg/api/v1/pod (IsPodAvailable). Left out: expectations and slow starts, which guard against caches that lag behind.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from labs.cluster.admission import ALPHABET, Forbidden, NoNamespace, admit, random_suffix
from labs.cluster.deletion import delete
from labs.cluster.events import Recorder
from labs.cluster.options import AddressPlan
from labs.cluster.resources import PODS, Object, is_ready, key_of, owner_reference
from labs.cluster.store import Store
from tracer.errors import K8snetError

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
PHASES = ("Pending", "Unknown", "Running")


class PodMaker:
    """Makes and deletes the pods of one kind of owner, and tells of it in Events."""

    def __init__(self, store: Store, plan: AddressPlan, events: Recorder) -> None:
        self._store = store
        self._plan = plan
        self._events = events

    def create(self, owner: Object, labels: Object | None = None, spec: Object | None = None) -> Object:
        """Make a pod from the owner's template, with more labels, or with another spec than the template's.

        Raises K8snetError, which it has told of, when the API refuses the pod.
        """
        template = copy.deepcopy(owner["spec"]["template"])
        namespace, name = key_of(owner)
        metadata = {
            **{key: value for key, value in template["metadata"].items() if key in ("labels", "annotations")},
            "name": f"{name[:57]}-{random_suffix()}",
            "generateName": f"{name}-",
            "namespace": namespace,
            "ownerReferences": [owner_reference(owner)],
        }
        metadata["labels"] = {**(metadata.get("labels") or {}), **(labels or {})}
        item = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec or template["spec"]}
        try:
            pod = admit(self._store, self._plan, item)
        except K8snetError as error:
            if not is_ending(error):
                self._events.warning(owner, "FailedCreate", f"Error creating: {error.message}")
            raise
        self._events.normal(owner, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        return pod

    def delete(self, owner: Object, pod: Object) -> None:
        """Delete a pod, with its grace period."""
        delete(self._store, PODS, *key_of(pod))
        self._events.normal(owner, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")


def is_ending(error: K8snetError) -> bool:
    """Whether the API refuses something because its namespace goes or has gone; whoever wanted it is to go too."""
    if isinstance(error, NoNamespace):
        return True
    causes = error.causes if isinstance(error, Forbidden) else []
    return any(cause["reason"] == "NamespaceTerminating" for cause in causes)


def template_hash(template: Object, collisions: int = 0) -> str:
    """Nine or ten characters that stand for a pod template; others when that name was taken `collisions` times."""
    digest = hashlib.sha256(json.dumps([template, collisions], sort_keys=True).encode()).digest()
    return safe_encode(str(int.from_bytes(digest[:4], "big")))


def safe_encode(text: str) -> str:
    """Text in the letters of ALPHABET (rand.SafeEncodeString)."""
    return "".join(ALPHABET[ord(letter) % len(ALPHABET)] for letter in text)


def share(value: Any, total: int, rounded: Callable[[float], int]) -> int:
    """A number of pods, or "25%" of `total` (GetScaledValueFromIntOrPercent)."""
    if isinstance(value, str):
        return rounded(int(value.rstrip("%")) * total / 100)
    return int(value)


# --- when pods count --------------------------------------------------------------------------------------------------


def until_available(pod: Object, seconds: int, moment: datetime.datetime) -> float | None:
    """How long it takes until a pod has been ready for `seconds`: 0 when it has, None while it is not ready."""
    if not is_ready(pod):
        return None
    since = ready_since(pod)
    if not seconds or since is None:
        return 0.0
    return max((since - moment).total_seconds() + seconds, 0.0)


def count_available(pods: Iterable[Object], seconds: int) -> tuple[int, float | None]:
    """How many pods are available, and how long until the next of them is."""
    moment = datetime.datetime.now(datetime.UTC)
    times = [time for time in (until_available(pod, seconds, moment) for pod in pods) if time is not None]
    return sum(1 for time in times if not time), min(filter(None, times), default=None)


def ready_since(pod: Object) -> datetime.datetime | None:
    """Since when a pod is ready; None when it is not, or nobody knows."""
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] == "True" and condition.get("lastTransitionTime"):
            return datetime.datetime.fromisoformat(condition["lastTransitionTime"])
    return None


def first_to_go(pods: Iterable[Object], crowd: Mapping[str, int]) -> list[Object]:
    """Pods in the order in which they are deleted when there are too many (ActivePodsWithRanks). `crowd`: how many
    pods of the same application are on each node.

    Times count by their magnitude only, so that it is not always the youngest that goes; of two like ones, the uid
    decides.
    """
    moment = datetime.datetime.now(datetime.UTC)

    def rank(pod: Object) -> tuple[Any, ...]:
        node, phase = pod["spec"].get("nodeName", ""), (pod.get("status") or {}).get("phase", "Unknown")
        return (
            bool(node),
            PHASES.index(phase) if phase in PHASES else len(PHASES),
            is_ready(pod),
            _cost(pod),
            -crowd.get(node, 0),
            _magnitude(ready_since(pod), moment) if is_ready(pod) else 0,
            -_restarts(pod),
            _magnitude(datetime.datetime.fromisoformat(pod["metadata"]["creationTimestamp"]), moment),
            pod["metadata"]["uid"],
        )

    return sorted(pods, key=rank)


def _cost(pod: Object) -> int:
    text = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
    try:
        return int(text)
    except ValueError:
        return 0


def _magnitude(since: datetime.datetime | None, moment: datetime.datetime) -> int:
    seconds = (moment - since).total_seconds() if since is not None else 0
    return int(math.log2(seconds * 1e9)) if seconds > 0 else -1


def _restarts(pod: Object) -> int:
    return max((state["restartCount"] for state in (pod.get("status") or {}).get("containerStatuses") or ()), default=0)

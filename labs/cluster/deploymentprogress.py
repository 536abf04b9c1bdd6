"""What a Deployment says of itself: counts, and whether it is available and gets on.

Stands for kube-controller-manager's deployment controller (pkg/controller/deployment: progress.go, calculateStatus in
sync.go; util/deployment_util.go). `kubectl rollout status` reads the condition Progressing: it ends with an error once
nothing has moved for progressDeadlineSeconds.
"""

from __future__ import annotations

import datetime

from labs.cluster.deploymentrevisions import Revisions, available, max_unavailable, size
from labs.cluster.resources import Object
from labs.cluster.store import now

AVAILABLE, PROGRESSING, FAILURE = "Available", "Progressing", "ReplicaFailure"
NEW, FOUND, UPDATED, DONE = "NewReplicaSetCreated", "FoundNewReplicaSet", "ReplicaSetUpdated", "NewReplicaSetAvailable"
TIMED_OUT, PAUSED, RESUMED = "ProgressDeadlineExceeded", "DeploymentPaused", "DeploymentResumed"

Conditions = dict[str, Object]


def conditions_of(deployment: Object) -> Conditions:
    """A Deployment's conditions, by type."""
    return {entry["type"]: entry for entry in (deployment.get("status") or {}).get("conditions") or ()}


def note_pause(deployment: Object, conditions: Conditions) -> None:
    """Say in the condition Progressing that a rollout was paused or resumed (checkPausedConditions)."""
    current = conditions.get(PROGRESSING)
    if not _deadline(deployment) or (current is not None and current["reason"] == TIMED_OUT):
        return
    was_paused = current is not None and current["reason"] == PAUSED
    if deployment["spec"].get("paused") and not was_paused:
        _set(conditions, PROGRESSING, "Unknown", PAUSED, "Deployment is paused")
    elif not deployment["spec"].get("paused") and was_paused:
        _set(conditions, PROGRESSING, "Unknown", RESUMED, "Deployment is resumed")


def note_revision(deployment: Object, conditions: Conditions, revisions: Revisions, *, created: bool) -> None:
    """Say that a new ReplicaSet was made, or found when nothing was said yet."""
    if revisions.new is None or not _deadline(deployment):
        return
    name = revisions.new["metadata"]["name"]
    if created:
        _set(conditions, PROGRESSING, "True", NEW, f'Created new replica set "{name}"')
    elif PROGRESSING not in conditions:
        _set(conditions, PROGRESSING, "True", FOUND, f'Found new replica set "{name}"')


def status_of(deployment: Object, conditions: Conditions, revisions: Revisions) -> Object:
    """The counts, and the condition Available (calculateStatus)."""
    new = (revisions.new or {}).get("status") or {}
    ready = sum((item.get("status") or {}).get("readyReplicas", 0) for item in revisions.all)
    serving = sum(map(available, revisions.all))
    counts = {
        "replicas": sum((item.get("status") or {}).get("replicas", 0) for item in revisions.all),
        "updatedReplicas": new.get("replicas", 0),
        "readyReplicas": ready,
        "availableReplicas": serving,
        "unavailableReplicas": max(sum(map(size, revisions.all)) - serving, 0),
        "collisionCount": (deployment.get("status") or {}).get("collisionCount", 0),
    }
    if serving >= deployment["spec"]["replicas"] - max_unavailable(deployment):
        words = "Deployment has minimum availability."
        _set(conditions, AVAILABLE, "True", "MinimumReplicasAvailable", words)
    else:
        words = "Deployment does not have minimum availability."
        _set(conditions, AVAILABLE, "False", "MinimumReplicasUnavailable", words)
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        **{name: count for name, count in counts.items() if count},
    }


def note_progress(deployment: Object, conditions: Conditions, revisions: Revisions, status: Object) -> None:
    """Bring the conditions Progressing and ReplicaFailure up to date (syncRolloutStatus)."""
    before = deployment.get("status") or {}
    current = conditions.get(PROGRESSING)
    name = f'ReplicaSet "{revisions.new["metadata"]["name"]}"' if revisions.new else ""
    subject = name or f'Deployment "{deployment["metadata"]["name"]}"'
    settled = (
        _count(status, "replicas") == _count(status, "updatedReplicas")
        and current is not None
        and current["reason"] == DONE
    )
    if not _deadline(deployment):
        conditions.pop(PROGRESSING, None)
    elif settled:
        pass
    elif is_complete(deployment, status):
        _set(conditions, PROGRESSING, "True", DONE, f"{subject} has successfully progressed.")
    elif _got_on(before, status):
        moved = current["lastTransitionTime"] if current is not None and current["status"] == "True" else None
        conditions.pop(PROGRESSING, None)
        _set(conditions, PROGRESSING, "True", UPDATED, f"{subject} is progressing.")
        if moved is not None:
            conditions[PROGRESSING]["lastTransitionTime"] = moved
    elif (left := seconds_left(deployment, conditions)) is not None and left <= 0:
        _set(conditions, PROGRESSING, "False", TIMED_OUT, f"{subject} has timed out progressing.")
    failures = [
        entry
        for item in (*([revisions.new] if revisions.new else []), *revisions.old)
        for entry in (item.get("status") or {}).get("conditions") or ()
        if entry["type"] == FAILURE
    ]
    if failures:
        _set(conditions, FAILURE, failures[0]["status"], failures[0]["reason"], failures[0]["message"])
    else:
        conditions.pop(FAILURE, None)


def is_complete(deployment: Object, status: Object) -> bool:
    """Whether all pods are of the new version and available, and nothing else is left (DeploymentComplete)."""
    wanted = deployment["spec"]["replicas"]
    counts = ("updatedReplicas", "replicas", "availableReplicas")
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return seen and all(_count(status, name) == wanted for name in counts)


def seconds_left(deployment: Object, conditions: Conditions) -> float | None:
    """How long a rollout still has to get on; None when nobody waits for it (DeploymentTimedOut)."""
    current, deadline = conditions.get(PROGRESSING), _deadline(deployment)
    if current is None or not deadline or current["reason"] in (DONE, TIMED_OUT, PAUSED):
        return None
    since = datetime.datetime.fromisoformat(current["lastUpdateTime"])
    return deadline - (datetime.datetime.now(datetime.UTC) - since).total_seconds()


def _got_on(before: Object, status: Object) -> bool:
    """Whether there are more new pods, fewer old ones, or more that serve than before (DeploymentProgressing)."""

    def old(counts: Object) -> int:
        return _count(counts, "replicas") - _count(counts, "updatedReplicas")

    more = ("updatedReplicas", "readyReplicas", "availableReplicas")
    return old(status) < old(before) or any(_count(status, name) > _count(before, name) for name in more)


def _count(status: Object, name: str) -> int:
    return int(status.get(name, 0))


def _deadline(deployment: Object) -> int:
    """The Deployment's deadline in seconds; 0 for none."""
    seconds: int = deployment["spec"].get("progressDeadlineSeconds") or 0
    return 0 if seconds == 2**31 - 1 else seconds


def _set(conditions: Conditions, kind: str, state: str, reason: str, message: str) -> None:
    """Set a condition; one of the same state and reason stays as it was (SetDeploymentCondition)."""
    before = conditions.get(kind)
    if before is not None and (before["status"], before["reason"]) == (state, reason):
        return
    same = before is not None and before["status"] == state
    conditions[kind] = {
        "type": kind,
        "status": state,
        "lastUpdateTime": now(),
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and same else now(),
        "reason": reason,
        "message": message,
    }

"""Deleting objects: at once, after a grace period, or once those who hold a finalizer let go.

Stands for the delete path of the generic registry (k8s.io/apiserver/pkg/registry/generic/registry/store.go, Delete;
registry/rest/delete.go, BeforeDelete), the graceful deletion of pods (pkg/registry/core/pod/strategy.go) and of
namespaces. An object that can't go at once gets a deletionTimestamp; a pod is then removed by its kubelet, a namespace
and what waits for its dependents by `labs.cluster.garbage`.

What belongs here: what a deletion does to the object itself. What does not: what else goes with it.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from labs.cluster.extensions.definitions import CLEANUP
from labs.cluster.resources import DEFINITIONS, NAMESPACES, NODES, PODS, Object, Resource
from labs.cluster.store import Conflict, Store

ORPHAN, FOREGROUND, BACKGROUND = "Orphan", "Foreground", "Background"
FINALIZERS = {ORPHAN: "orphan", FOREGROUND: "foregroundDeletion"}


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """How to delete. `grace`: seconds, None for what the object says; `uid`, `version`: what the object must have."""

    grace: int | None = None
    propagation: str = BACKGROUND
    uid: str | None = None
    version: str | None = None
    dry_run: bool = False


DEFAULT = DeleteOptions()


def delete(
    store: Store, resource: Resource, namespace: str, name: str, options: DeleteOptions = DEFAULT
) -> tuple[Object, bool]:
    """Delete an object; gives its last state, and whether it is gone already. Raises NotFound or Conflict."""
    item = store.get(resource, namespace, name)
    _check_preconditions(resource, item, options)
    finalizers = _finalizers(resource, item, options)
    grace = _grace(store, resource, item, options.grace)
    if grace == 0 and not finalizers and resource != NAMESPACES:
        return (item if options.dry_run else store.delete(resource, namespace, name)), True
    marked = _mark(item, grace, finalizers)
    if resource == NAMESPACES:
        marked["status"] = {**(marked.get("status") or {}), "phase": "Terminating"}
    return store.update(resource, marked, dry_run=options.dry_run), False


def let_go(store: Store, resource: Resource, item: Object) -> Object:
    """Remove an object that was to go, if nothing holds it any more; gives its state now.

    For whoever has just taken away a finalizer.
    """
    metadata = item["metadata"]
    held = metadata.get("finalizers") or (resource == NAMESPACES and (item.get("spec") or {}).get("finalizers"))
    if "deletionTimestamp" not in metadata or held or metadata.get("deletionGracePeriodSeconds"):
        return item
    return store.delete(resource, metadata.get("namespace", ""), metadata["name"])


def _check_preconditions(resource: Resource, item: Object, options: DeleteOptions) -> None:
    metadata = item["metadata"]
    for word, wanted, found in (
        ("UID", options.uid, metadata["uid"]),
        ("ResourceVersion", options.version, metadata["resourceVersion"]),
    ):
        if wanted is not None and wanted != found:
            raise Conflict(
                f'Operation cannot be fulfilled on {resource.qualified} "{metadata["name"]}": Precondition failed: '
                f"{word} in precondition: {wanted}, {word} in object meta: {found}"
            )


def _finalizers(resource: Resource, item: Object, options: DeleteOptions) -> list[str]:
    """What holds the object: what did before, without or with the one that the propagation policy asks for; and a
    definition is held by its objects."""
    wanted = FINALIZERS.get(options.propagation)
    kept = [name for name in item["metadata"].get("finalizers") or () if name not in FINALIZERS.values()]
    if resource == DEFINITIONS and CLEANUP not in kept and "deletionTimestamp" not in item["metadata"]:
        kept.append(CLEANUP)
    return [*kept, wanted] if wanted else kept


def _grace(store: Store, resource: Resource, item: Object, asked: int | None) -> int:
    """How long the object may take: only pods that run somewhere take their time."""
    if resource != PODS:
        return 0
    node, phase = item["spec"].get("nodeName"), item["status"].get("phase")
    if not node or phase in ("Succeeded", "Failed") or store.find(NODES, "", node) is None:
        return 0
    grace = item["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked
    grace = 1 if grace < 0 else int(grace)
    before = item["metadata"].get("deletionGracePeriodSeconds")
    return grace if before is None else min(grace, before)


def _mark(item: Object, grace: int, finalizers: list[str]) -> Object:
    """The object with the time when it is to be gone. One that was marked keeps its time, unless it is made shorter."""
    metadata = {**item["metadata"]}
    if "deletionTimestamp" not in metadata or grace < metadata.get("deletionGracePeriodSeconds", 0):
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=grace)
        metadata["deletionTimestamp"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["deletionGracePeriodSeconds"] = grace
    metadata.pop("finalizers", None)
    if finalizers:
        metadata["finalizers"] = finalizers
    return {**item, "metadata": metadata}

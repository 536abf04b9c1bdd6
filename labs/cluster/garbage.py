"""What goes with an object that is deleted: its dependents, and all that is in a namespace.

Stands for kube-controller-manager's garbage collector (pkg/controller/garbagecollector) and namespace controller
(pkg/controller/namespace). Three ways: in the background (an object all of whose owners are gone goes too), in the
foreground (the owner waits for its dependents), and orphaned (the dependents forget the owner and stay). Left out:
owners of kinds that are not served here, which count as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from labs.cluster.deletion import FINALIZERS, FOREGROUND, ORPHAN, DeleteOptions, delete, let_go
from labs.cluster.resources import NAMESPACES, Object, Resource, key_of
from labs.cluster.store import DELETED, Change, Conflict, NotFound, Store

WATCHED = (None,)  # everything, also kinds that are yet to be defined


def concerns(change: Change) -> bool:
    """Whether a change can mean that something is to be removed. New objects whose owner was never there are found by
    the sweep that comes from time to time anyway."""
    return change.kind == DELETED or "deletionTimestamp" in change.item["metadata"]


def reconciler(store: Store) -> Callable[[], None]:
    """The function that removes all that has lost its owner or its namespace."""

    def reconcile() -> None:
        items = [(resource, item) for resource in store.kinds.stored() for item in store.list(resource)]
        living = {item["metadata"]["uid"]: item for _, item in items}
        dependents: dict[str, list[tuple[Resource, Object]]] = {}
        for resource, item in items:
            for reference in item["metadata"].get("ownerReferences") or ():
                dependents.setdefault(reference["uid"], []).append((resource, item))
        for resource, item in items:
            try:
                _finish(store, resource, item, dependents.get(item["metadata"]["uid"], []))
                _collect(store, resource, item, living)
            except (NotFound, Conflict):
                continue  # somebody was faster, and that change calls for another run
        for namespace in store.list(NAMESPACES):
            if "deletionTimestamp" in namespace["metadata"]:
                _empty(store, namespace)

    return reconcile


def _finish(store: Store, resource: Resource, item: Object, dependents: list[tuple[Resource, Object]]) -> None:
    """Do what an object that is being deleted waits for."""
    held = item["metadata"].get("finalizers") or ()
    if "deletionTimestamp" not in item["metadata"]:
        return
    uid = item["metadata"]["uid"]
    if FINALIZERS[ORPHAN] in held:
        for kind, dependent in dependents:
            _forget(store, kind, dependent, uid)
        _release(store, resource, item, FINALIZERS[ORPHAN])
    elif FINALIZERS[FOREGROUND] in held:
        blocking = [entry for entry in dependents if _blocks(entry[1], uid)]
        for kind, dependent in dependents:
            if "deletionTimestamp" not in dependent["metadata"]:
                delete(store, kind, *key_of(dependent), DeleteOptions(propagation=FOREGROUND))
        if not blocking:
            _release(store, resource, item, FINALIZERS[FOREGROUND])


def _blocks(item: Object, uid: str) -> bool:
    references = item["metadata"].get("ownerReferences") or ()
    return any(entry["uid"] == uid and entry.get("blockOwnerDeletion") for entry in references)


def _forget(store: Store, resource: Resource, item: Object, uid: str) -> None:
    """Take an owner out of an object's ownerReferences."""
    current = store.get(resource, *key_of(item))
    kept = [entry for entry in current["metadata"].get("ownerReferences") or () if entry["uid"] != uid]
    metadata = {key: value for key, value in current["metadata"].items() if key != "ownerReferences"}
    if kept:
        metadata["ownerReferences"] = kept
    store.update(resource, {**current, "metadata": metadata})


def _release(store: Store, resource: Resource, item: Object, finalizer: str) -> None:
    """Take away a finalizer, and the object with it if that was the last."""
    current = store.get(resource, *key_of(item))
    kept = [name for name in current["metadata"].get("finalizers") or () if name != finalizer]
    metadata = {key: value for key, value in current["metadata"].items() if key != "finalizers"}
    if kept:
        metadata["finalizers"] = kept
    let_go(store, resource, store.update(resource, {**current, "metadata": metadata}))


def _collect(store: Store, resource: Resource, item: Object, living: dict[str, Object]) -> None:
    """Delete an object that had owners and has none left."""
    references = item["metadata"].get("ownerReferences") or ()
    if not references or "deletionTimestamp" in item["metadata"]:
        return
    if not any(_is_there(store, reference, item, living) for reference in references):
        delete(store, resource, *key_of(item), DeleteOptions(uid=item["metadata"]["uid"]))


def _is_there(store: Store, reference: Object, item: Object, living: dict[str, Object]) -> bool:
    kind = store.kinds.by_kind(reference["apiVersion"], reference["kind"])
    if kind is None:
        return True
    owner = living.get(reference["uid"])
    return owner is not None and key_of(owner) in (
        (item["metadata"].get("namespace", ""), reference["name"]),
        ("", reference["name"]),
    )


def _empty(store: Store, namespace: Object) -> None:
    """Delete what is in a namespace; when nothing is left, let the namespace go."""
    name = namespace["metadata"]["name"]
    left = False
    for resource, item in _contents(store, name):
        left = True
        if "deletionTimestamp" not in item["metadata"]:
            delete(store, resource, *key_of(item))
    if not left or not any(True for _ in _contents(store, name)):
        current = store.get(NAMESPACES, "", name)
        spec = {**(current.get("spec") or {}), "finalizers": []}
        let_go(store, NAMESPACES, store.update(NAMESPACES, {**current, "spec": spec}))


def _contents(store: Store, namespace: str) -> Iterator[tuple[Resource, Object]]:
    for resource in store.kinds.stored():
        if resource.namespaced:
            for item in store.list(resource, namespace):
                yield resource, item

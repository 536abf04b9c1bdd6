"""Whose is it: objects that a controller's selector finds and that have no controller are adopted, and those of its own
that the selector finds no longer are released.

Stands for pkg/controller/controller_ref_manager.go. Left out: asking the API once more before adopting; here there is
one writer at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

from labs.cluster.resources import Object, Resource, controller_of, key_of, owner_reference
from labs.cluster.selectors import matches_selector
from labs.cluster.store import Store


class Claims:
    """The objects of one kind, by the controller that they have."""

    def __init__(self, store: Store, resource: Resource, items: Iterable[Object]) -> None:
        self._store = store
        self._resource = resource
        self._owned: dict[str, list[Object]] = {}
        self._orphans: dict[str, list[Object]] = {}
        for item in items:
            owner = controller_of(item)
            if owner is not None:
                self._owned.setdefault(owner, []).append(item)
            elif "deletionTimestamp" not in item["metadata"]:
                self._orphans.setdefault(item["metadata"].get("namespace", ""), []).append(item)

    def of(self, owner: Object) -> list[Object]:
        """The objects of `owner`, which holds a selector, after adopting and releasing."""
        selector, uid = owner["spec"]["selector"], owner["metadata"]["uid"]
        namespace = owner["metadata"].get("namespace", "")
        if "deletionTimestamp" in owner["metadata"]:
            return [item for item in self._owned.get(uid, ()) if _found(selector, item)]
        mine = []
        for item in self._owned.get(uid, ()):
            if _found(selector, item):
                mine.append(item)
            else:
                self._release(item, uid)
        for item in tuple(self._orphans.get(namespace, ())):
            if _found(selector, item):
                self._orphans[namespace].remove(item)
                mine.append(self._adopt(item, owner))
        return mine

    def owned_by(self, uid: str) -> list[Object]:
        """The objects that name `uid` as their controller."""
        return self._owned.get(uid, [])

    def _adopt(self, item: Object, owner: Object) -> Object:
        current = self._store.get(self._resource, *key_of(item))
        references = [*(current["metadata"].get("ownerReferences") or ()), owner_reference(owner)]
        metadata = {**current["metadata"], "ownerReferences": references}
        return self._store.update(self._resource, {**current, "metadata": metadata})

    def _release(self, item: Object, uid: str) -> None:
        current = self._store.get(self._resource, *key_of(item))
        kept = [entry for entry in current["metadata"].get("ownerReferences") or () if entry["uid"] != uid]
        metadata = {key: value for key, value in current["metadata"].items() if key != "ownerReferences"}
        if kept:
            metadata["ownerReferences"] = kept
        self._store.update(self._resource, {**current, "metadata": metadata})


def _found(selector: Object, item: Object) -> bool:
    return matches_selector(selector, item["metadata"].get("labels"))

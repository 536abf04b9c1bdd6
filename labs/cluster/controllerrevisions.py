"""ControllerRevisions: the versions that a DaemonSet's pod template has had, for `kubectl rollout history` and `undo`.

Stands for pkg/controller/daemon/update.go (constructHistory, snapshot, cleanupHistory) and pkg/controller/history. Each
holds the template as a patch that brings it back, under a number that grows. Left out: the hash's own equality; two
revisions are one when their templates are equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from labs.cluster.claims import Claims
from labs.cluster.ownedpods import template_hash
from labs.cluster.resources import CONTROLLERREVISIONS, Object, key_of, owner_reference
from labs.cluster.store import AlreadyExists, Store

HASH_LABEL = "controller-revision-hash"


def current_revision(store: Store, claims: Claims, owner: Object) -> Object:
    """The revision of the owner's template as it is now, the newest; made when there is none."""
    history = [item for item in claims.of(owner) if HASH_LABEL in (item["metadata"].get("labels") or {})]
    patch = {"spec": {"template": {**owner["spec"]["template"], "$patch": "replace"}}}
    data = json.loads(json.dumps(patch, sort_keys=True))  # kubectl compares bytes, and Go sorts keys
    newest = max((item["revision"] for item in history), default=0)
    for item in history:
        if item.get("data") == data:
            if item["revision"] == newest:
                return item
            return store.update(CONTROLLERREVISIONS, {**item, "revision": newest + 1})
    return _create(store, owner, data, newest + 1)


def forget_old(store: Store, claims: Claims, owner: Object, in_use: Iterable[str]) -> None:
    """Remove the oldest revisions beyond revisionHistoryLimit that no pod is of. `in_use`: their hashes."""
    live = set(in_use)
    idle = [item for item in claims.of(owner) if (item["metadata"].get("labels") or {}).get(HASH_LABEL) not in live]
    surplus = len(idle) - owner["spec"].get("revisionHistoryLimit", 10)
    for item in sorted(idle, key=lambda item: int(item["revision"]))[: max(surplus, 0)]:
        store.delete(CONTROLLERREVISIONS, *key_of(item))


def _create(store: Store, owner: Object, data: Object, number: int) -> Object:
    """A revision under a name that is free: a hash that is taken is made anew."""
    namespace, name = key_of(owner)
    template, collisions = owner["spec"]["template"], 0
    while True:
        digest = template_hash(template, collisions)
        metadata = {
            "name": f"{name}-{digest}",
            "namespace": namespace,
            "labels": {**(template["metadata"].get("labels") or {}), HASH_LABEL: digest},
            "ownerReferences": [owner_reference(owner)],
        }
        annotations = owner["metadata"].get("annotations")
        if annotations:
            metadata["annotations"] = dict(annotations)
        item = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": metadata,
            "data": data,
            "revision": number,
        }
        try:
            return store.create(CONTROLLERREVISIONS, item)
        except AlreadyExists:
            collisions += 1

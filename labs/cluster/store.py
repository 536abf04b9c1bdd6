"""The state of the cluster: every object, in the version of every change, with lists and watches.

Stands for etcd together with the API server's storage and watch cache (k8s.io/apiserver/pkg/storage). The contract is
theirs: a resourceVersion grows with each write of anything; a list names the version that it shows; a watch from that
version misses nothing, and one from a version that is forgotten already is told so (Expired), whereupon the client
lists again. Left out: persistence, transactions over several objects, and history beyond HISTORY changes.

Objects are JSON values and never change once they are in: whoever wants to change one writes a new one. All methods
belong to one event loop. What belongs here: keeping and telling. What does not: defaults (`labs.cluster.admission`),
HTTP (`labs.cluster.api`).
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Set
from typing import NamedTuple

from labs.cluster.kinds import Kinds
from labs.cluster.resources import Object, Resource, key_of
from tracer.errors import K8snetError

HISTORY = 5000  # changes that a watch can start from
WATCH_BACKLOG = 20_000  # changes that a slow watcher may be behind

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"


class NotFound(K8snetError):
    """There is no such object."""


class AlreadyExists(K8snetError):
    """There is an object of that name already."""


class Conflict(K8snetError):
    """The object has changed since the writer read it."""


class Expired(K8snetError):
    """The changes since that resourceVersion are no longer known: list again."""


class Change(NamedTuple):
    """One write: `kind` is ADDED, MODIFIED or DELETED; `previous` is what was there before, None for ADDED."""

    version: int
    kind: str
    resource: Resource
    item: Object
    previous: Object | None


class Watch:
    """The changes of one resource (None: of all), one after the other, for ever. End it with `close`, or use it in a
    `with`."""

    def __init__(self, store: Store, resource: Resource | None, backlog: Iterable[Change]) -> None:
        self._store = store
        self.resource = resource
        self._queue: asyncio.Queue[Change | None] = asyncio.Queue()
        self._closed = False
        for change in backlog:
            self._queue.put_nowait(change)

    def offer(self, change: Change) -> None:
        """Hand over a change (the store does). A watcher that is too far behind is cut off."""
        if self._queue.qsize() >= WATCH_BACKLOG:
            self.close()
        else:
            self._queue.put_nowait(change)

    def close(self) -> None:
        """Want no more changes; a reader that waits gets Expired."""
        if not self._closed:
            self._closed = True
            self._store.forget(self)
            self._queue.put_nowait(None)

    async def next(self) -> Change:
        """The next change. Raises Expired when the watch was cut off or closed."""
        change = await self._queue.get()
        if change is None:
            raise Expired("the watch has ended: too many changes behind")
        return change

    def pending(self) -> bool:
        """Whether `next` would return at once."""
        return not self._queue.empty()

    def __aiter__(self) -> AsyncIterator[Change]:
        return self._changes()

    async def _changes(self) -> AsyncIterator[Change]:
        while True:
            yield await self.next()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Values = Callable[[Object], Iterable[Hashable]]
Index = dict[Hashable, set[tuple[str, str]]]


class Store:
    """All objects of one cluster. `kinds`: what it can have."""

    def __init__(self) -> None:
        self.version = 1
        self.kinds = Kinds()
        self._items: dict[Resource, dict[tuple[str, str], Object]] = {}
        self._history: deque[Change] = deque(maxlen=HISTORY)
        self._forgotten = 1  # watches can't start before this version
        self._watches: dict[Resource | None, set[Watch]] = {}
        self._indexes: dict[Resource, dict[Values, Index]] = {}

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """One object. Raises NotFound."""
        try:
            return self._items[resource][namespace, name]
        except KeyError:
            raise NotFound(f'{resource.qualified} "{name}" not found') from None

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        return self._items.get(resource, {}).get((namespace, name))

    def list(self, resource: Resource, namespace: str = "", version: int | None = None) -> list[Object]:
        """All objects of a kind, of one namespace or of all (""), sorted by namespace and name. They show `version`, or
        how things were at another version; Expired when that is forgotten."""
        items = self._items.get(resource, {}) if version is None else self._items_at(resource, version)
        return [item for (place, _), item in sorted(items.items()) if not namespace or place == namespace]

    def index(self, resource: Resource, values: Values) -> Mapping[Hashable, Set[tuple[str, str]]]:
        """Which objects of a kind have which of their `values`: value -> (namespace, name). It stays up to date, so
        that one write costs the same however many objects there are (client-go's Indexer).
        """
        indexes = self._indexes.setdefault(resource, {})
        if values not in indexes:
            indexes[values] = {}
            for key, item in self._items.get(resource, {}).items():
                _note(indexes[values], key, (), values(item))
        return indexes[values]

    def _items_at(self, resource: Resource, version: int) -> dict[tuple[str, str], Object]:
        """What there was: what there is, with each later change taken back."""
        if version < self._forgotten:
            raise Expired(f"too old resource version: {version} ({self._forgotten})")
        items = dict(self._items.get(resource, {}))
        for change in reversed(self._history):
            if change.version <= version:
                break
            if change.resource == resource:
                if change.previous is None:
                    del items[key_of(change.item)]
                else:
                    items[key_of(change.item)] = change.previous
        return items

    def create(self, resource: Resource, item: Object, *, dry_run: bool = False) -> Object:
        """Put in a new object; gives it with uid, creationTimestamp and resourceVersion. Raises AlreadyExists.

        With `dry_run`, as in all that writes: only what would be.
        """
        key = key_of(item)
        there = self.find(resource, *key)
        if there is not None:
            ending = "object is being deleted: " if "deletionTimestamp" in there["metadata"] else ""
            raise AlreadyExists(f'{ending}{resource.qualified} "{key[1]}" already exists')
        item = copy.deepcopy(item)
        metadata = item["metadata"]
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now()
        if resource.has_generation:
            metadata["generation"] = 1
        if dry_run:
            return item
        return self._write(ADDED, resource, key, item, None)

    def update(self, resource: Resource, item: Object, *, dry_run: bool = False) -> Object:
        """Replace an object; one that says its resourceVersion must be the newest. Gives it back as it is now.

        Nothing is written when nothing differs. Raises NotFound or Conflict.
        """
        key = key_of(item)
        current = self.get(resource, *key)
        claimed = item["metadata"].get("resourceVersion")
        if claimed not in (None, "", current["metadata"]["resourceVersion"]):
            raise Conflict(
                f'Operation cannot be fulfilled on {resource.qualified} "{key[1]}": the object has been modified; '
                "please apply your changes to the latest version and try again"
            )
        item = {**item, "metadata": {**item["metadata"]}}
        for fixed in ("uid", "creationTimestamp", "generation", "resourceVersion"):
            if fixed in current["metadata"]:
                item["metadata"][fixed] = current["metadata"][fixed]
        if item == current:
            return current
        if "generation" in item["metadata"] and _specified(item) != _specified(current):
            item["metadata"]["generation"] += 1
        if dry_run:
            return item
        return self._write(MODIFIED, resource, key, copy.deepcopy(item), current)

    def update_status(self, resource: Resource, namespace: str, name: str, status: Object) -> Object:
        """Replace an object's status. Raises NotFound."""
        item = self.get(resource, namespace, name)
        return self.update(resource, {**item, "status": status})

    def delete(self, resource: Resource, namespace: str, name: str) -> Object:
        """Remove an object, giving its last state. Raises NotFound."""
        current = self.get(resource, namespace, name)
        gone = {**current, "metadata": {**current["metadata"]}}
        return self._write(DELETED, resource, (namespace, name), gone, current)

    def watch(self, resource: Resource | None, since: int | None = None) -> Watch:
        """The changes of a kind (None: of all, also of kinds to come) after version `since` (None: from now on).

        Raises Expired when some are forgotten.
        """
        backlog: list[Change] = []
        if since is not None and since < self.version:
            if since < self._forgotten:
                raise Expired(f"too old resource version: {since} ({self._forgotten})")
            news = [change for change in self._history if change.version > since]
            backlog = [change for change in news if resource in (None, change.resource)]
        watch = Watch(self, resource, backlog)
        self._watches.setdefault(resource, set()).add(watch)
        return watch

    def end_watches(self, resource: Resource) -> None:
        """Cut off whoever watches a kind, which is no longer served."""
        for watch in tuple(self._watches.pop(resource, ())):
            watch.close()

    def forget(self, watch: Watch) -> None:
        """Tell `watch` no more."""
        self._watches.get(watch.resource, set()).discard(watch)

    def _write(
        self, kind: str, resource: Resource, key: tuple[str, str], item: Object, previous: Object | None
    ) -> Object:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        items = self._items.setdefault(resource, {})
        if kind == DELETED:
            del items[key]
        else:
            items[key] = item
        if len(self._history) == self._history.maxlen:
            self._forgotten = self._history[0].version
        for values, index in self._indexes.get(resource, {}).items():
            before = values(previous) if previous is not None else ()
            _note(index, key, before, values(item) if kind != DELETED else ())
        change = Change(self.version, kind, resource, item, previous)
        self._history.append(change)
        for watch in (*self._watches.get(resource, ()), *self._watches.get(None, ())):
            watch.offer(change)
        return item


def _note(index: Index, key: tuple[str, str], before: Iterable[Hashable], after: Iterable[Hashable]) -> None:
    """Let an object have other values in an index."""
    for value in before:
        holders = index.get(value, set())
        holders.discard(key)
        if not holders:
            index.pop(value, None)
    for value in after:
        index.setdefault(value, set()).add(key)


def _specified(item: Object) -> Object:
    """What of an object somebody wants: all but its metadata and status."""
    return {key: value for key, value in item.items() if key not in ("metadata", "status")}


def now() -> str:
    """The time as the API writes it: RFC 3339, UTC, seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

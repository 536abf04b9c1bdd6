"""The cluster's Services, endpoints and namespaces, found by name and by address.

Stands for plugin/kubernetes/controller.go: the indexers of its informers, and the time of the last change. A change
touches the entries of its own object only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from labs.cluster.dns.objects import Key, Service, Slice
from labs.cluster.resources import ENDPOINTSLICES, NAMESPACES, SERVICES, Object, Resource

Place = TypeVar("Place")
Thing = TypeVar("Thing")


class Index:
    """`serial`: seconds since 1970 at which a name last changed (SOA). `version` grows with each change. `synced`:
    whether everything has been heard."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.services: dict[Key, Service] = {}
        self.namespaces: set[str] = set()
        self.serial = 0
        self.version = 0
        self.synced = False
        self._clock = clock
        self._slices: dict[Key, Slice] = {}
        self._slices_of: dict[Key, dict[Key, Slice]] = {}
        self._services_at: dict[str, dict[Key, Service]] = {}
        self._slices_at: dict[str, dict[Key, Slice]] = {}

    def change(self, resource: Resource, key: Key, item: Object | None) -> None:
        """Take note of what an object is now; None: it is gone."""
        if resource == NAMESPACES:
            (self.namespaces.discard if item is None else self.namespaces.add)(key[1])
            self.version += 1
        elif resource == SERVICES:
            self._put_service(key, None if item is None else Service.of(item))
        elif resource == ENDPOINTSLICES:
            self._put_slice(key, None if item is None else Slice.of(item))

    def slices_of(self, service: Key) -> Iterable[Slice]:
        """The slices of a Service."""
        return self._slices_of.get(service, {}).values()

    def service_at(self, address: str) -> Service | None:
        """The Service with that ClusterIP."""
        return next(iter(self._services_at.get(address, {}).values()), None)

    def slices_at(self, address: str) -> Iterable[Slice]:
        """The slices with a ready endpoint at that address."""
        return self._slices_at.get(address, {}).values()

    def _put_service(self, key: Key, new: Service | None) -> None:
        old = self.services.get(key)
        if new == old:
            return
        if old is not None:
            del self.services[key]
            _forget(self._services_at, old.ips, key)
        if new is not None:
            self.services[key] = new
            _remember(self._services_at, new.ips, key, new)
        self._changed()

    def _put_slice(self, key: Key, new: Slice | None) -> None:
        old = self._slices.get(key)
        if new == old:
            return
        if old is not None:
            del self._slices[key]
            _forget(self._slices_of, (old.service,), key)
            _forget(self._slices_at, (address for _, address in old.addresses), key)
        if new is not None:
            self._slices[key] = new
            _remember(self._slices_of, (new.service,), key, new)
            _remember(self._slices_at, (address for _, address in new.addresses), key, new)
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.serial = int(self._clock())


def _remember(table: dict[Place, dict[Key, Thing]], places: Iterable[Place], key: Key, thing: Thing) -> None:
    for place in places:
        table.setdefault(place, {})[key] = thing


def _forget(table: dict[Place, dict[Key, Thing]], places: Iterable[Place], key: Key) -> None:
    for place in places:
        things = table.get(place, {})
        things.pop(key, None)
        if not things:
            table.pop(place, None)

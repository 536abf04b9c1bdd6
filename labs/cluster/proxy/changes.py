"""What changed since the last sync: Service ports and endpoints of one family, kept up to date object by object.

Stands for pkg/proxy/servicechangetracker.go and endpointschangetracker.go: with 10,000 Services, reading all of them
anew because one endpoint came would take longer than the kernel takes for its rules. An object counts as changed when
it is another Python object than before: whoever follows the API replaces objects and never edits them. Left out:
metrics about how late a change is.

What belongs here: which Service ports differ. What does not: what a port means (`services`, `endpoints`), rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labs.cluster.proxy.endpoints import SERVICE_NAME_LABEL, Endpoint, endpoints_by_port
from labs.cluster.proxy.services import PortKey, ServicePort, ports_of
from labs.cluster.proxy.settings import Settings

Key = tuple[str, str]  # namespace, name
Items = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Before:
    """A Service port as it was before a change; None and () for one that was not there."""

    port: ServicePort | None
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node should do for Services from now on: what each proxy mode gets, and makes its rules or maps from.

    `endpoints` are found under the keys of `ports`, and may have entries for Services that are not there. `before`
    holds every Service port in which both differ from what was wanted last time, as it was then.
    """

    before: Mapping[PortKey, Before]
    ports: Mapping[PortKey, ServicePort]
    endpoints: Mapping[PortKey, Sequence[Endpoint]]
    settings: Settings


@dataclass(slots=True)
class Tracker:
    """The Service ports and endpoints of `family` (4 or 6), as the node called `node_name` sees them.

    `ports` is in the order of the objects. `endpoints` has entries for Services that are not there, too.
    """

    node_name: str
    family: int
    ports: dict[PortKey, ServicePort] = field(default_factory=dict)
    endpoints: dict[PortKey, tuple[Endpoint, ...]] = field(default_factory=dict)
    _services: dict[Key, Mapping[str, Any]] = field(default_factory=dict)
    _slices: dict[Key, Mapping[str, Any]] = field(default_factory=dict)
    _slices_of: dict[Key, dict[Key, Mapping[str, Any]]] = field(default_factory=dict)
    _keys_of: dict[Key, set[PortKey]] = field(default_factory=dict)  # those in `endpoints` of each Service

    def update(self, services: Items, slices: Items) -> dict[PortKey, Before]:
        """Take over what the API has now; give every Service port that differs, as it was."""
        ports, endpoints = dict(self.ports), dict(self.endpoints)
        self._update_ports(services)
        self._update_endpoints(slices)
        differing = _differing(ports, self.ports) | _differing(endpoints, self.endpoints)
        return {key: Before(ports.get(key), endpoints.get(key, ())) for key in differing}

    def _update_ports(self, services: Items) -> None:
        if list(self._services.items()) == list(services.items()):
            return  # as after every change of endpoints
        known: dict[Key, list[ServicePort]] = {}
        for port in self.ports.values():
            known.setdefault((port.key.namespace, port.key.service), []).append(port)
        self.ports = {}
        for key, service in services.items():
            same = self._services.get(key) is service
            for port in known.get(key, ()) if same else ports_of(service, self.family):
                self.ports[port.key] = port
        self._services = dict(services)

    def _update_endpoints(self, slices: Items) -> None:
        touched: set[Key] = set()
        for key in self._slices.keys() | slices.keys():
            old, new = self._slices.get(key), slices.get(key)
            if old is new:
                continue
            if old is not None:
                touched.add(owner := _service_of(old))
                self._slices_of[owner].pop(key)
            if new is not None:
                touched.add(owner := _service_of(new))
                self._slices_of.setdefault(owner, {})[key] = new
        self._slices = dict(slices)
        for service in touched:
            self._merge(service)

    def _merge(self, service: Key) -> None:
        """Make the endpoints of one Service's ports anew."""
        items = self._slices_of[service]
        in_order: Iterable[Mapping[str, Any]] = (items[key] for key in sorted(items))
        found = endpoints_by_port(in_order, node_name=self.node_name, family=self.family)
        for key in self._keys_of.pop(service, set()) - found.keys():
            del self.endpoints[key]
        for port, endpoints in found.items():
            self.endpoints[port] = tuple(endpoints)
        if found:
            self._keys_of[service] = set(found)
        if not items:
            del self._slices_of[service]


def _differing(before: Mapping[PortKey, Any], now: Mapping[PortKey, Any]) -> set[PortKey]:
    """The keys whose values differ. Most are the same object: comparing thousands of equal ones would take long."""
    return {
        key
        for key in before.keys() | now.keys()
        if before.get(key) is not now.get(key) and before.get(key) != now.get(key)
    }


def _service_of(item: Mapping[str, Any]) -> Key:
    """The Service that a slice belongs to; ("…", "") for a slice of none."""
    metadata = item.get("metadata") or {}
    return metadata.get("namespace") or "", (metadata.get("labels") or {}).get(SERVICE_NAME_LABEL) or ""

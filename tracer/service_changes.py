"""What changed between two Service maps, in words and as JSON; pure.

What belongs here: comparing Service ports, and the sentence about each. What does not: when to compare
(`tracer.rules.watching`).

    fastapi/lets-ship-it gained 10.244.1.7:8000; each endpoint now 1/4

Chains are not compared: kube-proxy may build them anew without any change for packets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.escape import escape
from tracer.render import share
from tracer.rules.services import Address, Endpoint, ServiceMap, ServicePort
from tracer.service_table import REFUSED, address_label, duration_label, endpoint_label, service_label

Key = tuple[str, str, str | None, str, int]
_MOST_NAMED = 8  # addresses in one list; of more, the number is told


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """One Service port that changed. before: None when it appeared. after: None when it went. label: its name."""

    label: str
    before: ServicePort | None
    after: ServicePort | None

    @property
    def words(self) -> str:
        """The change in one line; escaped."""
        return f"{self.label} {'; '.join(_sentences(self.before, self.after))}"

    def to_json(self, time: str) -> dict[str, Any]:
        """One line of `k8snet-trace services --watch -o json`; time: RFC 3339."""
        known = self.after or self.before
        assert known is not None
        before, after = _endpoints(self.before), _endpoints(self.after)
        return {
            "type": "service-change",
            "time": time,
            "node": None,
            "process": None,
            "change": "appeared" if self.before is None else "gone" if self.after is None else "changed",
            "namespace": known.namespace,
            "name": known.name,
            "port_name": known.port_name,
            "protocol": known.protocol,
            "family": known.family,
            "gained": [_json(end) for key, end in after.items() if key not in before],
            "lost": [_json(end) for key, end in before.items() if key not in after],
            "words": self.words,
            "service": None if self.after is None else self.after.to_json(),
        }


def changes(before: ServiceMap, after: ServiceMap) -> list[ServiceChange]:
    """The Service ports that are not what they were, in the maps' order."""
    old, new = _by_key(before), _by_key(after)
    keys = [key for key in new if not _same(old.get(key), new[key])]
    keys += (key for key in old if key not in new)
    if not keys:
        return []
    several = _several_ports((*before.services, *after.services))
    return [
        ServiceChange(_label(key, several), old.get(key), new.get(key))
        for key in sorted(keys, key=lambda key: (*key[:2], key[2] or "", *key[3:]))
    ]


def _key(service: ServicePort) -> Key:
    name = service.name or service_label(service)
    return service.namespace or "", name, service.port_name, service.protocol, service.family


def _by_key(found: ServiceMap) -> dict[Key, ServicePort]:
    return {_key(service): service for service in found.services}


def _same(before: ServicePort | None, after: ServicePort) -> bool:
    if before is None:
        return False
    return before == after or next(_sentences(before, after), None) is None


def _several_ports(services: Iterable[ServicePort]) -> set[tuple[str, str]]:
    """The Services that have more ports than one, of which therefore each needs its name."""
    ports: dict[tuple[str, str], set[str | None]] = {}
    for service in services:
        ports.setdefault(_key(service)[:2], set()).add(service.port_name)
    return {name for name, of_it in ports.items() if len(of_it) > 1}


def _label(key: Key, several: set[tuple[str, str]]) -> str:
    namespace, name, port_name, *_ = key
    port = f":{port_name}" if port_name and (namespace, name) in several else ""
    return escape(f"{namespace}/{name}{port}" if namespace else name)


def _sentences(before: ServicePort | None, after: ServicePort | None) -> Iterator[str]:
    """What is to be said of one Service port, the most important first."""
    if after is None:
        yield "is gone"
    elif before is None:
        labels = [_named(address, after.protocol) for address in after.addresses]
        yield f"appeared: {_list(labels)}"
        yield "no endpoints" if after.no_endpoints else _counted(len(after.endpoints))
    else:
        yield from _endpoint_changes(before, after)
        yield from _local_changes(before.local_endpoints, after.local_endpoints)
        yield from _address_changes(before, after)
        if before.session_affinity_seconds != after.session_affinity_seconds:
            seconds = after.session_affinity_seconds
            yield "has no affinity now" if seconds is None else f"affinity now {duration_label(seconds)}"
        if before.source_ranges != after.source_ranges:
            ranges = after.source_ranges
            yield f"lets in {_list(list(ranges))} only, now" if ranges else "lets in any source now"


def _counted(count: int) -> str:
    return "1 endpoint" if count == 1 else f"{count} endpoints"


def _endpoints(service: ServicePort | None) -> dict[tuple[str, int], Endpoint]:
    return {} if service is None else {(end.ip, end.port): end for end in service.endpoints}


def _endpoint_changes(before: ServicePort, after: ServicePort) -> Iterator[str]:
    yield from _gained_and_lost(before.endpoints, after.endpoints)
    if after.no_endpoints and not before.no_endpoints:
        yield "has no endpoints now"
    elif after.endpoints and _shares(before.endpoints) != _shares(after.endpoints):
        yield _shares_now(after.endpoints, "endpoint")


def _local_changes(before: Sequence[Endpoint], after: Sequence[Endpoint]) -> Iterator[str]:
    """The choice for traffic policy Local."""
    told = ", ".join(_gained_and_lost(before, after))
    if told:
        yield f"on this node {told}"
    if before and not after:
        yield "has no choice of its own on this node now"
    elif after and _shares(before) != _shares(after):
        yield _shares_now(after, "local endpoint")


def _gained_and_lost(before: Sequence[Endpoint], after: Sequence[Endpoint]) -> Iterator[str]:
    old, new = ([(end.ip, end.port) for end in ends] for ends in (before, after))
    gained = [endpoint_label(*key) for key in new if key not in old]
    lost = [endpoint_label(*key) for key in old if key not in new]
    told = [f"{verb} {_list(labels)}" for verb, labels in (("gained", gained), ("lost", lost)) if labels]
    if told:
        yield " and ".join(told)


def _shares(endpoints: Sequence[Endpoint]) -> dict[tuple[str, int], float]:
    """Each endpoint's share as far as it can be told apart: kube-proxy's are written with ten digits."""
    return {(end.ip, end.port): round(end.probability or 0.0, 6) for end in endpoints}


def _shares_now(endpoints: Sequence[Endpoint], what: str) -> str:
    shares = [share(end.probability or 0.0) for end in endpoints]
    if len(endpoints) == 1:
        return f"the only {what} now"
    if len(set(shares)) == 1:
        return f"each {what} now {shares[0]}"
    labels = [f"{endpoint_label(end.ip, end.port)} {each}" for end, each in zip(endpoints, shares, strict=True)]
    return f"{what}s now {_list(labels)}"


def _address_changes(before: ServicePort, after: ServicePort) -> Iterator[str]:
    old, new = ({(each.kind, each.ip, each.port): each for each in of.addresses} for of in (before, after))
    for verb, here, there in (("gained", new, old), ("lost", old, new)):
        labels = [_named(address, after.protocol) for key, address in here.items() if key not in there]
        if labels:
            yield f"{verb} {_list(labels)}"
    if before.no_endpoints == after.no_endpoints:
        for key, address in new.items():
            if key in old and old[key].refused != address.refused:
                fate = f"is {REFUSED[address.refused]}" if address.refused else "is served"
                yield f"{_named(address, after.protocol)} {fate} now"


def _named(address: Address, protocol: str) -> str:
    return f"{address.kind or 'external'} {address_label(address, protocol)}"


def _list(labels: Sequence[str]) -> str:
    if len(labels) <= _MOST_NAMED:
        return ", ".join(labels)
    return f"{', '.join(labels[:_MOST_NAMED])} and {len(labels) - _MOST_NAMED} more"


def _json(endpoint: Endpoint) -> dict[str, Any]:
    return {"ip": endpoint.ip, "port": endpoint.port, "probability": endpoint.probability}

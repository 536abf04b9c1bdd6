"""What stands behind a name: addresses, ports, other names.

Stands for plugin/kubernetes/kubernetes.go (Services, Records, findServices, findPods), parse.go, ns.go and reverse.go.
The names, below cluster.local:

    SERVICE.NAMESPACE.svc                      ClusterIPs; the ready endpoints if headless; another name if ExternalName
    _PORT._PROTOCOL.SERVICE.NAMESPACE.svc      the same, of that port only
    ENDPOINT.SERVICE.NAMESPACE.svc             one ready endpoint, by its hostname or its address with dashes,
                                               also where the Service has a ClusterIP
    10-244-0-5.NAMESPACE.pod                   the address that is in the name
    ns.dns                                     the server itself
    svc, pod, NAMESPACE.svc, NAMESPACE.pod     nothing, but they exist

What belongs here: from labels to `Entry`s. What does not: DNS records and response codes (`labs.cluster.dns.answer`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dns.exception
import dns.name
import dns.reversename

from labs.cluster.dns.index import Index
from labs.cluster.dns.objects import Port, Service, canonical

PROTOCOL_AND_PORT = 2  # labels before the Service's


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing behind a name. `host`: an address, or (`leads_on`) another name. `port`: 0 for a pod, -1 for none.

    `owner`: labels below the zone under which it is known (target of SRV records).
    """

    host: str
    port: int
    owner: str
    leads_on: bool = False

    @property
    def family(self) -> int | None:
        """4 or 6; None for a name."""
        return None if self.leads_on else 6 if ":" in self.host else 4


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a name; "" for those that it does not have. "" as a port or protocol stands for all of them."""

    kind: str
    namespace: str = ""
    service: str = ""
    endpoint: str = ""
    protocol: str = ""
    port: str = ""


def parse(labels: Sequence[str]) -> Request | None:
    """The parts of a name below the zone, in small letters; None for what can't be one."""
    if not labels:
        return Request("")
    *rest, kind = labels
    if kind not in ("svc", "pod"):
        return None
    namespace = rest.pop() if rest else ""
    service = rest.pop() if rest else ""
    if len(rest) == PROTOCOL_AND_PORT:
        port, protocol = (label.removeprefix("_") for label in rest)
        return Request(kind, namespace, service, protocol=protocol, port=port)
    if len(rest) > PROTOCOL_AND_PORT:
        return None
    return Request(kind, namespace, service, endpoint=rest[0] if rest else "")


def find(labels: Sequence[str], index: Index) -> list[Entry] | None:
    """All that stands behind the name `labels`, in small letters and below the zone; None: there is no such name."""
    request = parse(labels)
    if request is None:
        return None
    if not request.namespace:
        return []
    if request.namespace not in index.namespaces:
        return None
    if not request.service:
        return []
    return (_find_pod(request) if request.kind == "pod" else list(_find_service(request, index))) or None


def _find_pod(request: Request) -> list[Entry]:
    """`pods insecure`: any address, whether a pod has it or not."""
    text = request.service
    if "%" in text:  # a zone of IPv6, which Go does not take
        return []
    v4 = text.count("-") == 3 and "--" not in text
    try:
        address = ipaddress.ip_address(text.replace("-", "." if v4 else ":"))
    except ValueError:
        return []
    mapped = getattr(address, "ipv4_mapped", None)  # Go takes ::ffff:1.2.3.4 for 1.2.3.4
    return [Entry(str(mapped or address), 0, f"{text}.{request.namespace}.pod")]


def _find_service(request: Request, index: Index) -> Iterator[Entry]:
    service = index.services.get((request.namespace, request.service))
    if service is None:
        return
    owner = f"{service.name}.{service.namespace}.svc"
    if service.external_name is not None:
        if service.external_name and not (request.endpoint or request.port or request.protocol):
            yield Entry(service.external_name, 0, owner, leads_on=True)
    elif service.headless or request.endpoint:
        yield from _find_endpoints(request, service, index)
    else:
        for port in service.ports:
            if _matches(request, port):
                for ip in service.ips:
                    yield Entry(ip, port.number, owner)


def _find_endpoints(request: Request, service: Service, index: Index) -> Iterator[Entry]:
    for item in index.slices_of((service.namespace, service.name)):
        for name, address in item.addresses:
            if request.endpoint in ("", name):
                for port in item.ports:
                    if _matches(request, port):
                        yield Entry(
                            address, port.number, f"{name}.{service.name}.{service.namespace}.svc", item.of_names
                        )


def _matches(request: Request, port: Port) -> bool:
    return request.port in ("", port.name.lower()) and request.protocol in ("", port.protocol.lower())


def find_servers(index: Index, own: Sequence[str]) -> list[tuple[str, str]]:
    """(labels below the zone, address) of this server: as the Services that lead to it have them, else its `own`."""
    found: list[tuple[str, str]] = []
    endpoint = False
    for address in own:
        for item in index.slices_at(address):
            endpoint = True
            service = index.services.get(item.service)
            if service is None:
                continue
            owner = f"{service.name}.{service.namespace}.svc"
            if service.headless:
                found += [(f"{name}.{owner}", ip) for name, ip in item.addresses]
            else:
                found += [(owner, ip) for ip in service.ips]
    return found if endpoint else [("ns.dns", address) for address in own]


def find_reverse(name: dns.name.Name, index: Index) -> list[str]:
    """What the address in a reverse name is called, below cluster.local: the Service, else all endpoints there."""
    try:
        address = canonical(dns.reversename.to_address(name))
    except (dns.exception.DNSException, ValueError):
        return []
    service = index.service_at(address)
    if service is not None:
        return [f"{service.name}.{service.namespace}.svc"]
    return list(
        dict.fromkeys(
            f"{label}.{item.service[1]}.{item.service[0]}.svc"
            for item in index.slices_at(address)
            for label, ip in item.addresses
            if ip == address
        )
    )

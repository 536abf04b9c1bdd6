"""What of a Service and of an EndpointSlice matters for names, and nothing else.

Stands for plugin/kubernetes/object (service.go, endpoint.go). Two of these that are equal give the same names, so that
a change of anything else in the API's objects is known to be none here.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from labs.cluster.resources import Object

Key = tuple[str, str]  # namespace, name
SERVICE_NAME = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a Service or of a slice. `number` -1: it has none, and no SRV record."""

    name: str
    protocol: str
    number: int


NO_PORTS = (Port("", "", -1),)  # so that what has no ports has addresses all the same


@dataclass(frozen=True, slots=True)
class Service:
    """`ips`: its ClusterIPs; none if headless. `external_name`: where a Service of type ExternalName leads ("" if that
    is an address, which no name can lead to); None for other types."""

    namespace: str
    name: str
    ips: tuple[str, ...]
    ports: tuple[Port, ...]
    headless: bool
    external_name: str | None

    @classmethod
    def of(cls, item: Object) -> Service:
        """What matters of the API's object."""
        spec = item["spec"]
        ips = spec.get("clusterIPs") or [spec.get("clusterIP") or ""]
        ports = tuple(
            Port(port.get("name") or "", port.get("protocol") or "TCP", port["port"])
            for port in spec.get("ports") or ()
        )
        return cls(
            namespace=item["metadata"]["namespace"],
            name=item["metadata"]["name"],
            ips=tuple(canonical(ip) for ip in ips if ip not in ("", "None")),
            ports=ports or NO_PORTS,
            headless=ips[0] == "None",
            external_name=_external(spec) if spec.get("type") == "ExternalName" else None,
        )


@dataclass(frozen=True, slots=True)
class Slice:
    """The ready endpoints of one EndpointSlice. `service`: whose it is. `addresses`: (name of the endpoint, address).

    `of_names`: it is of type FQDN, and its addresses are names.
    """

    service: Key
    addresses: tuple[tuple[str, str], ...]
    ports: tuple[Port, ...]
    of_names: bool = False

    @classmethod
    def of(cls, item: Object) -> Slice | None:
        """What matters of the API's object; None for one that belongs to no Service."""
        service = (item["metadata"].get("labels") or {}).get(SERVICE_NAME)
        if not service:
            return None
        ports = tuple(
            Port(port.get("name") or "", port.get("protocol") or "", port.get("port") or -1)
            for port in item.get("ports") or ()
        )
        addresses = tuple(
            (endpoint_name(endpoint.get("hostname"), address), canonical(address))
            for endpoint in item.get("endpoints") or ()
            if (endpoint.get("conditions") or {}).get("ready") is not False  # unknown counts as ready
            for address in endpoint["addresses"]
        )
        owner = (item["metadata"]["namespace"], service)
        return cls(owner, addresses, ports or NO_PORTS, item.get("addressType") == "FQDN")


def endpoint_name(hostname: str | None, address: str) -> str:
    """What an endpoint is called below its Service: its hostname, or its address with dashes (endpointHostname)."""
    return (hostname or re.sub(r"[.:]", "-", address)).lower()


def _external(spec: Object) -> str:
    name = str(spec.get("externalName") or "").rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name
    return ""


def canonical(address: str) -> str:
    """An address as it is written in reverse; what is none (a slice of type FQDN) stays as it is."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address

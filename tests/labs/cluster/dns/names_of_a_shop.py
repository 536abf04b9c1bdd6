"""A small cluster's Services and endpoints, for the tests of its DNS; and asking about them."""

from __future__ import annotations

from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype

from labs.cluster.dns.answer import Responder
from labs.cluster.dns.index import Index
from labs.cluster.dns.message import respond
from labs.cluster.resources import ENDPOINTSLICES, NAMESPACES, SERVICES

S = "svc.cluster.local"
SERIAL = 1_700_000_000
SOA = f"ns.dns.cluster.local. hostmaster.cluster.local. {SERIAL} 7200 1800 86400 30"
HTTP = {"name": "http", "protocol": "TCP", "port": 80}
DNS = {"name": "dns", "protocol": "UDP", "port": 53}
READY = {"ready": True}


def service(name: str, *ips: str, ports: tuple[dict[str, Any], ...] = (HTTP, DNS), **spec: Any) -> dict[str, Any]:
    """A Service of the namespace shop."""
    spec = {"type": "ClusterIP", "clusterIPs": list(ips), "ports": list(ports), **spec}
    return {"metadata": {"namespace": "shop", "name": name}, "spec": spec}


def external(name: str, target: str) -> dict[str, Any]:
    """A Service of type ExternalName, which has neither addresses nor, as a rule, ports."""
    metadata = {"namespace": "shop", "name": name}
    return {"metadata": metadata, "spec": {"type": "ExternalName", "externalName": target}}


def endpoint_slice(
    name: str,
    *endpoints: dict[str, Any],
    ports: tuple[dict[str, Any], ...] = ({**HTTP, "port": 8080},),
    part: str = "a",
) -> dict[str, Any]:
    """A slice of the Service `name` in the namespace shop."""
    metadata = {"namespace": "shop", "name": f"{name}-{part}", "labels": {"kubernetes.io/service-name": name}}
    return {"metadata": metadata, "ports": list(ports), "endpoints": list(endpoints)}


def endpoint(address: str, hostname: str | None = None, ready: bool | None = True) -> dict[str, Any]:
    """One endpoint."""
    return {"addresses": [address], "conditions": {"ready": ready}, **({"hostname": hostname} if hostname else {})}


SERVICES_OF_SHOP = (
    service("web", "10.96.1.1", "fd00:10:96::1", ports=(HTTP,)),
    service("four", "10.96.1.2"),
    service("six", "fd00:10:96::6"),
    service("unnamed", "10.96.1.3", ports=({"protocol": "TCP", "port": 80},)),
    service("each", "None"),
    service("portless", "None", ports=()),
    service("nobody", "None"),
    service("many", "None"),
    service("seven", "None"),
    service("kube-dns", "10.96.0.10"),
    external("out", f"web.shop.{S}"),
    external("far", "example.org"),
    external("far-dot", "example.org."),
    external("lost", f"gone.shop.{S}"),
    external("four-only", f"four.shop.{S}"),
    external("number", "10.0.0.1"),
    external("self", f"self.shop.{S}"),
    external("below", f"x.below.shop.{S}"),
    external("ping", f"pong.shop.{S}"),
    external("pong", f"ping.shop.{S}"),
    *(external(f"step{n}", f"step{n + 1}.shop.{S}") for n in range(9)),
    external("step9", f"four.shop.{S}"),
)
SLICES_OF_SHOP = (
    endpoint_slice("web", endpoint("10.244.0.1"), endpoint("10.244.0.2", "cart"), endpoint("10.244.0.3", ready=False)),
    endpoint_slice(
        "each",
        endpoint("10.244.0.5", ready=None),
        endpoint("10.244.0.6", "web-0"),
        endpoint("10.244.0.7", ready=False),
        ports=({**HTTP, "port": 8080}, {"name": "metrics", "protocol": "TCP", "port": 9100}),
    ),
    endpoint_slice("each", endpoint("fd00:10:244::5"), part="b"),
    endpoint_slice("portless", endpoint("10.244.0.20"), ports=()),
    endpoint_slice("many", *(endpoint(f"10.244.{1 + n // 250}.{n % 250 + 1}") for n in range(1500))),
    endpoint_slice("seven", *(endpoint(f"10.244.9.{n}", f"pod-{n}") for n in range(7))),
    endpoint_slice("kube-dns", endpoint("10.244.0.53")),
)


def shop(own: tuple[str, ...] = ("10.244.0.53",)) -> Responder:
    """A server that knows the names of the namespaces shop and empty."""
    index = Index(clock=lambda: SERIAL)
    for name in ("shop", "empty"):
        index.change(NAMESPACES, ("", name), {})
    for resource, items in ((SERVICES, SERVICES_OF_SHOP), (ENDPOINTSLICES, SLICES_OF_SHOP)):
        for item in items:
            index.change(resource, (item["metadata"]["namespace"], item["metadata"]["name"]), item)
    index.synced = True
    return Responder(index, own)


def ask(responder: Responder, name: str, kind: str = "A", *, udp: bool = True, **options: Any) -> dns.message.Message:
    """Ask through the bytes, as a client does; over UDP with room enough unless `options` say otherwise."""
    query = dns.message.make_query(name, kind, **{"use_edns": 0, "payload": 65000, **options})
    return answer_to(query.to_wire(), responder, udp=udp)


def answer_to(wire: bytes, responder: Responder, *, udp: bool = True) -> dns.message.Message:
    """The response to a query that gets one."""
    response = respond(wire, responder, udp=udp)
    assert response is not None
    return dns.message.from_wire(response.wire, one_rr_per_rrset=True)


def lines(section: list[Any]) -> list[str]:
    """The records of a section, sorted: NAME TTL IN TYPE DATA."""
    return sorted(record.to_text() for record in section)


def summary(response: dns.message.Message) -> tuple[str, list[str], list[str]]:
    """Response code, records of the answer without owner, TTL and class, and records of the authority."""
    data = sorted(f"{dns.rdatatype.to_text(one.rdtype)} {one[0].to_text()}" for one in response.answer)
    return dns.rcode.to_text(response.rcode()), data, lines(response.authority)

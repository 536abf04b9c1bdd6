"""The cluster's DNS: names of Services and pods, as the Kubernetes DNS specification 1.1 has them.

Stands for CoreDNS with its `kubernetes` plugin in a cluster without upstream servers (Corefile: errors, ready,
kubernetes cluster.local in-addr.arpa ip6.arpa { pods insecure, ttl 30 }, loadbalance). Specification:
github.com/kubernetes/dns/blob/master/docs/specification.md.

    SERVICE.NAMESPACE.svc.cluster.local                  A, AAAA: ClusterIPs, or ready endpoints if headless
    _PORT._PROTOCOL.SERVICE.NAMESPACE.svc.cluster.local  SRV for each named port
    ENDPOINT.SERVICE.NAMESPACE.svc.cluster.local         A, AAAA of one endpoint of a headless Service, called
                                                         by its hostname, or its address with dashes
    1-2-3-4.NAMESPACE.pod.cluster.local                  A: the address that is in the name
    reverse names                                        PTR for ClusterIPs and endpoints of headless Services
    dns-version.cluster.local                            TXT

A name that exists with other types, or only as a part of longer names, is NODATA; one that does not exist is NXDOMAIN;
both carry the SOA. Outside these zones the answer is REFUSED: nothing is forwarded, and recursion is not available.
Left out: caching, metrics, zone transfers, the plugin's `noendpoints`, and TXT or SRV wildcards.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from labs.cluster.apiclient import Mirror
from labs.cluster.resources import ENDPOINTSLICES, NAMESPACES, SERVICES, Object
from labs.cluster.runtime.container import Container
from labs.cluster.serving import Datagrams, leave_no_zombies, serve_datagrams, wait_for_signal

PORT = 53
TTL = 30
NEGATIVE_TTL = 30  # plugin kubernetes: that of the zone, `ttl 30`
MAX_UDP = 4096
MIN_UDP = 512  # RFC 1035, 2.3.4
VERSION = "1.1.0"
SERVICE_NAME = "kubernetes.io/service-name"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Answer:
    """What a name holds: whether it exists, and the texts of its records by type. `cname`: where it leads instead."""

    exists: bool
    records: dict[str, list[str]] = field(default_factory=dict)
    cname: str | None = None
    additional: dict[str, list[str]] = field(default_factory=dict)  # name -> addresses, of the targets of SRV records


NOTHING = Answer(False)
EMPTY = Answer(True)


class Zone:
    """The names of a cluster, from its Services, EndpointSlices and namespaces by (namespace, name)."""

    def __init__(
        self,
        services: Mapping[tuple[str, str], Object],
        slices: Iterable[Object],
        namespaces: Iterable[str],
        domain: str = "cluster.local",
    ) -> None:
        self.domain = domain
        self._services = services
        self._namespaces = set(namespaces)
        self._slices: dict[tuple[str, str], list[Object]] = {}
        for item in slices:
            service = (item["metadata"].get("labels") or {}).get(SERVICE_NAME)
            if service:
                self._slices.setdefault((item["metadata"]["namespace"], service), []).append(item)
        self._reverse = self._reverse_names()

    def holds(self, name: str) -> bool:
        """Whether `name` (lower case, no final dot) is in a zone that we answer for."""
        return any(name == zone or name.endswith("." + zone) for zone in (self.domain, "in-addr.arpa", "ip6.arpa"))

    def origin(self, name: str) -> str:
        """The zone that `name` is in."""
        return next(
            zone for zone in (self.domain, "in-addr.arpa", "ip6.arpa") if name == zone or name.endswith("." + zone)
        )

    def look_up(self, name: str) -> Answer:
        """What `name` (lower case, no final dot, in a zone that we hold) stands for."""
        if not (name == self.domain or name.endswith("." + self.domain)):
            return self._look_up_reverse(name)
        labels = name[: -len(self.domain)].rstrip(".").split(".") if name != self.domain else []
        match labels:
            case [] | ["svc"] | ["pod"]:
                return EMPTY
            case ["dns-version"]:
                return Answer(True, {"TXT": [f'"{VERSION}"']})
            case [namespace, "svc" | "pod"]:
                return EMPTY if namespace in self._namespaces else NOTHING
            case [address, namespace, "pod"]:
                return self._pod(address, namespace)
            case [*rest, service, namespace, "svc"]:
                return self._service(rest, service, namespace)
        return NOTHING

    def _service(self, rest: list[str], name: str, namespace: str) -> Answer:
        service = self._services.get((namespace, name))
        if service is None:
            return NOTHING
        if service["spec"]["type"] == "ExternalName":
            return Answer(True, cname=service["spec"]["externalName"].rstrip(".").lower()) if not rest else NOTHING
        headless = service["spec"].get("clusterIP") == "None"
        match rest:
            case []:
                if not headless:
                    return _addresses(service["spec"].get("clusterIPs") or ())
                found = self._endpoint_ips(service)
                return _addresses(found) if found else NOTHING  # specification 2.4.1
            case [port, protocol] if protocol in ("_tcp", "_udp", "_sctp") and port.startswith("_"):
                return self._srv(service, port[1:], protocol[1:].upper(), headless)
            case [protocol] if protocol in ("_tcp", "_udp", "_sctp"):
                ports = service["spec"].get("ports") or ()
                return EMPTY if any(port["protocol"] == protocol[1:].upper() for port in ports) else NOTHING
            case [endpoint] if headless:
                found = [ip for label, ip in self._endpoints(service) if label == endpoint]
                return _addresses(found) if found else NOTHING
        return NOTHING

    def _srv(self, service: Object, port_name: str, protocol: str, headless: bool) -> Answer:
        base = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.{self.domain}"
        if not headless:
            for port in service["spec"].get("ports") or ():
                if port.get("name", "") == port_name and port["protocol"] == protocol:
                    ips = list(service["spec"].get("clusterIPs") or ())
                    return Answer(True, {"SRV": [f"0 100 {port['port']} {base}."]}, additional={base: ips})
            return NOTHING
        targets: dict[str, list[str]] = {}
        numbers: dict[str, int] = {}
        for item in self._slices_of(service):
            for port in item.get("ports") or ():
                if (port.get("name") or "") == port_name and port.get("protocol", "TCP") == protocol:
                    for label, ip in _ready(item):
                        targets.setdefault(f"{label}.{base}", []).append(ip)
                        numbers[f"{label}.{base}"] = port["port"]
        if not targets:
            return NOTHING
        weight = max(100 // len(targets), 1)
        records = [f"0 {weight} {numbers[target]} {target}." for target in targets]
        return Answer(True, {"SRV": records}, additional=targets)

    def _pod(self, address: str, namespace: str) -> Answer:
        """`pods insecure`: any address in the name is answered, as long as the namespace exists."""
        if namespace not in self._namespaces:
            return NOTHING
        for text in (address.replace("-", "."), address.replace("-", ":")):
            try:
                return _addresses([str(ipaddress.ip_address(text))])
            except ValueError:
                continue
        return NOTHING

    def _look_up_reverse(self, name: str) -> Answer:
        targets = self._reverse.get(name)
        if targets:
            return Answer(True, {"PTR": [f"{target}." for target in targets]})
        # CoreDNS says the same of every reverse name that it has nothing for.
        return EMPTY if name in ("in-addr.arpa", "ip6.arpa") else NOTHING

    def _reverse_names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for (namespace, name), service in self._services.items():
            base = f"{name}.{namespace}.svc.{self.domain}"
            if service["spec"].get("clusterIP") == "None":
                entries = [(ip, f"{label}.{base}") for label, ip in self._endpoints(service)]
            else:
                entries = [(ip, base) for ip in service["spec"].get("clusterIPs") or ()]
            for ip, target in entries:
                names.setdefault(dns.reversename.from_address(ip).to_text(omit_final_dot=True), []).append(target)
        return names

    def _slices_of(self, service: Object) -> list[Object]:
        return self._slices.get((service["metadata"]["namespace"], service["metadata"]["name"]), [])

    def _endpoints(self, service: Object) -> list[tuple[str, str]]:
        return [entry for item in self._slices_of(service) for entry in _ready(item)]

    def _endpoint_ips(self, service: Object) -> list[str]:
        return list(dict.fromkeys(ip for _, ip in self._endpoints(service)))


def _ready(item: Object) -> list[tuple[str, str]]:
    """(label, address) of the ready endpoints of a slice."""
    entries = []
    for endpoint in item.get("endpoints") or ():
        if (endpoint.get("conditions") or {}).get("ready") is not False:
            for ip in endpoint["addresses"]:
                entries.append((endpoint.get("hostname") or re.sub(r"[.:]", "-", ip), ip))
    return entries


def _addresses(ips: Iterable[str]) -> Answer:
    records: dict[str, list[str]] = {}
    for ip in ips:
        records.setdefault("AAAA" if ":" in ip else "A", []).append(ip)
    return Answer(True, records)


def respond(query: dns.message.Message, zone: Zone) -> dns.message.Message:
    """The response to one query. Answers of several addresses come in random order (plugin loadbalance)."""
    response = dns.message.make_response(query, our_payload=MAX_UDP)
    if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
        response.set_rcode(dns.rcode.NOTIMP)
        return response
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    if question.rdclass != dns.rdataclass.IN or not zone.holds(name):
        response.set_rcode(dns.rcode.REFUSED)
        return response
    response.flags |= dns.flags.AA
    answer = zone.look_up(name)
    kind = dns.rdatatype.to_text(question.rdtype)
    if answer.cname is not None:
        _add(response.answer, question.name, "CNAME", [answer.cname + "."])
        if zone.holds(answer.cname) and kind != "CNAME":
            target = zone.look_up(answer.cname)
            _add(response.answer, dns.name.from_text(answer.cname), kind, target.records.get(kind, []))
        return response
    records = answer.records.get(kind, [])
    if records:
        _add(response.answer, question.name, kind, random.sample(records, len(records)))
        for name_of_target, ips in answer.additional.items():
            for text, entries in _addresses(ips).records.items():
                _add(response.additional, dns.name.from_text(name_of_target), text, entries)
        return response
    if not answer.exists:
        response.set_rcode(dns.rcode.NXDOMAIN)
    origin = zone.origin(name)
    soa = f"ns.dns.{origin}. hostmaster.{origin}. 1 7200 1800 86400 {NEGATIVE_TTL}"
    _add(response.authority, dns.name.from_text(origin), "SOA", [soa], NEGATIVE_TTL)
    return response


def _add(section: list[dns.rrset.RRset], name: dns.name.Name, kind: str, texts: list[str], ttl: int = TTL) -> None:
    if texts:
        section.append(dns.rrset.from_text_list(name, ttl, "IN", kind, texts))


def handle(wire: bytes, zone: Zone, *, udp: bool) -> bytes | None:
    """The response to a query, both as bytes; None for what deserves no answer. UDP: cut to what the client takes."""
    try:
        query = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return _format_error(wire)
    if query.flags & dns.flags.QR:
        return None
    response = respond(query, zone)
    if not udp:
        return response.to_wire(max_size=65535)
    limit = max(query.payload, MIN_UDP) if query.edns >= 0 else MIN_UDP
    try:
        return response.to_wire(max_size=min(limit, MAX_UDP))
    except dns.exception.TooBig:
        for section in (response.answer, response.authority, response.additional):
            section.clear()
        response.flags |= dns.flags.TC
        return response.to_wire()


def _format_error(wire: bytes) -> bytes | None:
    """FORMERR, under the query's id; None for a response or less than a header, which must not be answered (loops)."""
    if len(wire) < 12 or wire[2] & 0x80:
        return None
    return wire[:2] + bytes([0x80 | (wire[2] & 0x79), dns.rcode.FORMERR]) + bytes(8)


# --- the server -------------------------------------------------------------------------------------------------------


def main(container: Container) -> None:
    """Be CoreDNS in `container`."""
    leave_no_zombies()
    asyncio.run(Server(container).run())


class Server:
    """Serves the zone over UDP and TCP, and keeps it as the API has it."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._mirror = Mirror((SERVICES, ENDPOINTSLICES, NAMESPACES), self._changed)
        self._zone: Zone | None = None
        self._listening = False

    @property
    def zone(self) -> Zone:
        """The zone as of the last change, put together when it is first asked for."""
        if self._zone is None:
            items = self._mirror.items
            namespaces = [name for _, name in items[NAMESPACES]]
            self._zone = Zone(items[SERVICES], items[ENDPOINTSLICES].values(), namespaces)
        return self._zone

    def _changed(self) -> None:
        self._zone = None
        self._tell_ready()

    def _tell_ready(self) -> None:
        """Once names are complete and the sockets are open (plugin ready)."""
        if self._listening and self._mirror.complete:
            self._container.ready()

    async def run(self) -> None:
        """Serve until told to stop."""
        families = self._container.facts["families"]
        await serve_datagrams(lambda: _Queries(self), PORT, families)
        await asyncio.start_server(self._serve_stream, ["0.0.0.0", "::"] if 6 in families else "0.0.0.0", PORT)
        self._listening = True
        self._tell_ready()
        following = asyncio.create_task(self._mirror.run())
        stopping = asyncio.create_task(wait_for_signal())
        await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Queries over one TCP connection, each with its length in front (RFC 1035, 4.2.2)."""
        try:
            while True:
                length = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), 10), "big")
                response = self.answer(await asyncio.wait_for(reader.readexactly(length), 10), udp=False)
                if response is not None:
                    writer.write(len(response).to_bytes(2, "big") + response)
                    await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass
        finally:
            writer.close()

    def answer(self, wire: bytes, *, udp: bool) -> bytes | None:
        """The response to one query; SERVFAIL before the API has been read, as CoreDNS before it has synced."""
        if self._mirror.complete:
            return handle(wire, self.zone, udp=udp)
        try:
            response = dns.message.make_response(dns.message.from_wire(wire))
        except dns.exception.DNSException:
            return _format_error(wire)
        response.set_rcode(dns.rcode.SERVFAIL)
        return response.to_wire()


class _Queries(Datagrams):
    def __init__(self, server: Server) -> None:
        self._server = server

    def answer(self, data: bytes) -> bytes | None:
        try:
            return self._server.answer(data, udp=True)
        except Exception:
            log.exception("a query could not be answered")
            return None

"""What a user means by a destination: IP:PORT, [IPv6]:PORT or NAMESPACE/SERVICE:PORT, each perhaps with /PROTOCOL.

What belongs here: reading such words, and finding the Service port that they are about in a Service map. What does not:
where the map comes from (`tracer.rules.live`, `tracer.rules.files`), and what happens to packets that go there.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tracer.errors import UsageError
from tracer.rules.services import Address, ServiceMap, ServicePort

PROTOCOLS = ("TCP", "UDP", "SCTP")
FORMS = "IP:PORT, [IPv6]:PORT or NAMESPACE/SERVICE:PORT, and /udp or /sctp behind it where it is not TCP"
MAX_SUGGESTIONS = 3

_NAME = r"[a-z0-9](?:[-a-z0-9]{0,251}[a-z0-9])?"
_SERVICE = re.compile(rf"(?P<namespace>{_NAME})/(?P<name>{_NAME})(?::(?P<port>[^:/]*))?(?:/(?P<protocol>[^:/]*))?")
_BRACKETS = re.compile(r"\[(?P<ip>[^][]*)\](?::(?P<port>[^:/]*))?(?:/(?P<protocol>[^:/]*))?")
_PLAIN = re.compile(r"(?P<ip>[^:/]*)(?::(?P<port>[^:/]*))?(?:/(?P<protocol>[^:/]*))?")


@dataclass(frozen=True, slots=True)
class AskedAddress:
    """IP:PORT. ip: as inet_ntop(3) writes it. protocol: None where none was given."""

    text: str
    ip: str
    port: int
    protocol: str | None


@dataclass(frozen=True, slots=True)
class AskedService:
    """NAMESPACE/SERVICE:PORT. port: a number, a port's name, or None where none was given."""

    text: str
    namespace: str
    name: str
    port: int | str | None
    protocol: str | None


Asked = AskedAddress | AskedService


@dataclass(frozen=True, slots=True)
class Destination:
    """Where packets are sent. service, address: which Service port that is and which of its addresses, or both None."""

    text: str
    ip: str
    port: int
    protocol: str
    service: ServicePort | None = None
    address: Address | None = None

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.ip else 4

    @property
    def endpoint(self) -> str:
        """Address and port as people write them."""
        return endpoint_text(self.ip, self.port)


def endpoint_text(ip: str, port: int) -> str:
    """Address and port as people write them: 10.0.0.1:80, [fd00::1]:80."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def parse(text: str) -> Asked:
    """What the words say. Raises UsageError for anything else than FORMS."""
    service = _SERVICE.fullmatch(text)
    if service is not None and not _is_address(service["namespace"]):
        port = None if service["port"] is None else _service_port(service["port"], text)
        return AskedService(text, service["namespace"], service["name"], port, _protocol(service["protocol"], text))
    if text.count(":") > 1 and not text.startswith("["):
        bare = text.partition("/")[0]
        if _is_address(bare):
            raise UsageError(f"{text!r} has no port, or no brackets around the address", hint=f"write [{bare}]:PORT")
    match = (_BRACKETS if text.startswith("[") else _PLAIN).fullmatch(text)
    if match is None or not _is_address(match["ip"]):
        raise UsageError(f"{text!r} is no destination", hint=f"write {FORMS}")
    ip = str(ipaddress.ip_address(match["ip"]))
    protocol = _protocol(match["protocol"], text)
    if match["port"] is None:
        raise UsageError(f"{text!r} has no port", hint=f"write {endpoint_text(ip, 80).replace('80', 'PORT')}")
    return AskedAddress(text, ip, _number(match["port"], text), protocol)


def resolve(
    asked: Asked, services: ServiceMap, *, node_ips: Collection[str] = (), family: int | None = None
) -> Destination:
    """The destination, with the Service port that the map has for it.

    node_ips: the node's own addresses, for NodePorts. family: 4 or 6 where a Service has addresses of both; None takes
    IPv4 then. A Service is asked at its ClusterIP; one that has none, at the first address that it has. An address is
    TCP where nothing else is said, unless the map knows it for another protocol only. Raises UsageError for a Service
    or port that the map does not have, with the nearest names or the ports that there are, and where several fit.
    """
    if isinstance(asked, AskedAddress):
        return _resolve_address(asked, services, node_ips)
    ports = [port for port in services.services if (port.namespace, port.name) == (asked.namespace, asked.name)]
    if not ports:
        raise _unknown(asked, services)
    port = _choose(asked, ports, family)
    address = next((each for each in port.addresses if each.kind == "ClusterIP"), None)
    address = address or next((each for each in port.addresses if each.ip is not None), None)
    if address is None or address.ip is None:
        raise UsageError(f"{asked.namespace}/{asked.name} has no address but NodePorts", hint="write NODE-IP:NODE-PORT")
    return Destination(asked.text, address.ip, address.port, port.protocol, port, address)


def describe_port(port: ServicePort) -> str:
    """A Service port in a list: its name, number and protocol."""
    number = next((str(each.port) for each in port.addresses if each.kind != "NodePort"), "?")
    return f"{port.port_name} ({number}/{port.protocol})" if port.port_name else f"{number}/{port.protocol}"


def _resolve_address(asked: AskedAddress, services: ServiceMap, node_ips: Collection[str]) -> Destination:
    for protocol in (asked.protocol,) if asked.protocol else PROTOCOLS:
        found = services.find(protocol, asked.ip, asked.port, node_ips)
        if found is not None:
            return Destination(asked.text, asked.ip, asked.port, protocol, *found)
    return Destination(asked.text, asked.ip, asked.port, asked.protocol or "TCP")


def _choose(asked: AskedService, ports: Sequence[ServicePort], family: int | None) -> ServicePort:
    """The one port that is meant."""
    name = f"{asked.namespace}/{asked.name}"
    fitting = [
        port
        for port in ports
        if _is_port(port, asked.port) and asked.protocol in (None, port.protocol) and family in (None, port.family)
    ]
    if not fitting:
        if family is not None and not any(port.family == family for port in ports):
            raise UsageError(f"{name} has no IPv{family} address")
        wanted = "" if asked.port is None else f" {asked.port}"
        wanted += "" if asked.protocol is None else f"/{asked.protocol}"
        raise UsageError(f"{name} has no port{wanted}", hint=f"it has {_listed(ports)}")
    distinct = {(port.port_name, port.protocol) for port in fitting}
    if len(distinct) > 1:
        hint = f"choose one, such as {name}:{_shortest(fitting[0], fitting)}"
        what = "several ports" if asked.port is None else f"several ports {asked.port}"
        raise UsageError(f"{name} has {what}: {_listed(fitting)}", hint=hint)
    return min(fitting, key=lambda port: port.family)


def _is_port(port: ServicePort, asked: int | str | None) -> bool:
    if asked is None:
        return True
    if isinstance(asked, str):
        return port.port_name == asked
    return any(address.port == asked for address in port.addresses if address.kind != "NodePort")


def _shortest(port: ServicePort, others: Sequence[ServicePort]) -> str:
    """How to say which of several ports is meant."""
    number = next((str(each.port) for each in port.addresses if each.kind != "NodePort"), "PORT")
    if port.port_name and sum(other.port_name == port.port_name for other in others) == 1:
        return port.port_name
    return f"{port.port_name or number}/{port.protocol.lower()}"


def _listed(ports: Sequence[ServicePort]) -> str:
    return ", ".join(dict.fromkeys(map(describe_port, ports)))


def _unknown(asked: AskedService, services: ServiceMap) -> UsageError:
    known = sorted({port.full_name for port in services.services if port.full_name is not None})
    wanted = f"{asked.namespace}/{asked.name}"
    if not known:
        return UsageError(f"the rules hold no Services, so not {wanted} either", hint="k8snet-trace services")
    near = [f"{namespace}/{asked.name}" for namespace in sorted({name.split("/")[0] for name in known})]
    same_name = [name for name in near if name in known]  # the wrong namespace is the most usual mistake
    close = difflib.get_close_matches(wanted, known, n=MAX_SUGGESTIONS, cutoff=0.6)
    nearest = list(dict.fromkeys(same_name + close))[:MAX_SUGGESTIONS]
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "k8snet-trace services"
    return UsageError(f"the rules hold no Service {wanted}", hint=hint)


def _service_port(text: str, whole: str) -> int | str:
    if text.isascii() and text.isdigit():
        return _number(text, whole)
    if re.fullmatch(_NAME, text) is None:
        raise UsageError(f"{whole!r}: {text!r} is no port", hint="a port is a number or the name of a Service's port")
    return text


def _number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise UsageError(f"{whole!r}: {text!r} is no port", hint="a port is a number from 1 to 65535")
    return int(text)


def _protocol(text: str | None, whole: str) -> str | None:
    if text is None:
        return None
    if text.upper() not in PROTOCOLS:
        raise UsageError(f"{whole!r}: {text!r} is no protocol", hint="tcp, udp or sctp")
    return text.upper()


def _is_address(text: str) -> bool:
    try:
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return False

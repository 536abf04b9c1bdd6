"""Destinations as users write them, and the Service ports that they name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tracer.names.service_maps import service_map, service_port
from tracer.destination import AskedAddress, AskedService, Destination, parse, resolve
from tracer.errors import UsageError
from tracer.rules.services import Address, ServiceMap

SHIP = service_port("lets-ship-it", "10.96.100.50", 8000, ("10.244.0.11", 8000), node_port=30080)
SHIP6 = service_port("lets-ship-it", "fd00:10:96::50", 8000, ("fd00:10:244::11", 8000))
DNS = service_port("kube-dns", "10.96.0.10", 53, namespace="kube-system", port_name="dns", protocol="UDP")
DNS_TCP = service_port("kube-dns", "10.96.0.10", 53, namespace="kube-system", port_name="dns-tcp")
METRICS = service_port("kube-dns", "10.96.0.10", 9153, namespace="kube-system", port_name="metrics")
SYSLOG = service_port("syslog", "10.96.0.20", 514, namespace="ops", port_name=None, protocol="UDP")
BOOK = service_map(SHIP, SHIP6, DNS, DNS_TCP, METRICS, SYSLOG)


@pytest.mark.parametrize(
    ("text", "ip", "port", "protocol"),
    [
        ("10.96.0.1:443", "10.96.0.1", 443, None),
        ("10.96.0.1:443/tcp", "10.96.0.1", 443, "TCP"),
        ("10.96.0.10:53/UDP", "10.96.0.10", 53, "UDP"),
        ("[fd00::1]:80", "fd00::1", 80, None),
        ("[FD00:0:0::1]:80/sctp", "fd00::1", 80, "SCTP"),
    ],
)
def test_addresses(text: str, ip: str, port: int, protocol: str | None) -> None:
    assert parse(text) == AskedAddress(text, ip, port, protocol)


@pytest.mark.parametrize(
    ("text", "port", "protocol"),
    [
        ("fastapi/lets-ship-it", None, None),
        ("fastapi/lets-ship-it:http", "http", None),
        ("fastapi/lets-ship-it:8000", 8000, None),
        ("fastapi/lets-ship-it:8000/udp", 8000, "UDP"),
        ("fastapi/lets-ship-it/udp", None, "UDP"),
    ],
)
def test_services(text: str, port: int | str | None, protocol: str | None) -> None:
    assert parse(text) == AskedService(text, "fastapi", "lets-ship-it", port, protocol)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("10.96.0.1", "has no port", "write 10.96.0.1:PORT"),
        ("10.96.0.1/tcp", "has no port", "write 10.96.0.1:PORT"),
        ("[fd00::1]", "has no port", "write [fd00::1]:PORT"),
        ("fd00::1", "no brackets", "write [fd00::1]:PORT"),
        ("10.96.0.1:0", "'0' is no port", "1 to 65535"),
        ("10.96.0.1:65536", "'65536' is no port", "1 to 65535"),
        ("10.96.0.1:", "'' is no port", "1 to 65535"),
        ("10.96.0.1:http", "'http' is no port", "1 to 65535"),
        ("10.96.0.1:٣", "is no port", "1 to 65535"),
        ("10.96.0.1:80/icmp", "'icmp' is no protocol", "tcp, udp or sctp"),
        ("10.96.0.256:80", "is no destination", "NAMESPACE/SERVICE:PORT"),
        ("[fe80::1%eth0]:80", "is no destination", "IP:PORT"),
        ("lets-ship-it:80", "is no destination", "NAMESPACE/SERVICE:PORT"),
        ("a/b/c:80", "is no destination", "NAMESPACE/SERVICE:PORT"),
        ("Fastapi/web:80", "is no destination", "NAMESPACE/SERVICE:PORT"),
        ("fastapi/web:a_b", "'a_b' is no port", "name of a Service's port"),
        ("", "is no destination", "IP:PORT"),
    ],
)
def test_what_is_no_destination(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        asked = parse(text)
    except UsageError:
        return
    assert asked.text == text


@pytest.mark.parametrize(
    ("text", "ip", "port", "protocol", "service"),
    [
        ("fastapi/lets-ship-it", "10.96.100.50", 8000, "TCP", SHIP),
        ("fastapi/lets-ship-it:http", "10.96.100.50", 8000, "TCP", SHIP),
        ("fastapi/lets-ship-it:8000/tcp", "10.96.100.50", 8000, "TCP", SHIP),
        ("kube-system/kube-dns:dns", "10.96.0.10", 53, "UDP", DNS),
        ("kube-system/kube-dns:53/udp", "10.96.0.10", 53, "UDP", DNS),
        ("kube-system/kube-dns/udp", "10.96.0.10", 53, "UDP", DNS),
        ("ops/syslog", "10.96.0.20", 514, "UDP", SYSLOG),
        ("10.96.100.50:8000", "10.96.100.50", 8000, "TCP", SHIP),
        ("10.96.0.10:53", "10.96.0.10", 53, "TCP", DNS_TCP),
        ("10.96.0.20:514", "10.96.0.20", 514, "UDP", SYSLOG),  # no other protocol is known there
        ("192.0.2.7:30080", "192.0.2.7", 30080, "TCP", SHIP),
        ("[fd00:10:96::50]:8000", "fd00:10:96::50", 8000, "TCP", SHIP6),
        ("10.244.0.11:8000", "10.244.0.11", 8000, "TCP", None),
        ("10.96.100.50:8000/udp", "10.96.100.50", 8000, "UDP", None),
    ],
)
def test_what_they_are_about(text: str, ip: str, port: int, protocol: str, service: object) -> None:
    found = resolve(parse(text), BOOK, node_ips={"192.0.2.7"})
    assert (found.text, found.ip, found.port, found.protocol, found.service) == (text, ip, port, protocol, service)
    assert (found.address is None) is (service is None)


@pytest.mark.parametrize(("family", "service"), [(None, SHIP), (4, SHIP), (6, SHIP6)])
def test_a_service_of_both_families(family: int | None, service: object) -> None:
    assert resolve(parse("fastapi/lets-ship-it:http"), BOOK, family=family).service is service


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("kube-system/kube-dns", "has several ports: dns (53/UDP), dns-tcp (53/TCP), metrics (9153/TCP)", ":dns"),
        ("kube-system/kube-dns:53", "has several ports 53: dns (53/UDP), dns-tcp (53/TCP)", "kube-system/kube-dns:dns"),
        ("kube-system/kube-dns:80", "has no port 80", "it has dns (53/UDP), dns-tcp (53/TCP), metrics (9153/TCP)"),
        ("fastapi/lets-ship-it:30080", "has no port 30080", "it has http (8000/TCP)"),
        ("fastapi/lets-ship-it:http/udp", "has no port http/UDP", "it has http (8000/TCP)"),
        ("ops/syslog:syslog", "has no port syslog", "it has 514/UDP"),
        ("fastapi/lets-ship-id:http", "no Service fastapi/lets-ship-id", "did you mean fastapi/lets-ship-it?"),
        ("default/lets-ship-it", "no Service default/lets-ship-it", "did you mean fastapi/lets-ship-it?"),
        ("default/kube-dns:80", "no Service default/kube-dns", "did you mean kube-system/kube-dns?"),
        ("x/y", "no Service x/y", "k8snet-trace services"),
    ],
)
def test_what_the_rules_do_not_have(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(parse(text), BOOK)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_family_that_a_service_does_not_have() -> None:
    with pytest.raises(UsageError, match="ops/syslog has no IPv6 address"):
        resolve(parse("ops/syslog"), BOOK, family=6)


def test_rules_without_services() -> None:
    with pytest.raises(UsageError, match="hold no Services"):
        resolve(parse("a/b"), ServiceMap(()))
    assert resolve(parse("192.0.2.1:80"), ServiceMap(())) == Destination("192.0.2.1:80", "192.0.2.1", 80, "TCP")


def test_a_service_that_has_no_cluster_ip_of_its_own_in_the_rules() -> None:
    external = replace(SHIP, addresses=(Address("ExternalIP", "192.0.2.1", 8000),))
    assert resolve(parse("fastapi/lets-ship-it"), service_map(external)).ip == "192.0.2.1"
    node_port = replace(SHIP, addresses=(Address("NodePort", None, 30080),))
    with pytest.raises(UsageError, match="no address but NodePorts"):
        resolve(parse("fastapi/lets-ship-it"), service_map(node_port))

"""The zone and the answers of the cluster's DNS server, against the Kubernetes DNS specification 1.1."""

from __future__ import annotations

from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labs.cluster.dns import Zone, handle, respond


def service(namespace: str, name: str, *ips: str, **spec: Any) -> tuple[tuple[str, str], dict[str, Any]]:
    ports = [{"name": "http", "protocol": "TCP", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]
    spec = {"type": "ClusterIP", "clusterIP": ips[0] if ips else None, "clusterIPs": list(ips), "ports": ports, **spec}
    return (namespace, name), {"metadata": {"namespace": namespace, "name": name}, "spec": spec}


def endpoint_slice(namespace: str, name: str, *endpoints: dict[str, Any]) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": f"{name}-x", "labels": {"kubernetes.io/service-name": name}}
    return {
        "metadata": metadata,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": list(endpoints),
    }


@pytest.fixture(scope="module")
def zone() -> Zone:
    services = dict(
        [
            service("shop", "web", "10.96.1.1", "fd00:10:96::1"),
            service("shop", "four", "10.96.1.2"),
            service("shop", "each", "None"),
            service("shop", "nobody", "None"),
            service("shop", "out", type="ExternalName", externalName="web.shop.svc.cluster.local"),
            service("shop", "far", type="ExternalName", externalName="example.org"),
            service("shop", "many", "None"),
        ]
    )
    slices = [
        endpoint_slice(
            "shop",
            "each",
            {"addresses": ["10.244.0.5"], "conditions": {"ready": True}},
            {"addresses": ["10.244.0.6"], "conditions": {"ready": True}, "hostname": "web-0"},
            {"addresses": ["10.244.0.7"], "conditions": {"ready": False}},
        ),
        endpoint_slice("shop", "each", {"addresses": ["fd00:10:244::5"], "conditions": {"ready": True}}),
        endpoint_slice("shop", "many", *({"addresses": [f"10.244.1.{n}"], "conditions": {}} for n in range(1, 200))),
    ]
    return Zone(services, slices, ["shop", "empty"])


def ask(zone: Zone, name: str, kind: str = "A") -> dns.message.Message:
    return respond(dns.message.make_query(name, kind), zone)


def records(response: dns.message.Message) -> set[str]:
    return {item.to_text() for rrset in response.answer for item in rrset}


S = "svc.cluster.local"


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        (f"web.shop.{S}", "A", {"10.96.1.1"}),
        (f"WEB.Shop.{S}", "A", {"10.96.1.1"}),
        (f"web.shop.{S}", "AAAA", {"fd00:10:96::1"}),
        (f"each.shop.{S}", "A", {"10.244.0.5", "10.244.0.6"}),
        (f"each.shop.{S}", "AAAA", {"fd00:10:244::5"}),
        (f"web-0.each.shop.{S}", "A", {"10.244.0.6"}),
        (f"10-244-0-5.each.shop.{S}", "A", {"10.244.0.5"}),
        (f"_http._tcp.web.shop.{S}", "SRV", {f"0 100 80 web.shop.{S}."}),
        (f"_dns._udp.web.shop.{S}", "SRV", {f"0 100 53 web.shop.{S}."}),
        (
            f"_http._tcp.each.shop.{S}",
            "SRV",
            {f"0 33 8080 {label}.each.shop.{S}." for label in ("10-244-0-5", "web-0", "fd00-10-244--5")},
        ),
        ("10-244-0-9.shop.pod.cluster.local", "A", {"10.244.0.9"}),
        ("1.1.96.10.in-addr.arpa", "PTR", {f"web.shop.{S}."}),
        ("6.0.244.10.in-addr.arpa", "PTR", {f"web-0.each.shop.{S}."}),
        ("dns-version.cluster.local", "TXT", {'"1.1.0"'}),
        (f"out.shop.{S}", "A", {f"web.shop.{S}.", "10.96.1.1"}),
        (f"far.shop.{S}", "A", {"example.org."}),
    ],
)
def test_records(zone: Zone, name: str, kind: str, expected: set[str]) -> None:
    response = ask(zone, name, kind)
    assert records(response) == expected
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.AA
    assert not response.flags & dns.flags.RA


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"four.shop.{S}", "AAAA"),
        (f"web.shop.{S}", "TXT"),
        (f"shop.{S}", "A"),
        (f"empty.{S}", "A"),
        (S, "A"),
        ("cluster.local", "A"),
        (f"_tcp.web.shop.{S}", "SRV"),
    ],
)
def test_a_name_without_such_records_is_no_data(zone: Zone, name: str, kind: str) -> None:
    response = ask(zone, name, kind)
    assert (response.rcode(), records(response)) == (dns.rcode.NOERROR, set())
    assert [rrset.rdtype for rrset in response.authority] == [dns.rdatatype.SOA]


@pytest.mark.parametrize(
    "name",
    [
        f"no.shop.{S}",
        f"web.nowhere.{S}",
        f"nowhere.{S}",
        f"x.web.shop.{S}",
        f"10-244-0-7.each.shop.{S}",  # not ready
        f"nobody.shop.{S}",  # headless, and nobody is ready (specification 2.4.1)
        f"_https._tcp.web.shop.{S}",
        "10-244-0-9.nowhere.pod.cluster.local",
        "not-an-address.shop.pod.cluster.local",
        "other.cluster.local",
        "9.9.9.10.in-addr.arpa",
    ],
)
def test_a_name_that_does_not_exist(zone: Zone, name: str) -> None:
    response = ask(zone, name, "SRV" if name.startswith("_") else "A")
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert [rrset.rdtype for rrset in response.authority] == [dns.rdatatype.SOA]
    assert (response.authority[0].ttl, response.authority[0][0].minimum) == (30, 30)


@pytest.mark.parametrize("name", ["example.org", "local", "notcluster.local", "."])
def test_names_of_others_are_refused(zone: Zone, name: str) -> None:
    response = ask(zone, name)
    assert (response.rcode(), response.flags & dns.flags.AA) == (dns.rcode.REFUSED, 0)


def test_srv_carries_the_addresses_of_its_targets(zone: Zone) -> None:
    response = ask(zone, f"_http._tcp.web.shop.{S}", "SRV")
    extra = {(rrset.name.to_text(), item.to_text()) for rrset in response.additional for item in rrset}
    assert extra == {(f"web.shop.{S}.", "10.96.1.1"), (f"web.shop.{S}.", "fd00:10:96::1")}


class TestWire:
    def test_udp_without_edns_is_cut_at_512_and_says_so(self, zone: Zone) -> None:
        query = dns.message.make_query(f"many.shop.{S}", "A")
        wire = handle(query.to_wire(), zone, udp=True)
        assert wire is not None and len(wire) <= 512
        response = dns.message.from_wire(wire)
        assert response.flags & dns.flags.TC

    def test_edns_lets_more_through(self, zone: Zone) -> None:
        query = dns.message.make_query(f"many.shop.{S}", "A", use_edns=True, payload=4096)
        wire = handle(query.to_wire(), zone, udp=True)
        assert wire is not None
        response = dns.message.from_wire(wire)
        assert not response.flags & dns.flags.TC
        assert len(records(response)) == 199

    def test_tcp_has_no_limit(self, zone: Zone) -> None:
        wire = handle(dns.message.make_query(f"many.shop.{S}", "A").to_wire(), zone, udp=False)
        assert wire is not None
        assert len(records(dns.message.from_wire(wire))) == 199

    def test_a_response_is_not_answered(self, zone: Zone) -> None:
        query = dns.message.make_query(f"web.shop.{S}", "A")
        query.flags |= dns.flags.QR
        assert handle(query.to_wire(), zone, udp=True) is None

    def test_other_operations_are_not_implemented(self, zone: Zone) -> None:
        update = bytearray(dns.message.make_query(f"web.shop.{S}", "A").to_wire())
        update[2] = 4 << 3  # NOTIFY
        wire = handle(bytes(update), zone, udp=True)
        assert wire is not None
        assert dns.message.from_wire(wire).rcode() == dns.rcode.NOTIMP

    @given(st.binary(max_size=200))
    def test_no_bytes_do_harm(self, zone: Zone, data: bytes) -> None:
        response = handle(data, zone, udp=True)
        if response is not None:
            assert response[:2] == data[:2]
            assert response[2] & 0x80, "a response"

"""What names stand for: against the Kubernetes DNS specification 1.1, and where it leaves room, CoreDNS v1.11.1."""

from __future__ import annotations

from itertools import pairwise

import dns.flags
import dns.rdatatype
import pytest

from labs.cluster.dns.answer import Responder
from labs.cluster.dns.names import Request, parse
from labs.cluster.resources import ENDPOINTSLICES, NAMESPACES, SERVICES
from tests.labs.cluster.dns.names_of_a_shop import (
    SERIAL,
    SOA,
    S,
    ask,
    endpoint,
    endpoint_slice,
    external,
    lines,
    service,
    shop,
    summary,
)

REVERSE6 = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa"
NO_SUCH_NAME = ("NXDOMAIN", [], [f"cluster.local. 30 IN SOA {SOA}"])
NO_DATA = ("NOERROR", [], [f"cluster.local. 30 IN SOA {SOA}"])


@pytest.fixture(scope="module")
def names() -> Responder:
    return shop()


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        # Services with ClusterIPs
        (f"web.shop.{S}", "A", ["A 10.96.1.1"]),
        (f"web.shop.{S}", "AAAA", ["AAAA fd00:10:96::1"]),
        (f"six.shop.{S}", "AAAA", ["AAAA fd00:10:96::6"]),
        (f"_http._tcp.web.shop.{S}", "A", ["A 10.96.1.1"]),
        (f"_http._tcp.web.shop.{S}", "AAAA", ["AAAA fd00:10:96::1"]),
        (f"http.tcp.web.shop.{S}", "A", ["A 10.96.1.1"]),
        (f"_dns._udp.four.shop.{S}", "SRV", [f"SRV 0 100 53 four.shop.{S}."]),
        (f"_http._tcp.web.shop.{S}", "SRV", [f"SRV 0 50 80 web.shop.{S}."]),  # two addresses share the 100
        (f"four.shop.{S}", "SRV", [f"SRV 0 50 53 four.shop.{S}.", f"SRV 0 50 80 four.shop.{S}."]),
        (f"unnamed.shop.{S}", "SRV", [f"SRV 0 100 80 unnamed.shop.{S}."]),
        # their endpoints
        (f"10-244-0-1.web.shop.{S}", "A", ["A 10.244.0.1"]),
        (f"cart.web.shop.{S}", "A", ["A 10.244.0.2"]),
        (f"cart.web.shop.{S}", "SRV", [f"SRV 0 100 8080 cart.web.shop.{S}."]),
        # headless Services
        (f"each.shop.{S}", "A", ["A 10.244.0.5", "A 10.244.0.6"]),
        (f"each.shop.{S}", "AAAA", ["AAAA fd00:10:244::5"]),
        (f"web-0.each.shop.{S}", "A", ["A 10.244.0.6"]),
        (f"10-244-0-5.each.shop.{S}", "A", ["A 10.244.0.5"]),
        (f"fd00-10-244--5.each.shop.{S}", "AAAA", ["AAAA fd00:10:244::5"]),
        (f"_metrics._tcp.each.shop.{S}", "A", ["A 10.244.0.5", "A 10.244.0.6"]),
        (
            f"_http._tcp.each.shop.{S}",
            "SRV",
            [f"SRV 0 33 8080 {label}.each.shop.{S}." for label in ("10-244-0-5", "fd00-10-244--5", "web-0")],
        ),
        (
            f"each.shop.{S}",
            "SRV",
            sorted(
                [
                    f"SRV 0 20 {port} {label}.each.shop.{S}."
                    for label in ("10-244-0-5", "web-0")
                    for port in (8080, 9100)
                ]
                + [f"SRV 0 20 8080 fd00-10-244--5.each.shop.{S}."]
            ),
        ),
        (f"portless.shop.{S}", "A", ["A 10.244.0.20"]),
        (f"10-244-0-20.portless.shop.{S}", "A", ["A 10.244.0.20"]),
        # names that lead on
        (f"out.shop.{S}", "A", ["A 10.96.1.1", f"CNAME web.shop.{S}."]),
        (f"out.shop.{S}", "AAAA", ["AAAA fd00:10:96::1", f"CNAME web.shop.{S}."]),
        (f"out.shop.{S}", "CNAME", [f"CNAME web.shop.{S}."]),
        (f"far.shop.{S}", "A", ["CNAME example.org."]),
        (f"far-dot.shop.{S}", "A", ["CNAME example.org."]),
        (f"far.shop.{S}", "CNAME", ["CNAME example.org."]),
        (f"lost.shop.{S}", "CNAME", [f"CNAME gone.shop.{S}."]),
        (
            f"step2.shop.{S}",
            "A",
            ["A 10.96.1.2", f"CNAME four.shop.{S}.", *(f"CNAME step{n}.shop.{S}." for n in range(3, 10))],
        ),
        # pods
        ("10-244-0-9.shop.pod.cluster.local", "A", ["A 10.244.0.9"]),
        ("8-8-8-8.empty.pod.cluster.local", "A", ["A 8.8.8.8"]),
        ("fd00-10-244--9.shop.pod.cluster.local", "AAAA", ["AAAA fd00:10:244::9"]),
        ("1--2-3.shop.pod.cluster.local", "AAAA", ["AAAA 1::2:3"]),
        ("--1.shop.pod.cluster.local", "AAAA", ["AAAA ::1"]),
        ("--ffff-102-304.shop.pod.cluster.local", "A", ["A 1.2.3.4"]),
        # reverse
        ("1.1.96.10.in-addr.arpa", "PTR", [f"PTR web.shop.{S}."]),
        ("6.0.244.10.in-addr.arpa", "PTR", [f"PTR web-0.each.shop.{S}."]),
        ("1.0.244.10.in-addr.arpa", "PTR", [f"PTR 10-244-0-1.web.shop.{S}."]),
        ("2.0.244.10.in-addr.arpa", "PTR", [f"PTR cart.web.shop.{S}."]),
        (REVERSE6, "PTR", [f"PTR fd00-10-244--5.each.shop.{S}."]),
        (REVERSE6.upper(), "PTR", [f"PTR fd00-10-244--5.each.shop.{S}."]),
        # the zone's own
        ("dns-version.cluster.local", "TXT", ['TXT "1.1.0"']),
        ("cluster.local", "SOA", [f"SOA {SOA}"]),
        ("cluster.local", "NS", [f"NS kube-dns.shop.{S}."]),
        ("in-addr.arpa", "NS", ["NS kube-dns.shop.svc.in-addr.arpa."]),
        ("ns.dns.cluster.local", "A", ["A 10.96.0.10"]),
    ],
)
def test_records(names: Responder, name: str, kind: str, expected: list[str]) -> None:
    response = ask(names, name, kind)
    assert summary(response) == ("NOERROR", expected, [])
    assert response.flags & dns.flags.AA
    assert not response.flags & (dns.flags.RA | dns.flags.AD | dns.flags.TC)
    ttls = {record.ttl for record in response.answer}
    assert ttls == {28800 if kind == "TXT" else 30}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"four.shop.{S}", "AAAA"),
        (f"web.shop.{S}", "TXT"),
        (f"web.shop.{S}", "MX"),
        (f"web.shop.{S}", "ANY"),
        (f"web.shop.{S}", "CNAME"),
        (f"web.shop.{S}", "PTR"),
        (f"web.shop.{S}", "HTTPS"),
        (f"web.shop.{S}", "DS"),
        (f"shop.{S}", "A"),
        (f"shop.{S}", "NS"),
        (f"empty.{S}", "A"),
        ("shop.pod.cluster.local", "A"),
        ("10-244-0-9.shop.pod.cluster.local", "AAAA"),
        (S, "A"),
        (S, "SRV"),
        ("pod.cluster.local", "A"),
        ("cluster.local", "A"),
        ("cluster.local", "ANY"),
        ("cluster.local", "SRV"),
        (f"portless.shop.{S}", "SRV"),
        (f"web-0.each.shop.{S}", "AAAA"),
        (f"far.shop.{S}", "SRV"),
        (f"far.shop.{S}", "TXT"),
        ("ns.dns.cluster.local", "AAAA"),
        # a name that leads to nothing within the zone is not told
        (f"lost.shop.{S}", "A"),
        (f"four-only.shop.{S}", "AAAA"),
        (f"self.shop.{S}", "A"),
        (f"below.shop.{S}", "A"),
        (f"ping.shop.{S}", "A"),
        (f"step1.shop.{S}", "A"),  # nine steps: one too many
        # CoreDNS answers SOA below the apex without looking
        (f"gone.shop.{S}", "SOA"),
    ],
)
def test_a_name_without_such_records_is_no_data(names: Responder, name: str, kind: str) -> None:
    assert summary(ask(names, name, kind)) == NO_DATA


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"no.shop.{S}", "A"),
        (f"no.shop.{S}", "ANY"),
        (f"no.shop.{S}", "MX"),
        (f"no.shop.{S}", "TXT"),
        (f"web.nowhere.{S}", "A"),
        (f"nowhere.{S}", "A"),
        ("nowhere.pod.cluster.local", "A"),
        (f"x.web.shop.{S}", "A"),
        (f"a.b.c.web.shop.{S}", "A"),
        (f"*.shop.{S}", "A"),
        (f"any.shop.{S}", "A"),
        (f"web.*.{S}", "A"),
        (f"_tcp.web.shop.{S}", "SRV"),  # not a part of longer names, to CoreDNS, but an endpoint that is not there
        (f"_http._udp.web.shop.{S}", "SRV"),
        (f"_https._tcp.web.shop.{S}", "SRV"),
        (f"_http._tcp.unnamed.shop.{S}", "SRV"),
        (f"_http._tcp.portless.shop.{S}", "SRV"),
        (f"10-244-0-3.web.shop.{S}", "A"),  # not ready
        (f"10-244-0-7.each.shop.{S}", "A"),
        (f"nobody.shop.{S}", "A"),  # headless, and nobody is ready (specification 2.4.1)
        (f"x.out.shop.{S}", "CNAME"),
        (f"_http._tcp.out.shop.{S}", "SRV"),
        (f"number.shop.{S}", "A"),
        ("10-244-0-9.nowhere.pod.cluster.local", "A"),
        ("not-an-address.shop.pod.cluster.local", "A"),
        ("1-2-3-400.shop.pod.cluster.local", "A"),
        ("fe80--1%eth0.shop.pod.cluster.local", "AAAA"),
        ("other.cluster.local", "A"),
        ("dns-version.cluster.local", "A"),
        ("dns.cluster.local", "A"),
        (S, "TXT"),
        (r"web\.shop.svc.cluster.local", "A"),
    ],
)
def test_a_name_that_does_not_exist(names: Responder, name: str, kind: str) -> None:
    assert summary(ask(names, name, kind)) == NO_SUCH_NAME


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("9.9.9.10.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("3.0.244.10.in-addr.arpa", "PTR", "NXDOMAIN"),  # not ready
        ("10.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("web.shop.svc.in-addr.arpa", "A", "NXDOMAIN"),
        ("1.1.96.10.in-addr.arpa", "A", "NXDOMAIN"),  # CoreDNS looks in reverse zones for PTR only
        ("in-addr.arpa", "PTR", "NOERROR"),
        ("in-addr.arpa", "A", "NOERROR"),
    ],
)
def test_reverse_names_of_nobody(names: Responder, name: str, kind: str, rcode: str) -> None:
    soa = SOA.replace("cluster.local", "in-addr.arpa")
    assert summary(ask(names, name, kind)) == (rcode, [], [f"in-addr.arpa. 30 IN SOA {soa}"])


@pytest.mark.parametrize("name", ["example.org", "local", "notcluster.local", ".", "cluster.local.example.org"])
def test_names_of_others_are_refused(names: Responder, name: str) -> None:
    response = ask(names, name)
    assert summary(response) == ("REFUSED", [], [])
    assert not response.flags & (dns.flags.AA | dns.flags.RA)


@pytest.mark.parametrize("kind", ["AXFR", "IXFR"])
def test_the_zone_is_not_handed_out(names: Responder, kind: str) -> None:
    response = ask(names, "cluster.local", kind, udp=False)
    assert (summary(response), response.flags & dns.flags.AA) == (("REFUSED", [], []), 0)


class TestAdditional:
    def test_a_services_addresses_come_with_its_ports(self, names: Responder) -> None:
        extra = ask(names, f"_http._tcp.web.shop.{S}", "SRV").additional
        assert lines(extra) == [f"web.shop.{S}. 30 IN A 10.96.1.1", f"web.shop.{S}. 30 IN AAAA fd00:10:96::1"]

    def test_each_endpoint_once_however_many_ports_it_has(self, names: Responder) -> None:
        assert lines(ask(names, f"each.shop.{S}", "SRV").additional) == [
            f"10-244-0-5.each.shop.{S}. 30 IN A 10.244.0.5",
            f"fd00-10-244--5.each.shop.{S}. 30 IN AAAA fd00:10:244::5",
            f"web-0.each.shop.{S}. 30 IN A 10.244.0.6",
        ]

    def test_the_servers_address_comes_with_its_name(self, names: Responder) -> None:
        assert lines(ask(names, "cluster.local", "NS").additional) == [f"kube-dns.shop.{S}. 30 IN A 10.96.0.10"]

    def test_a_server_that_no_service_leads_to_has_a_name_too(self) -> None:
        alone = shop(own=("10.244.9.9", "fd00:10:244::99"))
        response = ask(alone, "cluster.local", "NS")
        assert summary(response)[1] == ["NS ns.dns.cluster.local."]
        assert lines(response.additional) == [
            "ns.dns.cluster.local. 30 IN A 10.244.9.9",
            "ns.dns.cluster.local. 30 IN AAAA fd00:10:244::99",
        ]
        assert summary(ask(alone, "ns.dns.cluster.local", "AAAA"))[1] == ["AAAA fd00:10:244::99"]

    def test_a_server_whose_service_has_gone_has_none(self) -> None:
        left = shop()
        left.index.change(SERVICES, ("shop", "kube-dns"), None)
        assert summary(ask(left, "cluster.local", "NS")) == NO_DATA


class TestOrder:
    def test_addresses_come_in_every_order(self, names: Responder) -> None:
        orders = {tuple(record[0].to_text() for record in ask(names, f"each.shop.{S}").answer) for _ in range(60)}
        assert orders == {("10.244.0.5", "10.244.0.6"), ("10.244.0.6", "10.244.0.5")}

    def test_a_chain_keeps_its_order_and_comes_first(self, names: Responder) -> None:
        chain = ask(names, f"step5.shop.{S}").answer
        assert [dns.rdatatype.to_text(record.rdtype) for record in chain] == ["CNAME"] * 5 + ["A"]
        assert all(one[0].to_text() == following.name.to_text() for one, following in pairwise(chain))


class TestLetters:
    @pytest.mark.parametrize("name", [f"WEB.Shop.{S}", "web.shop.SVC.cluster.LOCAL", "wEb.ShOp.sVc.ClUsTeR.lOcAl"])
    def test_case_is_ignored_in_the_question_and_kept_in_the_answer(self, names: Responder, name: str) -> None:
        response = ask(names, name)
        assert summary(response)[1] == ["A 10.96.1.1"]
        assert response.question[0].name.to_text() == f"{name}."
        assert response.answer[0].name.to_text() == f"{name}."

    def test_the_apex_too(self, names: Responder) -> None:
        assert summary(ask(names, "CLUSTER.local", "NS"))[1] == ["NS kube-dns.shop.svc.CLUSTER.local."]


class TestChanges:
    """One change touches its own names, at once, and the serial tells when."""

    KEY = ("shop", "each-a")

    def test_an_endpoint_comes_and_goes(self) -> None:
        names = shop()
        names.index.change(ENDPOINTSLICES, self.KEY, endpoint_slice("each", endpoint("10.244.0.8", "new")))
        assert summary(ask(names, f"each.shop.{S}"))[1] == ["A 10.244.0.8"]
        assert summary(ask(names, "8.0.244.10.in-addr.arpa", "PTR"))[1] == [f"PTR new.each.shop.{S}."]
        assert summary(ask(names, "6.0.244.10.in-addr.arpa", "PTR"))[0] == "NXDOMAIN"
        names.index.change(ENDPOINTSLICES, self.KEY, None)
        names.index.change(ENDPOINTSLICES, ("shop", "each-b"), None)
        assert summary(ask(names, f"each.shop.{S}"))[0] == "NXDOMAIN"

    def test_a_slice_that_changes_hands(self) -> None:
        names = shop()
        names.index.change(ENDPOINTSLICES, self.KEY, endpoint_slice("nobody", endpoint("10.244.0.5")))
        assert summary(ask(names, f"nobody.shop.{S}"))[1] == ["A 10.244.0.5"]
        assert summary(ask(names, f"each.shop.{S}")) == NO_DATA

    def test_a_service_changes_its_kind_and_goes(self) -> None:
        names = shop()
        key = ("shop", "four")
        names.index.change(SERVICES, key, service("four", "10.96.7.7"))
        assert summary(ask(names, f"four.shop.{S}"))[1] == ["A 10.96.7.7"]
        assert summary(ask(names, "2.1.96.10.in-addr.arpa", "PTR"))[0] == "NXDOMAIN"
        names.index.change(SERVICES, key, external("four", "example.org"))
        assert summary(ask(names, f"four.shop.{S}"))[1] == ["CNAME example.org."]
        assert summary(ask(names, "7.7.96.10.in-addr.arpa", "PTR"))[0] == "NXDOMAIN"
        names.index.change(SERVICES, key, None)
        assert summary(ask(names, f"four.shop.{S}")) == NO_SUCH_NAME

    def test_a_namespace_goes(self) -> None:
        names = shop()
        names.index.change(NAMESPACES, ("", "shop"), None)
        assert summary(ask(names, f"web.shop.{S}")) == NO_SUCH_NAME

    def test_the_serial_is_the_time_of_the_last_change_of_a_name(self) -> None:
        names = shop()
        names.index._clock = lambda: SERIAL + 60
        labelled = service("four", "10.96.1.2")
        labelled["metadata"]["labels"] = {"new": "label"}
        names.index.change(SERVICES, ("shop", "four"), labelled)
        assert names.index.serial == SERIAL, "a label changes no name"
        names.index.change(SERVICES, ("shop", "four"), service("four", "10.96.1.9"))
        assert f" {SERIAL + 60} " in summary(ask(names, "cluster.local", "SOA"))[1][0]

    def test_a_slice_of_no_service_has_no_names(self) -> None:
        names = shop()
        stray = endpoint_slice("each", endpoint("10.244.0.99"))
        stray["metadata"]["labels"] = {}
        names.index.change(ENDPOINTSLICES, ("shop", "stray"), stray)
        assert summary(ask(names, "99.0.244.10.in-addr.arpa", "PTR"))[0] == "NXDOMAIN"


def test_a_maze_of_names_takes_no_time() -> None:
    """Ten Services whose endpoints are each other's names: a billion ways, and no address at the end of any."""
    names = shop()
    rooms = [f"room-{number}" for number in range(10)]
    for room in rooms:
        names.index.change(SERVICES, ("shop", room), service(room, "None"))
        doors = endpoint_slice(room, *(endpoint(f"{other}.shop.{S}") for other in rooms))
        names.index.change(ENDPOINTSLICES, ("shop", room), {**doors, "addressType": "FQDN"})
    assert summary(ask(names, f"room-0.shop.{S}")) == NO_DATA


def test_endpoints_may_be_names() -> None:
    names = shop()
    item = endpoint_slice("nobody", endpoint(f"four.shop.{S}"), endpoint("example.org"))
    names.index.change(ENDPOINTSLICES, ("shop", "names"), {**item, "addressType": "FQDN"})
    assert summary(ask(names, f"nobody.shop.{S}"))[1] == ["A 10.96.1.2", "CNAME example.org.", f"CNAME four.shop.{S}."]


def test_before_the_api_was_heard_nothing_is_said_not_to_exist() -> None:
    names = shop()
    names.index.synced = False
    assert summary(ask(names, f"no.shop.{S}"))[0] == "SERVFAIL"
    assert summary(ask(names, f"web.shop.{S}"))[1] == ["A 10.96.1.1"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], Request("")),
        (["svc"], Request("svc")),
        (["web", "shop", "svc"], Request("svc", "shop", "web")),
        (["a", "web", "shop", "svc"], Request("svc", "shop", "web", endpoint="a")),
        (["_p", "_tcp", "web", "shop", "svc"], Request("svc", "shop", "web", protocol="tcp", port="p")),
        (["a", "_p", "_tcp", "web", "shop", "svc"], None),
        (["web", "shop", "other"], None),
    ],
)
def test_the_parts_of_a_name(labels: list[str], expected: Request | None) -> None:
    assert parse(labels) == expected

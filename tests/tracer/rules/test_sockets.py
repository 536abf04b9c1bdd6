"""Services in the maps of an eBPF datapath: as a Service map, and what `explain` tells of a flow that meets them."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from tests.tracer.rules.explaining import NODE, NODE6, POD, ask, save, shares
from tracer import datapaths, netns, service_lb
from tracer.datapaths import Met
from tracer.explanation import lines
from tracer.rules import sockets_live
from tracer.rules.explain import Explanation
from tracer.rules.kubeproxy import service_map
from tracer.rules.model import RuleSet
from tracer.rules.services import ServicePort
from tracer.rules.sockets import Named, SocketServices
from tracer.service_lb import Backend, Datapath, Entry, Frontend, NodeFacts, Scope, ServiceFlag

NAMES = {
    ("TCP", "10.96.0.1", 80): Named("shop", "web", "http", "ClusterIP"),
    ("TCP", None, 30080): Named("shop", "web", "http", "NodePort"),
    ("TCP", "203.0.113.1", 80): Named("shop", "web", "http", "LoadBalancer"),
}
TWO = (("10.244.0.5", True), ("10.244.1.6", False))
OUTSIDER = "198.51.100.2"


def at(ip: str, port: int = 80, scope: Scope = Scope.SOCKET, protocol: str = "TCP") -> Frontend:
    return Frontend(ipaddress.ip_address(ip), port, protocol, scope)


def datapath(
    services: dict[Frontend, tuple[int, ServiceFlag]],
    lists: dict[int, tuple[tuple[str, bool], ...]],
    affinity: int = 0,
    ranges: tuple[str, ...] = (),
) -> Datapath:
    """One Service port: each address with the list behind it and its flags."""
    backends = {
        number: tuple(Backend(ipaddress.ip_address(ip), 8080, is_local) for ip, is_local in of_it)
        for number, of_it in lists.items()
    }
    entries = {
        frontend: Entry(1, number, len(lists[number]), affinity, flags)
        for frontend, (number, flags) in services.items()
    }
    facts = NodeFacts(7, ipaddress.ip_address(NODE), ipaddress.ip_address(NODE6), 4026531840)
    return Datapath(entries, backends, {1: tuple(map(ipaddress.ip_network, ranges))} if ranges else {}, facts)


def rules(found: Datapath, names: Any = NAMES, *tables: str) -> RuleSet:
    """Rules of a node with this datapath, on which the pod POD is."""
    together = save(*tables)
    node_ips = frozenset((NODE, NODE6, "127.0.0.1", "::1"))
    together.sockets = SocketServices(found, names, node_ips, lambda ip: ip in (POD, "10.244.0.5"))
    return together


NONE = ServiceFlag(0)
CLUSTER_IP = datapath({at("10.96.0.1"): (2, NONE)}, {2: TWO})
NOBODY = datapath({at("10.96.0.1"): (2, NONE)}, {2: ()})
LOCAL = ServiceFlag.LOCAL
EVERYWHERE = datapath(
    {
        at("10.96.0.1"): (2, NONE),
        at(NODE, 30080): (2, NONE),
        at("127.0.0.1", 30080): (2, NONE),
        at(NODE, 30080, Scope.OUTSIDE): (3, LOCAL),
        at("203.0.113.1"): (2, ServiceFlag.HAS_RANGES | ServiceFlag.DENIES_NODE),
        at("203.0.113.1", 80, Scope.OUTSIDE): (3, LOCAL | ServiceFlag.HAS_RANGES),
    },
    {2: TWO, 3: TWO[:1]},
    affinity=10800,
    ranges=("198.51.100.0/24",),
)


def only(found: Datapath, names: Any = NAMES) -> ServicePort:
    (port,) = service_map(rules(found, names)).services
    return port


def texts(told: Explanation) -> list[str]:
    return [step.text for step in told.steps]


class TestServiceMap:
    def test_a_service_of_all_kinds_of_addresses(self) -> None:
        assert only(EVERYWHERE).to_json() == {
            "namespace": "shop",
            "name": "web",
            "port_name": "http",
            "protocol": "TCP",
            "family": 4,
            "addresses": [
                {"kind": "ClusterIP", "ip": "10.96.0.1", "port": 80, "refused": None},
                {"kind": "NodePort", "ip": None, "port": 30080, "refused": None},
                {"kind": "LoadBalancer", "ip": "203.0.113.1", "port": 80, "refused": None},
            ],
            "session_affinity_seconds": 10800,
            "source_ranges": ["198.51.100.0/24"],
            "endpoints": [
                {"ip": "10.244.0.5", "port": 8080, "probability": 0.5},
                {"ip": "10.244.1.6", "port": 8080, "probability": 0.5},
            ],
            "local_endpoints": [{"ip": "10.244.0.5", "port": 8080, "probability": 1.0}],
            "no_endpoints": False,
        }

    def test_without_names_a_service_port_is_known_by_its_addresses(self) -> None:
        port = only(EVERYWHERE, {})
        assert (port.namespace, port.name, port.port_name, port.full_name) == (None, None, None, None)
        assert [(address.kind, address.ip) for address in port.addresses] == [
            (None, "10.96.0.1"),
            ("NodePort", None),
            (None, "203.0.113.1"),
        ]
        assert not port.is_called("*/*") and not port.is_called("None")

    @pytest.mark.parametrize(
        ("flags", "refused"), [(NONE, "reject"), (ServiceFlag.SILENT | LOCAL, "drop"), (LOCAL, "reject")]
    )
    def test_what_becomes_of_packets_without_endpoints(self, flags: ServiceFlag, refused: str) -> None:
        port = only(datapath({at("10.96.0.1"): (2, flags)}, {2: ()}))
        assert port.no_endpoints
        assert [address.refused for address in port.addresses] == [refused]

    def test_an_endpoint_is_found_for_the_live_trace(self) -> None:
        found = service_map(rules(EVERYWHERE))
        for ip, port in (("10.96.0.1", 80), (NODE, 30080)):
            hit = found.find("TCP", ip, port, (NODE,))
            assert hit is not None
            endpoint = found.backend(*hit, "10.244.1.6", 8080)
            assert endpoint is not None and (endpoint.probability, endpoint.chains) == (0.5, ())

    def test_ports_that_share_nothing_but_an_address_family_are_two(self) -> None:
        one = datapath({at("10.96.0.1"): (2, NONE), at("fd00::1"): (2, NONE)}, {2: TWO})
        assert [port.family for port in service_map(rules(one)).services] == [6, 4]


class TestExplain:
    @pytest.mark.parametrize("source", [None, POD])
    def test_a_socket_calls_an_endpoint_instead(self, source: str | None) -> None:
        told = ask(rules(CLUSTER_IP), source=source)
        assert (told.verdict, shares(told)) == ("dnat", {"10.244.0.5:8080": 0.5, "10.244.1.6:8080": 0.5})
        assert texts(told) == [
            "[socket] 10.96.0.1:80 -> slot 1 of 2: 10.244.0.5:8080",
            "[socket] 10.96.0.1:80 -> slot 2 of 2: 10.244.1.6:8080",
        ]
        assert told.service is not None and told.service.name == "web"
        (step, _) = told.to_json()["steps"]
        assert step == {
            "family": "socket",
            "table": "services",
            "chain": "slots",
            "rule": 1,
            "text": "[socket] 10.96.0.1:80 -> slot 1 of 2: 10.244.0.5:8080",
            "effect": "dnat",
            "probability": 0.5,
            "hook": "socket",
            "engine": "ebpf",
            "target": "10.244.0.5:8080",
        }
        assert [backend.via for backend in told.backends] == [(), ()]
        assert (told.masquerade, told.affinity_seconds) == (False, None)

    def test_rules_see_the_endpoint_and_never_the_service(self) -> None:
        table = """filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A OUTPUT -d 10.96.0.1/32 -j DROP
-A OUTPUT -d 10.244.1.6/32 -m conntrack --ctorigdst 10.244.1.6 -j REJECT
-A OUTPUT -m conntrack --ctstate DNAT -j DROP
"""
        told = ask(rules(CLUSTER_IP, NAMES, table))
        assert {backend.ip: backend.verdict for backend in told.backends} == {
            "10.244.0.5": "accept",
            "10.244.1.6": "reject",
        }
        assert told.shares == {"dnat": 0.5, "reject": 0.5}

    def test_a_pod_that_is_its_own_endpoint_meets_no_rule(self) -> None:
        table = "filter\n:FORWARD DROP [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
        told = ask(rules(CLUSTER_IP, NAMES, table), source="10.244.0.5")
        assert told.shares == {"dnat": 0.5, "drop": 0.5}

    def test_no_endpoints(self) -> None:
        told = ask(rules(NOBODY), source=POD)
        assert (told.verdict, told.backends) == ("reject", ())
        assert texts(told) == ["[socket] 10.96.0.1:80 has no endpoints"]
        shown = ["".join(text for text, _ in line) for line in lines(told, 100)]
        assert "⇒ rejected: the Service has no endpoints" in shown

    def test_silence(self) -> None:
        silent = datapath({at("10.96.0.1"): (2, ServiceFlag.SILENT | LOCAL)}, {2: ()})
        assert ask(rules(silent)).verdict == "drop"

    def test_what_the_maps_do_not_know_goes_on_to_the_rules(self) -> None:
        told = ask(rules(CLUSTER_IP), "10.96.0.1:81")
        assert (told.verdict, told.passed.lookups) == ("untouched", 1)

    @pytest.mark.parametrize(
        ("source", "verdict"), [(None, "drop"), (POD, "drop"), (OUTSIDER, "dnat"), ("8.8.8.8", "drop")]
    )
    def test_source_ranges_are_judged_by_packets(self, source: str | None, verdict: str) -> None:
        told = ask(rules(EVERYWHERE), "203.0.113.1:80", source)
        assert told.verdict == verdict
        assert [step.hook for step in told.steps] == ["device"] if source not in (None, POD) else ["socket", "device"]

    def test_from_outside_packets_go_to_local_endpoints_with_their_own_source(self) -> None:
        told = ask(rules(EVERYWHERE), f"{NODE}:30080", OUTSIDER)
        assert shares(told) == {"10.244.0.5:8080": 1.0}
        assert texts(told) == [f"[device] {NODE}:30080 -> slot 1 of 1: 10.244.0.5:8080"]
        assert (told.masquerade, told.affinity_seconds) == (False, 10800)

    def test_from_outside_to_anywhere_the_node_stands_for_the_client(self) -> None:
        node_port = datapath({at(NODE, 30080, Scope.OUTSIDE): (2, ServiceFlag.MASQUERADE)}, {2: (*TWO, (NODE, True))})
        told = ask(rules(node_port), f"{NODE}:30080", OUTSIDER)
        assert {backend.ip: backend.masquerade for backend in told.backends} == {
            "10.244.0.5": True,
            "10.244.1.6": True,
            NODE: False,
        }

    def test_the_sentences(self) -> None:
        shown = [
            "".join(text for text, _ in line) for line in lines(ask(rules(CLUSTER_IP), source=POD), 100, verbose=True)
        ]
        assert shown == [
            "10.96.0.1:80 TCP  shop/web:http",
            f"from {POD}",
            "",
            "socket, map services (eBPF)",
            "├─ slot 1 (1/2 of packets): the socket calls 10.244.0.5:8080 instead",
            "│     [socket] 10.96.0.1:80 -> slot 1 of 2: 10.244.0.5:8080",
            "└─ slot 2 (1/2 of packets): the socket calls 10.244.1.6:8080 instead",
            "      [socket] 10.96.0.1:80 -> slot 2 of 2: 10.244.1.6:8080",
            "",
            "⇒ translated to one of 2 backends",
            "   10.244.0.5:8080  1/2",
            "   10.244.1.6:8080  1/2",
            "   not masqueraded: the backend sees the sender's own address",
            "   passed: 2 map look-ups",
        ]


class TestPodsOfTheMachine:
    """`explain --source` of a pod, asked in a namespace that is not its node's."""

    @staticmethod
    def met(number: int, path: str) -> Met:
        return Met(number, NodeFacts(7, None, None, number), Path(path))

    def test_one_is_asked_at_its_own_socket(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datapaths, "met_at", lambda address: [(4, self.met(1, "/a")), (5, self.met(1, "/b"))])
        monkeypatch.setattr(service_lb, "of_cgroup", lambda path: CLUSTER_IP)
        monkeypatch.setattr(netns, "find", lambda inode: "/proc/1/ns/net" if inode == 1 else None)
        monkeypatch.setattr(netns, "run_in", lambda path, function: frozenset())
        found, note = sockets_live.of_pod(POD)
        assert found is not None and found.datapath is CLUSTER_IP
        assert note is not None and note.startswith(f"{POD} is a pod of another") and "--netns /proc/1/ns/net" in note

    def test_of_two_clusters_none_is_guessed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datapaths, "met_at", lambda address: [(4, self.met(1, "/a")), (5, self.met(2, "/b"))])
        monkeypatch.setattr(netns, "find", lambda inode: f"/proc/{inode}/ns/net")
        assert sockets_live.of_pod(POD) == (
            None,
            f"pods of 2 clusters here have the address {POD}: "
            "choose a node by --netns /proc/1/ns/net, --netns /proc/2/ns/net",
        )

    def test_no_pod(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datapaths, "met_at", lambda address: [])
        assert sockets_live.of_pod(POD) == (None, None)

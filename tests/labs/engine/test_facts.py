"""Right answers are computed, and what a learner types is compared with them as a person would."""

from __future__ import annotations

from typing import Any

import pytest

from labs.engine import facts
from labs.engine.world import Ran
from tests.labs.engine.fake import FakeWorld, context, prints
from tests.labs.engine.test_checks import ANSWER, FAR, KUBE_DNS, READY, UNREADY, WEB, counts, dnat, slices
from tracer.errors import K8snetError, MissingError

PODS = [{"status": {"podIP": "10.244.0.5"}}, {"status": {"podIP": "10.244.1.5"}}]
STEPS = [
    {"chain": "KUBE-SERVICES", "rule": 7, "text": "-j KUBE-SVC-A"},
    {"chain": "KUBE-SVC-A", "rule": 1, "text": "-j KUBE-SEP-B"},
]
BACKENDS = [{"ip": "10.244.0.5", "port": 8080}, {"ip": "fd00:10:244::5", "port": 8080}]
LINKS = [{"ifindex": 2, "ifname": "eth0"}, {"ifindex": 7, "ifname": "veth1234"}]
RECENT = "/proc/net/xt_recent/KUBE-SEP-X:src={ip} ttl: 64 last_seen: 4295376505 oldest_pkt: 1 4295376505\n"
WORLD = FakeWorld(
    {
        "service default/web": WEB,
        "pod default/far": FAR,
        "pods default": PODS,
        "endpointslices default": slices(*READY, UNREADY),
        "endpoints kube-system/kube-dns": KUBE_DNS,
    },
    {
        "default/client: dig @10.96.0.10 web A +nosearch +yaml": prints(ANSWER.format(status="NXDOMAIN")),
        "default/client: sh -c curl": counts((1, None), (9, 0)),
        "node1: iptables-save -c -t nat": prints(dnat(3, "10.244.1.5:80")),
        "node1: grep -rH ^src= /proc/net/xt_recent/": prints(
            RECENT.format(ip="10.244.1.5") + RECENT.format(ip="10.244.0.9").replace("-X", "-OTHER")
        ),
        "node2: iptables-save -c -t nat": prints(dnat(3, "10.244.1.5:80")),
        "node2: grep -rH": Ran(1, "", ""),
        "node1: k8snet-trace explain": prints({"steps": STEPS, "backends": BACKENDS}),
        "node2: k8snet-trace explain": prints({"steps": [], "backends": []}),
        "node1: ip -j -d link show dev eth0": prints([{"mtu": 1450}]),
        "default/far: ip -j link show dev eth0": prints([{"ifindex": 2, "ifname": "eth0", "link_index": 7}]),
        "node2: ip -j link show": prints(LINKS),
        "node2: ip -j route get 10.244.1.5": prints([{"dev": "veth1234", "prefsrc": "10.244.1.1"}]),
        "node1: ip -j route get": Ran(2, "", "RTNETLINK answers: Network is unreachable"),
        "node1: ip -j route show": prints([{"dst": "default", "gateway": "172.18.0.1"}]),
    },
)


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("object", {"kind": "service", "name": "web", "path": "$.spec.clusterIP"}, {"10.96.0.7"}),
        ("objects", {"kind": "pods", "path": "$[*].status.podIP"}, {"10.244.0.5", "10.244.1.5"}),
        ("count", {"kind": "pods"}, {"2"}),
        ("ready_endpoints", {"service": "web"}, {"2"}),
        ("chain", {"node": "node1", "to": "default/web:80", "prefix": "KUBE-SVC-"}, {"KUBE-SVC-A"}),
        ("remembered", {"node": "node1", "client": "default/far", "service": "web"}, {"10.244.1.5:80", "10.244.1.5"}),
        ("dns_status", {"name": "web", "server": "10.96.0.10"}, {"NXDOMAIN"}),
        ("dns_queries", {"name": "web"}, {"8"}),
        ("backend", {"node": "node1", "to": "default/web:80"}, {"10.244.0.5:8080"}),
        ("backend", {"node": "node1", "to": "default/web:80", "position": -1}, {"[fd00:10:244::5]:8080"}),
        ("position", {"node": "node1", "to": "default/web:80", "chain": "KUBE-SERVICES"}, {"7"}),
        ("link", {"target": "node1", "device": "eth0", "key": "mtu"}, {"1450"}),
        ("route", {"target": "node1", "to": "default"}, {"172.18.0.1"}),
        ("cable", {"pod": "default/far"}, {"veth1234", "veth1234@if2"}),
        ("source_address", {"target": "node2", "to": "{default/far}"}, {"10.244.1.1"}),
    ],
)
def test_facts(name: str, parameters: dict[str, Any], expected: set[str]) -> None:
    assert facts.expected(context(WORLD), name, parameters) == expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("object", {"kind": "service", "name": "web", "path": "$.spec.nothing"}),
        ("chain", {"node": "node1", "to": "default/web:80", "prefix": "KUBE-XLB-"}),
        ("backend", {"node": "node2", "to": "default/web:80"}),
        ("position", {"node": "node1", "to": "default/web:80", "chain": "KUBE-NODEPORTS"}),
        ("route", {"target": "node1", "to": "10.0.0.0/8"}),
        ("dns_status", {"name": "nobody"}),
        ("dns_queries", {"name": "web", "source": "default/nobody"}),
        ("cable", {"pod": "default/other"}),
        ("source_address", {"target": "node1", "to": "{default/far}"}),
        ("recorded", {"match": {}, "path": "source.port"}),
    ],
)
def test_what_is_not_there_is_no_answer(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(K8snetError):
        facts.expected(context(WORLD), name, parameters)


@pytest.mark.parametrize(
    ("answer", "right", "is_right"),
    [
        (" 10.96.0.7\n", {"10.96.0.7"}, True),
        ("10.96.0.70", {"10.96.0.7"}, False),
        ("kube-svc-a", {"KUBE-SVC-A"}, True),
        ("b", {"a", "b"}, True),
        ("1/3", {"0.3333333333"}, True),
        ("33%", {"1/3"}, True),
        ("0.34", {"1/3"}, False),
        ("0.5", {"1/2"}, True),
        ("5", {"5"}, True),
        ("5.0", {"50"}, False),
        ("1/0", {"1"}, False),
        ("", {"0"}, False),
    ],
)
def test_answers_are_compared(answer: str, right: set[str], is_right: bool) -> None:
    assert facts.is_right(answer, right) == is_right


def test_a_command_that_fails_is_no_fact() -> None:
    world = FakeWorld(commands={"node1: ip": Ran(1, "", "no such device")})
    with pytest.raises(K8snetError, match="no such device"):
        facts.expected(context(world), "link", {"target": "node1", "device": "eth9", "key": "mtu"})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("remembered", {"node": "node2", "client": "default/far", "service": "web"}),
        ("remembered", {"node": "node1", "client": "default/far", "service": "other"}),
    ],
)
def test_what_the_learner_has_still_to_bring_about_is_missing(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(MissingError):
        facts.expected(context(WORLD), name, parameters)


def test_the_service_that_is_last_in_the_list() -> None:
    """A real kube-proxy has its rules in any order; the last rule is for no Service."""
    rules = """*nat
-A KUBE-SERVICES -d 10.96.0.7/32 -p tcp -m comment --comment "a/b:c cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment "d/e:f cluster IP" -m udp --dport 53 -j KUBE-SVC-B
-A KUBE-SERVICES -m comment --comment "… must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-N
-A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m tcp --dport 30080 -j KUBE-EXT-A
"""
    explained = {"node1: k8snet-trace explain 10.96.0.10:53/udp": prints({"passed": {"rules": 312.0}})}
    world = FakeWorld({}, {"node1: iptables-save -t nat": prints(rules), **explained})
    assert facts.expected(context(world), "rules_passed_by_last", {"node": "node1"}) == {"312"}
    with pytest.raises(K8snetError, match="KUBE-SERVICES on node2 has no rule"):
        facts.expected(context(world), "rules_passed_by_last", {"node": "node2"})

"""All providers together: which one's word counts, question by question."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tracer.api_server import (
    NODES,
    PODS,
    SERVICES,
    SLICES,
    ApiServer,
    endpoint,
    endpoint_slice,
    node,
    pod,
    service,
)
from tests.tracer.names.containers import UID, container, our_pids
from tests.tracer.names.service_maps import service_map, service_port
from tracer import netns, procfs
from tracer.errors import NotRoot
from tracer.kubeapi import mirror
from tracer.names import DestinationName, Names, PodName, Route
from tracer.rules.changes import State
from tracer.rules.services import ServiceMap

OWN = netns.own()
ELSEWHERE = 1  # the inode of no network namespace
CLIENT = PodName("default", "client")
SHIP_IT = DestinationName("fastapi", "lets-ship-it", "http", "ClusterIP")


class Rules:
    """A reader whose rules are those of this machine only."""

    def __init__(self) -> None:
        self.map = service_map()
        self.error: Exception | None = None
        self.generation = 2

    def state(self, path: str | None) -> State:
        return State(self.generation if path is None else None, ())

    def services(self, path: str | None) -> ServiceMap:
        if self.error is not None:
            raise self.error
        return self.map


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        server.put(
            PODS,
            pod("client", "10.244.0.10", "fd00:10:244::a", uid=UID),
            pod("web-0", "10.244.1.12", namespace="fastapi", node="node2"),
            pod("kube-proxy", "172.18.0.2", namespace="kube-system", uid="uid-of-proxy", host_network=True),
        )
        web = service(
            "lets-ship-it",
            "10.96.100.50",
            namespace="fastapi",
            ports=[{"name": "http", "protocol": "TCP", "port": 8000, "nodePort": 30080}],
            externalIPs=["203.0.113.7"],
        )
        server.put(SERVICES, web, service("headless", "None", namespace="fastapi"))
        server.put(SLICES, endpoint_slice("lets-ship-it-1", "lets-ship-it", 8000, namespace="fastapi"))
        server.put(SLICES, endpoint_slice("proxy-1", "proxy", 10249, endpoint("172.18.0.2", "kube-proxy")))
        server.put(
            NODES,
            node("node1", "172.18.0.2", "fc00::2", pod_cidrs=("10.244.0.0/24",)),
            node("node2", "172.18.0.3", pod_cidrs=("10.244.1.0/24",)),
        )
        yield server


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
def start(tmp_path: Path, rules: Rules, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Names]]:
    """Starts Names with an API (None: there is none) and the rules, and waits for it."""
    monkeypatch.setattr(mirror, "FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(mirror, "LAST_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
    monkeypatch.setattr(netns, "every", dict)
    monkeypatch.setattr(procfs, "pids", our_pids)
    running: list[Names] = []

    def begin(api: ApiServer | None, wait: bool = True) -> Names:
        path = tmp_path / "kubeconfig"
        path.write_text(kubeconfig(api.url if api is not None else "http://127.0.0.1:1"))
        running.append(Names(path, rules=rules))
        running[-1].start()
        assert not wait or running[-1].ready(5)
        return running[-1]

    yield begin
    for one in running:
        one.close()
        one.close()


def kubeconfig(url: str) -> str:
    document = {
        "clusters": [{"name": "it", "cluster": {"server": url}}],
        "users": [{"name": "it", "user": {}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "current-context": "it",
    }
    return json.dumps(document)


def until(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


# --- source ---


def test_a_source_by_its_address(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(api)
    assert names.source("10.244.0.10", ELSEWHERE, 0, 0) == CLIENT
    assert names.source("fd00:10:244::a", ELSEWHERE, 0, 0) == CLIENT
    assert names.source("172.18.0.2", ELSEWHERE, 0, 0) is None  # a node's
    assert names.source("192.0.2.1", OWN, 0, 0) is None


@pytest.mark.root
def test_a_source_by_its_cgroup_whatever_its_address(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(api)
    with container() as one:
        for ip in ("127.0.0.1", "10.244.0.10", "10.244.1.12", "192.0.2.1"):
            assert names.source(ip, one.netns, one.cgroup_id, one.pid) == CLIENT


@pytest.mark.root
def test_pods_on_the_hosts_network_are_told_apart_by_cgroup(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(api)
    with container(uid="uid-of-proxy") as one:
        found = names.source("172.18.0.2", OWN, one.cgroup_id, one.pid)
        assert found == PodName("kube-system", "kube-proxy")
    with container(uid=None, namespace=None) as other:
        assert names.source("172.18.0.2", OWN, other.cgroup_id, other.pid) is None


@pytest.mark.root
def test_a_cgroup_of_another_pod_than_the_address_is_not_taken_for_it(
    api: ApiServer, start: Callable[..., Names]
) -> None:
    """The API has not heard of the pod that has the address now."""
    names = start(api)
    with container(uid="uid-of-a-new-pod", hostname="new-pod", namespace="fastapi") as one:
        assert names.source("10.244.0.10", one.netns, one.cgroup_id, one.pid) is None
        assert until(lambda: names.source("10.244.0.10", one.netns, one.cgroup_id, one.pid) is not None)
        assert names.source("10.244.0.10", one.netns, one.cgroup_id, one.pid) == PodName("fastapi", "new-pod")


@pytest.mark.root
def test_the_api_wins_over_the_hostname(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(None)
    with container(hostname="spec-hostname") as one:
        assert until(lambda: names.source("10.0.0.1", one.netns, one.cgroup_id, one.pid) is not None)
        assert names.source("10.0.0.1", one.netns, one.cgroup_id, one.pid) == PodName("fastapi", "spec-hostname")
        assert start(api).source("10.0.0.1", one.netns, one.cgroup_id, one.pid) == CLIENT


def test_our_own_process_is_no_pod(api: ApiServer, start: Callable[..., Names]) -> None:
    assert start(api).source("192.0.2.1", OWN, 1, os.getpid()) is None


# --- destination ---


@pytest.mark.parametrize(
    ("protocol", "ip", "port", "expected"),
    [
        ("TCP", "10.96.100.50", 8000, SHIP_IT),
        ("TCP", "203.0.113.7", 8000, SHIP_IT._replace(kind="ExternalIP")),
        ("TCP", "172.18.0.3", 30080, SHIP_IT._replace(kind="NodePort")),
        ("TCP", "fc00::2", 30080, SHIP_IT._replace(kind="NodePort")),
        ("UDP", "172.18.0.3", 30080, DestinationName(kind="Node")),
        ("TCP", "172.18.0.3", 22, DestinationName(kind="Node")),
        ("TCP", "10.96.100.50", 8001, SHIP_IT._replace(port_name=None)),
        ("UDP", "10.96.100.50", 8000, SHIP_IT._replace(port_name=None)),
        ("TCP", "10.244.1.12", 8000, DestinationName(namespace="fastapi", kind="Pod")),
        ("TCP", "10.244.1.99", 8000, DestinationName()),  # in the pods' range, but no pod that is known
        ("TCP", "192.0.2.1", 443, DestinationName(kind="External")),
        ("TCP", "2001:db8::1", 443, DestinationName(kind="External")),
        ("TCP", "127.0.0.1", 30080, DestinationName()),  # in a pod
        ("TCP", "169.254.169.254", 80, DestinationName()),
        ("TCP", "fe80::1", 80, DestinationName()),
        ("UDP", "224.0.0.251", 5353, DestinationName()),
    ],
)
def test_destinations_by_the_api(
    api: ApiServer, start: Callable[..., Names], protocol: str, ip: str, port: int, expected: DestinationName
) -> None:
    assert start(api).destination(protocol, ip, port, ELSEWHERE) == expected


def test_the_api_wins_over_the_rules_and_the_rules_fill_in(
    api: ApiServer, rules: Rules, start: Callable[..., Names]
) -> None:
    rules.map = service_map(
        service_port("stale", "10.96.100.50", 8000, ("10.244.1.12", 8000), namespace="old"),
        service_port("other", "10.96.0.77", 80, ("10.244.1.12", 80), namespace="other"),
    )
    names = start(api)
    assert names.destination("TCP", "10.96.100.50", 8000, OWN) == SHIP_IT
    assert names.destination("TCP", "10.96.0.77", 80, OWN) == DestinationName("other", "other", "http", "ClusterIP")


def test_a_node_port_on_loopback_of_a_node(api: ApiServer, rules: Rules, start: Callable[..., Names]) -> None:
    rules.map = service_map(service_port("any", "10.96.0.77", 80, ("10.244.1.12", 80)))
    names = start(api)
    assert names.destination("TCP", "127.0.0.1", 30080, OWN) == SHIP_IT._replace(kind="NodePort")
    assert names.destination("TCP", "127.0.0.1", 30080, ELSEWHERE) == DestinationName()


def test_without_an_api_the_rules_name_services_and_nothing_is_external(
    rules: Rules, start: Callable[..., Names]
) -> None:
    rules.map = service_map(service_port("lets-ship-it", "10.96.100.50", 8000, ("10.244.1.12", 8000)))
    names = start(None)
    assert names.destination("TCP", "10.96.100.50", 8000, OWN) == SHIP_IT
    assert names.destination("TCP", "10.96.100.50", 8000, ELSEWHERE) == SHIP_IT
    assert names.destination("TCP", "192.0.2.1", 443, OWN) == DestinationName()
    assert names.backend("10.244.1.12", 8000) is None
    assert "names come from kube-proxy's rules and /proc" in names.notes()[0]


@pytest.mark.root
def test_without_an_api_proc_names_the_pods_of_this_machine(start: Callable[..., Names]) -> None:
    names = start(None)
    with container(address="10.255.7.1"):
        assert until(lambda: names.backend("10.255.7.1", 80) == PodName("fastapi", "web-5c9d-x7k2p"))
        assert names.destination("TCP", "10.255.7.1", 80, OWN) == DestinationName(namespace="fastapi", kind="Pod")


# --- backend ---


def test_backends(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(api)
    assert names.backend("10.244.1.12", 8000) == PodName("fastapi", "web-0")
    assert names.backend("172.18.0.2", 10249) == PodName("default", "kube-proxy")  # by its EndpointSlice
    assert names.backend("172.18.0.2", 22) is None
    assert names.backend("10.244.1.99", 8000) is None


def test_a_pod_that_vanishes_during_its_connection_is_still_named(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(api)
    assert api.watching(PODS)
    generation = names.generation
    assert names.backend("10.244.1.12", 8000) is not None
    api.remove(PODS, pod("web-0", "10.244.1.12", namespace="fastapi"))
    assert until(lambda: names.generation > generation)
    assert names.backend("10.244.1.12", 8000) == PodName("fastapi", "web-0")
    api.put(PODS, pod("web-1", "10.244.1.12", namespace="fastapi"))
    assert until(lambda: names.backend("10.244.1.12", 8000) == PodName("fastapi", "web-1"))


# --- node ---


def test_nodes(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(api)
    assert names.node(ELSEWHERE, 0, "10.244.0.10") == "node1"
    assert names.node(ELSEWHERE, 0, "10.244.1.12") == "node2"
    assert names.node(ELSEWHERE, 0, "172.18.0.3") == "node2"
    assert names.node(OWN, 0, "192.0.2.1") == "laptop"
    assert names.node(ELSEWHERE, 0, "192.0.2.1") is None  # this machine is no node of the cluster


def test_without_an_api_the_node_is_this_machine(start: Callable[..., Names]) -> None:
    names = start(None)
    assert names.node(ELSEWHERE, 0, "10.244.0.10") == "laptop"


def test_this_machine_is_a_node_by_its_hostname(
    api: ApiServer, start: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.put(NODES, node("ip-10-0-0-7.example", "10.0.0.7") | {"metadata": {"name": "n7", "labels": {}}})
    monkeypatch.setattr(socket, "gethostname", lambda: "ip-10-0-0-7.example")
    names = start(api)
    assert names.node(ELSEWHERE, 0, "10.244.77.1") == "n7"


@pytest.mark.root
def test_this_machine_is_a_node_by_its_address(
    api: ApiServer, rules: Rules, start: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.procfs.addresses", lambda pid=None: frozenset({"127.0.0.1", "172.18.0.3"}))
    names = start(api)
    assert names.node(ELSEWHERE, OWN, "127.0.0.1") == "node2"
    assert names.node(ELSEWHERE, 0, "127.0.0.1") == "node2"


@pytest.mark.root
def test_loopback_in_a_pod_is_on_the_pods_node(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(api)
    with container() as one:
        assert names.node(one.netns, 0, "127.0.0.1", one.cgroup_id, one.pid) == "node1"
        assert names.node(one.netns, 0, "127.0.0.1") is None


# --- another cluster ---


@pytest.mark.root
def test_what_the_api_says_is_not_said_about_another_cluster(
    api: ApiServer, rules: Rules, start: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clusters of kind or k8snet-lab on one machine, with the same addresses."""
    monkeypatch.setattr("tracer.names.local.NEWS_SECONDS", 0.1)
    monkeypatch.setattr("tracer.names.local.SCAN_SECONDS", 0.1)
    monkeypatch.setattr("tracer.names.local.SCAN_SECONDS_AFTER_MISS", 0.05)
    with container() as ours, container(uid="uid-of-theirs", hostname="theirs", address="10.244.1.12") as theirs:
        names = start(api)
        assert until(lambda: names.backend("10.244.1.12", 8000, theirs.netns) == PodName("fastapi", "theirs"))
        assert names.backend("10.244.1.12", 8000, ours.netns) == PodName("fastapi", "web-0")
        assert names.backend("10.244.1.12", 8000) == PodName("fastapi", "web-0")
        assert names.source("10.244.0.10", theirs.netns, 0, 0) == PodName("fastapi", "theirs")
        assert names.source("10.244.0.10", ours.netns, 0, 0) == CLIENT
        assert names.destination("TCP", "10.96.100.50", 8000, theirs.netns) == DestinationName()
        assert names.destination("TCP", "192.0.2.1", 80, theirs.netns) == DestinationName()
        assert names.destination("TCP", "10.96.100.50", 8000, ours.netns) == SHIP_IT
        assert not names.no_endpoints("TCP", "10.96.100.50", 8000, theirs.netns)
        assert names.node(theirs.netns, 0, "10.244.0.10") is None
        assert names.node(ours.netns, 0, "10.244.0.10") == "node1"
        assert ["pods here that the Kubernetes API does not know" in note for note in names.notes()] == [True]


# --- rules ---


def test_routes_are_those_of_the_namespace_that_translated(
    api: ApiServer, rules: Rules, start: Callable[..., Names]
) -> None:
    rules.map = service_map(service_port("lets-ship-it", "10.96.100.50", 8000, ("10.244.1.12", 8000)))
    names = start(api)
    found = names.route("TCP", "10.96.100.50", 8000, "10.244.1.12", 8000, OWN)
    assert found == Route(("KUBE-SVC-LETS-SHIP-IT", "KUBE-SEP-0"), 1.0)
    assert names.route("TCP", "10.96.100.50", 8000, "10.244.1.12", 8000, ELSEWHERE) == Route()
    assert names.route("TCP", "10.96.100.50", 8000, "10.244.1.99", 8000, OWN) == Route()
    assert names.route("TCP", "10.96.100.50", 8000, "10.244.1.12", 8000, 0) == Route()


def test_no_endpoints_by_the_rules_or_by_the_api(api: ApiServer, rules: Rules, start: Callable[..., Names]) -> None:
    rules.map = service_map(service_port("empty", "10.96.0.77", 80))
    names = start(api)
    assert names.no_endpoints("TCP", "10.96.0.77", 80, OWN)
    assert names.no_endpoints("TCP", "10.96.100.50", 8000, OWN)
    assert not names.no_endpoints("TCP", "10.96.100.50", 8001, OWN)
    assert not names.no_endpoints("TCP", "192.0.2.1", 80, OWN)
    assert api.watching(SLICES)
    filled = endpoint_slice(
        "lets-ship-it-1", "lets-ship-it", 8000, endpoint("10.244.1.12", "web-0"), namespace="fastapi"
    )
    generation = names.generation
    api.put(SLICES, filled)
    assert until(lambda: names.generation > generation)
    assert not names.no_endpoints("TCP", "10.96.100.50", 8000, OWN)


# --- changes, notes, bad days ---


def test_only_a_change_of_what_was_asked_makes_the_generation_grow(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(api)
    assert api.watching(PODS, SERVICES, SLICES, NODES)
    time.sleep(0.5)  # what the start itself changed
    names.backend("10.244.1.12", 8000)
    generation = names.generation
    for n in range(37):
        api.put(PODS, pod(f"other-{n}", f"10.244.9.{n}"))
    time.sleep(0.3)
    assert names.generation == generation
    api.put(PODS, pod("renamed", "10.244.1.12", namespace="fastapi"))
    assert until(lambda: names.generation > generation)


def test_an_api_that_answers_says_nothing(api: ApiServer, start: Callable[..., Names]) -> None:
    assert start(api).notes() == []


def test_each_reason_is_given_once(start: Callable[..., Names]) -> None:
    names = start(None)
    notes = names.notes()
    assert len(notes) == 1
    assert notes[0].startswith("no Kubernetes API: http://127.0.0.1:1 does not answer")
    time.sleep(0.2)
    assert names.notes() == []


def test_an_api_that_disappears_is_told_and_its_names_stay(api: ApiServer, start: Callable[..., Names]) -> None:
    names = start(api)
    assert names.notes() == []
    api.close()
    told: list[str] = []

    def something_is_told() -> bool:
        told.extend(names.notes())
        return bool(told)

    assert until(something_is_told)
    assert told[0].startswith("the Kubernetes API: ")
    assert told[0].endswith("; names may be missing or out of date")
    assert names.source("10.244.0.10", ELSEWHERE, 0, 0) == CLIENT


def test_rules_that_can_not_be_read_are_told(api: ApiServer, rules: Rules, start: Callable[..., Names]) -> None:
    rules.error = NotRoot("reading rules needs root")
    notes = start(api).notes()
    assert notes == ["no kube-proxy rules: reading rules needs root; rules and probabilities are missing"]


def test_a_missing_kubeconfig_is_told(tmp_path: Path, rules: Rules) -> None:
    names = Names(tmp_path / "none", rules=rules)
    names.start()
    try:
        assert names.ready(5)
        assert "there is no kubeconfig" in names.notes()[0]
    finally:
        names.close()


def test_an_api_that_hangs_delays_nothing(api: ApiServer, start: Callable[..., Names]) -> None:
    api.hang_for |= {PODS, SERVICES, SLICES, NODES}
    began = time.monotonic()
    names = start(api, wait=False)
    assert not names.ready(0.2)
    assert names.source("10.244.0.10", ELSEWHERE, 0, 0) is None
    assert names.destination("TCP", "10.96.100.50", 8000, OWN) == DestinationName()
    assert names.backend("10.244.1.12", 8000) is None
    assert names.route("TCP", "10.96.100.50", 8000, "10.244.1.12", 8000, OWN) == Route()
    assert not names.no_endpoints("TCP", "10.96.100.50", 8000, OWN)
    assert time.monotonic() - began < 1.0
    began = time.monotonic()
    names.close()
    assert time.monotonic() - began < 1.5


def test_questions_before_the_start(rules: Rules, tmp_path: Path) -> None:
    names = Names(tmp_path / "none", rules=rules)
    assert names.source("10.0.0.1", ELSEWHERE, 1, os.getpid()) is None
    assert names.destination("TCP", "10.0.0.1", 80, OWN) == DestinationName()
    assert names.node(OWN, 0, "10.0.0.1") is not None
    assert (names.backend("10.0.0.1", 80), names.generation, names.notes()) == (None, 0, [])
    names.close()


def test_closing_ends_every_thread(api: ApiServer, start: Callable[..., Names]) -> None:
    before = set(threading.enumerate())
    names = start(api)
    assert api.watching(PODS, SERVICES, SLICES, NODES)
    names.close()
    ours = {"generation", "rules", "processes", "local pods"}
    left = [one.name for one in set(threading.enumerate()) - before]
    assert not [name for name in left if name in ours or name.startswith("watch ")]

"""Every Service kind from a pod, a node and outside: who answers, and which source address it sees."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.labs.lab import MANIFEST, Lab

pytestmark = pytest.mark.root

REQUESTS = 30  # all of them missing one of three pods: once in sixty thousand times
SECONDS = 5.0
POD, NODE, OUTSIDE = "default/client", "node1", "client-host"  # the pod is on node1, too

CLUSTER_IP = "http://10.96.20.1/"
NODE_PORT = "http://172.18.0.3:30080/"
NODE_PORT_LOCAL = "http://172.18.0.3:30081/"
NODE1 = {"node1": {"10.244.0.1"}, "node2": {"172.18.0.2"}}  # masqueraded by node1, on the way to a pod of ...
NODE2 = {"node1": {"172.18.0.3"}, "node2": {"10.244.1.1"}}
EITHER = {node: NODE1[node] | NODE2[node] for node in NODE1}
V6_NODE1 = {"node1": {"fd00:10:244::1"}, "node2": {"fc00:f853:ccd:e793::2"}}
V6_EITHER = {
    "node1": {"fd00:10:244::1", "fc00:f853:ccd:e793::3"},
    "node2": {"fd00:10:244:1::1", "fc00:f853:ccd:e793::2"},
}
CLIENT = {node: {"198.51.100.2"} for node in NODE1}
V6_CLIENT = {node: {"2001:db8:51::2"} for node in NODE1}
OWN = {node: {"own"} for node in NODE1}  # the source stays


# What a node masquerades as on the way to a pod of its own: by rules, the address that leads there; by maps, its own.
GATEWAYS = {
    "10.244.0.1": "172.18.0.2",
    "10.244.1.1": "172.18.0.3",
    "fd00:10:244::1": "fc00:f853:ccd:e793::2",
    "fd00:10:244:1::1": "fc00:f853:ccd:e793::3",
}


@pytest.fixture(scope="module", params=["iptables", "ebpf"])
def world(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A dual-stack cluster with Services that are open to the outside."""
    more = str(Path(__file__).with_name("outside.yaml"))
    with Lab(("--ip-family", "dual", "--proxy", request.param, "-f", str(MANIFEST), "-f", more)) as running:
        yield running


def seen(cluster: Lab, url: str, source: str, clients: dict[str, set[str]]) -> dict[str, set[str]]:
    """Which clients' addresses pods see: by rules those of `clients`; translated at a socket, nobody masquerades."""
    if "ebpf" not in cluster.options:
        return clients
    if source in (POD, NODE) and not url.startswith("http://172.18."):
        return OWN if source == POD else clients
    return {node: {GATEWAYS.get(ip, ip) for ip in ips} for node, ips in clients.items()}


@pytest.fixture(scope="module")
def pods(world: Lab) -> list[dict[str, Any]]:
    """Its pods as `status` tells of them; no test here changes them."""
    found: list[dict[str, Any]] = world.status()["pods"]
    return found


def service(cluster: Lab, name: str) -> dict[str, Any]:
    text = cluster.exec("node1", "kubectl", "-n", "shop", "get", "service", name, "-o", "json").stdout
    item: dict[str, Any] = json.loads(text)
    return item


def addresses(item: dict[str, Any]) -> list[str]:
    """The LoadBalancer IPs of a Service."""
    return [entry["ip"] for entry in item["status"]["loadBalancer"].get("ingress", ())]


def load_balancer(cluster: Lab, name: str, family: int) -> str:
    (ip,) = [ip for ip in addresses(service(cluster, name)) if (":" in ip) is (family == 6)]
    return f"http://[{ip}]/" if family == 6 else f"http://{ip}/"


def curl_status(cluster: Lab, source: str, url: str) -> int:
    return cluster.exec(source, "curl", "-gsS", "-o", "/dev/null", "--max-time", "1", url, check=False).returncode


def expect(cluster: Lab, pods: list[dict[str, Any]], source: str, url: str, clients: dict[str, set[str]]) -> None:
    """All pods of shop/web on the nodes of `clients` answer, and no others, and see only the addresses of `clients`."""
    command = ("curl", "-gsS", "--max-time", "5", "-H", "Connection: close", "-w", "\\n", *[url] * REQUESTS)
    answers = [json.loads(line) for line in cluster.exec(source, *command).stdout.splitlines() if line]
    assert len(answers) == REQUESTS
    web = {pod["name"]: pod["node"] for pod in pods if pod["namespace"] == "shop" and pod["name"].startswith("web")}
    assert set(web.values()) == {"node1", "node2"}
    clients = seen(cluster, url, source, clients)
    assert {answer["pod"] for answer in answers} == {name for name, node in web.items() if node in clients}
    (own,) = [set(pod["addresses"]) for pod in pods if f"{pod['namespace']}/{pod['name']}" == POD]
    for answer in answers:
        allowed = clients[answer["node"]]
        assert answer["client"]["ip"] in (own if allowed == {"own"} else allowed), answer


@pytest.mark.parametrize(
    ("url", "source", "clients"),
    [
        (CLUSTER_IP, POD, OWN),
        (CLUSTER_IP, NODE, NODE1),
        (NODE_PORT, POD, NODE2),
        (NODE_PORT, NODE, NODE2),
        (NODE_PORT, OUTSIDE, NODE2),
        # Not of the pod network's traffic: kindnet masquerades on the way to another node.
        (NODE_PORT_LOCAL, POD, {"node2": {"172.18.0.2"}}),
        (NODE_PORT_LOCAL, NODE, {"node2": {"172.18.0.2"}}),
        (NODE_PORT_LOCAL, OUTSIDE, {"node2": {"198.51.100.2"}}),
        ("http://192.0.2.77/", POD, NODE1),
        ("http://192.0.2.77/", NODE, NODE1),
        ("http://192.0.2.77/", OUTSIDE, EITHER),
    ],
)
def test_cluster_ips_node_ports_and_external_ips(
    world: Lab, pods: list[dict[str, Any]], url: str, source: str, clients: dict[str, set[str]]
) -> None:
    expect(world, pods, source, url, clients)


@pytest.mark.parametrize(
    ("name", "family", "source", "clients"),
    [
        ("lb", 4, POD, NODE1),
        ("lb", 4, NODE, NODE1),
        ("lb", 4, OUTSIDE, EITHER),
        ("lb", 6, NODE, V6_NODE1),
        ("lb", 6, OUTSIDE, V6_EITHER),
        ("lb-local", 4, POD, OWN),  # kube-proxy's short circuit: all endpoints, as if it were the ClusterIP
        ("lb-local", 4, NODE, NODE1),
        ("lb-local", 4, OUTSIDE, CLIENT),
        ("lb-local", 6, OUTSIDE, V6_CLIENT),
        ("guarded", 4, OUTSIDE, EITHER),
    ],
)
def test_load_balancers(
    world: Lab, pods: list[dict[str, Any]], name: str, family: int, source: str, clients: dict[str, set[str]]
) -> None:
    expect(world, pods, source, load_balancer(world, name, family), clients)


def test_a_node_without_a_local_endpoint_gets_no_connections(world: Lab) -> None:
    """node1 would drop them: of 30 connections all arrive, by way of node2."""
    url = load_balancer(world, "one-sided", 4)
    command = ("curl", "-gsS", "--max-time", "2", "-H", "Connection: close", "-w", "\\n", *[url] * REQUESTS)
    answers = [json.loads(line) for line in world.exec(OUTSIDE, *command).stdout.splitlines() if line]
    assert [(answer["pod"], answer["client"]["ip"]) for answer in answers] == [("host", "198.51.100.2")] * REQUESTS


def test_outside_knows_no_way_to_what_is_inside(world: Lab) -> None:
    pod = world.pods("shop", "web")[0]["addresses"][0]
    for url in (CLUSTER_IP, f"http://{pod}:8080/"):
        assert curl_status(world, OUTSIDE, url) == 7, "no route: refused at once, not a timeout"


def test_source_ranges_shut_others_out(world: Lab) -> None:
    assert curl_status(world, POD, "http://203.0.113.50/") == 28, "dropped"


def test_who_gets_which_address(world: Lab) -> None:
    both, local = service(world, "lb"), service(world, "lb-local")
    assert [":" in ip for ip in addresses(both)] == [":" in ip for ip in addresses(local)] == [False, True]
    assert not set(addresses(both)) & set(addresses(local))
    assert "nodePort" in both["spec"]["ports"][0]
    assert "nodePort" not in local["spec"]["ports"][0]
    assert addresses(service(world, "guarded")) == ["203.0.113.50"]
    assert addresses(service(world, "elsewhere")) == [], "somebody else's class"


def test_an_address_comes_and_goes(world: Lab, patience: float) -> None:
    """Without endpoints it is refused; with some they answer; and a ClusterIP Service has none."""
    url = "http://203.0.113.60/"

    def wait_for(status: int) -> None:
        deadline = time.monotonic() + SECONDS * patience
        while (found := curl_status(world, OUTSIDE, url)) != status and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found == status

    assert addresses(service(world, "late")) == ["203.0.113.60"]
    wait_for(7)
    patch = ("kubectl", "-n", "shop", "patch", "service", "late", "-p")
    world.exec("node1", *patch, '{"spec": {"selector": {"app": "web"}}}')
    wait_for(0)
    world.exec("node1", *patch, '{"spec": {"type": "ClusterIP"}}')
    wait_for(7)
    assert addresses(service(world, "late")) == []

"""The Kubernetes network model, with both CNIs and both IP families; and a node's link that goes down and up again."""

from __future__ import annotations

import ipaddress
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.labs.lab import MANIFEST, Lab

pytestmark = pytest.mark.root

LINK_SECONDS = 10.0
CLIENTS = ("default/client", "shop/client")
# $@: URLs. One line of JSON for each, or curl's complaint.
ASK_ALL = 'for url in "$@"; do curl -gsS --max-time 5 "$url" || exit; echo; done'


@pytest.fixture(scope="module", params=["routed", "vxlan"])
def dual(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A dual-stack cluster with the CNI of the parameter."""
    with Lab(("--cni", request.param, "--ip-family", "dual", "-f", str(MANIFEST))) as running:
        yield running


def servers(cluster: Lab) -> list[dict[str, Any]]:
    """The pods of node1 and node2 that answer HTTP under addresses of their own."""
    return cluster.pods("fastapi") + cluster.pods("shop", "web")


def url(pod: dict[str, Any], address: str) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{8000 if pod['namespace'] == 'fastapi' else 8080}/"


def ask_all(cluster: Lab, source: str, urls: list[str]) -> list[dict[str, Any]]:
    """What each of the servers answers to curl on `source`."""
    lines = cluster.exec(source, "sh", "-c", ASK_ALL, "ask", *urls).stdout.splitlines()
    return [json.loads(line) for line in lines if line]


def of_family(addresses: list[str], like: str) -> str:
    """The one address that is of the same IP family."""
    (address,) = [address for address in addresses if (":" in address) is (":" in like)]
    return address


def settings(cluster: Lab, node: str) -> dict[str, list[str]]:
    """A node's addresses and routes, as `ip` lists them, in no order."""
    script = "ip -br address; echo =; ip route; echo =; ip -6 route"
    parts = cluster.exec(node, "sh", "-c", script).stdout.split("=\n")
    return {name: sorted(part.splitlines()) for name, part in zip(("addresses", "v4", "v6"), parts, strict=True)}


class TestNetworkModel:
    def test_addresses_are_unique_and_of_the_nodes_networks(self, dual: Lab) -> None:
        document = dual.status()
        own = [pod for pod in document["pods"] if not pod["host_network"]]
        addresses = [address for pod in own for address in pod["addresses"]]
        assert len(addresses) == len(set(addresses)) == 2 * len(own)
        cidrs = {node["name"]: node["pod_cidrs"] for node in document["nodes"]}
        assert cidrs == {
            "node1": ["10.244.0.0/24", "fd00:10:244::/64"],
            "node2": ["10.244.1.0/24", "fd00:10:244:1::/64"],
        }
        for pod in own:
            for address, cidr in zip(pod["addresses"], cidrs[pod["node"]], strict=True):
                assert ipaddress.ip_address(address) in ipaddress.ip_network(cidr)

    def test_every_pod_reaches_every_pod_with_its_own_address(self, dual: Lab) -> None:
        document = dual.status()
        pods = {f"{pod['namespace']}/{pod['name']}": pod for pod in document["pods"]}
        targets = [(pod, address) for pod in servers(dual) for address in pod["addresses"]]
        sources = [*CLIENTS, *(f"{pod['namespace']}/{pod['name']}" for pod in servers(dual))]
        ways = {(pods[source]["node"], target["node"]) for source in sources for target, _ in targets}
        assert ways == set(itertools.product(("node1", "node2"), repeat=2))
        for source in sources:
            answers = ask_all(dual, source, [url(*target) for target in targets])
            assert [(answer["pod"], answer["client"]["ip"]) for answer in answers] == [
                (pod["name"], of_family(pods[source]["addresses"], address)) for pod, address in targets
            ]

    def test_node_agents_reach_their_pods(self, dual: Lab) -> None:
        gateways = {"node1": ["10.244.0.1", "fd00:10:244::1"], "node2": ["10.244.1.1", "fd00:10:244:1::1"]}
        for node, own in gateways.items():
            targets = [(pod, ip) for pod in servers(dual) if pod["node"] == node for ip in pod["addresses"]]
            answers = ask_all(dual, node, [url(*target) for target in targets])
            assert [(answer["pod"], answer["client"]["ip"]) for answer in answers] == [
                (pod["name"], of_family(own, address)) for pod, address in targets
            ]

    def test_what_leaves_the_cluster_is_masqueraded(self, dual: Lab) -> None:
        """The pod shop/host is on node2's network, which is outside for a pod of node1."""
        answers = ask_all(dual, "default/client", ["http://172.18.0.3:8081/", "http://[fc00:f853:ccd:e793::3]:8081/"])
        assert [(answer["pod"], answer["client"]["ip"]) for answer in answers] == [
            ("host", "172.18.0.2"),
            ("host", "fc00:f853:ccd:e793::2"),
        ]


class TestOverlay:
    def test_only_the_overlay_has_devices_and_packets_that_fit(self, dual: Lab) -> None:
        overlay = "vxlan" in dual.options
        links = json.loads(dual.exec("node2", "ip", "-d", "-j", "link", "show", "type", "vxlan").stdout)
        found = {
            link["ifname"]: (link["mtu"], link["linkinfo"]["info_data"]["id"], link["linkinfo"]["info_data"]["port"])
            for link in links
            if link
        }
        assert found == ({"flannel.1": (1450, 1, 8472), "flannel-v6.1": (1430, 1, 8472)} if overlay else {})
        for pod in CLIENTS:
            assert dual.exec(pod, "cat", "/sys/class/net/eth0/mtu").stdout == ("1430\n" if overlay else "1500\n")

    def test_between_nodes_pods_use_it(self, dual: Lab) -> None:
        """Counted by the device that leads to the other node, for each family."""
        device = {"4": "flannel.1", "6": "flannel-v6.1"} if "vxlan" in dual.options else {"4": "eth0", "6": "eth0"}
        target = next(pod for pod in servers(dual) if pod["node"] == "node2")
        for address in target["addresses"]:
            route = json.loads(dual.exec("node1", "ip", "-j", "route", "get", address).stdout)
            link = device["6" if ":" in address else "4"]
            assert route[0]["dev"] == link
            count = f"cat /sys/class/net/{link}/statistics/tx_packets"
            before = int(dual.exec("node1", "sh", "-c", count).stdout)
            ask_all(dual, "default/client", [url(target, address)] * 7)
            # Seven requests: SYN, ACK, request, FIN and what acknowledges the answer, each.
            assert int(dual.exec("node1", "sh", "-c", count).stdout) - before >= 7 * 4


def test_a_link_that_was_down_is_as_before(dual: Lab, patience: float) -> None:
    before = settings(dual, "node2")
    targets = [(pod, address) for pod in servers(dual) for address in pod["addresses"]]
    dual.exec("node2", "ip", "link", "set", "eth0", "down")
    down = settings(dual, "node2")
    assert not any(line.startswith(("default", "172.18.")) for line in down["v4"] + down["v6"])
    far = next(url(pod, address) for pod, address in targets if pod["node"] == "node2")
    assert dual.exec("default/client", "curl", "-sS", "--max-time", "1", far, check=False).returncode != 0
    dual.exec("node2", "ip", "link", "set", "eth0", "up")
    deadline = time.monotonic() + LINK_SECONDS * patience
    while (after := settings(dual, "node2")) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert after == before
    for source in CLIENTS:
        answers = ask_all(dual, source, [url(*target) for target in targets])
        assert [answer["pod"] for answer in answers] == [pod["name"] for pod, _ in targets]
    assert dual.status_or_reasons() == []

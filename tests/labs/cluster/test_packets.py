"""Packets in a running cluster: who answers, and which source address it sees; the Kubernetes network model."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from labs.cluster.proxy.iptables import render
from tests.labs.lab import Lab

pytestmark = pytest.mark.root


def servers(cluster: Lab) -> list[dict[str, Any]]:
    """The pods that answer HTTP on port 8000 or 8080 under an address of their own."""
    return cluster.pods("fastapi") + cluster.pods("shop", "web")


def url(pod: dict[str, Any]) -> str:
    return f"http://{pod['addresses'][0]}:{8000 if pod['namespace'] == 'fastapi' else 8080}/"


class TestNetworkModel:
    def test_every_pod_has_an_address_of_its_own_from_its_nodes_network(self, cluster: Lab) -> None:
        document = cluster.status()
        own = [pod for pod in document["pods"] if not pod["host_network"]]
        addresses = [address for pod in own for address in pod["addresses"]]
        assert len(addresses) == len(set(addresses)) == len(own)
        prefixes = {node["name"]: node["pod_cidrs"][0].rsplit(".", 1)[0] + "." for node in document["nodes"]}
        assert prefixes == {"node1": "10.244.0.", "node2": "10.244.1."}
        assert all(pod["addresses"][0].startswith(prefixes[pod["node"]]) for pod in own)

    def test_every_pod_has_a_network_namespace_of_its_own(self, cluster: Lab) -> None:
        document = cluster.status()
        nodes = {node["name"]: node["netns"] for node in document["nodes"]}
        own = [pod["netns"] for pod in document["pods"] if not pod["host_network"]]
        assert len({*own, *nodes.values()}) == len(own) + 2
        for pod in document["pods"]:
            if pod["host_network"]:
                assert pod["netns"] == nodes[pod["node"]]

    def test_pods_reach_each_other_on_all_nodes_without_translation(self, cluster: Lab) -> None:
        clients = {"default/client": "node1", "shop/client": "node2"}
        addresses = {f"{pod['namespace']}/{pod['name']}": pod["addresses"][0] for pod in cluster.status()["pods"]}
        targets = servers(cluster)
        assert {pod["node"] for pod in targets} == {"node1", "node2"}
        for (client, _), target in itertools.product(clients.items(), targets):
            answer = cluster.get(client, url(target))
            assert answer["pod"] == target["name"]
            assert answer["client"]["ip"] == addresses[client]

    def test_nodes_reach_their_pods_without_translation(self, cluster: Lab) -> None:
        gateways = {"node1": "10.244.0.1", "node2": "10.244.1.1"}
        for target in servers(cluster):
            answer = cluster.get(target["node"], url(target))
            assert (answer["pod"], answer["client"]["ip"]) == (target["name"], gateways[target["node"]])

    def test_a_pod_reaches_itself(self, cluster: Lab) -> None:
        target = cluster.pods("shop", "web")[0]
        answer = cluster.get(f"shop/{target['name']}", url(target))
        assert (answer["pod"], answer["client"]["ip"]) == (target["name"], target["addresses"][0])

    def test_what_leaves_the_pod_network_has_the_nodes_address(self, cluster: Lab) -> None:
        """shop/host is on node2's network: for a pod of node1 that is outside, and KIND-MASQ-AGENT masquerades."""
        answer = cluster.get("default/client", "http://172.18.0.3:8081/")
        assert (answer["pod"], answer["client"]["ip"]) == ("host", "172.18.0.2")

    def test_the_cluster_has_no_way_out(self, cluster: Lab) -> None:
        assert cluster.exec("node1", "curl", "-sS", "--max-time", "1", "http://192.0.2.1", check=False).returncode != 0


class TestServices:
    def test_a_cluster_ip_spreads_over_all_its_pods(self, cluster: Lab) -> None:
        script = "for i in $(seq 30); do curl -sS --max-time 5 http://10.96.20.1/; done"
        lines = cluster.exec("default/client", "sh", "-c", script).stdout.splitlines()
        answers = [json.loads(line) for line in lines]
        expected = {pod["name"] for pod in cluster.pods("shop", "web")}
        # All of 30 missing one of three pods: 3 * (2/3)^30, one in sixty thousand.
        assert {answer["pod"] for answer in answers} == expected
        own = cluster.pods("default", "client")[0]["addresses"][0]
        others = [answer for answer in answers if answer["client"]["ip"] != own]
        assert others == [], "pod to Service: the source stays"

    def test_from_a_node_a_cluster_ip_answers_too(self, cluster: Lab) -> None:
        # Translated in OUTPUT; not from the pod network, so masqueraded to the address that leads there.
        for node in ("node1", "node2"):
            assert cluster.get(node, "http://10.96.20.1/")["namespace"] == "shop"

    def test_session_affinity(self, cluster: Lab) -> None:
        answers = Counter(cluster.get("default/client", "http://10.96.20.4/")["pod"] for _ in range(6))
        assert len(answers) == 1

    def test_a_service_without_endpoints_is_refused_at_once(self, cluster: Lab) -> None:
        refused = cluster.exec("default/client", "curl", "-sS", "--max-time", "5", "http://10.96.20.5/", check=False)
        assert refused.returncode == 7, "connection refused, not a timeout"

    @pytest.mark.parametrize("address", ["172.18.0.2", "172.18.0.3"])
    def test_a_node_port_answers_on_every_node_masqueraded(self, cluster: Lab, address: str) -> None:
        other = {"172.18.0.2": "node2", "172.18.0.3": "node1"}[address]
        answer = cluster.get(other, f"http://{address}:30080/")
        assert answer["namespace"] == "shop"
        assert answer["client"]["ip"] in (address, "10.244.0.1", "10.244.1.1"), "the node's, on the way to the pod"

    def test_a_local_node_port_keeps_the_source_and_stays_on_its_node(self, cluster: Lab) -> None:
        for source, own, target in (("node1", "172.18.0.2", "172.18.0.3"), ("node2", "172.18.0.3", "172.18.0.2")):
            answer = cluster.get(source, f"http://{target}:30081/")
            assert answer["client"]["ip"] == own
            assert answer["node"] != source

    def test_a_pod_on_the_nodes_network_behind_a_service(self, cluster: Lab) -> None:
        answer = cluster.get("shop/client", "http://10.96.20.8/")
        assert (answer["pod"], answer["node"]) == ("host", "node2")

    def test_udp_and_tcp_echo(self, cluster: Lab) -> None:
        ask = (
            "import socket, sys\n"
            "s = socket.socket(type=getattr(socket, sys.argv[1])); s.settimeout(5); s.connect((sys.argv[2], 7))\n"
            "s.sendall(b'hello'); got = b''\n"
            "while b'hello' not in got: got += s.recv(100)\n"
            "print(got.decode())"
        )
        for kind, address, expected in (
            ("SOCK_DGRAM", "10.96.20.6", "udp hello"),
            ("SOCK_STREAM", "10.96.20.7", "tcp\nhello"),
        ):
            done = cluster.exec("default/client", "python3", "-c", ask, kind, address)
            assert done.stdout.strip() == expected

    def test_the_api_behind_its_service(self, cluster: Lab) -> None:
        script = (
            "cd /var/run/secrets/kubernetes.io/serviceaccount && curl -sS --max-time 5 --cacert ca.crt "
            '-H "Authorization: Bearer $(cat token)" https://kubernetes.default.svc/version'
        )
        assert json.loads(cluster.exec("default/client", "sh", "-c", script).stdout)["major"] == "1"


class TestDns:
    def dig(self, cluster: Lab, *arguments: str) -> str:
        return cluster.exec("default/client", "dig", "+time=2", "+tries=2", *arguments).stdout

    def test_short_names_through_the_search_list(self, cluster: Lab) -> None:
        for name in ("lets-ship-it.fastapi", "lets-ship-it.fastapi.svc", "lets-ship-it.fastapi.svc.cluster.local"):
            assert cluster.get("default/client", f"http://{name}:8000/")["namespace"] == "fastapi"
        assert cluster.get("shop/client", "http://web/")["namespace"] == "shop"

    @pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
    def test_a_service(self, cluster: Lab, transport: str) -> None:
        assert self.dig(cluster, transport, "+short", "lets-ship-it.fastapi.svc.cluster.local").split() == [
            "10.96.100.50"
        ]

    def test_a_headless_service_has_its_pods_addresses(self, cluster: Lab) -> None:
        expected = {pod["addresses"][0] for pod in cluster.pods("shop", "web")}
        assert set(self.dig(cluster, "+short", "each.shop.svc.cluster.local").split()) == expected

    def test_no_such_name_and_no_such_type_differ(self, cluster: Lab) -> None:
        assert "status: NXDOMAIN" in self.dig(cluster, "nobody-here.shop.svc.cluster.local")
        nodata = self.dig(cluster, "AAAA", "web.shop.svc.cluster.local")
        assert "status: NOERROR" in nodata
        assert "ANSWER: 0, AUTHORITY: 1" in nodata

    def test_names_of_others_are_refused(self, cluster: Lab) -> None:
        assert "status: REFUSED" in self.dig(cluster, "example.org")

    def test_both_pods_answer(self, cluster: Lab) -> None:
        pods = cluster.pods("kube-system", "coredns")
        assert len(pods) == 2
        for pod in pods:
            assert "10.96.0.10" in self.dig(
                cluster, "+short", f"@{pod['addresses'][0]}", "kube-dns.kube-system.svc.cluster.local"
            )


class TestRules:
    def get_all(self, cluster: Lab, kind: str) -> list[dict[str, Any]]:
        document = json.loads(cluster.exec("node1", "kubectl", "get", kind, "-A", "-o", "json").stdout)
        items: list[dict[str, Any]] = document["items"]
        return items

    def test_the_nodes_have_kube_proxys_rules_and_kindnets_after_them(self, cluster: Lab) -> None:
        for node in ("node1", "node2"):
            rules = cluster.exec(node, "iptables-save", "-t", "nat").stdout.splitlines()
            jumps = [rule.rpartition("-j ")[2] for rule in rules if rule.startswith("-A POSTROUTING ")]
            assert jumps == ["KUBE-POSTROUTING", "KIND-MASQ-AGENT"]
            assert (
                sum('"fastapi/lets-ship-it:http ' in rule and rule.startswith("-A KUBE-SERVICES") for rule in rules)
                == 1
            )

    def test_they_are_what_the_renderer_says(self, cluster: Lab) -> None:
        """Per chain as many rules in the kernel as rendered from the API's objects."""
        if shutil.which("kubectl") is None:
            pytest.skip("needs kubectl; to run it: scripts/setup")
        objects = {kind: self.get_all(cluster, kind) for kind in ("services", "endpointslices", "nodes")}
        text = render(objects, node_name="node2", family=4, cluster_cidrs=["10.244.0.0/16"])
        wanted = Counter(line.split()[1] for line in text.splitlines() if line.startswith("-A KUBE-"))
        saved = cluster.exec("node2", "iptables-save").stdout
        present = Counter(line.split()[1] for line in saved.splitlines() if line.startswith("-A KUBE-"))
        assert present == wanted


def test_the_loopback_port_is_not_open_to_others(cluster: Lab) -> None:
    """The API listens on 127.0.0.1 of the machine only."""
    config = yaml.safe_load(Path(cluster.kubeconfig()).read_text())
    port = int(config["clusters"][0]["cluster"]["server"].rpartition(":")[2])
    own = [entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in own:
        if not address.startswith("127."):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=2)

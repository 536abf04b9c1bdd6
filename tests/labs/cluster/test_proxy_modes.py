"""A cluster whose kube-proxies are in nftables mode: the same packets, and no rule of iptables; UDP after its pod."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs.cluster import test_packets
from tests.labs.kubectl import Kubectl, programs
from tests.labs.lab import MANIFEST, Lab

pytestmark = pytest.mark.root

ECHO = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec: {containers: [{name: echo, image: k8snet/udp-echo, ports: [{containerPort: 7, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec: {clusterIP: 10.96.30.1, selector: {app: echo}, ports: [{port: 7, protocol: UDP}]}
"""

# One flow: always the same source port, a datagram every 50 ms, far more often than its entry needs to stay.
TALK = """
import socket, time
s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("", 40007)); s.connect(("10.96.30.1", 7)); s.settimeout(0.05)
end, last = time.time() + 30, None
while time.time() < end:
    try:
        s.send(b"x"); name = s.recv(100).split()[0].decode()
    except OSError:
        time.sleep(0.05)
        continue
    if name != last:
        last = name; print(name, flush=True)
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    with Lab(("--proxy", "nftables", "-f", str(MANIFEST))) as up:
        yield up


class TestServicesByNftables(test_packets.TestServices):
    """Every packet of iptables mode."""


def test_there_is_no_rule_of_iptables_for_services(cluster: Lab) -> None:
    for program in ("iptables-legacy-save", "iptables-nft-save"):
        saved = cluster.exec("node2", program).stdout
        assert "KUBE-" not in saved


def test_the_services_are_read_from_its_rules(cluster: Lab) -> None:
    """The tracer's own reader, an independent view, finds what the API says."""
    command = ("k8snet-trace", "services", "-o", "json")
    found = json.loads(cluster.exec("node1", *command).stdout)
    shipped = next(one for one in found if one["name"] == "lets-ship-it")
    addresses = {pod["addresses"][0] for pod in cluster.pods("fastapi")}
    assert {one["ip"] for one in shipped["endpoints"]} == addresses
    assert [round(one["probability"], 3) for one in shipped["endpoints"]] == [0.333] * 3


@pytest.mark.parametrize("proxy", ["iptables", "nftables"])
def test_a_udp_flow_finds_the_pod_that_replaces_its_own(proxy: str, tmp_path: Path) -> None:
    """Connection tracking would send it to the old address for as long as it talks."""
    with Lab(("--proxy", proxy)) as cluster:
        kubectl = Kubectl(programs()[0], cluster.kubeconfig(), tmp_path, "shop")
        kubectl("create", "namespace", "shop")
        kubectl("apply", "-f", "-", feed=ECHO)
        kubectl("rollout", "status", "deployment/echo", "--timeout=20s")
        talk = cluster.spawn("default/client", "python3", "-c", TALK, stdout=-1)
        try:
            assert talk.stdout is not None
            first = talk.stdout.readline().strip()
            began = time.monotonic()
            kubectl("delete", "pod", first, "--wait=false")
            second = talk.stdout.readline().strip()
            assert second not in ("", first)
            assert time.monotonic() - began < 15
        finally:
            talk.kill()
            talk.communicate()

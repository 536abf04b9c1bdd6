"""`k8snet-lab service-lb` on nodes that nobody serves: as on a real cluster without kube-proxy.

The cluster is one of `--proxy ebpf` whose own proxies were taken away. node2 has no bpffs, as kind's nodes have none,
and both look at where packets come from as strictly as those do.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labs.cluster.ebpfnode import DIRECTORY
from labs.cluster.ebpfproxy import PINS
from tests.labs.cluster.test_ebpf_datapath import CALL, bpftool
from tests.labs.kubectl import Kubectl, programs
from tests.labs.lab import MANIFEST, Lab
from tests.labs.machine import REPOSITORY

pytestmark = [pytest.mark.root, pytest.mark.bpf, pytest.mark.slow]

COMMAND = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "labs.cli", "service-lb"]
API = "https://172.18.0.2:6443"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
NODES = ("node1", "node2")
WEB = "http://10.96.20.1/"
STRICT = "for name in all default; do echo 1 >/proc/sys/net/ipv4/conf/$name/rp_filter; done"
# Whom a socket is connected to, as it is told itself, and as the kernel shows it to others.
PEERS = """
import socket
tcp = socket.create_connection(("10.96.20.1", 80), timeout=5)
print(tcp.getpeername()[0])
for line in open("/proc/net/tcp"):
    _, own, peer, state, *_ = line.split()
    if state == "01" and int(own.split(":")[1], 16) == tcp.getsockname()[1]:
        print(socket.inet_ntoa(bytes.fromhex(peer.split(":")[0])[::-1]))
"""


class Nodes:
    """The cluster's nodes, and the commands that run on them."""

    def __init__(self, cluster: Lab, kubectl: Kubectl, patience: float) -> None:
        self.cluster, self.kubectl, self.patience = cluster, kubectl, patience
        # with those of its pods
        self.cgroups = {one["name"]: str(Path(one["cgroup"]).parent) for one in cluster.status()["nodes"]}
        self.running: dict[str, subprocess.Popen[str]] = {}

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30 * self.patience
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def start(self, node: str) -> None:
        options = ["--node", node, "--api-server", API, "--service-account", "/run/account"]
        command = [*COMMAND, "run", *options, "--cgroup", self.cgroups[node]]
        process = self.running[node] = self.cluster.spawn(node, *command, stderr=subprocess.PIPE)

        def is_ready() -> bool:
            assert process.poll() is None, process.communicate()
            ready = ["curl", "-sf", "-m", "2", "http://127.0.0.1:10256/readyz"]
            return self.cluster.exec(node, *ready, check=False).returncode == 0

        self.until(is_ready)

    def end(self, node: str) -> int:
        process = self.running.pop(node)
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=20 * self.patience)
        assert "Traceback" not in words, words
        return process.returncode

    def remove(self, node: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.cluster.exec(node, *COMMAND, "remove", check=check)

    def files(self, node: str) -> list[str]:
        """What is where the datapath keeps things."""
        return self.cluster.exec(node, "ls", str(PINS), str(DIRECTORY), check=False).stdout.split()

    def bpffs(self, node: str) -> list[str]:
        """The sources of what is mounted as bpffs."""
        lines = self.cluster.exec(node, "cat", "/proc/self/mountinfo").stdout.splitlines()
        return [words.split()[1] for line in lines if (words := line.partition(" - ")[2]).startswith("bpf ")]

    def port_range(self, node: str) -> list[str]:
        return self.cluster.exec(node, "cat", "/proc/sys/net/ipv4/ip_local_port_range").stdout.split()

    def at_sockets(self, node: str) -> list[str]:
        """The programs at the node's cgroup, by the names of their functions."""
        trees = bpftool("cgroup", "tree", self.cgroups[node])
        return sorted(one["name"] for tree in trees for one in tree["programs"])

    def programs(self, node: str) -> set[int]:
        """Ids of all programs that share a node's maps: those at sockets, and those at devices."""
        number = json.loads(
            self.cluster.exec(node, "bpftool", "-j", "map", "show", "pinned", f"{PINS}/services").stdout
        )
        return {one["id"] for one in bpftool("prog", "show") if number["id"] in one.get("map_ids", ())}

    def shares(self, node: str) -> str:
        """What a node's maps say of lets-ship-it."""
        command = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "tracer", "services"]
        return self.cluster.exec(node, *command, "fastapi/lets-ship-it").stdout

    def answers(self, *targets: str) -> bool:
        calls = [self.cluster.exec(target, "curl", "-sS", "-m", "2", WEB, check=False) for target in targets]
        return all(call.returncode == 0 and json.loads(call.stdout)["pod"].startswith("web-") for call in calls)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Lab(("--proxy", "ebpf", "-f", str(MANIFEST))) as cluster:
        kubectl = Kubectl(programs()[0], cluster.kubeconfig(), tmp_path_factory.mktemp("home"), "default")
        found = Nodes(cluster, kubectl, 1.0)
        (dns, *_) = (pod["name"] for pod in cluster.pods("kube-system", "coredns"))
        account = {
            name: cluster.exec(f"kube-system/{dns}", "cat", f"{ACCOUNT}/{name}").stdout for name in ("token", "ca.crt")
        }
        kubectl("-n", "kube-system", "delete", "daemonset", "service-lb")
        found.until(lambda: not cluster.pods("kube-system", "service-lb"))
        for node in NODES:
            assert found.remove(node).stderr == "removed\n"
            cluster.exec(node, "mkdir", "/run/account")
            for name, text in account.items():
                cluster.exec(node, "sh", "-c", f"cat >/run/account/{name}", feed=text)
            cluster.exec(node, "sh", "-c", "echo 32768 60999 >/proc/sys/net/ipv4/ip_local_port_range")
            cluster.exec(node, "sh", "-c", STRICT)
        cluster.exec("node2", "umount", "/sys/fs/bpf")
        yield found


@pytest.fixture(scope="module")
def served(nodes: Nodes) -> Nodes:
    """With the command running on both."""
    for node in NODES:
        nodes.start(node)
    return nodes


def test_what_was_taken_away_is_gone(nodes: Nodes) -> None:
    for node in NODES:
        assert (nodes.files(node), nodes.at_sockets(node)) == ([], [])
        assert nodes.remove(node).stderr == "there is nothing to remove\n"
    assert not nodes.answers("default/client")


def test_services_are_served(served: Nodes) -> None:
    assert served.answers("default/client", *NODES)
    outside = served.cluster.get("client-host", "http://172.18.0.3:30080")
    assert outside["pod"].startswith("web-")
    assert served.bpffs("node2") == ["k8snet"]
    assert [served.port_range(node) for node in NODES] == [["32768", "49151"]] * 2
    assert len(served.at_sockets("node1")) == 8


def test_a_pods_sockets_are_translated_and_do_not_know_it(served: Nodes) -> None:
    asked, real = served.cluster.exec("default/client", "python3", "-c", PEERS).stdout.split()
    assert asked == "10.96.20.1"
    assert real.startswith("10.244.")


def test_endpoints_are_followed(served: Nodes) -> None:
    def count() -> int:
        return served.shares("node2").count("10.244.")

    assert count() == 3
    served.kubectl("-n", "fastapi", "scale", "deployment/lets-ship-it", "--replicas=4")
    served.until(lambda: count() == 4)


def test_it_ends_when_told_and_the_programs_go_on(served: Nodes) -> None:
    before = served.programs("node1")
    calling = served.cluster.spawn("default/client", sys.executable, "-c", CALL, "6", stdout=subprocess.PIPE)
    assert served.end("node1") == 0
    assert served.programs("node1") == before
    assert served.answers("default/client", "node1")
    served.start("node1")
    good, bad = calling.communicate()[0].split()
    assert (int(good) > 100, bad) == (True, "0")
    assert len(served.programs("node1")) == len(before)
    assert served.programs("node1").isdisjoint(before)


def test_a_second_one_waits_and_removal_is_refused(served: Nodes) -> None:
    refused = served.remove("node1", check=False)
    assert refused.returncode == 2
    assert "error: the proxy of this node is running" in refused.stderr
    assert served.answers("node1")


def test_nothing_is_left(served: Nodes) -> None:
    """The last test: afterwards there is no datapath."""
    loaded = served.programs("node1") | served.programs("node2")
    assert len(loaded) > 10
    for node in NODES:
        served.end(node)
        served.remove(node)
        assert served.files(node) == []
        assert served.at_sockets(node) == []
        assert served.port_range(node) == ["32768", "60999"]
    assert (served.bpffs("node1"), served.bpffs("node2")) == (["bpf"], [])
    served.until(lambda: loaded.isdisjoint(one["id"] for one in bpftool("prog", "show")))
    assert not served.answers("node1")

"""A cluster whose Services are served by eBPF maps: the same packets, no rules, and what only this datapath does."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labs.cluster.ledger import STATE_ROOT
from labs.cluster.world import READY_SECONDS
from tests.labs.cluster import test_packets
from tests.labs.cluster.test_proxy_modes import ECHO
from tests.labs.lab import MANIFEST, Lab, lab
from tests.labs.pages import blocks, masked, run

pytestmark = [pytest.mark.root, pytest.mark.bpf]

WEB = "http://10.96.20.1/"

PEER = """
import socket
tcp = socket.create_connection(("10.96.20.7", 7), timeout=5)
mapped = socket.create_connection(("::ffff:10.96.20.7", 7), timeout=5)
udp = socket.socket(type=socket.SOCK_DGRAM); udp.settimeout(5); udp.sendto(b"x", ("10.96.20.6", 7))
print(tcp.getpeername()[0], mapped.getpeername()[0], udp.recvfrom(100)[1][0])
"""

# Two NodePorts in turn, always from one port; prints which client the second one saw.
SAME_PORT = """
import http.client, json, socket
for turn in range(20):
    for number in (30080, 30081):
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
        s.settimeout(5); s.bind(("", 45000)); s.connect(("172.18.0.3", number))
        http_client = http.client.HTTPConnection("172.18.0.3"); http_client.sock = s
        http_client.request("GET", "/"); answer = json.load(http_client.getresponse())
        s.close()
    print(answer["client"]["ip"])
"""

# Calls for as long as it lives, and says how often it went well and how often not.
CALL = """
import socket, sys, time
good = bad = 0
end = time.time() + float(sys.argv[1])
while time.time() < end:
    try:
        socket.create_connection(("10.96.20.1", 80), timeout=2).close()
        good += 1
    except OSError as error:
        bad += 1
    time.sleep(0.002)
print(good, bad)
"""

# A SYN that no socket sent, with the address of a Service: what answers?
CRAFTED = """
import sys
from scapy.all import IP, TCP, conf, sr1
conf.verb = 0
ports = [answer.sport for port in range(41000, 41010)
         if (answer := sr1(IP(dst=sys.argv[1]) / TCP(sport=port, dport=80, flags="S"), timeout=3)) is not None
         and answer[TCP].flags == "SA" and answer[IP].src == sys.argv[1]]
print(len(ports))
"""


# Talks through one socket, and makes another only when it is told that the connection was aborted.
TALK = """
import errno, socket, time
def connect():
    while True:
        s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(0.05)
        try:
            s.connect(("10.96.30.1", 7))
            return s
        except ConnectionRefusedError:  # for as long as there is no endpoint
            time.sleep(0.05)
s, last, end = connect(), None, time.time() + 30
while time.time() < end:
    try:
        s.send(b"x"); name = s.recv(100).split()[0].decode()
    except OSError as error:
        if error.errno in (errno.ECONNABORTED, errno.EDESTADDRREQ):
            print("aborted", flush=True)
            s = connect()
        time.sleep(0.05)
        continue
    if name != last:
        last = name; print(name, flush=True)
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    with Lab(("--proxy", "ebpf", "-f", str(MANIFEST))) as up:
        yield up


class TestServicesByMaps(test_packets.TestServices):
    """Every packet of iptables mode."""


def bpftool(*arguments: str) -> Any:
    return json.loads(subprocess.run(["bpftool", "-j", *arguments], capture_output=True, text=True, check=True).stdout)


def programs(cluster: Lab) -> set[int]:
    """Ids of a cluster's programs: those at its cgroups, and those that share maps with them."""
    trees = bpftool("cgroup", "tree", cluster.ledger()["cgroup"])
    attached = {program["id"] for tree in trees for program in tree["programs"]}
    shown = bpftool("prog", "show")
    maps = {number for one in shown if one["id"] in attached for number in one["map_ids"]}
    return {one["id"] for one in shown if maps.intersection(one.get("map_ids", ()))}


def test_there_is_no_rule_for_services(cluster: Lab) -> None:
    for program in ("iptables-legacy-save", "iptables-nft-save"):
        assert "KUBE-SVC" not in cluster.exec("node2", program).stdout
    assert "kube-proxy" not in cluster.exec("node2", "nft", "list", "tables").stdout


@pytest.mark.parametrize("block", blocks("ebpf.md"), ids=lambda block: block[-1][:30])
def test_what_the_page_shows(cluster: Lab, block: list[str]) -> None:
    """Of tcpdump's line the page shows the beginning."""
    printed, shown = run(cluster, block)
    short = {r"\.\d+ > ": ".PORT > ", r"(\[S\]).*": r"\1"}
    assert masked(printed, short) == masked(shown, short)


def test_the_page_has_commands() -> None:
    assert len(blocks("ebpf.md")) == 2


def test_programs_see_the_address_that_they_asked_for(cluster: Lab) -> None:
    seen = cluster.exec("default/client", "python3", "-c", PEER).stdout.split()
    assert seen == ["10.96.20.7", "::ffff:10.96.20.7", "10.96.20.6"]


def test_a_client_port_used_before_for_a_masqueraded_service_keeps_its_address(cluster: Lab) -> None:
    """From node1 to NodePorts of node2: 172.18.0.2 is what pods see under policy Local, whatever came before."""
    seen = cluster.exec("node1", "python3", "-c", SAME_PORT).stdout.split()
    assert len(seen) == 20
    assert set(seen) == {"172.18.0.2"}


@pytest.mark.parametrize("address", ["10.96.20.1", "10.96.20.4"])
def test_crafted_packets_of_a_pod_are_translated_at_its_device(cluster: Lab, address: str) -> None:
    assert cluster.exec("default/client", sys.executable, "-c", CRAFTED, address).stdout.split() == ["10"]


def test_a_pod_of_a_service_may_be_its_own_client(cluster: Lab) -> None:
    """Through the Service, until it gets itself."""
    own = cluster.pods("shop", "web")[0]["name"]
    assert any(cluster.get(f"shop/{own}", WEB)["pod"] == own for _ in range(30))


def test_datagrams_that_nobody_takes_are_reported_as_by_kube_proxy(cluster: Lab) -> None:
    """An unconnected socket hears nothing of it; a connected one is refused."""
    script = (
        "import socket\n"
        "s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(0.3); s.sendto(b'x', ('10.96.20.5', 80))\n"
        "try: s.recv(10)\n"
        "except TimeoutError: print('nothing')\n"
    )
    assert cluster.exec("default/client", "python3", "-c", script).stdout.strip() == "nothing"


def test_a_killed_proxy_leaves_its_programs_at_work_and_comes_back(cluster: Lab) -> None:
    before = programs(cluster)
    calls = cluster.spawn("default/client", "python3", "-c", CALL, "6", stdout=subprocess.PIPE)
    restarted = _kill_proxy(cluster, "node1")
    assert calls.stdout is not None
    good, bad = calls.communicate(timeout=60)[0].split()
    assert int(good) > 100
    assert int(bad) == 0
    assert restarted
    deadline = time.monotonic() + 20
    while cluster.status_or_reasons() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.status_or_reasons() == []
    after = programs(cluster)
    assert len(after) == len(before), "new ones in the place of the old ones"
    assert after != before
    cluster.exec("node1", "kubectl", "-n", "shop", "scale", "deployment/web", "--replicas=5")
    cluster.exec("node1", "kubectl", "-n", "shop", "rollout", "status", "deployment/web", "--timeout=20s")
    names = {pod["name"] for pod in cluster.pods("shop", "web")}
    seen: set[str] = set()
    deadline = time.monotonic() + 20
    while seen != names and time.monotonic() < deadline:
        seen.add(str(cluster.get("default/client", WEB)["pod"]))
    assert seen == names


def _kill_proxy(cluster: Lab, node: str) -> bool:
    """Kill it; whether it comes back."""
    before = _proxy_pid(cluster, node)
    subprocess.run(["kill", "-KILL", str(before)], check=True)
    deadline = time.monotonic() + 20
    while (now := _proxy_pid(cluster, node)) in (None, before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return now not in (None, before)


def _proxy_pid(cluster: Lab, node: str) -> int | None:
    status = json.loads(cluster.run("status", "-o", "json", check=False).stdout)
    (pid,) = [pod["pid"] for pod in status["pods"] if pod["name"].startswith("service-lb-") and pod["node"] == node]
    return None if pid is None else int(pid)


def test_a_connected_udp_socket_hears_that_its_endpoint_is_gone(cluster: Lab) -> None:
    """And one of another Service, on the same node, is left alone."""
    cluster.exec("node1", "kubectl", "apply", "-f", "-", feed=ECHO)
    cluster.exec("node1", "kubectl", "-n", "shop", "rollout", "status", "deployment/echo", "--timeout=20s")
    talk = cluster.spawn("default/client", "python3", "-c", TALK, stdout=subprocess.PIPE)
    other = cluster.spawn("default/client", "python3", "-c", TALK.replace("10.96.30.1", "10.96.20.6"), stdout=-1)
    try:
        assert talk.stdout is not None
        assert other.stdout is not None
        first = talk.stdout.readline().strip()
        own = other.stdout.readline().strip()
        cluster.exec("node1", "kubectl", "-n", "shop", "delete", "pod", first, "--wait=false")
        assert talk.stdout.readline().strip() == "aborted"
        assert talk.stdout.readline().strip() not in ("", first)
    finally:
        for one in (talk, other):
            one.terminate()
    assert talk.communicate()[0] == ""
    assert (own, other.communicate()[0]) == ("udp", "")


def test_a_node_that_boots_again_has_its_programs_again(cluster: Lab, patience: float) -> None:
    (pid,) = [node["pid"] for node in cluster.status()["nodes"] if node["name"] == "node1"]
    before = programs(cluster)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10 * patience
    time.sleep(0.1)
    while cluster.status_or_reasons() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert cluster.status_or_reasons() == []
    assert len(programs(cluster)) == len(before)
    names = {pod["name"] for pod in cluster.pods("shop", "web")}
    assert cluster.get("node1", WEB)["pod"] in names


def test_what_the_compiler_says_is_told_at_once_and_nothing_is_left(tmp_path: Path) -> None:
    """It looks for headers in a directory without any."""
    name = f"test-{secrets.token_hex(4)}"
    environment = {**os.environ, "BCC_KERNEL_SOURCE": str(tmp_path)}
    began = time.monotonic()
    done = lab("up", "--name", name, "--proxy", "ebpf", env=environment, check=False)
    seconds = time.monotonic() - began
    assert done.returncode == 1
    assert re.search(r"pod kube-system/service-lb-\w+: the BPF programs don't compile:\n.*kconfig.h", done.stderr)
    assert "Traceback" not in done.stderr
    assert seconds < READY_SECONDS, "nobody waits for what can't come"
    assert not (STATE_ROOT / name).exists()


def test_nothing_is_attached_after_down() -> None:
    with Lab(("--proxy", "ebpf", "--nodes", "3")) as cluster:
        own = programs(cluster)
    assert len(own) == 3 * (8 + 3), "of each of three nodes: at sockets, and for packets"
    deadline = time.monotonic() + 5  # the kernel takes a dead namespace apart in its own time
    while own & (left := {one["id"] for one in bpftool("prog", "show")}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert own & left == set()

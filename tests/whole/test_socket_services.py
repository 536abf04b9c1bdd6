"""The tracer in a cluster without rules for Services: it reads the maps of eBPF, and tells what sockets translated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import run, start, wait_for
from tests.labs.lab import MANIFEST, Lab
from tracer import netns

pytestmark = [pytest.mark.root, pytest.mark.bpf]

TRACE_THERE = (sys.executable, "-m", "tracer")
WEB, NOBODY, STICKY, UDP, DNS = "10.96.20.1", "10.96.20.5", "10.96.20.4", "10.96.20.6", "10.96.0.10"

# In one process each, as a user's: so many requests, whatever becomes of them.
CALLS = f"""
for i in 1 2 3 4 5; do curl -sS -o /dev/null http://{WEB}/; done
for i in 1 2 3; do curl -gsS -o /dev/null 'http://[SIX]:8000/'; done
for i in 1 2; do curl -sS -o /dev/null http://{NOBODY}/; done
for i in 1 2 3 4; do dig +short +tries=1 @{DNS} web.shop.svc.cluster.local; done
python3 -c 'import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(5); s.connect(("{UDP}", 7)); s.send(b"x"); s.recv(9)'
true
"""  # noqa: E501


@pytest.fixture(scope="module")
def sockets() -> Iterator[Lab]:
    """A cluster whose Services are served by maps."""
    with Lab(("--proxy", "ebpf", "--ip-family", "dual", "-f", str(MANIFEST))) as running:
        yield running


def told(lab: Lab, target: str, *arguments: str) -> Any:
    """The JSON that a command of k8snet-trace prints on a node or in a pod."""
    return json.loads(lab.exec(target, *TRACE_THERE, *arguments, "-o", "json").stdout)


def netns_path(lab: Lab, target: str) -> str:
    """A path to the network namespace of a node or pod, as the machine has it."""
    link = lab.exec(target, "readlink", "/proc/self/ns/net").stdout.strip()
    path = netns.find(int(link.removeprefix("net:[").removesuffix("]")))
    assert path is not None
    return path


def address(lab: Lab, namespace: str, prefix: str) -> str:
    """The first pod's IPv4 address."""
    return str(lab.pods(namespace, prefix)[0]["addresses"][0])


def in_short(services: list[dict[str, Any]], lab: Lab) -> dict[str, Any]:
    """IPv4 Services with the pods' names, without their random endings, for their addresses."""
    pods = {
        pod["addresses"][0]: f"{pod['name'].partition('-')[0]} on {pod['node']}"
        for pod in lab.status()["pods"]
        if pod["addresses"] and pod["addresses"][0].startswith("10.244.")  # others are on the node's own network
    }
    found = {}
    for one in services:
        if one["family"] == 4:
            choices = {
                which: Counter(
                    f"{pods.get(end['ip'], end['ip'])}:{end['port']} {end['probability']:.6f}" for end in one[which]
                )
                for which in ("endpoints", "local_endpoints")
            }
            rest = {key: one[key] for key in ("protocol", "session_affinity_seconds", "source_ranges", "no_endpoints")}
            addresses = sorted(
                (each["kind"], each["ip"] or "", each["port"], each["refused"]) for each in one["addresses"]
            )
            key = f"{one['namespace']}/{one['name']}:{one['port_name']}"
            found[key] = {**choices, **rest, "addresses": addresses}
    return found


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_the_same_services_as_with_rules(sockets: Lab, cluster: Lab, node: str) -> None:
    by_maps, by_rules = (in_short(told(lab, node, "services"), lab) for lab in (sockets, cluster))
    assert len(by_maps) >= 12
    assert by_maps == by_rules


def test_from_the_machine_and_without_names(sockets: Lab) -> None:
    path = netns_path(sockets, "node1")
    named = json.loads(run("services", "-o", "json", "--netns", path, "--kubeconfig", sockets.kubeconfig()).stdout)
    assert named == told(sockets, "node1", "services")
    done = run("services", "--netns", path, "--kubeconfig", os.devnull)
    assert "no Kubernetes API" in done.stderr and "addresses stand for them" in done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith(f"{WEB}:80 "))
    assert "1/3" in line and "shop" not in done.stdout


def test_a_pod_meets_its_nodes_maps(sockets: Lab) -> None:
    found = json.loads(
        run(
            "services",
            "-o",
            "json",
            "--netns",
            netns_path(sockets, "shop/client"),
            "--kubeconfig",
            sockets.kubeconfig(),
        ).stdout
    )
    assert found == told(sockets, "node2", "services")


@pytest.mark.parametrize("where", ["the node", "the machine"])
def test_explain_begins_at_the_socket_of_a_pod(sockets: Lab, where: str) -> None:
    client = address(sockets, "default", "client")
    asked = ("explain", "shop/web:80", "--source", client)
    if where == "the node":
        found = told(sockets, "node1", *asked)
    else:
        options = ("--netns", netns_path(sockets, "node1"), "--kubeconfig", sockets.kubeconfig())
        found = json.loads(run(*asked, *options, "-o", "json").stdout)
    assert (found["verdict"], found["service"]["name"], found["masquerade"]) == ("dnat", "web", False)
    assert [each["probability"] for each in found["backends"]] == [pytest.approx(1 / 3)] * 3
    assert {each["ip"] for each in found["backends"]} == {pod["addresses"][0] for pod in sockets.pods("shop", "web")}
    first = [step["text"] for step in found["steps"] if step["family"] == "socket"]
    assert [text.partition(": ")[0] for text in first] == [f"[socket] {WEB}:80 -> slot {n} of 3" for n in (1, 2, 3)]
    assert found["steps"][len(first)]["chain"] == "POSTROUTING"  # kindnet's
    assert found["passed"]["lookups"] == 2


def test_explain_of_what_is_refused_and_of_what_sticks(sockets: Lab) -> None:
    found = told(sockets, "node2", "explain", f"{NOBODY}:80")
    assert (found["verdict"], [step["text"] for step in found["steps"]]) == (
        "reject",
        [f"[socket] {NOBODY}:80 has no endpoints"],
    )
    found = told(sockets, "node2", "explain", f"{STICKY}:80")
    assert (found["affinity_seconds"], found["passed"]["lookups"]) == (10800, 3)


def test_crafted_packets_of_a_pod_are_translated_at_its_device(sockets: Lab) -> None:
    options = ("--from", netns_path(sockets, "default/client"), "--kubeconfig", sockets.kubeconfig(), "-o", "json")
    found = json.loads(run("probe", "shop/web:80", "--count", "60", *options).stdout)
    assert found["service"] == {"namespace": "shop", "name": "web", "port_name": "http"}
    observed = {each["ip"]: each["observed"] for each in found["reached"]}
    assert sum(observed.values()) == 60
    assert set(observed) == {pod["addresses"][0] for pod in sockets.pods("shop", "web")}
    assert [each["expected"] for each in found["reached"]] == [pytest.approx(20)] * 3


def test_the_live_trace_tells_what_was_asked_for(sockets: Lab, tmp_path: Path) -> None:
    """TCP and UDP, IPv4 and IPv6, by programs that know nothing of it."""
    services = told(sockets, "node1", "services")
    six = next(one for one in services if one["name"] == "lets-ship-it" and one["family"] == 6)["addresses"][0]["ip"]
    inode = int(Path(netns_path(sockets, "default/client")).stat().st_ino)
    ready = tmp_path / "ready"
    options = ("-o", "json", "--kubeconfig", sockets.kubeconfig(), "--ready-file", str(ready))
    with start(*options, "--pod", "default/client") as process:
        wait_for(ready)
        time.sleep(1.0)  # for names, and the maps of both nodes
        sockets.exec("default/client", "sh", "-c", CALLS.replace("SIX", six))
        time.sleep(1.0)
        process.terminate()
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    records = [record for record in map(json.loads, out.splitlines()) if record["process"]["netns"] == inode]
    assert Counter(in_words(record) for record in records) == {
        "TCP shop/web:http by socket 1/3 to shop/web established": 5,
        "TCP fastapi/lets-ship-it:http by socket 1/3 to fastapi/lets established": 3,
        "TCP shop/nobody:http by None no-endpoints": 2,
        "UDP kube-system/kube-dns:dns by socket 1/2 to kube-system/coredns answered": 4,
        "UDP shop/udp:echo by socket 1/1 to shop/udp answered": 1,
    }
    assert {record["destination"]["kind"] for record in records} == {"ClusterIP"}
    assert {record["destination"]["ip"] for record in records} == {WEB, six, NOBODY, DNS, UDP}
    assert {(record["source"]["pod"], record["node"]) for record in records} == {("client", "node1")}
    assert all(record["translation"]["via"] == [] for record in records)
    assert {record["errno"] for record in records if record["backend"] is None} == {111}


def in_words(record: dict[str, Any]) -> str:
    """What a record is about, in one line."""
    asked, translation, backend = record["destination"], record["translation"], record["backend"]
    words = f"{record['protocol']} {asked['namespace']}/{asked['service']}:{asked['port_name']} by {translation['by']}"
    if backend is not None:
        words += (
            f" 1/{round(1 / translation['probability'])} to {backend['namespace']}/{backend['pod'].partition('-')[0]}"
        )
    return f"{words} {record['outcome']}"


def test_a_watch_tells_of_a_change_in_the_maps(sockets: Lab, tmp_path: Path) -> None:
    path, ready = netns_path(sockets, "node1"), tmp_path / "ready"
    options = ("--netns", path, "--kubeconfig", sockets.kubeconfig(), "--ready-file", str(ready), "--count", "2")
    with start("services", "--watch", *options) as process:
        wait_for(ready)
        kubectl = ["kubectl", "--kubeconfig", sockets.kubeconfig(), "-n", "shop"]
        label = ("label", "pod", "tcp", "--overwrite")
        subprocess.run([*kubectl, *label, "app=nobody"], check=True, capture_output=True)
        out, errors = process.communicate(timeout=30)
        subprocess.run([*kubectl, *label, "app=tcp"], check=True, capture_output=True)
    assert process.returncode == 0, errors
    ip = address(sockets, "shop", "tcp")
    assert sorted(line.split(" ", 1)[1] for line in out.splitlines()) == [
        f"shop/nobody gained {ip}:80; the only endpoint now",
        f"shop/tcp lost {ip}:7; has no endpoints now",
    ]

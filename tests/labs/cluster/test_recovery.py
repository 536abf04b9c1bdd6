"""A part of a running cluster dies, and comes back with the right state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from labs.cluster import control
from tests.labs.lab import REPOSITORY, Lab, lab

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def victim() -> Any:
    """A cluster that things may be killed in."""
    with Lab() as cluster:
        yield cluster


def wait_until_ready(cluster: Lab, patience: float) -> None:
    deadline = time.monotonic() + 10 * patience
    while (unready := cluster.status_or_reasons()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert unready == []


def all_answer(cluster: Lab) -> None:
    names = {pod["name"] for pod in cluster.pods("fastapi")}
    for target in ("default/client", "node1", "node2"):
        assert cluster.get(target, "http://10.96.100.50:8000/")["pod"] in names
    assert cluster.get("default/client", "http://lets-ship-it.fastapi:8000/")["pod"] in names


@pytest.mark.parametrize("prefix", ["kube-proxy", "kindnet", "coredns"])
def test_a_component_that_is_killed_comes_back(victim: Lab, prefix: str, patience: float) -> None:
    pod = victim.pods("kube-system", prefix)[0]
    os.kill(pod["pid"], signal.SIGKILL)
    wait_until_ready(victim, patience)
    again = next(other for other in victim.pods("kube-system", prefix) if other["name"] == pod["name"])
    assert again["pid"] not in (None, pod["pid"])
    assert again["restarts"] == pod["restarts"] + 1
    assert again["addresses"] == pod["addresses"]
    all_answer(victim)


def test_a_server_that_is_killed_leaves_the_service_and_comes_back(victim: Lab, patience: float) -> None:
    pod = victim.pods("fastapi")[0]
    os.kill(pod["pid"], signal.SIGSTOP)  # it would be back too soon to be missed
    os.kill(pod["pid"], signal.SIGKILL)
    wait_until_ready(victim, patience)
    service = next(entry for entry in victim.status()["services"] if entry["name"] == "lets-ship-it")
    assert sorted(endpoint["pod"] for endpoint in service["endpoints"]) == sorted(
        p["name"] for p in victim.pods("fastapi")
    )
    all_answer(victim)


@pytest.mark.parametrize("node", ["node2", "node1"])
def test_a_node_that_dies_is_booted_again(victim: Lab, node: str, patience: float) -> None:
    before = victim.status()
    pid = next(entry["pid"] for entry in before["nodes"] if entry["name"] == node)
    pods = {(pod["namespace"], pod["name"]) for pod in before["pods"] if pod["node"] == node}
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    wait_until_ready(victim, patience)
    after = victim.status()
    assert next(entry["pid"] for entry in after["nodes"] if entry["name"] == node) != pid
    assert {(pod["namespace"], pod["name"]) for pod in after["pods"] if pod["node"] == node} == pods
    own = [pod for pod in after["pods"] if not pod["host_network"]]
    cables = victim.exec(node, "ip", "-br", "link", "show", "type", "veth").stdout.splitlines()
    assert len(cables) == 1 + sum(pod["node"] == node for pod in own), "eth0, and one for each pod"
    all_answer(victim)


def test_a_node_whose_cable_is_pulled(victim: Lab, patience: float) -> None:
    """Its pods still reach each other, those of other nodes are gone; all is well when it is plugged in again."""
    remote = next(pod for pod in victim.pods("fastapi") if pod["node"] == "node2")
    url = f"http://{remote['addresses'][0]}:8000/"
    victim.exec("node2", "ip", "link", "set", "eth0", "down")
    cut = victim.exec("default/client", "curl", "-sS", "--max-time", "1", url, check=False)
    assert cut.returncode != 0
    assert victim.get("node2", url)["pod"] == remote["name"]
    victim.exec("node2", "ip", "link", "set", "eth0", "up")
    # The kernel took the routes with the link; kindnet puts those to other nodes back at its next round, every 10 s.
    deadline = time.monotonic() + 20 * patience
    while "10.244.0.0/24" not in victim.exec("node2", "ip", "route").stdout and time.monotonic() < deadline:
        time.sleep(0.1)
    assert victim.get("default/client", url)["pod"] == remote["name"]


def test_without_cgroup_v2_it_works_and_says_so() -> None:
    """In a mount namespace in which no cgroup file system is left."""
    cluster = Lab()
    command = f"umount -R /sys/fs/cgroup && exec {sys.executable} -m labs.cli up --name {cluster.name}"
    try:
        up = subprocess.run(
            ["unshare", "-m", "sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert up.returncode == 0, up.stderr
        assert "note: no cgroups" in up.stderr
        document = cluster.status()
        assert document["cgroup"] is None
        assert {pod["cgroup"] for pod in document["pods"]} == {None}
        assert cluster.get("default/client", "http://10.96.100.50:8000/")["namespace"] == "fastapi"
    finally:
        cluster.__exit__()


def test_more_clusters_do_not_find_each_others_leftovers(victim: Lab) -> None:
    lab("down", "--name", Lab().name)
    assert victim.status()["ready"]


def test_its_state_can_be_asked_at_every_moment_while_pods_end(victim: Lab) -> None:
    """Each answer comes from the supervisor's own view, in which pods are on their way out."""
    deployment = ("-n", "fastapi", "deployment/lets-ship-it")
    victim.exec("node1", "kubectl", "scale", *deployment, "--replicas=23")
    victim.exec("node1", "kubectl", "rollout", "status", *deployment, "--timeout=30s")
    assert len(victim.pods("fastapi")) == 23
    victim.exec("node1", "kubectl", "scale", *deployment, "--replicas=3")
    counts = [23]
    deadline = time.monotonic() + 30
    while counts[-1] != 3 and time.monotonic() < deadline:
        pods = control.ask(victim.name, {"ask": "status"})["pods"]
        counts.append(sum(pod["namespace"] == "fastapi" for pod in pods))
    assert counts[-1] == 3
    assert len(counts) > 20


def test_the_control_plane_shows_as_pods_that_come_back(victim: Lab, patience: float) -> None:
    kubectl = ("kubectl", "-n", "kube-system")

    def uids() -> dict[str, str]:
        template = "jsonpath={range .items[*]}{.metadata.labels.component}={.metadata.uid}{'\\n'}{end}"
        command = (*kubectl, "get", "pods", "-l", "tier=control-plane", "-o", template)
        return dict(line.split("=") for line in victim.exec("node1", *command).stdout.split())

    before = uids()
    assert sorted(before) == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
    victim.exec("node1", *kubectl, "delete", "pod", "etcd-node1")
    victim.exec("node1", *kubectl, "wait", "pod/etcd-node1", "--for=condition=Ready", "--timeout=10s")
    after = uids()
    assert after.keys() == before.keys()
    assert [component for component in before if after[component] != before[component]] == ["etcd"]
    wait_until_ready(victim, patience)


def test_pods_that_go_while_they_start_leave_no_process(victim: Lab, patience: float) -> None:
    deployment = ("-n", "fastapi", "deployment/lets-ship-it")
    cgroup = victim.ledger()["cgroup"]
    for _ in range(4):
        victim.exec("node1", "kubectl", "scale", *deployment, "--replicas=30")
        victim.exec("node1", "kubectl", "scale", *deployment, "--replicas=0")
    deadline = time.monotonic() + 20 * patience
    while (left := pod_cgroups(cgroup) - uids(victim)) or victim_pods(victim):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    victim.exec("node1", "kubectl", "scale", *deployment, "--replicas=3")
    wait_until_ready(victim, patience)


def pod_cgroups(root: str) -> set[str]:
    """The uids of pods that have a cgroup."""
    names = {Path(directory).name for directory, _, _ in os.walk(root)}  # which minds none that goes meanwhile
    return {name.removeprefix("pod") for name in names if name.startswith("pod")}


def uids(cluster: Lab) -> set[str]:
    """The uids of the pods that the kubelets know."""
    return {pod["uid"] for pod in control.ask(cluster.name, {"ask": "status"})["pods"]}


def victim_pods(cluster: Lab) -> list[str]:
    """The pods of fastapi that are left."""
    pods = control.ask(cluster.name, {"ask": "status"})["pods"]
    return [pod["name"] for pod in pods if pod["namespace"] == "fastapi"]

"""A part of a running cluster dies, and comes back with the right state."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labs.cluster import control
from tests.labs.lab import REPOSITORY, Lab, Trace, descendants, lab, start_time

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
def test_a_component_that_is_killed_on_all_nodes_comes_back(victim: Lab, prefix: str, patience: float) -> None:
    pods = victim.pods("kube-system", prefix)
    assert len(pods) == 2
    for pod in pods:
        os.kill(pod["pid"], signal.SIGKILL)
    wait_until_ready(victim, patience)
    for pod in pods:
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


def test_the_machine_that_dies_is_started_again_with_its_nodes(victim: Lab, patience: float) -> None:
    """The runtime that all nodes run in: what a power cut of kind's host is, but for the control plane."""
    before = victim.status()
    os.kill(machine_of(victim), signal.SIGKILL)
    time.sleep(0.1)
    wait_until_ready(victim, patience)
    after = victim.status()
    assert {node["name"]: node["addresses"] for node in after["nodes"]} == {
        node["name"]: node["addresses"] for node in before["nodes"]
    }
    assert not {node["pid"] for node in after["nodes"]} & {None, *(node["pid"] for node in before["nodes"])}
    assert names_of(after) == names_of(before)
    assert [pod["name"] for pod in before["pods"] if start_time(pod["pid"])] == [], "the old ones are gone"
    all_answer(victim)
    deadline = time.monotonic() + 5 * patience
    while victim.exec("client-host", "hostname", check=False).returncode and time.monotonic() < deadline:
        time.sleep(0.05)
    assert victim.exec("client-host", "hostname").stdout == "client-host\n"


def names_of(status: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Which pods there are, and where."""
    return {(pod["node"], pod["namespace"], pod["name"]) for pod in status["pods"]}


def machine_of(cluster: Lab) -> int:
    """The process id of the runtime of a cluster's nodes."""
    (pid,) = [pid for pid in Trace.of(cluster).processes if name_of(pid) == "k8snet-machine"]
    return pid


def name_of(pid: int) -> str:
    """A process's name, as `ps` shows it; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_the_host_outside_that_is_killed_comes_back(victim: Lab, patience: float) -> None:
    (host,) = victim.status()["hosts"]
    os.kill(host["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 5 * patience
    while victim.status()["hosts"][0]["pid"] in (None, host["pid"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert victim.status()["hosts"][0]["addresses"] == host["addresses"]
    route = victim.exec("client-host", "ip", "route", "get", victim.status()["nodes"][0]["addresses"][0]).stdout
    assert "via" in route


def test_a_command_on_a_node_that_dies_ends_with_it(victim: Lab, patience: float) -> None:
    with victim.spawn("node2", "sh", "-c", "echo begun; sleep 60", stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "begun\n"
        os.kill(next(node["pid"] for node in victim.status()["nodes"] if node["name"] == "node2"), signal.SIGKILL)
        assert command.wait(timeout=10 * patience) != 0
    wait_until_ready(victim, patience)


def test_programs_of_kube_proxy_that_are_killed_are_run_again(victim: Lab, patience: float) -> None:
    """iptables-restore, half-way through: whatever it had done, the rules are right in the end."""
    proxies = {pod["node"]: pod["pid"] for pod in victim.pods("kube-system", "kube-proxy")}
    deployment = ("-n", "fastapi", "deployment/lets-ship-it")
    killed, stop = 0, threading.Event()

    def kill() -> None:
        nonlocal killed
        while not stop.is_set():
            for child in (pid for proxy in proxies.values() for pid in list(descendants(proxy))[1:]):
                if name_of(child).startswith(("iptables", "xtables")):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                        killed += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        victim.exec("node1", "kubectl", "scale", *deployment, "--replicas=7")
        time.sleep(2)
        victim.exec("node1", "kubectl", "scale", *deployment, "--replicas=5")
        time.sleep(1)
    finally:
        stop.set()
        killer.join()
    assert killed > len(proxies), "each of them had another try"
    victim.exec("node1", "kubectl", "rollout", "status", *deployment, "--timeout=30s")
    wait_until_ready(victim, patience)
    mended = {node: rules(victim, node) for node in proxies}
    assert {
        node: sum("--to-destination" in line and "lets-ship-it" in line for line in mended[node]) for node in proxies
    } == dict.fromkeys(proxies, 5)
    kubectl = ("kubectl", "-n", "kube-system")
    victim.exec("node1", *kubectl, "delete", "pods", "-l", "k8s-app=kube-proxy")  # the next ones write everything anew
    victim.exec("node1", *kubectl, "rollout", "status", "daemonset/kube-proxy", "--timeout=30s")
    wait_until_ready(victim, patience)
    assert {node: rules(victim, node) for node in proxies} == mended
    victim.exec("node1", "kubectl", "scale", *deployment, "--replicas=3")
    victim.exec("node1", "kubectl", "rollout", "status", *deployment, "--timeout=30s")
    all_answer(victim)


def rules(cluster: Lab, node: str) -> list[str]:
    """A node's rules and chains of kube-proxy, in no order."""
    lines = cluster.exec(node, "sh", "-c", "iptables-save -t nat; iptables-save -t filter").stdout.splitlines()
    return sorted(line.partition(" [")[0] for line in lines if "KUBE-" in line)


def test_a_node_whose_link_goes_down_and_up(victim: Lab, patience: float) -> None:
    """Before, all reach all. Meanwhile the node reaches its own pods only, the others each other; then as before."""
    pods = {pod["node"]: pod for pod in victim.pods("fastapi")}
    urls = {node: f"http://{pod['addresses'][0]}:8000/" for node, pod in pods.items()}
    address = next(node["addresses"][0] for node in victim.status()["nodes"] if node["name"] == "node2")
    ways = [
        (source, node)
        for source in ("node1", "default/client", "node2", f"fastapi/{pods['node2']['name']}")
        for node in urls
    ]

    def reached() -> dict[tuple[str, str], bool]:
        found = {}
        for source, node in ways:
            done = victim.exec(source, "curl", "-sS", "--max-time", "1", urls[node], check=False)
            found[source, node] = done.returncode == 0 and json.loads(done.stdout)["pod"] == pods[node]["name"]
        return found

    def pings() -> bool:
        return victim.exec("client-host", "ping", "-c1", "-W1", address, check=False).returncode == 0

    def links() -> list[str]:
        commands = "ip -br address; ip route; ip -6 route; ip rule"
        return sorted(victim.exec("node2", "sh", "-c", commands).stdout.splitlines())

    before = links()
    assert (set(reached().values()), pings()) == ({True}, True)
    victim.exec("node2", "ip", "link", "set", "eth0", "down")
    cut = reached()
    assert cut == {
        (source, node): (node == "node2") == (source not in ("node1", "default/client")) for source, node in ways
    }
    assert not pings()
    victim.exec("node2", "ip", "link", "set", "eth0", "up")
    began = time.monotonic()
    while links() != before and time.monotonic() - began < 5 * patience:
        time.sleep(0.05)
    assert links() == before
    assert (set(reached().values()), pings()) == ({True}, True)
    wait_until_ready(victim, patience)
    all_answer(victim)


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


def test_pods_that_go_while_they_start_leave_no_process(
    victim: Lab, patience: float, record_testsuite_property: Callable[[str, object], None]
) -> None:
    deployment = ("-n", "fastapi", "deployment/lets-ship-it")
    cgroup = victim.ledger()["cgroup"]
    for _ in range(4):
        for replicas in (30, 0):
            failure = scale(victim, *deployment, f"--replicas={replicas}")
            if failure is not None:
                record_testsuite_property("request that failed", failure)  # to be found in the report
    deadline = time.monotonic() + 20 * patience
    while (left := pod_cgroups(cgroup) - uids(victim)) or victim_pods(victim):
        assert time.monotonic() < deadline, _busy(cgroup, left)
        time.sleep(0.5)  # to ask is work for the cluster, too
    victim.exec("node1", "kubectl", "scale", *deployment, "--replicas=3")
    wait_until_ready(victim, patience)


def scale(cluster: Lab, *arguments: str) -> str | None:
    """Scale, and once more where a request fails; what kubectl said of it then.

    That happened once, in CI, and not again in more than 1,200 tries: KNOWN_ISSUES.md has it. Without -v=6 kubectl says
    only "no objects passed to scale" (pkg/cmd/scale), and not how the request failed.
    """
    command = ("kubectl", "scale", *arguments, "-v=6")
    done = cluster.exec("node1", *command, check=False)
    if done.returncode == 0:
        return None
    cluster.exec("node1", *command)
    return f"{done.stdout}{done.stderr}"


def _busy(root: str, uids: set[str]) -> list[str]:
    """What is in the cgroups of these pods, to be told when they stay."""
    found = [directory for directory, _, _ in os.walk(root) if any(uid in directory for uid in uids)]
    return [f"{directory}: {Path(directory, 'cgroup.procs').read_text().split()}" for directory in found]


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

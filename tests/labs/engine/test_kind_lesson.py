"""A lesson on a kind cluster, which a miniature one plays: start, exec, check, what does not fit, reset, stop.

kubectl is a real one, and so are its words; docker is played (`tests.labs.engine.kindlike`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from labs.engine import faults, recorder, undo
from labs.engine.course import Course
from labs.engine.kind import names, outside, prepare
from labs.engine.kind.world import KindCluster
from labs.engine.outcome import Result
from labs.engine.session import Walk
from labs.engine.undo import Undo
from labs.engine.world import Blocked, Ran
from tests.labs.engine.kindlike import KindLike, walking
from tests.labs.lab import Lab, lab
from tracer.errors import MissingError, UsageError

pytestmark = [pytest.mark.root, pytest.mark.bpf, pytest.mark.slow]
LESSON = "first-sight"
CALL = ["curl", "-sS", "http://lets-ship-it.fastapi:8000/hello?x=1"]


@pytest.fixture(scope="module")
def like(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KindLike]:
    with Lab(["--iptables", "nft"]) as cluster:
        yield KindLike(cluster, tmp_path_factory.mktemp("kind"))


@pytest.fixture(scope="module")
def walk(like: KindLike, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """A walk with the lesson open on that cluster."""
    with walking(like, tmp_path_factory.mktemp("learner")) as made:
        made.start(made.course.find(LESSON), on="kind")
        yield made


def pods(like: KindLike) -> dict[str, Any]:
    """Those of the Service, by name."""
    items = json.loads(like.kubectl("get", "pods", "-n", "fastapi", "-o", "json"))["items"]
    return {one["metadata"]["name"]: one for one in items}


def recorders(walk: Walk) -> list[int]:
    """Those of this learner that live."""
    pattern = f"^[^ ]+ -m labs.engine.recorder {walk.home.records}"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_a_lesson_passes(walk: Walk, like: KindLike) -> None:
    assert walk.on == "kind"
    assert walk.check().result is Result.FAIL  # nobody has called
    said = json.loads(lab("exec", "--name", like.name, "default/client", "--", *CALL).stdout)
    assert list(said) == ["pod", "namespace", "node", "client", "path"]
    assert (said["namespace"], said["path"]) == ("fastapi", "/hello?x=1")
    answered = pods(like)[said["pod"]]["spec"]
    assert answered["nodeName"] == said["node"]
    assert answered["containers"][0]["command"][:2] == ["python3", "-c"], "the script for kind has answered"
    report = walk.check()
    assert report.result is Result.PASS, report.walked


def test_commands_reach_its_nodes(walk: Walk, like: KindLike) -> None:
    names = lab("exec", "--name", like.name, "node1", "--", "kubectl", "get", "nodes", "-o", "name").stdout
    assert names.split() == ["node/node1", "node/node2"]
    code = lab("exec", "--name", like.name, f"{like.name}-worker", "--", "sh", "-c", "exit 7", check=False).returncode
    assert code == 7
    fed = lab("exec", "--name", like.name, "default/client", "--", "cat", feed="hello\n").stdout
    assert fed == "hello\n"
    path = lab("kubeconfig", "--name", like.name).stdout.strip()
    assert path == str(walk.home.directory / f"kind-{like.name}.kubeconfig")
    explained = walk.world.trace("node2", "explain", "10.96.100.50:8000", "-o", "json").json()
    assert len(explained["backends"]) == 3


def test_reset_makes_anew_what_the_learner_changed(walk: Walk, like: KindLike) -> None:
    before = pods(like)
    like.kubectl("-n", "fastapi", "scale", "deployment/lets-ship-it", "--replicas=1")
    like.kubectl("-n", "fastapi", "patch", "service", "lets-ship-it", "-p", '{"spec":{"type":"NodePort"}}')
    walk.reset()
    assert walk.on == "kind"
    service = json.loads(like.kubectl("-n", "fastapi", "get", "service", "lets-ship-it", "-o", "json"))
    assert (service["spec"]["type"], service["spec"]["clusterIP"]) == ("ClusterIP", "10.96.100.50")
    deployment = json.loads(like.kubectl("-n", "fastapi", "get", "deployment", "lets-ship-it", "-o", "json"))
    assert deployment["status"]["readyReplicas"] == 3
    assert not before.keys() & pods(like).keys()
    assert len(recorders(walk)) == 1


def test_stop_leaves_the_cluster_and_no_recorder(walk: Walk, like: KindLike, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that hangs."""
    (pid,) = recorders(walk)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(recorder, "STOP_SECONDS", 0.2)
    assert walk.stop()
    assert recorders(walk) == []
    assert not recorder.stop(walk.home)
    assert len(pods(like)) == 3
    assert walk.opened is None


def test_a_cluster_that_does_not_fit(walk: Walk, like: KindLike, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = walk.course.find(LESSON)
    delete = f"kind delete cluster --name {like.name} && k8snet-lab kind create {LESSON} --name {like.name}"
    for key, value, words in (
        ("nodes", 3, "needs 3 nodes"),
        ("proxy", "nftables", "needs kube-proxy's mode nftables; here it is iptables"),
        ("proxy", "ebpf", "needs kube-proxy's mode none; here it is iptables"),
        ("ip_family", "dual", "needs IPv4 and IPv6"),
    ):
        wants = replace(lesson, requires=replace(lesson.requires, **{key: value}))
        with pytest.raises(UsageError, match=words) as found:
            walk.start(wants, on="kind")
        assert found.value.hint == delete
    for requires, words in (
        (replace(lesson.requires, on=("miniature",)), "can't run on kind, only on miniature"),
        (replace(lesson.requires, cni="vxlan"), "it needs --cni vxlan of the cluster in miniature"),
    ):
        with pytest.raises(UsageError, match=words) as found:
            walk.start(replace(lesson, requires=requires), on="kind")
        assert found.value.hint == f"sudo k8snet-lab start {LESSON}"
    like.installed.unlink()
    with pytest.raises(Blocked, match=f"{like.name}-control-plane has no k8snet-trace") as missing:
        walk.start(lesson, on="kind")
    assert missing.value.hint == f"sudo k8snet-lab kind install --name {like.name}"
    like.installed.touch()
    monkeypatch.setattr("labs.engine.kind.world.KindCluster.shares_our_kernel", False)
    with pytest.raises(MissingError, match="not this machine's"):
        walk.start(lesson, on="kind")
    assert walk.opened is None


def test_a_host_outside(walk: Walk, like: KindLike, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = walk.course.find(LESSON)
    wants = replace(lesson, requires=replace(lesson.requires, outside=True))
    walk.start(wants, on="kind")
    assert like.outside.exists()
    assert walk.world.run("client-host", "hostname").out == "client-host\n"
    said = lab("exec", "--name", like.name, "client-host", "--", "hostname")
    assert said.stdout == "client-host\n"
    assert walk.stop()
    assert not like.outside.exists()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        outside.stop(KindCluster(like.name, walk.home))  # a lesson can be closed when Docker is gone


def test_names_and_addresses(walk: Walk, like: KindLike, monkeypatch: pytest.MonkeyPatch) -> None:
    """This cluster's are those that lessons are written for; a real one has others."""
    cluster = KindCluster(like.name, walk.home)
    assert names.words(cluster) == {}
    nodes = json.loads(like.kubectl("get", "nodes", "-o", "json"))["items"]
    assert [node["spec"]["podCIDR"] for node in nodes] == ["10.244.0.0/24", "10.244.1.0/24"]
    nodes[1]["spec"]["podCIDR"] = "10.244.2.0/24"  # another worker was quicker
    for node, name, address in zip(
        nodes, ("k8snet-control-plane", "k8snet-worker"), ("1.2.3.4", "5.6.7.9"), strict=True
    ):
        node["metadata"]["name"] = name
        node["status"]["addresses"] = [
            {"type": "Hostname", "address": name},
            {"type": "InternalIP", "address": address},
        ]
    monkeypatch.setattr(KindCluster, "get", lambda *_: nodes[::-1])
    monkeypatch.setattr(names, "docker", lambda *_: Ran(0, "5.6.7.1 5.6.7.8/24 \n", ""))
    monkeypatch.setattr(names.outside, "address", lambda _: "9.9.9.9")
    assert names.words(cluster) == {
        "node1": "k8snet-control-plane",
        "172.18.0.2": "1.2.3.4",
        "node2": "k8snet-worker",
        "172.18.0.3": "5.6.7.9",
        "10.244.1": "10.244.2",
        "172.18.0.1": "5.6.7.1",
        "172.18.0.0/16": "5.6.7.0/24",
        "198.51.100.2": "9.9.9.9",
    }
    assert names.node(cluster, 2) == "k8snet-worker"


def test_pods_may_be_on_the_control_plane(walk: Walk, like: KindLike) -> None:
    """As in miniature: kind itself has it so only where that is the only node."""
    key = "node-role.kubernetes.io/control-plane"
    like.kubectl("taint", "nodes", "node1", f"{key}:NoSchedule", "example.com/other=1:PreferNoSchedule")
    walk.start(walk.course.find(LESSON), on="kind")
    spec = json.loads(like.kubectl("get", "node", "node1", "-o", "json"))["spec"]
    assert [taint["key"] for taint in spec["taints"]] == ["example.com/other"]
    like.kubectl("taint", "nodes", "node1", "example.com/other-")
    on = [pod["spec"]["nodeName"] for pod in pods(like).values()]
    assert sorted(map(on.count, ("node1", "node2"))) == [1, 2]
    client = json.loads(like.kubectl("get", "pod", "client", "-o", "json"))
    assert client["spec"]["nodeName"] == "node1"


# that of a cluster without kube-proxy: tests/labs/engine/test_kind_ebpf.py
KIND_LESSONS = [one.id for one in Course.read().lessons if "kind" in one.worlds and one.requires.proxy != "ebpf"]


def test_every_lesson_is_for_kind_too() -> None:
    lessons = Course.read().lessons
    assert [lesson.id for lesson in lessons if "kind" not in lesson.worlds] == []
    assert len(KIND_LESSONS) == len(lessons) - 1


FAULTY = [lesson for lesson in KIND_LESSONS if any(step.faults for step in Course.read().find(lesson).steps)]

FLOWS = ("dst=10.96.0.10 .* src=10.244.1.250 ", "dport=5060 ")  # of a node's connection tracking, as faults put them in


def state(like: KindLike, walk: Walk) -> dict[str, Any]:
    """What stays on a cluster of kind when a lesson ends, as far as faults can break it."""
    world = KindCluster(like.name, walk.home)
    found: dict[str, Any] = {
        f"{kind} {one['metadata']['name']}": one["spec"]
        for kind in ("services", "daemonsets", "deployments")
        for one in world.get(kind, namespace="kube-system")
    }
    for node in world.nodes():
        for table in ("filter", "nat", "mangle", "raw"):
            rules = world.run(node, "iptables", "-w", "-t", table, "-S").out.splitlines()
            found[f"{table} of {node}"] = [one for one in rules if not one.startswith(("-A KUBE-", "-N KUBE-"))]
        routes = world.run(node, "ip", "route").out.splitlines()
        found[f"routes of {node}"] = [one for one in routes if "/" in one or one.startswith("default")]
        links = [one for one in world.run(node, "ip", "-j", "link").json() if one]
        found[f"links of {node} that are down"] = sum("UP" not in one["flags"] for one in links)
        flows = world.run(node, "conntrack", "-L", "-p", "udp").out
        found[f"flows of {node}"] = [one for one in FLOWS if re.search(one, flows)]
    return found


def becomes(like: KindLike, walk: Walk, wanted: dict[str, Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while (now := state(like, walk)) != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    assert now == wanted


@pytest.mark.parametrize("lesson", KIND_LESSONS)
def test_solutions_pass(walk: Walk, like: KindLike, lesson: str) -> None:
    """As far as this cluster is like one of kind: what differs is its nodes' names, its CNI plugin, its images."""
    walk.stop()
    before = state(like, walk)
    walk.start(walk.course.find(lesson), on="kind")
    like.route_as_kind()
    assert "scope host" in lab("exec", "--name", like.name, "node1", "--", "ip", "route").stdout
    report = walk.solve(one=False)
    assert report.now is None, report.walked[-1]
    walk.stop()
    if lesson in FAULTY:
        becomes(like, walk, before)


@pytest.mark.parametrize("lesson", FAULTY)
def test_faults_are_taken_back(walk: Walk, like: KindLike, lesson: str) -> None:
    """Whoever gives up finds the cluster as it was; here every step is entered, and nothing is mended."""
    walk.stop()
    before = state(like, walk)
    walk.start(walk.course.find(lesson), on="kind")
    for step in walk.lesson.steps:
        walk.advance(step)
    assert state(like, walk) != before
    assert Walk(walk.course, walk.home, like.name).stop(), "another command closes it"
    walk.reload()
    becomes(like, walk, before)


@pytest.mark.parametrize(
    ("fault", "parameters", "look"),
    [
        ("cable", {"pod": "default/client"}, "ip -br link; ip route"),
        ("link", {"target": "node1", "link": "dev eth0 down"}, "ip -br link; ip route"),
        ("route", {"node": "node1", "route": "replace blackhole 10.244.1.0/24"}, "ip route"),
        ("route", {"node": "node1", "route": "replace unreachable 192.0.2.0/24"}, "ip route"),
        ("route", {"node": "node1", "route": "replace blackhole default"}, "ip route"),
        ("rule", {"node": "default/client", "table": "nat", "rule": "POSTROUTING -j ACCEPT"}, "iptables -t nat -S"),
    ],
)
def test_a_node_is_as_it_was(walk: Walk, like: KindLike, fault: str, parameters: dict[str, Any], look: str) -> None:
    """Also when a fault is injected twice, and taken back twice."""
    world = KindCluster(like.name, walk.home)

    def seen() -> list[str]:
        return sorted(world.run("node1", "sh", "-c", look).out.splitlines())

    before, undos = seen(), list[Undo]()
    for _ in range(2):
        faults.inject(world, fault, parameters, undos.append)
        assert seen() != before
    for _ in range(2):
        undo.run(world, undos)
        assert seen() == before


def test_what_learners_made_on_nodes_goes_with_the_lesson(walk: Walk, like: KindLike) -> None:
    lesson = walk.course.find("network-model")
    add = ["ip", "link", "add", "overlay0", "type", "vxlan", "id", "42", "dstport", "4789", "dev", "eth0"]
    for begin in (lambda: walk.start(lesson, on="kind"), walk.stop):
        for node in ("node1", "node2"):
            lab("exec", "--name", like.name, node, "--", *add)
        begin()
        for node in ("node1", "node2"):
            shown = lab("exec", "--name", like.name, node, "--", "ip", "link", "show", "overlay0", check=False)
            assert shown.returncode == 1, shown.stdout


def test_modes_of_kube_proxy(walk: Walk, like: KindLike) -> None:
    cluster = KindCluster(like.name, walk.home)
    like.proxy_mode("nftables")
    assert prepare.proxy_mode(cluster) == "nftables"
    like.proxy_mode('""')
    assert prepare.proxy_mode(cluster) == "iptables"
    like.kubectl("delete", "configmap", "kube-proxy", "-n", "kube-system")
    assert prepare.proxy_mode(cluster) == "none"
    like.proxy_mode("iptables")


def test_no_context_of_that_name(walk: Walk) -> None:
    cluster = KindCluster("moon", walk.home)
    with pytest.raises(Blocked, match="there is no context kind-moon in") as found:
        _ = cluster.kubeconfig
    assert found.value.hint == "k8snet-lab kind create --name moon"

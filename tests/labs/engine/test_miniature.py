"""The cluster in miniature as checks see it: what this process asks and runs is what the commands tell and do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from labs.cluster import enter
from labs.engine.miniature import Miniature
from labs.engine.world import Blocked, Ran
from tests.labs.lab import REPOSITORY, Lab
from tracer.errors import K8snetError

pytestmark = [pytest.mark.root, pytest.mark.slow]

POD = "default/client"
SERVICE = "fastapi/lets-ship-it:8000"
WIDGETS = Path(__file__).parents[1] / "widgets.yaml"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def world(lab: Lab) -> Miniature:
    return Miniature(lab.name)


def kubectl(world: Miniature, *arguments: str) -> Any:
    """What `kubectl get` prints."""
    return world.kubectl("get", *arguments, "-o", "json").json()


class TestObjects:
    def test_an_object_is_what_kubectl_gets(self, world: Miniature) -> None:
        for kind in ("service", "services", "svc", "Service"):
            wanted = kubectl(world, "service", "-n", "fastapi", "lets-ship-it")
            assert world.get(kind, "lets-ship-it", "fastapi") == wanted
        assert world.get("pod", "client") == kubectl(world, "pod", "client")
        assert world.get("deployment", "coredns", "kube-system")["kind"] == "Deployment"

    def test_a_list_is_what_kubectl_gets(self, world: Miniature) -> None:
        assert world.get("nodes") == kubectl(world, "nodes")["items"]
        assert world.get("services", namespace="*") == kubectl(world, "services", "--all-namespaces")["items"]
        assert world.get("services") == kubectl(world, "services")["items"]
        found = world.get("endpointslices", None, "fastapi", "kubernetes.io/service-name=lets-ship-it")
        assert found == kubectl(world, "endpointslices", "-n", "fastapi")["items"]
        assert world.get("pods", None, "fastapi", "app=nobody") == []

    def test_what_is_not_there(self, world: Miniature) -> None:
        assert world.get("service", "web") is None
        assert world.get("service", "web", "nowhere") is None
        assert world.get("pods", None, "nowhere") == []

    def test_a_kind_that_came_later(self, world: Miniature) -> None:
        assert world.apply(WIDGETS.read_text()).code == 0
        assert world.get("crd", "widgets.test.k8snet.example")["kind"] == "CustomResourceDefinition"
        assert world.kubectl("wait", "--for=condition=Established", "crd/widgets.test.k8snet.example").code == 0
        assert world.get("widgets", namespace="*") == kubectl(world, "widgets", "--all-namespaces")["items"]


class TestCommands:
    def test_streams_and_exit_status(self, world: Miniature) -> None:
        ran = world.run(POD, "sh", "-c", "cat; hostname; echo odd >&2; exit 7", feed="fed\n")
        assert ran == Ran(7, "fed\nclient\n", "odd\n")
        assert world.run("node2", "hostname").out == "node2\n"
        assert world.run("client-host", "hostname").out == "client-host\n"
        assert world.run(POD, "sh", "-c", "kill -TERM $$").code == 128 + 15

    def test_it_reads_nothing_of_ours(self, world: Miniature) -> None:
        assert world.run(POD, "cat") == Ran(0, "", "")

    def test_it_is_there_as_exec_is(self, lab: Lab, world: Miniature) -> None:
        script = "readlink /proc/self/ns/*; cat /proc/self/cgroup; env | sort; ls -l /proc/self/fd | wc -l; pwd"
        assert world.run(POD, "sh", "-c", script).out == lab.exec(POD, "sh", "-c", script).stdout

    def test_what_can_not_be_run(self, world: Miniature) -> None:
        assert world.run(POD, "no-such-command") == Ran(127, "", f"error: no-such-command: not found in {POD}\n")
        ran = world.run("default/nobody", "true")
        assert (ran.code, ran.err) == (2, "error: there is no pod default/nobody")
        with pytest.raises(Blocked, match="cluster test-none is not up"):
            Miniature("test-none").run(POD, "true")

    def test_one_that_takes_too_long(self, world: Miniature) -> None:
        started = time.monotonic()
        assert world.run(POD, "sh", "-c", "echo begun; exec sleep 60", seconds=0.3) == Ran(124, "begun\n", "")
        assert time.monotonic() - started < 5

    def test_several_at_once(self, world: Miniature) -> None:
        targets = [("node1", "node2", POD)[number % 3] for number in range(24)]
        with ThreadPoolExecutor(8) as at_once:
            names = [ran.out.strip() for ran in at_once.map(lambda target: world.run(target, "hostname"), targets)]
        assert names == [target.rpartition("/")[2] for target in targets]

    def test_our_own_children_stay_here(self, world: Miniature) -> None:
        """Those of the same thread, afterwards, also when the command was not found."""
        before = sorted(Path("/proc/self/fd").iterdir())
        for command in ("true", "no-such-command"):
            world.run(POD, command)
            own = subprocess.run(["readlink", "/proc/self/ns/pid"], capture_output=True, text=True, check=True)
            assert own.stdout.strip() == str(Path("/proc/self/ns/pid").readlink())
        assert sorted(Path("/proc/self/fd").iterdir()) == before

    def test_it_ends_with_who_waits_for_it(self, lab: Lab, patience: float) -> None:
        program = (
            f"from labs.engine.miniature import Miniature; Miniature({lab.name!r}).run({POD!r}, 'sleep', '54.321')"
        )
        with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY) as process:
            until(lambda: bool(sleepers()), patience)
            process.kill()
        until(lambda: not sleepers(), patience)


def sleepers() -> list[str]:
    """Processes that the test has sleep."""
    return subprocess.run(["pgrep", "-fx", "sleep 54.321"], capture_output=True, text=True, check=False).stdout.split()


def until(condition: Callable[[], bool], patience: float) -> None:
    """Wait for it."""
    deadline = time.monotonic() + 10 * patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def traced(lab: Lab, node: str, *arguments: str) -> Any:
    """What k8snet-trace prints about a node."""
    (pid,) = (str(one["pid"]) for one in lab.status()["nodes"] if one["name"] == node)
    command = [sys.executable, "-m", "tracer", *arguments, "-o", "json", "--netns", pid]
    return json.loads(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)


class TestRules:
    def test_services_are_what_the_command_prints(self, lab: Lab, world: Miniature) -> None:
        for node in world.nodes():
            found = world.services(node)
            assert len(found) > 3
            assert found == traced(lab, node, "services")

    def test_explained_as_the_command_does(self, lab: Lab, world: Miniature) -> None:
        ip = world.get("pod", "client")["status"]["podIP"]
        assert len(world.explain("node1", SERVICE)["backends"]) == 3
        assert world.explain("node1", SERVICE) == traced(lab, "node1", "explain", SERVICE)
        printed = traced(lab, "node2", "explain", SERVICE, "--source", ip)
        assert world.explain("node2", SERVICE, ip) == printed

    def test_both_nodes_at_once(self, world: Miniature) -> None:
        wanted = {node: world.services(node) for node in world.nodes()}
        with ThreadPoolExecutor(8) as at_once:
            found = list(at_once.map(lambda node: (node, world.services(node)), [*wanted] * 8))
        assert all(services == wanted[node] for node, services in found)

    def test_crafted_packets_reach_what_the_rules_promise(self, world: Miniature) -> None:
        ready = {
            endpoint["ip"]
            for one in world.services("node1")
            if one["name"] == "lets-ship-it"
            for endpoint in one["endpoints"]
        }
        for source in (POD, "node2"):
            found = world.probe(source, SERVICE, 40)
            reached = {one["ip"]: one["observed"] for one in found["reached"]}
            assert (set(reached), sum(reached.values())) == (ready, 40)

    def test_no_cluster(self) -> None:
        with pytest.raises(Blocked, match="cluster test-none is not up"):
            Miniature("test-none").services("node1")


def test_capture_of_a_place_that_has_gone(lab: Lab) -> None:
    place = enter.find(lab.name, POD)
    with subprocess.Popen(["true"]) as gone:
        pass
    with pytest.raises(K8snetError, match="has just gone"):
        enter.capture(enter.Place(place.cluster, place.name, gone.pid, place.cgroup, place.env), ["true"], seconds=5)


def test_objects_are_read_without_kubectl(world: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert world.get("service", "lets-ship-it", "fastapi")["spec"]["clusterIP"] == "10.96.100.50"
    with pytest.raises(Blocked, match="kubectl is not installed"):
        world.get("gadgets")

"""The adapter for kind, against recorded words of kubectl and docker: what is run, and what is made of the answers.

Where the words are from: `docker ps`, its labels and formats are those that kind itself uses (v0.29.0,
pkg/cluster/internal/providers/docker/provider.go and constants.go); errors of `docker exec` are those of the Docker
client and of runc, as Docker 18.09 (on standard output, docker/cli#2025) and 28.2 (on standard error) show them; those
of kubectl come from a real one (tests/labs/engine/test_kind_lesson.py).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from labs.engine.course import Course
from labs.engine.kind import create, install, prepare
from labs.engine.kind.world import KindCluster
from labs.engine.progress import Home
from labs.engine.spec import Requires
from labs.engine.world import Blocked
from tests.labs.engine.programs import Answer, Programs
from tests.labs.lab import lab
from tracer.errors import K8snetError, MissingError, UsageError

NODES = "shop-worker10\tworker\nshop-worker\tworker\nshop-worker2\tworker\nshop-control-plane\tcontrol-plane\n"
BALANCED = NODES + "shop-external-load-balancer\texternal-load-balancer\n"
PS = Answer("docker ps", BALANCED)
CONFIG = "apiVersion: v1\nkind: Config\ncurrent-context: kind-shop\n"
VIEW = Answer("kubectl config view", CONFIG)
NO_DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?\n"
NO_PROGRAM = (
    "OCI runtime exec failed: exec failed: unable to start container process: "
    'exec: "k8snet-trace": executable file not found in $PATH: unknown\n'
)
NO_PROGRAM_ONCE = (
    "OCI runtime exec failed: exec failed: container_linux.go:344: starting container process caused "
    '"exec: \\"k8snet-trace\\": executable file not found in $PATH": unknown\r\n'
)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(tmp_path / "bin", "docker", "kubectl")
    monkeypatch.setenv("PATH", made.path)
    monkeypatch.setenv("HOME", str(tmp_path / "own"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)
    return made


@pytest.fixture
def where(tmp_path: Path) -> Home:
    return Home(tmp_path / "state" / "k8snet", tmp_path / "files", (os.geteuid(), os.getegid()))


@pytest.fixture
def cluster(programs: Programs, where: Home) -> KindCluster:
    programs.answer(PS, VIEW)
    return KindCluster("shop", where)


class TestNodes:
    def test_they_have_the_names_of_lessons_in_the_order_of_kind(self, cluster: KindCluster) -> None:
        assert cluster.nodes() == ["node1", "node2", "node3", "node4"]
        names = ["shop-control-plane", "shop-worker", "shop-worker2", "shop-worker10"]
        assert [cluster.container(name) for name in cluster.nodes()] == names
        assert [cluster.container(name) for name in names] == names

    def test_they_are_asked_for_once(self, cluster: KindCluster, programs: Programs) -> None:
        cluster.nodes(), cluster.nodes()
        label = "io.x-k8s.kind.role"
        asked = f'docker ps --filter label=io.x-k8s.kind.cluster=shop --format {{{{.Names}}}}\t{{{{.Label "{label}"}}}}'
        assert programs.lines == [asked]

    def test_one_that_is_not_there(self, cluster: KindCluster) -> None:
        with pytest.raises(UsageError) as found:
            cluster.run("node9", "true")
        assert "node9" in found.value.message
        assert "node4 (shop-worker10)" in str(found.value.hint)

    def test_no_cluster(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(Answer("docker ps"))
        with pytest.raises(Blocked) as found:
            cluster.nodes()
        assert (found.value.exit_code, found.value.hint) == (3, "k8snet-lab kind create --name shop")

    def test_no_daemon(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(Answer("docker ps", err=NO_DAEMON, code=1))
        with pytest.raises(Blocked, match="Is the docker daemon running"):
            cluster.nodes()

    def test_no_docker(self, cluster: KindCluster, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(Blocked, match="docker is not installed") as found:
            cluster.nodes()
        assert "docker" in str(found.value.hint)


class TestRunning:
    def test_on_a_node(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("docker exec", "default via 172.18.0.1 dev eth0\n", "a word\n", 3))
        done = cluster.run("node2", "ip", "route")
        assert (done.code, done.out, done.err) == (3, "default via 172.18.0.1 dev eth0\n", "a word\n")
        assert programs.lines[-1] == "docker exec -e KUBECONFIG=/etc/kubernetes/admin.conf shop-worker ip route"

    def test_on_a_node_with_input(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("docker exec"))
        cluster.run("node1", "sh", feed="echo hello")
        call = programs.calls[-1]
        assert call["words"][:3] == ["docker", "exec", "-i"]
        assert call["input"] == "echo hello"

    def test_in_a_pod(self, cluster: KindCluster, programs: Programs, where: Home) -> None:
        programs.answer(PS, VIEW, Answer("kubectl --context kind-shop exec", "10.96.0.10\n"))
        assert cluster.run("default/client", "dig", "+short", "x").out == "10.96.0.10\n"
        assert programs.lines[-1] == "kubectl --context kind-shop exec -n default client -- dig +short x"
        assert programs.calls[-1]["kubeconfig"] == str(where.directory / "kind-shop.kubeconfig")

    @pytest.mark.parametrize(
        "words",
        [
            NO_DAEMON,
            "Error response from daemon: No such container: shop-worker\n",
            "Error response from daemon: container 0b5b8a5be3a2 is not running\n",
            "Error: No such container: shop-worker\n",
        ],
    )
    def test_a_container_that_is_gone_is_no_mistake_of_the_learner(
        self, cluster: KindCluster, programs: Programs, words: str
    ) -> None:
        programs.answer(PS, Answer("docker exec", err=words, code=1))
        with pytest.raises(Blocked) as found:
            cluster.run("node2", "ip", "route")
        assert found.value.message == f"node2 (shop-worker): {words.strip()}"

    def test_the_learners_command(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, VIEW, Answer("docker exec", code=7), Answer("kubectl --context kind-shop exec", code=28))
        assert cluster.execute("node1", ["kubectl", "get", "nodes"]) == 7
        assert cluster.execute("default/client", ["curl", "-s", "x"]) == 28
        assert [line.split(" -e ")[0].split(" -n ")[0] for line in programs.lines if " exec" in line] == [
            "docker exec -i",
            "kubectl --context kind-shop exec -i",
        ]

    @pytest.mark.parametrize(("behind", "options", "given"), [(False, "exec -i -t -n", None), (True, "exec -n", "")])
    def test_at_a_terminal_and_in_its_background(
        self,
        cluster: KindCluster,
        programs: Programs,
        monkeypatch: pytest.MonkeyPatch,
        behind: bool,
        options: str,
        given: str | None,
    ) -> None:
        """`k8snet-lab exec … &`: who reads the terminal there, or changes its mode, is stopped by the kernel."""
        programs.answer(PS, VIEW, Answer("kubectl --context kind-shop exec"))
        ours, theirs = os.openpty()
        with os.fdopen(ours), os.fdopen(theirs, "r", closefd=False) as stdin, os.fdopen(theirs, "w") as stdout:
            monkeypatch.setattr("sys.stdin", stdin)
            monkeypatch.setattr("sys.stdout", stdout)
            monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + behind)
            kept = os.dup(0)  # a program inherits the descriptor, and not sys.stdin
            os.dup2(theirs, 0)
            try:
                assert cluster.execute("default/client", ["curl"]) == 0
            finally:
                os.dup2(kept, 0)
                os.close(kept)
        assert options in programs.lines[-1]
        assert programs.calls[-1]["input"] == given


class TestPython:
    """Files of this machine, with the libraries that are there: those of k8snet on a node, the image's own in a pod."""

    def test_on_a_node(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("docker exec"))
        cluster.run("node1", sys.executable, "-", "a", feed="import iptc")
        assert programs.lines[-1].endswith("shop-control-plane /opt/k8snet/venv/bin/python - a")
        assert programs.calls[-1]["input"] == "import iptc"

    def test_in_a_pod(self, cluster: KindCluster, programs: Programs, tmp_path: Path) -> None:
        programs.answer(PS, VIEW, Answer("kubectl", code=4))
        (tmp_path / "syn.py").write_text("import scapy")
        with (tmp_path / "syn.py").open("rb") as source:
            assert cluster.execute("default/client", [sys.executable, "-", "a"], source) == 4
        assert programs.lines[-1] == "kubectl --context kind-shop exec -i -n default client -- python3 - a"
        assert programs.calls[-1]["input"] == "import scapy"


class TestTrace:
    def test_it_runs_inside_the_container(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("docker exec", "[]"))
        assert cluster.trace("node1", "services", "-o", "json").json() == []
        assert programs.lines[-1].endswith("shop-control-plane k8snet-trace services -o json")

    @pytest.mark.parametrize(
        "answer",
        [
            Answer("docker exec", err=NO_PROGRAM, code=127),
            Answer("docker exec", out=NO_PROGRAM_ONCE, code=126),
        ],
    )
    def test_where_it_is_not_installed(self, cluster: KindCluster, programs: Programs, answer: Answer) -> None:
        programs.answer(PS, answer)
        with pytest.raises(Blocked) as found:
            cluster.trace("node1", "services")
        assert found.value.message == "shop-control-plane has no k8snet-trace"
        assert found.value.hint == "sudo k8snet-lab kind install --name shop"

    def test_of_a_pod(self, cluster: KindCluster, programs: Programs) -> None:
        """containerd knows its process; crictl's words are those of cri-tools' docs/crictl.md."""
        pod = {"spec": {"nodeName": "shop-worker2"}}
        exec_ = "docker exec -e KUBECONFIG=/etc/kubernetes/admin.conf shop-worker2"
        programs.answer(
            PS,
            VIEW,
            Answer("kubectl --context kind-shop get pod client", json.dumps(pod)),
            Answer(f"{exec_} crictl pods", "b8aa2c4e9a2bff0c7a5d4f1e\n"),
            Answer(f"{exec_} crictl inspectp", json.dumps({"status": {}, "info": {"pid": 1917}})),
            Answer(f"{exec_} k8snet-trace", "{}"),
        )
        cluster.trace("default/client", "explain", "10.96.0.10:53/udp")
        cluster.trace("default/client", "probe", "10.96.0.10:53/udp")
        asked = [line.removeprefix(exec_).strip() for line in programs.lines if line.startswith(exec_)]
        assert asked[:3] == [
            "crictl pods --namespace default --name ^client$ --state ready -q",
            "crictl inspectp -o json b8aa2c4e9a2bff0c7a5d4f1e",
            "k8snet-trace explain 10.96.0.10:53/udp --netns 1917",
        ]
        assert asked[-1] == "k8snet-trace probe 10.96.0.10:53/udp --from 1917"

    def test_of_no_pod(self, cluster: KindCluster, programs: Programs) -> None:
        gone = Answer("kubectl", err='Error from server (NotFound): pods "client" not found\n', code=1)
        programs.answer(PS, VIEW, gone)
        with pytest.raises(UsageError, match="no pod default/client"):
            cluster.trace("default/client", "services")

    def test_what_it_misses_itself_is_its_own_failure(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("docker exec", err='error: exec: "nft": executable file not found in $PATH', code=3))
        assert cluster.trace("node1", "services").code == 3


class TestKubeconfig:
    def test_it_holds_this_context_only(self, cluster: KindCluster, programs: Programs, where: Home) -> None:
        assert cluster.kubeconfig.read_text() == CONFIG
        assert cluster.kubeconfig.parent == where.directory
        assert cluster.kubeconfig.stat().st_mode & 0o777 == 0o600
        assert programs.lines == ["kubectl config view --raw --minify --flatten --context kind-shop"]

    def test_where_kind_may_have_written_it(
        self, cluster: KindCluster, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KUBECONFIG", "/one:/two")
        monkeypatch.setenv("SUDO_UID", "0")
        _ = cluster.kubeconfig
        places = f"/one:/two:{tmp_path}/own/.kube/config:/root/.kube/config"
        assert programs.calls[0]["kubeconfig"] == places

    def test_no_context(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("kubectl config", err='error: cannot locate context "kind-shop"\n', code=1))
        with pytest.raises(Blocked, match="no context kind-shop") as found:
            cluster.kubectl("get", "nodes")
        assert found.value.hint == "k8snet-lab kind create --name shop"


class TestKernel:
    def test_the_same(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("docker exec", Path("/proc/sys/kernel/random/boot_id").read_text()))
        assert cluster.shares_our_kernel
        assert programs.lines[-1].endswith("shop-control-plane cat /proc/sys/kernel/random/boot_id")

    def test_another(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("docker exec", "3b0cfaf5-6bb1-4d5c-9d1b-1b8e5b2f3c11\n"))
        assert not cluster.shares_our_kernel

    def test_who_owns_the_recorder(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("docker inspect", "48213\n"))
        assert cluster.owner() == 48213
        assert programs.lines[-1] == "docker inspect --format {{.State.Pid}} shop-control-plane"

    def test_nobody_does(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(PS, Answer("docker inspect", "0\n"))  # of a container that was stopped
        with pytest.raises(K8snetError, match="does not run"):
            cluster.owner()


class TestCreate:
    def test_what_kind_is_told(self) -> None:
        assert yaml.safe_load(create.configuration(3, "nftables", "dual")) == {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "networking": {
                "ipFamily": "dual",
                "kubeProxyMode": "nftables",
                "disableDefaultCNI": False,
                "podSubnet": "10.244.0.0/16,fd00:10:244::/56",
                "serviceSubnet": "10.96.0.0/16,fd00:10:96::/112",
            },
            "nodes": [{"role": "control-plane"}, {"role": "worker"}, {"role": "worker"}],
        }

    def test_a_lesson_without_kube_proxy(self) -> None:
        done = lab("kind", "create", "ebpf", "--print")
        assert yaml.safe_load(done.stdout)["networking"]["kubeProxyMode"] == "none"

    def test_too_many_nodes(self) -> None:
        with pytest.raises(UsageError, match="1 to 16 nodes"):
            create.configuration(17)

    @pytest.mark.parametrize("installed", [True, False])
    def test_the_command(self, programs: Programs, installed: bool, tmp_path: Path) -> None:
        """With kind it is run; without, its input is printed, and the one command to run."""
        if installed:
            Programs(tmp_path / "with", "kind").answer(Answer("kind create cluster"))
        path = f"{tmp_path}/with:{os.environ['PATH']}" if installed else os.environ["PATH"]
        assert installed or shutil.which("kind") is None
        done = lab("kind", "create", "first-sight", "--name", "shop", env={**os.environ, "PATH": path})
        wanted = create.configuration(2, "iptables", "ipv4")
        if installed:
            (call,) = Programs.calls.fget(_at(tmp_path / "with"))  # type: ignore[attr-defined]
            assert call["words"] == ["kind", "create", "cluster", "--name", "shop", "--config", "-"]
            assert (call["input"], done.stdout) == (wanted, "")
            assert "sudo k8snet-lab kind install --name shop" in done.stderr
            assert "sudo k8snet-lab start first-sight --on kind --name shop" in done.stderr
        else:
            assert done.stdout == wanted
            options = "--nodes 2 --proxy iptables --ip-family ipv4 --print"
            to_run = f"k8snet-lab kind create {options} | kind create cluster --name shop --config -"
            assert to_run in done.stderr

    def test_kind_fails(self, programs: Programs, where: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        there = Programs(tmp_path / "with", "kind")
        # pkg/cluster/internal/create/create.go of kind v0.29.0
        words = 'ERROR: failed to create cluster: node(s) already exist for a cluster with the name "shop"\n'
        there.answer(Answer("kind create cluster", err=words, code=1))
        monkeypatch.setenv("PATH", there.path)
        with pytest.raises(K8snetError) as found:
            create.run(KindCluster("shop", where), create.configuration())
        assert found.value.hint == "kind delete cluster --name shop, and try again"


def _at(directory: Path) -> Any:
    """The programs of a directory that are there already."""
    found = object.__new__(Programs)
    found.directory = directory
    return found


class TestInstall:
    def test_the_source_goes_in_and_is_installed_on_each_node(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(Answer("docker ps", NODES), Answer("docker exec", "k8snet-trace, version 0.1.0\n"))
        said: list[str] = []
        install.install(cluster, said.append)
        lines = [line for line in programs.lines if " exec " in line]
        containers = ["shop-control-plane", "shop-worker", "shop-worker2", "shop-worker10"]
        assert [line.split("shop-")[1].split()[0] for line in lines] == [
            container.removeprefix("shop-") for container in containers for _ in range(4)
        ]
        assert [line.split(containers[0] + " ")[1] for line in lines[:4]] == [
            "sh -c rm -rf /opt/k8snet/source; mkdir -p /opt/k8snet/source; tar -x -C /opt/k8snet/source",
            "sh -c cat >/opt/k8snet/install.sh",
            "sh /opt/k8snet/install.sh",
            "k8snet-trace --version",
        ]
        assert said[:2] == ["shop-control-plane: installing", "shop-control-plane: k8snet-trace, version 0.1.0"]
        script = Path(install.__file__).with_name("install.sh").read_text()
        assert [call["input"] for call in programs.calls if "cat >" in str(call["words"])] == [script] * 4

    def test_the_source_is_what_pip_needs(self, tmp_path: Path) -> None:
        with tarfile.open(fileobj=io.BytesIO(install.source())) as archive:
            names = archive.getnames()
        assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
        assert {"pyproject.toml", "bpf/connections.c", "tracer/cli.py", "labs/engine/kind/install.sh"} <= set(names)
        subprocess.run(["tar", "-x", "-C", tmp_path], input=install.source(), check=True)
        options = ["-q", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path / "out", tmp_path], check=True)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["k8snet-0.1.0-py3-none-any.whl"]

    def test_what_fails_is_told_with_its_words(self, cluster: KindCluster, programs: Programs) -> None:
        programs.answer(
            PS,
            Answer("docker exec -i"),
            Answer("docker exec shop-control-plane sh", err="a\nE: Unable to locate package python3-bpfcc\n", code=100),
        )
        with pytest.raises(K8snetError, match=r"exit code 100: a \| E: Unable to locate package python3-bpfcc"):
            install.install(cluster, lambda _: None)

    def test_without_a_checkout(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(install, "CHECKOUT", tmp_path)
        with pytest.raises(MissingError, match=r"no pyproject\.toml"):
            install.source()

    def test_by_hand(self, cluster: KindCluster) -> None:
        first, second, third = install.by_hand("shop-worker")
        assert first.startswith("tar -c -C /")
        assert "| docker exec -i shop-worker sh -c 'rm -rf /opt/k8snet/source;" in first
        assert second.endswith("| docker exec -i shop-worker sh -c 'cat >/opt/k8snet/install.sh'")
        assert third == "docker exec shop-worker sh /opt/k8snet/install.sh"


@pytest.mark.parametrize(
    ("requires", "what"),
    [
        (Requires(), None),
        (Requires(proxy="nftables", ip_family="dual", nodes=3), None),
        (Requires(proxy="ebpf"), None),
        (Requires(cni="vxlan"), "--cni vxlan"),
        (Requires(iptables="legacy"), None),
        (Requires(on=("miniature",)), "only the cluster in miniature"),
    ],
)
def test_what_kind_can_not_give(requires: Requires, what: str | None) -> None:
    lesson = replace(Course.read().find("first-sight"), requires=requires)
    problem = prepare.why_not(lesson)
    assert (problem is None) == (what is None) == ("kind" in lesson.worlds)
    assert what is None or what in str(problem)
    assert "miniature" in lesson.worlds

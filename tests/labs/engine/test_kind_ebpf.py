"""Our own datapath on a kind cluster without kube-proxy, which a miniature one plays: the DaemonSet, and its lesson.

What is tried here as it is on kind: the manifest, but for the image's name; kubectl; the way of the command from a pod
into the node's files, with its token; what it does there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from labs.cluster.ebpfnode import DIRECTORY
from labs.cluster.ebpfproxy import PINS
from labs.engine import socketmaps
from labs.engine.kind import images, servicelb
from labs.engine.kind.world import KindCluster
from labs.engine.progress import Home
from labs.engine.session import Walk
from tests.labs.engine.kindlike import LAB, REMOVE, KindLike, walking
from tests.labs.lab import Lab
from tracer.errors import UsageError

needs = [pytest.mark.root, pytest.mark.bpf, pytest.mark.slow]
LESSON = "ebpf"
CALL = ["curl", "-sS", "-m", "3", "http://lets-ship-it.fastapi:8000/"]


@pytest.fixture(scope="module")
def like(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KindLike]:
    with Lab(["--iptables", "nft", "--proxy", "ebpf"]) as cluster:
        yield KindLike(cluster, tmp_path_factory.mktemp("kind"))


@pytest.fixture(scope="module")
def walk(like: KindLike, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    with walking(like, tmp_path_factory.mktemp("learner")) as made:
        yield made


def documents() -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all(servicelb.MANIFEST.read_text())}


def until(condition: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + 30 * patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class TestManifest:
    def test_it_may_read_what_it_follows_and_no_more(self) -> None:
        role = documents()["ClusterRole"]
        allowed = {(group, one) for rule in role["rules"] for group in rule["apiGroups"] for one in rule["resources"]}
        assert allowed == {("", "services"), ("", "nodes"), ("discovery.k8s.io", "endpointslices")}
        assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
        binding, account = documents()["ClusterRoleBinding"], documents()["ServiceAccount"]["metadata"]
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", **account}]
        spec = documents()["DaemonSet"]["spec"]["template"]["spec"]
        assert spec["serviceAccountName"] == account["name"]

    def test_no_image_more_than_lessons_need(self) -> None:
        (container,) = documents()["DaemonSet"]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == images.table()["client"]["image"]
        assert LAB in container["command"][-1]

    def test_what_it_is_told_of_the_cluster(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        told = {"controlPlaneEndpoint": "shop-control-plane:6443", "networking": {"serviceSubnet": "10.96.0.0/16"}}
        monkeypatch.setattr(servicelb, "cluster_configuration", lambda _: told)
        cluster = KindCluster("shop", Home(tmp_path, tmp_path, (0, 0)))

        def env() -> dict[str, str]:
            *_, daemons = yaml.safe_load_all(servicelb.manifest(cluster))
            entries = daemons["spec"]["template"]["spec"]["containers"][0]["env"]
            return {one["name"]: one["value"] for one in entries if "value" in one}

        assert env() == {"API_SERVER": "https://shop-control-plane:6443", "IP_FAMILY": "ipv4"}
        told["networking"] = {"serviceSubnet": "10.96.0.0/16,fd00:10:96::/112"}
        assert env()["IP_FAMILY"] == "dual"


class TestOnCluster:
    pytestmark = needs

    def test_the_api_takes_the_manifest_as_it_is(self, like: KindLike) -> None:
        said = like.kubectl("apply", "--dry-run=server", "-f", str(servicelb.MANIFEST))
        assert said.count("created (server dry run)") == 4

    def test_the_lesson_passes(self, walk: Walk, like: KindLike) -> None:
        walk.start(walk.course.find(LESSON), on="kind")
        report = walk.solve(one=False)
        assert report.now is None, report.walked[-1]

    def test_it_is_in_the_nodes_own_kernel_and_files(self, walk: Walk, like: KindLike) -> None:
        for node in ("node1", "node2"):
            mounts = walk.world.run(node, "cat", "/proc/1/mountinfo").out
            assert [line for line in mounts.splitlines() if " /sys/fs/bpf " in line and "- bpf k8snet" in line]
            assert walk.world.run(node, "ls", str(PINS)).out.count("link_") >= 8
        entered = walk.world.run("node1", "sh", "-c", "ps -eo args | grep '[s]ervice-lb run'").out
        assert entered.count("--service-account /dev/fd/3") == 1

    def test_a_start_mends_what_somebody_did_to_the_maps(self, walk: Walk) -> None:
        cluster = walk.world
        number, _ = socketmaps.list_of(cluster, "node1", "lets-ship-it", "fastapi")
        socketmaps.set_slot(cluster, "node1", number, 0, "10.244.9.9", 8000)
        assert "10.244.9.9" in cluster.trace("node1", "services").out
        walk.start(walk.course.find(LESSON), on="kind")
        assert "10.244.9.9" not in cluster.trace("node1", "services").out
        assert walk.world.run("default/client", *CALL).code == 0

    def test_lessons_with_rules_do_not_start_here(self, walk: Walk) -> None:
        with pytest.raises(UsageError, match="needs kube-proxy's mode iptables; here it is none"):
            walk.start(walk.course.find("first-sight"), on="kind")

    def test_without_its_pods_services_go_on_until_it_is_removed(
        self, walk: Walk, like: KindLike, patience: float
    ) -> None:
        walk.start(walk.course.find(LESSON), on="kind")
        cluster = walk.world
        refused = cluster.run("node2", LAB, *REMOVE)
        assert (refused.code, "the proxy of this node is running" in refused.err) == (2, True)
        like.kubectl("delete", "-f", str(servicelb.MANIFEST))
        until(lambda: not cluster.run("node1", "pgrep", "-f", "service-lb run").out, patience)
        assert cluster.run("default/client", *CALL).code == 0
        for node in ("node1", "node2"):
            assert cluster.run(node, LAB, *REMOVE).err == "removed\n"
            assert cluster.run(node, "ls", str(PINS), str(DIRECTORY)).out == ""
            assert "bpf k8snet" not in cluster.run(node, "cat", "/proc/mounts").out
        assert cluster.run("default/client", *CALL).code != 0

"""Pods by what /proc says, with real containers."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.tracer.names.containers import UID, Container, container, our_pids
from tracer import netns, procfs
from tracer.names import local, processes
from tracer.names.changes import Changes
from tracer.names.local import Api, LocalPods
from tracer.names.model import PodName
from tracer.names.processes import Processes

WEB = PodName("fastapi", "web-5c9d-x7k2p")
NO_API = Api(lambda: False, lambda uid: False)


@pytest.fixture
def found() -> Iterator[Processes]:
    running = Processes(Changes(), is_node=lambda netns: False)
    running.start()
    yield running
    running.close()
    running.close()


def until(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def uid_of(names: Processes, one: Container) -> str | None:
    return names.pod_uid(one.netns, one.cgroup_id, one.pid)


def pod_of(names: Processes, one: Container) -> PodName | None:
    return names.pod(uid_of(names, one), one.netns, one.cgroup_id, one.pid)


@pytest.mark.root
def test_a_pod_by_its_hostname_and_service_account(found: Processes) -> None:
    with container() as one:
        assert uid_of(found, one) == UID
        assert until(lambda: pod_of(found, one) == WEB)
    assert found.pod(UID, one.netns, 0, one.pid) == WEB  # also when it is gone


@pytest.mark.root
def test_the_kubelets_logs_know_better_than_the_hostname(found: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "logged_pod", lambda uid: ("kube-system", "kube-proxy-x") if uid == UID else None)
    with container() as one:
        assert until(lambda: pod_of(found, one) == PodName("kube-system", "kube-proxy-x"))


@pytest.mark.root
def test_without_a_service_account_the_namespace_is_not_known(found: Processes) -> None:
    with container(namespace=None) as one:
        assert until(lambda: pod_of(found, one) == PodName(None, WEB.pod))


@pytest.mark.root
def test_a_pod_by_its_service_account_alone(found: Processes) -> None:
    """As with cgroup v1, where the v2 cgroup tells nothing."""
    with container(uid=None) as one:
        assert uid_of(found, one) is None
        assert until(lambda: pod_of(found, one) == WEB)


@pytest.mark.root
@pytest.mark.parametrize(
    "options",
    [{"uid": None, "namespace": None}, {"hostname": None}],
    ids=["no pod's container", "the host's UTS namespace"],
)
def test_what_is_no_pod_or_has_no_name_of_its_own(found: Processes, options: dict[str, None]) -> None:
    with container(**options) as one:
        assert pod_of(found, one) is None
        time.sleep(0.1)
        assert pod_of(found, one) is None


@pytest.mark.root
def test_the_hostname_in_a_nodes_namespace_is_no_pods() -> None:
    names = Processes(Changes(), is_node=lambda netns: True)
    names.start()
    try:
        with container() as one:
            pod_of(names, one)
            time.sleep(0.1)
            assert pod_of(names, one) is None
    finally:
        names.close()


@pytest.mark.root
def test_a_process_that_ended_is_named_by_another_of_its_container(found: Processes) -> None:
    with container() as one:
        ended = subprocess.Popen(["true"])
        ended.wait()
        assert found.pod(UID, one.netns, one.cgroup_id, ended.pid) is None
        assert until(lambda: found.pod(UID, one.netns, one.cgroup_id, ended.pid) == WEB)


@pytest.mark.root
def test_a_process_id_that_is_anothers_now_names_nobody(found: Processes) -> None:
    """The process ended, its cgroup as well, and its number was given to a process of a pod."""
    with container() as one:
        elsewhere, gone = one.netns + 1, 2**62
        assert found.pod_uid(elsewhere, gone, one.pid) is None
        found.pod(None, elsewhere, gone, one.pid)
        time.sleep(0.1)
        assert found.pod(None, elsewhere, gone, one.pid) is None


@pytest.mark.root
def test_an_answer_that_comes_later_makes_the_generation_grow() -> None:
    changes = Changes()
    names = Processes(changes, is_node=lambda netns: False)
    changes.start()
    names.start()
    try:
        with container() as one:
            assert pod_of(names, one) is None
            assert until(lambda: changes.generation == 1)
            assert pod_of(names, one) == WEB
    finally:
        names.close()
        changes.close()


@pytest.mark.root
def test_without_the_right_to_open_cgroups_by_id(found: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found._cgroups, "path", lambda cgroup_id: None)
    with container() as one:
        assert uid_of(found, one) == UID  # /proc/PID/cgroup has the path, and the path has that id
        other = 2**62
        assert found.pod_uid(one.netns, other, one.pid) is None  # the process is in another cgroup by now
        # the process has ended: a walk finds its cgroup, and with that its pod
        monkeypatch.setattr(procfs, "logged_pod", lambda uid: ("ns", "logged") if uid == UID else None)
        monkeypatch.setattr(procfs, "cgroup_paths", lambda pid: [])
        question = processes._Question("key", None, one.netns, one.cgroup_id, one.pid)
        assert found._read(question) == PodName("ns", "logged")


@pytest.mark.root
def test_cgroup_v1(found: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = procfs.cgroup2_mount()
    assert mount is not None
    root = os.stat(mount).st_ino  # noqa: PTH116
    with container(uid=None) as one:
        monkeypatch.setattr(
            procfs, "cgroup_paths", lambda pid: ["/", f"/kubepods/pod{UID}/x"] if pid == one.pid else []
        )
        assert found.pod_uid(one.netns, root, one.pid) == UID
        assert found.pod_uid(one.netns + 1, root, one.pid) is None  # the process id is another's now
        assert found.pod_uid(netns.own(), root, os.getpid()) is None


@pytest.mark.root
def test_a_uid_that_is_known_costs_next_to_nothing(found: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    with container() as one:
        cgroup_id = one.cgroup_id
        assert found.pod_uid(one.netns, cgroup_id, one.pid) == UID
        monkeypatch.setattr(found._cgroups, "path", lambda cgroup_id: pytest.fail("asked the kernel again"))
        assert found.pod_uid(one.netns, cgroup_id, one.pid + 1) == UID


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_CACHED", 10)
    names = Processes(Changes(), is_node=lambda netns: False)
    for pid in range(4_194_305, 4_194_405):  # beyond the largest process id
        assert names.pod_uid(1, 2**62 + pid, pid) is None
        assert names.pod(None, 1, 2**62 + pid, pid) is None
    assert max(len(cache) for cache in (names._uids, names._uids_by_process, names._names, names._tried)) <= 10
    assert len(names._waiting) <= processes.MAX_WAITING
    names.close()


# --- the scan ---


@pytest.fixture
def scanning(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalPods]]:
    monkeypatch.setattr(procfs, "pids", our_pids)
    monkeypatch.setattr(local, "SCAN_SECONDS", 0.04)
    monkeypatch.setattr(local, "SCAN_SECONDS_AFTER_MISS", 0.02)
    running: list[LocalPods] = []

    def start(is_node: Callable[[int], bool] = lambda netns: False, api: Api = NO_API) -> LocalPods:
        running.append(LocalPods(Changes(), is_node, api))
        running[-1].start()
        return running[-1]

    yield start
    for one in running:
        one.close()
        one.close()


@pytest.mark.root
def test_pods_of_this_machine_by_address(scanning: Callable[..., LocalPods]) -> None:
    pods = scanning()
    with container(address="10.255.7.1") as one, container(hostname="db-0", address="10.255.7.2", uid=None):
        assert until(lambda: pods.pod_by_address("10.255.7.1") == WEB)
        assert until(lambda: pods.pod_by_address("10.255.7.2") == PodName("fastapi", "db-0"))
        assert pods.pod_by_netns(one.netns) == WEB
        assert pods.pod_by_address("127.0.0.1") is None
    assert until(lambda: pods.pod_by_address("10.255.7.1") is None)


@pytest.mark.root
def test_two_clusters_with_one_address_name_nobody(scanning: Callable[..., LocalPods]) -> None:
    pods = scanning()
    with container(address="10.255.7.1"):
        assert until(lambda: pods.pod_by_address("10.255.7.1") == WEB)
        with container(hostname="other", address="10.255.7.1"):
            assert until(lambda: pods.pod_by_address("10.255.7.1") is None)
        assert until(lambda: pods.pod_by_address("10.255.7.1") == WEB)


@pytest.mark.root
def test_the_oldest_process_of_a_pod_has_no_service_account(scanning: Callable[..., LocalPods]) -> None:
    pods = scanning()
    with container(namespace=None, address="10.255.7.1") as pause:
        assert until(lambda: pods.pod_by_address("10.255.7.1") == PodName(None, WEB.pod))
        account = "/run/secrets/kubernetes.io/serviceaccount"
        script = f"mount -t tmpfs none /run; mkdir -p {account}; echo fastapi > {account}/namespace; exec sleep 60"
        enter = ["nsenter", f"--net=/proc/{pause.pid}/ns/net", f"--uts=/proc/{pause.pid}/ns/uts", "--"]
        with subprocess.Popen([*enter, "unshare", "--mount", "--", "sh", "-c", script]) as app:
            assert until(lambda: pods.pod_by_address("10.255.7.1") == WEB)
            app.kill()


@pytest.mark.root
def test_nodes_in_containers_are_no_pods(scanning: Callable[..., LocalPods]) -> None:
    with container(address="10.255.7.1") as node, container(hostname="db-0", address="10.255.7.2"):
        pods = scanning(is_node=lambda netns: netns == node.netns)
        assert until(lambda: pods.pod_by_address("10.255.7.2") is not None)
        assert pods.pod_by_address("10.255.7.1") is None


@pytest.mark.root
def test_no_names_are_looked_for_while_the_api_has_them(scanning: Callable[..., LocalPods]) -> None:
    loaded = [False]
    pods = scanning(api=Api(lambda: loaded[0], lambda uid: True))
    with container(address="10.255.7.1"):
        assert until(lambda: pods.pod_by_address("10.255.7.1") == WEB)
        loaded[0] = True
        assert until(lambda: pods.pod_by_address("10.255.7.1") is None)
        assert not pods.any_foreign()


@pytest.mark.root
def test_pods_that_the_api_does_not_know_are_of_another_cluster(
    scanning: Callable[..., LocalPods], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "NEWS_SECONDS", 0.3)
    with container(address="10.255.7.1") as one, container(uid="uid-of-theirs", address="10.255.7.2") as other:
        pods = scanning(api=Api(lambda: True, lambda uid: uid == UID))
        assert until(lambda: pods.is_foreign(other.netns))
        assert not pods.is_foreign(one.netns)
        assert not pods.is_foreign(netns.own())
        assert pods.any_foreign()
        assert until(lambda: pods.pod_by_address("10.255.7.2") == WEB)
    assert until(lambda: not pods.is_foreign(other.netns))


@pytest.mark.root
def test_a_pod_of_which_the_api_has_not_told_yet_is_not_foreign(scanning: Callable[..., LocalPods]) -> None:
    with container() as one:
        pods = scanning(api=Api(lambda: True, lambda uid: False))
        assert until(lambda: one.netns in pods._seen)
        time.sleep(0.1)
        assert not pods.is_foreign(one.netns)


@pytest.mark.root
def test_nothing_is_foreign_as_long_as_the_api_has_not_told_its_pods(
    scanning: Callable[..., LocalPods], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "NEWS_SECONDS", 0.0)
    with container() as one:
        pods = scanning()
        assert until(lambda: one.netns in pods._seen)
        assert not pods.is_foreign(one.netns)


@pytest.mark.root
def test_the_pods_of_this_machine_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods that share a node's network have that node's hostname: the kubelet's logs tell them apart."""
    monkeypatch.setattr(procfs, "pids", our_pids)
    uid = "aaaaaaaa-8b1c-4f3f-9a3d-3a1f6f6f5f10"
    logged = {uid: ("kube-system", "kube-proxy-x7k2p")}
    monkeypatch.setattr(procfs, "logged_pod", lambda asked, *_: logged.get(asked))
    with container() as one, container(hostname=None, uid=uid) as other, container(hostname="node1", uid=None):
        found = local.local_pods()
    assert found >= {(one.netns, WEB), (other.netns, PodName("kube-system", "kube-proxy-x7k2p"))}
    assert {netns for netns, _ in found} >= {one.netns, other.netns}

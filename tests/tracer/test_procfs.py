"""What /proc and the cgroup file system say about processes, real ones where root allows it."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer import netns, procfs

UID = "0b4c57b9-8b1c-4f3f-9a3d-3a1f6f6f5f10"
SLICE_UID = UID.replace("-", "_")
STATIC = "3c4e1d8d2b7f4c0f9f8f3a2b1c0d9e8f"
CONTAINER = "4f" * 32


@pytest.mark.parametrize(
    ("path", "uid"),
    [
        (f"/kubepods/pod{UID}/{CONTAINER}", UID),
        (f"/kubepods/burstable/pod{UID}/{CONTAINER}", UID),
        (f"/kubepods/besteffort/pod{UID}", UID),
        (f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/cri-containerd-{CONTAINER}.scope", UID),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE_UID}.slice/crio-{CONTAINER}.scope",
            UID,
        ),
        (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE_UID}.slice", UID),
        (f"/kubepods/burstable/pod{STATIC}/{CONTAINER}", STATIC),
        (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/x.scope", STATIC),
        # kind
        (
            f"/docker/{CONTAINER}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
            f"kubelet-kubepods-besteffort-pod{SLICE_UID}.slice/cri-containerd-{CONTAINER}.scope",
            UID,
        ),
        (f"/system.slice/docker-{CONTAINER}.scope/kubelet/kubepods/burstable/pod{UID}/{CONTAINER}", UID),
        # a cluster within a pod
        (f"/kubepods/podouter/{CONTAINER}/kubelet/kubepods/burstable/pod{UID}/{CONTAINER}", UID),
        (f"/kubepods/podouter/x/kubelet.slice/kubelet-kubepods-pod{SLICE_UID}.slice/y.scope", UID),
        # no pods
        ("/", None),
        ("/system.slice/kubelet.service", None),
        ("/kubepods.slice/kubepods-burstable.slice", None),
        ("/kubepods/burstable", None),
        (f"/docker/{CONTAINER}", None),
        ("/user.slice/podman/podcast", None),
        (f"/machine.slice/libpod-pod{UID}.slice", None),
    ],
)
def test_pod_uid(path: str, uid: str | None) -> None:
    assert procfs.pod_uid(path) == uid


def test_cgroup_v2_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "3:cpu,cpuacct:/a:b\n0::/unified\n1:name=systemd:/systemd\nrubbish\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert procfs.cgroup_paths(1) == ["/unified", "/a:b", "/systemd"]


def test_a_process_that_is_gone_has_nothing() -> None:
    gone = 4194305  # beyond the largest process id
    assert procfs.cgroup_paths(gone) == []
    assert procfs.netns_inode(gone) is None
    assert procfs.hostname(gone) is None
    assert procfs.service_account_namespace(gone) is None
    assert procfs.addresses(gone) == frozenset()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup as the kubelet names one, in the hierarchy of version 2."""
    mount = procfs.cgroup2_mount()
    assert mount is not None
    top = Path(mount, f"k8snet-test-{secrets.token_hex(4)}")
    path = top / f"kubepods/burstable/pod{UID}/{CONTAINER}"
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        while path != Path(mount):
            _remove(path)
            path = path.parent


def _remove(path: Path) -> None:
    """A cgroup stays busy for a moment after its last process."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.01)
    path.rmdir()


@pytest.mark.root
def test_a_cgroup_by_its_id(cgroup: Path) -> None:
    mount = procfs.cgroup2_mount()
    cgroups = procfs.Cgroups(mount)
    inode = cgroup.stat().st_ino
    expected = str(cgroup).removeprefix(str(mount))
    assert cgroups.path(inode) == cgroups.walk(inode) == expected
    assert procfs.pod_uid(expected) == UID
    assert cgroups.path(Path(str(mount)).stat().st_ino) == "/"
    cgroup.rmdir()
    assert cgroups.path(inode) is None
    assert cgroups.path(2**63) is None
    cgroup.mkdir()
    cgroups.close()
    cgroups.close()


@pytest.mark.root
def test_a_walk_happens_once_a_second(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups = procfs.Cgroups(procfs.cgroup2_mount())
    assert cgroups.walk(2**62) is None
    child = cgroup / "later"
    child.mkdir()
    try:
        assert cgroups.walk(child.stat().st_ino) is None
        monkeypatch.setattr(procfs, "WALK_SECONDS", 0.0)
        path = cgroups.walk(child.stat().st_ino)
        assert path is not None
        assert path.endswith("/later")
    finally:
        child.rmdir()
        cgroups.close()


def test_without_cgroup_v2() -> None:
    cgroups = procfs.Cgroups(None)
    assert (cgroups.path(1), cgroups.walk(1)) == (None, None)


def test_the_kubelets_log_directories(tmp_path: Path) -> None:
    for name in (
        f"kube-system_kube-proxy-x7k2p_{UID}",
        f"default_web_{STATIC}",
        "rubbish",
        f"a_b_c_{UID}",
        f"_x_{UID}",
    ):
        (tmp_path / name).mkdir()
    assert procfs.logged_pod(UID, str(tmp_path)) == ("kube-system", "kube-proxy-x7k2p")
    assert procfs.logged_pod(STATIC, str(tmp_path)) == ("default", "web")
    assert procfs.logged_pod("other", str(tmp_path)) is None
    assert procfs.logged_pod(UID, str(tmp_path / "none")) is None


@contextlib.contextmanager
def container(script: str, *namespaces: str) -> Iterator[int]:
    """A process in namespaces of its own, after `script` has prepared them."""
    command = f"set -e\n{textwrap.dedent(script)}\necho up\nexec sleep 60"
    with subprocess.Popen(["unshare", *namespaces, "--", "sh", "-c", command], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("web-5c9d-x7k2p", "web-5c9d-x7k2p"),
        ("a" * 62, "a" * 62),
        ("a" * 63, None),
        ("Not_A_Name", None),
        ("\x1b[31m", None),
    ],
)
def test_hostname_of_a_container(name: str, found: str | None) -> None:
    with container(f"hostname -- '{name}' 2>/dev/null || printf '{name}' > /proc/sys/kernel/hostname", "--uts") as pid:
        assert procfs.hostname(pid) == found


@pytest.mark.root
def test_our_own_hostname_is_no_pods() -> None:
    assert procfs.hostname(os.getpid()) is None
    for namespace in ("--net", "--uts"):  # --uts: before the runtime has set the hostname
        with container("true", namespace) as pid:
            assert procfs.hostname(pid) is None


@pytest.mark.root
def test_service_account_of_a_container_whose_var_run_is_an_absolute_link(tmp_path: Path) -> None:
    """As in most images; the link must lead to the container's /run and not to ours."""
    script = f"""
        mount -t tmpfs none '{tmp_path}'; cd '{tmp_path}'
        mkdir -p var run/secrets/kubernetes.io/serviceaccount/..data
        ln -s /run var/run
        echo fastapi > run/secrets/kubernetes.io/serviceaccount/..data/namespace
        ln -s ..data/namespace run/secrets/kubernetes.io/serviceaccount/namespace
        for dir in bin usr lib lib64; do mkdir -p $dir; mount --rbind /$dir $dir; done
        exec chroot . sh -c 'echo up; exec sleep 60'"""
    with container(script, "--mount") as pid:
        assert procfs.service_account_namespace(pid) == "fastapi"
    with container("true", "--mount") as pid:
        assert procfs.service_account_namespace(pid) is None


@pytest.mark.root
@pytest.mark.parametrize(
    "trap", ["mkfifo namespace", "ln -s /etc/hostname-of-the-host namespace", "echo 'A_b' > namespace"]
)
def test_a_container_can_not_trap_us(tmp_path: Path, trap: str) -> None:
    script = f"""
        mount -t tmpfs none /run; mkdir -p /run/secrets/kubernetes.io/serviceaccount
        cd /run/secrets/kubernetes.io/serviceaccount; {trap}"""
    with container(script, "--mount") as pid:
        assert procfs.service_account_namespace(pid) is None


@pytest.mark.root
def test_addresses_are_those_that_the_kernel_calls_local() -> None:
    script = """
        ip link set lo up; ip link add d0 type bridge; ip link set d0 up
        ip address add 10.9.8.7/24 dev d0; ip address add 10.96.0.10/32 dev d0
        ip -6 address add fd00:9::7/64 dev d0 nodad"""
    with container(script, "--net") as pid:
        found = procfs.addresses(pid)
        assert found == netns.run_in(f"/proc/{pid}/ns/net", procfs.addresses)
    link_local = {address for address in found if address.startswith("fe80:")}
    assert found - link_local == {"127.0.0.1", "::1", "10.9.8.7", "10.96.0.10", "fd00:9::7"}

"""Finding, naming and entering network namespaces, real ones."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer import netns
from tracer.errors import MissingError, NotRoot, UsageError


@pytest.fixture
def named() -> Iterator[str]:
    """A namespace as `ip netns add` makes it, with no process in it."""
    name = f"k8snet-test-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def process() -> Iterator[int]:
    """A process alone in its network namespace."""
    with subprocess.Popen(
        ["unshare", "--net", "--", "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE
    ) as one:
        assert one.stdout is not None
        one.stdout.readline()
        yield one.pid
        one.kill()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> netns._Index:
    """An index that has not looked yet."""
    fresh = netns._Index()
    monkeypatch.setattr(netns, "_index", fresh)
    return fresh


def test_own_is_that_of_the_calling_thread() -> None:
    assert netns.own() == Path("/proc/self/ns/net").stat().st_ino == netns.inode("/proc/self/ns/net")


@pytest.mark.root
def test_a_named_namespace(named: str, index: netns._Index) -> None:
    path = netns.resolve(named)
    assert path == f"/run/netns/{named}"
    assert netns.inode(path) != netns.own()
    assert netns.find(netns.inode(path)) == path
    assert netns.resolve(path) == path


@pytest.mark.root
def test_a_namespace_of_a_process(process: int, index: netns._Index) -> None:
    path = netns.resolve(str(process))
    assert path == f"/proc/{process}/ns/net"
    assert netns.find(netns.inode(path)) == path


@pytest.mark.root
def test_a_bind_mount_is_preferred_to_a_process_that_may_end(named: str, index: netns._Index) -> None:
    inside = subprocess.Popen(["ip", "netns", "exec", named, "sleep", "60"])
    try:
        assert netns.find(netns.inode(f"/run/netns/{named}")) == f"/run/netns/{named}"
    finally:
        inside.kill()
        inside.wait()


@pytest.mark.root
def test_a_namespace_mounted_only_in_another_mount_namespace(index: netns._Index, tmp_path: Path) -> None:
    """As a container runtime with a private /run/netns has it; no process is inside."""
    script = f"""
        mount --make-rprivate / && mount -t tmpfs none '{tmp_path}' && touch '{tmp_path}/a b'
        unshare --net='{tmp_path}/a b' true && stat -Lc %i '{tmp_path}/a b' && exec sleep 60"""
    with subprocess.Popen(["unshare", "--mount", "--", "sh", "-c", script], stdout=subprocess.PIPE) as runtime:
        try:
            assert runtime.stdout is not None
            inode = int(runtime.stdout.readline())
            path = netns.find(inode)
            assert path is not None
            assert path.startswith("/proc/")
            assert path.endswith(f"/root{tmp_path}/a b")
            assert netns.run_in(path, netns.own) == inode
        finally:
            runtime.kill()


@pytest.mark.root
def test_a_namespace_that_ended_is_not_found(process: int, index: netns._Index) -> None:
    inode = netns.inode(f"/proc/{process}/ns/net")
    assert netns.find(inode) is not None
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    index._scanned = float("-inf")
    assert netns.find(inode) is None
    with pytest.raises(MissingError):
        netns.inode("/proc/4194305/ns/net")  # beyond the largest process id


def test_unknown_inodes_cost_one_scan_a_second(index: netns._Index, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[float] = []

    def scan() -> dict[int, str]:
        scans.append(time.monotonic())
        return {}

    monkeypatch.setattr(netns, "_scan", scan)
    for _ in range(100):
        assert netns.find(1) is None
    assert len(scans) == 1
    index._scanned -= netns.RESCAN_SECONDS
    netns.find(1)
    assert len(scans) == 2


def test_a_known_inode_costs_no_scan(index: netns._Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "_scan", lambda: {netns.own(): "/proc/self/ns/net"})
    assert netns.find(netns.own()) == "/proc/self/ns/net"
    monkeypatch.setattr(netns, "_scan", lambda: pytest.fail("scanned"))
    assert netns.find(netns.own()) == "/proc/self/ns/net"


@pytest.mark.parametrize(
    "spec", ["no-such-name", "", "..", "99999999", "/etc/passwd", "/proc/self/ns/mnt", "/a/b", "a\0b"]
)
def test_what_is_no_network_namespace(spec: str) -> None:
    with pytest.raises(UsageError):
        netns.resolve(spec)


@pytest.mark.root
def test_a_fifo_is_no_namespace_and_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError):
        netns.resolve(str(tmp_path / "fifo"))


@pytest.mark.root
def test_run_in_lives_in_the_namespace_and_leaves_ours_alone(named: str) -> None:
    before = netns.own()
    path = netns.resolve(named)
    interfaces = netns.run_in(path, lambda: [name for _, name in socket.if_nameindex()])
    assert interfaces == ["lo"]
    child = netns.run_in(
        path, lambda: subprocess.run(["stat", "-Lc%i", "/proc/self/ns/net"], capture_output=True).stdout
    )
    assert int(child) == netns.run_in(path, netns.own) == netns.inode(path) != before
    assert netns.own() == before
    assert not [thread for thread in threading.enumerate() if thread.name == "netns"]


def test_run_in_none_is_here() -> None:
    assert netns.run_in(None, netns.own) == netns.own()


@pytest.mark.root
def test_what_the_function_raises_is_raised(named: str) -> None:
    with pytest.raises(ZeroDivisionError):
        netns.run_in(netns.resolve(named), lambda: 1 // 0)


@pytest.mark.root
def test_run_in_what_can_not_be_entered(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="gone"):
        netns.run_in(str(tmp_path / "none"), netns.own)
    (tmp_path / "file").touch()
    for path in (str(tmp_path / "file"), "/proc/self/ns/mnt"):
        with pytest.raises(UsageError, match="not a network namespace"):
            netns.run_in(path, netns.own)


@pytest.mark.root
def test_run_in_without_the_capability(named: str) -> None:
    code = f"""
from tracer import errors, netns
try:
    netns.run_in("/run/netns/{named}", netns.own)
except errors.NotRoot as error:
    print("refused", error.exit_code)
"""
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]
    done = subprocess.run([*drop, "/usr/bin/python3", "-c", code], capture_output=True, text=True, cwd=Path.cwd())
    assert (done.stdout, done.stderr) == ("refused 3\n", "")
    assert NotRoot.exit_code == 3

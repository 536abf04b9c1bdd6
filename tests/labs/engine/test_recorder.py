"""Which records are a cluster's own; and a trace that is made ready before its cluster is, and never outlives it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from labs.cluster.ledger import find_cgroup_root
from labs.engine import recorder
from labs.engine.progress import Home
from labs.engine.recorder import KEEPER, READY, Own
from tests import needs
from tests.conftest import lacking
from tests.labs.lab import REPOSITORY, start_time
from tracer.errors import K8snetError

pytestmark = pytest.mark.root


def record(cgroup: Path) -> bytes:
    return b'{"type": "connection", "process": {"pid": 7, "cgroup_id": %d, "netns": 1}}' % cgroup.stat().st_ino


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of this test's, with one in it."""
    root = find_cgroup_root()
    lacking([needs.Missing("needs cgroup v2", "mount -t cgroup2 none /sys/fs/cgroup")] if root is None else [])
    assert root is not None
    made = root / f"k8snet-test-{secrets.token_hex(4)}"
    (made / "node1").mkdir(parents=True)
    yield made
    (made / "node1").rmdir()
    made.rmdir()


def test_only_what_runs_in_the_clusters_cgroup(cgroup: Path) -> None:
    own = Own(str(cgroup))
    assert own.has(record(cgroup))
    assert own.has(record(cgroup / "node1"))
    assert not own.has(record(cgroup.parent))
    assert not Own(f"{cgroup}-other").has(record(cgroup / "node1"))


def test_a_cgroup_that_is_gone_is_nobodys(cgroup: Path) -> None:
    (cgroup / "node2").mkdir()
    line = record(cgroup / "node2")
    (cgroup / "node2").rmdir()
    assert not Own(str(cgroup)).has(line)


@pytest.mark.parametrize("cgroup_of_cluster", [None, "/sys/fs/cgroup/k8snet-x"])
def test_a_record_without_a_process_may_be_anybodys(cgroup_of_cluster: str | None) -> None:
    assert Own(cgroup_of_cluster).has(b'{"type": "connection", "process": null}')


def test_without_cgroups_all_is_kept() -> None:
    assert Own(None).has(record(Path("/")))


# ---- the trace itself ----

PREPARE = """
import sys, time
from pathlib import Path
from labs.engine import recorder
from labs.engine.progress import Home
with recorder.prepared(Home(Path(sys.argv[1]), Path(sys.argv[2]), (0, 0))):
    print("prepared", flush=True)
    time.sleep(60)  # until a test kills it
"""
KUBECONFIG = "apiVersion: v1\nkind: Config\nclusters: []\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Files of somebody, and no trace of his afterwards."""
    made = Home(tmp_path / "state/k8snet", tmp_path / "files", (0, 0))
    yield made
    recorder.stop(made)


@pytest.fixture
def cluster() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is all there is of a cluster."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """One that names no cluster."""
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    return path


def processes(home: Home) -> dict[int, str]:
    """The keeper, and the trace once it has been started: pid -> start time."""
    keeper = json.loads((home.directory / KEEPER).read_text())["pid"]
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    deadline = time.monotonic() + 5
    while not (traces := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.02)
    (trace,) = traces  # which may have started a program that reads rules, and is gone by the next look
    return {pid: start_time(pid) for pid in (keeper, int(trace))}


def all_end(which: dict[int, str], patience: float) -> bool:
    """Whether they do so in a while."""
    deadline = time.monotonic() + 5 * patience
    while any(start_time(pid) == began for pid, began in which.items()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(start_time(pid) == began for pid, began in which.items())


@pytest.mark.bpf
def test_it_begins_when_it_is_told_of_a_cluster_and_ends_with_it(
    home: Home, cluster: subprocess.Popen[bytes], kubeconfig: Path, patience: float
) -> None:
    with recorder.prepared(home) as trace:
        own = processes(home)
        time.sleep(2 * patience)  # it is attached by then, and would have begun
        assert not (home.directory / READY).exists()
        trace.begin(kubeconfig, cluster.pid)
    time.sleep(0.2)  # in which it would end with the body, had it not begun
    assert recorder.is_running(home)
    cluster.kill()
    assert all_end(own, patience)
    assert not recorder.is_running(home)


@pytest.mark.bpf
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_nobody_is_left_to_tell_it(home: Home, tmp_path: Path, patience: float, number: int) -> None:
    command = [sys.executable, "-c", PREPARE, str(home.directory), str(tmp_path / "files")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"prepared\n"
        own = processes(home)
        starter.send_signal(number)
    assert all_end(own, patience)


@pytest.mark.bpf
def test_it_ends_when_there_will_be_no_cluster(home: Home, patience: float) -> None:
    with suppress(K8snetError), recorder.prepared(home):
        own = processes(home)
        raise K8snetError("no cluster")
    assert all_end(own, patience)


@pytest.mark.bpf
def test_stopped_before_it_begins_it_leaves_nothing(home: Home, patience: float) -> None:
    with recorder.prepared(home) as trace:
        own = processes(home)
        recorder.stop(home)
        assert all_end(own, patience)
        assert list(home.directory.iterdir()) == []
        with pytest.raises(K8snetError):
            trace.begin(Path("/none"), os.getpid())


@pytest.mark.bpf
def test_a_cluster_that_is_gone_already_is_told(home: Home, cluster: subprocess.Popen[bytes], kubeconfig: Path) -> None:
    with recorder.prepared(home) as trace:
        cluster.kill()
        cluster.wait()
        with pytest.raises(K8snetError, match="the live trace does not run"):
            trace.begin(kubeconfig, cluster.pid)


def test_what_keeps_it_from_running_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch, kubeconfig: Path, tmp_path: Path
) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('no bcc here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    with (
        recorder.prepared(home) as trace,
        pytest.raises(K8snetError, match="the Python package bcc can't"),
    ):
        trace.begin(kubeconfig, os.getpid())

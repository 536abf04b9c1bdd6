"""The trace on machines and days that lack something: it goes on with what is left, or says what is missing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import TRACE, run, start, wait_for
from tests.labs.lab import Lab
from tests.tracer.networks import namespaces
from tracer.errors import BackendUnavailable
from tracer.source.live import probe_backend

pytestmark = pytest.mark.bpf

# A process that connects to itself N times, in a network namespace that ends with it.
_BRIEF = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
"""


def without(*directories: str) -> list[str]:
    """What to put before a command so that it runs with these directories empty, for itself only."""
    hide = " && ".join(f"{{ [ ! -d {path} ] || mount -t tmpfs none {path}; }}" for path in directories)
    return ["unshare", "--mount", "sh", "-c", f'{hide} && exec "$0" "$@"']


@contextlib.contextmanager
def traced(tmp_path: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A trace with JSON output, once it is ready."""
    ready = tmp_path / "ready"
    command = [*prefix, *TRACE, "-o", "json", "--ready-file", str(ready), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(ready)
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """End a trace as a user does; gives its records and what it said."""
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in out.splitlines()], errors


@contextlib.contextmanager
def server() -> Iterator[int]:
    """A port on loopback that accepts connections by its backlog."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        yield int(listening.getsockname()[1])


def connect(port: int, count: int) -> None:
    for _ in range(count):
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_kernel_without_btf_can_not_be_traced_with_bpf() -> None:
    done = run("--backend", "tracepoint", "--duration", "1", prefix=without("/sys/kernel/btf"))
    assert done.returncode == 3
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ") and "BTF" in error
    assert hint.startswith("hint: ") and "conntrack" in hint


def test_a_kernel_without_btf_falls_back_to_conntrack() -> None:
    done = run("--duration", "1", "--no-names", prefix=without("/sys/kernel/btf"))
    assert done.returncode == 0, done.stderr
    assert "knows no processes" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("backend conntrack")


def test_tracefs_need_not_be_mounted(tmp_path: Path) -> None:
    hidden = without("/sys/kernel/tracing", "/sys/kernel/debug")
    with server() as port:
        options = ("--backend", "tracepoint", "--no-names", "--port", str(port))
        with traced(tmp_path, *options, prefix=tuple(hidden)) as process:
            connect(port, 7)
            records, _ = finish(process)
    assert len(records) == 7


@pytest.mark.parametrize("backend", ["fentry", "kprobe"])
def test_a_backend_that_the_kernel_refuses_says_why(backend: str) -> None:
    """Where the kernel offers it, it runs; scripts/vmtest has both kinds of kernel."""
    done = run("--backend", backend, "--duration", "0.5", "--no-names")
    try:
        probe_backend(backend)
    except BackendUnavailable as error:
        assert done.returncode == 3
        assert done.stderr.startswith(f"error: {error.message}"[:60])
    else:
        assert done.returncode == 0, done.stderr


def test_without_a_cgroup_file_system_names_come_from_elsewhere(cluster: Lab, tmp_path: Path) -> None:
    """As with cgroup v1 only: the pod is known by its address."""
    with traced(
        tmp_path, "--kubeconfig", cluster.kubeconfig(), "--service", "shop/web", prefix=tuple(without("/sys/fs/cgroup"))
    ) as process:
        cluster.get("default/client", "http://10.96.20.1/")
        (record,), _ = finish(process)
    assert (record["source"]["namespace"], record["source"]["pod"]) == ("default", "client")
    assert record["backend"]["pod"].startswith("web-")


def kubeconfig(directory: Path, port: int) -> str:
    """A kubeconfig for an API server on a port of loopback."""
    path = directory / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return str(path)


def test_an_api_that_refuses_delays_nothing_and_leaves_the_rules_names(cluster: Lab, tmp_path: Path) -> None:
    with server() as free:
        path = kubeconfig(tmp_path, free)
    began = time.monotonic()
    with traced(tmp_path, "--kubeconfig", path) as process:
        ready = time.monotonic() - began
        for _ in range(3):  # the rules of a node are read once its first connection was seen
            cluster.get("default/client", "http://10.96.20.1/")
            time.sleep(0.7)
        records, errors = finish(process)
    assert ready < 10
    ours = [record for record in records if record["destination"]["ip"] == "10.96.20.1"]
    assert len(ours) == 3
    last = ours[-1]
    assert (last["destination"]["namespace"], last["destination"]["service"]) == ("shop", "web")
    assert last["translation"]["via"][-1].startswith("KUBE-SEP-")
    assert "Kubernetes API" in errors


def test_an_api_that_hangs_delays_nothing(tmp_path: Path) -> None:
    with server() as hangs, server() as port:
        options = ("--kubeconfig", kubeconfig(tmp_path, hangs), "--port", str(port))
        with traced(tmp_path, *options) as process:
            connect(port, 5)
            began = time.monotonic()
            records, _ = finish(process)
    assert len(records) == 5
    assert time.monotonic() - began < 5


def test_a_pod_that_is_gone_before_it_can_be_named(tmp_path: Path) -> None:
    """Its process, its namespace and its /proc entry end with the connection; the record is whole all the same."""
    with traced(tmp_path, "--comm", "brief*") as process:
        for number in range(11):
            code = f"open('/proc/self/comm','w').write('brief{number}');{_BRIEF.replace(chr(10), ';').strip(';')}"
            subprocess.run(["unshare", "--net", sys.executable, "-c", code], check=True)
        records, _ = finish(process)
    names = [record["process"]["comm"] for record in records]
    assert names == [f"brief{number}" for number in range(11)]
    assert all(record["source"]["pod"] is None and record["outcome"] == "established" for record in records)


def test_namespaces_come_and_go_under_load(tmp_path: Path) -> None:
    """A connection of another namespace is seen although the namespace is younger than the trace."""
    with traced(tmp_path, "--no-names", "--pid", str(os.getpid())) as process, namespaces(3) as made:
        for one in made:

            def call() -> None:
                with socket.create_server(("127.0.0.1", 0)) as listening:
                    socket.create_connection(listening.getsockname()).close()

            one.run(call)
        records, _ = finish(process)
    inodes = {one.inode for one in made}
    assert {record["process"]["netns"] for record in records if record["process"]["netns"] in inodes} == inodes


def test_a_signal_while_it_starts_ends_it(tmp_path: Path) -> None:
    """SIGTERM comes while the programs are compiled and attached."""
    for delay in (0.05, 0.2, 0.4, 0.6):
        with start("--no-names", "-o", "json") as process:
            threading.Event().wait(delay)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
            assert process.returncode in (0, -signal.SIGTERM), errors
            assert "Traceback" not in errors

"""A cluster where things are scarce: a thousand clients under a shell's limit of open files, no room for a process."""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from labs.cluster import control
from tests.labs.lab import COMMAND_SECONDS, REPOSITORY, Lab

pytestmark = pytest.mark.root

WATCHES = 1000
SHELL_FILES = 1024  # the soft limit of open files that a shell starts with
V1_PIDS, V2 = Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")


@contextmanager
def started_by(name: str, *wrapper: str) -> Iterator[Lab]:
    """A cluster whose `up` runs under `wrapper`, a command that runs another."""
    cluster = Lab(name=name)
    command = [*wrapper, sys.executable, "-m", "labs.cli", "up", "--name", name]
    try:
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=COMMAND_SECONDS, capture_output=True)
        yield cluster
    finally:
        cluster.__exit__()


def session(kubeconfig: str, directory: Path) -> aiohttp.ClientSession:
    """An HTTP client of the API with the administrator's certificate."""
    config: dict[str, Any] = yaml.safe_load(Path(kubeconfig).read_text())
    server, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(server["certificate-authority-data"]).decode())
    pem = directory / "client.pem"
    pem.write_bytes(b"".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))
    context.load_cert_chain(pem)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    return aiohttp.ClientSession(server["server"], connector=connector, timeout=aiohttp.ClientTimeout(total=60))


def test_a_thousand_watches_under_a_shells_limit_of_files(tmp_path: Path) -> None:
    name = f"test-{secrets.token_hex(4)}"
    with started_by(name, "prlimit", f"--nofile={SHELL_FILES}:20000") as cluster:
        events, seconds = asyncio.run(watch_many(cluster.kubeconfig(), tmp_path))
    assert events == ["ADDED"] * WATCHES
    assert seconds < 2, "a list beside a thousand watches"


async def watch_many(kubeconfig: str, directory: Path) -> tuple[list[str], float]:
    """Watch, all at once, for one ConfigMap, then make it; the type of each first event, and how long a list took."""
    client, began = session(kubeconfig, directory), asyncio.Semaphore(0)

    async def watch() -> str:
        query = {"watch": "1", "timeoutSeconds": "50", "fieldSelector": "metadata.name=seen"}
        async with client.get("/api/v1/configmaps", params=query) as response:
            assert response.status == 200
            began.release()
            line = await response.content.readline()
            return "ADDED" if line.startswith(b'{"type":"ADDED"') else line.decode()

    async with client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(watch()) for _ in range(WATCHES)]
        for _ in range(WATCHES):
            await began.acquire()
        start = time.monotonic()
        async with client.get("/api/v1/nodes") as response:
            assert len((await response.json())["items"]) == 2
        seconds = time.monotonic() - start
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seen"}}
        async with client.post("/api/v1/namespaces/default/configmaps", json=document) as response:
            assert response.status == 201
    return [task.result() for task in tasks], seconds


@pytest.fixture
def pids() -> Iterator[Path]:
    """A cgroup of our own that limits processes: of the pids controller's own hierarchy, or of the unified one."""
    group = (V1_PIDS if V1_PIDS.is_dir() else V2) / f"k8snet-test-{secrets.token_hex(4)}"
    group.mkdir()
    yield group
    group.rmdir()


def test_a_full_process_table_holds_up_new_pods_only(pids: Path, patience: float) -> None:
    name = f"test-{secrets.token_hex(4)}"
    enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    deployment = ("-n", "fastapi", "deployment/lets-ship-it")
    with started_by(name, "sh", "-c", enter, str(pids)) as cluster:
        full = int((pids / "pids.current").read_text())
        cluster.exec("node1", "kubectl", "scale", *deployment, "--replicas=7")
        cluster.exec("node1", "kubectl", "rollout", "status", *deployment, "--timeout=20s")
        cluster.exec("node1", "kubectl", "scale", *deployment, "--replicas=3")
        wait(lambda: len(servers(name)) == 3, patience)
        (pids / "pids.max").write_text(str(full + 4))  # room for what asks, none for four pods
        cluster.exec("node1", "kubectl", "scale", *deployment, "--replicas=7")
        time.sleep(1)
        assert sum(servers(name)) < 7
        assert cluster.get("default/client", "http://10.96.100.50:8000/")["path"] == "/"
        (pids / "pids.max").write_text("max")
        cluster.exec("node1", "kubectl", "rollout", "status", *deployment, "--timeout=60s")
        wait(lambda: cluster.status_or_reasons() == [], patience)
        assert servers(name) == [True] * 7


def servers(name: str) -> list[bool]:
    """Whether each of the pods behind fastapi/lets-ship-it is ready."""
    pods = control.ask(name, {"ask": "status"})["pods"]
    return [pod["ready"] for pod in pods if pod["namespace"] == "fastapi"]


def wait(condition: Any, patience: float) -> None:
    deadline = time.monotonic() + 20 * patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

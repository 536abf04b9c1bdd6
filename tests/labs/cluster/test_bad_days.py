"""A cluster where things are scarce, and with bad clients: a thousand watches under a shell's limit of open files, too
much, too slowly, rubbish; no room for a process. Memory stays in bounds, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import secrets
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from labs.cluster import control
from labs.cluster.api.server import ApiServer
from labs.cluster.certificates import TokenIssuer
from labs.cluster.options import AddressPlan
from labs.cluster.store import Store
from tests.labs.lab import COMMAND_SECONDS, REPOSITORY, Lab

pytestmark = pytest.mark.root

WATCHES = 1000
SLOW = 1000
RUBBISH = 10_000
LARGE, CHUNK = 10_000_000, b"x" * 100_000
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
    host, port, context = address_of(kubeconfig, directory)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    return aiohttp.ClientSession(f"https://{host}:{port}", connector=connector, timeout=timeout)


def address_of(kubeconfig: str, directory: Path) -> tuple[str, int, ssl.SSLContext]:
    """Where the API is, and the administrator's TLS."""
    config: dict[str, Any] = yaml.safe_load(Path(kubeconfig).read_text())
    server, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(server["certificate-authority-data"]).decode())
    pem = directory / "client.pem"
    pem.write_bytes(b"".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))
    context.load_cert_chain(pem)
    host, _, port = server["server"].removeprefix("https://").partition(":")
    return host, int(port), context


@pytest.fixture(scope="module")
def scarce() -> Iterator[Lab]:
    """A cluster with as few open files as a shell gives."""
    with started_by(f"test-{secrets.token_hex(4)}", "prlimit", f"--nofile={SHELL_FILES}:20000") as cluster:
        yield cluster


@contextmanager
def grows_at_most(cluster: Lab, megabytes: float) -> Iterator[None]:
    """The supervisor, which is the API server, is so much larger after the body at most."""
    pid, before = cluster.status()["supervisor"], resident(cluster.status()["supervisor"])
    yield
    grown = resident(pid) - before
    print(f"{before:.0f} MB, and then {grown:.0f} MB more")
    assert grown < megabytes


def resident(pid: int) -> float:
    """The resident set of a process, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def test_a_thousand_watches_under_a_shells_limit_of_files(scarce: Lab, tmp_path: Path) -> None:
    with grows_at_most(scarce, 200):
        events, seconds = asyncio.run(watch_many(scarce.kubeconfig(), tmp_path))
    assert events == ["ADDED"] * WATCHES
    assert seconds < 2, "a list beside a thousand watches"


# The server ends these connections in the middle, and aiohttp's client leaves what is left to the garbage collector.
CUT_OFF = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@CUT_OFF
@pytest.mark.parametrize("chunked", [False, True])
def test_fifty_bodies_that_are_too_large(scarce: Lab, tmp_path: Path, chunked: bool) -> None:
    """With their length told before, and without; the API neither keeps them nor reads all of them."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(LARGE // len(CHUNK)):
            yield CHUNK

    async def send() -> list[int]:
        codes = []
        async with session(scarce.kubeconfig(), tmp_path) as client:
            for _ in range(50):
                body = chunks() if chunked else io.BytesIO(b"x" * LARGE)
                async with client.post("/api/v1/namespaces/default/configmaps", data=body) as response:
                    codes.append((await response.json())["code"])
        return codes

    with grows_at_most(scarce, 30):
        assert asyncio.run(send()) == [413] * 50


@CUT_OFF
def test_ten_thousand_requests_of_rubbish(scarce: Lab, tmp_path: Path) -> None:
    chance = random.Random(4)

    async def send() -> Counter[int]:
        codes, room = Counter[int](), asyncio.Semaphore(50)
        async with session(scarce.kubeconfig(), tmp_path) as client, asyncio.TaskGroup() as group:

            async def one() -> None:
                method = chance.choice(["GET", "POST", "PUT", "PATCH", "DELETE"])
                path = chance.choice(["/", "/api/v1/namespaces/", "/apis/apps/v1/", "/openapi/v3/"])
                words = b"?" + chance.randbytes(chance.randrange(1, 200))  # of "/." the client makes the root
                odd = URL(path + quote(words, safe=""), encoded=True)
                async with room, client.request(method, odd, data=chance.randbytes(3000)) as response:
                    await response.read()
                    codes[response.status] += 1

            for _ in range(RUBBISH):
                group.create_task(one())
        await asyncio.sleep(0.5)  # TLS connections take a moment to close (aiohttp's "Graceful Shutdown")
        return codes

    with grows_at_most(scarce, 50):
        codes = asyncio.run(send())
    assert codes.total() == RUBBISH
    assert [code for code in codes if not 400 <= code < 500] == [], codes
    assert scarce.status()["ready"]


def test_a_thousand_slow_clients_keep_nobody_waiting(scarce: Lab, tmp_path: Path) -> None:
    """Half of them never end their headers, half not even the TLS handshake."""

    async def ask_beside_them() -> float:
        kubeconfig = scarce.kubeconfig()
        host, port, context = address_of(kubeconfig, tmp_path)
        slow = [(await asyncio.open_connection(host, port, ssl=context if n % 2 else None))[1] for n in range(SLOW)]
        for number, writer in enumerate(slow):
            writer.write(b"GET /api/v1/pods HTTP/1.1\r\nHost: x\r\nX-Slow: " if number % 2 else b"\x16")
        async with session(kubeconfig, tmp_path) as client:
            began = time.monotonic()
            async with client.get("/api/v1/nodes") as response:
                assert len((await response.json())["items"]) == 2
            seconds = time.monotonic() - began
        for writer in slow:
            writer.transport.abort()  # a reset, as the last word
        return seconds

    with grows_at_most(scarce, 150):
        assert asyncio.run(ask_beside_them()) < 1
    deadline = time.monotonic() + 10
    supervisor = scarce.status()["supervisor"]
    while (files := len(list(Path(f"/proc/{supervisor}/fd").iterdir()))) > 300 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert files <= 300, "their connections are closed"


def test_clients_that_reset_their_connections_leave_no_watch(scarce: Lab, tmp_path: Path) -> None:
    async def reset_many() -> None:
        host, port, context = address_of(scarce.kubeconfig(), tmp_path)
        for number in range(100):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            request = f"GET /api/v1/pods?watch=1 HTTP/1.1\r\nHost: x\r\n{'' if number % 2 else 'X: 1'}"
            writer.write(f"{request}\r\n".encode())  # half of them are not through with their headers
            if number % 2:
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            linger = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: close() sends a reset
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    with grows_at_most(scarce, 50):
        asyncio.run(reset_many())
    names = [f"pod-{number}" for number in range(3)]
    for name in names:
        scarce.exec("node1", "kubectl", "run", name, "--image=http-echo")
    scarce.exec(
        "node1", "kubectl", "wait", "--for=condition=Ready", *(f"pod/{name}" for name in names), "--timeout=20s"
    )
    scarce.exec("node1", "kubectl", "delete", *(f"pod/{name}" for name in names))
    assert "Traceback" not in (scarce.directory / "log").read_text()


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


def test_a_handler_that_fails_is_an_answer_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("boom")

    async def ask() -> web.StreamResponse:
        server = ApiServer(Store(), TokenIssuer(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), AddressPlan((4,)))
        return await server._handle(make_mocked_request("GET", "/api/v1/pods"))

    monkeypatch.setattr(ApiServer, "_answer", fail)
    response = asyncio.run(ask())
    assert isinstance(response, web.Response) and isinstance(response.body, bytes)
    document = json.loads(response.body)
    assert (response.status, document["kind"], document["reason"]) == (500, "Status", "InternalError")
    assert document["message"] == "Internal error occurred: boom"


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

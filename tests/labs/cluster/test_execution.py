"""Commands in pods over the API's WebSocket protocol, message by message."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import yaml

from tests.labs.lab import Lab

pytestmark = pytest.mark.root

Messages = list[tuple[int, bytes]]


class Client:
    """A client with the administrator's certificate."""

    def __init__(self, cluster: Lab, directory: Path) -> None:
        config = yaml.safe_load(Path(cluster.kubeconfig()).read_text())
        server, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.url = server["server"]
        authority = base64.b64decode(server["certificate-authority-data"]).decode()
        self.context = ssl.create_default_context(cadata=authority)
        parts = (base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key"))
        (directory / "client.pem").write_bytes(b"".join(parts))
        self.context.load_cert_chain(directory / "client.pem")

    def run(self, *command: str, feed: bytes | None = None, until: bytes | None = None, **flags: str) -> Messages:
        """All messages of a command, by channel; with `until`, the client goes once that has been said."""
        query = [*(("command", word) for word in command), ("stdout", "1"), ("stderr", "1"), *flags.items()]
        path = f"{self.url}/api/v1/namespaces/default/pods/client/exec?{urlencode(query)}"

        async def talk() -> Messages:
            messages: Messages = []
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(path, ssl=self.context, protocols=("v5.channel.k8s.io",)) as socket,
            ):
                assert socket.protocol == "v5.channel.k8s.io"
                if feed is not None:
                    await socket.send_bytes(b"\x00" + feed)
                    await socket.send_bytes(b"\xff\x00")
                async for message in socket:
                    messages.append((message.data[0], message.data[1:]))
                    if until is not None and until in message.data:
                        break
            await asyncio.sleep(0.1)  # aiohttp: TLS needs a moment to close (client_advanced, graceful shutdown)
            return messages

        return asyncio.run(asyncio.wait_for(talk(), 20))


@pytest.fixture(scope="module")
def client(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(cluster, tmp_path_factory.mktemp("client"))


def said(messages: Messages, channel: int) -> bytes:
    return b"".join(data for number, data in messages if number == channel)


def result(messages: Messages) -> Any:
    return json.loads(said(messages, 3))


def test_both_outputs_and_the_end(client: Client) -> None:
    messages = client.run("sh", "-c", "hostname; echo wrong >&2; pwd")
    assert (said(messages, 1), said(messages, 2)) == (b"client\n/\n", b"wrong\n")
    assert result(messages) == {"metadata": {}, "status": "Success"}


def test_an_exit_status(client: Client) -> None:
    assert result(client.run("sh", "-c", "exit 42")) == {
        "metadata": {},
        "status": "Failure",
        "message": "command terminated with non-zero exit code: error executing command [sh -c exit 42], exit code 42",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "42"}]},
    }


def test_input_that_ends(client: Client) -> None:
    messages = client.run("sha256sum", feed=b"hello", stdin="1")
    assert said(messages, 1).startswith(b"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")


def test_a_terminal(client: Client) -> None:
    messages = client.run("sh", "-c", "tty && echo it is", stdin="1", tty="1")
    assert said(messages, 1).endswith(b"it is\r\n")


def test_the_container_is_where_it_runs(client: Client, cluster: Lab) -> None:
    messages = client.run("sh", "-c", "ip -br -4 addr show eth0; cat /proc/self/cgroup; echo $KUBERNETES_SERVICE_HOST")
    (pod,) = [pod for pod in cluster.pods("default") if pod["name"] == "client"]
    text = said(messages, 1).decode()
    assert pod["addresses"][0] in text and text.endswith("10.96.0.1\n")
    if pod["cgroup"] is not None:
        assert pod["container_id"] in text


def test_a_client_that_goes_takes_its_command_with_it(client: Client, cluster: Lab) -> None:
    assert said(client.run("sh", "-c", "echo started; exec sleep 4711", until=b"started"), 1) == b"started\n"
    end = time.monotonic() + 5
    while b"4711" in (found := cluster.exec("default/client", "ps", "ax").stdout.encode()) and time.monotonic() < end:
        time.sleep(0.05)
    assert b"sleep 4711" not in found


@contextlib.contextmanager
def upgrading(client: Client, subresource: str, protocol: str) -> Iterator[tuple[ssl.SSLSocket, bytes]]:
    """A connection on which SPDY is to be spoken, and what the server says to that."""
    host, _, port = client.url.removeprefix("https://").partition(":")
    path = f"/api/v1/namespaces/default/pods/client/{subresource}?command=cat&stdin=1&stdout=1"
    lines = (f"POST {path} HTTP/1.1", "Host: here", "Connection: Upgrade", "Upgrade: SPDY/3.1")
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        client.context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        connection.sendall("\r\n".join([*lines, f"X-Stream-Protocol-Version: {protocol}", "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1)
        yield connection, answer


@pytest.mark.parametrize(
    ("subresource", "protocol"), [("exec", "v4.channel.k8s.io"), ("portforward", "portforward.k8s.io")]
)
@pytest.mark.parametrize("noise", [b"\x80\x02" + bytes(20), b"\x80\x03\x00\x01\x00\x00\x00\x0a" + b"\xff" * 10])
def test_who_does_not_speak_spdy_is_hung_up_on(
    client: Client, cluster: Lab, subresource: str, protocol: str, noise: bytes
) -> None:
    with upgrading(client, subresource, protocol) as (connection, answer):
        assert answer.startswith(b"HTTP/1.1 101 ") and f"X-Stream-Protocol-Version: {protocol}".encode() in answer
        connection.sendall(noise)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    assert said(client.run("echo", "well"), 1) == b"well\n"


def test_a_protocol_that_is_not_spoken(client: Client) -> None:
    with upgrading(client, "exec", "v9.channel.k8s.io") as (_, answer):
        assert answer.startswith(b"HTTP/1.1 403 ")


def test_a_command_that_is_not_there(client: Client) -> None:
    told = result(client.run("no-such-command"))
    assert (told["reason"], told["code"]) == ("InternalError", 500)
    assert told["message"].endswith('exec: "no-such-command": executable file not found in $PATH: unknown')

"""The subresource exec: a command in a container, over a WebSocket.

Stands for the kubelet's streaming server (k8s.io/kubelet/pkg/cri/streaming/remotecommand) and the protocols
v4.channel.k8s.io and v5.channel.k8s.io: each message begins with the number of its channel. kubectl speaks them from
1.30 on, and 1.29 when KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true. Left out: SPDY, which older ones speak, attach and port
forwarding; who asks for them is told of `k8snet-lab exec`.

What belongs here: the protocol, and the process behind it. What does not: finding the container
(`labs.cluster.world`), entering it by hand (`labs.cluster.enter`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import termios
from http import HTTPStatus
from typing import Any

from aiohttp import WSMsgType, web

from labs.cluster.api import status
from labs.cluster.api.containers import Locate, Place, container_of
from labs.cluster.podentry import entering
from labs.cluster.resources import Object, key_of

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
CHUNK = 1 << 15
NOT_EXECUTABLE, NOT_FOUND = 126, 127


def refuse(pod: Object, subresource: str) -> status.ApiError:
    """What a client is told whose way of streaming is not spoken here."""
    name = "/".join(key_of(pod))
    how = {
        "exec": "exec needs a kubectl that speaks WebSocket: 1.30 or newer, or 1.29 with "
        "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true",
        "attach": "the miniature cluster can't attach to a process",
        "portforward": "the miniature cluster forwards no ports",
    }[subresource]
    message = f"{how}; use: k8snet-lab exec {name} -- COMMAND"
    return status.ApiError(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented", message)


async def run(request: web.BaseRequest, pod: Object, locate: Locate) -> web.StreamResponse:
    """Run the command that the query names. Raises ApiError 400 or 501."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise refuse(pod, "exec")
    command = request.query.getall("command", [])
    if not command:
        raise status.bad_request("you must specify at least one command for the container")
    container = container_of(pod, request.query.get("container", ""))
    place = locate(pod, container)
    if place is None:
        raise status.bad_request(f'unable to upgrade connection: container not found ("{container}")')
    socket = web.WebSocketResponse(protocols=PROTOCOLS)
    await socket.prepare(request)
    session = _Session(socket, place, command, flags={key for key in _FLAGS if _is_set(request, key)})
    await session.run()
    return socket


_FLAGS = ("stdin", "stdout", "stderr", "tty")


def _is_set(request: web.BaseRequest, name: str) -> bool:
    return request.query.get(name, "").lower() in ("1", "true")


class _Session:
    """One command and the client that talks to it."""

    def __init__(self, socket: web.WebSocketResponse, place: Place, command: list[str], flags: set[str]) -> None:
        self._socket = socket
        self._place = place
        self._command = command
        self._flags = flags
        self._terminal: int | None = None

    async def run(self) -> None:
        process = await self._start()
        receiving = asyncio.create_task(self._receive(process))
        try:
            await self._send_output(process)
            code = await process.wait()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            self._end(process)
            if self._terminal is not None:
                os.close(self._terminal)  # whoever still has the terminal gets SIGHUP
        with contextlib.suppress(ConnectionError):
            await self._socket.send_bytes(bytes([ERROR]) + json.dumps(self._result(code)).encode())
            await self._socket.close()

    @staticmethod
    def _end(process: asyncio.subprocess.Process) -> None:
        """Make the command end, and what it has started in its process group."""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def _start(self) -> asyncio.subprocess.Process:
        words = self._words()
        if "tty" not in self._flags:
            wants = "stdin" in self._flags
            return await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE if wants else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        self._terminal = ours
        try:
            return await asyncio.create_subprocess_exec(
                "setsid", "--ctty", "--wait", *words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
            )
        finally:
            os.close(theirs)

    def _words(self) -> list[str]:
        """The command line that enters the container first."""
        terminal = ["TERM=xterm"] if "tty" in self._flags else []
        return entering(self._place.pid, self._place.cgroup, self._place.env, self._command, terminal)

    async def _send_output(self, process: asyncio.subprocess.Process) -> None:
        if self._terminal is not None:
            await self._send_terminal(self._terminal)
            return
        assert process.stdout is not None and process.stderr is not None
        await asyncio.gather(self._send(process.stdout, STDOUT), self._send(process.stderr, STDERR))

    async def _send(self, reader: asyncio.StreamReader, channel: int) -> None:
        while data := await reader.read(CHUNK):
            await self._socket.send_bytes(bytes([channel]) + data)

    async def _send_terminal(self, terminal: int) -> None:
        """Send what the terminal shows, until nobody has it open any more (EIO)."""
        loop = asyncio.get_running_loop()
        while True:
            readable = asyncio.Event()
            loop.add_reader(terminal, readable.set)
            try:
                await readable.wait()
                data = os.read(terminal, CHUNK)
            except OSError:
                return
            finally:
                loop.remove_reader(terminal)
            if not data:
                return
            await self._socket.send_bytes(bytes([STDOUT]) + data)

    async def _receive(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what the client sends; when it goes, the command goes."""
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == STDIN:
                await self._feed(process, data)
            elif channel == RESIZE and self._terminal is not None:
                _resize(self._terminal, data)
            elif channel == CLOSE and data[:1] == bytes([STDIN]) and process.stdin is not None:
                process.stdin.close()
        self._end(process)

    async def _feed(self, process: asyncio.subprocess.Process, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._terminal is not None:
                os.write(self._terminal, data)
            elif process.stdin is not None:
                process.stdin.write(data)
                await process.stdin.drain()

    def _result(self, code: int) -> dict[str, Any]:
        """The Status at the end (remotecommand/exec.go)."""
        if code == 0:
            return {"metadata": {}, "status": "Success"}
        code = 128 - code if code < 0 else code
        if code in (NOT_EXECUTABLE, NOT_FOUND):
            return {
                "metadata": {},
                "status": "Failure",
                "message": f'exec failed: unable to start container process: exec: "{self._command[0]}": not found',
                "reason": "InternalError",
                "code": 500,
            }
        return {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: exit status {code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        }


def _resize(terminal: int, data: bytes) -> None:
    with contextlib.suppress(ValueError, KeyError, TypeError, struct.error, OSError):
        size = json.loads(data)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size["Height"], size["Width"], 0, 0))

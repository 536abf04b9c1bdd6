"""The channels between kubectl and a process: stdin, stdout, stderr, the terminal's size, and how it ended.

Stands for k8s.io/kubelet/pkg/cri/streaming/remotecommand (websocket.go, httpstream.go). Two ways lead here: WebSocket
with v5 and v4.channel.k8s.io, where each message begins with the number of its channel (kubectl from 1.30 on), and
SPDY, where each channel is a stream (all kubectls, v4 to v2.channel.k8s.io).

What belongs here: changing from HTTP to either, and one face for both. What does not: what is at the other end of the
channels (`labs.cluster.api.execution`), SPDY's frames (`labs.cluster.api.spdy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Collection, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from aiohttp import WSMsgType, web

from labs.cluster.api import status
from labs.cluster.api.spdy import Connection, ProtocolError, Stream

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
V5, V4, V3, V2 = (f"v{number}.channel.k8s.io" for number in (5, 4, 3, 2))
NAMES = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE}
CREATION_SECONDS = 30.0  # for a client to open its streams (DefaultStreamCreationTimeout)
CLOSING_SECONDS = 10.0
MAX_UNSENT = 1 << 22  # bytes that a client may leave unread while it sends
Message = tuple[int, bytes]

log = logging.getLogger(__name__)


class Channels(Protocol):
    """What either way offers."""

    async def receive(self) -> Message | None:
        """The next piece from the client, with its channel; b"" ends that channel, None all of them."""

    async def send(self, channel: int, data: bytes) -> None:
        """Send to the client, if it wanted that channel. Raises ConnectionError when it is gone."""

    async def ping(self) -> None:
        """Make the client's end noticed. Raises ConnectionError."""

    async def end(self, result: dict[str, Any]) -> None:
        """Say how it ended (a Status), and close."""


async def open_channels(request: web.BaseRequest, wanted: Collection[int]) -> tuple[Channels, web.StreamResponse]:
    """Leave HTTP; the response is what the handler returns afterwards. Raises ApiError 400 and 403."""
    if is_websocket(request):
        socket = await open_websocket(request, (V5, V4))
        return _WebSocketChannels(socket, wanted), socket
    connection, response = await open_spdy(request, (V4, V3, V2))
    version = response.headers["X-Stream-Protocol-Version"]
    channels = _SpdyChannels(connection, has_status=version == V4)
    await channels.wait_for({ERROR, *wanted} - ({RESIZE} if version == V2 else set()))
    return channels, response


def is_websocket(request: web.BaseRequest) -> bool:
    """Whether the client wants to speak WebSocket from now on."""
    return request.headers.get("Upgrade", "").strip().lower() == "websocket"


async def open_websocket(request: web.BaseRequest, protocols: Sequence[str]) -> web.WebSocketResponse:
    """Speak WebSocket from now on, with one of `protocols`. Raises ApiError 400."""
    offered = _words(request, "Sec-WebSocket-Protocol")
    if not set(offered) & set(protocols):
        words = f"unable to negotiate protocol: client supports {offered}, server accepts {list(protocols)}"
        raise status.bad_request(words)
    socket = web.WebSocketResponse(protocols=protocols, timeout=CLOSING_SECONDS)
    if not socket.can_prepare(request):
        raise status.bad_request("no proper WebSocket handshake")
    await socket.prepare(request)
    return socket


async def open_spdy(request: web.BaseRequest, protocols: Sequence[str]) -> tuple[Connection, web.StreamResponse]:
    """Speak SPDY from now on, for one of `protocols`. Raises ApiError 400 and 403."""
    if request.headers.get("Upgrade", "").strip().lower() != "spdy/3.1":
        raise status.bad_request("Upgrade request required")
    offered = _words(request, "X-Stream-Protocol-Version")
    chosen = next((protocol for protocol in protocols if protocol in offered), None)
    if chosen is None:
        message = f"unable to negotiate protocol: client supports {offered}, server accepts {list(protocols)}"
        raise status.ApiError(HTTPStatus.FORBIDDEN, "Forbidden", message)
    headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": chosen}
    response = web.StreamResponse(status=101, headers=headers)
    response.force_close()
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")

    def hold(on: bool) -> None:
        with contextlib.suppress(RuntimeError):  # it is closing
            transport.pause_reading() if on else transport.resume_reading()

    connection = Connection(response.write, hold)
    # aiohttp hands all that comes to whatever has been set so; for its own WebSockets it does the same.
    request.protocol.set_parser(_Feeder(connection, transport))  # type: ignore[arg-type]
    writer = await response.prepare(request)
    if writer is not None:
        await writer.drain()
    return connection, response


def _words(request: web.BaseRequest, header: str) -> list[str]:
    """The words of a header that may be there several times, and have several words each time."""
    return [word.strip() for text in request.headers.getall(header, ()) for word in text.split(",")]


class _Feeder:
    """Takes what comes over HTTP's connection after it has changed to SPDY."""

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        try:
            answers = self._connection.feed(data)
        except ProtocolError as error:
            log.warning("SPDY: %s", error.message)
            self._connection.lost()
            self._transport.abort()
            return False, b""
        self._transport.write(answers)
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self._transport.abort()
        return False, b""

    def feed_eof(self) -> None:
        self._connection.lost()


class _WebSocketChannels:
    def __init__(self, socket: web.WebSocketResponse, wanted: Collection[int]) -> None:
        self._socket = socket
        self._wanted = wanted

    async def receive(self) -> Message | None:
        while True:
            message = await self._socket.receive()
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                return None
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == CLOSE and data:  # v5
                return data[0], b""
            if data:
                return channel, data

    async def send(self, channel: int, data: bytes) -> None:
        if channel in self._wanted:
            await self._socket.send_bytes(bytes([channel]) + data)

    async def ping(self) -> None:
        await self._socket.ping()

    async def end(self, result: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            await self._socket.send_bytes(bytes([ERROR]) + json.dumps(result).encode())
            await self._socket.close()


class _SpdyChannels:
    def __init__(self, connection: Connection, *, has_status: bool) -> None:
        """`has_status`: the end is told as a Status (from v4 on), or in words."""
        self._connection = connection
        self._has_status = has_status
        self._streams: dict[int, Stream] = {}
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue(1)
        self._readers: list[asyncio.Task[None]] = []
        self.ping = connection.ping

    async def wait_for(self, channels: Collection[int]) -> None:
        """Wait until the client has opened its streams."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CREATION_SECONDS):
                while channels - self._streams.keys() and (stream := await self._connection.accept()) is not None:
                    channel = NAMES.get(stream.headers.get("streamtype", ""))
                    if channel is None or channel in self._streams:
                        await stream.reset()
                    else:
                        self._streams[channel] = stream
        self._readers = [asyncio.create_task(self._read(channel)) for channel in self._streams if channel != ERROR]
        self._readers.append(asyncio.create_task(self._watch()))

    async def _read(self, channel: int) -> None:
        while data := await self._streams[channel].read():
            await self._messages.put((channel, data))
        await self._messages.put((channel, b""))

    async def _watch(self) -> None:
        while (stream := await self._connection.accept()) is not None:
            await stream.reset()
        await self._messages.put(None)

    async def receive(self) -> Message | None:
        return await self._messages.get()

    async def send(self, channel: int, data: bytes) -> None:
        if channel in self._streams:
            await self._streams[channel].send(data)

    async def end(self, result: dict[str, Any]) -> None:
        words = json.dumps(result) if self._has_status else result.get("message", "")
        with contextlib.suppress(ConnectionError, TimeoutError):
            for channel in (STDOUT, STDERR):
                if channel in self._streams:
                    await self._streams[channel].end()
            if ERROR in self._streams:
                await self._streams[ERROR].send(words.encode())
                await self._streams[ERROR].end()
            # The client closes the connection: if we did, it might drop what it has not looked at yet.
            async with asyncio.timeout(CLOSING_SECONDS):
                while await self.receive() is not None:
                    pass
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._connection.lost()

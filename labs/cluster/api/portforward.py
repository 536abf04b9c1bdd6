"""The subresource portforward: connections of the client's, made again from inside a pod.

Stands for the kubelet's streaming server (k8s.io/kubelet/pkg/cri/streaming/portforward) and containerd's
portforward. Each connection is a pair of SPDY streams, for its data and for what goes wrong. kubectl speaks SPDY after
an HTTP upgrade, and from 1.31 on inside a WebSocket (KEP 4006).

What belongs here: pairs of streams, and copying. What does not: SPDY (`labs.cluster.api.spdy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import defaultdict

from aiohttp import WSMsgType, web

from labs.cluster import linux
from labs.cluster.api import status
from labs.cluster.api.channels import CREATION_SECONDS, is_websocket, open_spdy, open_websocket
from labs.cluster.api.containers import Locate, Place
from labs.cluster.api.spdy import Connection, ProtocolError, Stream
from labs.cluster.resources import Object

PROTOCOL = "portforward.k8s.io"
TUNNEL = f"SPDY/3.1+{PROTOCOL}"
CHUNK = 1 << 15


async def forward(request: web.BaseRequest, pod: Object, locate: Locate) -> web.StreamResponse:
    """Forward connections until the client goes. Raises ApiError 400 and 403."""
    if not pod["spec"].get("nodeName"):
        raise status.bad_request(f"pod {pod['metadata']['name']} does not have a host assigned")
    if is_websocket(request):
        tunnel = await open_websocket(request, (TUNNEL,))
        room = asyncio.Event()
        room.set()
        connection = Connection(tunnel.send_bytes, lambda on: room.clear() if on else room.set())
        pumping = asyncio.create_task(_pump(tunnel, connection, room))
        try:
            await _serve(connection, pod, locate)
        finally:
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)
            await tunnel.close()
        return tunnel
    connection, response = await open_spdy(request, (PROTOCOL,))
    await _serve(connection, pod, locate)
    return response


async def _pump(tunnel: web.WebSocketResponse, connection: Connection, room: asyncio.Event) -> None:
    """Take SPDY out of the messages of a WebSocket."""
    with contextlib.suppress(ConnectionError, ProtocolError):
        async for message in tunnel:
            if message.type is WSMsgType.BINARY:
                if answers := connection.feed(message.data):
                    await tunnel.send_bytes(answers)
                await room.wait()
    connection.lost()


async def _serve(connection: Connection, pod: Object, locate: Locate) -> None:
    """Make a connection for each pair of streams."""
    pairs: defaultdict[str, dict[str, Stream]] = defaultdict(dict)
    async with asyncio.TaskGroup() as group:
        while (stream := await connection.accept()) is not None:
            kind, port = stream.headers.get("streamtype", ""), stream.headers.get("port", "")
            # Clients that give no id open both, one right after the other.
            name = stream.headers.get("requestid") or str(stream.number - (2 if kind == "data" else 0))
            fits = kind in ("error", "data") and port.isdecimal() and 0 < int(port) < 65536
            if not fits or kind in pairs[name]:
                with contextlib.suppress(ConnectionError):
                    await stream.reset()
                continue
            pairs[name][kind] = stream
            if len(pairs[name]) == 2:
                pair = pairs.pop(name)
                group.create_task(_forward(pair["data"], pair["error"], pod, locate))
            elif kind == "error":
                asyncio.get_running_loop().call_later(CREATION_SECONDS, pairs.pop, name, None)


async def _forward(data: Stream, errors: Stream, pod: Object, locate: Locate) -> None:
    """Make one connection, and copy until the pod has ended it."""
    port = int(data.headers["port"])
    with contextlib.suppress(ConnectionError):
        try:
            reader, writer = await _connect(pod, port, locate)
        except OSError as error:
            name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
            await errors.send(f"error forwarding port {port} to pod {name}, uid {uid}: {error}".encode())
        else:
            await _copy(data, reader, writer)
        await data.end()
        await errors.end()


async def _connect(pod: Object, port: int, locate: Locate) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the pod's localhost, IPv4 first. Raises OSError in containerd's words."""
    places = (locate(pod, entry["name"]) for entry in pod["spec"]["containers"])
    place = next((place for place in places if place is not None), None)
    if place is None:
        raise ConnectionRefusedError("no container is running")
    failures = []
    for family, network, address in (
        (socket.AF_INET, "tcp4 127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "tcp6 [::1]", "::1"),
    ):
        try:
            return await asyncio.open_connection(sock=await _dial(place, family, address, port))
        except OSError as error:
            failures.append(f"dial {network}:{port}: connect: {os.strerror(error.errno or 0).lower()}")
    raise ConnectionRefusedError(
        f'failed to connect to localhost:{port} inside namespace "{pod["metadata"]["uid"]}", '
        f"IPv4: {failures[0]} IPv6 {failures[1]}"
    )


async def _dial(place: Place, family: int, address: str, port: int) -> socket.socket:
    """Connect from inside a container's network namespace. Raises OSError."""
    namespace = os.open(f"/proc/{place.started.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with linux.network_namespace(namespace):
            dialled = socket.socket(family, socket.SOCK_STREAM)
    finally:
        os.close(namespace)
    dialled.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(dialled, (address, port))
    except BaseException:
        dialled.close()
        raise
    return dialled


async def _copy(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy both ways until the pod sends no more. Raises ConnectionError."""

    async def upstream() -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await stream.read():
                writer.write(piece)
                await writer.drain()
            writer.write_eof()

    sending = asyncio.create_task(upstream())
    try:
        while piece := await reader.read(CHUNK):
            await stream.send(piece)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

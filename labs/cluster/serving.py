"""What the built-in servers have in common: their ports, their sockets, and how they are told to stop.

What belongs here: what any of them needs to serve. What does not: what they answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import cast

from labs.cluster.runtime.container import Container

BACKLOG = 4096


def ports_of(container: Container, protocol: str, default: int) -> list[int]:
    """The ports to listen on: --port in args, else the declared ones of `protocol`, else `default`."""
    args = container.args
    if "--port" in args:
        return [int(args[args.index("--port") + 1])]
    declared = [port["containerPort"] for port in container.facts["ports"] if port.get("protocol", "TCP") == protocol]
    return declared or [default]


class Datagrams(asyncio.DatagramProtocol):
    """Answers datagrams one by one; a subclass says how in `answer`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = self.answer(data)
        if response is not None:
            self._transport.sendto(response, addr)

    def answer(self, data: bytes) -> bytes | None:
        """The response to a datagram, or None for no response."""
        raise NotImplementedError


async def serve_datagrams(
    make: Callable[[], Datagrams], port: int, families: list[int]
) -> list[asyncio.DatagramTransport]:
    """Answer datagrams at `port` on all addresses of `families` (4, 6), each family with a socket of its own; gives
    what to close."""
    loop = asyncio.get_running_loop()
    transports = []
    for family in families:
        kind, address = (socket.AF_INET, "0.0.0.0") if family == 4 else (socket.AF_INET6, "::")
        listener = socket.socket(kind, socket.SOCK_DGRAM)
        if family == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind((address, port))
        transport, _ = await loop.create_datagram_endpoint(make, sock=listener)
        transports.append(transport)
    return transports


def leave_no_zombies() -> None:
    """Have the kernel reap what ends as our orphan: the first process of a pid namespace gets all of them."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def say(text: str) -> None:
    """Write a line to the container's log."""
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode())


async def wait_for_signal() -> None:
    """Wait for SIGTERM or SIGINT: the container's first process gets them only if it asks for them."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()

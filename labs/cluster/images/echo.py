"""TCP and UDP servers that send back what they get, after a first line (TCP) or word (UDP) that names their pod.

UDP answers `POD<space>` and the datagram; TCP sends `POD<newline>` on connect and then every byte that comes. Listens
on the declared containerPorts of its protocol (or --port N in args, else 7).
"""

from __future__ import annotations

import asyncio

from labs.cluster.runtime.container import Container
from labs.cluster.serving import BACKLOG, Datagrams, leave_no_zombies, ports_of, serve_datagrams, wait_for_signal

DEFAULT_PORT = 7  # RFC 862


def tcp(container: Container) -> None:
    """Echo over TCP until told to stop."""
    leave_no_zombies()
    asyncio.run(_serve_tcp(container))


def udp(container: Container) -> None:
    """Echo over UDP until told to stop."""
    leave_no_zombies()
    asyncio.run(_serve_udp(container))


async def _serve_tcp(container: Container) -> None:
    greeting = f"{container.facts['pod']}\n".encode()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(greeting)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the client went away
        finally:
            writer.close()

    servers = [
        await asyncio.start_server(echo, None, port, backlog=BACKLOG)
        for port in ports_of(container, "TCP", DEFAULT_PORT)
    ]
    container.ready()
    await wait_for_signal()
    for server in servers:
        server.close()


class _Echo(Datagrams):
    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix

    def answer(self, data: bytes) -> bytes:
        return self._prefix + data


async def _serve_udp(container: Container) -> None:
    prefix = f"{container.facts['pod']} ".encode()
    for port in ports_of(container, "UDP", DEFAULT_PORT):
        await serve_datagrams(lambda: _Echo(prefix), port, container.facts["families"])
    container.ready()
    await wait_for_signal()

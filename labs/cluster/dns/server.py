"""The sockets of the DNS server, and following the API.

Stands for plugin/kubernetes/setup.go and controller.go (what is followed), core/dnsserver/server.go (time limits) and
the loops of miekg/dns (server.go). A bound on connections is ours: CoreDNS takes as many as it has memory for.

What belongs here: sockets, time limits, when to open. What does not: what is answered (`message`).
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from labs.cluster.apiclient import Mirror
from labs.cluster.dns.answer import ZONES, Responder
from labs.cluster.dns.index import Index
from labs.cluster.dns.memory import Memory
from labs.cluster.dns.metrics import Metrics
from labs.cluster.dns.metrics import serve as serve_http
from labs.cluster.resources import ENDPOINTSLICES, NAMESPACES, SERVICES
from labs.cluster.runtime.container import Container
from labs.cluster.serving import BACKLOG, Datagrams, leave_no_zombies, say, serve_datagrams, wait_for_signal

PORT = 53
SYNC_SECONDS = 5.0  # how long to wait for the API before serving all the same (InitKubeCache)
FIRST_SECONDS = 3.0  # ReadTimeout: from a connection to its first query
IDLE_SECONDS = 10.0  # IdleTimeout: from one query to the next
WRITE_SECONDS = 5.0  # WriteTimeout
MAX_CONNECTIONS = 1000  # beyond, the one that has been quiet for longest is closed (RFC 7766, 6.2.3)


def main(container: Container) -> None:
    """Be CoreDNS in `container`."""
    leave_no_zombies()
    asyncio.run(_run(container))


async def _run(container: Container) -> None:
    stopping = asyncio.create_task(wait_for_signal())
    families = list(container.facts["families"])
    server = Server(Responder(Index(), container.facts["addresses"]))
    index = server.responder.index
    synced = asyncio.Event()

    def changed() -> None:
        index.synced = True
        synced.set()

    mirror = Mirror((SERVICES, ENDPOINTSLICES, NAMESPACES), changed, on_object=index.change)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(mirror.run())
        await serve_http(server.metrics, lambda: index.synced, families)
        try:
            await asyncio.wait_for(synced.wait(), SYNC_SECONDS)
        except TimeoutError:
            say("[WARNING] plugin/kubernetes: starting server with unsynced Kubernetes API")
        await server.listen(families)
        for zone in ZONES:
            say(f"{zone}:{PORT}")
        await synced.wait()
        container.ready()
        await stopping
        following.cancel()


class Server:
    """Answers queries over UDP and TCP, and counts them."""

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self.metrics = Metrics()
        self._memory = Memory(responder)
        self._connections: dict[asyncio.StreamWriter, None] = {}  # the longest quiet first
        self._sockets: list[asyncio.DatagramTransport | asyncio.Server] = []

    async def listen(self, families: list[int], port: int = PORT) -> None:
        """Open the sockets on all addresses of `families` (4, 6)."""
        for family in families:
            self._sockets += await serve_datagrams(partial(_Queries, self, family), port, [family])
            host = "0.0.0.0" if family == 4 else "::"
            serve = partial(self.serve_connection, family)
            self._sockets.append(await asyncio.start_server(serve, host, port, backlog=BACKLOG))

    def close(self) -> None:
        """Close the sockets, and leave no connection."""
        for opened in self._sockets:
            opened.close()
        for writer in list(self._connections):
            writer.transport.abort()

    def answer(self, wire: bytes, protocol: str, family: int) -> bytes | None:
        """The response to one query; None for what deserves none."""
        began = time.perf_counter()
        response = self._memory.respond(wire, udp=protocol == "udp")
        if response is None:
            return None
        self.metrics.count(response, protocol, family, time.perf_counter() - began)
        return response.wire

    async def serve_connection(self, family: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the queries of one TCP connection in their order, each with its length in front (RFC 1035, 4.2.2)."""
        self._admit(writer)
        patience = FIRST_SECONDS
        try:
            while True:
                async with asyncio.timeout(patience):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    wire = await reader.readexactly(length)
                self._admit(writer)
                patience = IDLE_SECONDS
                response = self.answer(wire, "tcp", family)
                if response is not None:
                    writer.write(len(response).to_bytes(2, "big") + response)
                    async with asyncio.timeout(WRITE_SECONDS):
                        await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass
        finally:
            self._connections.pop(writer, None)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    def _admit(self, writer: asyncio.StreamWriter) -> None:
        """Count a connection as the one that was last heard of."""
        self._connections.pop(writer, None)
        self._connections[writer] = None
        if len(self._connections) > MAX_CONNECTIONS:
            quiet = next(iter(self._connections))
            del self._connections[quiet]
            quiet.transport.abort()


class _Queries(Datagrams):
    def __init__(self, server: Server, family: int) -> None:
        self._server = server
        self._family = family

    def answer(self, data: bytes) -> bytes | None:
        return self._server.answer(data, "udp", self._family)

"""Requests and answers: small sockets for tests, opened in a given namespace."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from tests.tracer.networks import Namespace

_TICK = 0.05  # how long a server's thread waits before it looks whether to stop


@contextlib.contextmanager
def listener(namespace: Namespace, address: str, port: int) -> Iterator[None]:
    """A TCP server in `namespace` that accepts whatever comes, and holds it until the client has closed."""

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(5)
            connection.recv(100)

    with _server(namespace, socket.SOCK_STREAM, address, port, serve):
        yield


@contextlib.contextmanager
def echo(namespace: Namespace, address: str, port: int) -> Iterator[None]:
    """A UDP server in `namespace` that sends back every datagram."""

    def serve(server: socket.socket) -> None:
        data, peer = server.recvfrom(2048)
        server.sendto(data, peer)

    with _server(namespace, socket.SOCK_DGRAM, address, port, serve):
        yield


@contextlib.contextmanager
def _server(
    namespace: Namespace, kind: int, address: str, port: int, serve: Callable[[socket.socket], None]
) -> Iterator[None]:
    """A bound socket and a thread that calls `serve` on it again and again."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def open_socket() -> socket.socket:
        server = socket.socket(family, kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        if kind == socket.SOCK_STREAM:
            server.listen(128)
        server.settimeout(_TICK)
        return server

    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                serve(server)

    with namespace.run(open_socket) as server:
        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def connect(namespace: Namespace, address: str, port: int, *, timeout: float = 5, family: int | None = None) -> int:
    """Connect from `namespace` and close; returns the local port. Raises OSError as connect() does."""

    def call() -> int:
        kind = family or (socket.AF_INET6 if ":" in address else socket.AF_INET)
        with socket.socket(kind, socket.SOCK_STREAM) as client:
            client.settimeout(timeout)
            client.connect((address, port))
            return int(client.getsockname()[1])

    return namespace.run(call)


def ask(
    namespace: Namespace,
    address: str,
    port: int,
    *,
    connected: bool,
    source_port: int = 0,
    timeout: float = 2,
    ports: list[int] | None = None,
) -> bytes | None:
    """Send one datagram from `namespace`; returns the answer, or None when none came or it was refused. The source port
    is added to `ports`.
    """

    def call() -> bytes | None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout)
            if source_port:
                client.bind(("", source_port))
            try:
                if connected:
                    client.connect((address, port))
                    client.send(b"hello")
                else:
                    client.sendto(b"hello", (address, port))
                if ports is not None:
                    ports.append(client.getsockname()[1])
                return client.recv(2048)
            except OSError:
                return None

    return namespace.run(call)

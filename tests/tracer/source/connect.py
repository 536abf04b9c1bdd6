"""Makes connections, in a process of its own so that it does not slow down who watches: `python connect.py …`.

Arguments: namespace of the clients, namespace of the servers, destination (ip:port), where the servers listen
(ip:port,ip:port,…), how many connections, how many a second. Prints the number made and the rate reached.
Connections are reset, so that no TIME_WAIT keeps a port.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time

from tracer import netns

_BATCH = 50


def _address(text: str) -> tuple[str, int]:
    ip, port = text.rsplit(":", 1)
    return ip, int(port)


def _listen(addresses: list[tuple[str, int]]) -> list[socket.socket]:
    servers = [socket.create_server(address, backlog=4096) for address in addresses]
    for server in servers:
        server.setblocking(False)
    return servers


def _accept(servers: list[socket.socket]) -> None:
    """Take what waits."""
    for server in servers:
        with contextlib.suppress(BlockingIOError):
            while True:
                server.accept()[0].close()


def _connect(destination: tuple[str, int], count: int, rate: float, servers: list[socket.socket]) -> float:
    """Connect `count` times and return the seconds that it took."""
    reset = struct.pack("ii", 1, 0)
    began = time.monotonic()
    for number in range(1, count + 1):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            client.connect(destination)
        if number % _BATCH == 0:
            _accept(servers)
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
    return time.monotonic() - began


def main() -> None:
    """See the module's docstring."""
    client_path, server_path, destination, listen, count, rate = sys.argv[1:]
    servers = netns.run_in(server_path, lambda: _listen([_address(text) for text in listen.split(",")]))
    seconds = netns.run_in(client_path, lambda: _connect(_address(destination), int(count), float(rate), servers))
    print(count, round(int(count) / seconds))


if __name__ == "__main__":
    main()

"""What goes over the socket between a runtime and its client: one JSON object for each packet, descriptors beside it.

Stands for the gRPC of the Container Runtime Interface. What does not belong here: what the messages mean.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

MAX_PACKET = 1 << 16  # well below what a socket takes at once (net.core.wmem_default)
MAX_DESCRIPTORS = 253  # SCM_MAX_FD, include/net/scm.h
# The packet that stands for a longer message, which is in a file in memory: the packet's first descriptor.
ELSEWHERE = b"{}"


def send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message with descriptors, which stay open here. Raises OSError, such as BlockingIOError."""
    data = json.dumps(message).encode()
    if len(data) <= MAX_PACKET:
        _send(connection, data, fds)
        return
    # A pod has the addresses of all Services of its namespace in its environment: of a thousand that is 300 kB.
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    with os.fdopen(memory, "wb") as file:
        file.write(data)
        file.flush()
        _send(connection, ELSEWHERE, (memory, *fds))


def _send(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([data], rights)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message with its descriptors; (None, []) when the other side is gone."""
    data, received, _, _ = socket.recv_fds(connection, MAX_PACKET, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    fds = list(received)
    if not data:
        for fd in fds:
            os.close(fd)
        return None, []
    if data == ELSEWHERE:
        with os.fdopen(fds.pop(0), "rb") as file:
            file.seek(0)
            data = file.read()
    return json.loads(data), fds

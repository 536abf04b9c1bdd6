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

MAX_MESSAGE = 1 << 17
MAX_DESCRIPTORS = 253  # SCM_MAX_FD, include/net/scm.h


def send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message with descriptors, which stay open here. Raises OSError, such as BlockingIOError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([json.dumps(message).encode()], rights)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message with its descriptors; (None, []) when the other side is gone."""
    data, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if not data:
        for fd in fds:
            os.close(fd)
        return None, []
    return json.loads(data), list(fds)

"""A node's first process: the container runtime of its pods. Stands for systemd and containerd in kind's node image."""

from __future__ import annotations

import socket

from labs.cluster.runtime.container import EXTRA_FD, Container
from labs.cluster.runtime.service import serve


def main(container: Container) -> None:
    """Serve the kubelet, over the socket that came with the container."""
    with socket.socket(fileno=EXTRA_FD) as connection:
        container.ready()
        serve(connection)

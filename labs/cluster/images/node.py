"""A node's first process: the container runtime of its pods. Stands for systemd and containerd in kind's node image."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from labs.cluster import linux
from labs.cluster.alternatives import select_iptables
from labs.cluster.runtime.container import EXTRA_FD, Container
from labs.cluster.runtime.service import serve

BPFFS = Path("/sys/fs/bpf")


def main(container: Container) -> None:
    """Serve the kubelet, over the socket that came with the container. Its argument: the node's variant of iptables."""
    mount_bpffs()
    select_iptables(*container.args)
    with socket.socket(fileno=EXTRA_FD) as connection:
        container.ready()
        serve(connection)


def mount_bpffs() -> None:
    """Give the node a bpffs of its own, as systemd does: what is pinned there goes when the node does."""
    if BPFFS.is_dir():
        with contextlib.suppress(OSError):  # a kernel without BPF
            linux.mount("bpf", str(BPFFS), "bpf", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "mode=700")

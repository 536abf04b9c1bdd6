"""What a container is to be (`ContainerSpec`), and what the program in it knows of itself (`Container`).

Stands for the OCI runtime's config.json. What does not belong here: how it is worked out from a Pod
(`labs.cluster.podspec`), and how it comes about (the modules beside this one).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NOTIFY_FD = 3  # where a container finds the pipe for `Container.notify`
EXTRA_FD = 4  # where a container finds the first extra descriptor


@dataclass(slots=True)
class Mount:
    """A mount that comes with the request, and where the container sees it."""

    target: str
    read_only: bool = False


@dataclass(slots=True)
class ContainerSpec:
    """All that a runtime needs to know to start one container.

    `hostname`: None shares the node's. `host_pid`: it sees the node's processes, and has none of its own. `netns` tells
    whether a sandbox's descriptor comes with the request; otherwise the network is the runtime's own. `files`: texts
    for /etc, by path. `mounts`: what is mounted in the container, in this order; the mounts' descriptors are the last
    ones of the request. `directory`: where its program starts. `wait_for_ports`: TCP ports that must listen before the
    container counts as started (for programs that can't tell). `keeps_machine`: it is a node, and makes root file
    systems for others. `streams` tells whether descriptors for stdin, stdout and stderr come with the request, rather
    than one for all output; `tty`: these are a terminal, which is to be the program's. `user`: as whom a command runs,
    as numbers of user, group and further groups; [] for root. `facts` is for the program: pod, namespace, node,
    addresses, ports.
    """

    id: str
    name: str
    image: str
    command: list[str] | None = None
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    hostname: str | None = None
    netns: bool = False
    host_pid: bool = False
    cgroup: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    mounts: list[Mount] = field(default_factory=list)
    directory: str = "/"
    keeps_machine: bool = False
    wait_for_ports: list[int] = field(default_factory=list)
    streams: bool = False
    tty: bool = False
    user: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class CommandSpec:
    """A further command for a container that runs. `id` is the command's, `container` that of the container; `user` as
    in ContainerSpec."""

    id: str
    container: str
    command: list[str]
    env: dict[str, str]
    cgroup: str | None = None
    tty: bool = False
    directory: str = "/"
    user: list[int] = field(default_factory=list)


Program = Callable[["Container"], None]


class Container:
    """What a program in a container knows of itself, and how it talks to the kubelet."""

    def __init__(self, spec: ContainerSpec) -> None:
        self.spec = spec
        self.args = spec.args
        self.facts = spec.facts

    def notify(self, line: str) -> None:
        """Tell the kubelet something, such as "ready" or "synced 42"."""
        with contextlib.suppress(OSError):
            os.write(NOTIFY_FD, f"{line}\n".encode())

    def ready(self) -> None:
        """Tell the kubelet that this program serves."""
        self.notify("ready")

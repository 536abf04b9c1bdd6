"""Source ports for flows that must be new: nobody uses them now, and no connection tracking remembers them.

What belongs here: choosing ports and keeping them ours for a while. What does not: sending from them (`wire`).

Ports that the kernel hands out by itself (net.ipv4.ip_local_port_range) are left to it. A port is kept by a socket that
is bound to it and does nothing else: so no other program gets it meanwhile, and for UDP the kernel does not tell who
answers that the port is closed.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Collection
from pathlib import Path

from tracer.errors import K8snetError
from tracer.probe.packets import Ends

MAX_KEPT = 500  # sockets at once: a process may have 1,024 files by default
LOWEST, HIGHEST = 16384, 65535
_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"


class Ports:
    """Source ports in the network namespace of the calling thread, each given once. A context manager."""

    def __init__(self, ends: Ends, count: int, remembered: Collection[int]) -> None:
        """count: how many will be taken. remembered: those of flows to the same destination that conntrack holds."""
        self._ends = ends
        self._free = _candidates(count, remembered)
        self._kept: dict[int, socket.socket] = {}

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, *_: object) -> None:
        for port in list(self._kept):
            self.release(port)

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest that may be taken. Call it before the first is."""
        return min(self._free), max(self._free)

    def take(self) -> int:
        """A port that no socket of this namespace has; ours until `release`, or until MAX_KEPT others were taken.

        Raises K8snetError when there is none left.
        """
        kind = socket.SOCK_DGRAM if self._ends.protocol == "UDP" else socket.SOCK_STREAM
        while self._free:
            port = self._free.pop()
            keeper = socket.socket(socket.AF_INET6 if self._ends.v6 else socket.AF_INET, kind | socket.SOCK_CLOEXEC)
            try:
                keeper.bind((self._ends.source, port))
            except OSError as error:
                keeper.close()
                if error.errno == errno.EADDRINUSE:
                    continue
                raise K8snetError(f"no port of {self._ends.source} can be had: {error.strerror}") from error
            if len(self._kept) >= MAX_KEPT:
                self.release(next(iter(self._kept)))
            self._kept[port] = keeper
            return port
        raise K8snetError("no source port is free for another flow", hint="try again in a minute, or with less --count")

    def release(self, port: int) -> None:
        """Let others have a port. Idempotent."""
        keeper = self._kept.pop(port, None)
        if keeper is not None:
            keeper.close()


def _candidates(count: int, remembered: Collection[int]) -> list[int]:
    """Ports to try, from the end of the list, in random order: those above the kernel's own range if they suffice."""
    low, high = _local_range()
    above = [port for port in range(high + 1, HIGHEST + 1) if port not in remembered]
    below = [port for port in range(LOWEST, low) if port not in remembered]
    enough = count * 2
    free = above if len(above) >= enough else above + below
    if len(free) < enough:
        free = [port for port in range(LOWEST, HIGHEST + 1) if port not in remembered]
    random.shuffle(free)
    return free


def _local_range() -> tuple[int, int]:
    low, high = Path(_RANGE).read_text().split()
    return int(low), int(high)

"""Networks to test in: namespaces that end with the process that made them, wired as a test needs them.

What belongs here: namespaces, links, addresses. What does not: cluster networks (labs), traffic (the tests themselves).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tracer import netns

T = TypeVar("T")


class Namespace:
    """A network namespace held by a thread of ours, so that nothing is left of it however we end."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._release = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._hold, name="namespace", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        self.tid = self._thread.native_id
        self.path = f"/proc/{os.getpid()}/task/{self.tid}/ns/net"
        self.inode = netns.inode(self.path)
        # Without duplicate address detection the first packets need not wait a second for it.
        self.sysctl("net.ipv6.conf.default.accept_dad", "0")
        self.sh("ip link set lo up")

    def _hold(self) -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(netns.CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
        except BaseException as error:
            self._error = error
        self._ready.set()
        if self._error is None:
            self._release.wait()

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in here; sockets that it opens stay in here."""
        return netns.run_in(self.path, function)

    def sh(self, *commands: str) -> str:
        """Run commands in here, each of which must succeed, and return what they print."""
        script = "set -e\n" + "\n".join(commands)
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", "sh", "-c", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl of this namespace only."""
        file = Path("/proc/sys", *name.split("."))
        self.run(lambda: file.write_text(value))

    def close(self) -> None:
        """Let go of it; the kernel removes it once its sockets are closed, too."""
        self._release.set()
        self._thread.join()
        while os.path.exists(self.path):  # noqa: PTH110 (Python's part of the thread has ended, the kernel's not yet)
            time.sleep(0.001)


def link(one: Namespace, one_device: str, other: Namespace, other_device: str) -> None:
    """Connect two namespaces by a veth pair, up on both sides."""
    one.sh(
        f"ip link add {one_device} type veth peer name {other_device} netns {other.tid}", f"ip link set {one_device} up"
    )
    other.sh(f"ip link set {other_device} up")


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Some namespaces, not connected."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            one = Namespace()
            stack.callback(one.close)
            made.append(one)
        yield made


SERVICE, SERVICE6 = "10.96.0.1", "fd00:96::1"


@contextlib.contextmanager
def routed() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """client (10.0.1.2, fd00:1::2) — router (.1) — server (10.0.2.2 to .4, fd00:2::2 to ::4), IPv4 and IPv6."""
    with namespaces(3) as (client, router, server):
        link(client, "eth0", router, "client")
        link(server, "eth0", router, "server")
        addresses = [
            f"ip address add 10.0.2.{i}/24 dev eth0; ip -6 address add fd00:2::{i}/64 dev eth0 nodad" for i in (2, 3, 4)
        ]
        client.sh("ip address add 10.0.1.2/24 dev eth0", "ip -6 address add fd00:1::2/64 dev eth0 nodad")
        server.sh(*addresses)
        router.sh("ip address add 10.0.1.1/24 dev client", "ip -6 address add fd00:1::1/64 dev client nodad")
        router.sh("ip address add 10.0.2.1/24 dev server", "ip -6 address add fd00:2::1/64 dev server nodad")
        router.sysctl("net.ipv4.ip_forward", "1")
        router.sysctl("net.ipv6.conf.all.forwarding", "1")
        client.sh("ip route add default via 10.0.1.1", "ip -6 route add default via fd00:1::1")
        server.sh("ip route add default via 10.0.2.1", "ip -6 route add default via fd00:2::1")
        yield client, router, server

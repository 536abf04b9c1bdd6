"""Networks to test in: namespaces that end with the process that made them, wired as a test needs them.

What belongs here: namespaces, links, addresses, and how rules get in. What does not: cluster networks (labs), which
rules, traffic (the tests themselves).

In an emulated guest starting a program takes a tenth of a second, and each test needs a network: so what is always the
same is done without one, and the rest by as few as can be.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import queue
import shlex
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from tracer import netns

T = TypeVar("T")

# include/uapi/linux/sockios.h, include/uapi/linux/if.h
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


class Namespace:
    """A network namespace held by a thread of ours, so that nothing is left of it however we end."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._starts: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._hold, name="namespace", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        self.tid = self._thread.native_id
        self.path = f"/proc/{os.getpid()}/task/{self.tid}/ns/net"
        self.inode = netns.inode(self.path)

    def _hold(self) -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(netns.CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            begin_network()
        except BaseException as error:
            self._error = error
        self._ready.set()
        if self._error is None:
            for start in iter(self._starts.get, None):
                start()

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in here; sockets that it opens stay in here."""
        return netns.run_in(self.path, function)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program in here; `options` are those of Popen."""
        outcome: Future[subprocess.Popen[str]] = Future()

        def start() -> None:
            try:
                outcome.set_result(subprocess.Popen(command, text=True, **options))
            except BaseException as error:
                outcome.set_exception(error)

        # By the thread that is in here already: neither nsenter nor a thread of its own has to be waited for.
        self._starts.put(start)
        return outcome.result()

    def execute(self, *command: str, given: str = "") -> str:
        """Run a program in here, which must succeed, and return what it prints. `given`: what it reads."""
        pipe = subprocess.PIPE
        with self.start(*command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            printed, complaint = process.communicate(given)
        assert process.returncode == 0, f"{shlex.join(command)}\n{given}{printed}{complaint}"
        return printed

    def sh(self, *commands: str) -> str:
        """Run commands in here, each of which must succeed, and return what they print."""
        return self.execute("sh", "-ec", "\n".join(commands))

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8), as `link set eth0 up`, by one process of it; each must succeed."""
        self.execute("ip", "-batch", "-", given="\n".join(commands) + "\n")

    def iptables(self, *rules: str, table: str = "filter", v6: bool = False) -> None:
        """Change a table by lines of iptables-save, as `-A INPUT -j DROP` or `:CHAIN -`; all of them or none."""
        text = "\n".join([f"*{table}", *rules, "COMMIT"])
        self.execute("ip6tables-restore" if v6 else "iptables-restore", "--noflush", given=f"{text}\n")

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl of this namespace only."""
        file = Path("/proc/sys", *name.split("."))
        self.run(lambda: file.write_text(value))

    def close(self) -> None:
        """Let go of it; the kernel removes it once its sockets are closed, too."""
        self._starts.put(None)
        self._thread.join()
        while os.path.exists(self.path):  # noqa: PTH110 (Python's part of the thread has ended, the kernel's not yet)
            time.sleep(0.001)


def begin_network() -> None:
    """What every network begins with, in the namespace of the calling thread."""
    # Without duplicate address detection the first packets need not wait a second for it.
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


def link(one: Namespace, one_device: str, other: Namespace, other_device: str) -> None:
    """Connect two namespaces by a veth pair, up on both sides."""
    one.ip(_veth(one_device, other, other_device), f"link set {one_device} up")
    other.ip(f"link set {other_device} up")


def _veth(device: str, other: Namespace, other_device: str) -> str:
    return f"link add {device} type veth peer name {other_device} netns {other.tid}"


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
        router.ip(
            _veth("client", client, "eth0"),
            _veth("server", server, "eth0"),
            "link set client up",
            "link set server up",
            "address add 10.0.1.1/24 dev client",
            "address add fd00:1::1/64 dev client nodad",
            "address add 10.0.2.1/24 dev server",
            "address add fd00:2::1/64 dev server nodad",
        )
        router.sysctl("net.ipv4.ip_forward", "1")
        router.sysctl("net.ipv6.conf.all.forwarding", "1")
        client.ip(*_end("1", "2"))
        server.ip(*_end("2", "2", "3", "4"))
        yield client, router, server


def _end(subnet: str, *hosts: str) -> Iterator[str]:
    """Commands of ip(8) that set up the end of a link to a router."""
    yield "link set eth0 up"
    for host in hosts:
        yield f"address add 10.0.{subnet}.{host}/24 dev eth0"
        yield f"address add fd00:{subnet}::{host}/64 dev eth0 nodad"
    yield f"route add default via 10.0.{subnet}.1"
    yield f"route add default via fd00:{subnet}::1"

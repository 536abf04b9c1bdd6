"""Where packets went that no program looked at: conntrack asked for many connections at once, in the kernel.

What belongs here: running bpf/lookups.c, and the network namespace that it runs in. What does not: when
(`tracer.source.watch`), asking for a single connection by netlink (`tracer.source.translations`).

The kernel's function that looks into a connection-tracking table takes the number that the caller's namespace has for
the table's ("nsid", ip-netns(8)). To give numbers would change the namespace where they hold, so we do it in one of our
own, which nobody else sees and which is gone with us. A number keeps no namespace alive.
"""

from __future__ import annotations

import ctypes
import os
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from tracer import libbpf, netns
from tracer.bpf import Programs
from tracer.errors import BackendUnavailable
from tracer.source.ringbuffer import RECORD_SIZE

# Macro of bpf/lookups.c -> the number that stands there for a kernel function, and which
FUNCTIONS = {
    "KERNEL_FUNCTION_LOOKUP": (0x7FFF0001, "bpf_skb_ct_lookup"),
    "KERNEL_FUNCTION_RELEASE": (0x7FFF0002, "bpf_ct_release"),
}
_DONE, _MORE, _UNKNOWN_CLIENT = range(3)  # enum progress
FINISHED_SIZE = 64 + RECORD_SIZE  # struct finished
_ENDS = struct.Struct("=Q56xQ")  # struct finished_ends: head, tail
_SEARCH = struct.Struct("=Q72xQ8x")  # struct search: client, ended_ns
_TABLES = struct.Struct("=II")  # struct tables: count, generation
_ONLY = struct.pack("=I", 0)

T = TypeVar("T")

RUNS = 512  # in one system call
# How long it may take until we know a namespace that is new on the way of a client that is not; and how long we
# believe that who translated the last connection, or that nobody did, is true of the next.
SCAN_SECONDS = 10.0
LEARNT_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0

# rtnetlink(7); include/uapi/linux/{rtnetlink,netlink,net_namespace}.h
_NEW_NSID, _GET_NSID = 88, 90
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_GENERAL = bytes(4)  # struct rtgenmsg, padded
_ATTRIBUTE = struct.Struct("=HHi")  # struct rtattr, and a value of 32 bits
_NSID, _FD, _ANY = 1, 3, -1


def defines() -> dict[str, int]:
    """What bpf/lookups.c is to be compiled with."""
    return {macro: number for macro, (number, _) in FUNCTIONS.items()}


class Lookups:
    """Makes records of the outcomes that wait in the programs' queue, from `begin` on. Use `close` at the end.

    Raises BackendUnavailable when the kernel refuses the program.
    """

    def __init__(self, programs: Programs) -> None:
        """`programs`: with bpf/lookups.c among them."""
        self._ends = programs.map("finished_ends", 4, _ENDS.size)
        self._tables = programs.map("tables", 4, _TABLES.size)
        self._searches = programs.map("searches", 4, _SEARCH.size)
        self._known_clients = programs.map("known_clients", 8, 4)
        self._count = self._generation = 0
        self._scanned = self._learnt = float("-inf")
        self._program = libbpf.load_classifier("look_up", programs.bytecode("look_up"), dict(FUNCTIONS.values()))
        self._worker: _Worker | None = None
        self._numbers: _Numbers | None = None

    def begin(self) -> None:
        """Make the namespace that it takes, unless it is there. Raises BackendUnavailable when that can't be made."""
        if self._numbers is not None:
            return
        self._worker = self._worker or _Worker()
        try:
            self._numbers = self._worker.call(_Numbers)
        except OSError as error:
            raise BackendUnavailable(f"no network namespace can be made: {error.strerror or error}") from error

    def settle(self) -> bool:
        """Make records of all outcomes that wait, in their order; False: none did."""
        if self._worker is None:
            return False
        head, tail = _ENDS.unpack(self._ends.get(_ONLY) or bytes(_ENDS.size))
        if head != tail:
            self._worker.call(self._settle)
        return bool(head != tail)

    def close(self) -> None:
        """Remove program and namespace."""
        if self._worker is not None:
            self._worker.close()
        if self._numbers is not None:
            self._numbers.close()
        os.close(self._program)

    def _settle(self) -> None:
        now = time.monotonic()
        if now - self._scanned >= SCAN_SECONDS:
            self._scan()
        elif now - self._learnt >= LEARNT_SECONDS:
            self._forget()
        while (progress := self._run()) != _DONE:
            if progress == _UNKNOWN_CLIENT:
                self._meet_client()

    def _run(self) -> int:
        try:
            return libbpf.run(self._program, RUNS)
        except InterruptedError:  # a signal came, which is the main thread's matter
            return _MORE

    def _meet_client(self) -> None:
        """The search that goes on is of a client whose namespace was not met before."""
        client, ended_ns = _SEARCH.unpack(self._searches.get(_ONLY) or bytes(_SEARCH.size))
        # All namespaces that its packets went through were there when the connection ended.
        if time.monotonic() - self._scanned >= time.time() - ended_ns / 1e9:
            self._scan()
        self._known_clients.set(client.to_bytes(8, sys.byteorder), _ONLY)

    def _scan(self) -> None:
        """Look for new namespaces."""
        assert self._numbers is not None
        self._scanned = time.monotonic()
        self._count = self._numbers.give(netns.every(max_age=0).values())
        self._forget()

    def _forget(self) -> None:
        """Have the programs learn anew which namespace translates what."""
        self._learnt = time.monotonic()
        self._generation = (self._generation + 1) & 0xFFFFFFFF
        self._tables.set(_ONLY, _TABLES.pack(self._count, self._generation))


class _Worker:
    """A thread that works while its caller waits: in a network namespace of its own, whatever fails, no other thread is
    ever in the wrong one. (concurrent.futures would do; it takes four times as long to hand over.)
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._loop, name="lookups", daemon=True).start()

    def call(self, function: Callable[[], T]) -> T:
        """Call a function there, and return or raise what it does."""
        self._work.put(function)
        result, error = self._done.get()
        if error is not None:
            raise error
        return cast(T, result)

    def close(self) -> None:
        """End the thread."""
        self._work.put(None)

    def _loop(self) -> None:
        for function in iter(self._work.get, None):
            try:
                self._done.put((function(), None))
            except BaseException as error:
                self._done.put((None, error))


class _Numbers:
    """A network namespace for the calling thread, and the numbers that others have in it.

    Raises OSError.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(netns.CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._netlink.settimeout(TIMEOUT_SECONDS)

    def close(self) -> None:
        """Let go of the namespace."""
        self._netlink.close()

    def give(self, paths: Iterable[str]) -> int:
        """Give a number to each namespace that has none; gives one more than the highest."""
        for path in paths:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # it is gone
            try:
                # The answer is an error where it has one already (EEXIST, net/core/net_namespace.c, rtnl_net_newid).
                self._ask(_NEW_NSID, _ACK, _ATTRIBUTE.pack(8, _NSID, _ANY) + _ATTRIBUTE.pack(8, _FD, fd))
                self._netlink.recv(4096)
            finally:
                os.close(fd)
        return 1 + max(self._given(), default=-1)

    def _given(self) -> Iterator[int]:
        """The numbers that there are."""
        self._ask(_GET_NSID, _DUMP, b"")
        while True:
            answer = self._netlink.recv(1 << 16)
            at = 0
            while at < len(answer):
                length, kind, *_ = _HEADER.unpack_from(answer, at)
                if kind != _NEW_NSID:
                    return
                yield _ATTRIBUTE.unpack_from(answer, at + _HEADER.size + len(_GENERAL))[2]
                at += length

    def _ask(self, kind: int, flags: int, attributes: bytes) -> None:
        length = _HEADER.size + len(_GENERAL) + len(attributes)
        self._netlink.send(_HEADER.pack(length, kind, _REQUEST | flags, 0, 0) + _GENERAL + attributes)

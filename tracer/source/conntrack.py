"""Connections as the kernel's connection tracking tells of them: for when BPF is not to be had.

What belongs here: one netlink socket for each network namespace, which namespaces those are, reading them in time. What
does not: what events mean together (`tracer.source.flows`), bytes (`tracer.ctnetlink`).

It knows no processes: netlink tells of packets, not of who sent them. And it sees only what is tracked: a namespace's
packets are from the first rule on that needs it, such as any of kube-proxy's. See `tracer.source.flows` for what it can
tell of outcomes, for connections that cross several namespaces, and for latencies.

Namespaces. Events are per namespace, and so is a socket: on kind, and in the miniature cluster, each node is a
namespace. Ours is listened to, those that are given, and those that are found, looked for every second. (One socket
with NETLINK_LISTEN_ALL_NSID would do only for namespaces that have an id in ours, and giving them one is a change.) A
socket keeps its namespace alive: when no process and no mount holds it any more, ours is closed, within three seconds.
What is new is heard from up to a second late.

It changes nothing; but while someone listens, the kernel composes messages for each connection
(net.netfilter.nf_conntrack_events is 2, automatic, by default since v5.19). Asking may load nf_conntrack_netlink, see
`tracer.conntrack`.

A connection makes four events in each namespace that tracks it, two of which only seldom tell something new. All told
they cost 21 µs of CPU: 10 % of a CPU at 5,000 connections a second through one namespace.
Nothing was lost at 17,000 a second, which was all that the generator could make (2 cores, Linux 6.18,
tests/tracer/source/connect.py). A loss is counted; a connection whose outcome was in a lost event is told as unknown
after five minutes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tracer import ctnetlink, netns
from tracer.errors import BackendUnavailable, K8snetError, MissingError, NotRoot
from tracer.source.flows import UDP_PATIENCE_NS, Arrival, Flows, Place, Record

# The kernel doubles it, and an event takes 1,280 bytes: four seconds of 12,000 connections a second.
BUFFER_BYTES = 64 << 20
MAX_NAMESPACES = 256
SCAN_SECONDS = 1.0
NAP_SECONDS = 0.02  # at a high rate events are read in batches, this far apart
NAP_ABOVE = 1_000  # events a second
_EVENT_BYTES = 4096  # the longest event has less than 1 KB
_IDLE_SECONDS = 0.5
_BLOCKED_NS = 20_000  # poll() that took longer than this had nothing to give at first
_EVENTS_SYSCTL = "/proc/sys/net/netfilter/nf_conntrack_events"


class _Listener(NamedTuple):
    """A socket that hears a namespace's events."""

    sock: socket.socket
    place: Place


class ConntrackSource:
    """A `tracer.source.Source` that listens to conntrack events.

    `paths`: namespaces to listen to beside our own, which must be there. `discover`: what gives the namespaces that
    there are, inode to path, called every SCAN_SECONDS in a thread; None looks for none. `buffer_bytes`: of each
    socket. Raises BackendUnavailable when the kernel can't tell us, NotRoot without CAP_NET_ADMIN, MissingError when a
    given namespace is gone.
    """

    backend = "conntrack"

    def __init__(
        self,
        paths: Iterable[str] = (),
        *,
        discover: Callable[[], Mapping[int, str]] | None = netns.every,
        buffer_bytes: int = BUFFER_BYTES,
        udp_patience: float = UDP_PATIENCE_NS / 1e9,
    ) -> None:
        self._buffer_bytes = buffer_bytes
        self._discover = discover
        self._flows = Flows(udp_patience_ns=round(udp_patience * 1e9))
        self._decode = ctnetlink.Decoder().decode
        self._lock = threading.RLock()  # guards all of what follows
        self._finished: list[Record] = []
        self._some_finished = threading.Condition(self._lock)
        self._listeners: dict[int, _Listener] = {}  # by file descriptor
        self._missing: set[int] = set()  # listened to, but not found by the last scan
        self._unheard: set[int] = set()  # namespaces that we can't listen to
        self._unheard_count = 0  # since the start
        self._lost_by_closed = 0
        self._swept_ns = time.monotonic_ns()
        self._failure: BaseException | None = None
        self._closed = threading.Event()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads: list[threading.Thread] = []
        try:
            self._open(paths)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ConntrackSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, timeout: float) -> Sequence[Record]:
        """See Source.read. What ended before the call is in its result, whatever the threads are at."""
        deadline = time.monotonic() + timeout
        with self._lock:
            if not self._closed.is_set():
                self._sweep_all(time.monotonic_ns() - self._swept_ns)
            while not self._finished and not self._closed.is_set() and self._failure is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._some_finished.wait(left)
            if self._failure is not None:
                raise self._failure
            finished, self._finished = self._finished, []
            return finished

    def has_room(self) -> bool:
        """See Source.has_room: nobody tells how full the buffer of a netlink socket is."""
        return False

    def losses(self) -> dict[str, int]:
        """See Source.losses. "netlink": events; "network namespaces": those that are there and not listened to."""
        with self._lock:
            lost = self._lost_by_closed + sum(ctnetlink.drops(one.sock) for one in self._listeners.values())
            counts = {"netlink": lost, "network namespaces": self._unheard_count}
        return {stage: count for stage, count in counts.items() if count}

    @property
    def namespaces(self) -> set[int]:
        """The inodes of the namespaces that are listened to."""
        with self._lock:
            return {one.place.inode for one in self._listeners.values()}

    def close(self) -> None:
        """See Source.close."""
        if self._closed.is_set():
            return
        self._closed.set()
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join()
        with self._lock:
            self._some_finished.notify_all()
            for fd in list(self._listeners):
                self._stop_listening(fd)
            self._epoll.close()
            os.close(self._wake)

    def _open(self, paths: Iterable[str]) -> None:
        """Listen to our own namespace, to those given and found, and start the threads."""
        self._epoll.register(self._wake, select.EPOLLIN)
        self._own = netns.own()
        with _as_unavailable():
            sock, _ = _open_events(self._buffer_bytes)
            self._listen(sock, self._own)
        for path in paths:
            self._add(path)
        if self._discover is not None:
            self._scan(self._discover())
            self._start(self._watch_namespaces, "conntrack namespaces")
        self._start(self._watch_events, "conntrack events")

    def _start(self, function: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=self._run, args=(function,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self, function: Callable[[], None]) -> None:
        """A thread: what it raises, the next `read` raises."""
        try:
            function()
        except BaseException as error:
            with self._lock:
                self._failure = error
                self._some_finished.notify_all()

    def _watch_events(self) -> None:
        """Wait for events, and read them at once when they are few, so that the times of reading are theirs."""
        while not self._closed.is_set():
            before_ns = time.monotonic_ns()
            self._epoll.poll(0 if self._flows.holding else _IDLE_SECONDS)
            now_ns = time.monotonic_ns()
            with self._lock:
                if self._closed.is_set():
                    return
                since_ns = now_ns - self._swept_ns
                count = self._sweep_all(0 if now_ns - before_ns > _BLOCKED_NS else since_ns)
                if self._finished:
                    self._some_finished.notify_all()
            if count * 1_000_000_000 > NAP_ABOVE * since_ns and count > 2:
                self._closed.wait(NAP_SECONDS)

    def _sweep_all(self, waited_ns: int) -> int:
        """Read all sockets, once more if that ended connections (see `tracer.source.flows`), and count the events."""
        count = self._sweep(waited_ns)
        self._flows.expire(self._swept_ns)
        if self._flows.holding:
            count += self._sweep(time.monotonic_ns() - self._swept_ns)
        return count

    def _sweep(self, waited_ns: int) -> int:
        """Read all sockets until they are empty, and count the events, which had waited for at most `waited_ns`."""
        arrival = Arrival(time.monotonic_ns(), waited_ns)
        decode, handle = self._decode, self._flows.handle
        count = 0
        for fd, _ in self._epoll.poll(0):
            listener = self._listeners.get(fd)
            if listener is None:
                continue
            receive, place = listener.sock.recv, listener.place
            while True:
                try:
                    data = receive(_EVENT_BYTES)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno == errno.ENOBUFS:  # told once for each overrun; `drops` has the number
                        continue
                    raise ctnetlink.wrapped(error) from error
                count += 1
                message = decode(data)
                if message is not None:
                    handle(place, message, arrival)
        self._swept_ns = time.monotonic_ns()
        self._finished += self._flows.settle(time.time_ns() - self._swept_ns)
        return count

    def _watch_namespaces(self) -> None:
        """Look for namespaces that come and go."""
        assert self._discover is not None
        while not self._closed.wait(SCAN_SECONDS):
            self._scan(self._discover())

    def _scan(self, found: Mapping[int, str]) -> None:
        """Listen to namespaces that are new, and no more to those that nobody but our socket holds."""
        with self._lock:
            heard = self.namespaces
            gone = heard - found.keys() - {self._own}
            for fd, listener in list(self._listeners.items()):
                if listener.place.inode in gone & self._missing:  # twice in a row: a path may be between two scans
                    self._stop_listening(fd)
            self._missing = gone
            self._unheard &= found.keys()  # inodes are used again
            new = found.keys() - heard - self._unheard
        for inode in sorted(new):
            try:
                if len(self.namespaces) >= MAX_NAMESPACES:
                    raise MissingError("too many network namespaces")
                self._add(found[inode])
            except K8snetError:
                if os.path.exists(found[inode]):  # noqa: PTH110 (Path.exists raises where it may not look)
                    with self._lock:
                        self._unheard.add(inode)
                        self._unheard_count += 1

    def _add(self, path: str) -> int:
        """Listen to the namespace at `path`, unless we do, and return its inode."""
        sock, inode = netns.run_in(path, lambda: _open_events(self._buffer_bytes))
        with self._lock:
            if inode in self.namespaces:
                sock.close()
            else:
                self._listen(sock, inode)
        return inode

    def _listen(self, sock: socket.socket, inode: int) -> None:
        self._listeners[sock.fileno()] = _Listener(sock, Place(inode))
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _stop_listening(self, fd: int) -> None:
        listener = self._listeners.pop(fd)
        self._lost_by_closed += ctnetlink.drops(listener.sock)
        self._epoll.unregister(fd)
        listener.sock.close()
        self._flows.forget(listener.place)


def _open_events(buffer_bytes: int) -> tuple[socket.socket, int]:
    """A socket for the events of the calling thread's namespace, and the inode of that.

    Raises MissingError when the kernel tells of none, NotRoot.
    """
    with ctnetlink.open_socket() as asking:
        ctnetlink.entries(asking)  # loads the module, where it is one
    with contextlib.suppress(OSError):  # not there in a user namespace
        if Path(_EVENTS_SYSCTL).read_text().strip() == "0":
            raise MissingError(
                "connection-tracking events are switched off (net.netfilter.nf_conntrack_events is 0)",
                hint="sysctl -w net.netfilter.nf_conntrack_events=2",
            )
    return ctnetlink.open_events(buffer_bytes), netns.own()


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    """Turn what the machine lacks into BackendUnavailable."""
    try:
        yield
    except NotRoot:
        raise
    except MissingError as error:
        raise BackendUnavailable(error.message, hint=error.hint) from error

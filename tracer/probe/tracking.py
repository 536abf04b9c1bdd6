"""Conntrack in every network namespace of the machine: which of them tracked a flow, and where it went from there.

What belongs here: listening while a probe runs, and putting together what several namespaces say of one flow. What
does not: bytes (`tracer.ctnetlink`), entries (`tracer.conntrack`).

A table read afterwards would not do: when the first thing that comes back is a RST, the kernel forgets the entry at
once (Linux net/netfilter/nf_conntrack_proto_tcp.c, nf_conntrack_tcp_packet). So the events are heard, and tables are
read only where there are none (net.netfilter.nf_conntrack_events is 0), or some were lost.

An entry exists from where the packet has passed all rules (nf_conntrack_confirm): what a rule drops or rejects after it
was translated leaves none.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tracer import conntrack, ctnetlink, netns
from tracer.conntrack import FlowTuple
from tracer.ctnetlink import IPPROTO_TCP, IPPROTO_UDP
from tracer.errors import K8snetError, MissingError, NotRoot
from tracer.probe.flows import Hop
from tracer.probe.packets import Ends

BUFFER_BYTES = 8 << 20
MAX_LISTENED = 256  # sockets; tables of other namespaces are read
_EVENT_BYTES = 4096
_EVENTS_SYSCTL = "/proc/sys/net/netfilter/nf_conntrack_events"


class Tracking:
    """What is tracked of one probe's flows. A context manager; listens from the start."""

    def __init__(self, ends: Ends, paths: Mapping[int, str]) -> None:
        """paths: the namespaces, by inode. Raises NotRoot without CAP_NET_ADMIN."""
        self._protocol = IPPROTO_UDP if ends.protocol == "UDP" else IPPROTO_TCP
        self._family = 6 if ends.v6 else 4
        self._source, self._destination = _packed(ends.source), _packed(ends.destination)
        self._port = ends.port
        self._paths = dict(paths)
        self._decode = ctnetlink.Decoder().decode
        self._sockets: dict[int, socket.socket] = {}  # by inode
        self._deaf: set[int] = set()  # namespaces that track and tell no events
        self._wanted: set[FlowTuple] = set()
        self._replies: dict[FlowTuple, dict[int, FlowTuple]] = {}  # original tuple → namespace → reply
        self._early: list[tuple[int, FlowTuple, FlowTuple]] = []  # of no flow that we know, yet
        try:
            self._listen()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more. Idempotent."""
        while self._sockets:
            self._sockets.popitem()[1].close()

    def filenos(self) -> list[int]:
        """What to wait on for events."""
        return [sock.fileno() for sock in self._sockets.values()]

    def remembered(self) -> set[int]:
        """Source ports of flows between the same ends that some table holds, perhaps of an earlier probe."""
        ports = set()
        for _, original, _ in self._tables(self._sockets.keys() | self._deaf):
            if (original.src, original.dst, original.dport) == (self._source, self._destination, self._port):
                ports.add(original.sport)
        return ports

    def expect(self, port: int) -> None:
        """A flow begins, from this source port."""
        self._wanted.add(self._original(port))

    def read(self) -> None:
        """Take in the events that have come."""
        fresh = [event for inode in self._sockets for event in self._events(inode)]
        # A later namespace's event may have been read before that of an earlier one, whose socket was empty by then.
        self._keep(self._early + fresh)
        self._early = [event for event in fresh if event[1] not in self._wanted]

    def tracked(self, port: int) -> bool:
        """Whether any namespace is known to have tracked the flow from this source port."""
        return self._original(port) in self._replies

    def settle(self) -> None:
        """Take in the last events, and read the tables of namespaces where events are missing."""
        self.read()
        lossy = {inode for inode, sock in self._sockets.items() if ctnetlink.drops(sock)}
        self._keep(list(self._tables(self._deaf | lossy)))
        self.read()

    def hops(self, port: int) -> tuple[Hop, ...]:
        """The namespaces that translated the flow from this source port, in order, and what to."""
        hops: list[Hop] = []
        current = self._original(port)
        passed: set[int] = set()
        while True:
            here = self._replies.get(current, {})
            translated = [inode for inode, reply in here.items() if inode not in passed and _next(reply) != current]
            passed |= here.keys()
            if not translated:
                return tuple(hops)
            after = _next(here[translated[0]])
            dnat = (after.dst, after.dport) != (current.dst, current.dport)
            hops.append(Hop(translated[0], current.src_text, after.dst_text, after.dport, dnat))
            current = after

    def _listen(self) -> None:
        for inode, path in self._paths.items():
            try:
                sock = netns.run_in(path, _open_events) if len(self._sockets) < MAX_LISTENED else None
            except NotRoot:
                raise
            except K8snetError:
                continue  # gone, or it tracks nothing
            if sock is None:
                self._deaf.add(inode)
            else:
                self._sockets[inode] = sock

    def _events(self, inode: int) -> Iterator[tuple[int, FlowTuple, FlowTuple]]:
        """New entries that wait in a namespace's socket: where, what was asked, what answers."""
        receive = self._sockets[inode].recv
        while True:
            try:
                message = self._decode(receive(_EVENT_BYTES))
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: some were lost, `settle` sees to it
                continue
            if message is not None and message.kind == ctnetlink.NEW and message.protocol == self._protocol:
                yield inode, FlowTuple(*message[3:7]), FlowTuple(*message[7:11])

    def _tables(self, inodes: Iterable[int]) -> Iterator[tuple[int, FlowTuple, FlowTuple]]:
        for inode in inodes:
            path = self._paths[inode]
            with contextlib.suppress(MissingError):  # gone
                if conntrack.count(path):
                    for entry in conntrack.dump(path, family=self._family, protocol=self._protocol):
                        yield inode, entry.orig, entry.reply

    def _keep(self, events: list[tuple[int, FlowTuple, FlowTuple]]) -> None:
        """Take what is about our flows, also as translated by a namespace before: until nothing more is."""
        found = True
        while found:
            found = False
            for inode, original, reply in events:
                replies = self._replies.setdefault(original, {}) if original in self._wanted else None
                if replies is not None and inode not in replies:
                    replies[inode] = reply
                    self._wanted.add(_next(reply))
                    found = True

    def _original(self, port: int) -> FlowTuple:
        return FlowTuple(self._source, port, self._destination, self._port)


def _next(reply: FlowTuple) -> FlowTuple:
    """What packets look like once translated: the answers' tuple, reversed."""
    return reply.reversed()


def _open_events() -> socket.socket | None:
    """A socket for the events of the calling thread's namespace; None where they are switched off.

    Raises MissingError where nothing is tracked.
    """
    with contextlib.suppress(OSError):  # not there in a user namespace
        if Path(_EVENTS_SYSCTL).read_text().strip() == "0":
            return None
    return ctnetlink.open_events(BUFFER_BYTES)


def _packed(ip: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip)

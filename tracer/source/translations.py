"""Translations that the BPF programs did not see being made: those of long-lived flows, and of packets never sent.

What belongs here: filling the programs' map `translations` from the connection-tracking table at the start, and
asking that table about a request that failed without any translation seen. What does not: netlink
(`tracer.conntrack`), records (`tracer.source.live`).

A flow that was translated before the trace began is not translated anew, so no hook tells of it. And where the next
hop does not answer ARP, the tracepoint backend sees no packet leave: a Service that leads to a pod that is gone is
just such a case.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from tracer import conntrack, netns
from tracer.bpf import RawMap
from tracer.ctnetlink import IPS_DST_NAT, IPS_NAT_MASK, IPS_SEEN_REPLY, IPS_SRC_NAT
from tracer.errors import K8snetError
from tracer.events import AF_INET, AF_INET6, Flag

# struct tuple in bpf/include/kernel_fields.h: source, destination, their ports (network order), l3, protocol
TUPLE = struct.Struct("=16s16s2s2sHBx")
# struct translation in bpf/connections.c: after, netns, status, time_ns
TRANSLATION = struct.Struct(f"={TUPLE.size}sIIQ")
COUNT = struct.Struct("=I")  # how often a tuple with such a destination was stored
MAX_HOPS = 3  # MAX_TRANSLATIONS in bpf/connections.c
_DESTINATION = struct.Struct("=16x4I2xH4x")  # the same bytes, as destination_hash in bpf/connections.c sees them
LOOK_AGAIN_SECONDS = 5.0  # how long a namespace without entries is believed to track nothing
MAX_QUESTIONS_PER_SECOND = 20


class Translated(NamedTuple):
    """Where a request went. `flags`: of Flag; `netns`: of the namespace that translated; address of 16 bytes, port.

    `answered`: whether the connection-tracking table has seen an answer to it.
    """

    flags: int
    netns: int
    destination: bytes
    port: int
    answered: bool = False


def pack_tuple(protocol: int, flow: conntrack.FlowTuple) -> bytes:
    """A flow's tuple as the programs' maps have it for a key."""
    l3 = AF_INET if len(flow.src) == 4 else AF_INET6
    source, destination = flow.src.ljust(16, b"\0"), flow.dst.ljust(16, b"\0")
    return TUPLE.pack(source, destination, flow.sport.to_bytes(2, "big"), flow.dport.to_bytes(2, "big"), l3, protocol)


class Translations:
    """The programs' map of translations, and the connection-tracking tables of the machine's namespaces behind it.

    `destinations`: the programs' map of how often something was stored in it, by destination.
    """

    def __init__(self, known: RawMap, destinations: RawMap) -> None:
        self._known = known
        self._destinations = destinations
        self._closed = threading.Event()
        self._tracking: dict[tuple[int, str], bool] = {}  # inodes are used again
        self._look_again = 0.0
        self._asked: deque[float] = deque(maxlen=MAX_QUESTIONS_PER_SECOND)

    def seed(self, namespaces: Iterable[tuple[int, str]]) -> None:
        """Store the flows that were translated before now; `namespaces`: inode, path. What can't be read is left
        out.
        """
        for inode, path in namespaces:
            with contextlib.suppress(K8snetError, OSError):
                for entry in conntrack.existing(path):
                    if self._closed.is_set():
                        return
                    self._store(entry, inode)

    def close(self) -> None:
        """End a seeding that is under way: the map is about to go."""
        self._closed.set()

    def follow(self, request: bytes) -> Translated:
        """Where the programs' map says that packets with the packed tuple `request` went; see follow_translations in
        C.
        """
        flags = namespace = 0
        for _ in range(MAX_HOPS):
            found = self._known.get(request)
            if found is None:
                break
            request, where, status, _ = TRANSLATION.unpack(found)
            flags |= _flags(status)
            if status & IPS_DST_NAT or not namespace:
                namespace = where
        _, destination, _, port, _, _ = TUPLE.unpack(request)
        return Translated(flags, namespace, destination, int.from_bytes(port, "big"))

    def ask(self, protocol: int, flow: conntrack.FlowTuple) -> Translated | None:
        """What the namespaces' own tables say of this flow: that of one that translates it, else that of one that has
        seen an answer, else None.

        Costs a thread and a system call or two for each namespace that tracks connections, so at most
        MAX_QUESTIONS_PER_SECOND questions are asked; the others get None.
        """
        now = time.monotonic()
        if len(self._asked) == self._asked.maxlen and now - self._asked[0] < 1:
            return None
        self._asked.append(now)
        answered: Translated | None = None
        for inode, path in self._tables(now):
            with contextlib.suppress(K8snetError, OSError):
                entry = conntrack.find(path, protocol, flow)
                if entry is None:
                    continue
                after, seen = entry.reply.reversed(), bool(entry.status & IPS_SEEN_REPLY)
                found = Translated(_flags(entry.status), inode, after.dst.ljust(16, b"\0"), after.dport, seen)
                if found.flags:
                    return found
                answered = found if seen else answered
        return answered

    def _tables(self, now: float) -> list[tuple[int, str]]:
        """The namespaces that track connections: those that had entries when last looked at."""
        namespaces = netns.every()
        if now >= self._look_again:
            self._look_again = now + LOOK_AGAIN_SECONDS
            self._tracking = {namespace: _tracks(namespace[1]) for namespace in namespaces.items()}
        return [namespace for namespace in namespaces.items() if self._tracking.get(namespace, True)]

    def _store(self, entry: conntrack.Entry, inode: int) -> None:
        status = entry.status & IPS_NAT_MASK
        after = pack_tuple(entry.protocol, entry.reply.reversed())
        original = pack_tuple(entry.protocol, entry.orig)
        destination = _destination_hash(original).to_bytes(4, sys.byteorder)
        if self._destinations.get(destination) == bytes(COUNT.size):
            self._destinations.set(destination, COUNT.pack(1))
        self._known.set(original, TRANSLATION.pack(after, inode, status, 0))


def _destination_hash(packed: bytes) -> int:
    """As in bpf/connections.c: 13 bits of a packed tuple's destination."""
    a, b, c, d, port = map(int, _DESTINATION.unpack(packed))
    return ((a ^ b ^ c ^ d ^ port) * 0x9E3779B1 & 0xFFFFFFFF) >> 19


def _tracks(path: str) -> bool:
    try:
        return conntrack.count(path) > 0
    except (K8snetError, OSError):
        return False


def _flags(status: int) -> int:
    return (Flag.SNAT if status & IPS_SRC_NAT else 0) | (Flag.DNAT if status & IPS_DST_NAT else 0)

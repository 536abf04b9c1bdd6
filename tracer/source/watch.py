"""Looking at every packet that leaves, or asking conntrack afterwards where connections went: which of the two.

What belongs here: when to change from one to the other, and how without a gap. What does not: asking
(`tracer.source.lookups`), looking at packets that arrive (`tracer.source.arrivals`).

The tracepoint backend learns of a translation from the packets that leave: at once, and of UDP, too. But a short TCP
connection that crosses a few devices is thirty packets, and to be called for each of them is half of what the whole
trace costs. That matters only where thousands of connections are made a second. There, and while nobody sends
datagrams, conntrack is asked instead, about some hundred connections at a time. What leads back: a datagram (the hook
at send() tells), or what conntrack may not tell for sure (`want_packets` in bpf/connections.c).
"""

from __future__ import annotations

import struct
import time

from tracer import btf
from tracer.bpf import Attachment, Hook, Kind, Programs
from tracer.errors import BackendUnavailable
from tracer.source.lookups import FUNCTIONS, Lookups

BUSY_RATE = 1000.0  # connections per second from which on packets are not looked at
CALM_RATE = 300.0  # and below which they are again
WINDOW_SECONDS = 0.25  # over which at least they are counted
CALM_WINDOWS = 4  # with so many calm ones in a row it is calm
# How long nothing must have asked for a look at packets, as datagrams do. Twice as long after each time that something
# did once nobody looked: its record says less.
QUIET_SECONDS = 0.5
MAX_QUIET_SECONDS = 64.0

_SENDS = "sock_send_length"
_ONLY = struct.pack("=I", 0)
_WATCH = struct.Struct("=QQ")  # struct watch: since_ns, queued
_NEVER = 2**64 - 1


def can_ask() -> bool:
    """Whether this kernel has what asking takes: Linux 6.3 and later, with the types of nf_conntrack where that is a
    module.
    """
    return btf.knows([name for _, name in FUNCTIONS.values()], [_SENDS])


class Watch:
    """Attaches and detaches the hook that looks at packets. It is attached at first. Use `close` at the end.

    Raises BackendUnavailable where this kernel, for all that `can_ask` says, can't ask: its functions for that may
    change (net/netfilter/nf_conntrack_bpf.c calls them unstable).
    """

    def __init__(self, programs: Programs, packets: Attachment, kind: Kind, *, busy_rate: float = BUSY_RATE) -> None:
        """`packets`: the hook; `kind`: how tracepoints are attached."""
        self._packets = packets
        self._busy_rate = busy_rate
        self._map = programs.map("watch", 4, _WATCH.size)
        self._wanted_map = programs.map("packets_wanted", 4, 8)
        self._sends = programs.load(Hook(kind, _SENDS, f"on_{_SENDS}"))
        self._lookups = Lookups(programs)
        self._possible = True
        self._queued = False
        self._since_ns = 0
        self._quiet_seconds = QUIET_SECONDS
        self._left = 0.0
        self._disturbed = float("-inf")
        self._wanted = bytes(8)
        self._counted, self._counted_since, self._calm = 0, time.monotonic(), 0

    @property
    def since_ns(self) -> int:
        """Packets of requests that began then or later were looked at; by CLOCK_MONOTONIC."""
        return self._since_ns

    @property
    def looks(self) -> bool:
        """Whether packets are looked at."""
        return self._since_ns != _NEVER

    def settle(self) -> None:
        """Bring the outcomes that wait to the ring buffer."""
        if not self._lookups.settle() and self._queued and self.looks:
            self._tell(queued=False)

    def tick(self, now: float, ended: int, datagram: float) -> None:
        """Change, if it is time. `ended`: connections since the last call; `datagram`: when the last one was sent.

        Times are of time.monotonic().
        """
        if not self.looks and (datagram > self._left or self._wanted_map.get(_ONLY) != self._wanted):
            self._quiet_seconds = min(MAX_QUIET_SECONDS, 2 * self._quiet_seconds)
            self._disturbed = now
            self._look()
        self._counted += ended
        seconds = now - self._counted_since
        if seconds < WINDOW_SECONDS:
            return
        rate = self._counted / seconds
        self._counted, self._counted_since = 0, now
        self._calm = self._calm + 1 if rate < min(CALM_RATE, self._busy_rate) else 0
        if not self.looks and self._calm >= CALM_WINDOWS:
            self._look()
            return
        quiet = now - max(datagram, self._disturbed)
        if self.looks and self._possible and rate >= self._busy_rate and quiet >= self._quiet_seconds:
            self._look_away(now)

    def close(self) -> None:
        """Stop asking."""
        self._lookups.close()

    def _look_away(self, now: float) -> None:
        try:
            self._lookups.begin()
            self._sends.attach()
        except BackendUnavailable:
            self._possible = False
            return
        self._left = now
        self._wanted = self._wanted_map.get(_ONLY) or bytes(8)
        self._since_ns = _NEVER
        self._tell(queued=True)
        self._packets.detach()

    def _look(self) -> None:
        self._packets.attach()
        self._sends.detach()
        self._since_ns = time.monotonic_ns()
        self._tell(queued=True)

    def _tell(self, *, queued: bool) -> None:
        self._queued = queued
        self._map.set(_ONLY, _WATCH.pack(self._since_ns, queued))

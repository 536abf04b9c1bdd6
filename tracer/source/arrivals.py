"""Looking at every arriving packet, for UDP's answers, only while some process uses UDP.

What belongs here: when that hook is attached, and when the programs stop looking. What does not: what it does
(`bpf/hooks_common.c`), loading programs (`tracer.bpf`).

A packet that crosses a few devices costs the mere call of the hook at each of them: 2 µs of the 150 that a short TCP
connection through two nodes takes. Most answers are seen without it, where the packet is queued for a device; it is
for what comes in by a real network card for a process of the node itself. The first datagram after a quiet time is
noticed up to a sweep of the ring buffer too late for that, see LiveSource._completed.
"""

from __future__ import annotations

import struct
import time

from tracer.bpf import Attachment, RawMap

IDLE_SECONDS = 2.0  # of no datagram

_SENT, _SETTLED = struct.pack("=I", 0), struct.pack("=I", 1)


class Arrivals:
    """Attaches the hook when datagrams are sent, and detaches it when that is over. Attached at first."""

    def __init__(self, hook: Attachment, attention: RawMap) -> None:
        """`attention`: the programs' map of when a datagram was last sent, and of which time they need not mind."""
        self._hook = hook
        self._attention = attention
        self._seen: bytes | None = None
        self._settled: bytes | None = None
        self._used = time.monotonic()
        self._hook.attach()

    @property
    def used(self) -> float:
        """When a datagram was last seen to have been sent, by time.monotonic(); at first, when this began."""
        return self._used

    def tick(self, now: float) -> None:
        """Look whether UDP is in use; `now` of time.monotonic(). Called with each sweep of the ring buffer."""
        sent = self._attention.get(_SENT)
        if sent != self._seen:
            self._seen, self._used = sent, now
            self._hook.attach()
        elif sent is not None and sent != self._settled and now - self._used > IDLE_SECONDS:
            self._attention.set(_SETTLED, sent)
            self._settled = sent
            self._hook.detach()

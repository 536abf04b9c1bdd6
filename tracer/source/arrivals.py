"""Looking at every arriving packet, for UDP's answers, only while some process uses UDP.

What belongs here: when that hook is attached. What does not: what it does (`bpf/hooks_common.c`), loading programs
(`tracer.bpf`).

A packet that crosses a few devices costs the mere call of the hook at each of them: 2 µs of the 150 that a short TCP
connection through two nodes takes. Most answers are seen without it, where the packet is queued for a device; it is
for what comes in by a real network card for a process of the node itself. The first datagram after a quiet time is
noticed up to a sweep of the ring buffer too late for that, see LiveSource._completed.
"""

from __future__ import annotations

import struct
import time

from tracer.bpf import Attachment, RawMap

IDLE_SECONDS = 2.0  # of no datagram; shorter than the programs' own ATTENTION_JIFFIES

_FIRST = struct.pack("=I", 0)


class Arrivals:
    """Attaches the hook when datagrams are sent, and detaches it when that is over. Attached at first."""

    def __init__(self, hook: Attachment, attention: RawMap) -> None:
        """`attention`: the programs' map `attention_until`, which each datagram that is sent moves on."""
        self._hook = hook
        self._attention = attention
        self._seen: bytes | None = None
        self._used = time.monotonic()
        self._hook.attach()

    def tick(self, now: float) -> None:
        """Look whether UDP is in use; `now` of time.monotonic(). Called with each sweep of the ring buffer."""
        until = self._attention.get(_FIRST)
        if until != self._seen:
            self._seen, self._used = until, now
            self._hook.attach()
        elif now - self._used > IDLE_SECONDS:
            self._hook.detach()

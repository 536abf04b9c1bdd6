"""Where connections come from: live BPF, conntrack netlink. One protocol, so that the rest can be tested with a fake.

What belongs here: turning what the kernel tells into `RawConnection`s. What does not: names, filters, output.
A recording (`tracer.recording`) is no source: its records are already named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tracer.events import RawConnection


class Source(Protocol):
    """A running source: its constructor attaches everything, or raises BackendUnavailable; `close` ends it."""

    backend: str  # fentry, kprobe, tracepoint, conntrack

    def read(self, timeout: float) -> Sequence[RawConnection | tuple[int, int, int, bytes]]:
        """The connections that ended since the last call, in order of their end.

        Waits at most `timeout` seconds for the first one; returns an empty sequence when there was none.
        Items may be plain tuples laid out as RawConnection; a `tracer.batch.Batch` of them is quickest.
        """
        ...

    def has_room(self) -> bool:
        """Whether what waits to be read leaves room for three times as much: whoever reads may then come later."""
        ...

    def losses(self) -> dict[str, int]:
        """Events lost since the start, by stage (names such as "ring buffer", "socket map"), zero counts left out."""
        ...

    def close(self) -> None:
        """Detach everything. Idempotent."""
        ...

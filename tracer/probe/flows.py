"""One flow of a probe, and what became of it.

What belongs here: the flow as a value that fills as things are learned. What does not: learning them (`wire`,
`tracking`), counting them (`report`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple


class Answer(enum.Enum):
    """What came back. The words are those of the report."""

    ANSWERED = "answered"  # SYN-ACK, or a datagram
    RESET = "reset"  # RST: nobody listens, or a rule says --reject-with tcp-reset
    PORT_UNREACHABLE = "port unreachable"  # ICMP: nobody listens, or a rule says REJECT
    PROHIBITED = "prohibited"  # ICMP: a rule says so
    UNREACHABLE = "unreachable"  # ICMP: no way to the address


class Hop(NamedTuple):
    """A network namespace whose connection tracking translated the flow: to where packets went from there.

    source: the address that they came from. dnat: whether the destination changed.
    """

    inode: int
    source: str
    ip: str
    port: int
    dnat: bool


@dataclass(slots=True)
class Flow:
    """A flow that the probe begins. sequence: of its SYN. times: monotonic seconds; `sent_at` None: not sent (yet).

    hops: how it was tracked, in order; () when no connection tracking saw it. held_back: the sending namespace's own
    rules dropped it before it left.
    """

    port: int
    sequence: int
    payload: bytes = b""
    sent_at: float | None = None
    held_back: bool = False
    answer: Answer | None = None
    answered_at: float | None = None
    answered_by: str | None = None  # the address that it came from, and the port
    answered_from: int | None = None
    data: bytes = b""
    hops: tuple[Hop, ...] = ()

    @property
    def translator(self) -> int | None:
        """The inode of the namespace whose rules chose the backend: the last that changed the destination."""
        return next((hop.inode for hop in reversed(self.hops) if hop.dnat), None)

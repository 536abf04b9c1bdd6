"""When arriving packets are looked at."""

from __future__ import annotations

import struct

from tracer.bpf import Attachment, RawMap
from tracer.source.arrivals import IDLE_SECONDS, Arrivals

SENT, SETTLED = struct.pack("=I", 0), struct.pack("=I", 1)


class Hook(Attachment):
    """A hook that is attached, or not."""

    def __init__(self) -> None:
        self.attached = False

    def attach(self) -> None:
        self.attached = True

    def detach(self) -> None:
        self.attached = False


class Map(RawMap):
    """The programs' map; counts what user space writes."""

    def __init__(self, sent: bytes) -> None:
        self.held = {SENT: sent, SETTLED: bytes(8)}
        self.writes = 0

    def get(self, key: bytes) -> bytes | None:
        return self.held.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        self.writes += 1
        self.held[key] = value


def test_the_hook_is_there_from_a_datagram_until_a_quiet_time_has_passed() -> None:
    hook, attention = Hook(), Map(bytes(8))
    arrivals = Arrivals(hook, attention)
    assert hook.attached  # before anybody has looked
    arrivals.tick(100.0)
    arrivals.tick(100.1 + IDLE_SECONDS)
    assert not hook.attached

    attention.held[SENT] = datagram = struct.pack("=Q", 4711)
    arrivals.tick(110.0)
    assert hook.attached
    arrivals.tick(110.0 + IDLE_SECONDS)
    assert hook.attached
    assert attention.held[SETTLED] != datagram  # the programs look, too
    arrivals.tick(110.1 + IDLE_SECONDS)
    assert not hook.attached
    assert attention.held[SETTLED] == datagram


def test_what_is_settled_is_written_once() -> None:
    attention = Map(struct.pack("=Q", 5))
    arrivals = Arrivals(Hook(), attention)
    for number in range(100):
        arrivals.tick(100.0 + number)
    assert attention.writes == 1

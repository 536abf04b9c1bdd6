"""When arriving packets are looked at."""

from __future__ import annotations

import struct

from tracer.source.arrivals import IDLE_SECONDS, Arrivals

SENT, SETTLED = struct.pack("=I", 0), struct.pack("=I", 1)


class Hook:
    """A hook that is attached, or not."""

    def __init__(self) -> None:
        self.attached = False

    def attach(self) -> None:
        self.attached = True

    def detach(self) -> None:
        self.attached = False


class Map(dict[bytes, bytes]):
    """The programs' map; counts what user space writes."""

    writes = 0

    def set(self, key: bytes, value: bytes) -> None:
        self.writes += 1
        self[key] = value


def test_the_hook_is_there_from_a_datagram_until_a_quiet_time_has_passed() -> None:
    hook, attention = Hook(), Map({SENT: bytes(8), SETTLED: bytes(8)})
    arrivals = Arrivals(hook, attention)  # type: ignore[arg-type]
    assert hook.attached  # before anybody has looked
    arrivals.tick(100.0)
    arrivals.tick(100.1 + IDLE_SECONDS)
    assert not hook.attached

    attention[SENT] = datagram = struct.pack("=Q", 4711)
    arrivals.tick(110.0)
    assert hook.attached
    arrivals.tick(110.0 + IDLE_SECONDS)
    assert hook.attached
    assert attention[SETTLED] != datagram  # the programs look, too
    arrivals.tick(110.1 + IDLE_SECONDS)
    assert not hook.attached
    assert attention[SETTLED] == datagram


def test_what_is_settled_is_written_once() -> None:
    attention = Map({SENT: struct.pack("=Q", 5), SETTLED: bytes(8)})
    arrivals = Arrivals(Hook(), attention)  # type: ignore[arg-type]
    for number in range(100):
        arrivals.tick(100.0 + number)
    assert attention.writes == 1

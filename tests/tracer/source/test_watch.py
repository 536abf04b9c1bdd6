"""When packets are looked at, and when conntrack is asked instead."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from unittest import mock

import pytest

from tests.tracer.source.test_arrivals import Hook
from tracer.bpf import Kind, Programs, RawMap
from tracer.errors import BackendUnavailable
from tracer.source import watch
from tracer.source.watch import CALM_WINDOWS, MAX_QUIET_SECONDS, QUIET_SECONDS, WINDOW_SECONDS, Watch

ALWAYS, NEVER = 0, 2**64 - 1
ONLY = struct.pack("=I", 0)
LONG_AGO = -1000.0
BUSY = 5000


class Map(RawMap):
    """An array of one value."""

    def __init__(self, size: int) -> None:
        self.held = bytes(size)

    def get(self, key: bytes) -> bytes | None:
        assert key == ONLY
        return self.held

    def set(self, key: bytes, value: bytes) -> None:
        assert key == ONLY
        self.held = value


class Loaded(Programs):
    """What Watch asks of the programs."""

    def __init__(self) -> None:
        self.maps: dict[str, Map] = {}
        self.sends = Hook()

    def map(self, name: str, key_size: int, value_size: int, *, per_cpu: bool = False) -> Map:
        assert key_size == len(ONLY) and not per_cpu
        return self.maps.setdefault(name, Map(value_size))

    def load(self, hook: object) -> Hook:
        return self.sends


class Watched:
    """A watch, and time that passes for it."""

    def __init__(self) -> None:
        self.programs, self.packets = Loaded(), Hook()
        self.packets.attach()
        self.watch = Watch(self.programs, self.packets, Kind.TYPED_TRACEPOINT)
        self.now = self.watch._counted_since

    def pass_time(self, seconds: float, rate: float, datagram: float = LONG_AGO) -> None:
        for _ in range(round(seconds / WINDOW_SECONDS)):
            self.now += WINDOW_SECONDS
            self.watch.tick(self.now, round(rate * WINDOW_SECONDS), datagram)

    @property
    def told(self) -> tuple[int, int]:
        """What the programs are told: since when packets are looked at, and whether outcomes are to be queued."""
        since, queued = struct.unpack("=QQ", self.programs.maps["watch"].held)
        return since, queued


@pytest.fixture
def lookups() -> Iterator[mock.Mock]:
    with mock.patch.object(watch, "Lookups") as made:
        yield made


@pytest.fixture
def watched(lookups: mock.Mock) -> Watched:
    lookups.return_value.settle.return_value = False
    return Watched()


def test_packets_are_looked_at_until_thousands_connect(watched: Watched) -> None:
    watched.pass_time(60, 900)
    assert watched.watch.looks
    assert watched.packets.attached
    assert watched.told == (ALWAYS, 0)

    watched.pass_time(WINDOW_SECONDS, BUSY)
    assert not watched.watch.looks
    assert not watched.packets.attached
    assert watched.programs.sends.attached
    assert watched.told == (NEVER, 1)


def test_and_again_once_it_is_calm(watched: Watched) -> None:
    watched.pass_time(1, BUSY)
    watched.pass_time((CALM_WINDOWS - 1) * WINDOW_SECONDS, 100)
    watched.pass_time(1, 400)  # neither busy nor calm
    assert not watched.watch.looks
    watched.pass_time(CALM_WINDOWS * WINDOW_SECONDS, 100)
    assert watched.watch.looks
    assert watched.packets.attached
    assert not watched.programs.sends.attached
    since, queued = watched.told
    assert 0 < since < NEVER
    assert queued  # what is queued already comes first
    watched.watch.settle()
    assert watched.told == (since, 0)


def test_what_is_still_queued_is_not_overtaken(watched: Watched, lookups: mock.Mock) -> None:
    watched.pass_time(1, BUSY)
    watched.pass_time(2, 0)
    lookups.return_value.settle.return_value = True
    watched.watch.settle()
    assert watched.told[1] == 1
    lookups.return_value.settle.return_value = False
    watched.watch.settle()
    assert watched.told[1] == 0


def test_a_datagram_leads_back_for_longer_each_time(watched: Watched) -> None:
    for number in range(1, 12):
        quiet = min(MAX_QUIET_SECONDS, QUIET_SECONDS * 2**number)
        watched.pass_time(2 * MAX_QUIET_SECONDS, BUSY)
        assert not watched.watch.looks
        datagram = watched.now
        watched.pass_time(quiet, BUSY, datagram - 1e-9 + WINDOW_SECONDS)
        assert watched.watch.looks
        watched.pass_time(2 * WINDOW_SECONDS, BUSY, datagram)
        assert not watched.watch.looks


def test_while_datagrams_are_sent_packets_are_looked_at(watched: Watched) -> None:
    for _ in range(200):
        watched.pass_time(WINDOW_SECONDS, BUSY, watched.now)
    assert watched.watch.looks


def test_a_program_that_wants_packets_gets_them(watched: Watched) -> None:
    watched.pass_time(1, BUSY)
    watched.programs.maps["packets_wanted"].held = struct.pack("=Q", 1)
    watched.watch.tick(watched.now + 0.01, 0, LONG_AGO)
    assert watched.watch.looks
    watched.pass_time(2 * QUIET_SECONDS - WINDOW_SECONDS, BUSY)
    assert watched.watch.looks
    watched.pass_time(2 * WINDOW_SECONDS, BUSY)
    assert not watched.watch.looks


def test_where_no_namespace_can_be_made_packets_are_looked_at(watched: Watched, lookups: mock.Mock) -> None:
    lookups.return_value.begin.side_effect = BackendUnavailable("no")
    watched.pass_time(10, BUSY)
    assert watched.watch.looks
    assert watched.told == (ALWAYS, 0)
    assert lookups.return_value.begin.call_count == 1

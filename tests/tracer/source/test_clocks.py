"""The time of a record is told by one clock, and what the kernel notes by another."""

from __future__ import annotations

import itertools

import pytest

from tracer.source import live


def test_a_look_at_the_clocks_that_was_interrupted_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others ran for 100 ms between any two looks but for the last ones."""
    passed, looks = [0], itertools.count()

    def tick() -> int:
        passed[0] += 100_000_000 if next(looks) < 3 * (live.CLOCK_LOOKS - 1) else 100
        return passed[0]

    monkeypatch.setattr(live.time, "monotonic_ns", lambda: tick() + 5_000)
    monkeypatch.setattr(live.time, "time_ns", lambda: tick() + 1_700_000_000_000_005_000)
    assert abs(live.since_boot() - 1_700_000_000_000_000_000) <= 100

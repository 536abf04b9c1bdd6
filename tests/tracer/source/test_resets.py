"""A reset is told of the connection that it ended."""

from __future__ import annotations

from tests.tracer.fakes import T0, shape, untranslated
from tracer.events import Outcome, RawConnection, Shape
from tracer.source.resets import resets_applied


def connection(time_ns: int, sport: int = 1000) -> RawConnection:
    return RawConnection(time_ns, 50_000, sport, shape())


def reset(time_ns: int, sport: int = 1000) -> RawConnection:
    return RawConnection(time_ns, 0, sport, untranslated(outcome=Outcome.RESET))


def told(items: list[tuple[int, int, int, bytes]]) -> list[tuple[int, int, Outcome]]:
    """Source port, latency and outcome of each."""
    return [(sport, latency_ns, Outcome(Shape.unpack(packed).outcome)) for _, latency_ns, sport, packed in items]


def test_the_connection_is_told_as_reset_and_the_reset_not_at_all() -> None:
    batch = [connection(T0), connection(T0, 2000), reset(T0 + 80_000)]
    assert told(resets_applied(batch, batch)) == [(1000, 80_000, Outcome.RESET), (2000, 50_000, Outcome.ESTABLISHED)]


def test_a_reset_that_comes_after_the_batch() -> None:
    batch = [connection(T0)]
    assert told(resets_applied(batch, [*batch, reset(T0 + 80_000)])) == [(1000, 80_000, Outcome.RESET)]


def test_a_reset_of_an_earlier_batch_is_not_that_of_a_later_connection_from_the_same_port() -> None:
    batch = [reset(T0), connection(T0 + 1)]
    assert told(resets_applied(batch, batch)) == [(1000, 50_000, Outcome.ESTABLISHED)]

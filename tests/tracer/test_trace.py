"""The loop: what ends it, what it counts, what it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.tracer.fakes import FakeSource, ListSink, raw, shape
from tracer.errors import OutputError
from tracer.filters import Filter
from tracer.resolve import Resolver
from tracer.shapes import Shapes
from tracer.sinks import Interrupted, ReaderGone
from tracer.tally import Tally
from tracer.trace import Limits, follow


def run(source: FakeSource, *sinks: Any, wanted: Filter | None = None, **options: Any) -> tuple[Tally, list[str]]:
    """Follow `source` for at most a second."""
    tally, said = Tally("fake"), list[str]()
    settings: dict[str, Any] = {"limits": Limits(None, 1.0), "stopped": lambda: False, "say": said.append, **options}
    follow(source, Shapes(Resolver(None), wanted or Filter()), sinks, tally, **settings)
    return tally, said


def stop_after(polls: int) -> Callable[[], bool]:
    left = iter([False] * polls)
    return lambda: next(left, True)


def test_every_connection_reaches_every_sink_in_order() -> None:
    source = FakeSource([[raw(0), raw(1)], [], [raw(2)], [raw(n) for n in range(3, 37)]])
    first, second = ListSink(), ListSink()
    tally, said = run(source, first, second, stopped=stop_after(5))
    assert [item[0] for item in first.taken] == [raw(n).time_ns for n in range(37)]
    assert second.taken == first.taken
    assert (tally.records, said) == (37, [])
    assert first.closed and first.ticks >= 4


@pytest.mark.parametrize("count", [1, 9, 10, 11, 25, 30])
def test_count_is_exact(count: int) -> None:
    source = FakeSource([[raw(n) for n in range(10)] for _ in range(3)])
    sink = ListSink()
    tally, _ = run(source, sink, limits=Limits(count, 5.0))
    assert len(sink.taken) == tally.records == count


def test_count_counts_what_is_wanted() -> None:
    source = FakeSource([[raw(n, shape(comm=b"wget") if n % 2 else shape()) for n in range(20)]])
    sink = ListSink()
    tally, _ = run(source, sink, wanted=Filter(comms=("wget",)), limits=Limits(5, 5.0))
    assert [item[3].shared.process.comm for item in sink.taken] == ["wget"] * 5
    assert tally.records == 5


def test_duration() -> None:
    started = time.monotonic()
    tally, _ = run(FakeSource(), ListSink(), limits=Limits(None, 0.2))
    assert 0.2 <= time.monotonic() - started < 1.0
    assert 0.2 <= tally.seconds < 1.0


def test_what_ended_before_the_stop_is_still_shown() -> None:
    sink = ListSink()
    run(FakeSource([[raw(0)]]), sink, stopped=lambda: True)
    assert len(sink.taken) == 1


def test_reads_are_paced_so_that_batches_are_large() -> None:
    class Busy(FakeSource):
        reads = 0

        def read(self, timeout: float) -> Any:
            self.reads += 1
            return [raw(self.reads)]

    source = Busy()
    run(source, ListSink(), limits=Limits(None, 0.5))
    assert 5 <= source.reads <= 27


@pytest.mark.parametrize(
    ("patient", "room", "wanted", "pause"),
    [(True, True, Filter(), 0.4), (False, True, Filter(), 0.1), (True, False, Filter(), 0.1),
     (True, True, Filter(comms=("no such",)), 0.1)],
    ids=["patient", "an eye looks", "no room", "few are wanted"],
)  # fmt: skip
def test_a_busy_source_is_read_less_often(patient: bool, room: bool, wanted: Filter, pause: float) -> None:
    times: list[float] = []

    class Busy(FakeSource):
        def read(self, timeout: float) -> Any:
            times.append(time.monotonic())
            return [raw(number) for number in range(100)]

    source = Busy()
    source.room = room
    run(source, ListSink(patient=patient), wanted=wanted, limits=Limits(None, 1.4))
    assert times[1] - times[0] == pytest.approx(pause, abs=0.09)
    assert times[2] - times[1] == pytest.approx(pause, abs=0.09)


def test_losses_are_told_once_a_second_at_most_and_summed_up() -> None:
    growing = [{}, *({"ring buffer": n} for n in range(1, 7))]
    tally, said = run(FakeSource(lost=growing), ListSink(), limits=Limits(None, 1.9))
    assert said[0] == "… 1 event lost (ring buffer)"
    assert len(said) == 2
    assert tally.lost == {"ring buffer": 6}
    assert "6 events lost (ring buffer 6)" in tally.summary()


def test_each_note_is_told_once() -> None:
    _, said = run(FakeSource(), ListSink(), limits=Limits(None, 0.7), notes=lambda: ["the API is down"])
    assert said == ["note: the API is down"]


@pytest.mark.parametrize("why", [ReaderGone, Interrupted])
def test_nobody_reads_any_more(why: type[Exception]) -> None:
    class Closed(ListSink):
        def items(self, items: Any) -> None:
            raise why

    tally, _ = run(FakeSource([[raw(0)]], lost=[{"ring buffer": 3}]), Closed(), limits=Limits(None, 60))
    assert tally.records == 0
    assert tally.lost == {"ring buffer": 3}


def test_output_error_leaves_the_tally_true() -> None:
    class Full(ListSink):
        def items(self, items: Any) -> None:
            if self.taken:
                raise OutputError("full")
            super().items(items)

    tally = Tally("fake")
    with pytest.raises(OutputError):
        follow(
            FakeSource([[raw(0)], [raw(1)]]),
            Shapes(Resolver(None), Filter()),
            [Full()],
            tally,
            limits=Limits(),
            stopped=lambda: False,
            say=print,
        )
    assert tally.records == 1
    assert tally.seconds > 0

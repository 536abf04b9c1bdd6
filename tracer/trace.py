"""The live trace: from a running source to sinks, until it is over.

What belongs here: the loop, and what ends it. What does not: choosing and opening a source (`tracer.session`), the
steps that a record takes (`tracer.shapes`, `tracer.sinks`), printing (`tracer.cli`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracer.shapes import Shapes
from tracer.sinks import Interrupted, ReaderGone, Sink
from tracer.source import Source
from tracer.tally import LossNotices, Tally

# A line appears within this of its outcome.
POLL_SECONDS = 0.02
# After a batch of BUSY_RECORDS (2,000 connections a second, which no eye follows) the next one may take longer: large
# batches make records cheap, because waking up costs more than a record. Where so many are wanted, no eye looks at them
# either, and the source has room, some more such pauses are made before it.
BUSY_RECORDS = 40
BUSY_POLL_SECONDS = 0.1
BUSY_RESTS = 3
UPKEEP_SECONDS = 0.25  # how often losses and notes are looked at


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a trace by itself; None: nothing does."""

    records: int | None = None
    seconds: float | None = None


def follow(
    source: Source,
    shapes: Shapes,
    sinks: Sequence[Sink],
    tally: Tally,
    *,
    limits: Limits,
    stopped: Callable[[], bool],
    say: Callable[[str], None],
    notes: Callable[[], Sequence[str]] = lambda: (),
) -> None:
    """Read connections and give the wanted ones to every sink, until a limit is reached, `stopped()`, or nobody reads.

    `tally` is kept up to date, also when this raises OutputError. `say` gets notices of losses, and each note once.
    What ended before a signal is still read and written. The last sink is the one that the user looks at.
    """
    started = time.monotonic()
    upkeep = _Upkeep(source, tally, say, notes)
    try:
        now, pause, rests = started, POLL_SECONDS, 0
        patient = all(sink.patient for sink in sinks)
        while not stopped() and not _over(limits, tally, now - started):
            time.sleep(max(0.0, now + pause - time.monotonic()))
            now = time.monotonic()
            if rests and source.has_room():
                rests -= 1
                continue
            batch = source.read(0)
            pause = BUSY_POLL_SECONDS if len(batch) >= BUSY_RECORDS else POLL_SECONDS
            wanted = _pass_on(batch, shapes, sinks, tally, limits)
            rests = BUSY_RESTS if patient and wanted >= BUSY_RECORDS else 0
            upkeep.tick(now)
            for sink in sinks:
                sink.tick(now)
        _pass_on(source.read(0), shapes, sinks, tally, limits)
        for sink in sinks:
            sink.close()
    except (ReaderGone, Interrupted):
        pass
    finally:
        tally.seconds = time.monotonic() - started
        upkeep.last()


def _over(limits: Limits, tally: Tally, seconds: float) -> bool:
    return (limits.records is not None and tally.records >= limits.records) or (
        limits.seconds is not None and seconds >= limits.seconds
    )


def _pass_on(
    batch: Sequence[tuple[int, int, int, bytes]], shapes: Shapes, sinks: Sequence[Sink], tally: Tally, limits: Limits
) -> int:
    """Give a batch to the sinks, never more than the limit leaves; gives how many were wanted."""
    if not batch:
        return 0
    items = shapes.items(batch)
    if limits.records is not None:
        items = items[: limits.records - tally.records]
    for sink in sinks:
        sink.items(items)
    tally.records += len(items)
    return len(items)


class _Upkeep:
    """Losses and notes, looked at now and then."""

    def __init__(
        self, source: Source, tally: Tally, say: Callable[[str], None], notes: Callable[[], Sequence[str]]
    ) -> None:
        self._source = source
        self._tally = tally
        self._say = say
        self._notes = notes
        self._notices = LossNotices()
        self._said: set[str] = set()
        self._next = 0.0

    def tick(self, now: float) -> None:
        if now < self._next:
            return
        self._next = now + UPKEEP_SECONDS
        self._tally.lost = self._source.losses()
        notice = self._notices.due(self._tally.lost, now)
        if notice is not None:
            self._say(notice)
        for note in self._notes():
            if note not in self._said:
                self._said.add(note)
                self._say(f"note: {note}")

    def last(self) -> None:
        """Losses for the summary, which names them all."""
        self._tally.lost = self._source.losses()

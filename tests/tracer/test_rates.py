"""Lines while an eye can follow them, a table each second while not, and no flapping between the two."""

from __future__ import annotations

import re

import pytest

from tests.tracer.fakes import FakeNames, MemoryWriter, raw, shape
from tracer.events import Outcome
from tracer.filters import Filter
from tracer.lines import Painter
from tracer.rates import MAX_ROWS, SLOW_AGAIN, TOO_FAST, RateSink
from tracer.resolve import Resolver
from tracer.shapes import Shapes


class Screen:
    """A RateSink, its clock, and what it wrote."""

    def __init__(self, columns: int = 120, rows: int = 40) -> None:
        self.writer = MemoryWriter([])
        self.sink = RateSink(self.writer, Painter(colour=False), lambda: (columns, rows))  # type: ignore[arg-type]
        self.shapes = Shapes(Resolver(FakeNames()), Filter())
        self.now = 100.0
        self.sink.tick(self.now)

    def second(self, count: int, *packed: bytes) -> list[str]:
        """Let `count` connections come within one second, in batches as the loop brings them; returns the new lines."""
        self.writer.texts.clear()
        for start in range(0, count, 10):
            batch = [raw(n, packed[n % len(packed)] if packed else None) for n in range(start, min(start + 10, count))]
            self.sink.items(self.shapes.items(batch))
            self.sink.tick(self.now + 0.9 * start / count)
        self.now += 1.0
        self.sink.tick(self.now)
        return self.writer.lines


def is_line(text: str) -> bool:
    return "curl[4242]" in text


def test_up_to_the_limit_all_are_lines() -> None:
    screen = Screen()
    for _ in range(3):
        lines = screen.second(TOO_FAST)
        assert len(lines) == TOO_FAST and all(map(is_line, lines))


def test_beyond_the_limit_the_rest_of_the_second_is_summed_up() -> None:
    lines = Screen().second(200)
    assert sum(map(is_line, lines)) == TOO_FAST
    assert lines[TOO_FAST] == "09:00:00  150 connections in a second"
    assert lines[TOO_FAST + 1].split() == ["Service", "Backend", "Count", "Failed", "Median"]
    assert lines[TOO_FAST + 2].split() == [
        "fastapi/lets-ship-it:8000",
        "lets-ship-it-584c4f66f8-htx9q",
        "150",
        "0",
        "0.4ms",
    ]
    assert len(lines) == TOO_FAST + 3


def test_hysteresis() -> None:
    screen = Screen()
    screen.second(200)
    for count in (200, TOO_FAST, SLOW_AGAIN + 1):  # neither fast nor slow: the summary stays
        lines = screen.second(count)
        assert not any(map(is_line, lines))
        assert f"{count} connections in a second" in lines[0]
    assert not any(map(is_line, screen.second(SLOW_AGAIN)))
    lines = screen.second(SLOW_AGAIN)
    assert len(lines) == SLOW_AGAIN and all(map(is_line, lines))


def test_a_silent_second_writes_nothing() -> None:
    screen = Screen()
    screen.second(200)
    assert screen.second(0) == []
    assert is_line(screen.second(1)[0])


def test_rows_by_service_and_backend_with_failures() -> None:
    screen = Screen()
    screen.second(200)
    lines = screen.second(
        300,
        shape(),
        shape(pid=7),  # another process, the same row
        shape(outcome=Outcome.REFUSED, backend="10.244.1.9", bport=8080),
    )
    assert [line.split() for line in lines[2:]] == [
        ["fastapi/lets-ship-it:8000", "lets-ship-it-584c4f66f8-htx9q", "200", "0", "0.4ms"],
        ["fastapi/lets-ship-it:8000", "10.244.1.9:8080", "100", "100", "0.4ms"],
    ]


@pytest.mark.parametrize(("columns", "rows"), [(120, 40), (80, 24), (80, 8), (60, 6)])
def test_fits_the_terminal_and_leaves_no_connection_uncounted(columns: int, rows: int) -> None:
    screen = Screen(columns, rows)
    screen.second(200)
    many = [shape(backend=f"10.244.3.{n}", bport=8000) for n in range(40)]
    lines = screen.second(400, *many)
    assert max(map(len, lines)) <= columns
    assert lines[1].split() == ["Service", "Backend", "Count", "Failed", "Median"]
    assert len(lines) <= min(rows, MAX_ROWS + 3)
    shown = sum(int(line.split()[2]) for line in lines[2:-1])
    rest = re.fullmatch(r"… and \d+ more rows with (\d+) connections", lines[-1])
    assert rest is not None
    assert shown + int(rest[1]) == 400


def test_escapes_and_markup_in_names_are_text() -> None:
    screen = Screen()
    names = FakeNames()
    names.pods["10.244.0.12"] = names.pods["10.244.0.12"]._replace(pod="[red]x[/]\x1b]0;t\x07")
    screen.shapes = Shapes(Resolver(names), Filter())
    screen.second(200)
    lines = screen.second(100)
    assert "[red]x[/]\\x1b]0;t\\x07" in lines[2]


def test_close_shows_what_is_left() -> None:
    screen = Screen()
    screen.sink.items(screen.shapes.items([raw(n) for n in range(60)]))
    screen.writer.texts.clear()
    screen.sink.close()
    assert "10 connections in a second" in screen.writer.lines[0]

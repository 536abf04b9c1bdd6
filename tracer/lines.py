"""The line form as a sink: one line for each connection.

What belongs here: drawing each shape's line once, in colour on a terminal, and putting time and latency around it.
What does not: the words of a line (`tracer.render`), what replaces lines at a high rate (`tracer.rates`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tracer import render
from tracer.encode import timestamp
from tracer.events import Connection
from tracer.shapes import Item
from tracer.sinks import Writer

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 120


class Painter:
    """Spans to text: plain, or with the escape codes that rich chooses for this terminal."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._console: Console | None = None

    def paint(self, spans: Iterable[render.Span]) -> str:
        """One line without its newline."""
        if not self._colour:
            return "".join(span.text for span in spans)
        from rich.text import Text

        text = Text.assemble(*((span.text, render.STYLES[span.style]) for span in spans))
        console = self.console()
        with console.capture() as capture:
            console.print(text, end="", soft_wrap=True, highlight=False, markup=False, emoji=False)
        return capture.get()

    def warm_up(self) -> None:
        """Load rich now, so that the first line need not wait for it."""
        self.paint((render.Span(""),))

    def console(self) -> Console:
        """A rich console that writes nowhere: for capture()."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=io.StringIO(), force_terminal=self._colour, no_color=not self._colour)
        return self._console


class Brush:
    """A Painter for many short lines: rich is asked once for each style, instead of once for each line."""

    def __init__(self, *, colour: bool) -> None:
        self._painter = Painter(colour=colour)
        self._codes: dict[str, tuple[str, str]] = {}

    def paint(self, spans: Iterable[render.Span]) -> str:
        """One line without its newline; neighbours of one style become one."""
        joined = ((style, "".join(text for text, _ in alike)) for style, alike in groupby(spans, itemgetter(1)))
        return "".join(self._painted(text, style) for style, text in joined)

    def _painted(self, text: str, style: str) -> str:
        codes = self._codes.get(style)
        if codes is None:
            before, _, after = self._painter.paint((render.Span("x", style),)).partition("x")
            codes = self._codes[style] = (before, after)
        return codes[0] + text + codes[1]


class LineSink:
    """Writes the line form; `width` gives the columns to fill, and may change."""

    every_type = False
    patient = False

    def __init__(self, writer: Writer, painter: Painter, width: Callable[[], int] = lambda: WIDTH) -> None:
        self._writer = writer
        self._painter = painter
        self._width = width

    def items(self, items: Sequence[Item]) -> None:
        """See Sink."""
        width = self._width()
        lines = []
        for time_ns, latency_ns, _, entry in items:
            if entry.drawn is None or entry.drawn[0] != width:
                entry.drawn = (width, self._body(entry.shared, width))
            latency_us = latency_ns // 1000 if latency_ns >= 0 else None
            lines.append(_line(timestamp(time_ns), entry.drawn[1], latency_us))
        self._write(lines)

    def documents(self, documents: Sequence[tuple[Mapping[str, Any], Connection | None]]) -> None:
        """See Sink."""
        width = self._width()
        connections = [connection for _, connection in documents if connection is not None]
        self._write([_line(each.time, self._body(each, width), each.latency_us) for each in connections])

    def tick(self, now: float) -> None:
        """See Sink."""
        self._writer.check_reader()

    def close(self) -> None:
        """See Sink."""

    def _body(self, shared: Connection, width: int) -> str:
        room = width - render.CLOCK_CELLS - render.LATENCY_CELLS
        return self._painter.paint(render.body(shared, room))

    def _write(self, lines: Sequence[str]) -> None:
        if lines:
            self._writer.write("".join(lines))


def _line(time: str, body: str, latency_us: int | None) -> str:
    return f"{render.clock(time)} {body} {render.latency(latency_us)}".rstrip() + "\n"

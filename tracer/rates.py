"""The line form on a terminal: lines while an eye can follow them, a table each second while it can't.

What belongs here: when to switch, and the table by Service and backend. What does not: the lines (`tracer.lines`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tracer import render
from tracer.encode import timestamp
from tracer.events import FAILED_OUTCOMES, Connection
from tracer.lines import LineSink, Painter
from tracer.shapes import Item
from tracer.sinks import Writer

TOO_FAST = 50  # lines in a second beyond which no eye follows
SLOW_AGAIN = 25  # well below, so that a rate around the limit does not flap
MAX_ROWS = 12
NUMBER_CELLS = len("Median")
GAP = 2  # columns between two of the table


@dataclass(slots=True)
class _Row:
    """One Service and backend in one second."""

    service: str
    backend: str
    count: int = 0
    failed: int = 0
    latencies: list[int] = field(default_factory=list)  # ns


class RateSink:
    """A LineSink that gives way to a summary while more than TOO_FAST records come within a second."""

    every_type = False
    patient = False

    def __init__(self, writer: Writer, painter: Painter, size: Callable[[], tuple[int, int]]) -> None:
        """size gives the terminal's columns and rows, and may change."""
        self._writer = writer
        self._painter = painter
        self._size = size
        self._lines = LineSink(writer, painter, lambda: size()[0])
        self._second_ends = 0.0
        self._seen = 0  # in this second
        self._summing = False
        self._rows: dict[tuple[str, str], _Row] = {}
        self._last_time_ns = 0

    def items(self, items: Sequence[Item]) -> None:
        """See Sink."""
        self._seen += len(items)
        if not self._summing and self._seen > TOO_FAST:
            shown = max(0, len(items) - (self._seen - TOO_FAST))
            self._lines.items(items[:shown])
            items = items[shown:]
            self._summing = True
        if self._summing:
            self._add(items)
        else:
            self._lines.items(items)

    def documents(self, documents: Sequence[tuple[Mapping[str, Any], Connection | None]]) -> None:
        """See Sink. A recording is not summed up: it has no rate of its own."""
        self._lines.documents(documents)

    def tick(self, now: float) -> None:
        """See Sink. Ends a second when it is over."""
        if self._second_ends == 0.0:
            self._painter.warm_up()
        if now < self._second_ends:
            return
        self._second_ends = now + 1.0
        self._lines.tick(now)
        self._show()
        if self._seen <= SLOW_AGAIN:
            self._summing = False
        self._seen = 0

    def close(self) -> None:
        """See Sink."""
        self._show()

    def _add(self, items: Iterable[Item]) -> None:
        for time_ns, latency_ns, _, entry in items:
            key = (render.service_label(entry.shared), render.backend_label(entry.shared))
            row = self._rows.get(key)
            if row is None:
                row = self._rows[key] = _Row(*key)
            row.count += 1
            row.failed += entry.shared.outcome in FAILED_OUTCOMES
            if latency_ns >= 0:
                row.latencies.append(latency_ns)
            self._last_time_ns = time_ns

    def _show(self) -> None:
        if self._rows:
            self._writer.write(self._table())
            self._rows = {}

    def _table(self) -> str:
        from rich.markup import escape as literally
        from rich.table import Table

        width, height = self._size()
        rows = sorted(self._rows.values(), key=lambda row: (-row.count, row.service, row.backend))
        total = sum(row.count for row in rows)
        table = Table(box=None, padding=(0, GAP, 0, 0), header_style="dim")
        names = max(10, (width - 3 * (NUMBER_CELLS + GAP) - 2 * GAP) // 2)
        for title, style in (("Service", "service"), ("Backend", "backend")):
            table.add_column(title, style=render.STYLES[style], no_wrap=True, overflow="ellipsis", max_width=names)
        for title in ("Count", "Failed", "Median"):
            table.add_column(title, justify="right", no_wrap=True, min_width=NUMBER_CELLS)
        room = max(3, min(MAX_ROWS, height - 4))
        for row in rows[:room]:
            table.add_row(
                literally(row.service),
                literally(row.backend or "-"),
                str(row.count),
                f"[{render.STYLES['bad']}]{row.failed}[/]" if row.failed else "0",
                render.latency(int(median(row.latencies)) // 1000) if row.latencies else "-",
            )
        console = self._painter.console()
        console.width = width
        clock = render.clock(timestamp(self._last_time_ns))[:8]
        with console.capture() as capture:
            console.print(f"{clock}  {total} connections in a second", highlight=False)
            console.print(table)
            if len(rows) > room:
                rest = sum(row.count for row in rows[room:])
                console.print(f"… and {len(rows) - room} more rows with {rest} connections", highlight=False)
        return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())

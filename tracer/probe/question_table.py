"""The answers to DNS queries for people: pure, from a DnsReport to lines of spans.

What belongs here: words and columns. What does not: reading answers (`questions`), escape codes (`tracer.lines`).
"""

from __future__ import annotations

from collections.abc import Iterator

from tracer.destination import endpoint_text
from tracer.escape import cells, escape
from tracer.probe.questions import DnsReport, Exchange
from tracer.probe.table import (
    GAP,
    MIN_NAME,
    Line,
    aligned,
    destination_label,
    origin_label,
    pod_label,
    shortened,
    wrapped,
)
from tracer.render import Span, latency

_GOOD = ("NOERROR",)


def lines(report: DnsReport, width: int) -> Iterator[Line]:
    """The report in lines of at most `width` columns, but for the least that a table needs."""
    count = len(report.exchanges)
    queries = "query" if count == 1 else "queries"
    head = f"{count} DNS {queries} for {report.name} {report.type} from {origin_label(report.origin)}"
    yield from wrapped(f"{head} ({report.source}) to {destination_label(report.server)}", width)
    if report.exchanges:
        yield ()
        yield from _exchanges(report, width)
        yield ()
    yield from _records(report, width)
    for note in report.notes:
        yield from wrapped(f"note: {note}", width, "dim")


def _exchanges(report: DnsReport, width: int) -> Iterator[Line]:
    rows = [_row(exchange) for exchange in report.exchanges]
    titles = ["ASKED", "ANSWER", "FLAGS", "TIME", "BACKEND"]
    names = [pod_label(exchange.pod) for exchange in report.exchanges]
    if any(exchange.pod is not None for exchange in report.exchanges):
        titles.append("POD")
        others = sum(max(len(title), *(cells(row[n].text) for row in rows)) for n, title in enumerate(titles[:-1]))
        room = max(MIN_NAME, width - others - len(GAP) * len(rows[0]))
        rows = [[*row, Span(shortened(name, room))] for row, name in zip(rows, names, strict=True)]
    yield from aligned(titles, rows, right=(3,))


def _row(exchange: Exchange) -> list[Span]:
    answer = exchange.rcode or f"({exchange.outcome})"
    backend = "-" if exchange.backend is None else endpoint_text(*exchange.backend)
    return [
        Span("rd" if exchange.recursion_desired else "no rd"),
        Span(escape(answer), "good" if answer in _GOOD else "bad"),
        Span(" ".join(exchange.flags) or "-"),
        Span("-" if exchange.time is None else latency(round(exchange.time * 1e6)), "dim"),
        Span(backend, "backend"),
    ]


def _records(report: DnsReport, width: int) -> Iterator[Line]:
    """Each record once, however many answers hold it."""
    records = {(r.name, r.type, r.data): r for exchange in report.exchanges for r in exchange.records}
    for record in records.values():
        yield from wrapped(f"{record.name} {record.ttl} {record.type} {record.data}", width)
    if not records and any(exchange.rcode is not None for exchange in report.exchanges):
        yield from wrapped("No records.", width)

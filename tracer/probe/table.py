"""The report of a probe for people: pure, from a Report to lines of spans.

What belongs here: words, columns, how they fit a terminal. What does not: counting (`report`), escape codes
(`tracer.lines`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from tracer.destination import Destination, endpoint_text
from tracer.escape import cells, escape
from tracer.names.model import PodName
from tracer.probe.origin import Origin
from tracer.probe.report import FATES, Report
from tracer.render import Span, share

GAP = "  "
MIN_NAME = 12
DOUBTFUL, IMPOSSIBLE = 0.05, 0.001  # p-values below which chance is a doubtful, or no, explanation

Line = tuple[Span, ...]
_UNNAMED = "-"


def lines(report: Report, width: int) -> Iterator[Line]:
    """The report in lines of at most `width` columns, but for the least that a table needs."""
    asked = report.destination
    head = f"{report.sent} {asked.protocol} {_plural(report.sent, 'flow')} from {origin_label(report.origin)}"
    yield from wrapped(f"{head} ({report.source}) to {destination_label(asked)}", width)
    yield ()
    if report.reached:
        yield from _backends(report, width)
        yield ()
    counted = ", ".join(f"{report.fates[fate]} {fate}" for fate in FATES if report.fates[fate])
    yield from wrapped(f"Answers: {counted or 'none'}.", width)
    placed = sum(each.observed for each in report.reached)
    if placed < report.sent:
        count = report.sent - placed
        yield from wrapped(f"{count} {_plural(count, 'flow')} reached no backend that is known.", width)
    yield from _verdict(report, width)
    for note in report.notes:
        yield from wrapped(f"note: {note}", width, "dim")


def wrapped(text: str, width: int, style: str = "plain") -> Iterator[Line]:
    """Escaped text in lines, those behind the first indented."""
    for line in textwrap.wrap(escape(text), max(width, 20), subsequent_indent=GAP, break_on_hyphens=False):
        yield (Span(line, style),)


def aligned(titles: Sequence[str], rows: Sequence[Sequence[Span]], right: Iterable[int] = ()) -> Iterator[Line]:
    """A table with a heading; the columns numbered in `right` are numbers."""
    heading = [Span(title, "dim") for title in titles]
    table = [heading, *rows]
    widths = [max(cells(row[column].text) for row in table) for column in range(len(titles))]
    numbers = set(right)
    for row in table:
        spans: list[Span] = []
        blanks = ""
        for column, span in enumerate(row):
            padding = " " * (widths[column] - cells(span.text))
            before, after = (padding, "") if column in numbers else ("", padding)
            if span.text:
                spans += [Span(blanks + before), span]
                blanks = after + GAP
            else:
                blanks += before + after + GAP
        yield tuple(span for span in spans if span.text)


def shortened(text: str, room: int) -> str:
    """Text with its middle left out where it is longer than `room` columns: a pod's name is told by its end."""
    if cells(text) <= room or len(text) <= room:
        return text
    end = (room - 1) // 2
    return f"{text[: room - 1 - end]}…{text[-end:]}"


def origin_label(origin: Origin) -> str:
    """Where flows come from."""
    return origin.text if origin.text is not None else "this network namespace"


def destination_label(asked: Destination) -> str:
    """Where flows go to: the Service and its address, or the address alone."""
    service = asked.service
    if service is None or service.full_name is None:
        return asked.endpoint
    port = f":{service.port_name}" if service.port_name else ""
    return f"{service.full_name}{port} ({asked.endpoint})"


def pod_label(pod: PodName | None) -> str:
    """NAMESPACE/POD, as far as it is known; escaped."""
    if pod is None:
        return _UNNAMED
    return escape(f"{pod.namespace}/{pod.pod}" if pod.namespace else pod.pod)


def _backends(report: Report, width: int) -> Iterator[Line]:
    names = [pod_label(each.pod) for each in report.reached]
    named = any(name != _UNNAMED for name in names)
    compared = any(each.share is not None for each in report.reached)
    titles = ["BACKEND", *(["POD"] if named else []), "OBSERVED", *(["EXPECTED", "SHARE"] if compared else [])]
    rows = []
    for each, name in zip(report.reached, names, strict=True):
        row = [Span(endpoint_text(each.ip, each.port), "backend"), *([Span(name)] if named else [])]
        row.append(Span(str(each.observed)))
        if compared:
            row.append(Span("-" if each.expected is None else f"{each.expected:.1f}", "dim"))
            row.append(Span("" if each.share is None else share(each.share), "dim"))
        rows.append(row)
    if named:
        others = sum(max(cells(row[n].text) for row in [*rows, [Span(t) for t in titles]]) for n in range(len(titles)))
        others -= max(cells(row[1].text) for row in rows)
        room = max(MIN_NAME, width - others - len(GAP) * (len(titles) - 1))
        rows = [[row[0], Span(shortened(row[1].text, room)), *row[2:]] for row in rows]
    first = 2 if named else 1
    yield from aligned(titles, rows, right=range(first, first + 2 if compared else first + 1))


def _verdict(report: Report, width: int) -> Iterator[Line]:
    """One sentence about the test, where there was one."""
    p = report.p_value
    if p is None:
        return
    if report.chi_square is None:
        yield from wrapped("The spread is not what the rules say: flows went where no rule sends them.", width, "bad")
        return
    degrees = f"{report.degrees} {_plural(report.degrees or 0, 'degree')} of freedom"
    test = f"Chi-square {report.chi_square:.2f} with {degrees}, p = {p:.3g}:"
    if p < IMPOSSIBLE:
        seldom = f"once in {1 / p:,.0f} probes" if p > 1e-9 else "never"
        yield from wrapped(f"{test} chance alone is so uneven {seldom}; the rules do not explain it.", width, "bad")
    elif p < DOUBTFUL:
        yield from wrapped(f"{test} chance alone is seldom as uneven as this; repeat it with more flows.", width)
    else:
        yield from wrapped(f"{test} the spread is as the rules say.", width, "good")


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"

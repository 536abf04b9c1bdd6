"""What a record looks like on a terminal, as spans of text with a style name; pure.

What belongs here: the words, their order, what is left out when the line is narrow. What does not: colours as escape
codes and where they go (`tracer.lines`), the summary table (`tracer.rates`).

The line form, names before numbers:

    09:00:00.123 curl[4242] default/client → fastapi/lets-ship-it:8000 (10.96.100.50)
        ⇒ lets-ship-it-…htx9q 10.244.0.12:8000  KUBE-SEP-… 1/3  OK 0.4ms

A line that does not fit gives up, step by step, what the rest of it still implies (LEVELS).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from tracer.escape import cells, escape
from tracer.events import FAILED_OUTCOMES, Connection, Translation

CLOCK_CELLS = len("09:00:00.123 ")
LATENCY_CELLS = len(" 12.3ms")
MIN_CHAIN = len("KUBE-SEP-…")
TAIL = 5  # the part of a pod name that tells it from its siblings: -htx9q (apiserver names/generate.go)


class Span(NamedTuple):
    """A piece of a line; style is a key of STYLES."""

    text: str
    style: str = "plain"


STYLES = {  # rich's style language
    "plain": "",
    "dim": "dim",
    "process": "bold",
    "source": "cyan",
    "service": "bold blue",
    "backend": "green",
    "good": "green",
    "bad": "bold red",
}


@dataclass(frozen=True, slots=True)
class Detail:
    """How much a line says. names: the longest pod or Service name in columns; chain: likewise, 0 leaves it out."""

    names: int = 255
    chain: int = 255
    asked_ip: bool = True  # the address of a destination that has a name
    same_port: bool = True  # the backend's port although it is the one asked for
    source_namespace: bool = True
    backend_ip: bool = True  # the address of a backend that has a name
    pid: bool = True


def _levels() -> Iterable[Detail]:
    detail = Detail()
    yield detail
    for step in (
        {"chain": MIN_CHAIN + 3},
        {"names": 19},
        {"chain": MIN_CHAIN},
        {"asked_ip": False},
        {"same_port": False},
        {"names": 12},
        {"source_namespace": False},
        {"chain": 0},
        {"pid": False},
        {"backend_ip": False},
        {"names": 8},
    ):
        detail = replace(detail, **step)
        yield detail


LEVELS = tuple(_levels())


def clock(time: str) -> str:
    """HH:MM:SS.mmm (UTC, as in the record) of an RFC 3339 time; another form is shown as it is."""
    found = _RFC3339.match(time)
    return f"{found[1]}.{(found[2] or '')[:3]:0<3}" if found else escape(time)


def latency(latency_us: int | None) -> str:
    """Six columns at most: 0.04ms, 0.4ms, 12.3ms, 120ms, 1.0s; empty when it is not known."""
    if latency_us is None or latency_us < 0:
        return ""
    milliseconds = latency_us / 1000
    if latency_us < 100:
        return f"{milliseconds:.2f}ms"
    if latency_us < 99_950:
        return f"{milliseconds:.1f}ms"
    if latency_us < 999_500:
        return f"{milliseconds:.0f}ms"
    return f"{milliseconds / 1000:.1f}s" if latency_us < 99_950_000 else f"{milliseconds / 1000:.0f}s"


def body(shared: Connection, room: int) -> tuple[Span, ...]:
    """All of the line between time and latency, in at most `room` columns; the same for every connection of a shape."""
    for detail in LEVELS:
        spans = _layout(shared, detail)
        spare = room - _cells(spans)
        if spare >= 0:
            return _layout(shared, replace(detail, chain=detail.chain + spare)) if 0 < detail.chain < 255 else spans
    return _cut(spans, room)


def service_label(shared: Connection) -> str:
    """namespace/service:port of what was asked for, or its address; escaped."""
    return _asked(shared, 255)


def backend_label(shared: Connection) -> str:
    """The pod that packets went to, or its address; empty when nothing was translated; escaped."""
    if shared.backend is None:
        return ""
    return escape(shared.backend.pod or _address(shared.backend.ip, shared.backend.port))


def _layout(shared: Connection, detail: Detail) -> tuple[Span, ...]:
    spans = [*_process(shared, detail), Span(" "), Span(_source(shared, detail), "source"), Span(" → ")]
    spans.append(Span(_asked(shared, detail.names), "service"))
    if shared.destination.service and detail.asked_ip:
        spans.append(Span(f" ({escape(shared.destination.ip)})", "dim"))
    spans += _backend(shared, detail)
    spans += _choice(shared.translation, detail)
    spans += [Span("  "), *_end(shared)]
    return tuple(spans)


def _process(shared: Connection, detail: Detail) -> list[Span]:
    if shared.process is None:
        return [Span("-", "dim")]
    spans = [Span(escape(shared.process.comm), "process")]
    return [*spans, Span(f"[{shared.process.pid}]", "dim")] if detail.pid else spans


def _source(shared: Connection, detail: Detail) -> str:
    """The pod; otherwise the node, for a process of the host; otherwise the address."""
    source = shared.source
    if source.pod is None:
        return escape(shared.node or source.ip)
    pod = _shorten(escape(source.pod), detail.names)
    return f"{escape(source.namespace)}/{pod}" if source.namespace and detail.source_namespace else pod


def _asked(shared: Connection, names: int) -> str:
    asked = shared.destination
    protocol = "" if shared.protocol == "TCP" else f"/{escape(shared.protocol)}"
    if asked.service is None:
        return _address(asked.ip, asked.port) + protocol
    service = _shorten(escape(asked.service), max(names, 20))
    return (f"{escape(asked.namespace)}/" if asked.namespace else "") + f"{service}:{asked.port}{protocol}"


def _backend(shared: Connection, detail: Detail) -> list[Span]:
    backend = shared.backend
    if backend is None:
        return []
    same_port = backend.port == shared.destination.port and not detail.same_port
    address = escape(backend.ip) if same_port else _address(backend.ip, backend.port)
    if backend.pod is None:
        return [Span(" ⇒ "), Span(address, "backend")]
    pod = _shorten(escape(backend.pod), detail.names)
    if backend.namespace and backend.namespace != shared.destination.namespace:
        pod = f"{escape(backend.namespace)}/{pod}"
    return [Span(" ⇒ "), Span(pod, "backend"), *([Span(f" {address}", "dim")] if detail.backend_ip else [])]


def _choice(translation: Translation, detail: Detail) -> list[Span]:
    """What chose the backend: the last chain walked is the endpoint's own."""
    words = []
    if translation.by == "socket":
        words.append("[socket]")
    elif translation.via and detail.chain:
        words.append(_start(escape(translation.via[-1]), detail.chain))
    if translation.probability is not None:
        words.append(share(translation.probability))
    return [Span("  " + " ".join(words), "dim")] if words else []


def share(probability: float) -> str:
    """A probability as people say it: 1/3 where kube-proxy's equal shares explain it, otherwise a percentage."""
    if probability < 1e-9:
        return "0%"
    parts = round(1 / probability)
    close = 0.0005 if parts <= 30 else probability * 1e-4
    return f"1/{parts}" if abs(probability - 1 / parts) <= close else f"{probability:.1%}"


def _end(shared: Connection) -> list[Span]:
    outcome = shared.outcome
    if outcome is None:
        return [Span("?", "dim")]
    word = "OK" if outcome == "established" else escape(outcome).upper().replace("-", " ")
    if shared.errno and shared.errno not in _IMPLIED.get(outcome, ()):
        word += f" {errno.errorcode.get(shared.errno, shared.errno)}"
    return [Span(word, "bad" if outcome in FAILED_OUTCOMES else "good")]


def _address(ip: str, port: int) -> str:
    ip = escape(ip)
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _shorten(name: str, limit: int) -> str:
    """Cut the middle of a name, so that what tells a pod from its siblings stays: lets-ship-it-…htx9q."""
    if len(name) <= limit:
        return name
    return f"{name[: limit - 1 - TAIL]}…{name[-TAIL:]}"


def _start(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _cells(spans: Iterable[Span]) -> int:
    return sum(cells(span.text) for span in spans)


def _cut(spans: tuple[Span, ...], room: int) -> tuple[Span, ...]:
    """The last resort: the line's start, an ellipsis, and its last word, which says how it ended."""
    *start, end = spans
    left = room - cells(end.text) - 2
    kept = []
    for span in start:
        text = ""
        for character in span.text:
            left -= cells(character)
            if left < 0:
                break
            text += character
        kept.append(Span(text, span.style))
    return (*kept, Span("… "), end) if room > cells(end.text) + 2 else (end,)


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d)(?:\.(\d+))?Z\Z", re.ASCII)
_IMPLIED = {
    "refused": (errno.ECONNREFUSED,),
    "no-endpoints": (errno.ECONNREFUSED,),
    "timeout": (errno.ETIMEDOUT,),
    "reset": (errno.ECONNRESET,),
}

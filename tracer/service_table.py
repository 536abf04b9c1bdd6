"""The Service map as a table for people: pure, from Service ports to lines of spans.

What belongs here: the words of the table, its columns, how it gets as narrow as a terminal. What does not: the map
itself (`tracer.rules.services`), colours as escape codes (`tracer.lines`), JSON (`ServicePort.to_json`).

    SERVICE                    ADDRESSES                    ENDPOINTS         SHARE
    fastapi/lets-ship-it:http  ClusterIP 10.96.100.50:8000  10.244.0.11:8000  1/3
                               NodePort :30080              10.244.0.12:8000  1/3
                                                            10.244.1.13:8000  1/3

Protocols other than TCP stand behind the port, as in what `k8snet-trace explain` takes: 10.96.0.10:53/udp.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from tracer.escape import cells, escape
from tracer.render import Span, share
from tracer.rules.services import Address, Endpoint, ServicePort

TITLES = ("SERVICE", "ADDRESSES", "ENDPOINTS", "SHARE")
GAP = "  "
INDENT = "  "
_LEAST = (16, 17, 16, 5)  # columns that a cell keeps, however narrow the terminal
_BREAKS = "/:-."  # a word that does not fit is broken behind one of these, if one comes in its second half
_ORDER = ("ClusterIP", "ExternalIP", "LoadBalancer", None, "NodePort")
REFUSED = {"reject": "rejected", "drop": "dropped"}

Cell = tuple[Span, ...]
Row = tuple[Cell, ...]


def service_label(service: ServicePort) -> str:
    """namespace/name:port; escaped. One whose name is not known goes by its first address."""
    if service.full_name is None:
        address = min(service.addresses, key=lambda address: _ORDER.index(address.kind))
        return address_label(address, service.protocol)
    port = f":{escape(service.port_name)}" if service.port_name else ""
    return f"{escape(service.full_name)}{port}"


def address_label(address: Address, protocol: str) -> str:
    """IP:PORT, [IPv6]:PORT, or :PORT for a NodePort; and /udp or /sctp."""
    return endpoint_label(address.ip or "", address.port) + ("" if protocol == "TCP" else f"/{protocol.lower()}")


def endpoint_label(ip: str, port: int) -> str:
    """IP:PORT, with brackets around an IPv6 address."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def duration_label(seconds: int) -> str:
    """10800 as 3h, 90 as 1m30s."""
    words = ""
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        words += f"{count}{unit}" if count else ""
    return words or "0s"


def table(services: Iterable[ServicePort], width: int) -> Iterator[Cell]:
    """The lines of the table, a heading first, in at most `width` columns (but for the least that a cell needs)."""
    blocks = [_columns(service) for service in services]
    widths = _widths(blocks, width)
    yield _line(tuple((Span(title, "dim"),) for title in TITLES), widths)
    for names, addresses, endpoints in blocks:
        columns = (_folded(names, widths[:1]), _folded(addresses, widths[1:2]), _folded(endpoints, widths[2:]))
        for name, address, endpoint in zip_longest(*columns):
            yield _line((*(name or _EMPTY), *(address or _EMPTY), *(endpoint or _EMPTY)), widths)


_EMPTY: Row = ((),)


def _columns(service: ServicePort) -> tuple[list[Row], list[Row], list[Row]]:
    """One Service port: its name, its addresses, its endpoints each with a share; they stand beside each other."""
    name = (Span(service_label(service), "service"),)
    return [(name,)], [(cell,) for cell in _addresses(service)], list(_endpoints(service))


def _addresses(service: ServicePort) -> Iterator[Cell]:
    for address in sorted(service.addresses, key=lambda address: _ORDER.index(address.kind)):
        kind = address.kind or ("" if service.full_name is None else "external")
        spans = [Span(f"{kind} ", "dim")] if kind else []
        spans.append(Span(address_label(address, service.protocol)))
        if address.refused is not None:
            spans += [Span(" "), Span(REFUSED[address.refused], "bad")]
        yield tuple(spans)
        if address.kind == "LoadBalancer":
            yield from ((Span(f"{INDENT}from {text}", "dim"),) for text in service.source_ranges)


def _endpoints(service: ServicePort) -> Iterator[Row]:
    if service.no_endpoints:
        yield (Span("no endpoints", "bad"),), ()
    yield from map(_endpoint, service.endpoints)
    if service.local_endpoints and not same_choice(service.local_endpoints, service.endpoints):
        yield (Span("on this node only:", "dim"),), ()
        yield from map(_endpoint, service.local_endpoints)
    if service.session_affinity_seconds is not None:
        yield (Span(f"affinity {duration_label(service.session_affinity_seconds)}", "dim"),), ()


def same_choice(some: Sequence[Endpoint], others: Sequence[Endpoint]) -> bool:
    """Whether two choices lead to the same endpoints with the same shares, by whichever chains."""
    return [(e.ip, e.port, e.probability) for e in some] == [(e.ip, e.port, e.probability) for e in others]


def _endpoint(endpoint: Endpoint) -> Row:
    chance = () if endpoint.probability is None else (Span(share(endpoint.probability)),)
    return (Span(endpoint_label(endpoint.ip, endpoint.port), "backend"),), chance


def _cells(cell: Cell) -> int:
    return sum([cells(text) for text, _ in cell])


def _widths(blocks: Iterable[tuple[list[Row], ...]], width: int) -> list[int]:
    """As wide as the widest cell; what is too much is taken, one by one, from the column that has most to spare."""
    widths = [len(title) for title in TITLES]
    for block in blocks:
        for first, rows in enumerate(block):
            for row in rows:
                for index, cell in enumerate(row, first):
                    widths[index] = max(widths[index], _cells(cell))
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        spare, index = max(
            (each - least, index) for index, (each, least) in enumerate(zip(widths, _LEAST, strict=True))
        )
        if spare <= 0:
            break
        widths[index] -= 1
    return widths


def _folded(rows: Iterable[Row], widths: Sequence[int]) -> Iterator[Row]:
    """The rows in lines whose cells fit."""
    for row in rows:
        if all(_cells(cell) <= width for cell, width in zip(row, widths, strict=False)):
            yield row
        else:
            yield from zip_longest(*map(_fold, row, widths), fillvalue=())


def _fold(cell: Cell, width: int) -> list[Cell]:
    """A cell's lines, those behind the first indented; broken at a blank where there is one, else within a word."""
    lines: list[list[Span]] = [[]]
    left = width
    for text, style in cell:
        for word in text.replace(" ", " \0").split("\0"):
            if len(lines[-1]) > 1 - (len(lines) == 1) and cells(word.rstrip()) > left:
                lines[-1][-1] = Span(lines[-1][-1].text.rstrip(" "), lines[-1][-1].style)
                lines.append([Span(INDENT)])
                left = width - len(INDENT)
            while cells(word.rstrip()) > left:
                start = _start(word, left)
                lines[-1].append(Span(start, style))
                lines.append([Span(INDENT)])
                left, word = width - len(INDENT), word[len(start) :]
            if word:
                lines[-1].append(Span(word, style))
                left -= cells(word)
    return [tuple(line) for line in lines]


def _start(text: str, width: int) -> str:
    """As much of the text as fits, up to a place where it may be broken; at least a character."""
    end = 1
    while end < len(text) and cells(text[: end + 1]) <= width:
        end += 1
    better = max(text.rfind(mark, 0, end) for mark in _BREAKS) + 1
    return text[: better if better > end // 2 else end]


def _line(row: Row, widths: Sequence[int]) -> Cell:
    """The cells beside each other, without blanks at the end."""
    spans: list[Span] = []
    gap = 0
    for cell, width in zip(row, widths, strict=False):
        if cell:
            spans += [Span(" " * gap), *cell] if gap else cell
            gap = -_cells(cell)
        gap += width + len(GAP)
    return tuple(spans)

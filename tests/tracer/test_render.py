"""The line form: its words, its width, its manners."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tracer.fakes import EXAMPLE, example
from tracer import render
from tracer.escape import cells
from tracer.events import Connection


def line(connection: Connection, width: int = 200) -> str:
    """The line as LineSink puts it together."""
    spans = render.body(connection, width - render.CLOCK_CELLS - render.LATENCY_CELLS)
    return f"{render.clock(connection.time)} {text(spans)} {render.latency(connection.latency_us)}".rstrip()


def text(spans: tuple[render.Span, ...]) -> str:
    return "".join(span.text for span in spans)


def test_the_contracts_example_in_full() -> None:
    assert line(example()) == (
        "09:00:00.123 curl[4242] default/client → fastapi/lets-ship-it:8000 (10.96.100.50) ⇒ "
        "lets-ship-it-584c4f66f8-htx9q 10.244.0.12:8000  KUBE-SEP-RHQ3LXHZHN6YS7UZ 1/3  OK 0.4ms"
    )


def test_the_contracts_example_to_the_letter() -> None:
    assert line(example(), 147) == (
        "09:00:00.123 curl[4242] default/client → fastapi/lets-ship-it:8000 (10.96.100.50) ⇒ "
        "lets-ship-it-…htx9q 10.244.0.12:8000  KUBE-SEP-… 1/3  OK 0.4ms"
    )


def test_120_columns() -> None:
    assert line(example(), 120) == (
        "09:00:00.123 curl[4242] default/client → fastapi/lets-ship-it:8000 ⇒ "
        "lets-s…htx9q 10.244.0.12  KUBE-SEP-… 1/3  OK 0.4ms"
    )


def test_80_columns() -> None:
    assert line(example(), 80) == ("09:00:00.123 curl client → fastapi/lets-ship-it:8000 ⇒ le…htx9q  1/3  OK 0.4ms")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"backend": None, "translation": {"by": None}}, "→ fastapi/lets-ship-it:8000 (10.96.100.50)  OK"),
        (
            {"translation": {"by": "socket"}},
            "⇒ lets-ship-it-584c4f66f8-htx9q 10.244.0.12:8000  [socket]  OK",
        ),
        ({"source": {"ip": "172.18.0.2", "port": 1}}, "curl[4242] node1 → fastapi"),
        ({"source": {"ip": "172.18.0.2", "port": 1}, "node": None}, "curl[4242] 172.18.0.2 → fastapi"),
        ({"source": {"ip": "10.244.0.9", "port": 1, "pod": "x"}}, "curl[4242] x → fastapi"),
        ({"process": None}, "09:00:00.123 - default/client → "),
        ({"destination": {"ip": "10.244.0.12", "port": 8000, "kind": "Pod"}}, "default/client → 10.244.0.12:8000 ⇒ "),
        ({"destination": {"ip": "fd00::1", "port": 53}, "protocol": "UDP"}, "→ [fd00::1]:53/UDP ⇒ "),
        ({"backend": {"ip": "fd00::c", "port": 53}}, "⇒ [fd00::c]:53  KUBE-SEP"),
        ({"backend": {**EXAMPLE["backend"], "namespace": "other"}}, "⇒ other/lets-ship-it-584c4f66f8-htx9q 10.2"),
        ({"outcome": "refused", "errno": errno.ECONNREFUSED}, "1/3  REFUSED 0.4ms"),
        ({"outcome": "no-endpoints", "errno": errno.ECONNREFUSED}, "1/3  NO ENDPOINTS 0.4ms"),
        ({"outcome": "timeout", "errno": errno.ETIMEDOUT}, "1/3  TIMEOUT 0.4ms"),
        ({"outcome": "unreachable", "errno": errno.EHOSTUNREACH}, "1/3  UNREACHABLE EHOSTUNREACH 0.4ms"),
        ({"outcome": "rejected", "errno": errno.EPERM}, "1/3  REJECTED EPERM 0.4ms"),
        ({"outcome": "reset", "errno": 4095}, "1/3  RESET 4095 0.4ms"),
        ({"outcome": "sent", "latency_us": None}, "1/3  SENT"),
        ({"outcome": None, "latency_us": None}, "1/3  ?"),
    ],
)  # fmt: skip
def test_forms(changes: dict[str, Any], expected: str) -> None:
    assert expected in line(example(**changes))


@pytest.mark.parametrize(
    ("latency_us", "shown"),
    [
        (None, ""), (0, "0.00ms"), (41, "0.04ms"), (99, "0.10ms"), (100, "0.1ms"), (412, "0.4ms"), (12_340, "12.3ms"),
        (99_949, "99.9ms"), (99_950, "100ms"), (120_400, "120ms"), (999_499, "999ms"), (999_500, "1.0s"),
        (1_020_000, "1.0s"), (99_949_999, "99.9s"), (127_000_000, "127s"),
    ],
)  # fmt: skip
def test_latency(latency_us: int | None, shown: str) -> None:
    assert render.latency(latency_us) == shown
    assert len(shown) <= render.LATENCY_CELLS - 1


@pytest.mark.parametrize(
    ("probability", "shown"),
    [
        (1.0, "1/1"), (0.5, "1/2"), (0.333, "1/3"), (0.33333333349, "1/3"), (0.25, "1/4"), (1 / 1000, "1/1000"),
        (0.6667, "66.7%"), (0.0, "0%"), (0.9, "90.0%"), (2 / 7, "28.6%"), (5e-324, "0%"),
    ],
)  # fmt: skip
def test_share(probability: float, shown: str) -> None:
    assert render.share(probability) == shown


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        ("2026-11-22T09:00:00.123456789Z", "09:00:00.123"),
        ("2026-11-22T09:00:00Z", "09:00:00.000"),
        ("2026-11-22T09:00:00.5Z", "09:00:00.500"),
        ("yesterday\x1b[2J", "yesterday\\x1b[2J"),
    ],
)
def test_clock(time: str, shown: str) -> None:
    assert render.clock(time) == shown


def test_labels() -> None:
    assert render.service_label(example()) == "fastapi/lets-ship-it:8000"
    assert render.backend_label(example()) == "lets-ship-it-584c4f66f8-htx9q"
    bare = example(destination={"ip": "fd00::1", "port": 53}, backend=None)
    assert (render.service_label(bare), render.backend_label(bare)) == ("[fd00::1]:53", "")


_names = st.one_of(st.none(), st.text(max_size=80))


@given(
    width=st.integers(60, 200),
    comm=st.text(max_size=15),
    names=st.lists(_names, min_size=8, max_size=8),
    outcome=st.sampled_from(["established", "no-endpoints", "unreachable", None]),
)
def test_any_names_fit_and_are_harmless(width: int, comm: str, names: list[str | None], outcome: str | None) -> None:
    connection = example(
        process={**EXAMPLE["process"], "comm": comm},
        node=names[0],
        source={"ip": names[1] or "", "port": 1, "namespace": names[2], "pod": names[3]},
        destination={"ip": "10.96.0.1", "port": 1, "namespace": names[4], "service": names[5]},
        backend={"ip": "10.244.0.1", "port": 2, "namespace": names[6], "pod": names[7]},
        outcome=outcome,
        errno=errno.EHOSTUNREACH,
    )
    shown = line(connection, width)
    assert shown.isprintable()
    assert cells(shown) <= width

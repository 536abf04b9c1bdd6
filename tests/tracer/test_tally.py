"""The summary and the notices of losses, word for word."""

from __future__ import annotations

from tracer.tally import LossNotices, Tally


def test_summary() -> None:
    assert Tally("tracepoint", 37, seconds=2.04).summary() == "37 records, 0 events lost, 2.0 s, backend tracepoint"
    lost = {"socket map": 23, "ring buffer": 100, "empty": 0}
    assert Tally("fentry", 1, lost, seconds=61.26).summary() == (
        "1 record, 123 events lost (ring buffer 100, socket map 23), 61.3 s, backend fentry"
    )


def test_notices_are_spaced_and_lose_nothing() -> None:
    notices = LossNotices()
    assert notices.due({}, 10.0) is None
    assert notices.due({"ring buffer": 5}, 10.1) == "… 5 events lost (ring buffer)"
    assert notices.due({"ring buffer": 9}, 10.5) is None
    assert notices.due({"ring buffer": 9, "request map": 1}, 11.2) == (
        "… 4 events lost (ring buffer), 1 event lost (request map)"
    )
    assert notices.due({"ring buffer": 9, "request map": 1}, 20.0) is None

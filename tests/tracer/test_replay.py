"""A recording goes through filters and sinks as a live trace does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tracer.fakes import EXAMPLE, ListSink
from tracer import recording
from tracer.errors import FormatError
from tracer.filters import Filter
from tracer.replay import replay
from tracer.sinks import ReaderGone
from tracer.tally import Tally

DNS = {"type": "dns", "time": "x", "node": "node1", "process": None}
WGET = {**EXAMPLE, "process": {**EXAMPLE["process"], "comm": "wget"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.jsonl"
    records = [recording.header(), EXAMPLE, DNS, WGET, EXAMPLE, WGET]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(path: Path, sinks: list[Any], wanted: Filter = Filter(), **limits: Any) -> Tally:  # noqa: B008 (frozen)
    tally = Tally("replay")
    options = {"count": None, "seconds": None, "stopped": lambda: False, **limits}
    replay(str(path), wanted, sinks, tally, **options)
    return tally


def test_json_passes_every_type_through(path: Path) -> None:
    sink = ListSink()
    tally = run(path, [sink])
    assert [document for document, _ in sink.taken] == [EXAMPLE, DNS, WGET, EXAMPLE, WGET]
    assert (tally.records, tally.other, sink.closed) == (5, {}, True)


def test_line_form_counts_what_it_can_not_show(path: Path) -> None:
    recorder, shown = ListSink(), ListSink(every_type=False)
    tally = run(path, [recorder, shown])
    assert (tally.records, tally.other) == (4, {"dns": 1})
    assert len(recorder.taken) == 5
    assert tally.skipped() == "1 record of types that the line form can't show (dns 1): see -o json"


def test_filters(path: Path) -> None:
    sink = ListSink()
    assert run(path, [sink], Filter(comms=("wget",))).records == 2
    assert [document for document, _ in sink.taken] == [WGET, WGET]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6])
def test_count(path: Path, count: int) -> None:
    sink = ListSink()
    assert run(path, [sink], count=count).records == len(sink.taken) == min(count, 5)


def test_stop_and_duration(path: Path) -> None:
    assert run(path, [ListSink()], stopped=lambda: True).records == 0
    assert run(path, [ListSink()], seconds=0).records == 0


def test_damage_ends_after_what_is_whole(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])
    sink = ListSink()
    with pytest.raises(FormatError, match=r"x\.jsonl:6: cut off"):
        run(path, [sink])
    assert len(sink.taken) == 4


def test_reader_gone_is_an_end_like_any_other(path: Path) -> None:
    class Gone(ListSink):
        def documents(self, documents: Any) -> None:
            raise ReaderGone

    run(path, [Gone()])

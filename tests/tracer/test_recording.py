"""Reading recordings back: whole, damaged, and from elsewhere."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tracer.fakes import EXAMPLE, example
from tracer import recording, render
from tracer.errors import FormatError, OutputError
from tracer.recording import Document


def read_bytes(data: bytes) -> tuple[list[Document], str | None]:
    """The records of a recording with this content, and the message of the error in which it ends."""
    fd = os.memfd_create("recording")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        documents: list[Document] = []
        try:
            for group in recording.read(fd, "x.jsonl"):
                documents += group
        except FormatError as error:
            return documents, error.message
        return documents, None
    finally:
        os.close(fd)


def lines(*documents: Any) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def test_whole() -> None:
    dns = {"type": "dns", "time": "x", "node": None, "process": None, "query": "a.b"}
    documents, error = read_bytes(lines(recording.header(), EXAMPLE, dns, EXAMPLE))
    assert error is None
    assert documents == [(EXAMPLE, example()), (dns, None), (EXAMPLE, example())]


def test_unknown_members_survive() -> None:
    more = {**EXAMPLE, "later": {"x": 1}}
    assert read_bytes(lines(more)) == ([(more, example())], None)


def test_no_header_blank_lines_and_no_last_newline_are_fine() -> None:
    assert read_bytes(b"\n" + lines(EXAMPLE) + b"\n" + lines(EXAMPLE)[:-1]) == ([(EXAMPLE, example())] * 2, None)


def test_empty() -> None:
    assert read_bytes(b"") == ([], None)


@pytest.mark.parametrize("cut", [1, 2, 100, 600])
def test_cut_in_half(cut: int) -> None:
    documents, error = read_bytes((lines(recording.header(), EXAMPLE, EXAMPLE))[:-cut])
    if cut == 1:
        assert (len(documents), error) == (2, None)
    else:
        assert (len(documents), error) == (1, "x.jsonl:3: cut off in the middle of a record")


def test_larger_than_one_read() -> None:
    data = lines(recording.header(), *[EXAMPLE] * 1009)
    assert len(data) > 5 * recording.READ_BYTES
    documents, error = read_bytes(data)
    assert (len(documents), error) == (1009, None)


@pytest.mark.parametrize("version", [2, 0, "1", None, True])
def test_other_versions(version: Any) -> None:
    header = {**recording.header(), "version": version, "tool": "k8snet-trace 9.0"}
    documents, error = read_bytes(lines(header, EXAMPLE))
    assert documents == []
    assert error is not None
    assert error.startswith(f"x.jsonl:1: recorded in version {version!r} of the format by k8snet-trace 9.0; ")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{nonsense}\n", "not JSON: "),
        (b"\xff\xfe\n", "not UTF-8 text"),
        (b"[1]\n", "no record: "),
        (b'{"type": 5}\n', "no record: "),
        (b'{"type": "connection"}\n', "no connection record: 'process' is missing"),
        (b'{"type": "dns", "x": NaN}\n', "NaN is not JSON"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (lines({**EXAMPLE, "source": {"ip": "1.2.3.4", "port": "x"}}), 'source.port can\'t be "x"'),
        (lines({**EXAMPLE, "source": None}), "no connection record: "),
        (lines({**EXAMPLE, "errno": True}), "errno can't be true"),
        (lines({**EXAMPLE, "latency_us": 2**64}), "latency_us can't be 18446744073709551616"),
        (lines({**EXAMPLE, "translation": {"probability": 1.5}}), "translation.probability is not from 0 to 1"),
        (lines({**EXAMPLE, "time": None}), "time can't be null"),
        (lines({**EXAMPLE, "translation": {"via": [1]}}), "translation.via holds more than strings"),
    ],
)
def test_damaged_lines_are_named(line: bytes, why: str) -> None:
    documents, error = read_bytes(lines(EXAMPLE) + line + lines(EXAMPLE))
    assert documents == [(EXAMPLE, example())]
    assert error is not None
    assert error.startswith("x.jsonl:2: ")
    assert why in error


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=5), children, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from([*EXAMPLE, "source", "destination", "backend", "process", "translation"]), st.data())
def test_any_value_anywhere_is_refused_or_can_be_shown(member: str, data: st.DataObject) -> None:
    document = json.loads(json.dumps(EXAMPLE))
    if isinstance(document[member], dict) and data.draw(st.booleans()):
        document[member][data.draw(st.sampled_from(sorted(document[member])))] = data.draw(_json)
    else:
        document[member] = data.draw(_json)
    documents, error = read_bytes(lines(document))
    if error is None and documents and documents[0][1] is not None:
        connection = documents[0][1]
        render.body(connection, 100)
        render.latency(connection.latency_us)
    else:
        assert error is not None or documents == [] or documents[0][1] is None


def test_a_silent_pipe_can_be_stopped() -> None:
    reading, writing = os.pipe()
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    try:
        os.write(writing, lines(EXAMPLE))
        started = time.monotonic()
        groups = list(recording.read(reading, "pipe", stop.is_set))
        assert groups == [[(EXAMPLE, example())]]
        assert time.monotonic() - started < 2
    finally:
        timer.join()
        os.close(reading)
        os.close(writing)


def test_files_that_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        recording.open_recording(str(tmp_path / "none"))
    with pytest.raises(OutputError, match="No such file"):
        recording.create(str(tmp_path / "none" / "x"))


def test_create_empties_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("old")
    os.close(recording.create(str(path)))
    assert path.read_text() == ""
